"""Decoding without a gradient: images of several sizes and scales, strips of large ones, and scattered queries."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from benchmarks import eager, rivals, runtimes
from benchmarks.common import EAGER, FACTORISED, REFERENCE, make_problem, make_queries
from benchmarks.limits import decode_work
from liif_fast.functional import liif_decode, liif_render

HIDDEN, TINY = (256,) * 4, (16, 16)
STRIP = 32_768  # output pixels of a strip


# In the first every rival takes part. Where there are many queries the slower runtime is left out.
@pytest.mark.parametrize(("scale", "latents"), [(4, 48), (2, 48), (3.7, 48), (8, 48), (2, 128)])
def test_render(
    latents: int,
    scale: float,
    half: bool,
    device: torch.device,
    race: Callable[..., Any],
    pick: Callable[..., Any],
) -> None:
    first = (scale, latents) == (4, 48)
    side = pick(latents, latents if first else None, 7)
    problem = make_problem((side, side), hidden=pick(HIDDEN, HIDDEN, TINY), device=device)
    size = (round(side * scale),) * 2
    queries = eager.grid(size, problem.feat)

    @torch.no_grad()
    def render(backend: str) -> torch.Tensor:
        image = liif_render(problem.feat, size, problem.weights, problem.biases, backend=backend)
        return image.flatten(2).transpose(1, 2)

    graphs = pick(True, True, first)
    others = {**rivals.inference(problem, queries, compiled=first, graphs=graphs), FACTORISED: lambda: render("torch")}
    if pick(first, False, first):  # the plain formula twice: benchmarks/eager.py is no weaker than our own reference
        others[REFERENCE] = lambda: render("reference")
    if size[0] * size[1] > 2 * STRIP:
        others = {each: call for each, call in others.items() if runtimes.SLOWER not in each}
    race(
        f"render-x{scale:g}-{latents}",
        f"render x{scale:g} from {side}x{side}",
        lambda: render("auto"),
        others,
        render("reference"),
        rounds=15,
        seconds=35.0 if first else None,
        work=decode_work(size[0] * size[1], side * side, problem.weights),
        half=half,
        keepers=rivals.KEEPERS,
    )


@pytest.mark.parametrize("latents", [256, 512])
def test_strip(
    latents: int, half: bool, device: torch.device, race: Callable[..., Any], pick: Callable[..., Any]
) -> None:
    """Some rows of a large image, as `upscale` renders it: the map of a whole photograph, one piece of the output."""
    side, scale = pick(latents, None, 20), 4
    problem = make_problem((side, side), hidden=pick(HIDDEN, HIDDEN, TINY), device=device)
    size = side * scale
    rows = pick(STRIP, STRIP, size) // size
    region = ((size - rows) // 2, 0, rows, size)
    strip = slice(region[0] * size, (region[0] + rows) * size)
    queries = tuple(each[:, strip].contiguous() for each in eager.grid((size, size), problem.feat))

    @torch.no_grad()
    def render(backend: str) -> torch.Tensor:
        image = liif_render(problem.feat, (size, size), problem.weights, problem.biases, region=region, backend=backend)
        return image.flatten(2).transpose(1, 2)

    race(
        f"strip-x{scale}-{latents}",
        f"{rows} rows of x{scale} from {side}x{side}",
        lambda: render("auto"),
        {
            EAGER: lambda: eager.decode_chunks(problem.feat, queries, problem.weights, problem.biases),
            FACTORISED: lambda: render("torch"),
        },
        render("reference"),
        rounds=9,
        seconds=5.0,
        work=decode_work(rows * size, side * (rows // scale + 2), problem.weights),
        half=half,
    )


@pytest.mark.parametrize("count", [16_384])
def test_queries(
    count: int, half: bool, device: torch.device, race: Callable[..., Any], pick: Callable[..., Any]
) -> None:
    """Scattered queries: neighbours in the list share no latents."""
    side = pick(128, None, 7)
    problem = make_problem((side, side), hidden=pick(HIDDEN, HIDDEN, TINY), device=device)
    queries = make_queries(1, pick(count, None, 100), side, device)

    @torch.no_grad()
    def decode(backend: str) -> torch.Tensor:
        return liif_decode(problem.feat, *queries, problem.weights, problem.biases, backend=backend)

    race(
        f"queries-{count}",
        f"{queries[0].shape[1]:,} scattered queries of {side}x{side}",
        lambda: decode("auto"),
        {
            **rivals.inference(problem, queries, compiled=False, graphs=pick(True, True, False)),
            FACTORISED: lambda: decode("torch"),
        },
        decode("reference"),
        rounds=9,
        work=decode_work(queries[0].shape[1], side * side, problem.weights),
        half=half,
        keepers=rivals.KEEPERS,
    )
