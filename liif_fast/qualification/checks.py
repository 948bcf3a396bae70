"""Check a kind of call before `auto` may take it; each check raises `Wrong` with the reason.

The bounds are the promises of docs/backends.md. Against float64, outputs may have twice the error of plain PyTorch in
the same dtype, and gradients three times. FLOOR units in the last place are added, because that error may be small by
luck.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from liif_fast.backends.verdict import AMX
from liif_fast.call import Switches
from liif_fast.qualification import transformer
from liif_fast.qualification.problems import Network, Problem, Unit, extent

EPS = {"float16": 2.0**-10, "bfloat16": 2.0**-7, "tf32": 2.0**-10, "float32": 2.0**-23}
FLOOR = 12
FLIPS = 0.1  # relative to a gradient, because in half precision a ReLU's input near 0 may round to either side
NEAR_ZERO = 4e-6  # so may float32; a query with a ReLU's input this near to 0 gets no gradient
SQUARE = (8, 8)  # (H, W) of a map whose cells, times its size, can be exact integers
BLEND = 16  # float32 roundings of the four corners' weights and of their sum
# Weights drawn per neuron, a third of which are 0. Outputs must depend on every input. No sum may exceed 256, because
# bfloat16 lacks some larger integers.
ENTERS, GOES_ON = 24, 6
LOOSE = 0.05  # relative to an output: a wrong address causes larger errors
CPU = torch.device("cpu")


class Wrong(Exception):
    """Report that a kernel's result is wrong."""


def examine(
    unit: Unit, device: torch.device, networks: Sequence[Network], seed: int, tell: Callable[[str], None]
) -> None:
    """Run every check of a kind of call on the first network, and `values` on the others.

    Args:
        unit: the kind of call.
        device: the device to run it on.
        networks: the networks that the backend accepts.
        seed: seed of the inputs.
        tell: receives the name of each check before it runs.

    Raises:
        Wrong: a check fails.
    """
    for number, network in enumerate(networks):
        for check in CHECKS if number == 0 else (values,):
            tell(f"{check.__name__}, {len(network.hidden)} x {max(network.hidden)}")
            check(unit, device, network, seed + number)


def rms(tensor: Tensor) -> float:
    """Return the root of the mean square, in float64 on the CPU."""
    return tensor.detach().cpu().double().square().mean().sqrt().item() if tensor.numel() else 0.0


def _compare(name: str, unit: Unit, times: int, ours: Tensor, plain: Tensor, exact: Tensor) -> None:
    ours, plain, exact = (each.detach().cpu().double() for each in (ours, plain, exact))
    if ours.shape != exact.shape:
        raise Wrong(f"{name}: shape {list(ours.shape)}, expected {list(exact.shape)}")
    slack = FLOOR * EPS[unit.precision] + (FLIPS if times == 3 and unit.precision != "float32" else 0)
    error, allowed = rms(ours - exact), times * rms(plain - exact) + slack * rms(exact)
    if not error <= allowed:  # NaN
        raise Wrong(f"{name}: error {error:.2g}, allowed {allowed:.2g}")


