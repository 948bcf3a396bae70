"""Tiled encoding equals encoding the whole image."""

import pytest
import torch
from torch import Tensor

from liif_fast.models import make, rdn
from liif_fast.models.tiles import encode, encode_window

ENCODERS = [
    ("edsr-baseline", {"n_resblocks": 2, "n_feats": 4, "no_upsampling": True}),
    ("edsr-baseline", {"n_resblocks": 1, "n_feats": 4, "scale": 2}),
    ("rdn", {"G0": 4, "RDNkSize": 3, "no_upsampling": True}),
    ("rcan", {"n_resgroups": 1, "n_resblocks": 1, "n_feats": 16, "no_upsampling": True}),
]


@pytest.mark.parametrize(("name", "args"), ENCODERS)
@pytest.mark.parametrize("shape", [(37, 61), (16, 150), (1, 40), (5, 5)])
def test_tiles_equal_the_whole(name: str, args: dict, shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(rdn.CONFIGS, "B", (2, 2, 4))
    torch.manual_seed(0)
    encoder = make({"name": name, "args": args}).double()
    inp = torch.randn(2, 3, *shape, dtype=torch.float64)
    calls = []
    encoder.register_forward_pre_hook(lambda module, inputs: calls.append(inputs[0].shape))
    with torch.no_grad():
        whole = encoder(inp)
        calls.clear()
        tiled = encode(encoder, inp, tile=16)
    # in float64 only the order of sums remains; a radius too small by one causes 1e-6 and more
    torch.testing.assert_close(tiled, whole, rtol=1e-12, atol=1e-12)
    assert (len(calls) > 1) == (encoder.receptive_radius is not None and max(shape) > 16)


@pytest.mark.parametrize(("name", "args"), ENCODERS)
def test_a_window_equals_that_of_the_whole(name: str, args: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(rdn.CONFIGS, "B", (2, 2, 4))
    torch.manual_seed(0)
    encoder = make({"name": name, "args": args}).double()
    inp = torch.randn(1, 3, 40, 50, dtype=torch.float64)
    with torch.no_grad():
        whole = encoder(inp)
        s = whole.shape[2] // 40
        for y0, y1, x0, x1 in ((0, 7, 3, 50), (11, 38, 20, 21), (39, 40, 0, 50)):
            part = encode_window(
                encoder, lambda rows, cols: inp[:, :, slice(*rows), slice(*cols)], (40, 50), (y0, y1), (x0, x1), tile=16
            )
            torch.testing.assert_close(part, whole[:, :, s * y0 : s * y1, s * x0 : s * x1], rtol=1e-12, atol=1e-12)


def test_the_overlap_is_needed_and_bounded() -> None:
    """The encoder sees tiles of at most tile + 2 * radius, and a smaller overlap would not suffice."""
    torch.manual_seed(0)
    encoder = make({"name": "edsr-baseline", "args": {"n_resblocks": 2, "n_feats": 4, "no_upsampling": True}}).double()
    radius = encoder.receptive_radius
    sides: list[int] = []
    encoder.register_forward_pre_hook(lambda module, inputs: sides.append(max(inputs[0].shape[2:])))
    inp = torch.randn(1, 3, 40, 40, dtype=torch.float64)

    def worst() -> float:
        with torch.no_grad():
            difference: Tensor = encode(encoder, inp, tile=20) - encoder(inp)
        return float(difference.abs().max())

    assert worst() < 1e-12
    assert max(sides[:4]) == 20 + radius
    encoder.receptive_radius = radius - 1
    assert worst() > 1e-9


@pytest.mark.parametrize("shape", [(37, 61), (16, 150), (1, 40), (5, 5), (40, 17), (3, 1)])
@pytest.mark.parametrize("tile", [4, 16])
def test_tiles_of_a_circle_read_across_the_seam(shape: tuple[int, int], tile: int) -> None:
    torch.manual_seed(0)
    encoder = make({"name": "edsr-lidar", "args": {"n_resblocks": 2, "n_feats": 4}}).double()
    inp = torch.randn(2, 1, *shape, dtype=torch.float64)
    widths: list[int] = []
    encoder.register_forward_pre_hook(lambda module, inputs: widths.append(inputs[0].shape[3]))
    with torch.no_grad():
        whole = encoder(inp)
        torch.testing.assert_close(encode(encoder, inp, tile=tile), whole, rtol=1e-12, atol=1e-12)
        assert max(widths[1:]) <= max(min(tile + 2 * encoder.receptive_radius, shape[1]), 1)
        height, width = shape
        window = ((height // 3, height), (width // 2, width))
        part = encode_window(
            encoder, lambda rows, cols: inp[:, :, slice(*rows), slice(*cols)], shape, *window, tile=tile
        )
        torch.testing.assert_close(part, whole[:, :, slice(*window[0]), slice(*window[1])], rtol=1e-12, atol=1e-12)
