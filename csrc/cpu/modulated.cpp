// liif_fast::modulated_decode: one pass from maps of modulations and features to the output, tile by tile: plan, gather
// of the features, layers that each row's latent scales and shifts, blend of the corners, last layer. Modulations are
// read where the map holds them.
#include "modulated.h"

#include "forward.h"
#include "operators.h"

namespace liif {
namespace {

struct ModulatedTag {};

template <typename T>
Tensor run(const Tensor& p, const Tensor& coord, const std::optional<Tensor>& cell, const Tensors& weights,
           const Tensors& biases, bool ensemble, const Ints& place) {
    const int corners = ensemble ? 4 : 1;
    const Latents<Sum<T>> latents(p, place[0], place[1]);
    const CoordQueries queries(coord, cell, place[2], place[3], ensemble);
    const int64_t count = coord.size(0) * coord.size(1), outs = weights.back().size(0);
    check_inside(queries, count, corners, place, p);
    Tensor out = make<Sum<T>>(p, {coord.size(0), coord.size(1), outs});
    Tensor packed;
    const auto net = build_packed(p, packed, [&](Arena& arena, bool dry) {
        return ModulatedNet<T>(weights, biases, cell ? 4 : 2, forward_packs<T>(4 * count), arena, dry);
    });
    struct Extra {
        const Sum<T>** latent;
        Sum<T>* wide;
    };
    const auto layout = [&net](Arena& arena) {
        return Extra{arena.take<const Sum<T>*>(kTileRows), arena.take<Sum<T>>(net.first_out())};
    };
    const auto fill = [&](int64_t first, int64_t n, T* h0, Sum<T>* weight, const Extra& extra) {
        Corner corner[4];
        for (int64_t q = 0; q < n; ++q) {
            const Query at = queries(first + q, corner);
            for (int t = 0; t < corners; ++t) {
                const int64_t r = t * n + q;
                extra.latent[r] = latents.row(at.batch, corner[t]);
                net.enter(h0 + r * net.stride(), extra.latent[r], corner[t], at.cell, extra.wide);
                weight[q * corners + t] = corner[t].weight;
            }
        }
    };
    const auto through = [&net](T* const* h, int64_t rows, Sum<T>* top, const Extra& extra) -> const Sum<T>* {
        const int64_t depth = net.depth(), s = net.stride();
        for (int64_t l = 1; l <= depth; ++l) {
            if constexpr (std::is_same_v<T, Sum<T>>) top = h[l];
            net.forward_modulated(l, h[l - 1], extra.latent, rows, top, top);
            if constexpr (!std::is_same_v<T, Sum<T>>) {
                for (int64_t r = 0; l < depth && r < rows; ++r) net.narrow(h[l] + r * s, top + r * s, net.neurons());
            }
        }
        return top;
    };
    Sum<T>* to = mutable_data<Sum<T>>(out);
    forward<ModulatedTag>(
        net, count, corners, 0, static_cast<T*>(nullptr), layout, fill, through,
        [&](int64_t q, const Sum<T>* y) { std::memcpy(to + q * outs, y, static_cast<size_t>(outs) * sizeof(Sum<T>)); });
    return out;
}

}  // namespace

Tensor modulated_decode(const Tensor& p, const Tensor& coord, const std::optional<Tensor>& cell, const Tensors& weights,
                        const Tensors& biases, bool ensemble, const Ints& place) {
    check_modulated(p, coord, cell, weights, biases);
    check_place(place, p);
    return dispatch(weights[0],
                    [&](auto t) { return run<decltype(t)>(p, coord, cell, weights, biases, ensemble, place); });
}

}  // namespace liif
