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
// From one position to the next in a transformed block, 16 more so that positions do not share cache sets
constexpr int64_t kPosition = kTiles * kChannels + 16;
struct TileTag {};
struct TotalTag {};

// What lies beyond the borders. `wrap` continues rows at the other end, and repeats the first and the last row.
// `wrap_rows` does only the former, and `repeat` only the latter, once; the rest is zeros.
enum class Edge { zeros, wrap, wrap_rows, repeat };

// A map [B, C, H, W], the channels of a pixel side by side.
template <typename T>
struct Map {
    using Pixel = T*;
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
    T* at(int64_t image, int64_t i, int64_t j) const { return data + image * step_b + i * step_h + j * step_w; }
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
              typename Map<T>::Pixel absent, T** pixel) const {
        const int64_t top = tile / columns % rows * 4 - rows_before, left = tile % columns * 4 - columns_before;
        T* image = map.data + tile / (rows * columns) * map.step_b;
        const bool continues = edge == Edge::wrap || edge == Edge::wrap_rows;
        int64_t column[side];
        for (int64_t j = 0; j < side; ++j) {
            int64_t at = left + j;
            const bool beyond = at < 0 || at >= map.width;
            if (beyond && continues) at = (at % map.width + map.width) % map.width;
            column[j] = beyond && !continues ? -1 : at * map.step_w;
        }
        for (int64_t i = 0; i < side; ++i) {
            int64_t row = top + i;
            if (edge == Edge::wrap || (edge == Edge::repeat && row <= map.height)) {
                row = std::min(std::max<int64_t>(row, 0), map.height - 1);
            }
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

    // The products of a block's inputs [k, k + depth) with the weights of the outputs [begin, begin + columns)
    void multiply(const T* from, T* to, int64_t tiles, int64_t k, int64_t depth, int64_t begin, int64_t columns,
                  Init init) const {
        const int64_t nr = kernel<T>().nr;
        for (int64_t p = 0; p < kPositions; ++p) {
            kernel<T>().gemm({tiles, columns, depth, from + p * kPosition, kChannels, 1,
                              data + (p * out_padded + begin) * in + k * nr, in * nr, nr, to + p * kPosition, kChannels,
                              init, nullptr, Epilogue::none, nullptr});
        }
    }
};

// A worker's memory: two transformed blocks, a pixel of zeros, and one for what lies beyond an output's borders.
template <typename T>
struct Memory {
    T *one, *two, *zeros, *spare;
};

template <typename T>
Memory<T> take_memory(int64_t channels) {
    const auto m = in_scratch<TileTag>([&](Arena& arena) {
        return Memory<T>{arena.take<T>(kPositions * kPosition), arena.take<T>(kPositions * kPosition),
                         arena.take<T>(channels), arena.take<T>(channels)};
    });
    std::fill(m.zeros, m.zeros + channels, T(0));
    return m;
}

// to = relu(conv(x) + bias + addend)
template <typename T>
Tensor run(const Tensor& from, const Tensor& weight, const std::optional<Tensor>& bias,
           const std::optional<Tensor>& addend, bool wrap, bool relu) {
    const Weights<T> weights(weight, false);
    std::vector<T> start(static_cast<size_t>(weights.out_padded));
    for (int64_t n = 0; bias && n < weights.out; ++n) {
        start[static_cast<size_t>(n)] = data<T>(*bias)[n * bias->stride(0)];
    }
    Tensor out = make_channels_last<T>({from.size(0), weights.out, from.size(2), from.size(3)});
    const auto x = map_of<T>(from);
    const auto added = map_of<T>(addend);
    const Map<T> to(mutable_data<T>(out), out);
    const Tiling tiling(to.images, to.height, to.width);
    const int64_t parts = ceil_div(weights.out, kChannels);
    const int64_t widest = std::max(weights.in, weights.out);
    for_each_task(ceil_div(tiling.count(), kTiles) * parts, [&](int64_t task) {
        const int64_t first = task / parts * kTiles, count = std::min(kTiles, tiling.count() - first);
        const int64_t begin = task % parts * kChannels, columns = std::min(kChannels, weights.out - begin);
        const auto m = take_memory<T>(widest);
        const T *pixel[kPositions], *other[16];
        for (int64_t k = 0; k < weights.in; k += kChannels) {
            const int64_t depth = std::min(kChannels, weights.in - k);
            for (int64_t t = 0; t < count; ++t) {
                tiling.find<6>(first + t, x, k, 1, 1, wrap ? Edge::wrap : Edge::zeros, m.zeros, pixel);
                kernel<T>().winograd->input(m.one + t * kChannels, kPosition, pixel, depth);
            }
            weights.multiply(m.one, m.two, count, k, depth, begin, columns, k == 0 ? Init::zero : Init::accumulate);
        }
        for (int64_t t = 0; t < count; ++t) {
            T* target[16];
            tiling.find<4>(first + t, to, begin, 0, 0, Edge::zeros, m.spare, target);
            if (added) tiling.find<4>(first + t, *added, begin, 0, 0, Edge::zeros, m.zeros, other);
            kernel<T>().winograd->output(target, m.two + t * kChannels, kPosition, columns, start.data() + begin,
                                         added ? other : nullptr, relu, nullptr);
        }
    });
    return out;
}

// One worker's sums for a block of the weights: 36 positions of `kChannels` rows, then the bias.
constexpr int64_t kShareBias = kPositions * kChannels * kChannels, kShare = kShareBias + kChannels;

// The gradients, from tiles of 4 x 4 pixels of x and the 6 x 6 of the output's gradient that depend on them.
// Transformed once, these give the gradient of x, by kernels turned by 180 degrees, and that of the weights, turned
// likewise.
template <typename T>
struct Backward {
    Tiling tiling;
    int64_t more;  // rows that x repeats, at both ends
    Map<const T> grad, x;
    const Weights<T>* weights;  // null if the gradient of x is not wanted
    Map<T>* of_x;
    const Map<const T>*addend, *mask;  // added to the gradient of x; where it is zero. Null if not given
    bool of_weight, of_bias;

    // Adds the tiles [begin, end) to a worker's sums and to the gradient of x, for the channels of grad from n on and
    // those of x from k on.
    void operator()(int64_t begin, int64_t end, int64_t n, int64_t k, T* sum) const {
        const int64_t nr = kernel<T>().nr, widest = std::max(x.channels, grad.channels);
        const int64_t width = std::min(kChannels, grad.channels - n), depth = std::min(kChannels, x.channels - k);
        const auto m = take_memory<T>(widest);
        std::fill(m.one, m.one + kPositions * kPosition, T(0));  // the products read whole panels
        std::fill(sum + kShareBias, sum + kShare, T(0));
        const std::vector<T> no_bias(static_cast<size_t>(kChannels));
        const bool last = n + kChannels >= grad.channels;
        const T *pixel[kPositions], *other[16];
        const Edge edge = more ? Edge::wrap_rows : Edge::zeros;
        const Winograd<T>& winograd = *kernel<T>().winograd;
        for (int64_t first = begin; first < end; first += kTiles) {
            const int64_t count = std::min(kTiles, end - first);
            for (int64_t t = 0; t < count; ++t) {
                tiling.find<6>(first + t, grad, n, 1 + more, 1, edge, m.zeros, pixel);
                if (weights || of_weight) winograd.input(m.one + t * kChannels, kPosition, pixel, width);
                if (!of_bias || k > 0) continue;
                tiling.find<4>(first + t, grad, n, more, 0, Edge::zeros, m.zeros, pixel);
                winograd.add_pixels(sum + kShareBias, pixel, width);
            }
            if (weights) {
                weights->multiply(m.one, m.two, count, n, width, k, depth, Init::zero);
                for (int64_t t = 0; t < count; ++t) {
                    T* target[16];
                    tiling.find<4>(first + t, *of_x, k, 0, 0, Edge::zeros, m.spare, target);
                    const bool adds = n > 0 || addend, masks = last && mask;
                    if (n > 0) std::copy(target, target + 16, pixel);
                    if (n == 0 && addend) tiling.find<4>(first + t, *addend, k, 0, 0, Edge::zeros, m.zeros, pixel);
                    if (masks) tiling.find<4>(first + t, *mask, k, 0, 0, Edge::zeros, m.zeros, other);
                    winograd.output(target, m.two + t * kChannels, kPosition, depth, no_bias.data(),
                                    adds ? pixel : nullptr, false, masks ? other : nullptr);
                }
            }
            if (of_weight) {
                for (int64_t t = 0; t < count; ++t) {
                    tiling.find<4>(first + t, x, k, more, 0, more ? Edge::repeat : Edge::zeros, m.zeros, pixel);
                    winograd.inner(m.two + t * kChannels, kPosition, pixel, depth);
                }
                for (int64_t p = 0; p < kPositions; ++p) {
                    kernel<T>().gemm({depth, width, count, m.two + p * kPosition, 1, kChannels, m.one + p * kPosition,
                                      nr, kChannels, sum + p * kChannels * kChannels, kChannels,
                                      first == begin ? Init::zero : Init::accumulate, nullptr, Epilogue::none,
                                      nullptr});
                }
            }
        }
    }
};

// Adds the gradients of the rows that `wrap` repeats to theirs, then the addend; zero where the mask is <= 0.
template <typename T>
Tensor fold(const Tensor& padded, const Map<const T>* addend, const Map<const T>* mask) {
    const int64_t images = padded.size(0), channels = padded.size(1), height = padded.size(2) - 2;
    const int64_t width = padded.size(3), row = width * channels;
    Tensor result = make_channels_last<T>({images, channels, height, width});
    const T* from = data<T>(padded);
    T* to = mutable_data<T>(result);
    for_each_task(row == 0 ? 0 : images * height, [&](int64_t task) {
        const int64_t image = task / height, i = task % height;
        const T* source = from + (image * (height + 2) + i + 1) * row;
        T* target = to + task * row;
        std::memcpy(target, source, static_cast<size_t>(row) * sizeof(T));
        if (i == 0) kernel<T>().add(target, source - row, row);
        if (i == height - 1) kernel<T>().add(target, source + row, row);
        for (int64_t j = 0; j < width; ++j, target += channels) {
            if (addend) kernel<T>().add(target, addend->at(image, i, j), channels);
            const T* kept = mask ? mask->at(image, i, j) : nullptr;
            for (int64_t c = 0; mask && c < channels; ++c) target[c] = kept[c] <= T(0) ? T(0) : target[c];
        }
    });
    return result;
}

// Each worker has a share of the tiles and its own sums, which are added in the order of the workers.
template <typename T>
Tensors run_backward(const Tensor& grad, const Tensor& x, const Tensor& weight, const std::optional<Tensor>& addend,
                     bool wrap, const Flags& wanted, bool relu) {
    const int64_t ins = x.size(1), outs = grad.size(1), height = x.size(2), width = x.size(3), more = wrap ? 1 : 0;
    const Tiling tiling(x.size(0), height + 2 * more, width);
    const int64_t blocks = ceil_div(tiling.count(), kTiles);
    const int64_t workers = std::min<int64_t>(blocks, torch::stable::get_num_threads());
    Tensor of_x = wanted[0] ? make_channels_last<T>({x.size(0), ins, height + 2 * more, width}) : make<T>(x, {0});
    Tensor of_weight = wanted[1] ? make_channels_last<T>({outs, ins, 3, 3}) : make<T>(x, {0});
    Tensor of_bias = make<T>(x, {wanted[2] ? outs : 0}), memory = make<T>(x, {workers * kShare});
    std::optional<Weights<T>> weights;
    std::optional<Map<T>> to_x;
    if (wanted[0]) weights.emplace(weight, true), to_x.emplace(mutable_data<T>(of_x), of_x);
    T *to_weight = mutable_data<T>(of_weight), *to_bias = mutable_data<T>(of_bias), *sums = mutable_data<T>(memory);
    const auto added = map_of<T>(addend);
    const auto from = map_of<T>(x);
    const Map<const T>*adds = added ? &*added : nullptr, *masks = relu ? &from : nullptr;
    const Backward<T> pass{tiling,
                           more,
                           map_of<T>(grad),
                           from,
                           weights ? &*weights : nullptr,
                           to_x ? &*to_x : nullptr,
                           wrap ? nullptr : adds,
                           wrap ? nullptr : masks,
                           wanted[1],
                           wanted[2]};
    const auto total = [&](int64_t at) {
        double sum = 0;
        for (int64_t w = 0; w < workers; ++w) sum += static_cast<double>(sums[w * kShare + at]);
        return sum;
    };
    for (int64_t k = 0; k < (wanted[0] || wanted[1] ? ins : 1); k += kChannels) {
        for (int64_t n = 0; n < outs; n += kChannels) {
            torch::stable::parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) {
                for (int64_t w = begin; w < end; ++w) {
                    pass(w * blocks / workers * kTiles, std::min(tiling.count(), (w + 1) * blocks / workers * kTiles),
                         n, k, sums + w * kShare);
                }
            });
            const int64_t depth = std::min(kChannels, ins - k), count = std::min(kChannels, outs - n);
            for (int64_t o = 0; wanted[2] && k == 0 && o < count; ++o) {
                to_bias[n + o] = static_cast<T>(total(kShareBias + o));
            }
            for_each_task(wanted[1] ? count : 0, [&](int64_t o) {
                double* sum = scratch<double, TotalTag>(kPositions * depth);
                for (int64_t p = 0; p < kPositions; ++p) {
                    for (int64_t c = 0; c < depth; ++c) {
                        sum[p * depth + c] = total((p * kChannels + c) * kChannels + o);
                    }
                }
                kernel<T>().winograd->weight_back(to_weight + ((n + o) * 9 + 8) * ins + k, -ins, sum, depth, depth);
            });
        }
    }
    return {wanted[0] && wrap ? fold<T>(of_x, adds, masks) : of_x, of_weight, of_bias};
}

