// The first linear layer's part that acts on latents, computed once per latent, not once per (query, corner):
// P = unfold(feat) W1z^T + b1, a 3x3 convolution written as rows of a matrix product.
#pragma once

#include <algorithm>

#include "network.h"

namespace liif {

// feat [B, C, H, W] with any strides, or a copy of a window of it whose first latent is (top, left).
template <typename T>
struct Features {
    const T* data;
    int64_t step_b, step_c, step_h, step_w;
    int64_t channels, height, width;
    int64_t top = 0, left = 0;

    explicit Features(const Tensor& feat)
        : data(liif::data<T>(feat)),
          step_b(feat.stride(0)),
          step_c(feat.stride(1)),
          step_h(feat.stride(2)),
          step_w(feat.stride(3)),
          channels(feat.size(1)),
          height(feat.size(2)),
          width(feat.size(3)) {}

    const T* at(int64_t b, int64_t i, int64_t j) const {
        return data + b * step_b + (i - top) * step_h + (j - left) * step_w;
    }

    // The window [i0, i1) x [j0, j1) of image b, channels last, in the caller's memory.
    Features channels_last(int64_t b, int64_t i0, int64_t i1, int64_t j0, int64_t j1, T* memory) const {
        Features copy = *this;
        copy.data = memory, copy.top = i0, copy.left = j0;
        copy.step_b = 0, copy.step_c = 1, copy.step_w = channels, copy.step_h = (j1 - j0) * channels;
        constexpr int64_t block = 16;  // latents: whole cache lines of the source
        for (int64_t i = i0; i < i1; ++i) {
            for (int64_t j = j0; j < j1; j += block) {
                const int64_t count = std::min(block, j1 - j);
                T* to = memory + (i - i0) * copy.step_h + (j - j0) * channels;
                for (int64_t c = 0; c < channels; ++c) {
                    const T* from = at(b, i, j) + c * step_c;
                    for (int64_t n = 0; n < count; ++n) to[n * channels + c] = from[n * step_w];
                }
            }
        }
        return copy;
    }
};

// One latent's row: its channels, or those of the 3x3 neighbourhood, neighbour by neighbour, zero outside the map;
// then zeros up to `depth`.
template <typename T>
void latent_row(const Features<T>& feat, bool unfold, int64_t b, int64_t i, int64_t j, T* row, int64_t depth) {
    const int64_t reach = unfold ? 1 : 0;
    std::fill(row + (unfold ? 9 : 1) * feat.channels, row + depth, T{});
    for (int64_t y = i - reach; y <= i + reach; ++y) {
        for (int64_t x = j - reach; x <= j + reach; ++x, row += feat.channels) {
            if (y < 0 || y >= feat.height || x < 0 || x >= feat.width) {
                std::fill(row, row + feat.channels, T{});
            } else if (feat.step_c == 1) {
                std::memcpy(row, feat.at(b, y, x), static_cast<size_t>(feat.channels) * sizeof(T));
            } else {
                const T* from = feat.at(b, y, x);
                for (int64_t c = 0; c < feat.channels; ++c) row[c] = from[c * feat.step_c];
            }
        }
    }
}

// The first layer's weight on latents, with its rows in latent_row's order (the module's order is by channel).
template <typename T>
struct Projection {
    int64_t depth, out, out_padded;  // depth of rows, padded with zeros to whole pairs
    Packed<T> weight;
    const Sum<T>* bias;
    bool unfold;

    Projection(const Tensor& w, const Tensor& b, int64_t channels, bool unfold3, Arena& arena, bool dry)
        : depth(round_up((unfold3 ? 9 : 1) * channels, kDepth<T>)),
          out(w.size(0)),
          out_padded(round_up(w.size(0), kernel<T>().nr)),
          unfold(unfold3) {
        constexpr int64_t pair = kDepth<T>;
        const int64_t nr = kernel<T>().nr;
        T* to = arena.take<T>(out_padded * depth);
        weight = {to, depth / pair, out};
        bias = pack_bias<T>(b, out, out_padded, arena, dry);
        if (dry) return;
        const T* from = data<T>(w);
        const int64_t row = w.stride(0), column = w.stride(1), rows = out, deep = depth;
        const int64_t taps = unfold ? 9 : 1;
        for_each_task(out_padded / nr, [=](int64_t panel) {
            T* panel_to = to + panel * deep * nr;
            const T* panel_from = from + panel * nr * row;
            if (column == 1 && (panel + 1) * nr <= rows && channels % pair == 0 && turns(panel_from, row, deep)) {
                constexpr int64_t block = 4 * pair;  // channels; what is turned stays in the first-level cache
                T* turned = scratch<T, Projection>(block * taps * nr);
                for (int64_t c0 = 0; c0 < channels; c0 += block) {
                    const int64_t count = std::min(block, channels - c0);
                    turn_panel(panel_from + c0 * taps, row, count * taps, turned);
                    for (int64_t c = 0; c < count; c += pair) {
                        for (int64_t tap = 0; tap < taps; ++tap) {
                            T* step = panel_to + (tap * channels + c0 + c) * nr;
                            if constexpr (pair == 1) {
                                std::memcpy(step, turned + (c * taps + tap) * nr, static_cast<size_t>(nr) * sizeof(T));
                                continue;
                            }
                            for (int64_t j = 0; j < pair; ++j) {
                                const int64_t k = (c + j) * taps + tap;
                                const T* at = turned + k / pair * pair * nr + k % pair;
                                for (int64_t n = 0; n < nr; ++n) step[n * pair + j] = at[n * pair];
                            }
                        }
                    }
                }
                return;
            }
            for (int64_t j = 0; j < nr; ++j) {
                const int64_t n = panel * nr + j;
                for (int64_t tap = 0; tap < taps; ++tap) {
                    for (int64_t c = 0; c < channels; ++c) {
                        const int64_t k = tap * channels + c;
                        panel_to[(k / pair * nr + j) * pair + k % pair] =
                            n < rows ? from[n * row + (c * taps + tap) * column] : T{};
                    }
                }
                for (int64_t k = taps * channels; k < deep; ++k) {
                    panel_to[(k / pair * nr + j) * pair + k % pair] = T{};
                }
            }
        });
    }

    // rows [count, depth] -> out [count, out_padded] with the given stride
    void apply(const T* rows, int64_t count, T* to, int64_t stride) const {
        multiply(count, rows, depth, weight, to, stride, Init::bias, bias, Epilogue::none,
                 static_cast<const T*>(nullptr));
    }
};

}  // namespace liif
