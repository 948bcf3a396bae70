// liif_fast::fourier_decode_backward: the layers' gradients, and those of the waves. The waves are computed again, and
// the hidden activations that the forward pass has not saved.
#include "fourier.h"
#include "operators.h"
#include "rows_backward.h"

namespace liif {
namespace {

struct FourierTag {};

constexpr int kCorners = 4;

template <typename T>
Tensors run(const Tensor& grad, const Tensor& p, const Tensor& coord, const Tensor& cell, const Tensor& phase,
            const Tensors& weights, const Tensors& biases, const Tensor& saved, const Wanted& wanted,
            Tensor& place_grad) {
    const Latents<Sum<T>> latents(p, 0, 0);
    const CoordQueries queries(coord, cell, p.size(1), p.size(2), true);
    Tensor packed;
    const auto net = build_packed(p, packed, [&](Arena& arena, bool dry) {
        return FourierNet<T>(phase, weights, biases, pack_backward | pack_forward, arena, dry);
    });
    const int64_t half = net.half(), padded_half = round_up(half, kernel<Sum<T>>().nr), stride = net.stride();
    Sum<T>* places = mutable_data<Sum<T>>(place_grad);
    Tensors result{wanted.latents ? make_large_zeros<Sum<T>>(p, {p.size(0), p.size(1), p.size(2), p.size(3)})
                                  : make<Sum<T>>(p, {0})};
    RowsBackward<T, Latents<Sum<T>>, CoordQueries> pass(grad, latents, queries, net, kCorners,
                                                        coord.size(0) * coord.size(1), wanted, 2 * padded_half,
                                                        result[0], &saved);
    struct Tile {
        std::vector<T*> h;
        typename Backward<T>::Tiles tiles;
        Sum<T>*first, *wide, *phases, *cell, *angle, *top;
    };
    const auto layout = [&](Arena& arena) {
        Tile b;
        for (int64_t l = 0; l < net.levels(); ++l) b.h.push_back(arena.take<T>(kTileRows * stride));
        b.tiles = pass.backward().tiles(arena);
        b.first = arena.take<Sum<T>>(kTileRows * stride);
        b.wide = arena.take<Sum<T>>(2 * half);
        b.phases = arena.take<Sum<T>>(kTileRows * half);
        b.cell = arena.take<Sum<T>>(kTileRows * 2);
        b.angle = arena.take<Sum<T>>(kTileRows * padded_half);
        b.top = arena.take<Sum<T>>(wanted.places && !std::is_same_v<T, Sum<T>> ? kTileRows * stride : 0);
        return b;
    };
    pass.template run<FourierTag>(layout, [&](const auto& rows, const Tile& b, const auto& sum) {
        for (int64_t r = 0; r < rows.count; ++r) {
            const Row& row = rows[r];
            net.phases(b.phases + r * half, row.query.cell);
            net.waves(b.h[0] + r * stride, latents.row(row.latent), b.phases + r * half, row.corner, b.wide);
            for (int j = 0; j < 2; ++j) b.cell[r * 2 + j] = row.query.cell[j];
        }
        pass.activations(rows, b.h.data());
        pass.backward().run(b.h.data(), rows.out, rows.count, b.tiles, b.first, sum.layers, nullptr);
        if (!wanted.first()) return;
        const Sum<T>* outs = wanted.places ? pass.outputs(rows, b.h.back(), b.top) : nullptr;
        for (int64_t r = 0; r < rows.count; ++r) {
            const Row& row = rows[r];
            const Sum<T> rel[2] = {row.corner.rel_row, row.corner.rel_column};
            Sum<T>* angle = b.angle + r * padded_half;
            kernel<Sum<T>>().waves_back(rows.to + r * rows.step, angle, b.first + r * stride, latents.row(row.latent),
                                        b.phases + r * half, rel, half);
            std::fill(angle + half, angle + padded_half, Sum<T>(0));
            if (!wanted.places) continue;
            // The gradients of rel (2), the cell (2) and the corner's weight follow.
            const Sum<T>* frequency = latents.row(row.latent) + 2 * half;
            Sum<T>* at = places + rows.number(r) * 5;
            std::fill(at, at + 5, Sum<T>(0));
            for (int64_t k = 0; k < 2 * half; ++k) at[k % 2] += angle[k / 2] * frequency[k];
            net.phases_back(at + 2, angle);
            at[4] = pass.of_weight(rows, r, outs + r * net.out_padded());
        }
        if (sum.own == nullptr) return;
        Backward<Sum<T>>::accumulate(b.cell, 2, 2, b.angle, padded_half, half, rows.count, {}, sum.own);
    });
    result.push_back(pass.own_gradient(p, 2, half, padded_half));
    pass.layer_gradients(p, result);
    return result;
}

}  // namespace

Tensors fourier_decode_backward(const Tensor& grad, const Tensor& p, const Tensor& coord, const Tensor& cell,
                                const Tensor& phase, const Tensors& weights, const Tensors& biases, const Tensor& saved,
                                const Flags& wanted) {
    check_fourier(p, coord, cell, phase, weights, biases);
    const Wanted flags(wanted, weights.size());
    check_gradient(grad, {coord.size(0), coord.size(1), weights.back().size(0)}, saved,
                   coord.size(0) * coord.size(1) * kCorners);
    return dispatch(weights[0], [&](auto t) {
        using T = decltype(t);
        Tensor at = flags.places ? make<Sum<T>>(p, {coord.size(0), coord.size(1), kCorners, 5}) : make<Sum<T>>(p, {0});
        Tensors result = run<T>(grad, p, coord, cell, phase, weights, biases, saved, flags, at);
        result.push_back(at);
        return result;
    });
}

}  // namespace liif
