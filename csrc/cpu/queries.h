// Shared by decode.cpp and decode_backward.cpp: the source of queries (a tensor of coordinates, or a regular grid), the
// rows of P that they gather, and the network that decodes them.
#pragma once

#include "network.h"
#include "plan.h"

namespace liif {

struct Window {  // of a full grid
    int64_t full_height, full_width, top, left, height, width;
};

struct Query {
    int64_t batch;
    float cell[2];  // times the latent grid's size, as the network sees it
};

// cell [B, Q, 2] or [B, 2], any strides; it may be absent.
class Cells {
   public:
    Cells(const std::optional<Tensor>& cell, float rows, float columns) : rows_(rows), columns_(columns) {
        if (!cell) return;
        data_ = cell->const_data_ptr<float>();
        step_b_ = cell->stride(0);
        step_q_ = cell->dim() == 3 ? cell->stride(1) : 0;
        step_ = cell->stride(cell->dim() - 1);
    }
    Query query(int64_t b, int64_t q) const {
        if (data_ == nullptr) return {b, {0.0f, 0.0f}};
        const float* at = data_ + b * step_b_ + q * step_q_;
        return {b, {at[0] * rows_, at[step_] * columns_}};
    }

   private:
    const float* data_ = nullptr;
    int64_t step_b_ = 0, step_q_ = 0, step_ = 0;
    float rows_, columns_;
};

class CoordQueries {
   public:
    CoordQueries(const Tensor& coord, const std::optional<Tensor>& cell, int64_t height, int64_t width, bool ensemble)
        : rows_(height, ensemble),
          columns_(width, ensemble),
          cells_(cell, rows_.size(), columns_.size()),
          corners_(ensemble ? 4 : 1),
          per_image_(coord.size(1)),
          coord_(coord.const_data_ptr<float>()),
          step_b_(coord.stride(0)),
          step_q_(coord.stride(1)),
          step_(coord.stride(2)) {}

    Query operator()(int64_t query, Corner* corner) const {
        const int64_t b = query / per_image_, q = query % per_image_;
        const float* at = coord_ + b * step_b_ + q * step_q_;
        plan_query(rows_, columns_, at[0], at[step_], corners_, corner);
        return cells_.query(b, q);
    }

   private:
    Axis rows_, columns_;
    Cells cells_;
    int corners_;
    int64_t per_image_;
    const float* coord_;
    int64_t step_b_, step_q_, step_;
};

// A window of a regular grid. Nearest latents depend on the row and the column separately, so they are found once.
class GridQueries {
   public:
    // `map` is the window of latents that P holds; `grid` is the window of the output; `steps` is empty, or step and
    // origin of the rows and of the columns of a grid that does not cover the whole map.
    GridQueries(const std::optional<Tensor>& cell, const Window& map, const Window& grid,
                const std::vector<double>& steps, bool ensemble)
        : cells_(cell, static_cast<float>(map.full_height), static_cast<float>(map.full_width)),
          ensemble_(ensemble),
          height_(grid.height),
          width_(grid.width),
          rows_(
              table(map.full_height, map.top, map.height, lattice(grid.full_height, steps, 0), grid.top, grid.height)),
          columns_(
              table(map.full_width, map.left, map.width, lattice(grid.full_width, steps, 2), grid.left, grid.width)) {}

    Query operator()(int64_t query, Corner* corner) const {
        const int64_t b = query / (height_ * width_), pixel = query % (height_ * width_);
        const Sides &r = rows_[static_cast<size_t>(pixel / width_)], &c = columns_[static_cast<size_t>(pixel % width_)];
        if (ensemble_) {
            ensemble(r.side, c.side, corner);
        } else {
            corner[0] = {r.side[0].index, c.side[0].index, r.side[0].rel, c.side[0].rel, 1.0f};
        }
        return cells_.query(b, 0);
    }

