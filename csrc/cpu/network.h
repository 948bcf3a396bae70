// The MLP after its first linear map, over tiles of rows: forward, and backward with the weight gradients summed into
// the caller's buffers. A row is a (query, corner) pair. Layer 0's output h[0] comes from outside, because the
// operators compute it in different ways (gathered, or multiplied out).
#pragma once

#include <atomic>
#include <type_traits>

#include "common.h"

namespace liif {

constexpr int64_t kTileRows =
    96;  // a multiple of every kernel's rows; two tiles of 256 floats fit a second-level cache

// A matrix for Gemm::b: panels of nr columns, each [steps][nr][kDepth], padded with zeros; or, if `column` is not 0, as
// the caller has it, with columns so far apart. `skips`: whether Gemm may skip terms.
template <typename T>
struct Packed {
    const T* data;
    int64_t steps, columns, column = 0;
    bool skips = false;

    int64_t step() const { return kernel<T>().nr * kDepth<T>; }
    int64_t panel() const { return steps * step(); }
};

// Whether turn_panel takes columns `step` apart: it moves pairs of bfloat16 as wholes.
template <typename T>
bool turns(const T* from, int64_t step, int64_t depth) {
    constexpr int64_t pair = kDepth<T>;
    return step % pair == 0 && depth % pair == 0 && reinterpret_cast<uintptr_t>(from) % (pair * sizeof(T)) == 0;
}

// A panel of nr columns and `depth` rows whose column n is at from + n * step: to[k * nr + n] = from[n * step + k], or
// as much for pairs of k.
template <typename T>
void turn_panel(const T* from, int64_t step, int64_t depth, T* to) {
    using Word = std::conditional_t<kDepth<T> == 1, T, float>;
    const int64_t nr = kernel<T>().nr;
    std::vector<const Word*> columns;
    for (int64_t n = 0; n < nr; ++n) columns.push_back(reinterpret_cast<const Word*>(from + n * step));
    kernel<Word>().attention->transpose(reinterpret_cast<Word*>(to), nr, columns.data(), nr, depth / kDepth<T>);
}

// The same for a panel whose row k is at from + k * step.
template <typename T>
void copy_panel(const T* from, int64_t step, int64_t depth, T* to) {
    const int64_t nr = kernel<T>().nr;
    if constexpr (kDepth<T> > 1) {
        kernel<T>().pair_rows(to, from, step, depth, nr);
    } else {
        for (int64_t k = 0; k < depth; ++k)
            std::memcpy(to + k * nr, from + k * step, static_cast<size_t>(nr) * sizeof(T));
    }
}

// A panel of `count` columns, the rest zeros, whose element (k, n) is from[n * step_n + k * step_k].
template <typename T, typename Source>
void pack_panel(const Source* from, int64_t step_n, int64_t step_k, int64_t count, int64_t depth, T* to) {
    constexpr int64_t pair = kDepth<T>;
    const int64_t nr = kernel<T>().nr;
    if constexpr (std::is_same_v<T, Source>) {
        if (step_k == 1 && count == nr && turns(from, step_n, depth)) return turn_panel(from, step_n, depth, to);
        if (step_n == 1 && count == nr) return copy_panel(from, step_k, depth, to);
    }
    for (int64_t k = 0; k < round_up(depth, pair); ++k) {
        T* row = to + k / pair * nr * pair + k % pair;
        const int64_t held = k < depth ? count : 0;
        for (int64_t n = 0; n < held; ++n) row[n * pair] = convert<T>(from[n * step_n + k * step_k]);
        for (int64_t n = held; n < nr; ++n) row[n * pair] = T{};
    }
}

// Whether no number is infinite or NaN. Those have an exponent of ones, to which adding 1 carries into the sign's bit.
template <typename T>
bool all_finite(const T* x, int64_t count) {
    using Narrow = std::conditional_t<sizeof(T) == 2, uint16_t, uint32_t>;
    using Bits = std::conditional_t<sizeof(T) == 8, uint64_t, Narrow>;
    constexpr int mantissa = sizeof(T) == 2 ? 7 : sizeof(T) == 4 ? 23 : 52;
    constexpr Bits sign = static_cast<Bits>(Bits(1) << (8 * sizeof(T) - 1)), one = Bits(1) << mantissa;
    Bits carries = 0;
    for (int64_t i = 0; i < count; ++i) {
        Bits bits;
        std::memcpy(&bits, x + i, sizeof(bits));
        carries = static_cast<Bits>(carries | ((bits & ~sign) + one));
    }
    return (carries & sign) == 0;
}

// Element (k, n) of the matrix is source[n * step_n + k * step_k]. `meets_zeros`: the other factor is often 0.
template <typename T, typename Source>
Packed<T> pack(const Source* source, int64_t step_n, int64_t step_k, int64_t columns, int64_t depth, Arena& arena,
               bool dry, bool meets_zeros = false) {
    constexpr int64_t pair = kDepth<T>;
    const int64_t nr = kernel<T>().nr;
    const int64_t padded = round_up(columns, nr), padded_depth = round_up(depth, pair);
    T* out = arena.take<T>(padded * padded_depth);
    std::atomic<bool> skips{meets_zeros && depth <= kernel<T>().most_terms};
    if (!dry) {
        for_each_task(padded / nr, [=, &skips](int64_t panel) {
            T* to = out + panel * padded_depth * nr;
            const int64_t count = std::min(nr, columns - panel * nr);
            pack_panel(source + panel * nr * step_n, step_n, step_k, count, depth, to);
            if (skips && !all_finite(to, padded_depth * nr)) skips = false;
        });
    }
    return {out, padded_depth / pair, columns, 0, skips};
}

// One linear layer of nn.Linear: weight [out, in] with any strides, bias [out].
template <typename T>
struct Layer {
    int64_t in, out, out_padded;
    Packed<T> forward, backward;  // W^T for h W^T, W for the gradient; each only on request
    const Sum<T>* bias;           // [out_padded]
};

template <typename T>
const Sum<T>* pack_bias(const Tensor& bias, int64_t out, int64_t padded, Arena& arena, bool dry) {
    Sum<T>* to = arena.take<Sum<T>>(padded);
    if (!dry) {
        const T* from = data<T>(bias);
        const int64_t step = bias.stride(0);
        for (int64_t n = 0; n < padded; ++n) to[n] = n < out ? convert<Sum<T>>(from[n * step]) : Sum<T>(0);
    }
    return to;
}

enum Packs { pack_forward = 1, pack_backward = 2, few_rows = 4, after_relu = 8 };

// What to pack for the forward pass of so many rows: for few, no weights that the kernel can read as they are.
template <typename T>
int forward_packs(int64_t rows) {
    const int64_t workers = torch::stable::get_num_threads();
    return ceil_div(rows, workers) <= kernel<T>().turned_rows ? pack_forward | few_rows : pack_forward;
}

// Rows of a tile of a call: kTileRows, or fewer if every thread gets as many tiles then.
inline int64_t tile_rows(int64_t rows) {
    constexpr int64_t step = 12;  // divides kTileRows, and holds whole register tiles and queries
    const int64_t tiles = round_up(std::max<int64_t>(1, ceil_div(rows, kTileRows)), torch::stable::get_num_threads());
    return std::min(kTileRows, round_up(ceil_div(std::max<int64_t>(1, rows), tiles), step));
}

template <typename T>
Layer<T> pack_layer(const Tensor& weight, const Tensor& bias, int packs, Arena& arena, bool dry) {
    Layer<T> layer{};
    layer.out = weight.size(0);
    layer.in = weight.size(1);
    layer.out_padded = round_up(layer.out, kernel<T>().nr);
    const T* w = data<T>(weight);
    const int64_t row = weight.stride(0), column = weight.stride(1);
    if (packs & few_rows && column == 1 && row > 0 && layer.out % kernel<T>().nr == 0 && layer.in % kDepth<T> == 0) {
        layer.forward = {w, layer.in / kDepth<T>, layer.out, row};
    } else if (packs & pack_forward) {
        layer.forward = pack<T>(w, row, column, layer.out, layer.in, arena, dry, (packs & after_relu) != 0);
    }
    // A gradient is often 0 where the ReLU behind the layer was.
    if (packs & pack_backward) layer.backward = pack<T>(w, column, row, layer.in, layer.out, arena, dry, true);
    layer.bias = pack_bias<T>(bias, layer.out, layer.out_padded, arena, dry);
    return layer;
}

// Calls build(arena, dry) twice: to find the size, then to fill `memory`, which must outlive the result.
template <typename Build>
auto build_packed(const Tensor& like, Tensor& memory, const Build& build) {
    Arena sizes;
    build(sizes, true);
    memory = make<unsigned char>(like, {sizes.used()});
    Arena arena(mutable_data<unsigned char>(memory));
    return build(arena, false);
}

// c = epilogue(init + a W^T) over rows, with W packed; the kernel has this product for C of T and of Sum<T>.
template <typename T, typename C>
void multiply(int64_t rows, const T* a, int64_t a_row, const Packed<T>& w, C* c, int64_t c_row, Init init,
              const Sum<T>* bias, Epilogue epilogue, const T* mask) {
    const Gemm<T, C> product{rows, w.columns, w.steps, a,    a_row,    kDepth<T>, w.data,   w.panel(), w.step(),
                             c,    c_row,     init,    bias, epilogue, mask,      w.column, w.skips};
    if constexpr (std::is_same_v<T, C>) {
        kernel<T>().gemm(product);
    } else {
        kernel<T>().gemm_sum(product);
    }
}

// Copies a row if the types are the same, else rounds it.
template <typename T>
void narrow_row(T* to, const Sum<T>* from, int64_t width) {
    if constexpr (std::is_same_v<T, Sum<T>>) {
        std::memcpy(to, from, static_cast<size_t>(width) * sizeof(T));
    } else {
        kernel<T>().narrow(to, from, width);
    }
}

template <typename T>
class Network {
   public:
    // The layers from number `begin` on, each after a ReLU; the caller makes h[0], first_out wide.
    Network(int64_t first_out, const std::vector<Tensor>& weights, const std::vector<Tensor>& biases, size_t begin,
            int packs, Arena& arena, bool dry)
        : first_out_(first_out) {
        int64_t widest = first_out_;
        for (size_t i = begin; i < weights.size(); ++i) {
            const bool last = i + 1 == weights.size();
            const int packed = last ? packs & pack_backward : packs | after_relu;
            layers_.push_back(pack_layer<T>(weights[i], biases[i], packed, arena, dry));
            widest = std::max(widest, layers_.back().out);
            if (last && (packs & pack_forward)) {
                const Tensor& w = weights[i];
                last_ = pack<Sum<T>>(data<T>(w), w.stride(0), w.stride(1), w.size(0), w.size(1), arena, dry);
            }
        }
        const int64_t nr = kernel<T>().nr;
        stride_ = round_up(widest, nr) + nr;  // not a power of two, so that a column's rows do not share cache sets
        out_padded_ = round_up(out(), nr);
    }

