"""Test the limits of the fused kernels: missing derivatives, sizes that strain float32, direct calls of operators."""

from typing import Any

import pytest
import torch
from torch import Tensor

from liif_fast import functional
from liif_fast.coord import centres_at, plan_corners
from liif_fast.ops.decode import latent_window

OPS = torch.ops.liif_fast


def problem(latents: int = 4, queries: int = 9) -> tuple[Tensor, Tensor, Tensor, list[Tensor], list[Tensor]]:
    generator = torch.Generator().manual_seed(0)
    feat = torch.randn(1, 2, latents, latents, generator=generator)
    coord, cell = torch.rand(2, 1, queries, 2, generator=generator) * 2 - 1
    weights = [torch.randn(o, i, generator=generator) / i**0.5 for o, i in ((8, 22), (6, 8), (3, 6))]
    return feat, coord, cell, weights, [torch.randn(w.shape[0], generator=generator) for w in weights]


def test_second_derivative_is_refused() -> None:
    feat, coord, cell, weights, biases = problem()
    feat.requires_grad_()
    out = functional.liif_decode(feat, coord, cell, weights, biases, backend="cpu")
    with pytest.raises(RuntimeError, match="second derivative"):
        torch.autograd.grad(out.square().sum(), feat, create_graph=True)


def test_backward_releases_what_forward_saved() -> None:
    feat, coord, cell, weights, biases = problem()
    feat.requires_grad_()
    out = functional.liif_decode(feat, coord, cell, weights, biases, backend="cpu")
    node: Any = out.grad_fn
    out.sum().backward()
    assert not [value for value in vars(node).values() if isinstance(value, Tensor | list)]
    with pytest.raises(RuntimeError, match="second time"):
        _ = node.saved_tensors


@pytest.mark.parametrize("latents", [13, 1 << 20, (1 << 24) + 9])
@pytest.mark.parametrize("scale", [1, 2, 3, 3.7])
def test_window_of_latents_holds_what_a_region_reads(latents: int, scale: float) -> None:
    full = round(latents * scale)
    generator = torch.Generator().manual_seed(latents)
    for start in [0, full - 8, *torch.randint(0, full - 8, (50,), generator=generator).tolist()]:
        coord = centres_at(torch.arange(start, start + 8), full).view(1, 8, 1).expand(1, 8, 2)
        index = plan_corners(coord, latents, latents, True)[0]
        top, _, height, _ = latent_window((full, full), (start, start, 8, 8), (latents, latents))
        assert top <= index.min() and index.max() < top + height


@pytest.mark.parametrize("cell_decode", [True, False])
@pytest.mark.parametrize("local_ensemble", [True, False])
def test_direct_form_has_the_gradients_of_the_factorised(local_ensemble: bool, cell_decode: bool) -> None:
    feat, coord, cell, weights, biases = problem(latents=30, queries=7)
    if not cell_decode:
        weights[0] = weights[0][:, :20]
    switches = {"local_ensemble": local_ensemble, "cell_decode": cell_decode}
    leaves = [t.double().requires_grad_() for t in (feat, *weights, *biases)]
    grads = {}
    for backend in ("reference", "cpu"):
        out = functional.liif_decode(leaves[0], coord, cell, leaves[1:4], leaves[4:], backend=backend, **switches)
        grads[backend] = torch.autograd.grad(out.sin().sum(), leaves)
    for ours, expected in zip(grads["cpu"], grads["reference"], strict=True):
        torch.testing.assert_close(ours, expected)  # float64: default tolerance of 1e-7


def test_exported_program_keeps_no_activations() -> None:
    from liif_fast import LIIFDecoder

    decoder = LIIFDecoder(2, hidden_list=(8, 8))
    feat, coord, cell, *_ = problem()
    program = torch.export.export(decoder, (feat, coord, cell))
    calls = [node for node in program.graph.nodes if node.target == OPS.decode.default]
    assert [call.args[-2] for call in calls] == [[0, 8]]


def bad_calls() -> list[Any]:
    feat, coord, cell, weights, biases = problem()
    p = torch.randn(1, 4, 4, 8)
    out, saved, wanted = torch.zeros(1, 9, 3), torch.zeros(0, 6), [True] * 7
    window, narrow = [4, 4, 0, 0, 8, 8, 0, 0, 8, 8], saved.new_zeros(36, 1)
    return [
        ("no layers", lambda: OPS.decode(p, coord, cell, [], [], True, [0, 6], None)),
        (
            "channels of p",
            lambda: OPS.decode(p[..., :2].contiguous(), coord, cell, weights, biases, True, [0, 6], None),
        ),
        (
            "chain of widths",
            lambda: OPS.decode(p, coord, cell, [weights[0], weights[2]], biases[:2], True, [0, 6], None),
        ),
        ("too many kept", lambda: OPS.decode(p, coord, cell, weights, biases, True, [40, 6], None)),
        ("images of coord", lambda: OPS.decode(p, coord.repeat(2, 1, 1), None, weights, biases, True, [0, 6], None)),
        (
            "queries of grad",
            lambda: OPS.decode_backward(out[:, :2], p, coord, cell, weights, biases, saved, True, wanted, None),
        ),
        (
            "width of saved",
            lambda: OPS.decode_backward(out, p, coord, cell, weights, biases, narrow, True, wanted, None),
        ),
        (
            "number of wanted gradients",
            lambda: OPS.decode_backward(out, p, coord, cell, weights, biases, saved, True, wanted[1:], None),
        ),
        ("region", lambda: OPS.render(p, None, weights, biases, True, [*window[:8], 9, 8], [0, 6], None)),
        ("window of p", lambda: OPS.render(p[:, :2].contiguous(), None, weights, biases, True, window, [0, 6], None)),
        ("columns of x", lambda: OPS.fused_mlp(torch.zeros(5, 7), weights, biases, [0, 14], None)),
        ("window of feat", lambda: OPS.project(feat, weights[0], biases[0], True, [1, 0, 4, 4], None)),
        ("images to gather", lambda: OPS.gather_corners(feat, coord.repeat(2, 1, 1), None, True, True, None)),
        ("a row that is no whole query", lambda: OPS.decode(p, coord, cell, weights, biases, True, [6, 6], None)),
        ("width to save", lambda: OPS.decode(p, coord, cell, weights, biases, True, [4, 7], None)),
        ("numbers of a grid", lambda: OPS.render(p, None, weights, biases, True, window[:9], [0, 6], None)),
        ("numbers of a window", lambda: OPS.project(feat, weights[0], biases[0], True, [0, 0, 4], None)),
        ("another backend", lambda: OPS.project(feat, weights[0], biases[0], True, [0, 0, 4, 4], "cuda")),
    ]


@pytest.mark.parametrize(("what", "call"), [pytest.param(*case, id=case[0]) for case in bad_calls()])
def test_operators_refuse_what_does_not_fit(what: str, call: Any) -> None:
    with pytest.raises(RuntimeError, match="liif_fast"):
        call()
