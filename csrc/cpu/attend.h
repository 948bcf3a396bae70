// A transformer over the four corners of a query, tile by tile; shared by attend.cpp and attend_backward.cpp.
//
// Activations are held channel by channel, a tile's tokens side by side: norms, softmaxes and products of heads are
// then plain loops over vectors of tokens. Weights are [out, in + 1] with the bias as the last column, for which the
// input has a row of ones; norms have none of their own (liif_fast/backends/attention.py folds them into what follows).
#pragma once

#include "network.h"
#include "plan.h"

namespace liif {

struct Spot {  // a corner: the row of the table of latents, and where the query lies from it
    int64_t latent;
    float rel[2];
};

// From coordinates. With `wrap` the columns are a circle, as if one more were at either side.
class CoordSpots {
   public:
    CoordSpots(const Tensor& coord, int64_t height, int64_t width, bool wrap)
        : rows_(height, true),
          columns_(wrap ? width + 2 : width, true),
          wrap_(wrap),
          height_(height),
          width_(width),
          per_image_(coord.size(1)),
          coord_(coord.const_data_ptr<float>()),
          step_b_(coord.stride(0)),
          step_q_(coord.stride(1)),
          step_(coord.stride(2)),
          inner_(static_cast<float>(static_cast<double>(width) / static_cast<double>(width + 2))) {}

    void operator()(int64_t query, Spot* spot) const {
        const int64_t b = query / per_image_, q = query % per_image_;
        const float* at = coord_ + b * step_b_ + q * step_q_;
        const float row = at[0], column = wrap_ ? at[step_] * inner_ : at[step_];
        const Nearest r[2] = {rows_.nearest(row, 0), rows_.nearest(row, 1)};
        const Nearest c[2] = {columns_.nearest(column, 0), columns_.nearest(column, 1)};
        for (int t = 0; t < 4; ++t) {
            const Nearest &i = r[t / 2], &j = c[t % 2];
            const int64_t index = wrap_ ? (j.index + width_ - 1) % width_ : j.index;
            spot[t] = {(b * height_ + i.index) * width_ + index, {i.rel, j.rel}};
        }
    }

   private:
    Axis rows_, columns_;
    bool wrap_;
    int64_t height_, width_, per_image_;
    const float* coord_;
    int64_t step_b_, step_q_, step_;
    float inner_;
};

// From a plan: at [B or 1, Q, 4], rel [B or 1, Q, 4, 2].
class PlannedSpots {
   public:
    PlannedSpots(const Tensor& at, const Tensor& rel, int64_t latents)
        : at_(at.const_data_ptr<int64_t>()),
          rel_(rel.const_data_ptr<float>()),
          latents_(latents),
          per_image_(at.size(1)),
          shared_(at.size(0) == 1) {
        for (int64_t i = 0; i < at.size(0) * per_image_ * 4; ++i) {
            STD_TORCH_CHECK(at_[i] >= 0 && at_[i] < latents, "liif_fast: at must be positions of the map");
        }
    }

    void operator()(int64_t query, Spot* spot) const {
        const int64_t b = query / per_image_, from = (shared_ ? query % per_image_ : query) * 4;
        for (int64_t t = 0; t < 4; ++t) {
            const float* rel = rel_ + (from + t) * 2;
            spot[t] = {b * latents_ + at_[from + t], {rel[0], rel[1]}};
        }
    }