def values(unit: Unit, device: torch.device, network: Network, seed: int) -> None:
    """Compare outputs and gradients with float64; in deterministic mode, PyTorch fills new memory with NaN."""
    problem = Problem(network, unit, device, seed)
    here, double = problem.to(device), problem.to(CPU, torch.float64)
    hidden: list[Tensor] = []
    exact, plain = double.formula(hidden), here.run("reference")
    generator = torch.Generator().manual_seed(seed)
    grad = torch.randn(exact.shape, generator=generator, dtype=torch.float64)
    if hidden and unit.training and unit.precision == "float32":
        clear = torch.stack([(each.abs() > NEAR_ZERO).flatten(2).all(2) for each in hidden]).all(0)
        grad *= clear.unflatten(1, problem.size).unsqueeze(1) if unit.op == "render" else clear[..., None]
    grad = grad.to(plain.dtype)
    wanted = [_gradients(each, of, grad) for each, of in ((double, exact), (here, plain))]
    names = ["x" if unit.op == "fused_mlp" else "feat"]
    names += [f"{kind}[{i}]" for kind in ("weights", "biases") for i in range(len(problem.weights))] + ["phase"]
    if unit.op == "attend_corners":
        parameters = [name for name, _ in transformer.remake(problem.weights, 1).tensors()]
        names = ["feat", "values", *(name for i, name in enumerate(parameters) if i not in transformer.SHARED)]
    for recompute in (True, False) if unit.training else (None,):
        for ordered in (True, False):
            with _deterministic(ordered):
                ours = here.run(unit.backend, recompute)
                _compare("output", unit, 2, ours, plain, exact)
                if ours.dtype != plain.dtype:
                    raise Wrong(f"output: {ours.dtype}, expected {plain.dtype}")
                for name, *three in zip(names, _gradients(here, ours, grad), wanted[1], wanted[0], strict=False):
                    _compare(f"gradient of {name}", unit, 3, *three)


def _gradients(problem: Problem, out: Tensor, grad: Tensor) -> Sequence[Tensor]:
    if not problem.unit.training:
        return ()
    return torch.autograd.grad(out, problem.leaves, grad.to(out.device, out.dtype))


