"""Compare the errors and times of `conv3x3` with those of PyTorch's convolution: python -m benchmarks.convolution.

The last lines are about the projection P of a map, [16, 64, 48, 48] to 256 channels, and its gradients. They are
computed within `fast_convolutions()`, without it, and by PyTorch's convolution.

Errors are against float64: the norm relative to the result's norm, and in brackets the largest value relative to the
result's largest. Times are medians of alternating runs. With --record the errors go to benchmarks/results/.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from benchmarks import records
from benchmarks.records import Record
from liif_fast.backends import cpu
from liif_fast.ops.conv3x3 import convolve3x3, plain
from liif_fast.ops.project import fast_project, fast_project_backward, project, project_backward

CHANNELS, LAYERS = 64, 33
SHAPES = ((1, 16, 1024), (16, 48, 48))
PROJECTED, HIDDEN = (16, 48, 48), 256
Layers = Sequence[tuple[Tensor, Tensor]]


def error(got: Tensor, expected: Tensor) -> dict[str, float]:
    """Return the error's norm and its largest value, both relative to the result's."""
    off = got.double() - expected
    found = {"norm": off.norm() / expected.norm(), "largest": off.abs().max() / expected.abs().max()}
    return {name: float(f"{value.item():.1e}") for name, value in found.items()}


def chain(function: Callable[..., Tensor], x: Tensor, layers: Layers) -> Tensor:
    """Compute residual blocks, then one layer more if the number of layers is odd."""
    for first, second in zip(layers[:-1:2], layers[1::2], strict=False):
        hidden = function(x, *first, None, False, True)
        x = function(hidden, *second, x, False, False)
    return function(x, *layers[-1], None, False, False) if len(layers) % 2 else x


def contiguous(x: Tensor, *rest: object) -> Tensor:
    """Compute PyTorch's convolution on a map in contiguous order."""
    return plain(x.contiguous(), *rest)  # type: ignore[arg-type]


FORMS: dict[str, Callable[..., Tensor]] = {
    "conv3x3": convolve3x3,
    "PyTorch, channels last": plain,
    "PyTorch, contiguous": contiguous,
}


def compare_errors() -> list[Record]:
    """Return a result with the errors of one layer, and one for 16 residual blocks and a last layer."""
    x = torch.randn(1, CHANNELS, 24, 96).contiguous(memory_format=torch.channels_last)
    convolutions = [torch.nn.Conv2d(CHANNELS, CHANNELS, 3) for _ in range(LAYERS)]
    layers = [(each.weight.detach(), each.bias.detach()) for each in convolutions if each.bias is not None]
    doubles = [(weight.double(), bias.double()) for weight, bias in layers]
    results = []
    for count, title in ((1, "one layer"), (LAYERS, f"{LAYERS} layers in residual blocks")):
        expected = chain(plain, x.double(), doubles[:count])
        figures = {name: error(chain(form, x, layers[:count]), expected) for name, form in FORMS.items()}
        result = {"name": f"convolution-{count}", "title": title, "unit": "of the result", "rounds": 1}
        results.append({**result, "figures": figures, "missing": {}})
    return results


def lines(results: Sequence[Record]) -> list[str]:
    """Return the lines of a table with a column per result."""
    rows = [["", *(result["title"] for result in results)], ["---"] * (1 + len(results))]
    for name in FORMS:
        found = [result["figures"][name] for result in results]
        rows.append([name, *(f"{each['norm']:.1e} ({each['largest']:.1e})" for each in found)])
    return [f"| {' | '.join(row)} |" for row in rows]


def compare_times(rounds: int) -> None:
    """Print the times of one layer, forward and with all gradients."""
    for batch, height, width in SHAPES:
        x = torch.randn(batch, CHANNELS, height, width).contiguous(memory_format=torch.channels_last)
        weight, bias = torch.randn(CHANNELS, CHANNELS, 3, 3) / 24, torch.randn(CHANNELS)
        leaves = [each.requires_grad_() for each in (x, weight, bias)]

        def forward(form: Callable[..., Tensor], leaves: list[Tensor] = leaves) -> None:
            with torch.no_grad():
                form(*leaves, None, False, False)

        def both(form: Callable[..., Tensor], leaves: list[Tensor] = leaves) -> None:
            out = form(*leaves, None, False, False)
            torch.autograd.grad(out, leaves, out.detach())

        for kind, step in (("forward", forward), ("both", both)):
            forms = {name: partial(step, form) for name, form in FORMS.items()}
            show_times(f"{batch}x{height}x{width} {kind:8s}", forms, rounds)


def show_times(title: str, forms: Mapping[str, Callable[[], object]], rounds: int) -> None:
    """Print the median time of each form; they take turns."""
    spent: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(rounds):
        for name, form in forms.items():
            start = time.perf_counter()
            form()
            spent[name].append(time.perf_counter() - start)
    for name, times in spent.items():
        print(f"{title} {name:24s} {1000 * statistics.median(times):6.2f} ms")


def compare_projection(rounds: int) -> None:
    """Print the times of P and of its gradients."""
    batch, height, width = PROJECTED
    window, wanted = (0, 0, height, width), (True, True, True)
    for dtype in (torch.float32, torch.bfloat16) if cpu.BFLOAT16 else (torch.float32,):
        feat = torch.randn(batch, CHANNELS, height, width).contiguous(memory_format=torch.channels_last).to(dtype)
        weight, bias = torch.randn(HIDDEN, 9 * CHANNELS + 4).div(24).to(dtype), torch.randn(HIDDEN).to(dtype)
        kernel, grad = weight[:, :-4].unflatten(1, (CHANNELS, 3, 3)), torch.randn(batch, height, width, HIDDEN)
        forward, backward = (
            {"fast_convolutions()": partial(fast, *arguments, None), "usual": partial(usual, *arguments, None)}
            for fast, usual, arguments in (
                (fast_project, project, (feat, weight, bias, True, window)),
                (fast_project_backward, project_backward, (grad, feat, weight, True, 0, 0, wanted)),
            )
        )
        top, around = grad.permute(0, 3, 1, 2).to(dtype), [1, 1]
        forward["PyTorch"] = partial(torch.conv2d, feat, kernel, bias, padding=1)
        backward["PyTorch"] = partial(
            torch.ops.aten.convolution_backward, top, feat, kernel, [HIDDEN], around, around, around, False, [0, 0], 1,
            wanted,
        )  # fmt: skip
        for kind, forms in (("P", forward), ("its gradients", backward)):
            show_times(f"{str(dtype).removeprefix('torch.'):8s} {kind:13s}", forms, rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="number of timed runs (default: 15)")
    parser.add_argument("--record", action="store_true", help="append the errors to benchmarks/results/")
    args = parser.parse_args()
    if not cpu.ISA:
        raise SystemExit(cpu._missing)
    torch.manual_seed(0)
    results = compare_errors()
    print("\n".join([*lines(results), ""]))
    compare_times(args.rounds)
    compare_projection(args.rounds)
    if args.record:
        print(f"recorded in {records.append(records.environment(), results)}")


if __name__ == "__main__":
    main()
