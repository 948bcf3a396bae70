// liif_fast::decode_backward. Rows, one per (query, corner), are visited in the order of the latent they read, so that
// each latent's gradient is one sum in a fixed order; a chunk of queries at a time bounds the memory. Activations are
// those that the forward pass saved (of the first queries), or are computed again, tile by tile.
#include <algorithm>

#include "checks.h"
#include "operators.h"
#include "queries.h"

namespace liif {
namespace {

struct TileTag {};

constexpr int64_t kChunkQueries = 65536;

struct Row {  // what the plan says of one row of a chunk
    int64_t latent;
    Corner corner;
    Query query;
};

// A chunk of queries: its rows, and their order by latent, equal ones in their own order (a counting sort).
struct Chunk {
    int64_t first = 0, count = 0;  // queries
    bool saved = false;            // the forward pass has saved its activations
    std::vector<Row> rows;
    std::vector<int32_t> order, start;

    const Row& sorted(int64_t i) const { return rows[static_cast<size_t>(order[static_cast<size_t>(i)])]; }

    void sort(int64_t latents) {
        start.assign(static_cast<size_t>(latents) + 1, 0);
        for (const Row& row : rows) ++start[static_cast<size_t>(row.latent) + 1];
        for (size_t i = 1; i < start.size(); ++i) start[i] += start[i - 1];
        order.resize(rows.size());
        for (size_t r = 0; r < rows.size(); ++r) {
            order[static_cast<size_t>(start[static_cast<size_t>(rows[r].latent)]++)] = static_cast<int32_t>(r);
        }
    }
};

template <typename T>
T dot(const T* a, const T* b, int64_t count) {
    constexpr int64_t lanes = 16;  // sums that the compiler keeps in vectors
    T part[lanes] = {};
    int64_t i = 0;
    for (; i + lanes <= count; i += lanes) {
        for (int64_t j = 0; j < lanes; ++j) part[j] += a[i + j] * b[i + j];
    }
    for (; i < count; ++i) part[i % lanes] += a[i] * b[i];
    T sum(0);
    for (const T each : part) sum += each;
    return sum;
}

// What one worker sums: the layers' gradients, the affine part's, and the projection gradient of its first latent
// where the worker before it ends in the same one.
template <typename T>
struct Sums {
    Gradients<T> layers;
    T *affine, *edge;
};

// The output's gradient, [B, Q, out] or, of a render, [B, out, h, w]; any strides.
template <typename T>
class OutGradient {
   public:
    explicit OutGradient(const Tensor& grad)
        : data_(grad.const_data_ptr<T>()), width_(grad.dim() == 4 ? grad.size(3) : 1), step_b_(grad.stride(0)) {
        const bool grid = grad.dim() == 4;
        height_ = grad.size(grid ? 2 : 1);
        step_row_ = grad.stride(grid ? 2 : 1), step_column_ = grid ? grad.stride(3) : 0;
        step_out_ = grad.stride(grid ? 1 : 2);
    }
    const T* query(int64_t q) const {
        const int64_t b = q / (height_ * width_), i = q / width_ % height_, j = q % width_;
        return data_ + b * step_b_ + i * step_row_ + j * step_column_;
    }
    int64_t step_out() const { return step_out_; }

   private:
    const T* data_;
    int64_t height_, width_, step_b_, step_row_, step_column_, step_out_;
};

template <typename T, typename Queries>
class DecodeBackward {
   public:
    DecodeBackward(const Tensor& grad, const Tensor& saved, const Latents<T>& latents, const Queries& queries,
                   const DecoderNet<T>& net, int corners, int64_t total, T* p_grad, T* place_grad)
        : grad_(grad),
          saved_(saved.const_data_ptr<T>()),
          latents_(latents),
          queries_(queries),
          net_(net),
          backward_(net),
          corners_(corners),
          total_(total),
          kept_(saved.size(0) / corners),
          padded_(round_up(latents.channels(), kernel<T>().nr)),
          p_grad_(p_grad),
          place_grad_(place_grad) {
        const int64_t threads = torch::stable::get_num_threads();
        workers_ = std::max<int64_t>(1, std::min(threads, ceil_div(total * corners, kTileRows)));
        Arena<T> sizes;
        make_sums(sizes);
        sum_memory_ = make_zeros(saved, {sizes.used()});
        Arena<T> arena(sum_memory_.mutable_data_ptr<T>());
        sums_ = make_sums(arena);
    }

