// Shared by fourier_backward.cpp and modulated_backward.cpp: a pass over rows, one per (query, corner), in the order of
// the latent that they read, as in decode_backward.cpp.
#pragma once

#include "checks.h"
#include "chunk.h"

namespace liif {

template <typename T>
class RowsBackward {
   public:
    // The sums of one worker: the gradients of the layers, gradients that only one operator has (`own`), and the
    // gradient of its first latent if the worker before it ends in the same one.
    struct Sums {
        Gradients<T> layers;
        Sum<T>*own, *edge;
    };

    // The rows of one tile, the gradient at their outputs [count, net.out_padded()], and a place for the gradients of
    // their latents, `step` apart.
    struct Rows {
        const Chunk& chunk;
        int64_t first, count;
        const T* out;
        Sum<T>* to;
        int64_t step;

        const Row& operator[](int64_t r) const { return chunk.sorted(first + r); }
        // The row's number in the order image, query, corner.
        int64_t number(int64_t r, int corners) const {
            return chunk.first * corners + chunk.order[static_cast<size_t>(first + r)];
        }
    };

    // p_grad: zeros of the latents' shape. A worker has `own` sums of the operator's own. The forward pass saved the
    // activations of the first `kept` queries.
    RowsBackward(const Tensor& grad, const Latents<Sum<T>>& latents, const CoordQueries& queries, const Network<T>& net,
                 int corners, int64_t own, Tensor& p_grad, int64_t kept = 0)
        : grad_(grad),
          latents_(latents),
          queries_(queries),
          net_(net),
          backward_(net),
          corners_(corners),
          total_(grad.size(0) * grad.size(1)),
          kept_(kept),
          own_(own),
          padded_(round_up(latents.channels(), kernel<Sum<T>>().nr)),
          p_grad_(mutable_data<Sum<T>>(p_grad)) {
        const int64_t threads = torch::stable::get_num_threads();
        workers_ = std::max<int64_t>(1, std::min(threads, ceil_div(total_ * corners, kTileRows)));
        Arena sizes;
        make_sums(sizes);
        sum_memory_ = make_zeros<unsigned char>(p_grad, {sizes.used()});
        Arena arena(mutable_data<unsigned char>(sum_memory_));
        sums_ = make_sums(arena);
    }

    const Backward<T>& backward() const { return backward_; }

    const OutGradient<Sum<T>>& gradient() const { return grad_; }

