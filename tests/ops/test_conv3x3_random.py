"""Compare `conv3x3` with float64 on random configurations: sizes, layouts, options, residual blocks, wanted gradients.

A failure prints the line that repeats it, as in test_random.py.
"""

import random

import pytest
import torch

from liif_fast.backends import cpu
from liif_fast.ops.conv3x3 import convolve3x3, plain, plain_residual, residual3x3

from .test_conv3x3 import LARGEST, NORM, errors
from .test_random import CONFIGS, FIRST

pytestmark = pytest.mark.skipif(bool(cpu._missing), reason="the C++ kernels are not built")

SEEDS = range(FIRST, FIRST + max(1, CONFIGS // 8))
# Those of test_conv3x3.py, and half as much more for more channels, whose errors vary more from map to map.
LIMITS = {torch.float32: (1.5 * NORM, 1.5 * LARGEST), torch.float64: (1e-13, 1e-13)}


class Config:
    """One configuration, drawn from its seed."""

    def __init__(self, seed):
        rng = self.rng = random.Random(seed)
        self.dtype = torch.float64 if rng.random() < 0.2 else torch.float32
        self.batch = rng.choice((1, 1, 2, 3))
        self.ins, self.outs = (rng.choice((1, 3, 16, 64, 65, rng.randint(1, 140))) for _ in range(2))
        self.height, self.width = (rng.choice((1, 2, 4, 5, 13, rng.randint(1, 30))) for _ in range(2))
        self.wrap, self.relu = (rng.random() < 0.5 for _ in range(2))
        self.threads = rng.choice((1, 2, 3, 8))
        # Of x, weight, bias, and of the addend or the second weight and bias
        self.residual = rng.random() < 0.3
        self.has = [True, True, rng.random() < 0.7, self.residual or rng.random() < 0.5]
        if self.residual:  # in float64, where no sign of a hidden pixel is rounding noise
            self.dtype, self.has = torch.float64, [*self.has, rng.random() < 0.7]
        self.wanted = [has and rng.random() < 0.7 for has in self.has]
        self.wanted[rng.randrange(2)] = True

    def tensors(self):
        """Draw the inputs and the gradient at the output; an input that the configuration lacks is None."""
        generator = torch.Generator().manual_seed(self.rng.randrange(2**32))
        ins, outs = ((self.batch, channels, self.height, self.width) for channels in (self.ins, self.outs))
        last = [(self.ins, self.outs, 3, 3), (self.ins,), ins] if self.residual else [outs, outs]
        shapes = [ins, (self.outs, self.ins, 3, 3), (self.outs,), *last]
        made = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
        for weight in made[1:4:2] if self.residual else made[1:2]:
            weight *= (9 * weight.shape[1]) ** -0.5
        if self.relu:
            made[2] += 1.0
        *inputs, grad = (each.to(self.dtype) for each in made)
        return [each if has else None for each, has in zip(inputs, self.has, strict=True)], grad

    def lay_out(self, tensor):
        """Return the same values in another memory layout, sometimes with NaN all around."""
        if tensor is None:
            return None
        kind = self.rng.choice(("contiguous", "channels_last", "channels_last padded", "strided"))
        if kind == "strided":
            around = tensor.new_full((*tensor.shape, 2), float("nan"))
            around[..., 0] = tensor
            return around[..., 0]
        if not kind.startswith("channels_last") or tensor.ndim != 4:
            return tensor.clone()
        tensor = tensor.permute(0, 2, 3, 1).contiguous()
        if kind.endswith("padded"):
            around = tensor.new_full([n + 3 for n in tensor.shape], float("nan"))
            inside = tuple(slice(1, n + 1) for n in tensor.shape)
            around[inside] = tensor
            tensor = around[inside]
        return tensor.permute(0, 3, 1, 2)

    def run(self, ours, inputs, grad):
        """Return the output and the wanted gradients, in the order of the inputs."""
        pairs = zip(inputs, self.wanted, strict=True)
        inputs = [each if each is None else each.detach().requires_grad_(wanted) for each, wanted in pairs]
        if self.residual:
            out = (residual3x3 if ours else plain_residual)(*inputs, self.wrap)
        else:
            out = (convolve3x3 if ours else plain)(*inputs, self.wrap, self.relu)
        asked = [each for each, wanted in zip(inputs, self.wanted, strict=True) if wanted]
        return [out.detach(), *torch.autograd.grad(out, asked, grad)]


def poison(dtype):
    """Fill the kernel's scratch memory with NaN, forward and backward."""
    x = torch.full((1, 140, 13, 17), float("nan"), dtype=dtype).contiguous(memory_format=torch.channels_last)
    weight, bias = torch.full((140, 140, 3, 3), float("nan"), dtype=dtype), torch.zeros(140, dtype=dtype)
    leaves = [each.requires_grad_() for each in (x, weight, bias)]
    torch.autograd.grad(convolve3x3(*leaves, None, False, True).sum(), leaves)


@pytest.mark.parametrize("seed", SEEDS)
def test_random(seed, nan_empty, threads):
    config = Config(seed)
    inputs, grad = config.tensors()
    doubles = [each if each is None else each.double() for each in inputs]
    if config.relu and not config.residual:  # gradients must not depend on the sign of rounding noise
        grad = grad.masked_fill(plain(*doubles, config.wrap, False).abs() < 1e-4, 0.0)
    expected = config.run(False, doubles, grad.double())
    laid_out, laid_out_grad = [*map(config.lay_out, inputs)], config.lay_out(grad)
    threads(config.threads)
    if seed % 4 == 0:
        poison(config.dtype)
    again = f"LIIF_FAST_TEST_SEED={seed} LIIF_FAST_TEST_CONFIGS=1 python -m pytest {__file__}\n{vars(config)}"
    found = config.run(True, laid_out, laid_out_grad)
    for got, right in zip(found, expected, strict=True):
        assert got.shape == right.shape and got.dtype == config.dtype, again
        off = errors(got, right) if right.any() else (got.abs().max().item(),) * 2
        assert all(error <= limit for error, limit in zip(off, LIMITS[config.dtype], strict=True)), (off, again)
    repeated = config.run(True, inputs, grad)  # in other layouts, and in scratch memory that was used
    assert all(map(torch.equal, found, repeated)), again
