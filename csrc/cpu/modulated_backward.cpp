// liif_fast::modulated_decode_backward: the layers' gradients, and those of the modulations and features.
#include "modulated.h"
#include "operators.h"
#include "rows_backward.h"

namespace liif {
namespace {

struct ModulatedTag {};

template <typename T>
struct Tile {
    std::vector<T*> h;
    std::vector<Sum<T>*> product;  // of the modulated layers
    typename Backward<T>::Tiles tiles;
    T* narrow;
    Sum<T>*g, *other, *wide, *top;
    const Sum<T>** latent;
};

template <typename T>
Tile<T> make_tile(const ModulatedNet<T>& net, const Backward<T>& backward, bool places, Arena& arena) {
    constexpr bool narrows = !std::is_same_v<T, Sum<T>>;
    const int64_t size = kTileRows * net.stride();
    Tile<T> b;
    for (int64_t l = 0; l <= net.depth(); ++l) b.h.push_back(arena.take<T>(size));
    for (int64_t l = 0; l < net.depth(); ++l) b.product.push_back(arena.take<Sum<T>>(size));
    b.tiles = backward.tiles(arena);
    b.narrow = arena.take<T>(narrows ? size : 0);
    b.g = arena.take<Sum<T>>(size);
    b.other = arena.take<Sum<T>>(size);
    b.wide = arena.take<Sum<T>>(net.first_out());
    b.top = arena.take<Sum<T>>(places && narrows ? size : 0);
    b.latent = arena.take<const Sum<T>*>(kTileRows);
    return b;
}

// h and the products before modulation.
template <typename T, typename Rows>
void forward(const ModulatedNet<T>& net, const Latents<Sum<T>>& latents, const Rows& rows, const Tile<T>& b) {
    const int64_t s = net.stride();
    for (int64_t r = 0; r < rows.count; ++r) {
        const Row& row = rows[r];
        b.latent[r] = latents.row(row.latent);
        net.enter(b.h[0] + r * s, b.latent[r], row.corner, row.query.cell, b.wide);
    }
    for (int64_t l = 1; l <= net.depth(); ++l) {
        const auto at = static_cast<size_t>(l);
        if constexpr (std::is_same_v<T, Sum<T>>) {
            net.forward_modulated(l, b.h[at - 1], b.latent, rows.count, b.product[at - 1], b.h[at]);
        } else {
            net.forward_modulated(l, b.h[at - 1], b.latent, rows.count, b.product[at - 1], b.other);
            for (int64_t r = 0; r < rows.count; ++r) net.narrow(b.h[at] + r * s, b.other + r * s, net.neurons());
        }
    }
}

// Returns the gradient at h[0]; null if no wanted gradient needs it.
template <typename T, typename Rows>
const Sum<T>* back(const ModulatedNet<T>& net, const Backward<T>& backward, const Rows& rows, Tile<T> b,
                   const Gradients<T>& sum) {
    const int64_t s = net.stride();
    const T* from = rows.out;
    int64_t from_stride = net.out_padded();
    for (int64_t l = net.hidden(); l >= 1; --l) {
        const auto before = static_cast<size_t>(l - 1);
        backward.add_layer(l, from, from_stride, b.h[before], rows.count, b.tiles, sum);
        if (l == backward.lowest()) return nullptr;
        backward.back(l, from, from_stride, rows.count, b.g, nullptr);
        if (l == 1) break;
        kernel<Sum<T>>().modulate_back(b.g, rows.to, rows.step, b.product[before - 1], s, b.latent, net.scale(l - 1),
                                       net.shift(l - 1), rows.count, net.neurons());
        if constexpr (std::is_same_v<T, Sum<T>>) {
            from = b.g;
            std::swap(b.g, b.other);
        } else {
            for (int64_t r = 0; r < rows.count; ++r) net.narrow(b.narrow + r * s, b.g + r * s, net.neurons());
            from = b.narrow;
        }
        from_stride = s;
    }
    for (int64_t r = 0; r < rows.count; ++r) {
        std::memcpy(rows.to + r * rows.step + net.first_feature(), b.g + r * s,
                    static_cast<size_t>(net.features()) * sizeof(Sum<T>));
    }
    return b.g;
}

template <typename T>
Tensors run(const Tensor& grad, const Tensor& p, const Tensor& coord, const std::optional<Tensor>& cell,
            const Tensors& weights, const Tensors& biases, bool ensemble, const Wanted& wanted, Tensor& place_grad) {
    const int corners = ensemble ? 4 : 1;
    Sum<T>* places = mutable_data<Sum<T>>(place_grad);
    const Latents<Sum<T>> latents(p, 0, 0);
    const CoordQueries queries(coord, cell, p.size(1), p.size(2), ensemble);
    Tensor packed;
    const auto net = build_packed(p, packed, [&](Arena& arena, bool dry) {
        return ModulatedNet<T>(weights, biases, cell ? 4 : 2, pack_backward | pack_forward, arena, dry);
    });
    Tensors result{wanted.latents ? make_large_zeros<Sum<T>>(p, {p.size(0), p.size(1), p.size(2), p.size(3)})
                                  : make<Sum<T>>(p, {0})};
    RowsBackward<T, Latents<Sum<T>>, CoordQueries> pass(grad, latents, queries, net, corners,
                                                        coord.size(0) * coord.size(1), wanted, 0, result[0]);
    const auto layout = [&](Arena& arena) { return make_tile(net, pass.backward(), wanted.places, arena); };
    pass.template run<ModulatedTag>(layout, [&](const auto& rows, const Tile<T>& b, const auto& sum) {
        forward(net, latents, rows, b);
        const Sum<T>* g = back(net, pass.backward(), rows, b, sum.layers);
        if (!wanted.places) return;
        const Sum<T>* outs = pass.outputs(rows, b.h.back(), b.top);
        for (int64_t r = 0; r < rows.count; ++r) {  // of rel, of the cell, and of the corner's weight
            Sum<T>* to = places + rows.number(r) * (net.places() + 1);
            std::memcpy(to, g + r * net.stride() + net.features(), static_cast<size_t>(net.places()) * sizeof(Sum<T>));
            to[net.places()] = pass.of_weight(rows, r, outs + r * net.out_padded());
        }
    });
    pass.layer_gradients(p, result);
    return result;
}

}  // namespace

Tensors modulated_decode_backward(const Tensor& grad, const Tensor& p, const Tensor& coord,
                                  const std::optional<Tensor>& cell, const Tensors& weights, const Tensors& biases,
                                  bool ensemble, const Flags& wanted) {
    check_modulated(p, coord, cell, weights, biases);
    const Wanted flags(wanted, weights.size(), false);
    check_gradient(grad, {coord.size(0), coord.size(1), weights.back().size(0)});
    return dispatch(weights[0], [&](auto t) {
        using T = decltype(t);
        Tensor at = flags.places ? make<Sum<T>>(p, {coord.size(0), coord.size(1), ensemble ? 4 : 1, cell ? 5 : 3})
                                 : make<Sum<T>>(p, {0});
        Tensors result = run<T>(grad, p, coord, cell, weights, biases, ensemble, flags, at);
        result.push_back(at);
        return result;
    });
}

}  // namespace liif
