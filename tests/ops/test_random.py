"""Compare every operator and backend with float64 on random configurations, forward and backward (promises 2 and 5).

LIIF_FAST_TEST_CONFIGS is their number, LIIF_FAST_TEST_SEED the first one. A failure prints the line that repeats it.

The tolerances limit the root mean square of a tensor's error:
* FORWARD, GRADIENT: promise 2, at most 2 (gradients 3) times plain PyTorch's error in the same dtype. For float64, that
  error is taken from float32, in units in the last place.
* FLOOR: in addition, units in the last place of the tensor's size, for tensors of a few elements, where plain PyTorch
  may be exact by luck. It is 1.3 times (in float64, whose yardstick rounds too, 2 times) the difference between two
  orders of plain PyTorch's sums over 700 configurations. A gradient's size is measured with DRAWS other random
  gradients at the output, because its own terms may cancel. test_accuracy.py has no such floor.
* PLAIN: promise 2, the largest deviation from the plain form, relative to the largest output: 1e-5 in float32, the same
  number of units in the last place in float64.
Gradients must not depend on the sign of rounding noise. So a query gets no output gradient if one of its
pre-activations is within MARGIN of 0 (float32 errs there by about 1e-7), where a ReLU may round to either side. KEPT is
the share of queries that must remain.

In bfloat16, where rounding turns many ReLUs, errors are compared over many configurations (`test_random_bfloat16`).
"""

import itertools
import os
import random
from typing import NamedTuple

import pytest
import torch

from liif_fast import functional
from liif_fast.backends import cpu

from . import oracle
from .oracle import Switches
from .support import BACKENDS, DEVICE, in_dim, is_limit, make_layers, same_bits

CONFIGS = int(os.environ.get("LIIF_FAST_TEST_CONFIGS", 200))
FIRST = int(os.environ.get("LIIF_FAST_TEST_SEED", 0))

FORWARD, GRADIENT, DRAWS, PLAIN, MARGIN, KEPT = 2, 3, 2, 1e-5, 4e-6, 0.5
LEAST = 25  # configurations over which errors in bfloat16 are summed
FLOOR = {torch.float32: 12, torch.float64: 32}
EPS = {torch.float32: 2.0**-23, torch.float64: 2.0**-52}
WORK = 1.5e7  # limit of a network's multiply-adds, so that a thousand configurations stay quick


def side(rng):
    return rng.choice((1, 2, 3, 13, 17, rng.randint(1, 40)))


