// The MLP after its first linear map, over tiles of rows: forward, and backward with the weight gradients summed into
// buffers of the caller's. A row is a (query, corner) pair; layer 0's output h[0] comes from outside, because the
// operators differ in how they make it (gathered, or multiplied out).
#pragma once

#include "common.h"

namespace liif {

constexpr int64_t kTileRows =
    96;  // a multiple of every kernel's rows; two tiles of 256 floats fit a second-level cache

// A matrix packed for Gemm::b: panels of nr columns, each [k][nr], columns padded with zeros.
// Element (k, n) of the matrix is source[n * step_n + k * step_k].
template <typename T>
struct Packed {
    const T* data;
    int64_t depth, columns;  // columns is padded
};

template <typename T>
Packed<T> pack(const T* source, int64_t step_n, int64_t step_k, int64_t columns, int64_t depth, Arena<T>& arena,
               bool dry) {
    const int64_t nr = kernel<T>().nr;
    const int64_t padded = round_up(columns, nr);
    T* out = arena.take(padded * depth);
    if (!dry) {
        constexpr int64_t block = 16;  // of k: whole cache lines of the source where it is transposed
        for_each_task(padded / nr, [=](int64_t panel) {
            for (int64_t k0 = 0; k0 < depth; k0 += block) {
                const int64_t k1 = std::min(depth, k0 + block);
                for (int64_t j = 0; j < nr; ++j) {
                    const int64_t n = panel * nr + j;
                    T* to = out + (panel * depth + k0) * nr + j;
                    for (int64_t k = k0; k < k1; ++k, to += nr)
                        *to = n < columns ? source[n * step_n + k * step_k] : T(0);
                }
            }
        });
    }
    return {out, depth, padded};
}

// One linear layer of nn.Linear: weight [out, in] with any strides, bias [out].
template <typename T>
struct Layer {
    int64_t in, out, out_padded;
    Packed<T> forward, backward;  // W^T for h W^T, W for the gradient's way back; each only where asked for
    const T* bias;                // [out_padded]
};

template <typename T>
const T* pack_bias(const Tensor& bias, int64_t out, int64_t padded, Arena<T>& arena, bool dry) {
    T* to = arena.take(padded);
    if (!dry) {
        const T* from = bias.template const_data_ptr<T>();
        const int64_t step = bias.stride(0);
        for (int64_t n = 0; n < padded; ++n) to[n] = n < out ? from[n * step] : T(0);
    }
    return to;
}

enum Packs { pack_forward = 1, pack_backward = 2 };

template <typename T>
Layer<T> pack_layer(const Tensor& weight, const Tensor& bias, int packs, Arena<T>& arena, bool dry) {
    Layer<T> layer{};
    layer.out = weight.size(0);
    layer.in = weight.size(1);
    layer.out_padded = round_up(layer.out, kernel<T>().nr);
    const T* w = weight.template const_data_ptr<T>();
    const int64_t row = weight.stride(0), column = weight.stride(1);
    if (packs & pack_forward) layer.forward = pack(w, row, column, layer.out, layer.in, arena, dry);
    if (packs & pack_backward) layer.backward = pack(w, column, row, layer.in, layer.out, arena, dry);
    layer.bias = pack_bias<T>(bias, layer.out, layer.out_padded, arena, dry);
    return layer;
}

// Calls build(arena, dry) twice: to find the size, then to fill `memory`, which must live as long as the result.
template <typename T, typename Build>
auto build_packed(const Tensor& like, Tensor& memory, const Build& build) {
    Arena<T> sizes;
    build(sizes, true);
    memory = make(like, {sizes.used()});
    Arena<T> arena(memory.mutable_data_ptr<T>());
    return build(arena, false);
}

template <typename T>
class Network {
   public:
    // layers[0] is the caller's; here are the others, ReLU before each of them.
    Network(const std::vector<Tensor>& weights, const std::vector<Tensor>& biases, int packs, Arena<T>& arena, bool dry)
        : first_out_(weights[0].size(0)) {
        int64_t widest = first_out_;
        for (size_t i = 1; i < weights.size(); ++i) {
            layers_.push_back(pack_layer<T>(weights[i], biases[i], packs, arena, dry));
            widest = std::max(widest, layers_.back().out);
        }
        const int64_t nr = kernel<T>().nr;
        stride_ = round_up(widest, nr) + nr;  // not a power of two, so that a column's rows do not share cache sets
        out_padded_ = round_up(out(), nr);
    }

    int64_t hidden() const { return static_cast<int64_t>(layers_.size()); }  // ReLU layers; 0: one linear map in all
    int64_t first_out() const { return first_out_; }
    int64_t out() const { return layers_.empty() ? first_out_ : layers_.back().out; }
    int64_t out_padded() const { return out_padded_; }
    int64_t stride() const { return stride_; }                                                 // of rows in every tile
    const Layer<T>& layer(int64_t i) const { return layers_[static_cast<size_t>(i - 1)]; }     // 1 .. hidden()
    int64_t width(int64_t level) const { return level == 0 ? first_out_ : layer(level).out; }  // of h[level]