    int64_t hidden() const { return static_cast<int64_t>(layers_.size()); }  // ReLU layers; 0: one linear map in all
    int64_t levels() const { return std::max<int64_t>(hidden(), 1); }        // of h
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
        for (int64_t l = 1; l < hidden(); ++l) forward_level(l, h[l - 1], rows, h[l]);
    }

    // The same, but the last level stays as sums, in `top` if their type is not T.
    const Sum<T>* forward_top(T* const* h, int64_t rows, Sum<T>* top) const {
        const int64_t last = levels() - 1;
        if constexpr (std::is_same_v<T, Sum<T>>) {
            forward_hidden(h, rows);
            return h[last];
        } else {
            for (int64_t l = 1; l < last; ++l) forward_level(l, h[l - 1], rows, h[l]);
            if (last > 0) {
                forward_level(last, h[last - 1], rows, top);
            } else {
                for (int64_t r = 0; r < rows; ++r) kernel<T>().widen(top + r * stride_, h[0] + r * stride_, first_out_);
            }
            return top;
        }
    }

    // Applies the last linear layer to rows of h: out [rows, out_padded] starts at the bias or, to accumulate, at out.
    void forward_last(const Sum<T>* h, int64_t rows, Sum<T>* out, Init init = Init::bias) const {
        multiply(rows, h, stride_, last_, out, out_padded_, init, layers_.back().bias, Epilogue::none,
                 static_cast<const Sum<T>*>(nullptr));
    }

