// Checks of the kernels' assumptions. liif_fast.functional has checked its users' arguments by name. These checks also
// protect direct calls of the operators, so that no call reads outside of a tensor.
#pragma once

#include <array>

#include "queries.h"

namespace liif {

inline void check_layers(const std::vector<Tensor>& weights, const std::vector<Tensor>& biases, int64_t in) {
    STD_TORCH_CHECK(!weights.empty() && weights.size() == biases.size(),
                    "liif_fast: weights and biases must have the same length, at least 1");
    for (size_t i = 0; i < weights.size(); ++i) {
        const Tensor &w = weights[i], &b = biases[i];
        STD_TORCH_CHECK(w.dim() == 2 && w.size(1) == in && b.dim() == 1 && b.size(0) == w.size(0),
                        "liif_fast: the layers' weights [out, in] and biases [out] do not fit together");
        in = w.size(0);
    }
}

inline void check_decoder(const Tensor& p, const std::optional<Tensor>& cell, const std::vector<Tensor>& weights,
                          const std::vector<Tensor>& biases) {
    STD_TORCH_CHECK(p.dim() == 4 && p.is_contiguous(), "liif_fast: p must be [B, h, w, channels], contiguous");
    STD_TORCH_CHECK(!weights.empty() && weights[0].dim() == 2 && weights[0].size(0) == p.size(3) &&
                        weights[0].size(1) >= (cell ? 4 : 2),
                    "liif_fast: p must have as many channels as the first layer has outputs");
    check_layers(weights, biases, weights[0].size(1));
    STD_TORCH_CHECK(!cell || (cell->size(0) == p.size(0) && cell->size(cell->dim() - 1) == 2),
                    "liif_fast: cell must be [B, 2] or [B, Q, 2]");
}

inline void check_coord(const Tensor& coord, const std::optional<Tensor>& cell, int64_t images) {
    STD_TORCH_CHECK(coord.dim() == 3 && coord.size(0) == images && coord.size(2) == 2,
                    "liif_fast: coord must be [B, Q, 2]");
    STD_TORCH_CHECK(
        !cell || (cell->dim() == 3 && cell->size(0) == images && cell->size(1) == coord.size(1) && cell->size(2) == 2),
        "liif_fast: cell must be as coord");
}

// The part of a map that p is: (top, left, map_height, map_width).
inline void check_place(const std::vector<int64_t>& place, const Tensor& p) {
    STD_TORCH_CHECK(place.size() == 4 && place[0] >= 0 && place[1] >= 0 && place[0] + p.size(1) <= place[2] &&
                        place[1] + p.size(2) <= place[3],
                    "liif_fast: place must be (top, left, map_height, map_width) of a map that holds p");
}

// No query may read a latent outside of the part of the map that p holds.
inline void check_inside(const CoordQueries& queries, int64_t count, int corners, const std::vector<int64_t>& place,
                         const Tensor& p) {
    if (place[2] == p.size(1) && place[3] == p.size(2)) return;
    std::atomic<bool> outside{false};
    torch::stable::parallel_for(0, count, 1024, [&](int64_t begin, int64_t end) {
        Corner corner[4];
        for (int64_t q = begin; q < end; ++q) {
            queries(q, corner);
            for (int t = 0; t < corners; ++t) {
                const int64_t row = corner[t].row - place[0], column = corner[t].column - place[1];
                if (row < 0 || row >= p.size(1) || column < 0 || column >= p.size(2)) outside = true;
            }
        }
    });
    STD_TORCH_CHECK(!outside, "liif_fast: a query reads latents outside of p's part of the map");
}

// The two windows of a render's grid: the part of the map that p holds, and the requested part of the output.
inline std::array<Window, 2> read_grid(const std::vector<int64_t>& grid, const Tensor& p) {
    STD_TORCH_CHECK(grid.size() == 10, "liif_fast: grid must be ten integers");
    const std::array<Window, 2> windows{{{grid[0], grid[1], grid[2], grid[3], p.size(1), p.size(2)},
                                         {grid[4], grid[5], grid[6], grid[7], grid[8], grid[9]}}};
    for (const Window& w : windows) {
        STD_TORCH_CHECK(w.top >= 0 && w.left >= 0 && w.height >= 0 && w.width >= 0 &&
                            w.top + w.height <= w.full_height && w.left + w.width <= w.full_width,
                        "liif_fast: a window lies outside of its grid");
    }
    return windows;
}

// The shape of the activations that a pass over `count` queries (or rows, with one corner) saves.
inline void check_saved_shape(const std::vector<int64_t>& saved, int64_t count, int corners) {
    STD_TORCH_CHECK(saved.size() == 2 && saved[0] >= 0 && saved[0] % corners == 0 && saved[0] / corners <= count,
                    "liif_fast: saved must be [rows, width], of at most as many rows as there are");
}

inline void check_rows(const Tensor& x, const std::vector<Tensor>& weights, const std::vector<Tensor>& biases) {
    STD_TORCH_CHECK(x.dim() == 2 && (x.stride(1) == 1 || x.size(1) == 1),
                    "liif_fast: x must be [N, in], each row contiguous");
    check_layers(weights, biases, x.size(1));
}

inline void check_gradient(const Tensor& grad, const std::vector<int64_t>& shape) {
    bool fits = grad.dim() == static_cast<int64_t>(shape.size());
    for (size_t i = 0; fits && i < shape.size(); ++i) fits = grad.size(static_cast<int64_t>(i)) == shape[i];
    STD_TORCH_CHECK(fits, "liif_fast: grad must have the output's shape");
}

inline void check_gradient(const Tensor& grad, const std::vector<int64_t>& shape, const Tensor& saved, int64_t rows) {
    check_gradient(grad, shape);
    STD_TORCH_CHECK(saved.dim() == 2 && saved.is_contiguous() && saved.size(0) <= rows,
                    "liif_fast: saved must be the tensor that the forward pass returned");
}

// To be called once the network's shape is known.
inline void check_saved_width(int64_t rows, int64_t given, int64_t width) {
    STD_TORCH_CHECK(rows == 0 || given == width, "liif_fast: saved must be ", width, " wide");
}

}  // namespace liif
