"""Compute the parts of the fused network, forward and backward: gathered first layer, hidden layers, last layer, blend.

A tile is [ROWS, padded width] activations, held as a tuple of BLOCKS column blocks [ROWS, BLOCK]. A column block of one
layer is a slice of K of the next, so registers are never sliced. All layers run through one rolled loop over
(layer, column block), so that the weights of the next step load while this one multiplies (docs/triton.md).

Saved activations and their gradients are [layer, row, WIDEST] in memory; WIDEST is the width of the widest hidden
layer. A tile's rows are adjacent. Kernels take a layer's number of rows instead of a stride: with WIDEST as a factor,
the compiler knows the alignment of a layer and moves 16 bytes at a time.
"""

import triton
import triton.language as tl

from .host import dot


@triton.jit
def relu(x):
    """Return max(x, 0), passing NaN on as PyTorch does."""
    return tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def columns(block, BLOCK: tl.constexpr):
    """Return the column numbers of column block `block`."""
    return block * BLOCK + tl.arange(0, BLOCK)


@triton.jit
def committed(h, new, block, value, FIRST: tl.constexpr, BLOCKS: tl.constexpr):
    """Put `value` aside in `new` as column block `block` (known at run time); the last block completes the next h.

    Returns h and new. This is a chain of branches, because selects between tensors spill registers.
    """
    if FIRST == BLOCKS - 1:
        h = new + (value,)
    else:
        if block == FIRST:
            new = new[:FIRST] + (value,) + new[FIRST + 1 :]
        else:
            h, new = committed(h, new, block, value, FIRST + 1, BLOCKS)
    return h, new


@triton.jit
def layer_of(memory, layer, rows, WIDEST: tl.constexpr):
    """Return a pointer to a layer of [layers, rows, WIDEST], in 64 bits: 10^6 queries pass 32 in the third layer."""
    return memory + layer * rows.to(tl.int64) * WIDEST


@triton.jit
def keep(memory, count, column, value, ROWS: tl.constexpr, WIDEST: tl.constexpr):
    """Write a column block of the tile's first `count` rows; `memory` points at its first row, [rows, WIDEST]."""
    row = tl.arange(0, ROWS)  # 32-bit offsets from a scalar pointer, because a pointer per row would cost registers
    mask = (row < count)[:, None] & (column < WIDEST)[None, :]
    tl.store(memory + (row[:, None] * WIDEST + column[None, :]), value, mask=mask)


