"""Terms that ReLU has made 0 are left out. The bits do not depend on which, nor on which rows were neighbours."""

import pytest
import torch
from torch.nn.functional import interpolate

from liif_fast import functional, make_cell, make_coord

from .support import CPU_DTYPES, CPU_KERNELS, DEFAULT, in_dim, make_layers, same_bits

pytestmark = CPU_KERNELS
DTYPES = pytest.mark.parametrize("dtype", CPU_DTYPES)
ROWS, INS = 500, 40
# Panels of columns in pairs and alone; depths of whole and of broken vectors and pairs; rows in one block of steps and
# in several; more terms than are looked for
HIDDEN = [(70, 34, 96), (33, 17, 64), (300, 201), (600, 32)]
SIZES = (32, INS), (32, 32), (3, 32)  # of weights


def alike(generator):
    """Return rows in runs that differ little, so that ReLU makes the same channels 0."""
    runs = torch.randn(ROWS // 20, INS, generator=generator, dtype=torch.float64).repeat_interleave(20, 0)
    return runs + 0.02 * torch.randn(ROWS, INS, generator=generator, dtype=torch.float64)


def make(dtype, hidden=HIDDEN[0]):
    generator = torch.Generator().manual_seed(0)
    return alike(generator).to(dtype), *make_layers((INS, *hidden, 3), generator, dtype), generator


@DTYPES
@pytest.mark.parametrize("hidden", HIDDEN)
def test_order_of_rows(dtype, hidden, threads, nan_empty, poison):
    """Few terms are left in rows that are alike, and most are left in the same rows shuffled."""
    threads(1)
    poison(dtype)
    x, weights, biases, generator = make(dtype, hidden)
    whole = functional.fused_mlp(x, weights, biases, backend="cpu")
    order = torch.randperm(ROWS, generator=generator)
    assert same_bits(functional.fused_mlp(x[order], weights, biases, backend="cpu"), whole[order])
    plain = functional.fused_mlp(x.double(), [w.double() for w in weights], [b.double() for b in biases])
    assert torch.allclose(whole.double(), plain, atol=0.05 if dtype == torch.bfloat16 else 1e-5)


@DTYPES
def test_order_of_queries(dtype):
    """Neighbouring queries of a smooth map are alike; decode them row by row and in any order."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(1, 4, 3, 4, generator=generator, dtype=torch.float64)
    feat = interpolate(coarse, (24, 20), mode="bicubic").to(dtype)
    weights, biases = make_layers((in_dim(4, DEFAULT), 64, 48, 33, 3), generator, dtype)
    whole = functional.liif_render(feat, (61, 50), weights, biases, backend="cpu").flatten(2).transpose(1, 2)
    coord, cell = make_coord((61, 50))[None], make_cell((61, 50))[None]
    order = torch.randperm(coord.shape[1], generator=generator)
    shuffled = functional.liif_decode(feat, coord[:, order], cell[:, order], weights, biases, backend="cpu")
    assert same_bits(shuffled, whole[:, order])


def gradients(x, weights, biases, backend="cpu", grad=None):
    leaves = [each.detach().clone().requires_grad_() for each in (x, *weights, *biases)]
    count = len(weights)
    out = functional.fused_mlp(leaves[0], leaves[1 : 1 + count], leaves[1 + count :], backend=backend)
    return torch.autograd.grad(out, leaves, torch.ones_like(out) if grad is None else grad)


@DTYPES
@pytest.mark.parametrize("hidden", HIDDEN)
def test_order_of_rows_in_gradients(dtype, hidden, threads, nan_empty):
    """A row's gradient does not depend on its neighbours."""
    threads(1)
    x, weights, biases, generator = make(dtype, hidden)
    grad = torch.randn(ROWS, 3, generator=generator, dtype=torch.float64).to(x.dtype)
    whole = gradients(x, weights, biases, grad=grad)[0]
    order = torch.randperm(ROWS, generator=generator)
    assert same_bits(gradients(x[order], weights, biases, grad=grad[order])[0], whole[order])


@DTYPES
@pytest.mark.parametrize("share", [0.1, 0.5, 0.7, 1.0])
@pytest.mark.parametrize("hidden", [(64, 96), (70, 33)])
def test_integers(dtype, share, hidden, threads):
    """Integers, whose sums are exact, with few zeros in a layer and many."""
    threads(1)
    generator = torch.Generator().manual_seed(0)
    few = torch.bfloat16 == dtype  # 8 bits

    def whole(*shape, most=1 if few else 3):
        return torch.randint(-most, most + 1, shape, generator=generator).to(dtype)

    x, widths = whole(ROWS, 4 if few else INS), (4 if few else INS, *hidden)
    weights = [whole(n, k) for k, n in zip(widths, hidden, strict=False)]
    if few:  # three terms an output, so that activations have few bits
        weights = [w * (torch.rand(w.shape, generator=generator) < 3 / w.shape[1]) for w in weights]
    weights.append(whole(3, hidden[-1]))
    biases = [torch.full(w.shape[:1], 0, dtype=dtype) for w in weights]
    for bias in biases[:-1]:
        bias[torch.rand(bias.shape, generator=generator) > share] = -100
    ours, plain = (gradients(x, weights, biases, backend) for backend in ("cpu", "reference"))
    assert all(torch.equal(a, b) for a, b in zip(ours, plain, strict=True))


@DTYPES
@pytest.mark.parametrize("layer", [0, 1])
def test_gradients_of_rows_that_are_not_finite(dtype, layer, threads):
    """A gradient of 0 times an infinite activation is NaN, in the same weights as in PyTorch."""
    threads(1)
    x, weights, biases, _ = make(dtype)
    if layer == 0:
        x[100, 3] = float("inf")
        weights[0][:, 3] = weights[0][:, 3].abs() * torch.tensor([1, -1], dtype=dtype).repeat(35)
    else:
        x[:, 3] = 0
        x[100, 3] = torch.finfo(dtype).max
        weights[0][5, 3] = 16  # channel 5 of h[0] is infinite
    for ours, plain in zip(*(gradients(x, weights, biases, each) for each in ("cpu", "reference")), strict=True):
        assert torch.equal(ours.isfinite(), plain.isfinite())


@DTYPES
def test_gradients_of_weights_that_are_not_finite(dtype, threads):
    """Minus infinity leaves 0 behind the ReLU, and its gradient of 0 times minus infinity is NaN."""
    threads(1)
    x, weights, biases, _ = make(dtype)
    biases[0].fill_(100)
    weights[1][5, 7] = -float("inf")
    for ours, plain in zip(*(gradients(x, weights, biases, each) for each in ("cpu", "reference")), strict=True):
        assert torch.equal(ours.isfinite(), plain.isfinite())


@DTYPES
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_weights_that_are_not_finite(dtype, value):
    """0 times infinity is NaN, so a channel that is 0 everywhere counts."""
    x, weights, biases, _ = make(dtype)
    weights[0][7], biases[0][7] = 0, -1
    weights[1][5, 7] = value
    assert functional.fused_mlp(x, weights, biases, backend="cpu").isnan().all()


@DTYPES
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_rows_that_are_not_finite(dtype, value):
    """Rows that are not finite change no other row."""
    x, weights, biases, _ = make(dtype)
    clean = functional.fused_mlp(x, weights, biases, backend="cpu")
    x[100, 3] = value
    out = functional.fused_mlp(x, weights, biases, backend="cpu")
    assert not out[100].isfinite().all()
    clean[100] = out[100]
    assert same_bits(out, clean)


@DTYPES
def test_no_terms(dtype, threads):
    """Rows of zeros give the next layer's bias, also one so small that bfloat16 products take it for 0."""
    threads(1)
    x, weights, biases, _ = make(dtype, (32, 64))
    biases[0].fill_(-100)
    biases[1].fill_(1e-39)
    weights[2].fill_(1e38)
    whole = functional.fused_mlp(x, weights, biases, backend="cpu")
    for rows in (1, 5, 11):  # multiplied with all terms, at least the last of them
        assert same_bits(functional.fused_mlp(x[:rows], weights, biases, backend="cpu"), whole[:rows])


@DTYPES
@pytest.mark.parametrize("first", [1, -1])
def test_sign_of_zero(dtype, first, threads):
    """A bias of -0 stays -0 without terms, and most terms of 0 make it +0; bfloat16 products keep the first term."""
    threads(1)
    x, weights = torch.ones(144, INS, dtype=dtype), [torch.ones(n, k, dtype=dtype) for n, k in SIZES]
    weights[1][:, 0] = first
    biases = [torch.full(size[:1], -0.0, dtype=dtype) for size in SIZES]
    biases[0].fill_(-100)
    alone = functional.fused_mlp(x[:1], weights, biases, backend="cpu")
    assert same_bits(functional.fused_mlp(x, weights, biases, backend="cpu")[:1], alone)
    x[1:] *= 9  # the other rows have no zeros
    assert same_bits(functional.fused_mlp(x, weights, biases, backend="cpu")[:1], alone)


@DTYPES
def test_sign_of_underflow(dtype, threads):
    """A product too small for its type makes a sum of -0."""
    threads(1)
    small = 1e-30 if dtype != torch.float64 else 1e-300
    x, weights = torch.zeros(144, INS, dtype=dtype), [torch.ones(n, k, dtype=dtype) for n, k in SIZES]
    x[:, 0], weights[1][:, 0] = small, -small
    weights[0].copy_(torch.eye(*SIZES[0]))
    biases = [torch.zeros(32, dtype=dtype), torch.zeros(32, dtype=dtype), torch.full((3,), -0.0, dtype=dtype)]
    alone = functional.fused_mlp(x[:1], weights, biases, backend="cpu")
    assert same_bits(functional.fused_mlp(x, weights, biases, backend="cpu")[:1], alone)
