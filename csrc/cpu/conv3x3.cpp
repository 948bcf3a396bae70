// liif_fast::conv3x3 and its gradients: a 3x3 convolution of stride 1 that keeps the map's size, by Winograd's
// F(4x4, 3x3), which needs a quarter of the multiplications. Tiles of 4 x 4 pixels of the output are transformed
// together, multiplied by the transformed weights in 36 small products, and transformed back. Pixels are read where the
// map holds them, also for what lies beyond its borders.
#include "network.h"
#include "operators.h"

namespace liif {
namespace {

constexpr int64_t kPositions = 36;
constexpr int64_t kTiles = 12;     // at a time; with their weights they fit a second-level cache
constexpr int64_t kChannels = 64;  // at a time, of the input and of the output
constexpr int64_t kBetween = 16;   // so that the rows of positions do not share cache sets
struct TileTag {};
struct TotalTag {};

// What lies beyond the borders. `wrap` continues rows at the other end, and repeats the first and the last row;
// `wrap_rows` continues rows, and has zeros above and below.
enum class Edge { zeros, wrap, wrap_rows };

// A map [B, C, H, W], the channels of a pixel side by side.
template <typename T>
struct Map {
    T* data;
    int64_t step_b, step_h, step_w, images, height, width, channels;

    Map(T* pixels, const Tensor& t)
        : data(pixels),
          step_b(t.stride(0)),
          step_h(t.stride(2)),
          step_w(t.stride(3)),
          images(t.size(0)),
          height(t.size(2)),
          width(t.size(3)),
          channels(t.size(1)) {}
};

template <typename T>
Map<const T> map_of(const Tensor& t) {
    return {data<T>(t), t};
}

template <typename T>
std::optional<Map<const T>> map_of(const std::optional<Tensor>& t) {
    return t ? std::optional<Map<const T>>(map_of<T>(*t)) : std::nullopt;
}

// A new tensor [B, C, H, W], not a view, so that its users may write to it.
template <typename T>
Tensor make_channels_last(const std::vector<int64_t>& size) {
    return torch::stable::empty(size, scalar_type<T>, std::nullopt, std::nullopt, std::nullopt,
                                torch::headeronly::MemoryFormat::ChannelsLast);
}

// The tiles of an output, in the order of images, rows and columns.
struct Tiling {
    int64_t images, rows, columns;

    Tiling(int64_t count, int64_t height, int64_t width)
        : images(count), rows(ceil_div(height, 4)), columns(ceil_div(width, 4)) {}
    int64_t count() const { return images * rows * columns; }

    // Pointers to a channel of side x side pixels of a map. The first is some rows and columns before the tile's first.
    // Pixels that the map lacks lie in `absent`.
    template <int side, typename T>
    void find(int64_t tile, const Map<T>& map, int64_t channel, int64_t rows_before, int64_t columns_before, Edge edge,
              T* absent, T** pixel) const {
        const int64_t top = tile / columns % rows * 4 - rows_before, left = tile % columns * 4 - columns_before;
        T* image = map.data + tile / (rows * columns) * map.step_b;
        int64_t column[side];
        for (int64_t j = 0; j < side; ++j) {
            int64_t at = left + j;
            const bool beyond = at < 0 || at >= map.width;
            if (beyond && edge != Edge::zeros) at = (at % map.width + map.width) % map.width;
            column[j] = beyond && edge == Edge::zeros ? -1 : at * map.step_w;
        }
        for (int64_t i = 0; i < side; ++i) {
            int64_t row = top + i;
            if (edge == Edge::wrap) row = std::min(std::max<int64_t>(row, 0), map.height - 1);
            const bool inside = row >= 0 && row < map.height;
            for (int64_t j = 0; j < side; ++j) {
                pixel[i * side + j] =
                    (inside && column[j] >= 0 ? image + row * map.step_h + column[j] : absent) + channel;
            }
        }
    }
};

// Weights [out, in, 3, 3], transformed: for each position panels of `nr` outputs, as Gemm::b. `back`, those of the
// input's gradient: outputs are inputs, and the kernels are turned by 180 degrees.
template <typename T>
struct Weights {
    int64_t in, out, out_padded;
    Tensor memory;
    T* data;

