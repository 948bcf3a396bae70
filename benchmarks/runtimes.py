"""Run the plain formula and the factorised form as exported graphs in ONNX Runtime and OpenVINO, as rivals.

torch.onnx.export (through torch.export) writes a graph for one map size and any number of queries, in float32, with the
weights inside. Both runtimes get as many threads as PyTorch and read PyTorch's memory without a copy.

* ONNX Runtime applies every graph optimisation and runs one operator at a time over all threads.
* OpenVINO gets the latency hint and float32 as inference precision, because on some CPUs its default is bfloat16.

The plain graph gets the original's chunks of 30,000 queries. The factorised graph gets chunks of 2,048, because the
hidden activations of more would not stay in the cache. Its convolution is a separate graph that runs once per image.

The exporter's own optimiser is off. With it the outputs differ at x3 and are NaN at x5, as if it dropped the 1e-9 that
is added to each area. The runtimes optimise the graph anyway.
"""

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import eager
from benchmarks.common import Problem

FACTORISED_CHUNK = 2048
SLOWER = "ONNX Runtime"  # the slower runtime in every record
Run = Callable[..., Tensor]


class _Plain(nn.Module):
    def __init__(self, size: tuple[int, int], weights: Sequence[Tensor], biases: Sequence[Tensor]) -> None:
        super().__init__()
        self.register_buffer("centres", eager.centres_of(size, torch.device("cpu")))
        self.weights, self.biases = nn.ParameterList(weights), nn.ParameterList(biases)

    def forward(self, feat: Tensor, coord: Tensor, cell: Tensor) -> Tensor:
        return eager.decode(feat, coord, cell, list(self.weights), list(self.biases), self.centres)


class _Project(_Plain):
    def forward(self, feat: Tensor) -> Tensor:  # type: ignore[override]  # of the same weights another graph
        return eager.project(feat, self.weights[0], self.biases[0]).flatten(2).squeeze(0).t().contiguous()


class _Projected(_Plain):
    def forward(self, rows: Tensor, coord: Tensor, cell: Tensor) -> Tensor:
        return eager.decode_projected(rows, coord, cell, self.centres, list(self.weights), list(self.biases))


def export(module: nn.Module, inputs: dict[str, Tensor], path: Path) -> None:
    """Write an ONNX graph; dimension 1 of `coord` and `cell` is free."""
    free = torch.export.Dim("queries", min=2)
    shapes = tuple({1: free} if name in ("coord", "cell") else {} for name in inputs)
    noise = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = noise.level
    noise.setLevel(logging.ERROR)  # it would mention torchvision, which is not needed
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                module.eval(),
                tuple(inputs.values()),
                path,
                input_names=list(inputs),
                output_names=["out"],
                dynamic_shapes=shapes,
                dynamo=True,
                verbose=False,
                optimize=False,
            )
    finally:
        noise.setLevel(level)


def load_onnxruntime(path: Path, names: Sequence[str]) -> Run:
    """Return the graph as a function of tensors."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(*inputs: Tensor) -> Tensor:
        feeds = {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)}
        return torch.from_numpy(session.run(None, feeds)[0])

    return run


def load_openvino(path: Path, names: Sequence[str], precision: str = "f32") -> Run:
    """Return the graph as a function of tensors; `precision` is that of its products, f32 or bf16."""
    import openvino

    settings: dict[str, Any] = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": precision,
    }
    # Its CPU plugin gives the calling thread a stack for signals and frees that again while still in use, so that the
    # next Ctrl-C would end the process (seen with 2026.4.1). Each thread has one: let it be that of a thread that ends.
    with ThreadPoolExecutor(1) as pool:
        compiled = pool.submit(openvino.Core().compile_model, path, "CPU", settings).result()

    def run(*inputs: Tensor) -> Tensor:
        arrays = [tensor.numpy() for tensor in inputs]
        return torch.from_numpy(compiled(arrays, share_inputs=True)[0].copy())  # the next call overwrites it

    return run


Loader = Callable[[Path, Sequence[str]], Run]
LOADERS: dict[str, Loader] = {
    "ONNX Runtime": load_onnxruntime,
    "OpenVINO": load_openvino,
}


def calls(
    problem: Problem, queries: tuple[Tensor, Tensor], loaders: Mapping[str, Loader] = LOADERS
) -> dict[str, Callable[[], Tensor]]:
    """Return every runtime's call of both forms that decodes `queries` (coord and cell, [1, Q, 2]) of one map.

    A graph is exported and loaded in the first call; that a runtime is not installed is an ImportError then.
    """
    feat, weights, biases = (
        each.detach() if isinstance(each, Tensor) else [t.detach() for t in each] for each in problem
    )
    size = (feat.shape[2], feat.shape[3])
    sample = {"coord": torch.rand(1, 64, 2), "cell": torch.rand(1, 64, 2)}
    rows = torch.zeros(size[0] * size[1], weights[0].shape[0])
    graphs = {
        "plain": (_Plain(size, weights, biases), {"feat": feat, **sample}),
        "project": (_Project(size, weights, biases), {"feat": feat}),
        "projected": (_Projected(size, weights, biases), {"rows": rows, **sample}),
    }
    folder = tempfile.TemporaryDirectory(prefix="liif_fast-bench-")  # gone with the last call that uses it

    @cache
    def graph(runtime: str, name: str) -> Run:
        module, inputs = graphs[name]
        path = Path(folder.name) / f"{name}.onnx"
        if not path.exists():
            export(module, inputs, path)
        return loaders[runtime](path, list(inputs))

    def chunks(count: int) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(*(each.split(count, 1) for each in queries), strict=True)

    def plain(runtime: str) -> Tensor:
        decode = graph(runtime, "plain")
        return torch.cat([decode(feat, *chunk) for chunk in chunks(eager.CHUNK)], 1)

    def factorised(runtime: str) -> Tensor:
        rows, decode = graph(runtime, "project")(feat), graph(runtime, "projected")
        return torch.cat([decode(rows, *chunk) for chunk in chunks(FACTORISED_CHUNK)], 1)

    return {
        f"{form.__name__}, {runtime}": partial(form, runtime) for form in (plain, factorised) for runtime in loaders
    }