   private:
    struct Sides {
        Nearest side[2];
    };
    static Lattice lattice(int64_t full, const std::vector<double>& steps, size_t axis) {
        if (steps.empty()) return Lattice::of(full);
        return {static_cast<float>(steps[axis]), static_cast<float>(steps[axis + 1])};
    }
    std::vector<Sides> table(int64_t latents, int64_t held_first, int64_t held, const Lattice& coord, int64_t first,
                             int64_t count) const {
        const Axis axis(latents, ensemble_);
        std::vector<Sides> sides(static_cast<size_t>(count));
        for (int64_t i = 0; i < count; ++i) {
            const float x = coord(first + i);
            sides[static_cast<size_t>(i)] = {{axis.nearest(x, 0), axis.nearest(x, 1)}};
            for (const Nearest& side : sides[static_cast<size_t>(i)].side) {
                STD_TORCH_CHECK(side.index >= held_first && side.index < held_first + held,
                                "liif_fast: the region reads latents outside of p's window");
            }
        }
        return sides;
    }

    Cells cells_;
    bool ensemble_;
    int64_t height_, width_;
    std::vector<Sides> rows_, columns_;
};

// P [B, h, w, channels]: all latents' projections, or a window's, addressed by the whole map's rows and columns.
template <typename T>
class Latents {
   public:
    Latents(const Tensor& p, int64_t top, int64_t left)
        : data_(data<T>(p)),
          top_(top),
          left_(left),
          height_(p.size(1)),
          width_(p.size(2)),
          channels_(p.size(3)),
          images_(p.size(0)) {
        STD_TORCH_CHECK(p.is_contiguous(), "liif_fast: p must be contiguous");
    }
    int64_t index(int64_t b, const Corner& c) const {
        return (b * height_ + (c.row - top_)) * width_ + (c.column - left_);
    }
    const T* row(int64_t index) const { return data_ + index * channels_; }
    const T* row(int64_t b, const Corner& c) const { return row(index(b, c)); }
    int64_t channels() const { return channels_; }
    int64_t count() const { return images_ * height_ * width_; }

   private:
    const T* data_;
    int64_t top_, left_, height_, width_, channels_, images_;
};

// The network behind P: the affine part of layer 0 (rel, and the cell if decoded), then the other layers.
template <typename T>
class DecoderNet : public Network<T> {
   public:
    DecoderNet(const std::vector<Tensor>& weights, const std::vector<Tensor>& biases, int terms, int packs,
               Arena& arena, bool dry)
        : Network<T>(weights[0].size(0), weights, biases, 1, packs, arena, dry),
          terms_(terms),
          affine_row_(this->stride()) {
        Sum<T>* to = arena.take<Sum<T>>(terms * affine_row_);
        affine_ = to;
        if (dry) return;
        const Tensor& w = weights[0];
        const int64_t first = w.size(1) - terms, row = w.stride(0), column = w.stride(1);
        const T* from = data<T>(w);
        for (int j = 0; j < terms; ++j) {
            for (int64_t n = 0; n < w.size(0); ++n) {
                to[j * affine_row_ + n] = convert<Sum<T>>(from[n * row + (first + j) * column]);
            }
        }
    }

    int terms() const { return terms_; }
    const Sum<T>* affine_column(int64_t j) const { return affine_ + j * affine_row_; }  // of the first layer's weight

    // h = p + W1r rel + W1c cell, with ReLU if a layer follows.
    void affine(T* h, const T* p, const Corner& c, const float* cell) const {
        const Sum<T> a[4] = {c.rel_row, c.rel_column, cell[0], cell[1]};
        kernel<T>().affine(h, p, a, terms_, affine_, affine_row_, this->first_out(), this->hidden() > 0);
        if (kDepth<T> > 1 && this->first_out() % kDepth<T> != 0) h[this->first_out()] = T{};  // multiplied by 0
    }

   private:
    int terms_;
    int64_t affine_row_;
    const Sum<T>* affine_;
};

}  // namespace liif
