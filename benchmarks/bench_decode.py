"""Rendering an image without a gradient."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from benchmarks import eager
from benchmarks.common import COMPILED, EAGER, FACTORISED, REFERENCE, make_problem, useful_flop
from liif_fast.functional import liif_render


@pytest.mark.parametrize(("latents", "scale"), [(48, 4)], ids=lambda value: f"{value}")
def test_render(latents: int, scale: float, race: Callable[..., Any], pick: Callable[..., Any]) -> None:
    side = pick(latents, latents, 7)
    feat, weights, biases = make_problem((side, side), hidden=pick((256,) * 4, (256,) * 4, (16, 16)))
    size = (round(side * scale),) * 2
    compiled = torch.compile(eager.decode)

    def render(backend: str) -> torch.Tensor:
        with torch.no_grad():
            image = liif_render(feat, size, weights, biases, backend=backend)
        return image.flatten(2).transpose(1, 2)

    race(
        f"render-x{scale}-{latents}",
        f"render x{scale} from {side}x{side}",
        lambda: render("auto"),
        {
            EAGER: lambda: eager.render(feat, size, weights, biases),
            COMPILED: lambda: eager.render(feat, size, weights, biases, decode=compiled),
            FACTORISED: lambda: render("torch"),
            REFERENCE: lambda: render("reference"),
        },
        render("reference"),
        rounds=15,
        flop=useful_flop(size[0] * size[1], weights),
    )