@triton.jit
def first_layer(
    p, latent, valid, rel_y, rel_x, cell_y, cell_x, affine, saved, saved_count,
    WIDTH: tl.constexpr, CELL: tl.constexpr, SAVE: tl.constexpr, WIDEST: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """Return relu(P[latent] + W1c cell + W1r rel) as a tuple of column blocks, in the dtype of P.

    p [latents, WIDTH]; latent int64 [ROWS]; affine float32 [4, padded], the columns of W1 for rel and cell.
    """
    PADDED: tl.constexpr = BLOCK * BLOCKS
    blocks = ()
    for k in tl.static_range(BLOCKS):
        column = columns(k, BLOCK)
        mask = valid[:, None] & (column < WIDTH)[None, :]
        z = tl.load(p + latent[:, None] * WIDTH + column[None, :], mask=mask, other=0.0).to(tl.float32)
        if CELL:
            z += tl.fma(
                tl.load(affine + 3 * PADDED + column)[None, :],
                cell_x[:, None],
                tl.load(affine + 2 * PADDED + column)[None, :] * cell_y[:, None],
            )
        z = tl.fma(tl.load(affine + column)[None, :], rel_y[:, None], z)
        z = tl.fma(tl.load(affine + PADDED + column)[None, :], rel_x[:, None], z)
        h = relu(z).to(p.dtype.element_ty)
        if SAVE:
            keep(saved, saved_count, column, h, ROWS, WIDEST)
        blocks = blocks + (h,)
    return blocks


@triton.jit
def activated(
    z, bias, dtype: tl.constexpr, saved, saved_count,
    SAVE: tl.constexpr, WIDEST: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """Return relu(z + bias) in `dtype`; z is the first layer's product, float32 column blocks; bias [padded]."""
    blocks = ()
    for k in tl.static_range(BLOCKS):
        column = columns(k, BLOCK)
        h = relu(z[k] + tl.load(bias + column)[None, :]).to(dtype)
        if SAVE:
            keep(saved, saved_count, column, h, ROWS, WIDEST)
        blocks = blocks + (h,)
    return blocks


@triton.jit
def product(
    h, at,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Return the activations h times a column block of a weight [padded, padded]; `at` points at its columns."""
    PADDED: tl.constexpr = BLOCK * BLOCKS
    z = tl.zeros((ROWS, BLOCK), tl.float32)
    for k in tl.static_range(BLOCKS):
        z = dot(h[k], tl.load(at + columns(k, BLOCK)[:, None] * PADDED), z, PRECISION)
    return z


@triton.jit
def hidden_layers(
    h, weights, biases, saved, saved_rows, saved_count,
    LAYERS: tl.constexpr, SAVE: tl.constexpr, WIDEST: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Apply h = relu(h W + b) LAYERS times; weights [LAYERS, in, out] in h's dtype, biases float32 [LAYERS, out]."""
    PADDED: tl.constexpr = BLOCK * BLOCKS
    new = h[: BLOCKS - 1]
    for step in tl.range(0, LAYERS * BLOCKS):
        layer, block = step // BLOCKS, step % BLOCKS
        column = columns(block, BLOCK)
        z = product(h, weights + layer * (PADDED * PADDED) + column[None, :], ROWS, BLOCK, BLOCKS, PRECISION)
        z += tl.load(biases + layer * PADDED + column)[None, :]
        value = relu(z).to(h[0].dtype)
        if SAVE:
            keep(layer_of(saved, layer + 1, saved_rows, WIDEST), saved_count, column, value, ROWS, WIDEST)
        h, new = committed(h, new, block, value, 0, BLOCKS)
    return h


@triton.jit
def last_layer(
    h, weight, last, last_bias,
    ROWS: tl.constexpr, CORNERS: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr,
    OUT_PADDED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Return sum_t weight_t (h_t W) + b, float32 [ROWS // CORNERS, OUT_PADDED]; last [hidden, OUT_PADDED].

    The corners are summed after the product, so that only a few outputs cross lanes and h is not rounded again.
    """
    out = tl.arange(0, OUT_PADDED)
    y = tl.zeros((ROWS, OUT_PADDED), tl.float32)
    for k in tl.static_range(BLOCKS):
        y = dot(h[k], tl.load(last + columns(k, BLOCK)[:, None] * OUT_PADDED + out[None, :]), y, PRECISION)
    y *= weight[:, None]
    if CORNERS > 1:
        y = tl.sum(tl.reshape(y, (ROWS // CORNERS, CORNERS, OUT_PADDED)), 1)
    return y + tl.load(last_bias + out)[None, :]


@triton.jit
def masked(g, saved, count, column, ROWS: tl.constexpr, WIDEST: tl.constexpr):
    """Return the gradient g of an activation taken through its ReLU: 0 where the saved activation is 0.

    A NaN lets the gradient pass, as in PyTorch. `saved` points at the tile's first row of the layer.
    """
    row = tl.arange(0, ROWS)
    mask = (row < count)[:, None] & (column < WIDEST)[None, :]
    h = tl.load(saved + (row[:, None] * WIDEST + column[None, :]), mask=mask, other=0.0)
    return tl.where(h.to(tl.float32) <= 0.0, 0.0, g).to(h.dtype)


@triton.jit
def backward_layers(
    dz, weights, saved, saved_rows, grads, grads_rows, count,
    LAYERS: tl.constexpr, LOWEST: tl.constexpr, KEEP: tl.constexpr, WIDEST: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Go from the gradient before the last ReLU down to that before ReLU number LOWEST, and write it to `grads`.

    With KEEP, write the others as well. weights [LAYERS, out, in] are those of `hidden_layers`, transposed.
    """
    PADDED: tl.constexpr = BLOCK * BLOCKS
    new = dz[: BLOCKS - 1]
    for step in tl.range(0, (LAYERS - LOWEST) * BLOCKS):
        layer, block = LAYERS - 1 - step // BLOCKS, step % BLOCKS
        column = columns(block, BLOCK)
        g = product(dz, weights + layer * (PADDED * PADDED) + column[None, :], ROWS, BLOCK, BLOCKS, PRECISION)
        value = masked(g, layer_of(saved, layer, saved_rows, WIDEST), count, column, ROWS, WIDEST)
        if KEEP or layer == LOWEST:
            keep(layer_of(grads, layer, grads_rows, WIDEST), count, column, value, ROWS, WIDEST)
        dz, new = committed(dz, new, block, value, 0, BLOCKS)
