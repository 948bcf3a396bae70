// liif_fast::fourier_decode_backward. Rows are visited in the order of the latent that they read, as in
// decode_backward.cpp; activations are always computed again.
#include "chunk.h"
#include "fourier.h"
#include "operators.h"

namespace liif {
namespace {

struct TileTag {};

constexpr int kCorners = 4;

// The sums of one worker: the gradients of the layers and of the phases, and the gradient of its first latent if the
// worker before it ends in the same one.
template <typename T>
struct Sums {
    Gradients<T> layers;
    Sum<T>*phase, *edge;
};

template <typename T>
class FourierBackward {
   public:
    FourierBackward(const Tensor& grad, const Latents<Sum<T>>& latents, const CoordQueries& queries,
                    const FourierNet<T>& net, int64_t total, const Tensor& like, Sum<T>* p_grad)
        : grad_(grad),
          latents_(latents),
          queries_(queries),
          net_(net),
          backward_(net),
          total_(total),
          padded_(round_up(latents.channels(), kernel<T>().nr)),
          padded_half_(round_up(net.half(), kernel<Sum<T>>().nr)),
          p_grad_(p_grad) {
        const int64_t threads = torch::stable::get_num_threads();
        workers_ = std::max<int64_t>(1, std::min(threads, ceil_div(total * kCorners, kTileRows)));
        Arena sizes;
        make_sums(sizes);
        sum_memory_ = make_zeros<unsigned char>(like, {sizes.used()});
        Arena arena(mutable_data<unsigned char>(sum_memory_));
        sums_ = make_sums(arena);
    }

