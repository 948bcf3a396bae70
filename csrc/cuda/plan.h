// The corner plan on a GPU: csrc/cpu/plan.h, operation by operation, each rounded separately. The centres are not read
// from a table but computed by the same operations.
#pragma once

#include <cmath>

#include "layout.h"

namespace liif::sm90 {

#if defined(__CUDA_ARCH__)
LIIF_HD float mul(float a, float b) {
    return __fmul_rn(a, b);
}
LIIF_HD float add(float a, float b) {
    return __fadd_rn(a, b);
}
LIIF_HD float div(float a, float b) {
    return __fdiv_rn(a, b);
}
#else  // compiled with -ffp-contract=off
LIIF_HD float mul(float a, float b) {
    return a * b;
}
LIIF_HD float add(float a, float b) {
    return a + b;
}
LIIF_HD float div(float a, float b) {
    return a / b;
}
#endif

// Pixel centres of a grid of n: fl(fl(step * i) + first).
struct Centres {
    float step, first;
    LIIF_HD float operator()(int i) const { return add(mul(step, static_cast<float>(i)), first); }
};

inline Centres make_centres(int n) {
    return {static_cast<float>(2.0 / static_cast<double>(n)), static_cast<float>(-1.0 + 1.0 / static_cast<double>(n))};
}

struct Nearest {
    int index;
    float rel;
};

struct Axis {
    int n;
    float size, shift[2];
    Centres centres;

    LIIF_HD Nearest nearest(float coord, int side) const {
        constexpr float low = static_cast<float>(-1 + 1e-6), high = static_cast<float>(1 - 1e-6);
        float c = add(coord, side ? shift[1] : shift[0]);
        c = c < low ? low : (c > high ? high : c);
        c = add(mul(add(c, 1.0f), size), -1.0f);
        const float rounded = rintf(mul(c, 0.5f));  // half to even; c / 2 is exact
        // A NaN compares false and takes latent 0, so no read is outside; its rel makes the output NaN.
        const int index = rounded > 0.0f ? (rounded < size ? static_cast<int>(rounded) : n - 1) : 0;
        return {index, mul(add(coord, -centres(index)), size)};
    }
};

inline Axis make_axis(int n, bool ensemble) {
    const double half = 1.0 / static_cast<double>(n);
    const float back = ensemble ? static_cast<float>(-half + 1e-6) : 0.0f;
    const float forth = ensemble ? static_cast<float>(half + 1e-6) : 0.0f;
    return {n, static_cast<float>(n), {back, forth}, make_centres(n)};
}

struct Corner {
    int row, column;
    float rel_row, rel_column, weight;
};

// Two corners of a query, (row side 0, column side `side`) and (row side 1, the same), and their weights.
LIIF_HD void plan_pair(const Axis& rows, const Axis& columns, float row, float column, int side, Corner (&pair)[2]) {
    const Nearest r[2] = {rows.nearest(row, 0), rows.nearest(row, 1)};
    const Nearest c[2] = {columns.nearest(column, 0), columns.nearest(column, 1)};
    float area[kCorners];
    for (int t = 0; t < kCorners; ++t) area[t] = add(fabsf(mul(r[t / 2].rel, c[t % 2].rel)), 1e-9f);
    const float total = add(add(add(area[0], area[1]), area[2]), area[3]);
    const Nearest mine = side ? c[1] : c[0];
    pair[0] = {r[0].index, mine.index, r[0].rel, mine.rel, div(side ? area[2] : area[3], total)};
    pair[1] = {r[1].index, mine.index, r[1].rel, mine.rel, div(side ? area[0] : area[1], total)};
}

// The nearest latent, weight exactly 1.
LIIF_HD Corner plan_single(const Axis& rows, const Axis& columns, float row, float column) {
    const Nearest r = rows.nearest(row, 0), c = columns.nearest(column, 0);
    return {r.index, c.index, r.rel, c.rel, 1.0f};
}

}  // namespace liif::sm90