    // Elements of a row of saved activations: h[1] .. h[hidden - 1], one after the other.
    int64_t saved_width() const {
        int64_t width = 0;
        for (int64_t l = 1; l < hidden(); ++l) width += layer(l).out;
        return width;
    }

    // h[l] = relu(h[l - 1] W_l^T + b_l) for the hidden layers after the first.
    void forward_hidden(T* const* h, int64_t rows) const {
        for (int64_t l = 1; l < hidden(); ++l) {
            const Layer<T>& y = layer(l);
            kernel<T>().gemm({rows, y.out_padded, y.in, h[l - 1], stride_, 1, y.forward.data, y.in * kernel<T>().nr,
                              kernel<T>().nr, h[l], stride_, Init::bias, y.bias, Epilogue::relu, nullptr});
        }
    }

    // The last linear layer on rows of h: out [rows, out_padded], from the bias or, accumulating, from what out holds.
    void forward_last(const T* h, int64_t rows, T* out, Init init = Init::bias) const {
        const Layer<T>& y = layers_.back();
        kernel<T>().gemm({rows, y.out_padded, y.in, h, stride_, 1, y.forward.data, y.in * kernel<T>().nr,
                          kernel<T>().nr, out, out_padded_, init, y.bias, Epilogue::none, nullptr});
    }

   private:
    int64_t first_out_, stride_, out_padded_;
    std::vector<Layer<T>> layers_;
};

// Weight gradients of one worker, summed in a fixed order: tiles in the order in which the worker visits them.
template <typename T>
struct Gradients {
    // Of layer l at [l], [0] being the caller's: [out][padded in], and [2][out_padded] for sums and their carries.
    std::vector<T*> weight, bias;
};

template <typename T>
class Backward {
   public:
    explicit Backward(const Network<T>& net) : net_(net) {}

    // One worker's share of the gradients of layers 1 .. hidden, in an arena that starts as zeros.
    Gradients<T> gradients(Arena<T>& arena) const {
        Gradients<T> g{{nullptr}, {nullptr}};
        for (int64_t l = 1; l <= net_.hidden(); ++l) {
            g.weight.push_back(arena.take(net_.layer(l).out * padded_in(l)));
            g.bias.push_back(arena.take(2 * net_.layer(l).out_padded));
        }
        return g;
    }

    int64_t padded_in(int64_t l) const { return round_up(net_.layer(l).in, kernel<T>().nr); }

    // From the gradient at the output, [rows, out_padded], to the gradient at h[0] before its ReLU, in `g` with
    // net.stride(); `other` is as large. h[0 .. hidden - 1] are the rows' activations.
    void run(T* const* h, const T* out_gradient, int64_t rows, T*& g, T*& other, const Gradients<T>& sum) const {
        const auto& kern = kernel<T>();
        const int64_t s = net_.stride();
        const T* from = out_gradient;
        int64_t from_stride = net_.out_padded();
        for (int64_t l = net_.hidden(); l >= 1; --l) {
            const Layer<T>& y = net_.layer(l);
            accumulate(from, from_stride, y.out, h[l - 1], s, padded_in(l), rows, sum.weight[static_cast<size_t>(l)]);
            T* bias = sum.bias[static_cast<size_t>(l)];
            kern.sum_rows(from, from_stride, rows, y.out_padded, bias, bias + y.out_padded);
            kern.gemm({rows, padded_in(l), y.out, from, from_stride, 1, y.backward.data, y.out * kern.nr, kern.nr,
                       other, s, Init::zero, nullptr, Epilogue::mask, h[l - 1]});
            std::swap(g, other);
            from = g;
            from_stride = s;
        }
    }

    // sum[o][i] += sum over rows of gradient[row][o] * input[row][i]
    static void accumulate(const T* gradient, int64_t gradient_stride, int64_t outs, const T* input,
                           int64_t input_stride, int64_t padded_ins, int64_t rows, T* sum) {
        const auto& kern = kernel<T>();
        kern.gemm({outs, padded_ins, rows, gradient, 1, gradient_stride, input, kern.nr, input_stride, sum, padded_ins,
                   Init::accumulate, nullptr, Epilogue::none, nullptr});
    }

   private:
    const Network<T>& net_;
};

// Adds the workers' sums in the order of the workers and crops the padding: to[r][c] for r < rows, c < columns.
template <typename T>
void reduce_workers(const std::vector<const T*>& sums, int64_t rows, int64_t columns, int64_t stride, T* to) {
    for_each_task(rows, [&](int64_t r) {
        for (int64_t c = 0; c < columns; ++c) {
            T sum = sums[0][r * stride + c];
            for (size_t w = 1; w < sums.size(); ++w) sum += sums[w][r * stride + c];
            to[r * columns + c] = sum;
        }
    });
}

}  // namespace liif
