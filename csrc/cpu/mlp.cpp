// liif_fast::fused_mlp and fused_mlp_backward: a chain of Linear and ReLU over rows, tile by tile through all layers.
#include <algorithm>

#include "checks.h"
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

    Mlp(const Tensors& weights, const Tensors& biases, int packs, Arena<T>& arena, bool dry)
        : first(pack_layer<T>(weights[0], biases[0], packs, arena, dry)), rest(weights, biases, packs, arena, dry) {}

    void forward_first(const T* x, int64_t x_stride, int64_t rows, T* h) const {
        const auto& kern = kernel<T>();
        kern.gemm({rows, first.out_padded, first.in, x, x_stride, 1, first.forward.data, first.in * kern.nr, kern.nr, h,
                   rest.stride(), Init::bias, first.bias, rest.hidden() > 0 ? Epilogue::relu : Epilogue::none,
                   nullptr});
    }
};

template <typename T>
std::tuple<Tensor, Tensor> run(const Tensor& x, const Tensors& weights, const Tensors& biases, const Ints& shape) {
    Tensor packed;
    const auto net = build_packed<T>(
        x, packed, [&](Arena<T>& arena, bool dry) { return Mlp<T>(weights, biases, pack_forward, arena, dry); });
    const Network<T>& rest = net.rest;
    const int64_t total = x.size(0), outs = rest.out(), hidden = rest.hidden(), stride = rest.stride();
    const int64_t keep = hidden > 0 ? shape[0] : 0;
    const int64_t levels = std::max<int64_t>(hidden, 1), buffers = keep > 0 ? levels : std::min<int64_t>(levels, 2);
    const int64_t saved_width = hidden > 0 ? rest.saved_width() + rest.first_out() : 0;
    Tensor out = make(x, {total, outs});
    check_saved_width(shape[0], shape[1], saved_width);
    Tensor saved = make_saved(x, shape[0], shape[1]);
    const T* from = x.const_data_ptr<T>();
    const int64_t x_stride = x.stride(0);
    T* to = out.mutable_data_ptr<T>();
    T* to_saved = saved.mutable_data_ptr<T>();
    for_each_task(ceil_div(total, kTileRows), [&](int64_t task) {
        const int64_t first = task * kTileRows, rows = std::min(kTileRows, total - first);
        const auto b = in_scratch<T, TileTag>([&](Arena<T>& arena) {
            struct {
                std::vector<T*> h;
                T* out;
            } b;
            for (int64_t l = 0; l < levels; ++l) {
                b.h.push_back(l < buffers ? arena.take(kTileRows * stride) : b.h[static_cast<size_t>(l % 2)]);
            }
            b.out = arena.take(kTileRows * rest.out_padded());
            return b;
        });
        const std::vector<T*>& h = b.h;
        T* y = b.out;
        net.forward_first(from + first * x_stride, x_stride, rows, h[0]);
        rest.forward_hidden(h.data(), rows);
        int64_t y_stride = stride;
        if (hidden > 0) {
            rest.forward_last(h.back(), rows, y);
            y_stride = rest.out_padded();
        } else {
            y = h[0];
        }
        for (int64_t r = 0; r < rows; ++r) {
            std::memcpy(to + (first + r) * outs, y + r * y_stride, static_cast<size_t>(outs) * sizeof(T));
            if (first + r >= keep) continue;
            T* row = to_saved + (first + r) * saved_width;
            for (int64_t l = 0; l < hidden; row += rest.width(l), ++l) {
                std::memcpy(row, h[static_cast<size_t>(l)] + r * stride,
                            static_cast<size_t>(rest.width(l)) * sizeof(T));
            }
        }
    });
    return {out, saved};
}

