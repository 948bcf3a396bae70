"""Decode without gradients: images of several sizes and scales, strips of large ones, and scattered queries."""

import torch

from benchmarks import eager, rivals, runtimes
from benchmarks.bench import SECONDS, Bench, rows
from benchmarks.common import COMPILED_FORMS, EAGER, FACTORISED, Raced, backends, make_problem, make_queries
from benchmarks.limits import decode_work
from liif_fast.functional import liif_decode, liif_render

STRIP = 32_768  # output pixels of a strip


# Every rival takes part in the first case. The slower runtime is left out of cases with many queries.
@rows(
    *COMPILED_FORMS,
    *rivals.KEEPERS,
    EAGER,
    FACTORISED,
    cases=[(4, 48), (2, 48), (3.7, 48), (8, 48), (2, 128)],
    ids="x{} from {}",
    half=True,
)
def test_render(bench: Bench, scale: float, latents: int) -> Raced:
    first = (scale, latents) == (4, 48)
    side = bench.pick(latents, latents if first else None, 7)
    problem = make_problem((side, side), hidden=bench.hidden, device=bench.device)
    size = (round(side * scale),) * 2
    queries = eager.grid(size, problem.feat)

    @torch.no_grad()
    def run(backend: str) -> torch.Tensor:
        image = liif_render(problem.feat, size, problem.weights, problem.biases, backend=backend)
        return image.flatten(2).transpose(1, 2)

    graphs = bench.pick(True, True, False)  # tests/benchmarks/test_common.py checks them
    calls = backends(run) | rivals.inference(problem, queries, compiled=first, graphs=graphs)
    if size[0] * size[1] > 2 * STRIP:
        calls = {each: call for each, call in calls.items() if runtimes.SLOWER not in each}
    return bench.race(
        f"render-x{scale:g}-{latents}",
        f"render x{scale:g} from {side}x{side}",
        calls,
        rounds=15,
        seconds=35.0 if first else SECONDS[0],
        work=decode_work(size[0] * size[1], side * side, problem.weights),
        keepers=rivals.KEEPERS,
    )


@rows(EAGER, FACTORISED, cases=[(4, 256), (4, 512)], ids="x{} from {}", half=True)
def test_strip(bench: Bench, scale: int, latents: int) -> Raced:
    """Render some rows of a large image as `upscale` does, from the map of a whole photograph."""
    side = bench.pick(latents, None, 20)
    problem = make_problem((side, side), hidden=bench.hidden, device=bench.device)
    size = side * scale
    height = bench.pick(STRIP, STRIP, size) // size
    region = ((size - height) // 2, 0, height, size)
    pixels = slice(region[0] * size, (region[0] + height) * size)
    queries = tuple(each[:, pixels].contiguous() for each in eager.grid((size, size), problem.feat))

    @torch.no_grad()
    def run(backend: str) -> torch.Tensor:
        image = liif_render(problem.feat, (size, size), problem.weights, problem.biases, region=region, backend=backend)
        return image.flatten(2).transpose(1, 2)

    return bench.race(
        f"strip-x{scale}-{latents}",
        f"{height} rows of x{scale} from {side}x{side}",
        backends(run) | {EAGER: lambda: eager.decode_chunks(problem.feat, queries, problem.weights, problem.biases)},
        rounds=9,
        seconds=5.0,
        work=decode_work(height * size, side * (height // scale + 2), problem.weights),
    )


@rows(*rivals.KEEPERS, EAGER, FACTORISED, half=True)
def test_queries(bench: Bench) -> Raced:
    """Decode scattered queries, whose neighbours in the list share no latents."""
    side, count = bench.pick(128, None, 7), bench.pick(16_384, None, 100)
    problem = make_problem((side, side), hidden=bench.hidden, device=bench.device)
    places = make_queries(1, count, side, bench.device)

    @torch.no_grad()
    def decode(backend: str) -> torch.Tensor:
        return liif_decode(problem.feat, *places, problem.weights, problem.biases, backend=backend)

    return bench.race(
        f"queries-{count}",
        f"{count:,} scattered queries of {side}x{side}",
        backends(decode) | rivals.inference(problem, places, compiled=False, graphs=bench.pick(True, True, False)),
        rounds=9,
        work=decode_work(count, side * side, problem.weights),
        keepers=rivals.KEEPERS,
    )
