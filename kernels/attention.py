"""Compute the parts of a transformer over the four corners of a query, forward and backward.

A tile holds one tensor [QUERIES, BLOCK] for each column block and corner: a tuple whose element 4 k + t is block k of
corner t. So attention between the corners of a query is arithmetic between tensors, element by element, and no lane
needs another query's numbers. Every weight is loaded once for the four corners.

`weights` [WIDTH + 1, OUTS] holds all linear maps side by side, each [in, out], with their biases in the last row
(`attend_corners.packed`). LayerNorms have no parameters, because the maps behind them include these.
"""

import triton
import triton.language as tl

from liif_fast.attention import EPSILON

from .host import dot
from .network import columns

EPS = tl.constexpr(EPSILON)


@triton.jit
def linear(
    x, weights, at,
    WIDTH: tl.constexpr, OUTS: tl.constexpr, QUERIES: tl.constexpr, BLOCK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Return the linear map of x whose outputs are the columns of `weights` from `at` on, [WIDTH] of them."""
    y = ()
    for n in tl.static_range(WIDTH // BLOCK):
        y = y + linear_block(x, weights, at + n * BLOCK, WIDTH, OUTS, QUERIES, BLOCK, PRECISION)
    return y


@triton.jit
def linear_block(
    x, weights, at,
    WIDTH: tl.constexpr, OUTS: tl.constexpr, QUERIES: tl.constexpr, BLOCK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Return one column block of `linear`, a tuple of the four corners."""
    column, z = tl.arange(0, BLOCK) + at, zeros(4, QUERIES, BLOCK)
    for k in tl.static_range(WIDTH // BLOCK):
        w = tl.load(weights + (columns(k, BLOCK)[:, None] * OUTS + column[None, :]))
        more = ()
        for t in tl.static_range(4):
            more = more + (dot(x[4 * k + t], w, z[t], PRECISION),)
        z = more
    bias = tl.load(weights + (column + WIDTH * OUTS))[None, :]
    y = ()
    for t in tl.static_range(4):
        y = y + (z[t] + bias,)
    return y


@triton.jit
def back_block(
    g, y, weights, at,
    WIDTH: tl.constexpr, OUTS: tl.constexpr, BLOCK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Add to y the gradients of a map's inputs that come from a column block of its outputs, g (four corners)."""
    row, more = tl.arange(0, BLOCK) + at, ()
    for n in tl.static_range(WIDTH // BLOCK):
        w = tl.load(weights + (columns(n, BLOCK)[None, :] * OUTS + row[:, None]))
        for t in tl.static_range(4):
            more = more + (dot(g[t], w, y[4 * n + t], PRECISION),)
    return more


@triton.jit
def back(
    g, weights, at,
    WIDTH: tl.constexpr, OUTS: tl.constexpr, QUERIES: tl.constexpr, BLOCK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Return the gradients of a linear map's inputs, given those of its outputs."""
    y = zeros(WIDTH // BLOCK * 4, QUERIES, BLOCK)
    for k in tl.static_range(WIDTH // BLOCK):
        y = back_block(g[4 * k : 4 * k + 4], y, weights, at + k * BLOCK, WIDTH, OUTS, BLOCK, PRECISION)
    return y


@triton.jit
def zeros(COUNT: tl.constexpr, QUERIES: tl.constexpr, BLOCK: tl.constexpr):
    """Return a tuple of COUNT tensors of zeros, [QUERIES, BLOCK] each."""
    found = ()
    for _ in tl.static_range(COUNT):
        found = found + (tl.zeros((QUERIES, BLOCK), tl.float32),)
    return found


@triton.jit
def added(a, b, COUNT: tl.constexpr):
    """Return the sum of two tuples of tensors."""
    found = ()
    for i in tl.static_range(COUNT):
        found = found + (a[i] + b[i],)
    return found


@triton.jit
def mean(x, y, t: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Return the mean of x y over the channels of corner t."""
    total = tl.sum(x[t] * y[t], 1)
    for k in tl.static_range(1, WIDTH // BLOCK):
        total += tl.sum(x[4 * k + t] * y[4 * k + t], 1)
    return total * (1.0 / WIDTH)


@triton.jit
def norm(x, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Return the LayerNorm of x, and of each corner what the centred x was multiplied by."""
    BLOCKS: tl.constexpr = WIDTH // BLOCK
    middle, scale = (), ()
    for t in tl.static_range(4):
        total = tl.sum(x[t], 1)
        for k in tl.static_range(1, BLOCKS):
            total += tl.sum(x[4 * k + t], 1)
        middle = middle + (total * (1.0 / WIDTH),)
    centred = ()
    for i in tl.static_range(4 * BLOCKS):
        centred = centred + (x[i] - middle[i % 4][:, None],)
    for t in tl.static_range(4):
        scale = scale + (tl.rsqrt(mean(centred, centred, t, WIDTH, BLOCK) + EPS),)
    y = ()
    for i in tl.static_range(4 * BLOCKS):
        y = y + (centred[i] * scale[i % 4][:, None],)
    return y, scale


@triton.jit
def norm_back(x_grad, g, y, scale, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Return x_grad plus the gradient of a norm's input, given g, that of its output y."""
    BLOCKS: tl.constexpr = WIDTH // BLOCK
    level, along = (), ()
    for t in tl.static_range(4):
        total = tl.sum(g[t], 1)
        for k in tl.static_range(1, BLOCKS):
            total += tl.sum(g[4 * k + t], 1)
        level = level + (total * (1.0 / WIDTH),)
        along = along + (mean(g, y, t, WIDTH, BLOCK),)
    found = ()
    for i in tl.static_range(4 * BLOCKS):
        rest = g[i] - level[i % 4][:, None] - y[i] * along[i % 4][:, None]
        found = found + (tl.fma(rest, scale[i % 4][:, None], x_grad[i]),)
    return found


@triton.jit
def cumulative(x):
    """Return the normal distribution's function, by which gelu multiplies x."""
    return 0.5 + 0.5 * tl.erf(x * 0.7071067811865476)


@triton.jit
def gelu(x, COUNT: tl.constexpr):
    """Return gelu of a tuple of tensors."""
    y = ()
    for i in tl.static_range(COUNT):
        y = y + (x[i] * cumulative(x[i]),)
    return y


@triton.jit
def gelu_back(g, x, COUNT: tl.constexpr):
    """Return g times the derivative of gelu at x."""
    y = ()
    for i in tl.static_range(COUNT):
        density = tl.exp(-0.5 * x[i] * x[i]) * 0.3989422804014327
        y = y + (g[i] * tl.fma(x[i], density, cumulative(x[i])),)
    return y


@triton.jit
def softmax(x):
    """Return the softmax over four tensors; a NaN in one reaches all."""
    largest = tl.maximum(tl.maximum(x[0], x[1]), tl.maximum(x[2], x[3]))
    e = ()
    for t in tl.static_range(4):
        e = e + (tl.exp(x[t] - largest),)
    share = 1.0 / (((e[0] + e[1]) + e[2]) + e[3])
    return e[0] * share, e[1] * share, e[2] * share, e[3] * share


@triton.jit
def softmax_back(g, weight):
    """Return the gradients of the inputs of a softmax, given its outputs and their gradients."""
    total = ((g[0] * weight[0] + g[1] * weight[1]) + g[2] * weight[2]) + g[3] * weight[3]
    found = ()
    for t in tl.static_range(4):
        found = found + (weight[t] * (g[t] - total),)
    return found


@triton.jit
def by_head(a, b, CHANNELS: tl.constexpr, QUERIES: tl.constexpr, BLOCK: tl.constexpr):
    """Return the sums of a b over each head's channels in a block, [QUERIES, heads]."""
    PART: tl.constexpr = min(CHANNELS, BLOCK)
    return tl.sum(tl.reshape(a * b, (QUERIES, BLOCK // PART, PART)), 2)


@triton.jit
def spread(weight, CHANNELS: tl.constexpr, QUERIES: tl.constexpr, BLOCK: tl.constexpr):
    """Return a number per head [QUERIES, heads] for each of the heads' channels, [QUERIES, BLOCK]."""
    PART: tl.constexpr = min(CHANNELS, BLOCK)
    return tl.reshape(tl.broadcast_to(weight[:, :, None], (QUERIES, BLOCK // PART, PART)), (QUERIES, BLOCK))


@triton.jit
def products(one, others, t: tl.constexpr, CHANNELS: tl.constexpr, QUERIES: tl.constexpr, BLOCK: tl.constexpr):
    """Return `by_head` of corner t of one and each corner of the others, over all blocks that a head has."""
    found = ()
    for s in tl.static_range(4):
        total = by_head(one[t], others[s], CHANNELS, QUERIES, BLOCK)
        for k in tl.static_range(1, CHANNELS // BLOCK):
            total += by_head(one[4 * k + t], others[4 * k + s], CHANNELS, QUERIES, BLOCK)
        found = found + (total,)
    return found


@triton.jit
def scaled(x, CHANNELS: tl.constexpr):
    """Return four tensors of logits times the factor of a head."""
    factor: tl.constexpr = CHANNELS**-0.5
    return x[0] * factor, x[1] * factor, x[2] * factor, x[3] * factor


@triton.jit
def mixture(
    weight, x, k: tl.constexpr, CHANNELS: tl.constexpr, QUERIES: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Return the sum over the corners s of weight[s] times block k of x."""
    total = spread(weight[0], CHANNELS, QUERIES, BLOCK) * x[4 * k]
    for s in tl.static_range(1, 4):
        total = tl.fma(spread(weight[s], CHANNELS, QUERIES, BLOCK), x[4 * k + s], total)
    return total


@triton.jit
def attend(q, k, v, CHANNELS: tl.constexpr, QUERIES: tl.constexpr, BLOCK: tl.constexpr):
    """Return what the queries q of every corner mix of the values v of all four: the heads of a block, or one head."""
    BLOCKS: tl.constexpr = max(CHANNELS // BLOCK, 1)
    found, mixed = (), ()
    for t in tl.static_range(4):
        weight = softmax(scaled(products(q, k, t, CHANNELS, QUERIES, BLOCK), CHANNELS))
        for block in tl.static_range(BLOCKS):
            found = found + (mixture(weight, v, block, CHANNELS, QUERIES, BLOCK),)
    for i in tl.static_range(4 * BLOCKS):  # block by block
        mixed = mixed + (found[i % 4 * BLOCKS + i // 4],)
    return mixed


@triton.jit
def attend_back(g, q, k, v, CHANNELS: tl.constexpr, QUERIES: tl.constexpr, BLOCK: tl.constexpr):
    """Return the gradients of q, k and v, given g, those of what `attend` returns."""
    BLOCKS: tl.constexpr = max(CHANNELS // BLOCK, 1)
    k_grad, v_grad = zeros(4 * BLOCKS, QUERIES, BLOCK), zeros(4 * BLOCKS, QUERIES, BLOCK)
    found, q_grad = (), ()
    for t in tl.static_range(4):
        weight = softmax(scaled(products(q, k, t, CHANNELS, QUERIES, BLOCK), CHANNELS))
        logit = scaled(softmax_back(products(g, v, t, CHANNELS, QUERIES, BLOCK), weight), CHANNELS)
        for block in tl.static_range(BLOCKS):
            found = found + (mixture(logit, k, block, CHANNELS, QUERIES, BLOCK),)
        more_k, more_v = (), ()
        for i in tl.static_range(4 * BLOCKS):  # keys and values of corner i % 4, read by corner t
            own = i // 4 * 4 + t
            more_k = more_k + (tl.fma(spread(logit[i % 4], CHANNELS, QUERIES, BLOCK), q[own], k_grad[i]),)
            more_v = more_v + (tl.fma(spread(weight[i % 4], CHANNELS, QUERIES, BLOCK), g[own], v_grad[i]),)
        k_grad, v_grad = more_k, more_v
    for i in tl.static_range(4 * BLOCKS):
        q_grad = q_grad + (found[i % 4 * BLOCKS + i // 4],)
    return q_grad, k_grad, v_grad