template <typename T>
Tensors run_backward(const Tensor& grad, const Tensor& x, const Tensors& weights, const Tensors& biases,
                     const Tensor& saved) {
    const auto& kern = kernel<T>();
    const int64_t kept = saved.size(0);
    Tensor packed;
    const auto net = build_packed<T>(x, packed, [&](Arena<T>& arena, bool dry) {
        return Mlp<T>(weights, biases, pack_backward | (kept == x.size(0) ? 0 : pack_forward), arena, dry);
    });
    const Network<T>& rest = net.rest;
    check_saved_width(kept, saved.size(1), rest.hidden() > 0 ? rest.saved_width() + rest.first_out() : 0);
    const Backward<T> backward(rest);
    const int64_t total = x.size(0), ins = net.first.in, outs = rest.out(), hidden = rest.hidden();
    const int64_t stride = rest.stride(), levels = std::max<int64_t>(hidden, 1);
    const int64_t padded_in = round_up(ins, kern.nr);

    const int64_t workers =
        std::max<int64_t>(1, std::min<int64_t>(torch::stable::get_num_threads(), ceil_div(total, kTileRows)));
    const auto sums_of = [&](Arena<T>& arena) {
        std::vector<Gradients<T>> sums;
        for (int64_t w = 0; w < workers; ++w) {
            Gradients<T> sum = backward.gradients(arena);
            sum.weight[0] = arena.take(net.first.out * padded_in);
            sum.bias[0] = arena.take(2 * net.first.out_padded);
            sums.push_back(sum);
        }
        return sums;
    };
    Arena<T> sizes;
    sums_of(sizes);
    Tensor sum_memory = make_zeros(x, {sizes.used()});
    Arena<T> sum_arena(sum_memory.mutable_data_ptr<T>());
    const auto sums = sums_of(sum_arena);

    Tensor x_grad = make(x, {total, ins});
    T* to = x_grad.mutable_data_ptr<T>();
    const T *from = x.const_data_ptr<T>(), *from_grad = grad.const_data_ptr<T>();
    const T* activations = saved.const_data_ptr<T>();
    const int64_t saved_width = rest.saved_width() + rest.first_out(), x_stride = x.stride(0);
    const int64_t share = round_up(ceil_div(total, workers), kTileRows);
    torch::stable::parallel_for(0, workers, 1, [&](int64_t worker_begin, int64_t worker_end) {
        for (int64_t w = worker_begin; w < worker_end; ++w) {
            const Gradients<T>& sum = sums[static_cast<size_t>(w)];
            auto b = in_scratch<T, TileTag>([&](Arena<T>& arena) {
                struct {
                    std::vector<T*> h;
                    T *g, *other, *out, *x;
                } b;
                for (int64_t l = 0; l < levels; ++l) b.h.push_back(arena.take(kTileRows * stride));
                b.g = arena.take(kTileRows * stride);
                b.other = arena.take(kTileRows * stride);
                b.out = arena.take(kTileRows * rest.out_padded());
                b.x = arena.take(kTileRows * padded_in);
                return b;
            });
            const int64_t end = std::min(total, (w + 1) * share);
            for (int64_t first = w * share; first < end; first += kTileRows) {
                const int64_t rows = std::min(kTileRows, end - first);
                const bool have_saved = first + rows <= kept;
                for (int64_t r = 0; r < rows; ++r) {
                    const T* y = from_grad + (first + r) * outs;
                    for (int64_t o = 0; o < rest.out_padded(); ++o)
                        b.out[r * rest.out_padded() + o] = o < outs ? y[o] : T(0);
                    // Padded, because whole panels are read.
                    std::memcpy(b.x + r * padded_in, from + (first + r) * x_stride,
                                static_cast<size_t>(ins) * sizeof(T));
                    std::fill(b.x + r * padded_in + ins, b.x + (r + 1) * padded_in, T(0));
                    const T* row = activations + (first + r) * saved_width;
                    for (int64_t l = 0; have_saved && l < hidden; row += rest.width(l), ++l) {
                        std::memcpy(b.h[static_cast<size_t>(l)] + r * stride, row,
                                    static_cast<size_t>(rest.width(l)) * sizeof(T));
                    }
                }
                if (!have_saved && hidden > 0) {
                    net.forward_first(b.x, padded_in, rows, b.h[0]);
                    rest.forward_hidden(b.h.data(), rows);
                }
                backward.run(b.h.data(), b.out, rows, b.g, b.other, sum);
                const T* g = hidden > 0 ? b.g : b.out;
                const int64_t g_stride = hidden > 0 ? stride : rest.out_padded();
                Backward<T>::accumulate(g, g_stride, net.first.out, b.x, padded_in, padded_in, rows, sum.weight[0]);
                kern.sum_rows(g, g_stride, rows, net.first.out_padded, sum.bias[0], sum.bias[0] + net.first.out_padded);
                kern.gemm({rows, padded_in, net.first.out, g, g_stride, 1, net.first.backward.data,
                           net.first.out * kern.nr, kern.nr, b.x, padded_in, Init::zero, nullptr, Epilogue::none,
                           nullptr});
                for (int64_t r = 0; r < rows; ++r) {
                    std::memcpy(to + (first + r) * ins, b.x + r * padded_in, static_cast<size_t>(ins) * sizeof(T));
                }
            }
        }
    });

    Tensors result{x_grad};
    for (size_t l = 0; l < weights.size(); ++l) {
        const Layer<T>& layer = l == 0 ? net.first : rest.layer(static_cast<int64_t>(l));
        std::vector<const T*> w_parts, b_parts;
        for (const auto& sum : sums) w_parts.push_back(sum.weight[l]), b_parts.push_back(sum.bias[l]);
        Tensor w = make(x, {layer.out, layer.in}), b = make(x, {layer.out});
        reduce_workers<T>(w_parts, layer.out, layer.in, round_up(layer.in, kern.nr), w.mutable_data_ptr<T>());
        reduce_workers<T>(b_parts, 1, layer.out, layer.out_padded, b.mutable_data_ptr<T>());
        result.push_back(w);
        result.push_back(b);
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
                           const Tensor& saved) {
    check_rows(x, weights, biases);
    check_gradient(grad, {x.size(0), weights.back().size(0)}, saved, x.size(0));
    STD_TORCH_CHECK(grad.is_contiguous(), "liif_fast: grad must be contiguous");
    return dispatch(x, [&](auto t) { return run_backward<decltype(t)>(grad, x, weights, biases, saved); });
}

}  // namespace liif
