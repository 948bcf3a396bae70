"""The packing operator equals a packing by numpy after the PTX ISA's tables, byte for byte."""

import numpy as np
import pytest
import torch

from liif_fast import functional
from liif_fast.backends import cpu
from liif_fast.ops import sm90

from ..ops.support import make_layers

assert functional
pytestmark = pytest.mark.skipif(bool(cpu._missing), reason="the packing operator needs the C++ kernels")

# The first product's inputs: a thread (quad q) reads 16 bytes at channel 8 (4 j + q) of P; its four pairs become, in
# turn, the low and the high columns of its fragments of steps 2 j and 2 j + 1.
GATHERED = np.zeros(256, int)
for j in range(8):
    for q in range(4):
        for pair, column in enumerate((0, 8, 16, 24)):
            for odd in range(2):
                GATHERED[32 * j + column + 2 * q + odd] = 8 * (4 * j + q) + 2 * pair + odd


def quads(vector):
    """Return a vector of 256 in the order of the threads, four at a time: columns 2 q, 2 q + 1 of two blocks of 8."""
    return vector.reshape(16, 2, 4, 2).transpose(0, 2, 1, 3).ravel()


def plain_pack(weights, biases, terms, dtype):
    parts = []
    for layer in range(1, len(weights) - 1):
        weight = weights[layer].numpy() if layer > 1 else weights[layer].numpy()[:, GATHERED]
        words = torch.from_numpy(np.ascontiguousarray(weight)).to(dtype).view(torch.int16).numpy()
        for slice_ in range(4):
            pieces = words[:, 64 * slice_ : 64 * slice_ + 64].reshape(256, 8, 8)  # 16 bytes each
            n, piece = np.mgrid[:256, :8]
            parts.append(pieces[n, piece ^ n % 8].tobytes())
            if slice_ == 0:
                parts.append(quads(biases[layer].numpy()).tobytes())
    affine, last, bias = torch.zeros(4, 256), torch.zeros(4, 256), torch.zeros(4)
    affine[:terms] = weights[0][:, -terms:].t()
    last[: len(biases[-1])], bias[: len(biases[-1])] = weights[-1], biases[-1]
    high = affine.to(dtype)
    both = torch.stack([high, (affine - high.float()).to(dtype)], -1)  # term, channel, part
    # Operands B of m16n8k16: lane (q, g) has input rows 2 q ... of column g. Column g is channel 8 (4 j + g // 2) + 2 e
    # + g % 2 of the product (j, e), or output g % 4.
    both = both.reshape(4, 8, 4, 4, 2, 2).permute(1, 2, 4, 0, 3, 5)  # j, g // 2, g % 2, term q, e, part
    last = last.to(dtype).reshape(4, 8, 2, 2, 4, 2).permute(1, 0, 4, 2, 3, 5)  # two steps, output, q, step, half, odd
    parts += [each.contiguous().view(torch.int16).numpy().tobytes() for each in (both, last)]
    return b"".join([*parts, bias.numpy().tobytes()])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("terms", "out_dim", "hidden"), [(4, 3, 4), (2, 1, 2), (4, 4, 6)])
def test_bytes(dtype, terms, out_dim, hidden):
    weights, biases = make_layers((20 + terms, *[256] * hidden, out_dim))
    packed = sm90.pack(weights, biases, terms, dtype == torch.bfloat16)
    assert packed.numpy().tobytes() == plain_pack(weights, biases, terms, dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_other_dtypes_and_layouts(dtype):
    weights, biases = make_layers((24, 256, 256, 256, 3), dtype=dtype)
    strided = [w.t().contiguous().t() for w in weights]
    packed = sm90.pack(strided, biases, 4, dtype == torch.bfloat16)
    wide = [[t.float() for t in ts] for ts in (weights, biases)]
    assert packed.numpy().tobytes() == plain_pack(*wide, 4, dtype)


@pytest.mark.parametrize("widths", [(24, 256, 3), (24, 128, 256, 3), (24, 256, 256, 5), (24, 256, 255, 3)])
def test_other_networks_are_refused(widths):
    with pytest.raises(RuntimeError, match="liif_fast: "):
        sm90.pack(*make_layers(widths), 4, False)


def test_float64_is_refused():
    with pytest.raises(RuntimeError, match="float32, float16 or bfloat16"):
        sm90.pack(*make_layers((24, 256, 256, 3), dtype=torch.float64), 4, False)