void check_map(const Tensor& t) {
    STD_TORCH_CHECK(t.dim() == 4 && (t.stride(1) == 1 || t.size(1) == 1),
                    "liif_fast: maps must be [B, C, H, W], the channels of a pixel side by side");
}

void check_like(const Tensor& t, const Tensor& x, int64_t channels, const char* what) {
    check_map(t);
    STD_TORCH_CHECK(t.size(0) == x.size(0) && t.size(1) == channels && t.size(2) == x.size(2) && t.size(3) == x.size(3),
                    "liif_fast: ", what);
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
    if (addend) check_like(*addend, x, weight.size(0), "addend must have the output's shape, [B, out, H, W]");
    STD_TORCH_CHECK(!bias || (bias->dim() == 1 && bias->size(0) == weight.size(0)), "liif_fast: bias must be [out]");
    return dispatch_wide(x, [&](auto t) { return run<decltype(t)>(x, weight, bias, addend, wrap, relu); });
}

Tensors conv3x3_backward(const Tensor& grad, const Tensor& x, const Tensor& weight, const std::optional<Tensor>& addend,
                         bool wrap, const Flags& wanted, bool relu) {
    check_conv3x3(x, weight);
    check_like(grad, x, weight.size(0), "grad must have the output's shape, [B, out, H, W]");
    if (addend) check_like(*addend, x, weight.size(1), "addend must have the shape of x");
    check_wanted(wanted, 3);
    return dispatch_wide(
        x, [&](auto t) { return run_backward<decltype(t)>(grad, x, weight, addend, wrap, wanted, relu); });
}

}  // namespace liif
