// Shared by the backward passes of decode, fourier_decode and modulated_decode: a pass over rows, one per (query,
// corner), in the order of the latent that they read, so that each latent's gradient is one sum in a fixed order.
// Queries go in chunks, which bounds the memory. The forward pass saved the activations of the first queries; the
// others are computed again, tile by tile.
#pragma once

#include "checks.h"
#include "chunk.h"
#include "memory.h"

namespace liif {

// Which gradients of a pass are wanted: of the latents, of what only one operator has (`own`), of the layers' weight,
// bias, ..., and of rel, the cell and the corners' weights.
struct Wanted {
    bool latents, own;
    Flags layers;
    bool places;

    // `flags` are in this order, without `own` if the operator has none, for so many layers.
    Wanted(const Flags& flags, size_t count, bool has_own = true) {
        check_wanted(flags, 2 * count + (has_own ? 3 : 2));
        latents = flags[0];
        own = has_own && flags[1];
        layers = Flags(flags.end() - static_cast<int64_t>(2 * count) - 1, flags.end() - 1);
        places = flags.back();
    }

    bool first() const { return latents || own || places; }  // whether a gradient needs that at h[0]
};

template <typename T, typename Latents, typename Queries>
class RowsBackward {
   public:
    // The sums of one worker: the gradients of the layers, the operator's own, and the gradient of its first latent if
    // the worker before it ends in the same one. Null if unwanted.
    struct Sums {
        Gradients<T> layers;
        Sum<T>*own, *edge;
    };

    // The rows of one tile, the gradient at their outputs [count, net.out_padded()], rounded and not, and a place for
    // the gradients of their latents, `step` apart, which is at least net.stride(). The pass back may overwrite `wide`.
    struct Rows {
        const Chunk& chunk;
        int64_t first, count;
        const T* out;
        Sum<T>*wide, *to;
        int64_t step;
        int corners;

        const Row& operator[](int64_t r) const { return chunk.sorted(first + r); }
        // The row's number in the order image, query, corner.
        int64_t number(int64_t r) const { return chunk.first * corners + chunk.order[static_cast<size_t>(first + r)]; }
    };

    // p_grad: zeros of the latents' shape, if wanted. A worker has `own` sums of the operator's own. `saved` holds
    // activations of the first queries.
    RowsBackward(const Tensor& grad, const Latents& latents, const Queries& queries, const Network<T>& net, int corners,
                 int64_t total, const Wanted& wanted, int64_t own, Tensor& p_grad, const Tensor* saved = nullptr)
        : wanted_(wanted),
          grad_(grad),
          latents_(latents),
          queries_(queries),
          net_(net),
          backward_(net, wanted.layers, wanted.first()),
          corners_(corners),
          total_(total),
          kept_(saved == nullptr ? 0 : saved->size(0) / corners),
          own_(own),
          padded_(round_up(latents.channels(), kernel<Sum<T>>().nr)),
          step_(std::max(padded_, net.stride())),
          saved_(saved == nullptr ? nullptr : data<T>(*saved)),
          p_grad_(mutable_data<Sum<T>>(p_grad)) {
        if (saved != nullptr) check_saved_width(saved->size(0), saved->size(1), net.saved_width());
        const int64_t threads = torch::stable::get_num_threads();
        workers_ = std::max<int64_t>(1, std::min(threads, ceil_div(total_ * corners, kTileRows)));
        Arena sizes;
        make_sums(sizes);
        sum_memory_ = make_zeros<unsigned char>(p_grad, {sizes.used()});
        Arena arena(mutable_data<unsigned char>(sum_memory_));
        sums_ = make_sums(arena);
    }

