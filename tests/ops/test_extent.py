"""A grid over a fractional part of the map equals `liif_decode` on its coordinates; the whole keeps its bits."""

import numpy as np
import pytest
import torch

from liif_fast import LIIFDecoder
from liif_fast.coord import make_cell, make_coord
from liif_fast.functional import latents_read, liif_decode, liif_render

from .support import BACKENDS, DEVICE, make_network

SHAPE = (37, 29)
EXTENTS = [(0, 0, *SHAPE), (3.3, 2.7, 10.25, 9.5), (30.5, 20.25, 6.5, 8.75), (36.9, 28.0, 0.1, 1.0)]
HERE = [name for name in BACKENDS if name in ("reference", "torch", "cpu", "triton")]


@pytest.mark.parametrize("extent", EXTENTS)
@pytest.mark.parametrize("size", [(23, 31), (1, 1), (3, 90)])
def test_positions(size: tuple[int, int], extent: tuple[float, ...]) -> None:
    """Pixel j of a window (x, w) rendered to W lies at -1 + 2 (x + (j + 0.5) w / W) / n, its cell is 2 (w / W) / n."""
    coord = make_coord(size, extent=extent, of=SHAPE).view(*size, 2)
    cell = make_cell(size, extent=extent, of=SHAPE)
    for axis, (count, n) in enumerate(zip(size, SHAPE, strict=True)):
        first, length = extent[axis], extent[axis + 2]
        exact = -1 + 2 * (first + (np.arange(count) + 0.5) * length / count) / n
        got = coord[:, 0, 0] if axis == 0 else coord[0, :, 1]
        # The roundings of the step (times the pixel), of the origin and of the two operations.
        np.testing.assert_allclose(got.numpy(), exact, rtol=0, atol=4 * 2**-24)
        assert cell[0, axis].item() == np.float32(2 * (length / count) / n)


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("extent", EXTENTS)
def test_equals_decode(backend: str, extent: tuple[float, ...]) -> None:
    feat, network = make_network(SHAPE)
    size = (23, 31)
    coord = make_coord(size, extent=extent, of=SHAPE, device=DEVICE).expand(2, -1, 2)
    cell = make_cell(size, extent=extent, of=SHAPE, device=DEVICE).expand(2, -1, 2)
    expected = liif_decode(feat, coord, cell, backend=backend, **network).transpose(1, 2).view(2, 3, *size)
    result = liif_render(feat, size, extent=extent, backend=backend, **network)
    window = liif_render(feat, size, region=(3, 4, 5, 6), extent=extent, backend=backend, **network)
    if backend == "cpu":
        assert torch.equal(result, expected)
        assert torch.equal(window, result[:, :, 3:8, 4:10])
    else:  # another number of rows in a product may sum in another order
        tolerance = {"rtol": 0, "atol": 1e-6 * float(expected.abs().max())}
        torch.testing.assert_close(result, expected, **tolerance)
        torch.testing.assert_close(window, result[:, :, 3:8, 4:10], **tolerance)


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("size", [(111, 87), (100, 77), (37, 29), (259, 203)])
def test_the_whole_map_has_the_bits_of_the_grid(backend: str, size: tuple[int, int]) -> None:
    feat, network = make_network(SHAPE)
    region = (size[0] - 5, 3, 5, 9)
    whole = liif_render(feat, size, region=region, backend=backend, **network)
    assert torch.equal(liif_render(feat, size, region=region, extent=(0, 0, *SHAPE), backend=backend, **network), whole)


@pytest.mark.parametrize("backend", [name for name in HERE if name != "triton"])
@pytest.mark.parametrize("unfold", [True, False])
@pytest.mark.parametrize("extent", EXTENTS)
def test_of_a_part_of_the_map(backend: str, unfold: bool, extent: tuple[float, ...]) -> None:
    feat, network = make_network(SHAPE, unfold)
    size, region = (61, 47), (10, 8, 31, 20)
    top, left, height, width = latents_read(size, region, SHAPE, feat_unfold=unfold, extent=extent)
    part = feat[:, :, top : top + height, left : left + width]
    options = network | {"region": region, "extent": extent, "backend": backend}
    whole = liif_render(feat, size, **options)
    result = liif_render(part, size, place=(top, left, *SHAPE), **options)
    torch.testing.assert_close(result, whole, rtol=0, atol=1e-6 * float(whole.abs().max()))
    assert backend != "cpu" or torch.equal(result, whole)


def test_gradient() -> None:
    """`auto` takes a backend that has this gradient, and it equals that of `liif_decode`."""
    feat, network = make_network(SHAPE)
    size, extent = (9, 7), (3.3, 2.7, 10.25, 9.5)
    leaf = feat.clone().requires_grad_()
    (one,) = torch.autograd.grad(liif_render(leaf, size, extent=extent, **network).square().sum(), leaf)
    coord = make_coord(size, extent=extent, of=SHAPE, device=DEVICE).expand(2, -1, 2)
    cell = make_cell(size, extent=extent, of=SHAPE, device=DEVICE).expand(2, -1, 2)
    (other,) = torch.autograd.grad(liif_decode(leaf, coord, cell, **network).square().sum(), leaf)
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * float(other.abs().max()))


def test_of_a_decoder_whose_network_is_not_fused() -> None:
    torch.manual_seed(0)
    decoder = LIIFDecoder(in_channels=5, hidden_list=(8,))
    feat, extent = torch.randn(1, 5, *SHAPE), (3.3, 2.7, 10.25, 9.5)
    with torch.no_grad():
        fused = decoder.render(feat, (9, 7), extent=extent)
        decoder.layers.register_forward_hook(lambda *_: None)
        torch.testing.assert_close(decoder.render(feat, (9, 7), extent=extent), fused, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "extent", [(0, 0, 38, 29), (-0.1, 0, 5, 5), (0, 0, 0, 5), (30, 0, 7.1, 5), (0, 0, float("nan"), 5)]
)
def test_bad_extents(extent: tuple) -> None:
    feat, network = make_network(SHAPE)
    with pytest.raises(ValueError, match="inside the map of 37x29"):
        liif_render(feat, (50, 50), extent=extent, **network)
    for wrong in ((1, 2, 3), ("a", 0, 1, 1), 5):
        with pytest.raises(TypeError, match=r"extent must be \(top, left"):
            liif_render(feat, (50, 50), extent=wrong, **network)
    with pytest.raises(TypeError, match="argument of"):
        make_coord((5, 5), extent=(0, 0, 1, 1))
    with pytest.raises(RuntimeError, match="over the whole map only"):
        liif_render(feat, (50, 50), extent=(1, 1, 5, 5), backend="cuda", **network)
