// liif_fast::decode_backward and render_backward.
#include "operators.h"
#include "rows_backward.h"

namespace liif {
namespace {

struct TileTag {};

template <typename T, typename Queries>
Tensors run(const Tensor& grad, const Tensor& p, const Queries& queries, int64_t total, int terms,
            const Tensors& weights, const Tensors& biases, const Tensor& saved, bool ensemble, int64_t p_top,
            int64_t p_left, const Wanted& wanted, Tensor& place_grad) {
    const int corners = ensemble ? 4 : 1;
    const Latents<T> latents(p, p_top, p_left);
    const bool forward = wanted.places || saved.size(0) < total * corners;
    const int packs = pack_backward | (forward ? pack_forward : 0);
    Tensor packed;
    const auto net = build_packed(
        p, packed, [&](Arena& arena, bool dry) { return DecoderNet<T>(weights, biases, terms, packs, arena, dry); });
    const int64_t channels = latents.channels(), padded = round_up(channels, kernel<Sum<T>>().nr);
    const int64_t stride = net.stride(), hidden = net.hidden();
    Sum<T>* places = mutable_data<Sum<T>>(place_grad);
    Tensors result{wanted.latents ? make_large_zeros<Sum<T>>(p, {p.size(0), p.size(1), p.size(2), channels})
                                  : make<Sum<T>>(p, {0})};
    RowsBackward<T, Latents<T>, Queries> pass(grad, latents, queries, net, corners, total, wanted, terms * padded,
                                              result[0], &saved);
    struct Tile {
        std::vector<T*> h;
        typename Backward<T>::Tiles tiles;
        Sum<T>*affine, *top;
    };
    const auto layout = [&](Arena& arena) {
        Tile b;
        for (int64_t l = 0; l < net.levels(); ++l) b.h.push_back(arena.take<T>(kTileRows * stride));
        b.tiles = pass.backward().tiles(arena);
        b.affine = arena.take<Sum<T>>(kTileRows * 4);
        b.top = arena.take<Sum<T>>(wanted.places && !std::is_same_v<T, Sum<T>> ? kTileRows * stride : 0);
        return b;
    };
    pass.template run<TileTag>(layout, [&](const auto& rows, const Tile& b, const auto& sum) {
        for (int64_t r = 0; r < rows.count; ++r) {
            const Row& row = rows[r];
            if (hidden > 0 || wanted.places) {
                net.affine(b.h[0] + r * stride, latents.row(row.latent), row.corner, row.query.cell);
            }
            const float affine[4] = {row.corner.rel_row, row.corner.rel_column, row.query.cell[0], row.query.cell[1]};
            for (int j = 0; j < 4; ++j) b.affine[r * 4 + j] = affine[j];
        }
        if (hidden > 0) {
            pass.activations(rows, b.h.data());
            pass.backward().run(b.h.data(), rows.out, rows.count, b.tiles, rows.to, sum.layers, b.h[0]);
        } else {
            for (int64_t r = 0; r < rows.count; ++r) {
                std::memcpy(rows.to + r * rows.step, rows.wide + r * net.out_padded(),
                            static_cast<size_t>(channels) * sizeof(Sum<T>));
            }
        }
        if (sum.own != nullptr) {
            Backward<Sum<T>>::accumulate(b.affine, 4, terms, rows.to, rows.step, channels, rows.count, {}, sum.own);
        }
        if (!wanted.places) return;
        // Of each row the gradients of rel and cell, as the network sees them, and of the corner's weight.
        const Sum<T>* outs = hidden > 0 ? pass.outputs(rows, b.h.back(), b.top) : nullptr;
        for (int64_t r = 0; r < rows.count; ++r) {
            Sum<T>* to = places + rows.number(r) * (terms + 1);
            for (int j = 0; j < terms; ++j) to[j] = dot(rows.to + r * rows.step, net.affine_column(j), channels);
            to[terms] = hidden > 0 ? pass.of_weight(rows, r, outs + r * net.out_padded())
                                   : pass.of_weight(rows, r, b.h[0] + r * stride);
        }
    });
    result.push_back(pass.own_gradient(p, terms, channels, padded));
    pass.layer_gradients(p, result);
    return result;
}

}  // namespace

Tensors decode_backward(const Tensor& grad, const Tensor& p, const Tensor& coord, const std::optional<Tensor>& cell,
                        const Tensors& weights, const Tensors& biases, const Tensor& saved, bool ensemble,
                        const Flags& wanted) {
    check_decoder(p, cell, weights, biases);
    check_coord(coord, cell, p.size(0));
    const Wanted flags(wanted, weights.size() - 1);
    const int64_t total = coord.size(0) * coord.size(1);
    check_gradient(grad, {coord.size(0), coord.size(1), weights.back().size(0)}, saved, total * (ensemble ? 4 : 1));
    const CoordQueries queries(coord, cell, p.size(1), p.size(2), ensemble);
    const int terms = cell ? 4 : 2, corners = ensemble ? 4 : 1;
    return dispatch(p, [&](auto t) {
        using T = decltype(t);
        Tensor places =
            flags.places ? make<Sum<T>>(p, {coord.size(0), coord.size(1), corners, terms + 1}) : make<Sum<T>>(p, {0});
        Tensors result = run<T>(grad, p, queries, total, terms, weights, biases, saved, ensemble, 0, 0, flags, places);
        result.push_back(places);
        return result;
    });
}

Tensors render_backward(const Tensor& grad, const Tensor& p, const std::optional<Tensor>& cell, const Tensors& weights,
                        const Tensors& biases, const Tensor& saved, bool ensemble, const Ints& grid,
                        const Flags& wanted) {
    check_decoder(p, cell, weights, biases);
    check_wanted(wanted, 2 * weights.size());
    Flags flags = wanted;
    flags.push_back(false);  // of places
    const auto [map, window] = read_grid(grid, p);
    const int64_t total = p.size(0) * window.height * window.width, outs = weights.back().size(0);
    check_gradient(grad, {p.size(0), outs, window.height, window.width}, saved, total * (ensemble ? 4 : 1));
    const GridQueries queries(cell, map, window, {}, ensemble);
    return dispatch(p, [&, map = map](auto t) {
        using T = decltype(t);
        Tensor places = make<Sum<T>>(p, {0});
        return run<T>(grad, p, queries, total, cell ? 4 : 2, weights, biases, saved, ensemble, map.top, map.left,
                      Wanted(flags, weights.size() - 1), places);
    });
}

}  // namespace liif
