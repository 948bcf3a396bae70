"""Test the plain formula and its gradients on a network and a map that can be computed by hand."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from liif_fast.coord import centres
from liif_fast.functional import corner_plan, fused_mlp, gather_corners, liif_decode, liif_render

SWITCHES = list(itertools.product((True, False), repeat=3))


def network(in_dim, widths, out=3, dtype=torch.float64):
    torch.manual_seed(0)
    sizes = (in_dim, *widths, out)
    weights = [torch.randn(b, a, dtype=dtype) / a**0.5 for a, b in itertools.pairwise(sizes)]
    return weights, [torch.randn(b, dtype=dtype) / 4 for b in sizes[1:]]


def in_dim(channels, unfold, cell):
    return channels * (9 if unfold else 1) + (4 if cell else 2)


def test_blend_by_hand():
    """With a network that passes the latent through, the output is the ensemble's blend of the map."""
    feat = torch.tensor([[[[1.0, 2.0], [4.0, 8.0]]]])
    coord = torch.tensor([[[0.25, 0.0], [-0.5, -0.5]]])
    weights, biases = [torch.tensor([[1.0, 0.0, 0.0]])], [torch.zeros(1)]
    options = {"feat_unfold": False, "cell_decode": False, "backend": "reference"}
    out = liif_decode(feat, coord, None, weights, biases, **options)
    # the first query: 1/8 * 1 + 1/8 * 2 + 3/8 * 4 + 3/8 * 8; at a latent's centre: that latent
    torch.testing.assert_close(out, torch.tensor([[[4.875], [1.0]]]), rtol=1e-6, atol=1e-6)
    nearest = liif_decode(feat, coord, None, weights, biases, local_ensemble=False, **options)
    assert nearest.flatten().tolist()[1] == 1.0


def test_network_input_by_hand():
    """Unfolded channel c*9 + ki*3 + kj, zero padded; then rel; then the cell times the map's size."""
    feat = torch.arange(1.0, 13.0).reshape(1, 2, 2, 3)
    coord, cell = torch.tensor([[[-0.5, -0.6]]]), torch.tensor([[[0.25, 0.5]]])
    x, weight = gather_corners(feat, coord, cell, local_ensemble=False, backend="reference")
    assert x.shape == (1, 1, 1, 22)
    assert x.flatten()[:9].tolist() == [0, 0, 0, 0, 1, 2, 0, 4, 5]
    assert x.flatten()[9:18].tolist() == [0, 0, 0, 0, 7, 8, 0, 10, 11]
    torch.testing.assert_close(x.flatten()[18:], torch.tensor([0.0, 0.2, 0.5, 1.5]), rtol=1e-6, atol=1e-6)
    assert weight.tolist() == [[[1.0]]]


def test_mlp_is_linear_and_relu_in_turn():
    weights, biases = network(5, (7, 4))
    x = torch.randn(2, 6, 5, dtype=torch.float64)
    hidden = F.relu(F.linear(F.relu(F.linear(x, weights[0], biases[0])), weights[1], biases[1]))
    expected = F.linear(hidden, weights[2], biases[2])
    assert torch.equal(fused_mlp(x, weights, biases, backend="reference"), expected)


@pytest.mark.parametrize(("unfold", "ensemble", "cell"), SWITCHES)
def test_decode_is_the_weighted_sum_over_corners(unfold, ensemble, cell):
    options = {"feat_unfold": unfold, "local_ensemble": ensemble, "cell_decode": cell, "backend": "reference"}
    feat = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    coord, cells = torch.rand(2, 11, 2) * 2.2 - 1.1, torch.rand(2, 11, 2)
    weights, biases = network(in_dim(3, unfold, cell), (8, 8))
    x, weight = gather_corners(feat, coord, cells, **options)
    expected = (fused_mlp(x, weights, biases, backend="reference") * weight.unsqueeze(-1)).sum(2)
    torch.testing.assert_close(liif_decode(feat, coord, cells, weights, biases, **options), expected)


@pytest.mark.parametrize(
    ("unfold", "ensemble", "cell"), [(True, True, True), (False, True, True), (True, False, False)]
)
def test_gradients(unfold, ensemble, cell):
    """Check first and second derivatives with respect to all inputs, also coord and cell (hence a float64 plan)."""
    torch.manual_seed(1)
    weights, biases = network(in_dim(2, unfold, cell), (4,), out=2)
    feat = torch.randn(1, 2, 3, 4, dtype=torch.float64)
    coord, cells = torch.rand(1, 3, 2, dtype=torch.float64) - 0.5, torch.rand(1, 3, 2, dtype=torch.float64)
    inputs = [feat, coord, *weights, *biases, *([cells] if cell else [])]

    def decode(feat, coord, w0, w1, b0, b1, cells=None):
        options = {"feat_unfold": unfold, "local_ensemble": ensemble, "cell_decode": cell}
        return liif_decode(feat, coord, cells, (w0, w1), (b0, b1), backend="reference", **options)

    inputs = [tensor.requires_grad_() for tensor in inputs]
    assert torch.autograd.gradcheck(decode, inputs)
    assert torch.autograd.gradgradcheck(decode, inputs)


def test_render_decodes_its_grid_in_strips(monkeypatch):
    monkeypatch.setattr("liif_fast.backends.reference.RENDER_QUERIES", 20)
    feat = torch.randn(2, 2, 3, 4, dtype=torch.float64)
    weights, biases = network(22, (8,))
    full = liif_render(feat, (8, 7), weights, biases, backend="reference")
    monkeypatch.undo()
    torch.testing.assert_close(full, liif_render(feat, (8, 7), weights, biases, backend="reference"))


def test_render_of_a_window_makes_no_whole_grid():
    """The coordinates of this grid would take 8 TiB."""
    feat = torch.randn(1, 2, 3, 4)
    weights, biases = network(20, (8,), dtype=torch.float32)
    options = {"cell_decode": False, "backend": "reference"}
    size, (top, left, height, width) = (1 << 20, 1 << 20), (12345, 1 << 19, 3, 5)
    rows, columns = (centres(n)[start : start + count] for n, start, count in
                     ((size[0], top, height), (size[1], left, width)))  # fmt: skip
    coord = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), -1).view(1, -1, 2)
    window = liif_render(feat, size, weights, biases, region=(top, left, height, width), **options)
    assert torch.equal(window[0].flatten(1).T[None], liif_decode(feat, coord, None, weights, biases, **options))


def test_nan_reaches_the_queries_that_read_it():
    feat = torch.randn(1, 2, 6, 7)
    feat[0, 1, 2, 3] = float("nan")
    coord = torch.rand(1, 300, 2) * 2 - 1
    weights, biases = network(20, (8,), dtype=torch.float32)
    out = liif_decode(feat, coord, None, weights, biases, cell_decode=False, backend="reference")
    index = corner_plan(coord, (6, 7))[0]
    reads = ((index - torch.tensor([2, 3])).abs().amax(-1) <= 1).any(-1)
    assert torch.equal(out.isnan().all(-1), reads)
    assert torch.equal(out.isnan().any(-1), reads)
