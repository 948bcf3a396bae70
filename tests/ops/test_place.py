"""A render from a part of the feature map equals that from the whole map."""

import pytest
import torch

from liif_fast import functional
from liif_fast.functional import latents_read, liif_render

from .support import BACKENDS, make_network

SHAPE = (37, 29)


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name in ("reference", "torch", "cpu")])
@pytest.mark.parametrize("unfold", [True, False])
@pytest.mark.parametrize("size", [(111, 87), (100, 77), (37, 29), (259, 203)])
def test_part_equals_whole(backend: str, unfold: bool, size: tuple[int, int]) -> None:
    feat, network = make_network(SHAPE, unfold)
    network["backend"] = backend
    for region in ((0, 0, 9, size[1]), (20, 5, 7, 11), (size[0] - 5, size[1] - 9, 5, 9)):
        top, left, height, width = latents_read(size, region, SHAPE, feat_unfold=unfold)
        part = feat[:, :, top : top + height, left : left + width]
        whole = liif_render(feat, size, region=region, **network)
        result = liif_render(part, size, region=region, place=(top, left, *SHAPE), **network)
        if backend == "cpu":
            assert torch.equal(result, whole)
        else:  # a convolution or product of another size may sum in another order
            torch.testing.assert_close(result, whole, rtol=0, atol=1e-6 * float(whole.abs().max()))


def test_gradient_of_a_part() -> None:
    feat, network = make_network(SHAPE, True)
    size, region = (100, 77), (20, 0, 30, 77)
    top, left, height, width = latents_read(size, region, SHAPE)
    grads = []
    for place in (None, (top, left, *SHAPE)):
        leaf = feat.clone().requires_grad_()
        held = leaf if place is None else leaf[:, :, top : top + height, left : left + width]
        out = liif_render(held, size, region=region, place=place, **network)
        grads.append(torch.autograd.grad(out.square().sum(), leaf)[0])
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-4, atol=1e-4 * float(grads[0].abs().max()))


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ((0, 0, 36, 29), "of a map that holds feat"),
        ((-1, 0, 40, 29), "of a map that holds feat"),
        ((0, 0, 40), "of a map that holds feat"),
        ((20, 0, 90, 29), "feat must hold the latents"),
    ],
)
def test_bad_places(place: tuple, message: str) -> None:
    feat, network = make_network(SHAPE, True)
    with pytest.raises(ValueError, match=message):
        liif_render(feat, (111, 87), region=(0, 0, 5, 87), place=place, **network)
    with pytest.raises(TypeError, match="integers"):
        liif_render(feat, (111, 87), place=(0.5, 0, 40, 29), **network)


def test_a_backend_without_places_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    feat, network = make_network(SHAPE, True)
    backend = functional.backends._backends["cpu"]
    monkeypatch.delattr(backend, "PLACES")
    with pytest.raises(RuntimeError, match="whole feature maps only"):
        liif_render(feat, (111, 87), place=(0, 0, *SHAPE), backend="cpu", **network)
    liif_render(feat, (111, 87), place=(0, 0, *SHAPE), **network)