   private:
    const int64_t* at_;
    const float* rel_;
    int64_t latents_, per_image_;
    bool shared_;
};

// Calls f with the spots of `queries`, which are [coord] or [at, rel]; shape is (B, H, W).
template <typename F>
auto with_spots(const std::vector<Tensor>& queries, const std::vector<int64_t>& shape, bool wrap, const F& f) {
    if (queries.size() == 1) return f(CoordSpots(queries[0], shape[1], shape[2], wrap));
    return f(PlannedSpots(queries[0], queries[1], shape[1] * shape[2]));
}

inline void check_attend(const Tensor& table, const Tensor& by_rel, const std::vector<Tensor>& layers,
                         const std::vector<Tensor>& queries, const std::vector<int64_t>& shape, int64_t heads) {
    STD_TORCH_CHECK(shape.size() == 3 && shape[0] >= 0 && shape[1] > 0 && shape[2] > 0 && table.dim() == 2 &&
                        table.is_contiguous() && table.size(0) == shape[0] * shape[1] * shape[2],
                    "liif_fast: table must be [B * H * W, columns], contiguous");
    STD_TORCH_CHECK(
        by_rel.dim() == 2 && by_rel.size(0) == 3 && by_rel.size(1) == table.size(1) && by_rel.is_contiguous(),
        "liif_fast: by_rel must be [3, columns], contiguous");
    const int64_t width = layers.empty() ? 0 : layers[0].size(0), least = layers.empty() ? 4 : 4 * width + 3;
    STD_TORCH_CHECK(layers.size() % 4 == 0 && table.size(1) >= least && heads > 0 && width % heads == 0,
                    "liif_fast: the layers, the heads and the columns of table do not fit together");
    for (size_t i = 0; i < layers.size(); ++i) {  // out, up, down, qkv, out, ..., down, head
        const size_t kind = i % 4;
        const bool last = i + 1 == layers.size();
        const int64_t hidden = layers[i - (kind == 2 ? 1 : 0)].size(0);
        const int64_t out = kind == 1 ? hidden : kind == 3 ? (last ? 1 : 3 * width) : width;
        STD_TORCH_CHECK(layers[i].dim() == 2 && layers[i].is_contiguous() && layers[i].size(0) == out &&
                            layers[i].size(1) == (kind == 2 ? hidden : width) + 1,
                        "liif_fast: the layers must be contiguous [out, in + 1] that follow each other");
    }
    const int64_t images = queries.empty() ? -1 : queries[0].size(0);
    if (queries.size() == 1) {
        STD_TORCH_CHECK(queries[0].dim() == 3 && images == shape[0] && queries[0].size(2) == 2,
                        "liif_fast: coord must be [B, Q, 2]");
    } else {
        STD_TORCH_CHECK(queries.size() == 2 && (images == shape[0] || images == 1) && queries[0].dim() == 3 &&
                            queries[1].dim() == 4 && queries[1].size(0) == images && queries[0].size(2) == 4 &&
                            queries[1].size(1) == queries[0].size(1) && queries[1].size(2) == 4 &&
                            queries[1].size(3) == 2 && queries[0].is_contiguous() && queries[1].is_contiguous(),
                        "liif_fast: a plan must be [B or 1, Q, 4] and [B or 1, Q, 4, 2], contiguous");
    }
}

template <typename T>
class CornerNet {
   public:
    struct Linear {
        const T* weight;
        int64_t out, in;  // with the row of ones
    };
    struct Block {
        Linear qkv, out, up, down;  // the first has its qkv in the table
    };
    // What a pass makes of a block, in the order in which it does, and of a tile.
    struct Steps {
        T *y, *y_scale, *qkv, *weight, *mixed, *between, *between_scale, *hidden, *active;
    };
    struct Tile {
        T *first, *rel, *scale, *top, *top_scale, *weight;
        std::vector<Steps> blocks;
        std::vector<const T*> rows;
    };

    // Columns of the table: the products of the first block's qkv (of the head if there is no block), n1, n0, the
    // latent where there are blocks, and the values to blend.
    CornerNet(const Tensor& table, const Tensor& by_rel, const std::vector<Tensor>& layers, int64_t heads)
        : table_(data<T>(table)),
          by_rel_(data<T>(by_rel)),
          columns_(table.size(1)),
          width_(layers.empty() ? 0 : layers[0].size(0)),
          linear_(layers.empty() ? 1 : 3 * width_),
          heads_(heads) {
        for (size_t i = 0; i < layers.size(); i += 4) {
            const Linear qkv = i == 0 ? Linear{} : linear_of(layers[i - 1]);
            blocks_.push_back({qkv, linear_of(layers[i]), linear_of(layers[i + 1]), linear_of(layers[i + 2])});
        }
        if (!layers.empty()) head_ = linear_of(layers.back());
    }

    static const Attention<T>& loops() { return *kernel<T>().attention; }
    static int64_t stride() { return loops().stride; }
    static int64_t queries() { return kernel<T>().nr; }  // of a tile
    static int64_t tokens() { return 4 * queries(); }
    int64_t width() const { return width_; }
    int64_t columns() const { return columns_; }
    int64_t linear() const { return linear_; }
    int64_t heads() const { return heads_; }
    int64_t before_values() const { return linear_ + 3 + width_; }
    int64_t values() const { return columns_ - before_values(); }
    const T* bias() const { return by_rel_ + 2 * columns_; }
    const std::vector<Block>& blocks() const { return blocks_; }
    const Linear& head() const { return head_; }
    int64_t widest() const {
        int64_t widest = width_;
        for (const Block& block : blocks_) widest = std::max(widest, block.up.out);
        return widest;
    }
    T* latent(const Tile& b) const { return b.first + (linear_ + 3) * stride(); }
    const T* value(const Tile& b) const { return b.first + before_values() * stride(); }

