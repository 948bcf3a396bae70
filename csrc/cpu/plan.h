// The corner plan: the latents that a query reads, its position relative to each, and their weights.
//
// The float32 operations and their order are a contract with trained checkpoints (docs/semantics.md): at odd scales a
// query lies exactly on the edge between two latents and the areas are rounding noise. So one fused multiply-add or one
// algebraically equal formula changes pixels. This header is compiled without contraction.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#if defined(_MSC_VER)
#pragma fp_contract(off)
#elif defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#endif

namespace liif {

// One axis of a regular grid: pixel i lies at step * i + origin, rounded after each operation.
struct Lattice {
    float step, origin;

    static Lattice of(int64_t n) {  // n pixels over [-1, 1], as make_coord returns them
        return {static_cast<float>(2.0 / static_cast<double>(n)),
                static_cast<float>(-1.0 + 1.0 / static_cast<double>(n))};
    }
    float operator()(int64_t i) const {
        const float offset = step * static_cast<float>(i);
        return offset + origin;
    }
};

inline std::vector<float> grid_centres(int64_t n) {
    const Lattice lattice = Lattice::of(n);
    std::vector<float> centres(static_cast<size_t>(n));
    for (int64_t i = 0; i < n; ++i) centres[static_cast<size_t>(i)] = lattice(i);
    return centres;
}

struct Nearest {
    int64_t index;
    float rel;
};

// One axis of the latent grid. Side 0 is towards -1 and side 1 towards +1; without an ensemble there is one side and no
// shift.
class Axis {
   public:
    Axis(int64_t n, bool ensemble) : n_(n), size_(static_cast<float>(n)), centres_(grid_centres(n)) {
        const double half = 1.0 / static_cast<double>(n);
        shift_[0] = ensemble ? static_cast<float>(-half + 1e-6) : 0.0f;
        shift_[1] = ensemble ? static_cast<float>(half + 1e-6) : 0.0f;
    }

    Nearest nearest(float coord, int side) const {
        constexpr float low = static_cast<float>(-1 + 1e-6), high = static_cast<float>(1 - 1e-6);
        float c = coord + shift_[side];
        c = c < low ? low : (c > high ? high : c);
        c = c + 1.0f;
        c = c * size_;
        c = c - 1.0f;
        const float rounded = std::nearbyint(c / 2.0f);  // half to even, as round() in PyTorch
        // A NaN compares false and takes latent 0, so no read is outside; its rel makes the output NaN.
        const int64_t last = n_ - 1;
        const int64_t index = rounded > 0.0f ? (rounded < size_ ? static_cast<int64_t>(rounded) : last) : 0;
        const float distance = coord - centres_[static_cast<size_t>(index)];
        return {index, distance * size_};
    }

    float size() const { return size_; }
    int64_t length() const { return n_; }

   private:
    int64_t n_;
    float size_;
    float shift_[2];
    std::vector<float> centres_;
};

struct Corner {
    int64_t row, column;
    float rel_row, rel_column, weight;
};

// Combines the nearest latents of both axes: corners in the order 00, 01, 10, 11, each weighted by the area of the
// rectangle diagonally opposite.
inline void ensemble(const Nearest (&rows)[2], const Nearest (&columns)[2], Corner* corner) {
    float area[4];
    for (int t = 0; t < 4; ++t) {
        const Nearest &r = rows[t / 2], &c = columns[t % 2];
        const float product = r.rel * c.rel;
        area[t] = std::fabs(product) + 1e-9f;
        corner[t] = {r.index, c.index, r.rel, c.rel, 0.0f};
    }
    const float total = ((area[0] + area[1]) + area[2]) + area[3];
    for (int t = 0; t < 4; ++t) corner[t].weight = area[3 - t] / total;
}

// The plan of one query: 4 corners, or 1 of weight exactly 1.
inline void plan_query(const Axis& rows, const Axis& columns, float row, float column, int corners, Corner* corner) {
    if (corners == 1) {
        const Nearest r = rows.nearest(row, 0), c = columns.nearest(column, 0);
        corner[0] = {r.index, c.index, r.rel, c.rel, 1.0f};
        return;
    }
    const Nearest r[2] = {rows.nearest(row, 0), rows.nearest(row, 1)};
    const Nearest c[2] = {columns.nearest(column, 0), columns.nearest(column, 1)};
    ensemble(r, c, corner);
}

}  // namespace liif