   protected:
    template <typename C>
    void forward_level(int64_t l, const T* from, int64_t rows, C* to, Epilogue epilogue = Epilogue::relu) const {
        const Layer<T>& y = layer(l);
        multiply(rows, from, stride_, y.forward, to, stride_, Init::bias, y.bias, epilogue,
                 static_cast<const T*>(nullptr));
    }

   private:
    int64_t first_out_, stride_, out_padded_;
    std::vector<Layer<T>> layers_;
    Packed<Sum<T>> last_{};
};

// Weight gradients of one worker, summed in a fixed order, that in which the worker visits its tiles.
template <typename T>
struct Gradients {
    // Of layer l at [l], [0] being the caller's: [out][padded in], and [2][out_padded] for sums and their carries. Null
    // if unwanted.
    std::vector<Sum<T>*> weight, bias;
};

template <typename T>
class Backward {
   public:
    // Tiles of one worker: the gradient at a layer and before it, and rows in pairs if T is multiplied in pairs.
    struct Tiles {
        T *g, *other, *gradient_pairs, *input_pairs;
    };

    // `wanted`: of layers 1 .. hidden, whether the gradients of weight, bias, ... are wanted; `first`: whether that at
    // h[0] is.
    Backward(const Network<T>& net, const Flags& wanted, bool first)
        : net_(net), wanted_(wanted), lowest_(first ? 0 : 1) {
        while (!first && lowest_ < net.hidden() && !wants(lowest_, 0) && !wants(lowest_, 1)) ++lowest_;
    }

