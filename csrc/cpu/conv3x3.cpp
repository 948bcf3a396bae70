// liif_fast::conv3x3: a 3x3 convolution of stride 1 that keeps the map's size, by Winograd's algorithm.
#include "operators.h"
#include "winograd.h"

namespace liif {
namespace {

// to = relu(conv(x) + bias + addend)
template <typename T>
Tensor run(const Tensor& from, const Tensor& weight, const std::optional<Tensor>& bias,
           const std::optional<Tensor>& addend, bool wrap, bool relu) {
    const Weights<T> weights(weight, false);
    std::vector<T> start(static_cast<size_t>(weights.out_padded));
    for (int64_t n = 0; bias && n < weights.out; ++n) {
        start[static_cast<size_t>(n)] = data<T>(*bias)[n * bias->stride(0)];
    }
    Tensor out = make_channels_last<T>(from, {from.size(0), weights.out, from.size(2), from.size(3)}, Sign::none);
    const auto x = map_of<T>(from);
    const auto added = map_of<T>(addend);
    const Map<T> to(mutable_data<T>(out), out);
    const int64_t workers = torch::stable::get_num_threads();
    const Tiling tiling(to.images, to.height, to.width);
    const int64_t parts = ceil_div(weights.out, kChannels);
    const int64_t widest = std::max(weights.in, weights.out);
    for_each_task(ceil_div(tiling.count(), tiling.block) * parts, [&](int64_t task) {
        const int64_t first = task / parts * tiling.block, count = std::min(tiling.block, tiling.count() - first);
        const int64_t begin = task % parts * kChannels, columns = std::min(kChannels, weights.out - begin);
        const int64_t next = (task + workers) / parts * tiling.block;  // probably
        const auto m = take_memory<T>(widest);
        const T *pixel[kPositions], *other[16];
        for (int64_t k = 0; k < weights.in; k += kChannels) {
            const int64_t depth = std::min(kChannels, weights.in - k);
            const bool last = k + kChannels >= weights.in;
            Ahead<T> ahead;
            for (int64_t t = 0; t < count; ++t) {
                ahead.add(tiling, t + (last ? next : first), x, last ? 0 : k + kChannels, -1, -1);
                if (last) ahead.add(tiling, first + t, to, begin, 0, 0);
                if (last && added) ahead.add(tiling, first + t, *added, begin, 0, 0);
            }
            for (int64_t t = 0; t < count; ++t) {
                tiling.find<6>(first + t, x, k, 1, 1, wrap ? Edge::wrap : Edge::zeros, m.zeros, pixel);
                kernel<T>().winograd->input(m.one + t * kChannels, kPosition, pixel, depth);
            }
            weights.multiply(m.one, m.two, count, k, depth, begin, columns, k == 0 ? Init::zero : Init::accumulate,
                             ahead);
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

}  // namespace

Tensor conv3x3(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
               const std::optional<Tensor>& addend, bool wrap, bool relu) {
    check_conv3x3(x, weight);
    if (addend) check_like(*addend, x, weight.size(0), "addend must have the output's shape, [B, out, H, W]");
    STD_TORCH_CHECK(!bias || (bias->dim() == 1 && bias->size(0) == weight.size(0)), "liif_fast: bias must be [out]");
    return dispatch_wide(x, [&](auto t) { return run<decltype(t)>(x, weight, bias, addend, wrap, relu); });
}

}  // namespace liif