    Weights(const Tensor& weight, bool back)
        : in(weight.size(back ? 0 : 1)),
          out(weight.size(back ? 1 : 0)),
          out_padded(round_up(out, kernel<T>().nr)),
          memory(make<T>(weight, {kPositions * in * out_padded})),
          data(mutable_data<T>(memory)) {
        const int64_t nr = kernel<T>().nr, position = in * out_padded, depth = in, columns = out;
        const int64_t step_out = weight.stride(back ? 1 : 0), step_in = weight.stride(back ? 0 : 1);
        const int64_t sign = back ? -1 : 1, row = sign * weight.stride(2), column = sign * weight.stride(3);
        const T* from = liif::data<T>(weight) - (back ? 2 * row + 2 * column : 0);
        T* to = data;
        for_each_task(out_padded / nr, [=](int64_t panel) {
            const int64_t count = std::min(nr, columns - panel * nr);
            for (int64_t k = 0; k < depth; ++k) {
                T* at = to + (panel * depth + k) * nr;
                kernel<T>().winograd->weight(at, position, from + panel * nr * step_out + k * step_in, step_out, row,
                                             column, count);
                for (int64_t p = 0; p < kPositions; ++p) {
                    std::fill(at + p * position + count, at + p * position + nr, T(0));
                }
            }
        });
    }
};

// to = relu(conv(x) + bias + addend), where x counts as zero if mask <= 0. `to` may have one row more than x at both
// ends.
template <typename T>
void convolve(const Map<const T>& x, const std::optional<Map<const T>>& mask, const Weights<T>& weights, const T* bias,
              const std::optional<Map<const T>>& addend, bool relu, Edge edge, const Map<T>& to) {
    const Tiling tiling(to.images, to.height, to.width);
    const int64_t nr = kernel<T>().nr, rows_before = 1 + (to.height - x.height) / 2;
    const int64_t in_row = std::min(weights.in, kChannels) + kBetween;
    const int64_t step = std::max(nr, kChannels / nr * nr), parts = ceil_div(weights.out_padded, step);
    const int64_t out_row = std::min(weights.out_padded, step) + kBetween;
    const int64_t widest = std::max(weights.in, weights.out_padded);
    for_each_task(ceil_div(tiling.count(), kTiles) * parts, [&](int64_t task) {
        const int64_t first = task / parts * kTiles, count = std::min(kTiles, tiling.count() - first);
        const int64_t begin = task % parts * step, columns = std::min(step, weights.out - begin);
        struct Memory {
            T *in, *products, *zeros, *spare;
        };
        const Memory m = in_scratch<TileTag>([&](Arena& arena) {
            return Memory{arena.take<T>(kPositions * kTiles * in_row), arena.take<T>(kPositions * kTiles * out_row),
                          arena.take<T>(widest), arena.take<T>(widest)};
        });
        std::fill(m.zeros, m.zeros + widest, T(0));
        const T *pixel[kPositions], *other[kPositions];
        for (int64_t k = 0; k < weights.in; k += kChannels) {
            for (int64_t t = 0; t < count; ++t) {
                tiling.find<6>(first + t, x, k, rows_before, 1, edge, static_cast<const T*>(m.zeros), pixel);
                if (mask) {
                    tiling.find<6>(first + t, *mask, k, rows_before, 1, edge, static_cast<const T*>(m.zeros), other);
                }
                kernel<T>().winograd->input(m.in + t * in_row, kTiles * in_row, pixel, mask ? other : nullptr,
                                            std::min(kChannels, weights.in - k));
            }
            for (int64_t p = 0; p < kPositions; ++p) {
                const T* b = weights.data + (p * weights.out_padded + begin) * weights.in + k * nr;
                kernel<T>().gemm({count, columns, std::min(kChannels, weights.in - k), m.in + p * kTiles * in_row,
                                  in_row, 1, b, weights.in * nr, nr, m.products + p * kTiles * out_row, out_row,
                                  k == 0 ? Init::zero : Init::accumulate, nullptr, Epilogue::none, nullptr});
            }
        }
        for (int64_t t = 0; t < count; ++t) {
            T* target[16];
            tiling.find<4>(first + t, to, begin, 0, 0, Edge::zeros, m.spare, target);
            if (addend) {
                tiling.find<4>(first + t, *addend, begin, 0, 0, Edge::zeros, static_cast<const T*>(m.zeros), other);
            }
            kernel<T>().winograd->output(target, m.products + t * out_row, kTiles * out_row, columns, bias + begin,
                                         addend ? other : nullptr, relu);
        }
    });
}

template <typename T>
Tensor run(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
           const std::optional<Tensor>& addend, bool wrap, bool relu) {
    const Weights<T> weights(weight, false);
    std::vector<T> start(static_cast<size_t>(weights.out_padded));
    for (int64_t n = 0; bias && n < weights.out; ++n) {
        start[static_cast<size_t>(n)] = data<T>(*bias)[n * bias->stride(0)];
    }
    Tensor out = make_channels_last<T>({x.size(0), weights.out, x.size(2), x.size(3)});
    convolve<T>(map_of<T>(x), std::nullopt, weights, start.data(), map_of<T>(addend), relu,
                wrap ? Edge::wrap : Edge::zeros, {mutable_data<T>(out), out});
    return out;
}

// The gradient of x. That of the rows that `wrap` repeats is computed in two rows more, and added to theirs.
template <typename T>
Tensor run_input(const Tensor& grad, const std::optional<Tensor>& out, const Tensor& weight, bool wrap) {
    const Weights<T> weights(weight, true);
    const std::vector<T> zero(static_cast<size_t>(weights.out_padded));
    const int64_t images = grad.size(0), height = grad.size(2), width = grad.size(3);
    Tensor padded = make_channels_last<T>({images, weights.out, height + (wrap ? 2 : 0), width});
    T* from = mutable_data<T>(padded);
    convolve<T>(map_of<T>(grad), map_of<T>(out), weights, zero.data(), std::nullopt, false,
                wrap ? Edge::wrap_rows : Edge::zeros, {from, padded});
    if (!wrap) return padded;
    Tensor result = make_channels_last<T>({images, weights.out, height, width});
    T* to = mutable_data<T>(result);
    const int64_t row = width * weights.out;
    for_each_task(images * height, [&](int64_t task) {
        const int64_t image = task / height, i = task % height;
        const T* source = from + (image * (height + 2) + i + 1) * row;
        std::memcpy(to + task * row, source, static_cast<size_t>(row) * sizeof(T));
        if (i == 0) kernel<T>().add(to + task * row, source - row, row);
        if (i == height - 1) kernel<T>().add(to + task * row, source + row, row);
    });
    return result;
}

// One worker's sums for a block of the weights: 36 positions of `kChannels` rows, then the bias.
struct Share {
    int64_t row, position, bias, size;  // strides, and places