    // One worker's share of the wanted gradients of layers 1 .. hidden, in an arena that starts as zeros.
    Gradients<T> gradients(Arena& arena) const {
        Gradients<T> g{{nullptr}, {nullptr}};
        for (int64_t l = 1; l <= net_.hidden(); ++l) {
            g.weight.push_back(wants(l, 0) ? arena.take<Sum<T>>(net_.layer(l).out * padded_in(l)) : nullptr);
            g.bias.push_back(wants(l, 1) ? arena.take<Sum<T>>(2 * net_.layer(l).out_padded) : nullptr);
        }
        return g;
    }

    // `widest`: the width of the caller's products, if wider than the network's rows.
    Tiles tiles(Arena& arena, int64_t widest = 0) const {
        const int64_t tile = kTileRows * net_.stride(), pairs = kDepth<T> > 1 ? kTileRows : 0;
        widest = std::max(widest, net_.stride());
        return {arena.take<T>(tile), arena.take<T>(tile), arena.take<T>(pairs * widest), arena.take<T>(pairs * widest)};
    }

    // The layer behind which no gradient is wanted, 0 if that at h[0] is.
    int64_t lowest() const { return lowest_; }

    int64_t padded_in(int64_t l) const { return round_up(net_.layer(l).in, kernel<T>().nr); }

    // From the gradient at the output, [rows, out_padded], to the gradient at h[0] before its ReLU, in `first` with
    // net.stride(), in T or in Sum<T>. h[0 .. hidden - 1] are the rows' activations; there is a hidden layer.
    // `first_mask` is h[0], or null where no ReLU made it. Ends early, without writing `first`, behind the last
    // gradient that is wanted.
    template <typename C>
    void run(T* const* h, const T* out_gradient, int64_t rows, Tiles tiles, C* first, const Gradients<T>& sum,
             const T* first_mask) const {
        const int64_t s = net_.stride();
        const T* from = out_gradient;
        int64_t from_stride = net_.out_padded();
        for (int64_t l = net_.hidden(); l >= 1; --l) {
            add_layer(l, from, from_stride, h[l - 1], rows, tiles, sum);
            if (l == lowest_) return;
            if (l == 1) return back(l, from, from_stride, rows, first, first_mask);
            back(l, from, from_stride, rows, tiles.other, h[l - 1]);
            std::swap(tiles.g, tiles.other);
            from = tiles.g;
            from_stride = s;
        }
    }

    // Adds to the gradients of layer l those of rows with the given gradient at its output and `input`, h[l - 1].
    void add_layer(int64_t l, const T* gradient, int64_t gradient_stride, const T* input, int64_t rows,
                   const Tiles& tiles, const Gradients<T>& sum) const {
        const Layer<T>& y = net_.layer(l);
        Sum<T>*weight = sum.weight[static_cast<size_t>(l)], *bias = sum.bias[static_cast<size_t>(l)];
        if (weight != nullptr) {
            accumulate(gradient, gradient_stride, y.out, input, net_.stride(), y.in, rows, tiles, weight);
        }
        if (bias != nullptr) {
            kernel<T>().sum_rows(gradient, gradient_stride, rows, y.out_padded, bias, bias + y.out_padded);
        }
    }

