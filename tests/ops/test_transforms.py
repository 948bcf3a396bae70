"""Under the transforms of torch.func, `auto` returns what the reference does."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vmap

from liif_fast import functional
from liif_fast.layers import MLP

from .support import make_layers

GENERATOR = torch.Generator().manual_seed(0)
ROWS = torch.randn(2, 22, generator=GENERATOR)
FEAT = torch.randn(1, 2, 4, 4, generator=GENERATOR)
COORD, CELL = torch.rand(2, 1, 4, 2, generator=GENERATOR) * 2 - 1
WEIGHTS, BIASES = make_layers((22, 6, 3), GENERATOR)
FIRST = WEIGHTS[0]


def mlp(backend: str) -> Callable[[Tensor], Tensor]:
    return lambda x: functional.fused_mlp(x, WEIGHTS, BIASES, backend=backend).sin().sum()


def decode(backend: str) -> Callable[[Tensor, Tensor], Tensor]:
    def run(coord: Tensor, first: Tensor) -> Tensor:
        return functional.liif_decode(FEAT, coord, CELL, [first, WEIGHTS[1]], BIASES, backend=backend)

    return run


def gather(backend: str) -> Callable[[Tensor], Any]:
    return lambda feat: functional.gather_corners(feat, COORD, CELL, backend=backend)


def render(backend: str) -> Callable[[Tensor], Tensor]:
    return lambda feat: functional.liif_render(feat, (5, 6), WEIGHTS, BIASES, backend=backend)


@pytest.mark.parametrize(
    "transformed",
    [
        lambda backend: jacfwd(mlp(backend))(ROWS),
        lambda backend: hessian(mlp(backend))(ROWS),
        lambda backend: vmap(grad(mlp(backend)))(ROWS),
        lambda backend: jacfwd(decode(backend))(COORD, FIRST),
        lambda backend: jacrev(decode(backend), 1)(COORD, FIRST),  # whose vmap begins after the call
        lambda backend: vmap(decode(backend), (None, 0))(COORD, torch.stack((FIRST, 2 * FIRST))),
        lambda backend: vmap(lambda factor: factor * decode(backend)(COORD, FIRST))(torch.arange(2.0)),
        lambda backend: vmap(grad(lambda first, coord: decode(backend)(coord, first).sum()), (None, 0))(
            FIRST, torch.stack((COORD, -COORD))
        ),
        lambda backend: vmap(gather(backend))(torch.stack((FEAT, 2 * FEAT))),
        lambda backend: vmap(render(backend))(torch.stack((FEAT, 2 * FEAT))),
    ],
)
def test_auto_runs_under_transforms(transformed: Callable[[str], Any]) -> None:
    torch.testing.assert_close(transformed("auto"), transformed("reference"))


def test_a_layer_has_gradients_per_sample() -> None:
    network = MLP(22, 3, [6])

    def loss(module: torch.nn.Module) -> Callable[[dict[str, Tensor], Tensor], Tensor]:
        return lambda params, x: functional_call(module, params, (x,)).square().sum()

    found, expected = (
        list(vmap(grad(loss(each)), (None, 0))(dict(each.named_parameters()), ROWS).values())
        for each in (network, network.layers)
    )
    torch.testing.assert_close(found, expected)


def test_forward_mode_is_left_to_another_backend() -> None:
    found, expected = (jvp(render(each), (FEAT,), (torch.ones_like(FEAT),))[1] for each in ("auto", "reference"))
    torch.testing.assert_close(found, expected)
    with pytest.raises(RuntimeError, match="forward-mode"):
        jvp(render("cpu"), (FEAT,), (torch.ones_like(FEAT),))


@pytest.mark.parametrize("transform", [grad, vmap])
def test_kernels_are_refused(transform: Callable[..., Any]) -> None:
    torch.testing.assert_close(transform(mlp("auto"))(ROWS), transform(mlp("reference"))(ROWS))
    with pytest.raises(RuntimeError, match=r"torch\.func"):
        transform(mlp("cpu"))(ROWS)
