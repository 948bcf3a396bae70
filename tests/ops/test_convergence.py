"""Training a small decoder and its features gives the same curves with our kernels and the plain form."""

import pytest
import torch

from liif_fast import LIIFDecoder, make_cell, make_coord

from .support import BACKENDS

STEPS = 300


def train(backend, disturbed=0.0):
    """Return the losses of fitting a smooth image, from the same initial features and decoder in every call.

    `disturbed` is added to the features to show the effect of rounding.
    """
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    decoder = LIIFDecoder(6, hidden_list=(32, 32), backend=backend)
    feat = torch.nn.Parameter(torch.randn(2, 6, 8, 8, generator=generator) * 0.3 + disturbed)
    size = 29, 31
    coord, cell = make_coord(size), make_cell(size)
    phase = torch.randn(2, 1, 3, generator=generator) * 2
    image = torch.sin(coord @ torch.randn(2, 2, 3, generator=generator) * 4 + phase)
    optimizer = torch.optim.Adam([feat, *decoder.parameters()], lr=3e-3)
    losses = []
    for _ in range(STEPS):
        chosen = torch.randperm(len(coord), generator=generator)[:256]
        out = decoder(feat, coord[chosen].expand(2, -1, -1), cell[chosen].expand(2, -1, -1))
        loss = (out - image[:, chosen]).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return torch.tensor(losses)


@pytest.fixture(scope="module")
def plain():
    return train("reference")


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "reference"])
def test_convergence(backend, plain):
    """The first steps agree up to rounding, which Adam's normalised steps then amplify, so later means are compared."""
    ours = train(backend)
    assert plain[-50:].mean() < plain[:10].mean() / 5  # the training has learnt something
    torch.testing.assert_close(ours[:10], plain[:10], rtol=1e-4, atol=0)
    # Means of 25 steps, within 5 %: two runs of the plain form whose features differ by 1e-7 differ by up to 2 %.
    torch.testing.assert_close(ours.view(-1, 25).mean(1), plain.view(-1, 25).mean(1), rtol=0.05, atol=0)
