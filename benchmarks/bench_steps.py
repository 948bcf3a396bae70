"""Measure the gain from each optimisation, added one at a time."""

from contextlib import ExitStack, closing
from functools import cache, partial
from typing import Any

import pytest
import torch

from benchmarks import eager, rivals
from benchmarks.bench import Bench, rows
from benchmarks.common import EAGER, FACTORISED, OURS, REFERENCE, Raced, make_problem, make_queries
from benchmarks.worker import Worker
from liif_fast.functional import liif_decode, liif_render

WORKERS = {
    "portable": "fused, C++, portable vectors",
    "avx2": "fused, C++, AVX2",
    "avx512": "fused, C++, AVX-512",
}
KEPT, RECOMPUTED = "fused, C++, activations kept", "fused, C++, activations recomputed"
# The names of the steps, in order; docs/performance.md says what each is.
DECODING = (
    EAGER,
    "factorised",
    "corners summed first",
    "chunks in the cache",
    *WORKERS.values(),
    OURS,
)
TRAINING = (EAGER, FACTORISED, RECOMPUTED, KEPT)


@rows(*DECODING[:-1])
@torch.no_grad()
def test_decode_steps(bench: Bench) -> Raced:
    if bench.device.type != "cpu":
        pytest.skip("the steps of the CPU kernels")
    side, scale, hidden = bench.pick(48, None, 7), 4, bench.hidden
    feat, weights, biases = make_problem((side, side), hidden=hidden)
    size = (side * scale, side * scale)
    queries = eager.grid(size, feat)

    def projected(chunk: int, corner_sum: bool) -> torch.Tensor:
        decode = partial(eager.decode_projected, corner_sum=corner_sum)
        return eager.decode_projected_chunks(feat, queries, weights, biases, chunk=chunk, decode=decode)

    @cache
    def worker(isa: str) -> Worker:
        return workers.enter_context(closing(Worker(isa, side, scale, hidden)))

    steps = [
        lambda: eager.decode_chunks(feat, queries, weights, biases),
        lambda: projected(eager.CHUNK, False),
        lambda: projected(eager.CHUNK, True),
        lambda: projected(rivals.PROJECTED_CHUNK["cpu"], True),
        *(lambda isa=isa: worker(isa)() for isa in WORKERS),
    ]

    def render(**options: Any) -> torch.Tensor:
        return liif_render(feat, size, weights, biases, **options).flatten(2).transpose(1, 2)

    calls = {OURS: render, REFERENCE: lambda: render(backend="reference"), **dict(zip(DECODING, steps, strict=False))}
    title, keepers = f"steps: render x{scale} from {side}x{side}", list(WORKERS.values())
    with ExitStack() as workers:
        return bench.race("steps-decode", title, calls, rounds=7, seconds=15.0, keepers=keepers)


@rows(*TRAINING)
def test_training_steps(bench: Bench) -> Raced:
    if bench.device.type != "cpu":
        pytest.skip("the steps of the CPU kernels")
    side, count, hidden = bench.pick(48, None, 7), bench.pick(4096, None, 60), bench.hidden
    problem = make_problem((side, side), batch=2, hidden=hidden)
    problem.feat.requires_grad_()
    queries, grad = make_queries(2, count, side), torch.randn(2, count, 3)
    return bench.race(
        "steps-train",
        f"steps: forward + backward, B = 2, Q = {count:,}, {side}x{side}",
        {
            **rivals.training(problem, queries, grad, compiled=False),
            KEPT: rivals.step(liif_decode, problem, queries, grad, recompute=False),
            RECOMPUTED: rivals.step(liif_decode, problem, queries, grad, recompute=True),
        },
        rounds=7,
        seconds=10.0,
    )
