"""Plan the corners of a tile of queries, operation by operation as in liif_fast/coord.py.

Every kernel that uses the plan is launched with enable_fp_fusion=False, because a contracted a*b + c would change areas
that are pure rounding noise. `host.axis` computes the numbers of an axis of n pixels and rounds them to float32 once.
"""

import triton
import triton.language as tl

from .host import divided

LOW = tl.constexpr(-1 + 1e-6)
HIGH = tl.constexpr(1 - 1e-6)
AREA_FLOOR = tl.constexpr(1e-9)
# x + ROUND - ROUND rounds half to even while |x| < 2^22; backends/triton.py refuses longer axes.
ROUND = tl.constexpr(1.5 * 2.0**23)


@triton.jit
def located(start, offset, queries):
    """Return the images of the queries numbered start + offset, and their numbers within them, in 64 bits."""
    whole, more, inside = divided(start, offset, queries)
    return whole + more, inside.to(tl.int64)


@triton.jit
def centre(index, step, origin):
    """Return the centre of pixel `index`: fl(fl(fl(2/n) * i) + fl(-1 + 1/n))."""
    return index.to(tl.float32) * step + origin


@triton.jit
def nearest(coord, moved, n, step, origin):
    """Return, along one axis, the latent nearest to the shifted coordinate, and the query's position relative to it."""
    size = n.to(tl.float32)
    # minimum and maximum drop a NaN, so that the index is valid.
    clamped = tl.minimum(tl.maximum(moved, LOW), HIGH)
    position = ((clamped + 1.0) * size - 1.0) * 0.5
    index = ((position + ROUND) - ROUND).to(tl.int32)
    index = tl.minimum(tl.maximum(index, 0), n - 1)
    return index, (coord - centre(index, step, origin)) * size


@triton.jit
def corners(
    row, column, corner,
    height, row_step, row_origin, row_minus, row_plus,
    width, column_step, column_origin, column_minus, column_plus,
    ENSEMBLE: tl.constexpr,
):  # fmt: skip
    """Return index (y, x), rel (y, x) and weight of corner `corner` (0 to 3) of the queries at (row, column)."""
    if ENSEMBLE:
        y0, rel_y0 = nearest(row, row + row_minus, height, row_step, row_origin)
        y1, rel_y1 = nearest(row, row + row_plus, height, row_step, row_origin)
        x0, rel_x0 = nearest(column, column + column_minus, width, column_step, column_origin)
        x1, rel_x1 = nearest(column, column + column_plus, width, column_step, column_origin)
        area0 = tl.abs(rel_y0 * rel_x0) + AREA_FLOOR
        area1 = tl.abs(rel_y0 * rel_x1) + AREA_FLOOR
        area2 = tl.abs(rel_y1 * rel_x0) + AREA_FLOOR
        area3 = tl.abs(rel_y1 * rel_x1) + AREA_FLOOR
        total = ((area0 + area1) + area2) + area3
        lower, right = corner >= 2, corner % 2 == 1
        opposite = tl.where(lower, tl.where(right, area0, area1), tl.where(right, area2, area3))
        weight = tl.div_rn(opposite, total)
        y, rel_y = tl.where(lower, y1, y0), tl.where(lower, rel_y1, rel_y0)
        x, rel_x = tl.where(right, x1, x0), tl.where(right, rel_x1, rel_x0)
    else:
        y, rel_y = nearest(row, row, height, row_step, row_origin)
        x, rel_x = nearest(column, column, width, column_step, column_origin)
        weight = tl.full(rel_y.shape, 1.0, tl.float32)
    return y, x, rel_y, rel_x, weight