    explicit Share(int64_t nr)
        : row(round_up(kChannels, nr)), position(kChannels * row), bias(kPositions * position), size(bias + row) {}
};

// Adds the tiles [begin, end) to a worker's sums, for the channels of x from k on and those of grad from n on: the
// pixels of grad to the bias and, if `multiply`, the products to the weights.
template <typename T>
void add_tiles(const Tiling& tiling, int64_t begin, int64_t end, const Map<const T>& x, const Map<const T>& grad,
               const std::optional<Map<const T>>& mask, int64_t k, int64_t n, Edge edge, bool multiply,
               const Share& share, T* sum) {
    const int64_t nr = kernel<T>().nr, in_row = kChannels + kBetween, out_row = round_up(kChannels, nr) + kBetween;
    const int64_t depth = std::min(kChannels, x.channels - k), width = std::min(kChannels, grad.channels - n);
    const int64_t widest = std::max(x.channels, grad.channels);
    struct Memory {
        T *in, *out, *zeros;
    };
    const Memory m = in_scratch<TileTag>([&](Arena& arena) {
        return Memory{arena.take<T>(kPositions * kTiles * in_row), arena.take<T>(kPositions * kTiles * out_row),
                      arena.take<T>(widest)};
    });
    const T* zeros = m.zeros;
    std::fill(m.zeros, m.zeros + widest, T(0));
    std::fill(m.out, m.out + kPositions * kTiles * out_row, T(0));  // the product reads whole panels
    const T *pixel[kPositions], *other[kPositions];
    for (int64_t first = begin; first < end; first += kTiles) {
        const int64_t count = std::min(kTiles, end - first);
        for (int64_t t = 0; t < count; ++t) {
            if (multiply) {
                tiling.find<6>(first + t, x, k, 1, 1, edge, zeros, pixel);
                kernel<T>().winograd->input(m.in + t * in_row, kTiles * in_row, pixel, nullptr, depth);
            }
            tiling.find<4>(first + t, grad, n, 0, 0, Edge::zeros, zeros, pixel);
            if (mask) tiling.find<4>(first + t, *mask, n, 0, 0, Edge::zeros, zeros, other);
            kernel<T>().winograd->gradient(m.out + t * out_row, kTiles * out_row, pixel, mask ? other : nullptr, width,
                                           sum + share.bias);
        }
        for (int64_t p = 0; multiply && p < kPositions; ++p) {
            kernel<T>().gemm({depth, width, count, m.in + p * kTiles * in_row, 1, in_row, m.out + p * kTiles * out_row,
                              nr, out_row, sum + p * share.position, share.row, Init::accumulate, nullptr,
                              Epilogue::none, nullptr});
        }
    }
}

// The gradients of weight, empty unless `multiply`, and bias. Each worker has a share of the tiles and its own sums,
// which are added in the order of the workers.
template <typename T>
std::pair<Tensor, Tensor> run_weight(const Tensor& grad, const std::optional<Tensor>& out, const Tensor& x, bool wrap,
                                     bool multiply) {
    const auto from = map_of<T>(x), top = map_of<T>(grad);
    const auto mask = map_of<T>(out);
    const Tiling tiling(from.images, from.height, from.width);
    const int64_t ins = from.channels, outs = top.channels, blocks = ceil_div(tiling.count(), kTiles);
    const int64_t workers = std::min<int64_t>(blocks, torch::stable::get_num_threads());
    const Share share(kernel<T>().nr);
    Tensor weight = multiply ? make_channels_last<T>({outs, ins, 3, 3}) : make<T>(x, {0}), bias = make<T>(x, {outs});
    Tensor memory = make<T>(x, {workers * share.size});
    T *to_weight = mutable_data<T>(weight), *to_bias = mutable_data<T>(bias), *sums = mutable_data<T>(memory);
    const auto total = [&](int64_t at) {
        double sum = 0;
        for (int64_t w = 0; w < workers; ++w) sum += static_cast<double>(sums[w * share.size + at]);
        return sum;
    };
    for (int64_t k = 0; k < (multiply ? ins : 1); k += kChannels) {
        for (int64_t n = 0; n < outs; n += kChannels) {
            torch::stable::parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) {
                for (int64_t w = begin; w < end; ++w) {
                    std::fill(sums + w * share.size, sums + (w + 1) * share.size, T(0));
                    add_tiles<T>(tiling, w * blocks / workers * kTiles,
                                 std::min(tiling.count(), (w + 1) * blocks / workers * kTiles), from, top, mask, k, n,
                                 wrap ? Edge::wrap : Edge::zeros, multiply, share, sums + w * share.size);
                }
            });
            const int64_t depth = std::min(kChannels, ins - k);
            for_each_task(std::min(kChannels, outs - n), [&](int64_t o) {
                to_bias[n + o] = static_cast<T>(total(share.bias + o));
                if (!multiply) return;
                double* sum = scratch<double, TotalTag>(kPositions * depth);
                for (int64_t p = 0; p < kPositions; ++p) {
                    for (int64_t c = 0; c < depth; ++c)
                        sum[p * depth + c] = total(p * share.position + c * share.row + o);
                }
                kernel<T>().winograd->weight_back(to_weight + (n + o) * 9 * ins + k, ins, sum, depth, depth);
            });
        }
    }
    return {weight, bias};
}

