// liif_fast::attend_corners: from the latents' table to the blended values and the corners' weights, in one pass.
#include "attend.h"

#include "operators.h"

namespace liif {
namespace {

struct TileTag {};

template <typename T, typename Spots>
std::tuple<Tensor, Tensor> run(const Tensor& table, const Tensor& by_rel, const Tensors& layers, const Spots& spots,
                               int64_t images, int64_t per_image, int64_t heads) {
    const CornerNet<T> net(table, by_rel, layers, heads);
    const int64_t total = images * per_image, values = net.values(), tile = net.queries(), stride = net.stride();
    Tensor out = make<T>(table, {images, per_image, values}), weight = make<T>(table, {images, per_image, 4});
    T *to = mutable_data<T>(out), *to_weight = mutable_data<T>(weight);
    for_each_task(ceil_div(total, tile), [&](int64_t task) {
        const int64_t first = task * tile, count = std::min(tile, total - first);
        auto [b, blend] = in_scratch<TileTag>([&](Arena& arena) {
            auto steps = net.make_tile(arena, false);
            return std::pair(std::move(steps), arena.take<T>(values * stride));
        });
        net.forward(spots, first, count, b);
        net.loops().mixture(blend, b.weight, tile, net.value(b), values);
        for (int64_t q = 0; q < count; ++q) {
            for (int64_t v = 0; v < values; ++v) to[(first + q) * values + v] = blend[v * stride + q];
            for (int64_t t = 0; t < 4; ++t) to_weight[(first + q) * 4 + t] = b.weight[t * tile + q];
        }
    });
    return {out, weight};
}

}  // namespace

std::tuple<Tensor, Tensor> attend_corners(const Tensor& table, const Tensor& by_rel, const Tensors& layers,
                                          const Tensors& queries, const Ints& shape, bool wrap, int64_t heads) {
    check_attend(table, by_rel, layers, queries, shape, heads);
    return dispatch_wide(table, [&](auto t) {
        return with_spots(queries, shape, wrap, [&](const auto& spots) {
            return run<decltype(t)>(table, by_rel, layers, spots, shape[0], queries[0].size(1), heads);
        });
    });
}

}  // namespace liif