class Config:
    """One configuration, drawn from its seed; with a dtype, one of an operator that multiplies."""

    def __init__(self, seed, dtype=None):
        self.seed = seed
        rng = self.rng = random.Random(seed)
        self.op = rng.choice(("decode", "decode", "render", "render", "fused_mlp", "gather_corners"))
        self.dtype = torch.float64 if rng.random() < 0.2 else torch.float32
        if dtype is not None:
            self.op, self.dtype = self.op.replace("gather_corners", "decode"), dtype
        self.switches = Switches(*(rng.random() < 0.6 for _ in range(3)))
        self.batch = rng.choice((1, 1, 2, 3))
        self.channels = rng.choice((1, 2, 3, 8, 64, rng.randint(1, 70)))
        self.shape = side(rng), side(rng)
        depth = rng.randint(0, 5)
        widest = rng.choice((4, 20, 70, 300))
        self.hidden = [rng.choice((widest, rng.randint(1, widest))) for _ in range(depth)]
        self.out_dim = rng.choice((1, 3, 3, rng.randint(1, 70)))
        self.recompute = rng.choice((True, False, None))
        self.threads = rng.choice((1, 1, 1, 1, 1, 2, 3))
        self.trains = rng.random() < 0.8
        widths = [in_dim(self.channels, self.switches), *self.hidden, self.out_dim]
        row = sum(a * b for a, b in itertools.pairwise(widths))
        limit = max(1, int(WORK / row / self.batch / (4 if self.switches.local_ensemble else 1)))
        while self.shape[0] * self.shape[1] * row * self.batch > WORK:
            self.shape = (self.shape[0] + 1) // 2, self.shape[1] // 2 or 1
        self.queries = min(limit, rng.choice((1, 63, 1000, 4097, rng.randint(1, 300))))
        grid = min(limit, 4000)
        self.size = tuple(max(1, min(round(n * rng.uniform(0.3, 5.3)), int(grid**0.5))) for n in self.shape)
        if rng.random() < 0.5:
            top, left = rng.randrange(self.size[0]), rng.randrange(self.size[1])
            self.region = top, left, rng.randint(1, self.size[0] - top), rng.randint(1, self.size[1] - left)
        else:
            self.region = None

    def tensors(self):
        """Draw the inputs: feat, coord, cell, weights, biases."""
        generator = torch.Generator().manual_seed(self.seed)

        def normal(*shape):
            return torch.randn(shape, generator=generator, dtype=torch.float64).to(self.dtype)

        feat = normal(self.batch, self.channels, *self.shape)
        if self.op == "fused_mlp":
            feat = normal(*self.rng.choice(((), (self.queries,), (self.batch, self.queries))), self.channels)
        coord = torch.rand(self.batch, self.queries, 2, generator=generator) * 2.2 - 1.1
        if self.rng.random() < 0.5:  # a regular grid's pixel centres, which have the plan's ties
            full = torch.from_numpy(oracle.grid([n * self.rng.choice((2, 3, 5)) for n in self.shape]))
            coord = full[torch.randint(len(full), (self.batch, self.queries), generator=generator)]
        shape = (self.batch, 2) if self.op == "render" else (self.batch, self.queries, 2)
        cell = torch.rand(shape, generator=generator) * 0.3
        ins = self.channels if self.op == "fused_mlp" else in_dim(self.channels, self.switches)
        weights, biases = make_layers((ins, *self.hidden, self.out_dim), generator, self.dtype)
        return feat, coord, cell, weights, biases

    def lay_out(self, tensor):
        """Return the same values in another memory layout, sometimes with NaN all around."""
        kind = self.rng.choice(("contiguous", "padded", "padded", "strided", "transposed", "channels_last", "expanded"))
        tensor = tensor.to(DEVICE)
        if kind == "padded":
            around = tensor.new_full([n + 3 for n in tensor.shape], float("nan"))
            around[tuple(slice(1, n + 1) for n in tensor.shape)] = tensor
            return around[tuple(slice(1, n + 1) for n in tensor.shape)]
        if kind == "strided":
            around = tensor.new_full((*tensor.shape, 2), float("nan"))
            around[..., 0] = tensor
            return around[..., 0]
        if kind == "transposed":
            return tensor.transpose(0, -1).contiguous().transpose(0, -1)
        if kind == "channels_last" and tensor.ndim == 4:
            return tensor.contiguous(memory_format=torch.channels_last)
        if kind == "expanded" and tensor.ndim > 2:
            return tensor[:1].expand(tensor.shape)
        return tensor.clone()

    def plain(self, inputs, hidden=None):
        """Compute this configuration by the plain form."""
        feat, coord, cell, weights, biases = inputs
        if self.op == "fused_mlp":
            return oracle.mlp(feat, weights, biases, hidden)
        if self.op == "gather_corners":
            return oracle.gather(feat, coord, cell, self.switches)[0]
        if self.op == "render":
            region = self.region or (0, 0, *self.size)
            return oracle.render(feat, self.size, region, cell, weights, biases, self.switches, hidden)
        return oracle.decode(feat, coord, cell, weights, biases, self.switches, hidden)

    def ours(self, backend, inputs):
        """Compute this configuration by a backend."""
        feat, coord, cell, weights, biases = inputs
        options = {"backend": backend, "recompute": self.recompute}
        if self.op == "fused_mlp":
            return functional.fused_mlp(feat, weights, biases, **options)
        options |= self.switches._asdict()
        if self.op == "gather_corners":
            del options["recompute"]
            x, weight = functional.gather_corners(feat, coord, cell, **options)
            expected = oracle.gather(*(t.detach().cpu() for t in (feat, coord, cell)), self.switches)
            assert same_bits(weight.cpu(), expected[1]), "weight"
            assert same_bits(x.detach().cpu(), expected[0]), "x"
            return x
        if self.op == "render":
            return functional.liif_render(feat, self.size, weights, biases, region=self.region, cell=cell, **options)
        return functional.liif_decode(feat, coord, cell, weights, biases, **options)

    def leaves(self, inputs, wanted):
        feat, _, _, weights, biases = inputs
        leaves = [feat] if self.op == "gather_corners" else [feat, *weights, *biases]
        return [leaf.requires_grad_() for leaf, want in zip(leaves, wanted, strict=False) if want]

    def gradients_at_output(self, out, hidden):
        """Return random output gradients, 0 where a ReLU's sign is rounding noise (see the top of this file)."""
        generator = torch.Generator().manual_seed(self.seed)
        grads = torch.randn((1 + DRAWS, *out.shape), generator=generator, dtype=torch.float64)
        if hidden:
            closest = torch.cat([h.detach().abs() for h in hidden], -1).amin(-1)
            if self.op != "fused_mlp":
                closest = closest.amin(-1)
            clear = closest > (0 if self.dtype == torch.bfloat16 else MARGIN)
            assert clear.double().mean() > KEPT or clear.numel() < 9, "MARGIN leaves too few queries"
            clear = clear.view(out.shape[0], 1, *out.shape[2:]) if self.op == "render" else clear.unsqueeze(-1)
            grads = grads * clear
        return [self.lay_out(grad) for grad in grads.to(self.dtype)]

    def expected(self, inputs, wanted):
        """Compute the plain form in float64 and float32 (or bfloat16), the gradients at the output, each Expected."""
        hidden, grads, results = [], None, []
        for dtype in (torch.float64, torch.bfloat16 if self.dtype == torch.bfloat16 else torch.float32):
            at = convert(inputs, dtype)
            leaves = self.leaves(at, wanted)
            out = self.plain(at, hidden if grads is None else None)
            if grads is None:
                grads = self.gradients_at_output(out, hidden)
            draws = grads if grads and dtype == torch.float64 else grads[:1]
            draws = [grad.to("cpu", dtype) for grad in draws] if self.trains else []
            used = [torch.autograd.grad(out, leaves, grad, retain_graph=True) for grad in draws]
            results += [out.detach(), used]
        exact, exact_grads, plain, plain_grads = results
        outputs = Expected(exact, rms(plain - exact), rms(exact))
        gradients = []
        for i in range(len(exact_grads[0]) if self.trains else 0):
            each = torch.stack([draw[i] for draw in exact_grads])
            gradients.append(Expected(each[0], rms(plain_grads[0][i] - each[0]), rms(each)))
        return plain, grads[0], outputs, gradients


