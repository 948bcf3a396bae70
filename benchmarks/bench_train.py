"""Measure the decoder's forward and backward pass with gradients of the latents and of every parameter."""

import torch

from benchmarks import rivals
from benchmarks.bench import SECONDS, Bench, rows
from benchmarks.common import COMPILED_FORMS, EAGER, FACTORISED, REFERENCE, Raced, make_problem, make_queries
from benchmarks.limits import training_work

# The plain formula keeps 27 KB a query for the backward pass, a compiled factorised one 17 KB.
TOO_LARGE = 1 << 18  # queries beyond which variants that keep everything are left out on a CPU


@rows(
    EAGER,
    FACTORISED,
    *COMPILED_FORMS,
    cases=[(2, 1024, 21), (2, 2304, 21), (2, 16_384, 9), (1, 131_072, 5), (1, 1_048_576, 3)],
    ids="{}x{}",
    half=True,
)
def test_train(bench: Bench, batch: int, queries: int, rounds: int) -> Raced:
    bench.long(queries > 100_000 and bench.device.type == "cpu")
    side = bench.pick(48, 48, 7)
    count = bench.pick(queries, queries if queries == 2304 else None, 60)
    problem = make_problem((side, side), batch=batch, hidden=bench.hidden, device=bench.device)
    problem.feat.requires_grad_()
    places = make_queries(batch, count, side, bench.device)
    grad = torch.randn(batch, count, 3, device=bench.device)
    left_out = {}
    if bench.device.type == "cpu" and count * batch > TOO_LARGE:
        left_out = {EAGER: "left out: it keeps some 20 KB a query", REFERENCE: "left out: it takes minutes"}
    return bench.race(
        f"train-{queries}",
        f"forward + backward, B = {batch}, Q = {count:,}, {side}x{side}",
        rivals.training(problem, places, grad, compiled=queries == 2304),
        rounds=rounds,
        seconds=20.0 if queries == 16_384 else SECONDS[0],
        work=training_work(batch * count, batch * side * side, problem.weights),
        left_out=left_out,
    )