    // each(rows, scratch, sums) computes a tile, with scratch memory laid out by layout(arena).
    template <typename Tag, typename Layout, typename Each>
    void run(const Layout& layout, const Each& each) {
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
                    work<Tag>(chunk, std::min(rows, w * share), std::min(rows, (w + 1) * share),
                              sums_[static_cast<size_t>(w)], layout, each);
                }
            });
            for (int64_t w = 1; w < workers_; ++w) add_edge(chunk, w * share, sums_[static_cast<size_t>(w)]);
            chunk.first += chunk.count;
        }
    }

    // Weight and bias of each layer.
    void layer_gradients(const Tensor& like, std::vector<Tensor>& result) const {
        for (int64_t l = 1; l <= net_.hidden(); ++l) {
            const Layer<T>& layer = net_.layer(l);
            const auto at = static_cast<size_t>(l);
            result.push_back(make<Sum<T>>(like, {layer.out, layer.in}));
            reduce(result.back(), layer.out, layer.in, backward_.padded_in(l),
                   [at](const Sums& s) { return s.layers.weight[at]; });
            result.push_back(make<Sum<T>>(like, {layer.out}));
            reduce(result.back(), 1, layer.out, layer.out_padded, [at](const Sums& s) { return s.layers.bias[at]; });
        }
    }

    // The workers' own sums, [height, width] of rows `row` apart.
    Tensor own_gradient(const Tensor& like, int64_t height, int64_t width, int64_t row) const {
        Tensor to = make<Sum<T>>(like, {height, width});
        reduce(to, height, width, row, [](const Sums& s) { return s.own; });
        return to;
    }

   private:
    std::vector<Sums> make_sums(Arena& arena) const {
        std::vector<Sums> sums;
        for (int64_t w = 0; w < workers_; ++w) {
            sums.push_back({backward_.gradients(arena), arena.take<Sum<T>>(own_), arena.take<Sum<T>>(padded_)});
        }
        return sums;
    }

    // The corners' shares of the output's gradient.
    void fill(const Chunk& chunk, int64_t first, int64_t count, T* out, Sum<T>* wide) const {
        const int64_t outs = net_.out(), padded = net_.out_padded();
        for (int64_t r = 0; r < count; ++r) {
            const int64_t in_chunk = chunk.order[static_cast<size_t>(first + r)];
            const Sum<T> weight = chunk.rows[static_cast<size_t>(in_chunk)].corner.weight;
            const Sum<T>* y = grad_.query(chunk.first + in_chunk / corners_);
            for (int64_t o = 0; o < padded; ++o) wide[o] = o < outs ? weight * y[o * grad_.step_out()] : Sum<T>(0);
            narrow_row(out + r * padded, wide, padded);
        }
    }

    template <typename Tag, typename Layout, typename Each>
    void work(const Chunk& chunk, int64_t begin, int64_t end, const Sums& sum, const Layout& layout,
              const Each& each) const {
        if (begin == end) return;
        const int64_t channels = latents_.channels();
        const int64_t edge_latent = chunk.starts_inside(begin) ? chunk.sorted(begin).latent : -1;
        auto b = in_scratch<Tag>([&](Arena& arena) {
            struct {
                T* out;
                Sum<T>*wide, *latent, *run;
                decltype(layout(arena)) own;
            } b;
            b.out = arena.take<T>(kTileRows * net_.out_padded());
            b.wide = arena.take<Sum<T>>(net_.out_padded());
            b.latent = arena.take<Sum<T>>(kTileRows * padded_);
            b.run = arena.take<Sum<T>>(padded_);
            b.own = layout(arena);
            return b;
        });
        for (int64_t r = 0; r < kTileRows; ++r) {
            std::fill(b.latent + r * padded_ + channels, b.latent + (r + 1) * padded_, Sum<T>(0));
        }
        for (int64_t first = begin; first < end; first += kTileRows) {
            const int64_t count = std::min(kTileRows, end - first);
            fill(chunk, first, count, b.out, b.wide);
            each(Rows{chunk, first, count, b.out, b.latent, padded_}, b.own, sum);
            for (int64_t r = 0, after = 0; r < count; r = after) {
                const int64_t latent = chunk.sorted(first + r).latent;
                for (after = r + 1; after < count && chunk.sorted(first + after).latent == latent;) ++after;
                add_rows(latent == edge_latent ? sum.edge : p_grad_ + latent * channels, b.latent + r * padded_,
                         padded_, after - r, channels, padded_, b.run);
            }
        }
    }

    void add_edge(const Chunk& chunk, int64_t begin, const Sums& sum) {
        if (begin >= static_cast<int64_t>(chunk.rows.size()) || !chunk.starts_inside(begin)) return;
        const int64_t channels = latents_.channels();
        kernel<Sum<T>>().add(p_grad_ + chunk.sorted(begin).latent * channels, sum.edge, channels);
        std::memset(sum.edge, 0, static_cast<size_t>(padded_) * sizeof(Sum<T>));
    }

    template <typename Pick>
    void reduce(Tensor& to, int64_t height, int64_t width, int64_t row, const Pick& pick) const {
        std::vector<const Sum<T>*> parts;
        for (const Sums& sum : sums_) parts.push_back(pick(sum));
        reduce_workers<Sum<T>>(parts, height, width, row, mutable_data<Sum<T>>(to));
    }

    const OutGradient<Sum<T>> grad_;
    const Latents<Sum<T>>& latents_;
    const CoordQueries& queries_;
    const Network<T>& net_;
    const Backward<T> backward_;
    const int corners_;
    const int64_t total_, kept_, own_, padded_;
    Sum<T>* p_grad_;
    int64_t workers_;
    Tensor sum_memory_;
    std::vector<Sums> sums_;
};

}  // namespace liif
