"""Define the variants of the races and their setup.

    plain, eager               benchmarks/eager.py in chunks of 30,000 queries, as the original is run
    plain, torch.compile       the same, compiled for the fixed size (dynamic=False), default mode. mode="max-autotune"
                               and freezing (the network as a module of constants) were tried and are no faster here
    plain, ONNX Runtime        benchmarks/runtimes.py says how
    plain, OpenVINO
    factorised, eager          our backend `torch`
    factorised, torch.compile  the projection once, then a compiled function of 2,048 queries; in training the backend
                               `torch`, compiled
    factorised, ONNX Runtime   benchmarks/runtimes.py
    factorised, OpenVINO

On a GPU the runtimes are left out, and the compiled factorised form takes 65,536 queries at a time. Every problem also
runs under autocast to float16, while the reference stays in float32.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks import eager, runtimes
from benchmarks.common import (
    COMPILED,
    EAGER,
    FACTORISED,
    FACTORISED_COMPILED,
    OURS,
    REFERENCE,
    Call,
    Problem,
    with_gradients,
)
from liif_fast.functional import liif_decode

PROJECTED_CHUNK = {"cpu": 2048, "cuda": 65_536}
CHECKED_CHUNK = 1 << 14  # queries of the reference at a time, of all images together
# Rivals that keep their memory, so that a later call does not show it.
KEEPERS = [f"{form}, {runtime}" for form in ("plain", "factorised") for runtime in runtimes.LOADERS]


def inference(
    problem: Problem, queries: tuple[Tensor, Tensor], compiled: bool = True, graphs: bool = True
) -> dict[str, Call]:
    """Return the rivals that decode `queries` (coord and cell, [1, Q, 2]) without a gradient.

    "factorised, eager" is not included, because a benchmark calls it in the same way as ours. Compiled and exported
    variants take time to set up and need not be part of every benchmark.
    """
    feat, weights, biases = problem
    calls: dict[str, Call] = {EAGER: lambda: eager.decode_chunks(feat, queries, weights, biases)}
    if compiled:
        plain = torch.compile(eager.decode, dynamic=False)
        projected = torch.compile(eager.decode_projected, dynamic=False)
        chunk = PROJECTED_CHUNK[feat.device.type]
        calls[COMPILED] = lambda: eager.decode_chunks(feat, queries, weights, biases, decode=plain)
        calls[FACTORISED_COMPILED] = lambda: eager.decode_projected_chunks(
            feat, queries, weights, biases, chunk=chunk, decode=projected
        )
    if graphs and feat.device.type == "cpu":
        calls |= runtimes.calls(problem, queries)
    return calls


def training(problem: Problem, queries: tuple[Tensor, Tensor], grad: Tensor, compiled: bool = True) -> dict[str, Call]:
    """Return the variants by name, with ours and the reference: calls that return the output and all gradients."""
    decoders: dict[str, Callable[..., Tensor]] = {OURS: liif_decode, EAGER: eager.decode, FACTORISED: _factorised}
    if compiled:
        decoders[COMPILED] = torch.compile(eager.decode, dynamic=False)
        decoders[FACTORISED_COMPILED] = torch.compile(_factorised, dynamic=False)
    calls = {name: step(decode, problem, queries, grad) for name, decode in decoders.items()}
    return calls | {REFERENCE: lambda: expected_gradients(problem, queries, grad)}


def step(
    decode: Callable[..., Tensor], problem: Problem, queries: tuple[Tensor, Tensor], grad: Tensor, **options: Any
) -> Call:
    """Return a call of the forward and backward pass, which returns the output and then the gradients."""
    feat, weights, biases = problem
    call = partial(decode, feat, *queries, weights, biases, **options)
    return with_gradients(call, (feat, *weights, *biases), grad)


def expected_gradients(problem: Problem, queries: tuple[Tensor, Tensor], grad: Tensor) -> list[Tensor]:
    """Return the reference's output and gradients, chunk by chunk, because many queries would not fit into memory."""
    outputs: list[Tensor] = []
    total: list[Tensor] = []
    chunk = max(1, CHECKED_CHUNK // len(grad))
    for coord, cell, part in zip(*(each.split(chunk, 1) for each in (*queries, grad)), strict=True):
        out, *grads = step(liif_decode, problem, (coord, cell), part, backend="reference")()
        outputs.append(out)
        total = [a + b for a, b in zip(total, grads, strict=True)] if total else grads
    return [torch.cat(outputs, 1), *total]


def _factorised(
    feat: Tensor, coord: Tensor, cell: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]
) -> Tensor:
    return liif_decode(feat, coord, cell, weights, biases, backend="torch")