@contextlib.contextmanager
def _deterministic(ordered: bool) -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(ordered, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def plan(unit: Unit, device: torch.device, network: Network, seed: int) -> None:
    """Compare corner plans and gathered latents bit for bit, at coordinates on borders, beyond the edges, and NaN."""
    if unit.op != "gather_corners" or unit.training:
        return
    odd = torch.tensor([-1, 1, -1 + 1e-6, 1 - 1e-6, 0, 1e-6, -1e-6, 3, -3, math.inf, -math.inf, math.nan])
    pairs, shapes = torch.cartesian_prod(odd, odd), [(1, 1), (2, 3), (1, 7), (13, 17), (48, 48), (5, 1023)]
    if extent(device) == "small":
        pairs, shapes = pairs[::11], shapes[:2]
    for shape in shapes:
        problem = Problem(network, unit, device, seed, shape, 2 * len(pairs), 1)
        problem.coord[:, ::2] = pairs
        ours = problem.to(device).run(unit.backend).cpu()
        exact = problem.to(CPU).run("reference")
        if not ((ours == exact) | (ours.isnan() & exact.isnan())).all():
            raise Wrong(f"a map of {shape[0]}x{shape[1]}: the bits differ from the formula's")


def integers(unit: Unit, device: torch.device, network: Network, seed: int) -> None:
    """Sum small integers, exact in any order and precision, to reveal a register or buffer reused too early.

    `fourier_decode` gets quarter turns, whose sines and cosines are integers. Its blend of four corners rounds, so
    its bound is a few roundings of the largest sum. `attend_corners` is left out, because its norms give no integers.
    """
    if unit.op in ("gather_corners", "attend_corners") or unit.training:
        return
    waves = unit.op == "fourier_decode"
    network = network._replace(switches=Switches(local_ensemble=False))
    problem = Problem(network, unit, device, seed, SQUARE if waves else None)
    generator = torch.Generator().manual_seed(seed)

    def fill(tensor: Tensor, share: float) -> None:
        chosen = torch.rand(tensor.shape, generator=generator) < share
        tensor.copy_(torch.randint(-1, 2, tensor.shape, generator=generator) * chosen)

    for each in (problem.feat, problem.x, *problem.biases):
        fill(each, 1.0)
    for layer, weight in enumerate(problem.weights):
        fill(weight, (ENTERS if layer == 0 else GOES_ON) / weight.shape[1])
    if waves:
        problem.feat[:, problem.feat.shape[1] // 2 :] = 0  # frequencies: their products with rel are no integers
        problem.phase.copy_(torch.randint(-1, 2, problem.phase.shape, generator=generator) / 2)
        problem.cell.copy_(torch.randint(0, 4, problem.cell.shape, generator=generator) / SQUARE[0])
    else:
        problem.weights[0][:, -problem.terms :] = 0  # rel and cell are not integers
    if unit.op == "modulated_decode":
        problem.feat[:, : sum(problem.network.hidden)].clamp_(max=0)  # scales -1 and 0 switch a neuron off or keep it
    exact = problem.to(CPU, torch.float64).formula([])
    found = problem.to(device).run(unit.backend).cpu()
    roundings = torch.finfo(found.dtype).eps + BLEND * EPS["float32"] if waves else 0.0
    allowed = roundings * exact.abs().max().item()
    if not (found.double() - exact).abs().max() <= allowed:  # NaN
        raise Wrong("sums of small integers are not exact")


def nans(unit: Unit, device: torch.device, network: Network, seed: int) -> None:
    """Check that a NaN in one latent reaches the queries that read it and changes no bit of the others."""
    if unit.training:
        return
    problem = Problem(network, unit, device, seed)
    clean = problem.to(device).run(unit.backend)
    if unit.op == "fused_mlp":
        problem.x[0, 5] = math.nan
    else:
        problem.feat[0, :, 0, -1] = math.nan
    spoiled = problem.to(device)
    ours, expected = spoiled.run(unit.backend), spoiled.run("reference").isnan()
    if not torch.equal(ours.isnan(), expected) or not torch.equal(ours[~expected], clean[~expected]):
        raise Wrong("a NaN in one latent reaches queries that do not read it, or misses one that does")


def repeats(unit: Unit, device: torch.device, network: Network, seed: int) -> None:
    """Check that repeated calls give the same bits while another stream works, and write only the outputs."""
    problem = Problem(network, unit, device, seed, queries=1001 if extent(device) == "large" else None)
    here, before = problem.to(device), problem.to(device)
    grad = torch.randn(here.run(unit.backend).shape, generator=torch.Generator().manual_seed(seed)).to(device)
    first: list[Tensor] = []
    with _deterministic(unit.training), _canaries(device):
        for _ in range(100 if device.type == "cuda" else 20 if extent(device) == "large" else 2):
            with _noise(device):
                out = here.run(unit.backend)
                found = [out.detach(), *_gradients(here, out, grad)]
            first = first or found
            if not all(map(torch.equal, first, found)):
                raise Wrong("the bits differ when called again")
    inputs = [
        (each.coord, each.cell, each.feat, each.x, each.phase, *each.weights, *each.biases) for each in (here, before)
    ]
    if not all(map(torch.equal, *inputs)):
        raise Wrong("an input is written")


@contextlib.contextmanager
def _canaries(device: torch.device) -> Iterator[None]:
    """Leave gaps for allocations inside the context, between blocks that must not change."""
    sizes = [1 << power for power in range(9, 21) for _ in range(8)]
    blocks = [torch.full((size,), 165, dtype=torch.uint8, device=device) for size in sizes]
    kept = blocks[::2]
    del blocks
    yield
    if any((block != 165).any() for block in kept):
        raise Wrong("the kernel writes outside its own memory")


@contextlib.contextmanager
def _noise(device: torch.device) -> Iterator[None]:
    if device.type == "cuda":
        with torch.cuda.stream(torch.cuda.Stream(device)):
            square = torch.ones(1024, 1024, device=device)
            torch.mm(square, square)
    yield


def cuts(unit: Unit, device: torch.device, network: Network, seed: int) -> None:
    """Check that a query's bits do not depend on the number of queries; the interpreter may round differently."""
    if unit.training:
        return
    sizes = (1, 63, 1000, 30_001) if extent(device) == "large" else (2, 7)
    problem = Problem(network, unit, device, seed, queries=sizes[-1]).to(device)
    axis = 2 if unit.op == "render" else 1
    whole = problem.run(unit.backend)
    for size in sizes[:-1]:
        part = problem.run(unit.backend, part=slice(size))
        expected = whole.narrow(axis, 0, min(size, whole.shape[axis]))
        if device.type == "cpu" and unit.backend != AMX:
            same = torch.allclose(part, expected, rtol=0, atol=1e-5, equal_nan=True)
        else:
            same = torch.equal(part, expected)
        if not same:
            raise Wrong(f"the first {size} of {whole.shape[axis]} have other bits when computed alone")


def streams(unit: Unit, device: torch.device, network: Network, seed: int) -> None:
    """Run on another stream, and replay a captured graph on other inputs."""
    if device.type != "cuda" or unit.training:
        return
    problem = Problem(network, unit, device, seed).to(device)
    problem.run(unit.backend)  # compiles

    def change() -> None:
        for each in (problem.feat, problem.x):
            each.mul_(-1)

    other = torch.cuda.Stream(device)
    other.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(other):
        torch.cuda._sleep(20_000_000)
        change()
        out = problem.run(unit.backend)
    torch.cuda.current_stream(device).wait_stream(other)
    if not torch.equal(out, problem.run(unit.backend)):
        raise Wrong("the bits differ on another stream")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = problem.run(unit.backend)
    change()
    graph.replay()
    if not torch.equal(out, problem.run(unit.backend)):
        raise Wrong("the bits differ in a CUDA graph")


def large(unit: Unit, device: torch.device, network: Network, seed: int, tell: Callable[[str], None]) -> None:
    """Check offsets beyond 2^31 elements: in inference those in the map, in training those in stored activations.

    It needs a GPU with enough free memory and runs in float16 only. It is not in `CHECKS`, because parallel processes
    would compete for memory.
    """
    tell("offsets beyond 2^31")
    if device.type != "cuda" or unit.precision != "float16" or unit.op == "gather_corners":
        return
    if torch.cuda.mem_get_info(device)[0] < 40 * 2**30:
        return
    # attend_corners stores no activations. No check examines offsets in the gradient of a large map, for any operator.
    if unit.training and unit.op != "attend_corners":
        far_activations(unit, device, network, seed, 700_001)
    elif not unit.training and unit.op != "fused_mlp":
        far_latents(unit, device, network, seed, 2900)
    torch.cuda.empty_cache()


def far_latents(unit: Unit, device: torch.device, network: Network, seed: int, side: int) -> None:
    """Compare queries at the end of a map of side x side with the backend `torch`."""
    problem = Problem(network, unit, device, seed, queries=64, batch=1).to(device)
    problem.feat = torch.randn(1, problem.feat.shape[1], side, side, device=device, dtype=problem.feat.dtype)
    problem.coord.clamp_(0, 1).mul_(0.001).add_(0.999)
    if unit.op == "attend_corners":
        problem.x = torch.randn(1, problem.x.shape[1], side, side, device=device, dtype=problem.x.dtype)
    problem.size = (side, side)
    ours, part = problem.run(unit.backend).float(), slice(None)
    if unit.op == "render":
        ours, part = ours[:, :, -2:], slice(side - 2, side)
    plain = problem.run("torch", part=part).float()
    if not rms(ours - plain) <= LOOSE * rms(plain):
        raise Wrong(f"the end of a map of {side}x{side}: error {rms(ours - plain):.2g}, outputs are {rms(plain):.2g}")


def far_activations(unit: Unit, device: torch.device, network: Network, seed: int, queries: int) -> None:
    """Compare gradients from stored activations with those from recomputed ones."""
    rows = queries * (4 if unit.op == "fused_mlp" else 1)
    network = network._replace(channels=2, switches=Switches(feat_unfold=False))  # small inputs
    problem = Problem(network, unit, device, seed, queries=rows, batch=1).to(device)
    found = []
    for recompute in (False, True):
        out = problem.run(unit.backend, recompute)
        found.append(_gradients(problem, out, torch.ones_like(out)))
    for kept, again in zip(*found, strict=True):
        if not rms(kept - again) <= LOOSE * rms(again):
            raise Wrong(f"gradients of {rows} queries from stored and from recomputed activations differ")


CHECKS = (values, plan, integers, nans, repeats, cuts, streams)
