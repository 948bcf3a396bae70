// What conv3x3 and its gradients share: maps, their tiles, and products of transformed tiles. Winograd's F(4x4, 3x3)
// needs a quarter of a direct convolution's multiplications. Tiles of 4 x 4 pixels are transformed together, multiplied
// in 36 small products, and transformed back. Pixels are read where the map holds them, also for what lies beyond its
// borders.
#pragma once

#include "memory.h"
#include "network.h"
#include "unroll.h"

namespace liif {

constexpr int64_t kPositions = 36;
constexpr int64_t kTiles = 24;     // at most at a time; transformed twice they fill half of a second-level cache
constexpr int64_t kRows = 12;      // of them in a product, between which pixels are fetched
constexpr int64_t kChannels = 64;  // at a time, of the input and of the output
// From one position to the next in a transformed block, 16 more so that positions do not share cache sets
constexpr int64_t kPosition = kTiles * kChannels + 16;
struct BlockTag {};

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
    template <typename U>
    Map(const Map<U>& m)
        : data(m.data),
          step_b(m.step_b),
          step_h(m.step_h),
          step_w(m.step_w),
          images(m.images),
          height(m.height),
          width(m.width),
          channels(m.channels) {}
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
Tensor make_channels_last(const Tensor& like, const std::vector<int64_t>& size, Sign sign) {
    const auto found = reuse<T>(like, size, {0, 2, 3, 1}, sign);
    if (found) return *found;
    return torch::stable::empty(size, scalar_type<T>, std::nullopt, std::nullopt, std::nullopt,
                                torch::headeronly::MemoryFormat::ChannelsLast);
}

// The tiles of an output, in the order of images, rows and columns.
struct Tiling {
    int64_t images, rows, columns, block;  // `block` tiles are transformed at a time, fewer if a thread would have none

    Tiling(int64_t count, int64_t height, int64_t width)
        : images(count), rows(ceil_div(height, 4)), columns(ceil_div(width, 4)) {
        const int64_t each = ceil_div(images * rows * columns, torch::stable::get_num_threads());
        block = std::clamp(round_up(each, kRows), kRows, kTiles);
    }
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

// Pixels that will soon be needed: they are fetched into the cache during products, which leave the memory idle.
template <typename T>
struct Ahead {
    int64_t count = 0;
    const T* pixel[64 * kTiles];
    int64_t channels[4 * kTiles];

    // Adds a tile's pixels; `tile` to `columns_before` mean what they mean in Tiling::find.
    void add(const Tiling& tiling, int64_t tile, const Map<const T>& map, int64_t channel, int64_t rows_before,
             int64_t columns_before) {
        if (tile >= tiling.count()) return;
        channels[count] = std::min(kChannels, map.channels - channel);
        tiling.find<4>(tile, map, channel, rows_before, columns_before, Edge::repeat, map.data, pixel + 16 * count++);
    }

    // Fetches one of `parts` equal parts. Call it after each product, because the processor drops most of many fetches.
    LIIF_INLINE void fetch(int64_t part, int64_t parts) const {  // GCC drops a call that only prefetches
        const auto begin = [=](int64_t i) { return 16 * count * i / parts; };
        for (int64_t i = begin(part); i < begin(part + 1); ++i) {
            for (int64_t c = 0; c < channels[i / 16]; c += 64 / static_cast<int64_t>(sizeof(T))) {
                LIIF_PREFETCH_L2(pixel[i] + c);
            }
        }
    }
};

// Computes 36 products. g is the first, and their A lie kPosition apart. Each step takes one panel of columns and
// `rows_at_once` rows, and then fetches pixels.
template <typename T>
void multiply_blocks(Gemm<T, T> g, int64_t b_position, int64_t c_position, int64_t rows_at_once,
                     const Ahead<T>& ahead) {
    const int64_t nr = kernel<T>().nr, panels = ceil_div(g.columns, nr), blocks = ceil_div(g.rows, rows_at_once);
    const int64_t parts = kPositions * panels * blocks;
    for (int64_t part = 0; part < parts; ++part) {
        const int64_t p = part / (panels * blocks), panel = part / blocks % panels, row = part % blocks * rows_at_once;
        Gemm<T, T> each = g;
        each.rows = std::min(rows_at_once, g.rows - row);
        each.columns = std::min(nr, g.columns - panel * nr);
        each.a += p * kPosition + row * g.a_row;
        each.b += p * b_position + panel * g.b_panel;
        each.c += p * c_position + row * g.c_row + panel * nr;
        kernel<T>().gemm(each);
        ahead.fetch(part, parts);
    }
}

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
                  Init init, const Ahead<T>& ahead) const {
        const int64_t nr = kernel<T>().nr;
        multiply_blocks<T>({tiles, columns, depth, from, kChannels, 1, data + begin * in + k * nr, in * nr, nr, to,
                            kChannels, init, nullptr, Epilogue::none, nullptr},
                           out_padded * in, kPosition, kRows, ahead);
    }
};

// A worker's memory: two transformed blocks, a pixel of zeros, and one for what lies beyond an output's borders.
template <typename T>
struct Memory {
    T *one, *two, *zeros, *spare;
};

template <typename T>
Memory<T> take_memory(int64_t channels) {
    const auto m = in_scratch<BlockTag>([&](Arena& arena) {
        return Memory<T>{arena.take<T>(kPositions * kPosition), arena.take<T>(kPositions * kPosition),
                         arena.take<T>(channels), arena.take<T>(channels)};
    });
    std::fill(m.zeros, m.zeros + channels, T(0));
    return m;
}

inline void check_map(const Tensor& t) {
    STD_TORCH_CHECK(t.dim() == 4 && (t.stride(1) == 1 || t.size(1) == 1),
                    "liif_fast: maps must be [B, C, H, W], the channels of a pixel side by side");
}

inline void check_like(const Tensor& t, const Tensor& x, int64_t channels, const char* what) {
    check_map(t);
    STD_TORCH_CHECK(t.size(0) == x.size(0) && t.size(1) == channels && t.size(2) == x.size(2) && t.size(3) == x.size(3),
                    "liif_fast: ", what);
}

inline void check_conv3x3(const Tensor& x, const Tensor& weight) {
    check_map(x);
    STD_TORCH_CHECK(weight.dim() == 4 && weight.size(0) > 0 && weight.size(1) > 0 && weight.size(1) == x.size(1) &&
                        weight.size(2) == 3 && weight.size(3) == 3,
                    "liif_fast: weight must be [out, in, 3, 3], of as many inputs as x has channels");
}

}  // namespace liif