    const Backward<T>& backward() const { return backward_; }

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
            for (int64_t w = 1; wanted_.latents && w < workers_; ++w) {
                add_edge(chunk, w * share, sums_[static_cast<size_t>(w)]);
            }
            chunk.first += chunk.count;
        }
    }

    // The activations behind h[0], which the forward pass has saved, or which are computed again.
    void activations(const Rows& rows, T* const* h) const {
        if (!rows.chunk.saved) return net_.forward_hidden(h, rows.count);
        for (int64_t r = 0; r < rows.count; ++r) {
            const T* from = saved_ + rows.number(r) * net_.saved_width();
            for (int64_t l = 1; l < net_.hidden(); from += net_.width(l), ++l) {
                std::memcpy(h[l] + r * net_.stride(), from, static_cast<size_t>(net_.width(l)) * sizeof(T));
            }
        }
    }

    // The outputs of rows whose last hidden activations are `top`, in rows.wide; `memory` holds a tile of sums if their
    // type is not T.
    const Sum<T>* outputs(const Rows& rows, const T* top, Sum<T>* memory) const {
        const int64_t stride = net_.stride();
        const Sum<T>* sums = memory;
        if constexpr (std::is_same_v<T, Sum<T>>) {
            sums = top;
        } else {
            for (int64_t r = 0; r < rows.count; ++r) {
                kernel<T>().widen(memory + r * stride, top + r * stride, net_.width(net_.levels() - 1));
            }
        }
        net_.forward_last(sums, rows.count, rows.wide);
        return rows.wide;
    }

    // The gradient of the weight of a row's corner, from the row's output.
    template <typename Out>
    Sum<T> of_weight(const Rows& rows, int64_t r, const Out* out) const {
        const Sum<T>* y = grad_.query(rows.number(r) / corners_);
        Sum<T> sum(0);
        for (int64_t o = 0; o < net_.out(); ++o) sum += y[o * grad_.step_out()] * convert<Sum<T>>(out[o]);
        return sum;
    }

    // Weight and bias of each layer.
    void layer_gradients(const Tensor& like, std::vector<Tensor>& result) const {
        for (int64_t l = 1; l <= net_.hidden(); ++l) {
            reduce_layer(
                like, sums_, net_.layer(l), static_cast<size_t>(l),
                [](const Sums& s) -> const Gradients<T>& { return s.layers; }, result);
        }
    }

    // The workers' own sums, [height, width] of rows `row` apart.
    Tensor own_gradient(const Tensor& like, int64_t height, int64_t width, int64_t row) const {
        return reduce_workers<Sum<T>>(like, sums_, {height, width}, row, [](const Sums& s) { return s.own; });
    }

   private:
    std::vector<Sums> make_sums(Arena& arena) const {
        std::vector<Sums> sums;
        for (int64_t w = 0; w < workers_; ++w) {
            sums.push_back({backward_.gradients(arena), wanted_.own ? arena.take<Sum<T>>(own_) : nullptr,
                            wanted_.latents ? arena.take<Sum<T>>(padded_) : nullptr});
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
            for (int64_t o = 0; o < padded; ++o) {
                wide[r * padded + o] = o < outs ? weight * y[o * grad_.step_out()] : Sum<T>(0);
            }
        }
        narrow_row(out, wide, count * padded);
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
            b.wide = arena.take<Sum<T>>(kTileRows * net_.out_padded());
            b.latent = arena.take<Sum<T>>(kTileRows * step_);
            b.run = arena.take<Sum<T>>(padded_);
            b.own = layout(arena);
            return b;
        });
        for (int64_t r = 0; r < kTileRows; ++r) {
            std::fill(b.latent + r * step_ + channels, b.latent + r * step_ + padded_, Sum<T>(0));
        }
        for (int64_t first = begin; first < end; first += kTileRows) {
            const int64_t count = std::min(kTileRows, end - first);
            fill(chunk, first, count, b.out, b.wide);
            each(Rows{chunk, first, count, b.out, b.wide, b.latent, step_, corners_}, b.own, sum);
            if (!wanted_.latents) continue;
            for (int64_t r = 0, after = 0; r < count; r = after) {
                const int64_t latent = chunk.sorted(first + r).latent;
                for (after = r + 1; after < count && chunk.sorted(first + after).latent == latent;) ++after;
                add_rows(latent == edge_latent ? sum.edge : p_grad_ + latent * channels, b.latent + r * step_, step_,
                         after - r, channels, padded_, b.run);
            }
        }
    }

    void add_edge(const Chunk& chunk, int64_t begin, const Sums& sum) {
        if (begin >= static_cast<int64_t>(chunk.rows.size()) || !chunk.starts_inside(begin)) return;
        const int64_t channels = latents_.channels();
        kernel<Sum<T>>().add(p_grad_ + chunk.sorted(begin).latent * channels, sum.edge, channels);
        std::memset(sum.edge, 0, static_cast<size_t>(padded_) * sizeof(Sum<T>));
    }

    const Wanted wanted_;
    const OutGradient<Sum<T>> grad_;
    const Latents& latents_;
    const Queries& queries_;
    const Network<T>& net_;
    const Backward<T> backward_;
    const int corners_;
    const int64_t total_, kept_, own_, padded_, step_;
    const T* saved_;
    Sum<T>* p_grad_;
    int64_t workers_;
    Tensor sum_memory_;
    std::vector<Sums> sums_;
};

}  // namespace liif