    void run() {
        Chunk chunk;
        while (chunk.first < total_) {
            chunk.saved = chunk.first < kept_;
            chunk.count = std::min(kChunkQueries, (chunk.saved ? kept_ : total_) - chunk.first);
            plan(chunk);
            // Contiguous shares of the sorted rows: which worker sums what depends only on the number of threads.
            const auto rows = static_cast<int64_t>(chunk.rows.size());
            const int64_t share = ceil_div(rows, workers_);
            torch::stable::parallel_for(0, workers_, 1, [&](int64_t begin, int64_t end) {
                for (int64_t w = begin; w < end; ++w) {
                    work(chunk, std::min(rows, w * share), std::min(rows, (w + 1) * share),
                         sums_[static_cast<size_t>(w)]);
                }
            });
            for (int64_t w = 1; w < workers_; ++w) add_edge(chunk, w * share, sums_[static_cast<size_t>(w)]);
            chunk.first += chunk.count;
        }
    }

    // [terms, channels], then weight and bias of the layers after the first.
    Tensors layer_gradients(const Tensor& like) const {
        const int64_t channels = latents_.channels();
        Tensors result{make(like, {net_.terms(), channels})};
        reduce(result[0], net_.terms(), channels, padded_, [](const Sums<T>& s) { return s.affine; });
        for (int64_t l = 1; l <= net_.hidden(); ++l) {
            const Layer<T>& layer = net_.layer(l);
            const auto at = static_cast<size_t>(l);
            result.push_back(make(like, {layer.out, layer.in}));
            reduce(result.back(), layer.out, layer.in, backward_.padded_in(l),
                   [at](const Sums<T>& s) { return s.layers.weight[at]; });
            result.push_back(make(like, {layer.out}));
            reduce(result.back(), 1, layer.out, layer.out_padded, [at](const Sums<T>& s) { return s.layers.bias[at]; });
        }
        return result;
    }

   private:
    struct Tile {
        std::vector<T*> h;
        T *g, *other, *out, *affine, *run;
    };

    std::vector<Sums<T>> make_sums(Arena<T>& arena) const {
        std::vector<Sums<T>> sums;
        for (int64_t w = 0; w < workers_; ++w) {
            sums.push_back({backward_.gradients(arena), arena.take(net_.terms() * padded_), arena.take(padded_)});
        }
        return sums;
    }

    Tile make_tile(Arena<T>& arena) const {
        Tile b;
        for (int64_t l = 0; l < std::max<int64_t>(net_.hidden(), 1); ++l) {
            b.h.push_back(arena.take(kTileRows * net_.stride()));
        }
        b.g = arena.take(kTileRows * net_.stride());
        b.other = arena.take(kTileRows * net_.stride());
        b.out = arena.take(kTileRows * net_.out_padded());
        b.affine = arena.take(kTileRows * 4);
        b.run = arena.take(2 * padded_);
        return b;
    }

    void plan(Chunk& chunk) const {
        chunk.rows.resize(static_cast<size_t>(chunk.count * corners_));
        torch::stable::parallel_for(0, chunk.count, 1024, [&](int64_t begin, int64_t end) {
            Corner corner[4];
            for (int64_t q = begin; q < end; ++q) {
                const Query query = queries_(chunk.first + q, corner);
                for (int t = 0; t < corners_; ++t) {
                    const int64_t latent = latents_.index(query.batch, corner[t]);
                    chunk.rows[static_cast<size_t>(q * corners_ + t)] = {latent, corner[t], query};
                }
            }
        });
        chunk.sort(latents_.count());
    }

