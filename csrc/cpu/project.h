// The first linear layer's part that acts on latents, once per latent instead of once per (query, corner):
// P = unfold(feat) W1z^T + b1, a 3x3 convolution written as rows of a matrix product.
#pragma once

#include <memory>

#include "network.h"

namespace liif {

// feat [B, C, H, W] as rows of channels, [B, H, W, C], so that a neighbour is one contiguous copy.
template <typename T>
class ChannelsLast {
   public:
    explicit ChannelsLast(const Tensor& feat)
        : batch(feat.size(0)), channels(feat.size(1)), height(feat.size(2)), width(feat.size(3)) {
        const T* from = feat.template const_data_ptr<T>();
        const int64_t sb = feat.stride(0), sc = feat.stride(1), sh = feat.stride(2), sw = feat.stride(3);
        if (sc == 1) {
            data_ = from, step_b_ = sb, step_h_ = sh, step_w_ = sw;
            return;
        }
        copy_.reset(new T[static_cast<size_t>(batch * height * width * channels)]);
        T* to = copy_.get();
        for_each_task(batch * height, [=](int64_t task) {
            const int64_t b = task / height, i = task % height;
            constexpr int64_t block = 16;
            for (int64_t j0 = 0; j0 < width; j0 += block) {
                const int64_t j1 = std::min(width, j0 + block);
                for (int64_t c = 0; c < channels; ++c) {
                    for (int64_t j = j0; j < j1; ++j)
                        to[(task * width + j) * channels + c] = from[b * sb + c * sc + i * sh + j * sw];
                }
            }
        });
        data_ = to, step_w_ = channels, step_h_ = width * channels, step_b_ = height * width * channels;
    }

    const T* at(int64_t b, int64_t i, int64_t j) const { return data_ + b * step_b_ + i * step_h_ + j * step_w_; }

    const int64_t batch, channels, height, width;

   private:
    const T* data_;
    int64_t step_b_, step_h_, step_w_;
    std::unique_ptr<T[]> copy_;
};

// One latent's row: its own channels, or the 3x3 neighbourhood's, neighbour by neighbour, zero outside the map.
template <typename T>
void latent_row(const ChannelsLast<T>& feat, bool unfold, int64_t b, int64_t i, int64_t j, T* row) {
    const size_t bytes = static_cast<size_t>(feat.channels) * sizeof(T);
    if (!unfold) {
        std::memcpy(row, feat.at(b, i, j), bytes);
        return;
    }
    for (int64_t ki = -1; ki <= 1; ++ki) {
        for (int64_t kj = -1; kj <= 1; ++kj, row += feat.channels) {
            const bool inside = i + ki >= 0 && i + ki < feat.height && j + kj >= 0 && j + kj < feat.width;
            if (inside) {
                std::memcpy(row, feat.at(b, i + ki, j + kj), bytes);
            } else {
                std::memset(row, 0, bytes);
            }
        }
    }
}

// The first layer's weight on latents, its rows put in latent_row's order (the module's is channel by channel).
template <typename T>
struct Projection {
    int64_t depth, out, out_padded;
    Packed<T> weight;
    const T* bias;
    bool unfold;

    Projection(const Tensor& w, const Tensor& b, int64_t channels, bool unfold3, Arena<T>& arena, bool dry)
        : depth(unfold3 ? 9 * channels : channels),
          out(w.size(0)),
          out_padded(round_up(w.size(0), kernel<T>().nr)),
          unfold(unfold3) {
        const int64_t nr = kernel<T>().nr;
        T* to = arena.take(out_padded * depth);
        weight = {to, depth, out_padded};
        bias = pack_bias<T>(b, out, out_padded, arena, dry);
        if (dry) return;
        const T* from = w.template const_data_ptr<T>();
        const int64_t row = w.stride(0), column = w.stride(1), rows = out, deep = depth;
        const int64_t taps = unfold ? 9 : 1;
        for_each_task(out_padded / nr, [=](int64_t panel) {
            for (int64_t j = 0; j < nr; ++j) {
                const int64_t n = panel * nr + j;
                for (int64_t c = 0; c < channels; ++c) {
                    for (int64_t tap = 0; tap < taps; ++tap) {
                        const T x = n < rows ? from[n * row + (c * taps + tap) * column] : T(0);
                        to[(panel * deep + tap * channels + c) * nr + j] = x;
                    }
                }
            }
        });
    }

    // rows [count, depth] -> out [count, out_padded] with the given stride
    void apply(const T* rows, int64_t count, T* to, int64_t stride) const {
        const auto& kern = kernel<T>();
        kern.gemm({count, out_padded, depth, rows, depth, 1, weight.data, depth * kern.nr, kern.nr, to, stride,
                   Init::bias, bias, Epilogue::none, nullptr});
    }
};

}  // namespace liif
