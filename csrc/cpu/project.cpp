// liif_fast::project, the latents' share of the first layer. See project.h.
#include "project.h"

#include "operators.h"

namespace liif {
namespace {

struct PackTag {};
struct TileTag {};

template <typename T>
Tensor run(const Tensor& feat, const Tensor& weight, const Tensor& bias, bool unfold, int64_t top, int64_t left,
           int64_t height, int64_t width) {
    const int64_t out = weight.size(0), batch = feat.size(0);
    Tensor p = make(feat, {batch, height, width, out});
    const int64_t latents = batch * height * width;
    if (latents == 0) return p;
    const ChannelsLast<T> source(feat);
    const auto projection = build_packed<T, PackTag>(
        [&](Arena<T>& arena, bool dry) { return Projection<T>(weight, bias, source.channels, unfold, arena, dry); });
    T* to = p.mutable_data_ptr<T>();
    constexpr int64_t tile = 96;
    for_each_task(ceil_div(latents, tile), [&](int64_t task) {
        const int64_t first = task * tile, count = std::min(tile, latents - first);
        T* rows = scratch<T, TileTag>(tile * (projection.depth + projection.out_padded));
        T* product = rows + tile * projection.depth;
        for (int64_t r = 0; r < count; ++r) {
            const int64_t at = first + r, b = at / (height * width), i = at / width % height, j = at % width;
            latent_row(source, unfold, b, top + i, left + j, rows + r * projection.depth);
        }
        const bool direct = projection.out_padded == out;
        projection.apply(rows, count, direct ? to + first * out : product, projection.out_padded);
        for (int64_t r = 0; !direct && r < count; ++r) {
            std::memcpy(to + (first + r) * out, product + r * projection.out_padded,
                        static_cast<size_t>(out) * sizeof(T));
        }
    });
    return p;
}

}  // namespace

Tensor project(const Tensor& feat, const Tensor& weight, const Tensor& bias, bool unfold, int64_t top, int64_t left,
               int64_t height, int64_t width) {
    return dispatch(feat,
                    [&](auto t) { return run<decltype(t)>(feat, weight, bias, unfold, top, left, height, width); });
}

}  // namespace liif