class Expected(NamedTuple):
    """A tensor's exact values, the error that plain PyTorch makes in float32 (or bfloat16), and the tensor's size."""

    exact: torch.Tensor
    error: float
    size: float


def convert(inputs, dtype):
    """Return copies on the CPU; coord and cell keep their dtype."""
    feat, coord, cell, weights, biases = inputs
    feat, *parameters = (t.detach().to("cpu", dtype, copy=True) for t in (feat, *weights, *biases))
    return feat, coord.cpu(), cell.cpu(), parameters[: len(weights)], parameters[len(weights) :]


def rms(tensor):
    return tensor.double().square().mean().sqrt().item() if tensor.numel() else 0.0


def compare(name, got, dtype, expected, times):
    """Fail on a wrong shape or dtype, or too large an error."""
    assert got.shape == expected.exact.shape, f"{name}: shape {tuple(got.shape)}, not {tuple(expected.exact.shape)}"
    assert got.dtype == dtype, f"{name}: dtype {got.dtype}"
    error, usual = rms(got.cpu().double() - expected.exact), expected.error * EPS[dtype] / EPS[torch.float32]
    limit = times * usual + FLOOR[dtype] * EPS[dtype] * expected.size
    assert error <= limit, f"{name}: error {error:.3g}, plain PyTorch's {usual:.3g}, allowed {limit:.3g}"


