"""Compute the parts of a transformer over the four corners of a query, forward and backward.

A tile is [ROWS, WIDTH] tokens, held as a tuple of column blocks [ROWS, BLOCK] (kernels/network.py). A query's four
corners are adjacent rows. Row t of a query meets the keys of t, t ^ 1, t ^ 2 and t ^ 3 by three exchanges of rows,
which are lanes of one warp.

`weights` [WIDTH + 1, OUTS] holds all linear maps side by side, each [in, out], with their biases in the last row
(`attend_corners.packed`). LayerNorms have no parameters, because they are folded into the maps behind them.

An address is that of a block's first column plus a constant, `at`, so that the constant becomes a part of the
instruction. If it were added to the columns first, each address would take registers of its own.
"""

import triton
import triton.language as tl

from liif_fast.attention import EPSILON

from .host import dot
from .network import keep

EPS = tl.constexpr(EPSILON)
KEPT = tl.constexpr(8)  # widths of a block's activations: q, k, v, heard, between, hidden, active, next
WIDE = tl.constexpr(32)  # most columns of a block of the attention, so that a query's four rows lie in one warp
MAPS = tl.constexpr(6)  # widths of a block's linear maps: out, up, down, and the next block's qkv


@triton.jit
def linear_block(
    x, weights, at,
    WIDTH: tl.constexpr, OUTS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Return BLOCK outputs of a linear map of x: the columns of `weights` from `at` on."""
    column, z = tl.arange(0, BLOCK), tl.zeros((ROWS, BLOCK), tl.float32)
    square = weights + (column[:, None] * OUTS + column[None, :])
    for k in tl.static_range(WIDTH // BLOCK):
        z = dot(x[k], tl.load(square + (k * BLOCK * OUTS + at)), z, PRECISION)
    return z + tl.load(weights + column + (WIDTH * OUTS + at))[None, :]


@triton.jit
def linear(
    x, weights, at,
    WIDTH: tl.constexpr, OUTS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Return the WIDTH outputs of a linear map of x."""
    y = ()
    for n in tl.static_range(WIDTH // BLOCK):
        y = y + (linear_block(x, weights, at + n * BLOCK, WIDTH, OUTS, ROWS, BLOCK, PRECISION),)
    return y


@triton.jit
def back_block(
    x_grad, g, weights, at,
    WIDTH: tl.constexpr, OUTS: tl.constexpr, BLOCK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Return x_grad plus the gradient of a map's input, given g, the gradient of BLOCK of its outputs."""
    column, found = tl.arange(0, BLOCK), ()
    square = weights + (column[None, :] * OUTS + column[:, None])
    for k in tl.static_range(WIDTH // BLOCK):
        found = found + (dot(g, tl.load(square + (k * BLOCK * OUTS + at)), x_grad[k], PRECISION),)
    return found


@triton.jit
def linear_back(
    g, weights, at,
    WIDTH: tl.constexpr, OUTS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Return the gradient of a linear map's input, given g, the gradient of its outputs."""
    x_grad = zeros(WIDTH // BLOCK, ROWS, BLOCK)
    for n in tl.static_range(WIDTH // BLOCK):
        x_grad = back_block(x_grad, g[n], weights, at + n * BLOCK, WIDTH, OUTS, BLOCK, PRECISION)
    return x_grad


@triton.jit
def zeros(COUNT: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Return COUNT blocks of zeros."""
    found = ()
    for _ in tl.static_range(COUNT):
        found = found + (tl.zeros((ROWS, BLOCK), tl.float32),)
    return found


@triton.jit
def added(x, y, BLOCKS: tl.constexpr):
    """Return x + y."""
    found = ()
    for k in tl.static_range(BLOCKS):
        found = found + (x[k] + y[k],)
    return found


@triton.jit
def mean(x, y, BLOCKS: tl.constexpr, WIDTH: tl.constexpr):
    """Return the mean of x y over a token's channels, [ROWS, 1]."""
    total = tl.sum(x[0] * y[0], 1, keep_dims=True)
    for k in tl.static_range(1, BLOCKS):
        total += tl.sum(x[k] * y[k], 1, keep_dims=True)
    return total * (1.0 / WIDTH)


@triton.jit
def channel_mean(x, BLOCKS: tl.constexpr, WIDTH: tl.constexpr):
    """Return the mean of x over a token's channels, [ROWS, 1]."""
    total = tl.sum(x[0], 1, keep_dims=True)
    for k in tl.static_range(1, BLOCKS):
        total += tl.sum(x[k], 1, keep_dims=True)
    return total * (1.0 / WIDTH)


@triton.jit
def norm(x, BLOCKS: tl.constexpr, WIDTH: tl.constexpr):
    """Return the LayerNorm of x, and the scale of the centred x, [ROWS, 1]."""
    middle, centred, y = channel_mean(x, BLOCKS, WIDTH), (), ()
    for k in tl.static_range(BLOCKS):
        centred = centred + (x[k] - middle,)
    scale = tl.rsqrt(mean(centred, centred, BLOCKS, WIDTH) + EPS)
    for k in tl.static_range(BLOCKS):
        y = y + (centred[k] * scale,)
    return y, scale


@triton.jit
def norm_back(x_grad, g, y, scale, BLOCKS: tl.constexpr, WIDTH: tl.constexpr):
    """Return x_grad plus the gradient of a norm's input, given g, the gradient of its output y."""
    middle, along, found = channel_mean(g, BLOCKS, WIDTH), mean(g, y, BLOCKS, WIDTH), ()
    for k in tl.static_range(BLOCKS):
        found = found + (tl.fma(g[k] - middle - y[k] * along, scale, x_grad[k]),)
    return found


@triton.jit
def normal_cdf(x):
    """Return the cumulative normal distribution, the factor of x in gelu, to within 1.4e-7.

    It is the rational function of csrc/cpu/attention_impl.h, because Triton's erf branches within a warp.
    """
    x = tl.minimum(tl.maximum(x, -5.3), 5.3)
    u = x * x
    p = tl.fma(u, 2.4054264e-8, 6.3789557e-6)
    p = tl.fma(u, p, 1.6029806e-4)
    p = tl.fma(u, p, 4.6277777e-3)
    p = tl.fma(u, p, 3.2932077e-2)
    p = tl.fma(u, p, 3.9894226e-1)
    q = tl.fma(u, 1.2372751e-6, 7.1341332e-5)
    q = tl.fma(u, q, 1.8363665e-3)
    q = tl.fma(u, q, 2.8136733e-2)
    q = tl.fma(u, q, 2.4921471e-1)
    q = tl.fma(u, q, 1.0)
    return tl.fma(x, p / q, 0.5)


@triton.jit
def gelu(x, BLOCKS: tl.constexpr):
    """Return gelu of x."""
    y = ()
    for k in tl.static_range(BLOCKS):
        y = y + (x[k] * normal_cdf(x[k]),)
    return y


@triton.jit
def gelu_back(g, x, BLOCKS: tl.constexpr):
    """Return g times the derivative of gelu at x."""
    found = ()
    for k in tl.static_range(BLOCKS):
        density = tl.exp(-0.5 * x[k] * x[k]) * 0.3989422804014327
        found = found + (g[k] * tl.fma(x[k], density, normal_cdf(x[k])),)
    return found


@triton.jit
def exchanged(x, BIT: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Return x with each query's rows t and t ^ BIT exchanged; BIT is 1 or 2."""
    return tl.reshape(tl.flip(tl.reshape(x, (ROWS // 4, 2, 2, BLOCK)), 3 - BIT), (ROWS, BLOCK))


@triton.jit
def shifted(x, BLOCKS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Return four tuples: x itself, and x with row t of a query replaced by its row t ^ 1, t ^ 2 or t ^ 3."""
    one, two, three = (), (), ()
    for k in tl.static_range(BLOCKS):
        one = one + (exchanged(x[k], 1, ROWS, BLOCK),)
        two = two + (exchanged(x[k], 2, ROWS, BLOCK),)
        three = three + (exchanged(one[k], 2, ROWS, BLOCK),)
    return x, one, two, three


@triton.jit
def by_head(one, others, CHANNELS: tl.constexpr, BLOCKS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Return for each of four tuples its products with `one`, summed over the channels of a head, [ROWS, heads]."""
    PART: tl.constexpr = min(CHANNELS, BLOCK)
    found = ()
    for shift in tl.static_range(4):
        total = tl.sum(tl.reshape(one[0] * others[shift][0], (ROWS, BLOCK // PART, PART)), 2)
        for k in tl.static_range(1, BLOCKS):  # several blocks belong to one head
            total += tl.sum(tl.reshape(one[k] * others[shift][k], (ROWS, BLOCK // PART, PART)), 2)
        found = found + (total,)
    return found


@triton.jit
def spread(weight, CHANNELS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Return a number per head, [ROWS, heads], for each channel, [ROWS, BLOCK]."""
    PART: tl.constexpr = min(CHANNELS, BLOCK)
    return tl.reshape(tl.broadcast_to(weight[:, :, None], (ROWS, BLOCK // PART, PART)), (ROWS, BLOCK))


@triton.jit
def scaled(x, CHANNELS: tl.constexpr):
    """Return four tensors times the factor of a head's logits."""
    factor = CHANNELS**-0.5
    return x[0] * factor, x[1] * factor, x[2] * factor, x[3] * factor


@triton.jit
def softmax(x):
    """Return the softmax over four tensors; a NaN in one reaches all."""
    largest = tl.maximum(tl.maximum(x[0], x[1]), tl.maximum(x[2], x[3]))
    a, b, c, d = tl.exp(x[0] - largest), tl.exp(x[1] - largest), tl.exp(x[2] - largest), tl.exp(x[3] - largest)
    share = 1.0 / ((a + b) + (c + d))
    return a * share, b * share, c * share, d * share


@triton.jit
def softmax_back(g, weight):
    """Return the gradients of the inputs of a softmax, given those of its outputs `weight`."""
    total = (g[0] * weight[0] + g[1] * weight[1]) + (g[2] * weight[2] + g[3] * weight[3])
    return (
        weight[0] * (g[0] - total), weight[1] * (g[1] - total), weight[2] * (g[2] - total), weight[3] * (g[3] - total)
    )  # fmt: skip


@triton.jit
def attention(q, k, CHANNELS: tl.constexpr, BLOCKS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Return the weight of each shift, four [ROWS, heads], for the heads of a block or for one head of many blocks."""
    keys = shifted(k, BLOCKS, ROWS, BLOCK)
    return softmax(scaled(by_head(q, keys, CHANNELS, BLOCKS, ROWS, BLOCK), CHANNELS))


@triton.jit
def attention_back(
    g, weight, v,
    CHANNELS: tl.constexpr, BLOCKS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Return the gradients of the products of q and k, given g, the gradient of what `mixed` returns."""
    weight_grad = by_head(g, shifted(v, BLOCKS, ROWS, BLOCK), CHANNELS, BLOCKS, ROWS, BLOCK)
    return scaled(softmax_back(weight_grad, weight), CHANNELS)


@triton.jit
def mixed(weight, x, CHANNELS: tl.constexpr, BLOCKS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Return at row t the sum over shifts of weight times x at row t ^ shift."""
    others, found = shifted(x, BLOCKS, ROWS, BLOCK), ()
    for k in tl.static_range(BLOCKS):
        total = spread(weight[0], CHANNELS, ROWS, BLOCK) * x[k]
        for shift in tl.static_range(1, 4):
            total = tl.fma(spread(weight[shift], CHANNELS, ROWS, BLOCK), others[shift][k], total)
        found = found + (total,)
    return found


@triton.jit
def mixed_back(weight, g, CHANNELS: tl.constexpr, BLOCKS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Return at row t the sum over shifts of weight times g, both at row t ^ shift: the gradient of x in `mixed`."""
    found = ()
    for k in tl.static_range(BLOCKS):
        a = spread(weight[0], CHANNELS, ROWS, BLOCK) * g[k]
        b = spread(weight[1], CHANNELS, ROWS, BLOCK) * g[k]
        c = spread(weight[2], CHANNELS, ROWS, BLOCK) * g[k]
        d = spread(weight[3], CHANNELS, ROWS, BLOCK) * g[k]
        rest = exchanged(c + exchanged(d, 1, ROWS, BLOCK), 2, ROWS, BLOCK)
        found = found + ((a + exchanged(b, 1, ROWS, BLOCK)) + rest,)
    return found


@triton.jit
def keep_all(
    memory, x, at, count,
    BLOCKS: tl.constexpr, STRIDE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write column blocks to the columns from `at` on of the tile's first `count` rows [rows, STRIDE]."""
    for k in tl.static_range(BLOCKS):
        keep(memory + (k * BLOCK + at), count, tl.arange(0, BLOCK), x[k], ROWS, STRIDE)


@triton.jit
def kept(
    memory, at, count,
    BLOCKS: tl.constexpr, STRIDE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Read what `keep_all` has written; rows from `count` on are zeros."""
    row, x = tl.arange(0, ROWS), ()
    where = memory + (row[:, None] * STRIDE + tl.arange(0, BLOCK)[None, :])
    for k in tl.static_range(BLOCKS):
        x = x + (tl.load(where + (k * BLOCK + at), mask=(row < count)[:, None], other=0.0),)
    return x


@triton.jit
def number(rows, by_rel, column, rel_y, rel_x, COLUMNS: tl.constexpr):
    """Return a column of the table, plus by_rel times rel; rows are pointers to the latents' rows."""
    moved = rel_y * tl.load(by_rel + column) + rel_x * tl.load(by_rel + COLUMNS + column)
    return tl.load(rows + column) + moved
