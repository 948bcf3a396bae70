"""Check what holds for the decoder of every relative.

A call has feat, coord, cell, weigh (the output's gradient), `run(backend)` and `gradients(backend)`, which returns the
output and the gradients of feat and the parameters.
"""

import torch

from liif_fast.backends import corners

from .support import assert_near


def check_torch_places(call):
    """Compare the gradients of coord and cell, in float64, of the backend `torch` with the plain form's."""
    places = call.coord, call.cell = [each.double().requires_grad_() for each in (call.coord, call.cell)]
    found = [torch.autograd.grad((call.run(name) * call.weigh).sum(), places) for name in ("reference", "torch")]
    for expected, ours in zip(*found, strict=True):
        assert_near(ours, expected, 1e-9)


def check_chunks(call, backend, monkeypatch):
    """Compare a call in small chunks with one in usual chunks."""
    expected, wanted = call.gradients(backend, recompute=True)
    monkeypatch.setattr(corners, "CHUNK_QUERIES", 31)
    out, grads = call.gradients(backend, recompute=True)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-6)
    for ours, theirs in zip(grads, wanted, strict=True):
        assert_near(ours, theirs, 1e-5)


def check_empty(make, backend):
    """Run calls without queries, without images, and on one latent."""
    for options in ({"queries": 0}, {"batch": 0}, {"shape": (1, 1)}):
        call = make(**options)
        out, grads = call.gradients(backend)
        assert out.shape == call.weigh.shape
        assert all(grad.isfinite().all() for grad in grads)