    void run() {
        Chunk chunk;
        while (chunk.first < total_) {
            chunk.count = std::min(kChunkQueries, total_ - chunk.first);
            chunk.plan(queries_, latents_, kCorners);
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

    // The phase's, [2, K], then weight and bias of each layer.
    Tensors layer_gradients(const Tensor& like) const {
        Tensors result{make<Sum<T>>(like, {2, net_.half()})};
        reduce(result[0], 2, net_.half(), padded_half_, [](const Sums<T>& s) { return s.phase; });
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
        T* out;
        Sum<T>*first, *wide, *phases, *cell, *latent, *angle, *run;
    };

    std::vector<Sums<T>> make_sums(Arena& arena) const {
        std::vector<Sums<T>> sums;
        for (int64_t w = 0; w < workers_; ++w) {
            sums.push_back(
                {backward_.gradients(arena), arena.take<Sum<T>>(2 * padded_half_), arena.take<Sum<T>>(padded_)});
        }
        return sums;
    }

    Tile make_tile(Arena& arena) const {
        Tile b;
        for (int64_t l = 0; l < net_.levels(); ++l) b.h.push_back(arena.take<T>(kTileRows * net_.stride()));
        b.tiles = backward_.tiles(arena);
        b.out = arena.take<T>(kTileRows * net_.out_padded());
        b.first = arena.take<Sum<T>>(kTileRows * net_.stride());
        b.wide = arena.take<Sum<T>>(std::max(2 * net_.half(), net_.out_padded()));
        b.phases = arena.take<Sum<T>>(kTileRows * net_.half());
        b.cell = arena.take<Sum<T>>(kTileRows * 2);
        b.latent = arena.take<Sum<T>>(kTileRows * padded_);
        b.angle = arena.take<Sum<T>>(kTileRows * padded_half_);
        b.run = arena.take<Sum<T>>(padded_);
        return b;
    }

    // A tile's inputs: the waves, the corner's share of the output's gradient, the phases and the cell.
    void fill(const Chunk& chunk, int64_t first, int64_t count, const Tile& b) const {
        const int64_t outs = net_.out(), padded = net_.out_padded();
        for (int64_t r = 0; r < count; ++r) {
            const int64_t in_chunk = chunk.order[static_cast<size_t>(first + r)];
            const Row& row = chunk.rows[static_cast<size_t>(in_chunk)];
            Sum<T>* phases = b.phases + r * net_.half();
            net_.phases(phases, row.query.cell);
            net_.waves(b.h[0] + r * net_.stride(), latents_.row(row.latent), phases, row.corner, b.wide);
            const Sum<T> weight = row.corner.weight;
            const Sum<T>* y = grad_.query(chunk.first + in_chunk / kCorners);
            for (int64_t o = 0; o < padded; ++o) {
                b.wide[o] = o < outs ? weight * y[o * grad_.step_out()] : Sum<T>(0);
            }
            narrow_row(b.out + r * padded, b.wide, padded);
            for (int j = 0; j < 2; ++j) b.cell[r * 2 + j] = row.query.cell[j];
        }
    }

    void work(const Chunk& chunk, int64_t begin, int64_t end, const Sums<T>& sum) const {
        if (begin == end) return;
        const int64_t channels = latents_.channels(), half = net_.half();
        const int64_t edge_latent = chunk.starts_inside(begin) ? chunk.sorted(begin).latent : -1;
        Tile b = in_scratch<TileTag>([this](Arena& arena) { return make_tile(arena); });
        for (int64_t first = begin; first < end; first += kTileRows) {
            const int64_t count = std::min(kTileRows, end - first);
            fill(chunk, first, count, b);
            net_.forward_hidden(b.h.data(), count);
            backward_.run(b.h.data(), b.out, count, b.tiles, b.first, sum.layers, nullptr);
            for (int64_t r = 0; r < count; ++r) {
                const Row& row = chunk.sorted(first + r);
                const Sum<T> rel[2] = {row.corner.rel_row, row.corner.rel_column};
                Sum<T>*to = b.latent + r * padded_, *angle = b.angle + r * padded_half_;
                kernel<Sum<T>>().waves_back(to, angle, b.first + r * net_.stride(), latents_.row(row.latent),
                                            b.phases + r * half, rel, half);
                std::fill(to + channels, to + padded_, Sum<T>(0));
                std::fill(angle + half, angle + padded_half_, Sum<T>(0));
            }
            Backward<Sum<T>>::accumulate(b.cell, 2, 2, b.angle, padded_half_, padded_half_, count, {}, sum.phase);
            for (int64_t r = 0, after = 0; r < count; r = after) {
                const int64_t latent = chunk.sorted(first + r).latent;
                for (after = r + 1; after < count && chunk.sorted(first + after).latent == latent;) ++after;
                add_rows(latent == edge_latent ? sum.edge : p_grad_ + latent * channels, b.latent + r * padded_,
                         padded_, after - r, channels, padded_, b.run);
            }
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
    const Latents<Sum<T>>& latents_;
    const CoordQueries& queries_;
    const FourierNet<T>& net_;
    const Backward<T> backward_;
    const int64_t total_, padded_, padded_half_;
    Sum<T>* p_grad_;
    int64_t workers_;
    Tensor sum_memory_;
    std::vector<Sums<T>> sums_;
};

template <typename T>
Tensors run(const Tensor& grad, const Tensor& p, const Tensor& coord, const Tensor& cell, const Tensor& phase,
            const Tensors& weights, const Tensors& biases) {
    const Latents<Sum<T>> latents(p, 0, 0);
    const CoordQueries queries(coord, cell, p.size(1), p.size(2), true);
    Tensor packed;
    const auto net = build_packed(p, packed, [&](Arena& arena, bool dry) {
        return FourierNet<T>(phase, weights, biases, pack_backward | pack_forward, arena, dry);
    });
    Tensors result{make_zeros<Sum<T>>(p, {p.size(0), p.size(1), p.size(2), p.size(3)})};
    FourierBackward<T> pass(grad, latents, queries, net, coord.size(0) * coord.size(1), p,
                            mutable_data<Sum<T>>(result[0]));
    pass.run();
    for (Tensor& t : pass.layer_gradients(p)) result.push_back(t);
    return result;
}

}  // namespace

Tensors fourier_decode_backward(const Tensor& grad, const Tensor& p, const Tensor& coord, const Tensor& cell,
                                const Tensor& phase, const Tensors& weights, const Tensors& biases) {
    check_fourier(p, coord, cell, phase, weights, biases);
    STD_TORCH_CHECK(grad.dim() == 3 && grad.size(0) == coord.size(0) && grad.size(1) == coord.size(1) &&
                        grad.size(2) == weights.back().size(0),
                    "liif_fast: grad must have the output's shape");
    return dispatch(weights[0], [&](auto t) { return run<decltype(t)>(grad, p, coord, cell, phase, weights, biases); });
}

}  // namespace liif