    // From the gradient at layer l's output to that at its input, which passes where `mask` is not <= 0 if it is given.
    template <typename C>
    void back(int64_t l, const T* from, int64_t from_stride, int64_t rows, C* to, const T* mask) const {
        multiply(rows, from, from_stride, net_.layer(l).backward, to, net_.stride(), Init::zero,
                 static_cast<const Sum<T>*>(nullptr), mask == nullptr ? Epilogue::none : Epilogue::mask, mask);
    }

    // sum[o][i] += sum over rows of gradient[row][o] * input[row][i]; rows of all three are padded to whole panels. A
    // gradient's zeros differ from row to row, so pairs of rows would leave out less. Uses tiles.other, if given.
    static void accumulate(const T* gradient, int64_t gradient_stride, int64_t outs, const T* input,
                           int64_t input_stride, int64_t ins, int64_t rows, const Tiles& tiles, Sum<T>* sum) {
        constexpr int64_t pair = kDepth<T>;
        const int64_t nr = kernel<T>().nr, padded_ins = round_up(ins, nr);
        Gemm<T, Sum<T>> product{
            outs,         ins, ceil_div(rows, pair), gradient,         1,       gradient_stride, input,  nr,
            input_stride, sum, padded_ins,           Init::accumulate, nullptr, Epilogue::none,  nullptr};
        if constexpr (pair > 1) {
            const int64_t padded_outs = round_up(outs, nr);
            kernel<T>().pair_rows(tiles.gradient_pairs, gradient, gradient_stride, rows, padded_outs);
            kernel<T>().pair_rows(tiles.input_pairs, input, input_stride, rows, padded_ins);
            product.a = tiles.gradient_pairs, product.a_row = pair, product.a_step = pair * padded_outs;
            product.b = tiles.input_pairs, product.b_panel = pair * nr, product.b_step = pair * padded_ins;
        } else if (tiles.other != nullptr && kernel<T>().most_steps >= kTileRows && outs >= nr) {
            const T* row[kTileRows];
            for (int64_t r = 0; r < rows; ++r) row[r] = gradient + r * gradient_stride;
            kernel<T>().attention->transpose(tiles.other, kTileRows, row, rows, outs);
            product.a = tiles.other, product.a_row = kTileRows, product.a_step = 1, product.skips = true;
        }
        kernel<T>().gemm_sum(product);
    }

   private:
    bool wants(int64_t l, int64_t bias) const { return wanted_[static_cast<size_t>(2 * (l - 1) + bias)]; }

    const Network<T>& net_;
    const Flags wanted_;
    int64_t lowest_;
};

// A tensor of the given size, rows or [rows, columns]: the workers' sums pick(worker), added in the order of the
// workers and without their padding. Empty if they are null.
template <typename T, typename Sums, typename Pick>
Tensor reduce_workers(const Tensor& like, const std::vector<Sums>& sums, const std::vector<int64_t>& size,
                      int64_t stride, const Pick& pick) {
    std::vector<const T*> parts;
    for (const Sums& each : sums) parts.push_back(pick(each));
    if (parts[0] == nullptr) return make<T>(like, {0});
    Tensor result = make<T>(like, size);
    T* to = mutable_data<T>(result);
    const int64_t columns = size.back();
    for_each_task(size.size() > 1 ? size[0] : 1, [&](int64_t r) {
        for (int64_t c = 0; c < columns; ++c) {
            T sum = parts[0][r * stride + c];
            for (size_t w = 1; w < parts.size(); ++w) sum += parts[w][r * stride + c];
            to[r * columns + c] = sum;
        }
    });
    return result;
}

// Appends the gradients of the weight and bias of layer l; pick(worker) returns the Gradients of a worker.
template <typename T, typename Sums, typename Pick>
void reduce_layer(const Tensor& like, const std::vector<Sums>& sums, const Layer<T>& layer, size_t l, const Pick& pick,
                  std::vector<Tensor>& result) {
    const int64_t row = round_up(layer.in, kernel<T>().nr);
    result.push_back(reduce_workers<Sum<T>>(like, sums, {layer.out, layer.in}, row,
                                            [&](const Sums& each) { return pick(each).weight[l]; }));
    result.push_back(reduce_workers<Sum<T>>(like, sums, {layer.out}, layer.out_padded,
                                            [&](const Sums& each) { return pick(each).bias[l]; }));
}

}  // namespace liif
