"""Measure bfloat16 on a CPU, under autocast, against ours in float32 and rivals in the same precision.

Under autocast plain PyTorch uses oneDNN's bfloat16 products. OpenVINO runs with the inference precision bf16. ONNX
Runtime is left out, because it has no bfloat16 products on CPUs. The reference computes in float32.
"""

from functools import partial

import pytest
import torch

from benchmarks import eager, rivals, runtimes
from benchmarks.bench import Bench, autocast, rows
from benchmarks.common import EAGER, FACTORISED, OURS, REFERENCE, Call, Raced, backends, make_problem, make_queries
from liif_fast.backends import cpu
from liif_fast.functional import liif_decode, liif_render

FLOAT32, EAGER_FLOAT32 = "liif_fast, float32", "plain, eager, float32"
# bfloat16 rounds operands to 8 bits, by up to 4e-3. In the first layer's gradient the errors of many layers add up.
LOW_TOLERANCES = (2e-2, 2e-1)
# The columns of the table in docs/performance.md.
COLUMNS = (OURS, FLOAT32, EAGER, FACTORISED, EAGER_FLOAT32, "plain, OpenVINO", "factorised, OpenVINO")


def needs_bfloat16(bench: Bench) -> None:
    """Skip a race in bfloat16 on a GPU, whose races have their own, and on a CPU without its instructions."""
    if bench.device.type != "cpu" or not cpu.BFLOAT16:
        pytest.skip("for a CPU with bfloat16 instructions")


def in_bfloat16(calls: dict[str, Call]) -> dict[str, Call]:
    """Return the calls under autocast, except the reference."""
    return {each: call if each == REFERENCE else autocast(call, "cpu", torch.bfloat16) for each, call in calls.items()}


@rows(FLOAT32, EAGER, FACTORISED, "plain, OpenVINO", "factorised, OpenVINO")
def test_render_bfloat16(bench: Bench) -> Raced:
    needs_bfloat16(bench)
    side, scale = bench.pick(48, 48, 7), 4
    problem = make_problem((side, side), hidden=bench.hidden)
    feat, weights, biases = problem
    size = (side * scale,) * 2
    queries = eager.grid(size, feat)

    @torch.no_grad()
    def run(backend: str) -> torch.Tensor:
        return liif_render(feat, size, weights, biases, backend=backend).flatten(2).transpose(1, 2)

    calls = in_bfloat16(backends(run) | {EAGER: lambda: eager.decode_chunks(feat, queries, weights, biases)})
    calls[FLOAT32] = partial(run, "auto")
    if bench.pick(True, True, False):
        calls |= runtimes.calls(problem, queries, {"OpenVINO": partial(runtimes.load_openvino, precision="bf16")})
    return bench.race(
        f"render-x{scale}-{side}-bf16",
        f"render x{scale} from {side}x{side}, bfloat16",
        calls,
        rounds=9,
        tolerances=LOW_TOLERANCES,
        keepers=rivals.KEEPERS,
    )


@rows(FLOAT32, EAGER, FACTORISED)
def test_train_bfloat16(bench: Bench) -> Raced:
    needs_bfloat16(bench)
    side, batch, count = bench.pick(48, None, 7), 2, bench.pick(2304, None, 60)
    problem = make_problem((side, side), batch=batch, hidden=bench.hidden)
    problem.feat.requires_grad_()
    places, grad = make_queries(batch, count, side), torch.randn(batch, count, 3)
    return bench.race(
        f"train-{count}-bf16",
        f"forward + backward, B = {batch}, Q = {count:,}, {side}x{side}, bfloat16",
        in_bfloat16(rivals.training(problem, places, grad, compiled=False))
        | {FLOAT32: rivals.step(liif_decode, problem, places, grad)},
        rounds=9,
        tolerances=LOW_TOLERANCES,
    )