    // A tile's inputs: layer 0, saved activations, the corner's share of the output's gradient, rel and cell.
    void fill(const Chunk& chunk, int64_t first, int64_t count, const Tile& b) const {
        const int64_t outs = net_.out(), padded = net_.out_padded();
        for (int64_t r = 0; r < count; ++r) {
            const int64_t in_chunk = chunk.order[static_cast<size_t>(first + r)];
            const Row& row = chunk.rows[static_cast<size_t>(in_chunk)];
            if (net_.hidden() > 0) {
                net_.affine(b.h[0] + r * net_.stride(), latents_.row(row.latent), row.corner, row.query.cell);
            }
            if (chunk.saved) {
                const T* from = saved_ + (chunk.first * corners_ + in_chunk) * net_.saved_width();
                for (int64_t l = 1; l < net_.hidden(); from += net_.width(l), ++l) {
                    std::memcpy(b.h[static_cast<size_t>(l)] + r * net_.stride(), from,
                                static_cast<size_t>(net_.width(l)) * sizeof(T));
                }
            }
            const T weight = static_cast<T>(row.corner.weight);
            const T* y = grad_.query(chunk.first + in_chunk / corners_);
            for (int64_t o = 0; o < padded; ++o) {
                b.out[r * padded + o] = o < outs ? weight * y[o * grad_.step_out()] : T(0);
            }
            const float affine[4] = {row.corner.rel_row, row.corner.rel_column, row.query.cell[0], row.query.cell[1]};
            for (int j = 0; j < 4; ++j) b.affine[r * 4 + j] = static_cast<T>(affine[j]);
        }
    }

    void work(const Chunk& chunk, int64_t begin, int64_t end, const Sums<T>& sum) const {
        if (begin == end) return;
        const int64_t channels = latents_.channels();
        const int64_t edge_latent = starts_inside(chunk, begin) ? chunk.sorted(begin).latent : -1;
        Tile b = in_scratch<T, TileTag>([this](Arena<T>& arena) { return make_tile(arena); });
        for (int64_t first = begin; first < end; first += kTileRows) {
            const int64_t count = std::min(kTileRows, end - first);
            fill(chunk, first, count, b);
            if (!chunk.saved) net_.forward_hidden(b.h.data(), count);
            backward_.run(b.h.data(), b.out, count, b.g, b.other, sum.layers);
            const T* g = net_.hidden() > 0 ? b.g : b.out;
            const int64_t g_stride = net_.hidden() > 0 ? net_.stride() : net_.out_padded();
            if (place_grad_ != nullptr) find_places(chunk, first, count, b, g, g_stride);
            Backward<T>::accumulate(b.affine, 4, net_.terms(), g, g_stride, padded_, count, sum.affine);
            // Rows of the same latent are summed among themselves first: thousands in one chain would round too often.
            for (int64_t r = 0, after = 0; r < count; r = after) {
                const int64_t latent = chunk.sorted(first + r).latent;
                for (after = r + 1; after < count && chunk.sorted(first + after).latent == latent;) ++after;
                const T* row = g + r * g_stride;
                if (after - r > 1) {
                    std::memset(b.run, 0, static_cast<size_t>(2 * padded_) * sizeof(T));
                    kernel<T>().sum_rows(row, g_stride, after - r, padded_, b.run, b.run + padded_);
                    row = b.run;
                }
                kernel<T>().axpy(latent == edge_latent ? sum.edge : p_grad_ + latent * channels, row, T(1), channels);
            }
        }
    }

    // Of each row the gradients of rel and cell, as the network sees them, and of the corner's weight. Called behind
    // the pass back, which no longer needs the tile's `out` if there is a hidden layer.
    void find_places(const Chunk& chunk, int64_t first, int64_t count, const Tile& b, const T* g,
                     int64_t g_stride) const {
        const int64_t terms = net_.terms(), outs = net_.out();
        if (net_.hidden() > 0) net_.forward_last(b.h.back(), count, b.out);
        for (int64_t r = 0; r < count; ++r) {
            const int64_t in_chunk = chunk.order[static_cast<size_t>(first + r)];
            const Row& row = chunk.rows[static_cast<size_t>(in_chunk)];
            T* to = place_grad_ + (chunk.first * corners_ + in_chunk) * (terms + 1);
            for (int64_t j = 0; j < terms; ++j) {
                to[j] = dot(g + r * g_stride, net_.affine_column(j), net_.first_out());
            }
            const T* out = b.out + r * net_.out_padded();
            if (net_.hidden() == 0) {
                net_.affine(b.h[0], latents_.row(row.latent), row.corner, row.query.cell);
                out = b.h[0];
            }
            const T* y = grad_.query(chunk.first + in_chunk / corners_);
            T sum(0);
            for (int64_t o = 0; o < outs; ++o) sum += y[o * grad_.step_out()] * out[o];
            to[terms] = sum;
        }
    }

    static bool starts_inside(const Chunk& chunk, int64_t begin) {
        return begin > 0 && chunk.sorted(begin - 1).latent == chunk.sorted(begin).latent;
    }

