"""Name the backends under test, and make the tests' inputs."""

import itertools
import os

import pytest
import torch

from liif_fast.attention import Block, CornerTransformer
from liif_fast.backends import cpu

from .. import warm
from .oracle import Switches

# Every backend that must keep the promises; add a new one by its name.
BACKENDS = tuple(os.environ.get("LIIF_FAST_TEST_BACKENDS", "reference,torch,cpu").split(","))
DEVICE = os.environ.get("LIIF_FAST_TEST_DEVICE", "cpu")  # the device of the backends
LIMITED = ("triton",)  # backends that take only some widths, depths and dtypes; the others take every test
NOT_HERE = ("is not installed", "runs on cuda", "needs compute capability")  # their message if they take nothing


def is_limit(error: BaseException) -> bool:
    """Return whether a limited backend refuses only a test's dtype or network, not the whole machine."""
    text = str(error)
    named = any(text.startswith(f"backend {name!r} cannot run") for name in LIMITED)
    return named and not any(each in text for each in NOT_HERE)


# Tests of the choices that the C++ kernels make.
CPU_KERNELS = [
    pytest.mark.skipif(bool(cpu._missing), reason="the C++ kernels are not built"),
    pytest.mark.skipif(DEVICE != "cpu", reason="the cpu backend's choice"),
]
BFLOAT16 = pytest.mark.skipif(not cpu.BFLOAT16, reason="this processor has no AVX512-BF16")
CPU_DTYPES = [torch.float32, torch.float64, pytest.param(torch.bfloat16, marks=BFLOAT16)]

ALL_SWITCHES = [Switches(bool(i & 4), bool(i & 2), bool(i & 1)) for i in range(8)]
DEFAULT = Switches()


def in_dim(channels, switches):
    """Return the width of the network's input."""
    return channels * (9 if switches.feat_unfold else 1) + (4 if switches.cell_decode else 2)


def make_layers(widths, generator=None, dtype=torch.float32):
    """Return weights and biases of an MLP with these widths, in nn.Linear's initial range."""
    weights, biases = [], []
    for ins, outs in itertools.pairwise(widths):
        for parameters, shape in ((weights, (outs, ins)), (biases, (outs,))):
            uniform = torch.rand(shape, generator=generator, dtype=torch.float64) * 2 - 1
            parameters.append((uniform * ins**-0.5).to(dtype))
    return weights, biases


def make_network(shape, unfold=True):
    """Return a map [2, 5, *shape] and the other arguments of a small network on it, all on DEVICE."""
    generator = torch.Generator().manual_seed(0)
    weights, biases = make_layers((5 * (9 if unfold else 1) + 4, 16, 3), generator)
    feat = torch.randn(2, 5, *shape, generator=generator).to(DEVICE)
    weights, biases = ([each.to(DEVICE) for each in layers] for layers in (weights, biases))
    return feat, {"weights": weights, "biases": biases, "feat_unfold": unfold}


def make_transformer(width, depth, heads, hidden=None, seed=0, dtype=torch.float32):
    """Return the parameters of a CornerTransformer, with norms and biases off their neutral values."""
    generator, hidden = torch.Generator().manual_seed(seed), hidden or width

    def made(*shape, around=0.0, scale=0.3):
        return (torch.randn(shape, generator=generator, dtype=torch.float64) * scale + around).to(dtype)

    def matrix(outs, ins):
        return made(outs, ins, scale=ins**-0.5)

    def norm():
        return made(width, around=1.0), made(width)

    blocks = []
    for _ in range(depth):
        out = (None, None) if heads == 1 else (matrix(width, width), made(width))
        up, down = (matrix(hidden, width), made(hidden)), (matrix(width, hidden), made(width))
        blocks.append(Block(*norm(), matrix(3 * width, width), *out, *norm(), *up, *down))
    return CornerTransformer(made(width, 2), made(width), tuple(blocks), *norm(), matrix(1, width), made(1), heads)


class Problem:
    """Hold a small decoding problem on DEVICE: feat, coord, cell, weights, biases."""

    def __init__(self, seed=0, batch=2, channels=5, shape=(13, 17), queries=63, hidden=(32, 24), out_dim=3,
                 switches=DEFAULT, dtype=torch.float32):  # fmt: skip
        generator = torch.Generator().manual_seed(seed)
        self.switches = switches
        self.feat = torch.randn(batch, channels, *shape, generator=generator, dtype=torch.float64).to(dtype)
        self.coord = torch.rand(batch, queries, 2, generator=generator) * 2.2 - 1.1
        self.cell = torch.rand(batch, queries, 2, generator=generator) * 0.2
        self.weights, self.biases = make_layers((in_dim(channels, switches), *hidden, out_dim), generator, dtype)
        self.to(DEVICE)

    def to(self, *target):
        """Move or convert everything, except the dtype of coord and cell, and return self."""
        self.feat = self.feat.to(*target)
        self.coord, self.cell = (t.to(self.feat.device) for t in (self.coord, self.cell))
        self.weights, self.biases = ([p.to(*target) for p in ps] for ps in (self.weights, self.biases))
        return self

    @property
    def arguments(self):
        """Return the positional arguments of liif_decode."""
        return self.feat, self.coord, self.cell, self.weights, self.biases

    @property
    def leaves(self):
        """Return the tensors that a training step differentiates."""
        return [self.feat, *self.weights, *self.biases]

    def requires_grad(self):
        """Require every gradient, and return self."""
        for leaf in self.leaves:
            leaf.requires_grad_()
        return self


def assert_near(ours, theirs, tolerance, least=0.0):
    """Compare with a tolerance relative to the largest of their values, or to `least` if that is larger."""
    largest = theirs.abs().max().item() if theirs.numel() else 0.0
    torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance * max(largest, least))


def same_bits(a, b):
    """Compare bits; all NaNs are equal."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    same = (a == b) & (a.signbit() == b.signbit())  # +0 == -0
    return bool((same | (a.isnan() & b.isnan())).all())


def run_python(code, *arguments, modules=warm.TORCH, **environment):
    """Run code in a separate process that has imported modules, with arguments and variables; return its output."""
    environment = {**os.environ, **environment}
    return warm.run("-c", code, *arguments, env=environment, check=True, modules=modules).stdout.strip()
