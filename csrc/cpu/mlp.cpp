// liif_fast::fused_mlp and fused_mlp_backward: a chain of Linear and ReLU over rows, tile by tile through all layers.
#include <algorithm>

#include "checks.h"
#include "memory.h"
#include "network.h"
#include "operators.h"

namespace liif {
namespace {

struct TileTag {};

// Layer 0, which reads rows of x, and the layers behind it.
template <typename T>
struct Mlp {
    Layer<T> first;
    Network<T> rest;

    Mlp(const Tensors& weights, const Tensors& biases, int packs, Arena& arena, bool dry)
        : first(pack_layer<T>(weights[0], biases[0], packs, arena, dry)),
          rest(weights[0].size(0), weights, biases, 1, packs, arena, dry) {}

    template <typename C>
    void forward_first(const T* x, int64_t x_stride, int64_t rows, C* h, int64_t h_stride) const {
        multiply(rows, x, x_stride, first.forward, h, h_stride, Init::bias, first.bias,
                 rest.hidden() > 0 ? Epilogue::relu : Epilogue::none, static_cast<const T*>(nullptr));
    }
};

// Elements of a row of saved activations: h[0] .. h[hidden - 1].
template <typename T>
int64_t saved_width(const Network<T>& rest) {
    return rest.hidden() > 0 ? rest.first_out() + rest.saved_width() : 0;
}

// Copies rows of x, with zeros up to the stride.
template <typename T>
void copy_rows(T* to, int64_t stride, const T* x, int64_t x_stride, int64_t width, int64_t rows) {
    for (int64_t r = 0; r < rows; ++r) {
        std::memcpy(to + r * stride, x + r * x_stride, static_cast<size_t>(width) * sizeof(T));
        std::fill(to + r * stride + width, to + (r + 1) * stride, T{});
    }
}

template <typename T>
std::tuple<Tensor, Tensor> run(const Tensor& x, const Tensors& weights, const Tensors& biases, const Ints& shape) {
    Tensor packed;
    const auto net = build_packed(x, packed, [&](Arena& arena, bool dry) {
        return Mlp<T>(weights, biases, forward_packs<T>(x.size(0)), arena, dry);
    });
    const Network<T>& rest = net.rest;
    const int64_t total = x.size(0), tile = tile_rows(total), outs = rest.out(), hidden = rest.hidden(),
                  stride = rest.stride();
    const int64_t keep = hidden > 0 ? shape[0] : 0;
    const int64_t levels = rest.levels(), buffers = keep > 0 ? levels : std::min<int64_t>(levels, 2);
    const int64_t ins = net.first.in, padded_in = round_up(ins, kDepth<T>);
    Tensor out = make<Sum<T>>(x, {total, outs});
    check_saved_width(shape[0], shape[1], saved_width(rest));
    Tensor saved = make_saved<T>(x, shape[0], shape[1]);
    const T* from = data<T>(x);
    const int64_t x_stride = x.stride(0);
    Sum<T>* to = mutable_data<Sum<T>>(out);
    T* to_saved = mutable_data<T>(saved);
    for_each_task(ceil_div(total, tile), [&](int64_t task) {
        const int64_t first = task * tile, rows = std::min(tile, total - first);
        const auto b = in_scratch<TileTag>([&](Arena& arena) {
            struct {
                std::vector<T*> h;
                T* x;
                Sum<T>*top, *out;
            } b;
            for (int64_t l = 0; l < levels; ++l) {
                b.h.push_back(l < buffers ? arena.take<T>(kTileRows * stride) : b.h[static_cast<size_t>(l % 2)]);
            }
            b.x = arena.take<T>(padded_in > ins ? kTileRows * padded_in : 0);
            b.top = arena.take<Sum<T>>(std::is_same_v<T, Sum<T>> ? 0 : kTileRows * stride);
            b.out = arena.take<Sum<T>>(kTileRows * rest.out_padded());
            return b;
        });
        const T* in = from + first * x_stride;
        int64_t in_stride = x_stride;
        if (padded_in > ins) {
            copy_rows(b.x, padded_in, in, x_stride, ins, rows);
            in = b.x, in_stride = padded_in;
        }
        const Sum<T>* top = nullptr;
        if (hidden > 0) {
            net.forward_first(in, in_stride, rows, b.h[0], stride);
            top = rest.forward_top(b.h.data(), rows, b.top);
            rest.forward_last(top, rows, b.out);
        } else {
            net.forward_first(in, in_stride, rows, b.out, rest.out_padded());
        }
        for (int64_t r = 0; r < rows; ++r) {
            std::memcpy(to + (first + r) * outs, b.out + r * rest.out_padded(),
                        static_cast<size_t>(outs) * sizeof(Sum<T>));
            if (first + r >= keep || hidden == 0) continue;
            T* row = to_saved + (first + r) * saved_width(rest);
            for (int64_t l = 0; l < hidden - 1; row += rest.width(l), ++l) {
                std::memcpy(row, b.h[static_cast<size_t>(l)] + r * stride,
                            static_cast<size_t>(rest.width(l)) * sizeof(T));
            }
            narrow_row(row, top + r * stride, rest.width(hidden - 1));
        }
    });
    return {out, saved};
}

template <typename T>
Tensors run_backward(const Tensor& grad, const Tensor& x, const Tensors& weights, const Tensors& biases,
                     const Tensor& saved, const Flags& wanted) {
    const int64_t kept = saved.size(0), nr = kernel<T>().nr;
    const bool of_x = wanted[0], of_weight = wanted[1], of_bias = wanted[2];
    Tensor packed;
    const auto net = build_packed(x, packed, [&](Arena& arena, bool dry) {
        return Mlp<T>(weights, biases, pack_backward | (kept == x.size(0) ? 0 : pack_forward), arena, dry);
    });
    const Network<T>& rest = net.rest;
    check_saved_width(kept, saved.size(1), saved_width(rest));
    const Backward<T> backward(rest, Flags(wanted.begin() + 3, wanted.end()), of_x || of_weight || of_bias);
    const int64_t total = x.size(0), ins = net.first.in, outs = rest.out(), hidden = rest.hidden();
    const int64_t stride = rest.stride(), levels = rest.levels(), padded_in = round_up(ins, nr);

    const int64_t workers =
        std::max<int64_t>(1, std::min<int64_t>(torch::stable::get_num_threads(), ceil_div(total, kTileRows)));
    const auto sums_of = [&](Arena& arena) {
        std::vector<Gradients<T>> sums;
        for (int64_t w = 0; w < workers; ++w) {
            Gradients<T> sum = backward.gradients(arena);
            sum.weight[0] = of_weight ? arena.take<Sum<T>>(net.first.out * padded_in) : nullptr;
            sum.bias[0] = of_bias ? arena.take<Sum<T>>(2 * net.first.out_padded) : nullptr;
            sums.push_back(sum);
        }
        return sums;
    };
    Arena sizes;
    sums_of(sizes);
    Tensor sum_memory = make_zeros<unsigned char>(x, {sizes.used()});
    Arena sum_arena(mutable_data<unsigned char>(sum_memory));
    const auto sums = sums_of(sum_arena);

    Tensor x_grad = of_x ? make<T>(x, {total, ins}) : make<T>(x, {0});
    T* to = mutable_data<T>(x_grad);
    const T *from = data<T>(x), *activations = data<T>(saved);
    const Sum<T>* from_grad = data<Sum<T>>(grad);
    const int64_t x_stride = x.stride(0);
    const int64_t share = round_up(ceil_div(total, workers), kTileRows);
    torch::stable::parallel_for(0, workers, 1, [&](int64_t worker_begin, int64_t worker_end) {
        for (int64_t w = worker_begin; w < worker_end; ++w) {
            const Gradients<T>& sum = sums[static_cast<size_t>(w)];
            auto b = in_scratch<TileTag>([&](Arena& arena) {
                struct {
                    std::vector<T*> h;
                    typename Backward<T>::Tiles tiles;
                    T *first, *out, *x;
                } b;
                for (int64_t l = 0; l < levels; ++l) b.h.push_back(arena.take<T>(kTileRows * stride));
                b.tiles = backward.tiles(arena, padded_in);
                b.first = arena.take<T>(kTileRows * stride);
                b.out = arena.take<T>(kTileRows * rest.out_padded());
                b.x = arena.take<T>(kTileRows * padded_in);
                return b;
            });
            const int64_t end = std::min(total, (w + 1) * share);
            for (int64_t first = w * share; first < end; first += kTileRows) {
                const int64_t rows = std::min(kTileRows, end - first);
                const bool have_saved = first + rows <= kept;
                // Padded, because the kernel reads whole panels.
                copy_rows(b.x, padded_in, from + first * x_stride, x_stride, ins, rows);
                for (int64_t r = 0; r < rows; ++r) {
                    T* out = b.out + r * rest.out_padded();
                    narrow_row(out, from_grad + (first + r) * outs, outs);
                    std::fill(out + outs, out + rest.out_padded(), T{});
                    const T* row = activations + (first + r) * saved_width(rest);
                    for (int64_t l = 0; have_saved && l < hidden; row += rest.width(l), ++l) {
                        std::memcpy(b.h[static_cast<size_t>(l)] + r * stride, row,
                                    static_cast<size_t>(rest.width(l)) * sizeof(T));
                    }
                }
                const T* g = b.out;
                int64_t g_stride = rest.out_padded();
                if (hidden > 0) {
                    if (!have_saved) {
                        net.forward_first(b.x, padded_in, rows, b.h[0], stride);
                        rest.forward_hidden(b.h.data(), rows);
                    }
                    backward.run(b.h.data(), b.out, rows, b.tiles, b.first, sum, b.h[0]);
                    g = b.first, g_stride = stride;
                }
                if (of_weight) {
                    Backward<T>::accumulate(g, g_stride, net.first.out, b.x, padded_in, ins, rows, b.tiles,
                                            sum.weight[0]);
                }
                if (of_bias) {
                    kernel<T>().sum_rows(g, g_stride, rows, net.first.out_padded, sum.bias[0],
                                         sum.bias[0] + net.first.out_padded);
                }
                if (!of_x) continue;
                multiply(rows, g, g_stride, net.first.backward, b.x, padded_in, Init::zero,
                         static_cast<const Sum<T>*>(nullptr), Epilogue::none, static_cast<const T*>(nullptr));
                for (int64_t r = 0; r < rows; ++r) {
                    std::memcpy(to + (first + r) * ins, b.x + r * padded_in, static_cast<size_t>(ins) * sizeof(T));
                }
            }
        }
    });

    Tensors result{x_grad};
    for (size_t l = 0; l < weights.size(); ++l) {
        const Layer<T>& layer = l == 0 ? net.first : rest.layer(static_cast<int64_t>(l));
        reduce_layer(x, sums, layer, l, [](const Gradients<T>& sum) -> const Gradients<T>& { return sum; }, result);
    }
    return result;
}

}  // namespace

std::tuple<Tensor, Tensor> fused_mlp(const Tensor& x, const Tensors& weights, const Tensors& biases,
                                     const Ints& saved) {
    check_rows(x, weights, biases);
    check_saved_shape(saved, x.size(0), 1);
    return dispatch(x, [&](auto t) { return run<decltype(t)>(x, weights, biases, saved); });
}

Tensors fused_mlp_backward(const Tensor& grad, const Tensor& x, const Tensors& weights, const Tensors& biases,
                           const Tensor& saved, const Flags& wanted) {
    check_rows(x, weights, biases);
    check_wanted(wanted, 1 + 2 * weights.size());
    check_gradient(grad, {x.size(0), weights.back().size(0)}, saved, x.size(0));
    STD_TORCH_CHECK(grad.is_contiguous(), "liif_fast: grad must be contiguous");
    return dispatch(x, [&](auto t) { return run_backward<decltype(t)>(grad, x, weights, biases, saved, wanted); });
}

}  // namespace liif
