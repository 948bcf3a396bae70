// Shared by decode.cpp, fourier.cpp and modulated.cpp: tiles of queries through the hidden layers, the blend of the
// corners and the last layer. The corners are blended before the last layer, because it is linear and the weights sum
// to 1.
#pragma once

#include "network.h"

namespace liif {

// Runs tiles of queries. Row t * count + q of a tile is corner t of query q, so that neighbouring rows read the same
// latent (terms_impl.h). fill(first, count, h0, weight, extra) writes layer 0 of count * corners rows, and the corners'
// weights at q * corners + t; through(h, rows, top, extra) returns the last hidden layer; emit(query, out) gets one
// query's output. `extra` is the tile's layout(arena). The hidden activations of the first `keep` queries go to
// `saved`.
template <typename Tag, typename T, typename Layout, typename Fill, typename Through, typename Emit>
void forward(const Network<T>& net, int64_t queries, int corners, int64_t keep, T* saved, const Layout& layout,
             const Fill& fill, const Through& through, const Emit& emit) {
    const int64_t tile = tile_rows(queries * corners) / corners, hidden = net.hidden(), stride = net.stride();
    const int64_t levels = net.levels();
    const int64_t buffers = keep > 0 ? levels : std::min<int64_t>(levels, 2);
    const int64_t saved_width = net.saved_width();
    for_each_task(ceil_div(queries, tile), [&](int64_t task) {
        const int64_t first = task * tile, count = std::min(tile, queries - first), rows = count * corners;
        const auto b = in_scratch<Tag>([&](Arena& arena) {
            struct {
                std::vector<T*> h;
                Sum<T>*top, *weight, *blend, *out;
                decltype(layout(arena)) extra;
            } b;
            for (int64_t l = 0; l < levels; ++l) {
                b.h.push_back(l < buffers ? arena.take<T>(kTileRows * stride) : b.h[static_cast<size_t>(l % 2)]);
            }
            b.top = arena.take<Sum<T>>(std::is_same_v<T, Sum<T>> ? 0 : kTileRows * stride);
            b.weight = arena.take<Sum<T>>(kTileRows);
            b.blend = arena.take<Sum<T>>(tile * stride);
            b.out = arena.take<Sum<T>>(tile * net.out_padded());
            b.extra = layout(arena);
            return b;
        });

        fill(first, count, b.h[0], b.weight, b.extra);
        const Sum<T>* top = through(b.h.data(), rows, b.top, b.extra);
        for (int64_t r = 0; r < rows; ++r) {
            if (first + r % count >= keep) continue;
            T* to = saved + ((first + r % count) * corners + r / count) * saved_width;
            for (int64_t l = 1; l < hidden - 1; to += net.width(l), ++l) {
                std::memcpy(to, b.h[static_cast<size_t>(l)] + r * stride,
                            static_cast<size_t>(net.width(l)) * sizeof(T));
            }
            if (hidden > 1) narrow_row(to, top + r * stride, net.width(hidden - 1));
        }
        if (corners > 1) {
            const int64_t width = net.width(levels - 1);
            for (int64_t q = 0; q < count; ++q) {
                kernel<Sum<T>>().blend(b.blend + q * stride, top + q * stride, count * stride, b.weight + q * corners,
                                       corners, width);
            }
            top = b.blend;
        }
        if (hidden > 0) {
            const Sum<T>* bias = net.layer(hidden).bias;
            for (int64_t q = 0; q < count; ++q) {
                const Sum<T>* weight = b.weight + q * corners;
                Sum<T> total = weight[0];  // 1 except for rounding to float32, which is visible if T is double
                for (int t = 1; t < corners; ++t) total += weight[t];
                for (int64_t o = 0; o < net.out_padded(); ++o) b.out[q * net.out_padded() + o] = total * bias[o];
            }
            net.forward_last(top, count, b.out, Init::accumulate);
            for (int64_t q = 0; q < count; ++q) emit(first + q, b.out + q * net.out_padded());
        } else {
            for (int64_t q = 0; q < count; ++q) emit(first + q, top + q * stride);
        }
    });
}

// With the network's own hidden layers.
template <typename Tag, typename T, typename Layout, typename Fill, typename Emit>
void forward(const Network<T>& net, int64_t queries, int corners, int64_t keep, T* saved, const Layout& layout,
             const Fill& fill, const Emit& emit) {
    const auto through = [&net](T* const* h, int64_t rows, Sum<T>* top, const auto&) {
        return net.forward_top(h, rows, top);
    };
    forward<Tag>(net, queries, corners, keep, saved, layout, fill, through, emit);
}

struct None {};

inline None no_layout(Arena&) {
    return {};
}

}  // namespace liif