def check(config, backend, inputs, wanted, plain, grad, expected, expected_grads):
    leaves = config.leaves(inputs, wanted) if config.trains else []
    out = config.ours(backend, inputs)
    compare("output", out.detach(), config.dtype, expected, FORWARD)
    plain = plain if config.dtype == torch.float32 else expected.exact
    far = ((out.cpu() - plain).abs().max() / plain.abs().max()).item()
    limit = PLAIN * EPS[config.dtype] / EPS[torch.float32]
    few = plain.numel() < 16  # all of them may be near 0 if their terms cancel
    assert few or far <= limit, f"output: {far:.3g} of the largest from the plain form, allowed {limit:.3g}"
    if not leaves:
        return
    names = ["feat", *(f"{kind}[{i}]" for kind in ("weights", "biases") for i in range(len(inputs[3])))]
    names = [name for name, want in zip(names, wanted, strict=False) if want]
    for name, ours, each in zip(names, torch.autograd.grad(out, leaves, grad), expected_grads, strict=True):
        compare(f"gradient of {name}", ours, config.dtype, each, GRADIENT)


@pytest.mark.skipif("cpu" not in BACKENDS, reason="the backend cpu is not under test")
@pytest.mark.skipif(not cpu.BFLOAT16, reason="this processor has no AVX512-BF16")
def test_random_bfloat16(threads, poison):
    """Compare relative errors: each may exceed promise 2 by a half; all together keep it."""
    squares = {FORWARD: [0.0, 0.0], GRADIENT: [0.0, 0.0]}
    poison(torch.float32)
    for seed in range(FIRST, FIRST + max(LEAST, CONFIGS // 8)):
        config = Config(seed, torch.bfloat16)
        inputs = config.tensors()
        wanted = [True] * (1 + 2 * len(inputs[3]))
        _, grad, output, gradients = config.expected(inputs, wanted)
        threads(config.threads)
        leaves = config.leaves(convert(inputs, torch.bfloat16), wanted)
        layers = len(inputs[3])
        at = leaves[0], *inputs[1:3], leaves[1 : 1 + layers], leaves[1 + layers :]
        out = config.ours("cpu", at)
        found = [(FORWARD, output, out.detach())]
        if config.trains:
            grads = torch.autograd.grad(out, leaves, grad)
            found += [(GRADIENT, *each) for each in zip(gradients, grads, strict=True)]
        for times, expected, ours in found:
            assert ours.dtype == torch.bfloat16
            scale = max(expected.size, 1e-9)
            error, plain = rms(ours.double() - expected.exact) / scale, expected.error / scale
            assert error <= times * plain + 0.5, (seed, error, plain, vars(config))
            squares[times][0] += error**2
            squares[times][1] += plain**2
    for times, (ours, plain) in squares.items():
        assert ours <= times**2 * plain, (times, ours, plain)


@pytest.mark.parametrize("seed", range(FIRST, FIRST + CONFIGS))
def test_random(seed, nan_empty, threads, poison):
    config = Config(seed)
    values = config.tensors()
    feat, coord, cell, weights, biases = values
    inputs = (*map(config.lay_out, (feat, coord, cell)), *([*map(config.lay_out, ps)] for ps in (weights, biases)))
    layers = 0 if config.op == "gather_corners" else 2 * len(weights)
    wanted = [config.rng.random() < 0.8 for _ in range(1 + layers)]
    wanted[config.rng.randrange(len(wanted))] = True

    expected = config.expected(inputs, wanted)
    failures = []
    threads(config.threads)
    if seed % 4 == 0:  # takes longer than all else; the others find in scratch memory what earlier calls left there
        poison(config.dtype)
    for backend in BACKENDS:
        try:
            copies = tuple(t.detach() if isinstance(t, torch.Tensor) else [p.detach() for p in t] for t in inputs)
            check(config, backend, copies, wanted, *expected)
        except Exception as error:
            if is_limit(error):
                continue
            failures.append(f"{backend}: {type(error).__name__}: {error}")
    again = f"LIIF_FAST_TEST_SEED={seed} LIIF_FAST_TEST_CONFIGS=1 python -m pytest tests/ops/test_random.py"
    assert not failures, "\n".join([again, str(vars(config)), *failures])