    void add_edge(const Chunk& chunk, int64_t begin, const Sums<T>& sum) {
        if (begin >= static_cast<int64_t>(chunk.rows.size()) || !starts_inside(chunk, begin)) return;
        const int64_t channels = latents_.channels();
        kernel<T>().axpy(p_grad_ + chunk.sorted(begin).latent * channels, sum.edge, T(1), channels);
        std::memset(sum.edge, 0, static_cast<size_t>(padded_) * sizeof(T));
    }

    template <typename Pick>
    void reduce(const Tensor& to, int64_t height, int64_t width, int64_t row, const Pick& pick) const {
        std::vector<const T*> parts;
        for (const Sums<T>& sum : sums_) parts.push_back(pick(sum));
        reduce_workers<T>(parts, height, width, row, to.mutable_data_ptr<T>());
    }

    const OutGradient<T> grad_;
    const T* saved_;
    const Latents<T>& latents_;
    const Queries& queries_;
    const DecoderNet<T>& net_;
    const Backward<T> backward_;
    const int corners_;
    const int64_t total_, kept_, padded_;
    T *p_grad_, *place_grad_;
    int64_t workers_;
    Tensor sum_memory_;
    std::vector<Sums<T>> sums_;
};

template <typename T, typename Queries>
Tensors run(const Tensor& grad, const Tensor& p, const Queries& queries, int64_t total, int terms,
            const Tensors& weights, const Tensors& biases, const Tensor& saved, bool ensemble, int64_t p_top,
            int64_t p_left, const Tensor* place_grad) {
    const int corners = ensemble ? 4 : 1;
    const Latents<T> latents(p, p_top, p_left);
    const bool forward = place_grad != nullptr || saved.size(0) < total * corners;
    const int packs = pack_backward | (forward ? pack_forward : 0);
    Tensor packed;
    const auto net = build_packed<T>(
        p, packed, [&](Arena<T>& arena, bool dry) { return DecoderNet<T>(weights, biases, terms, packs, arena, dry); });
    check_saved_width(saved.size(0), saved.size(1), net.saved_width());
    Tensors result{make_zeros(p, {p.size(0), p.size(1), p.size(2), p.size(3)})};
    DecodeBackward<T, Queries> pass(grad, saved, latents, queries, net, corners, total, result[0].mutable_data_ptr<T>(),
                                    place_grad == nullptr ? nullptr : place_grad->mutable_data_ptr<T>());
    pass.run();
    for (Tensor& t : pass.layer_gradients(p)) result.push_back(t);
    return result;
}

}  // namespace

Tensors decode_backward(const Tensor& grad, const Tensor& p, const Tensor& coord, const std::optional<Tensor>& cell,
                        const Tensors& weights, const Tensors& biases, const Tensor& saved, bool ensemble,
                        bool places) {
    check_decoder(p, cell, weights, biases);
    check_coord(coord, cell, p.size(0));
    const int64_t total = coord.size(0) * coord.size(1);
    check_gradient(grad, {coord.size(0), coord.size(1), weights.back().size(0)}, saved, total * (ensemble ? 4 : 1));
    const CoordQueries queries(coord, cell, p.size(1), p.size(2), ensemble);
    const int terms = cell ? 4 : 2;
    const Tensor place_grad =
        places ? make(p, {coord.size(0), coord.size(1), ensemble ? 4 : 1, terms + 1}) : make(p, {0});
    return dispatch(p, [&](auto t) {
        Tensors result = run<decltype(t)>(grad, p, queries, total, terms, weights, biases, saved, ensemble, 0, 0,
                                          places ? &place_grad : nullptr);
        result.push_back(place_grad);
        return result;
    });
}

Tensors render_backward(const Tensor& grad, const Tensor& p, const std::optional<Tensor>& cell, const Tensors& weights,
                        const Tensors& biases, const Tensor& saved, bool ensemble, const Ints& grid) {
    check_decoder(p, cell, weights, biases);
    const auto [map, window] = read_grid(grid, p);
    const int64_t total = p.size(0) * window.height * window.width, outs = weights.back().size(0);
    check_gradient(grad, {p.size(0), outs, window.height, window.width}, saved, total * (ensemble ? 4 : 1));
    const GridQueries queries(cell, map, window, ensemble);
    return dispatch(p, [&, map = map](auto t) {
        return run<decltype(t)>(grad, p, queries, total, cell ? 4 : 2, weights, biases, saved, ensemble, map.top,
                                map.left, nullptr);
    });
}

}  // namespace liif