    // `keep`: every block's steps have memory of their own, for a backward pass.
    Tile make_tile(Arena& arena, bool keep) const {
        const auto rows = [&arena](int64_t count) { return arena.take<T>(count * stride()); };
        Tile b{rows(columns_), rows(3), rows(1), rows(width_ + 1), rows(1), rows(1), {}, {}};
        for (size_t i = 0; i < blocks_.size(); ++i) {
            const int64_t own = i > 0 ? width_ : -1;  // the first block's qkv is in b.first
            if (keep || i < 2) {
                b.blocks.push_back({rows(own + 1), rows(1), rows(own > 0 ? 3 * own : 0), rows(4 * heads_),
                                    rows(width_ + 1), rows(width_ + 1), rows(1), rows(widest()), rows(widest() + 1)});
            } else {
                b.blocks.push_back(b.blocks.back());
            }
        }
        b.rows.resize(static_cast<size_t>(tokens()));
        return b;
    }

    // From queries first .. first + count, at most a tile, to the weights of their corners in b.weight.
    template <typename Spots>
    void forward(const Spots& spots, int64_t first, int64_t count, Tile& b) const {
        const int64_t s = stride(), n = queries();
        for (int64_t q = 0; q < n; ++q) {
            Spot spot[4];
            spots(first + std::min(q, count - 1), spot);  // behind the end the last one again
            for (int64_t t = 0; t < 4; ++t) {
                b.rows[static_cast<size_t>(t * n + q)] = table_ + spot[t].latent * columns_;
                for (int64_t j = 0; j < 2; ++j) b.rel[j * s + t * n + q] = spot[t].rel[j];
            }
        }
        loops().transpose(b.first, s, b.rows.data(), tokens(), columns_);
        loops().place(b.first, linear_, before_values(), b.rel, by_rel_, columns_, b.scale);
        T* x = latent(b);
        for (size_t i = 0; i < blocks_.size(); ++i) {
            const Block& block = blocks_[i];
            const Steps& step = b.blocks[i];
            const T* qkv = b.first;
            if (i > 0) {
                normalise(step.y, x, step.y_scale);
                apply(block.qkv, step.y, step.qkv, Init::zero);
                qkv = step.qkv;
            }
            loops().attend(step.mixed, step.weight, qkv, width_, heads_);
            append_ones(step.mixed, width_);
            apply(block.out, step.mixed, x, Init::accumulate);
            normalise(step.between, x, step.between_scale);
            apply(block.up, step.between, step.hidden, Init::zero);
            loops().gelu(step.active, step.hidden, block.up.out);
            append_ones(step.active, block.up.out);
            apply(block.down, step.active, x, Init::accumulate);
        }
        if (blocks_.empty()) {
            std::memcpy(b.weight, b.first, static_cast<size_t>(tokens()) * sizeof(T));
        } else {
            normalise(b.top, x, b.top_scale);
            apply(head_, b.top, b.weight, Init::zero);
        }
        loops().softmax(b.weight);
    }

    // y = init + W x
    static void apply(const Linear& w, const T* x, T* y, Init init) {
        kernel<T>().gemm({w.out, tokens(), w.in, w.weight, w.in, 1, x, queries(), stride(), y, stride(), init, nullptr,
                          Epilogue::none, nullptr});
    }

    // x's gradient = W' times y's
    static void back(const Linear& w, const T* y, T* x) {
        kernel<T>().gemm({w.in - 1, tokens(), w.out, w.weight, 1, w.in, y, queries(), stride(), x, stride(), Init::zero,
                          nullptr, Epilogue::none, nullptr});
    }

   private:
    static Linear linear_of(const Tensor& layer) { return {data<T>(layer), layer.size(0), layer.size(1)}; }

    static void append_ones(T* x, int64_t rows) { std::fill_n(x + rows * stride(), tokens(), T(1)); }

    void normalise(T* y, const T* x, T* scale) const {
        loops().normalise(y, x, width_, scale);
        append_ones(y, width_);
    }

    const T *table_, *by_rel_;
    int64_t columns_, width_, linear_, heads_;
    std::vector<Block> blocks_;
    Linear head_{};
};

}  // namespace liif
