// liif_fast::decode_backward. Rows, one per (query, corner), are visited in the order of the latent that they read, so
// that each latent's gradient is one sum in a fixed order. Queries go in chunks, which bounds the memory. The forward
// pass saved the activations of the first queries; the others are computed again, tile by tile.
#include <algorithm>
#include <type_traits>

#include "checks.h"
#include "chunk.h"
#include "operators.h"
#include "queries.h"

namespace liif {
namespace {

struct TileTag {};

// The sums of one worker: the gradients of the layers and of the affine part, and the projection gradient of its first
// latent if the worker before it ends in the same one.
template <typename T>
struct Sums {
    Gradients<T> layers;
    Sum<T>*affine, *edge;
};

template <typename T, typename Queries>
class DecodeBackward {
   public:
    DecodeBackward(const Tensor& grad, const Tensor& saved, const Latents<T>& latents, const Queries& queries,
                   const DecoderNet<T>& net, int corners, int64_t total, Sum<T>* p_grad, Sum<T>* place_grad)
        : grad_(grad),
          saved_(data<T>(saved)),
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
        Arena sizes;
        make_sums(sizes);
        sum_memory_ = make_zeros<unsigned char>(saved, {sizes.used()});
        Arena arena(mutable_data<unsigned char>(sum_memory_));
        sums_ = make_sums(arena);
    }

    void run() {
        Chunk chunk;
        while (chunk.first < total_) {
            chunk.saved = chunk.first < kept_;
            chunk.count = std::min(kChunkQueries, (chunk.saved ? kept_ : total_) - chunk.first);
            chunk.plan(queries_, latents_, corners_);
            // Contiguous shares of the sorted rows, so that a worker's sums depend only on the number of threads.
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
        Tensors result{make<Sum<T>>(like, {net_.terms(), channels})};
        reduce(result[0], net_.terms(), channels, padded_, [](const Sums<T>& s) { return s.affine; });
        for (int64_t l = 1; l <= net_.hidden(); ++l) {
            const Layer<T>& layer = net_.layer(l);
            const auto at = static_cast<size_t>(l);
            result.push_back(make<Sum<T>>(like, {layer.out, layer.in}));
            reduce(result.back(), layer.out, layer.in, backward_.padded_in(l),
                   [at](const Sums<T>& s) { return s.layers.weight[at]; });
            result.push_back(make<Sum<T>>(like, {layer.out}));
            reduce(result.back(), 1, layer.out, layer.out_padded, [at](const Sums<T>& s) { return s.layers.bias[at]; });
        }
        return result;
    }

   private:
    struct Tile {
        std::vector<T*> h;
        typename Backward<T>::Tiles tiles;
        T* narrow;
        Sum<T>*first, *out, *affine, *run, *top;
    };

    std::vector<Sums<T>> make_sums(Arena& arena) const {
        std::vector<Sums<T>> sums;
        for (int64_t w = 0; w < workers_; ++w) {
            sums.push_back(
                {backward_.gradients(arena), arena.take<Sum<T>>(net_.terms() * padded_), arena.take<Sum<T>>(padded_)});
        }
        return sums;
    }

    Tile make_tile(Arena& arena) const {
        Tile b;
        for (int64_t l = 0; l < net_.levels(); ++l) b.h.push_back(arena.take<T>(kTileRows * net_.stride()));
        b.tiles = backward_.tiles(arena);
        b.narrow = arena.take<T>(kTileRows * net_.out_padded());
        b.first = arena.take<Sum<T>>(kTileRows * net_.stride());
        b.out = arena.take<Sum<T>>(kTileRows * net_.out_padded());
        b.affine = arena.take<Sum<T>>(kTileRows * 4);
        b.run = arena.take<Sum<T>>(padded_);
        const bool widens = place_grad_ != nullptr && !std::is_same_v<T, Sum<T>>;
        b.top = arena.take<Sum<T>>(widens ? kTileRows * net_.stride() : 0);
        return b;
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
            const Sum<T> weight = row.corner.weight;
            const Sum<T>* y = grad_.query(chunk.first + in_chunk / corners_);
            for (int64_t o = 0; o < padded; ++o) {
                b.out[r * padded + o] = o < outs ? weight * y[o * grad_.step_out()] : Sum<T>(0);
            }
            const float affine[4] = {row.corner.rel_row, row.corner.rel_column, row.query.cell[0], row.query.cell[1]};
            for (int j = 0; j < 4; ++j) b.affine[r * 4 + j] = affine[j];
        }
    }

    void work(const Chunk& chunk, int64_t begin, int64_t end, const Sums<T>& sum) const {
        if (begin == end) return;
        const int64_t channels = latents_.channels();
        const int64_t edge_latent = chunk.starts_inside(begin) ? chunk.sorted(begin).latent : -1;
        Tile b = in_scratch<TileTag>([this](Arena& arena) { return make_tile(arena); });
        for (int64_t first = begin; first < end; first += kTileRows) {
            const int64_t count = std::min(kTileRows, end - first);
            fill(chunk, first, count, b);
            if (!chunk.saved) net_.forward_hidden(b.h.data(), count);
            const Sum<T>* g = b.out;
            int64_t g_stride = net_.out_padded();
            if (net_.hidden() > 0) {
                narrow_row(b.narrow, b.out, count * net_.out_padded());
                backward_.run(b.h.data(), b.narrow, count, b.tiles, b.first, sum.layers, b.h[0]);
                g = b.first, g_stride = net_.stride();
            }
            if (place_grad_ != nullptr) find_places(chunk, first, count, b, g, g_stride);
            Backward<Sum<T>>::accumulate(b.affine, 4, net_.terms(), g, g_stride, channels, count, {}, sum.affine);
            for (int64_t r = 0, after = 0; r < count; r = after) {
                const int64_t latent = chunk.sorted(first + r).latent;
                for (after = r + 1; after < count && chunk.sorted(first + after).latent == latent;) ++after;
                add_rows(latent == edge_latent ? sum.edge : p_grad_ + latent * channels, g + r * g_stride, g_stride,
                         after - r, channels, padded_, b.run);
            }
        }
    }

