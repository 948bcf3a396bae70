// liif_fast::project, the latents' share of the first layer. See project.h.
#include "project.h"

#include "memory.h"
#include "operators.h"

namespace liif {
namespace {

struct TileTag {};

// Blocks of the map, each with its halo small enough for a second-level cache.
constexpr int64_t kBlockHeight = 4, kBlockWidth = 48;

template <typename T>
Tensor run(const Tensor& feat, const Tensor& weight, const Tensor& bias, bool unfold, int64_t top, int64_t left,
           int64_t height, int64_t width) {
    const int64_t outs = weight.size(0), images = feat.size(0), reach = unfold ? 1 : 0;
    Tensor p = make_large<T>(feat, {images, height, width, outs}, Sign::none);
    if (images * height * width == 0) return p;
    const Features<T> whole(feat);
    Tensor packed;
    const auto projection = build_packed(feat, packed, [&](Arena& arena, bool dry) {
        return Projection<T>(weight, bias, whole.channels, unfold, arena, dry);
    });
    T* to = mutable_data<T>(p);
    const int64_t down = ceil_div(height, kBlockHeight), across = ceil_div(width, kBlockWidth);
    for_each_task(images * down * across, [&](int64_t task) {
        const int64_t b = task / (down * across);
        const int64_t i0 = top + task / across % down * kBlockHeight, i1 = std::min(top + height, i0 + kBlockHeight);
        const int64_t j0 = left + task % across * kBlockWidth, j1 = std::min(left + width, j0 + kBlockWidth);
        const auto memory = in_scratch<TileTag>([&](Arena& arena) {
            struct {
                T *copy, *rows, *product;
            } m;
            m.copy = arena.take<T>((kBlockHeight + 2) * (kBlockWidth + 2) * whole.channels);
            m.rows = arena.take<T>(kBlockWidth * projection.depth);
            m.product = arena.take<T>(kBlockWidth * projection.out_padded);
            return m;
        });
        const Features<T> block =
            whole.step_c == 1
                ? whole
                : whole.channels_last(b, std::max<int64_t>(i0 - reach, 0), std::min(i1 + reach, whole.height),
                                      std::max<int64_t>(j0 - reach, 0), std::min(j1 + reach, whole.width), memory.copy);
        for (int64_t i = i0; i < i1; ++i) {
            const int64_t count = j1 - j0;
            for (int64_t r = 0; r < count; ++r) {
                latent_row(block, unfold, b, i, j0 + r, memory.rows + r * projection.depth, projection.depth);
            }
            T* line = to + ((b * height + i - top) * width + j0 - left) * outs;
            const bool direct = projection.out_padded == outs;
            projection.apply(memory.rows, count, direct ? line : memory.product, projection.out_padded);
            for (int64_t r = 0; !direct && r < count; ++r) {
                std::memcpy(line + r * outs, memory.product + r * projection.out_padded,
                            static_cast<size_t>(outs) * sizeof(T));
            }
        }
    });
    return p;
}

}  // namespace

Tensor project(const Tensor& feat, const Tensor& weight, const Tensor& bias, bool unfold, const Ints& window) {
    STD_TORCH_CHECK(feat.dim() == 4 && weight.dim() == 2 && weight.size(1) >= feat.size(1) * (unfold ? 9 : 1) &&
                        bias.dim() == 1 && bias.size(0) == weight.size(0),
                    "liif_fast: feat [B, C, H, W], weight [out, in] and bias [out] do not fit");
    STD_TORCH_CHECK(window.size() == 4, "liif_fast: window must be four integers");
    const int64_t top = window[0], left = window[1], height = window[2], width = window[3];
    STD_TORCH_CHECK(top >= 0 && left >= 0 && height >= 0 && width >= 0 && top + height <= feat.size(2) &&
                        left + width <= feat.size(3),
                    "liif_fast: the window lies outside of feat");
    return dispatch(feat,
                    [&](auto t) { return run<decltype(t)>(feat, weight, bias, unfold, top, left, height, width); });
}

}  // namespace liif