void check_map(const Tensor& t) {
    STD_TORCH_CHECK(t.dim() == 4 && (t.stride(1) == 1 || t.size(1) == 1),
                    "liif_fast: maps must be [B, C, H, W], the channels of a pixel side by side");
}

void check_like(const std::optional<Tensor>& t, const Tensor& x, const Tensor& weight) {
    if (!t) return;
    check_map(*t);
    STD_TORCH_CHECK(
        t->size(0) == x.size(0) && t->size(1) == weight.size(0) && t->size(2) == x.size(2) && t->size(3) == x.size(3),
        "liif_fast: addend, out and grad must have the output's shape, [B, out, H, W]");
}

void check_conv3x3(const Tensor& x, const Tensor& weight) {
    check_map(x);
    STD_TORCH_CHECK(weight.dim() == 4 && weight.size(0) > 0 && weight.size(1) > 0 && weight.size(1) == x.size(1) &&
                        weight.size(2) == 3 && weight.size(3) == 3,
                    "liif_fast: weight must be [out, in, 3, 3], of as many inputs as x has channels");
}

}  // namespace

Tensor conv3x3(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
               const std::optional<Tensor>& addend, bool wrap, bool relu) {
    check_conv3x3(x, weight);
    check_like(addend, x, weight);
    STD_TORCH_CHECK(!bias || (bias->dim() == 1 && bias->size(0) == weight.size(0)), "liif_fast: bias must be [out]");
    return dispatch_wide(x, [&](auto t) { return run<decltype(t)>(x, weight, bias, addend, wrap, relu); });
}

Tensors conv3x3_backward(const Tensor& grad, const Tensor& x, const Tensor& weight, const std::optional<Tensor>& out,
                         bool wrap, const Flags& wanted) {
    check_conv3x3(x, weight);
    check_like(grad, x, weight);
    check_like(out, x, weight);
    check_wanted(wanted, 3);
    return dispatch_wide(x, [&](auto t) {
        using T = decltype(t);
        Tensors grads{make<T>(x, {0}), make<T>(x, {0}), make<T>(x, {0})};
        if (wanted[0]) grads[0] = run_input<T>(grad, out, weight, wrap);
        if (wanted[1] || wanted[2]) {
            const auto [of_weight, of_bias] = run_weight<T>(grad, out, x, wrap, wanted[1]);
            grads[1] = of_weight;
            if (wanted[2]) grads[2] = of_bias;
        }
        return grads;
    });
}

}  // namespace liif