    // Of each row the gradients of rel and cell, as the network sees them, and of the corner's weight. Called behind
    // the pass back, which no longer needs the tile's `out` if there is a hidden layer.
    void find_places(const Chunk& chunk, int64_t first, int64_t count, const Tile& b, const Sum<T>* g,
                     int64_t g_stride) const {
        const int64_t terms = net_.terms(), outs = net_.out(), hidden = net_.hidden();
        if (hidden > 0) net_.forward_last(widened(net_, b.h.back(), count, b.top), count, b.out);
        for (int64_t r = 0; r < count; ++r) {
            const int64_t in_chunk = chunk.order[static_cast<size_t>(first + r)];
            const Row& row = chunk.rows[static_cast<size_t>(in_chunk)];
            Sum<T>* to = place_grad_ + (chunk.first * corners_ + in_chunk) * (terms + 1);
            for (int64_t j = 0; j < terms; ++j) {
                to[j] = dot(g + r * g_stride, net_.affine_column(j), net_.first_out());
            }
            if (hidden == 0) net_.affine(b.h[0], latents_.row(row.latent), row.corner, row.query.cell);
            const Sum<T>* y = grad_.query(chunk.first + in_chunk / corners_);
            Sum<T> sum(0);
            for (int64_t o = 0; o < outs; ++o) {
                const Sum<T> out = hidden > 0 ? b.out[r * net_.out_padded() + o] : convert<Sum<T>>(b.h[0][o]);
                sum += y[o * grad_.step_out()] * out;
            }
            to[terms] = sum;
        }
    }

    void add_edge(const Chunk& chunk, int64_t begin, const Sums<T>& sum) {
        if (begin >= static_cast<int64_t>(chunk.rows.size()) || !chunk.starts_inside(begin)) return;
        const int64_t channels = latents_.channels();
        kernel<Sum<T>>().add(p_grad_ + chunk.sorted(begin).latent * channels, sum.edge, channels);
        std::memset(sum.edge, 0, static_cast<size_t>(padded_) * sizeof(Sum<T>));
    }

    template <typename Pick>
    void reduce(Tensor& to, int64_t height, int64_t width, int64_t row, const Pick& pick) const {
        std::vector<const Sum<T>*> parts;
        for (const Sums<T>& sum : sums_) parts.push_back(pick(sum));
        reduce_workers<Sum<T>>(parts, height, width, row, mutable_data<Sum<T>>(to));
    }

    const OutGradient<Sum<T>> grad_;
    const T* saved_;
    const Latents<T>& latents_;
    const Queries& queries_;
    const DecoderNet<T>& net_;
    const Backward<T> backward_;
    const int corners_;
    const int64_t total_, kept_, padded_;
    Sum<T>*p_grad_, *place_grad_;
    int64_t workers_;
    Tensor sum_memory_;
    std::vector<Sums<T>> sums_;
};

template <typename T, typename Queries>
Tensors run(const Tensor& grad, const Tensor& p, const Queries& queries, int64_t total, int terms,
            const Tensors& weights, const Tensors& biases, const Tensor& saved, bool ensemble, int64_t p_top,
            int64_t p_left, Tensor* place_grad) {
    const int corners = ensemble ? 4 : 1;
    const Latents<T> latents(p, p_top, p_left);
    const bool forward = place_grad != nullptr || saved.size(0) < total * corners;
    const int packs = pack_backward | (forward ? pack_forward : 0);
    Tensor packed;
    const auto net = build_packed(
        p, packed, [&](Arena& arena, bool dry) { return DecoderNet<T>(weights, biases, terms, packs, arena, dry); });
    check_saved_width(saved.size(0), saved.size(1), net.saved_width());
    Tensors result{make_zeros<Sum<T>>(p, {p.size(0), p.size(1), p.size(2), p.size(3)})};
    DecodeBackward<T, Queries> pass(grad, saved, latents, queries, net, corners, total, mutable_data<Sum<T>>(result[0]),
                                    place_grad == nullptr ? nullptr : mutable_data<Sum<T>>(*place_grad));
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
    const int terms = cell ? 4 : 2, corners = ensemble ? 4 : 1;
    return dispatch(p, [&](auto t) {
        using T = decltype(t);
        Tensor place_grad =
            places ? make<Sum<T>>(p, {coord.size(0), coord.size(1), corners, terms + 1}) : make<Sum<T>>(p, {0});
        Tensors result = run<T>(grad, p, queries, total, terms, weights, biases, saved, ensemble, 0, 0,
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
    const GridQueries queries(cell, map, window, {}, ensemble);
    return dispatch(p, [&, map = map](auto t) {
        return run<decltype(t)>(grad, p, queries, total, cell ? 4 : 2, weights, biases, saved, ensemble, map.top,
                                map.left, nullptr);
    });
}

}  // namespace liif
