// liif_fast::decode, decode_direct and render: one pass from the latents' projection P to the output, tile by tile:
// plan, gather, affine part, ReLU, hidden layers, blend of the corners, last layer. The corners can be blended before
// the last layer, because it is linear and the weights sum to 1.
#include <algorithm>

#include "checks.h"
#include "forward.h"
#include "memory.h"
#include "operators.h"
#include "plan.h"
#include "project.h"
#include "queries.h"

namespace liif {
namespace {

struct DecodeTag {};

// Layer 0 by gathering rows of P.
template <typename T, typename Queries>
auto gather_from(const DecoderNet<T>& net, const Latents<T>& p, const Queries& queries, int corners) {
    return [&net, &p, &queries, corners](int64_t first, int64_t count, T* h0, Sum<T>* weight, None) {
        Corner corner[4];
        for (int64_t q = 0; q < count; ++q) {
            const Query at = queries(first + q, corner);
            for (int t = 0; t < corners; ++t) {
                net.affine(h0 + (t * count + q) * net.stride(), p.row(at.batch, corner[t]), corner[t], at.cell);
                weight[q * corners + t] = corner[t].weight;
            }
        }
    };
}

template <typename T>
std::tuple<Tensor, Tensor> run_decode(const Tensor& p, const Tensor& coord, const std::optional<Tensor>& cell,
                                      const Tensors& weights, const Tensors& biases, bool ensemble, const Ints& shape) {
    const int corners = ensemble ? 4 : 1;
    const Latents<T> latents(p, 0, 0);
    const CoordQueries queries(coord, cell, p.size(1), p.size(2), ensemble);
    const int64_t count = coord.size(0) * coord.size(1), outs = weights.back().size(0);
    Tensor out = make<Sum<T>>(p, {coord.size(0), coord.size(1), outs});
    Tensor packed;
    const auto net = build_packed(p, packed, [&](Arena& arena, bool dry) {
        return DecoderNet<T>(weights, biases, cell ? 4 : 2, forward_packs<T>(count * corners), arena, dry);
    });
    check_saved_width(shape[0], shape[1], net.saved_width());
    Tensor saved = make_saved<T>(p, shape[0], shape[1]);
    Sum<T>* to = mutable_data<Sum<T>>(out);
    forward<DecodeTag>(net, count, corners, shape[0] / corners, mutable_data<T>(saved), no_layout,
                       gather_from(net, latents, queries, corners), [&](int64_t q, const Sum<T>* y) {
                           std::memcpy(to + q * outs, y, static_cast<size_t>(outs) * sizeof(Sum<T>));
                       });
    return {out, saved};
}

template <typename T>
Tensor run_decode_direct(const Tensor& feat, const Tensor& coord, const std::optional<Tensor>& cell,
                         const Tensors& weights, const Tensors& biases, bool unfold, bool ensemble) {
    const int corners = ensemble ? 4 : 1;
    const Features<T> source(feat);
    const CoordQueries queries(coord, cell, source.height, source.width, ensemble);
    const int64_t count = coord.size(0) * coord.size(1), outs = weights.back().size(0);
    Tensor out = make<Sum<T>>(feat, {coord.size(0), coord.size(1), outs});
    Tensor packed;
    const auto net = build_packed(feat, packed, [&](Arena& arena, bool dry) {
        return DecoderNet<T>(weights, biases, cell ? 4 : 2, forward_packs<T>(count * corners), arena, dry);
    });
    Tensor projection_memory;
    const auto projection = build_packed(feat, projection_memory, [&](Arena& arena, bool dry) {
        return Projection<T>(weights[0], biases[0], source.channels, unfold, arena, dry);
    });
    Sum<T>* to = mutable_data<Sum<T>>(out);
    const auto fill = [&](int64_t first, int64_t n, T* h0, Sum<T>* weight, T* latent_rows) {
        std::vector<Corner> corner(static_cast<size_t>(n * corners));
        std::vector<Query> at(static_cast<size_t>(n));
        for (int64_t q = 0; q < n; ++q) {
            Corner* c = corner.data() + q * corners;
            const Query query = at[static_cast<size_t>(q)] = queries(first + q, c);
            for (int t = 0; t < corners; ++t) {
                latent_row(source, unfold, query.batch, c[t].row, c[t].column,
                           latent_rows + (t * n + q) * projection.depth, projection.depth);
            }
        }
        projection.apply(latent_rows, n * corners, h0, net.stride());
        for (int64_t i = 0; i < n * corners; ++i) {
            const Corner& c = corner[static_cast<size_t>(i)];
            const int64_t q = i / corners;
            T* row = h0 + (i % corners * n + q) * net.stride();
            net.affine(row, row, c, at[static_cast<size_t>(q)].cell);
            weight[i] = c.weight;
        }
    };
    forward<DecodeTag>(
        net, count, corners, 0, static_cast<T*>(nullptr),
        [&](Arena& arena) { return arena.take<T>(kTileRows * projection.depth); }, fill,
        [&](int64_t q, const Sum<T>* y) { std::memcpy(to + q * outs, y, static_cast<size_t>(outs) * sizeof(Sum<T>)); });
    return out;
}

template <typename T>
std::tuple<Tensor, Tensor> run_render(const Tensor& p, const std::optional<Tensor>& cell, const Tensors& weights,
                                      const Tensors& biases, bool ensemble, const Window& map, const Window& grid,
                                      const Floats& steps, const Ints& shape) {
    const int corners = ensemble ? 4 : 1;
    const Latents<T> latents(p, map.top, map.left);
    const GridQueries queries(cell, map, grid, steps, ensemble);
    const int64_t pixels = grid.height * grid.width, outs = weights.back().size(0), count = p.size(0) * pixels;
    Tensor out = make<Sum<T>>(p, {p.size(0), outs, grid.height, grid.width});
    Tensor packed;
    const auto net = build_packed(p, packed, [&](Arena& arena, bool dry) {
        return DecoderNet<T>(weights, biases, cell ? 4 : 2, forward_packs<T>(count * corners), arena, dry);
    });
    check_saved_width(shape[0], shape[1], net.saved_width());
    Tensor saved = make_saved<T>(p, shape[0], shape[1]);
    Sum<T>* to = mutable_data<Sum<T>>(out);
    forward<DecodeTag>(net, count, corners, shape[0] / corners, mutable_data<T>(saved), no_layout,
                       gather_from(net, latents, queries, corners), [&](int64_t q, const Sum<T>* y) {
                           Sum<T>* pixel = to + q / pixels * outs * pixels + q % pixels;
                           for (int64_t o = 0; o < outs; ++o) pixel[o * pixels] = y[o];
                       });
    return {out, saved};
}

}  // namespace

std::tuple<Tensor, Tensor> decode(const Tensor& p, const Tensor& coord, const std::optional<Tensor>& cell,
                                  const Tensors& weights, const Tensors& biases, bool ensemble, const Ints& saved) {
    check_decoder(p, cell, weights, biases);
    check_coord(coord, cell, p.size(0));
    check_saved_shape(saved, coord.size(0) * coord.size(1), ensemble ? 4 : 1);
    return dispatch(p,
                    [&](auto t) { return run_decode<decltype(t)>(p, coord, cell, weights, biases, ensemble, saved); });
}

Tensor decode_direct(const Tensor& feat, const Tensor& coord, const std::optional<Tensor>& cell, const Tensors& weights,
                     const Tensors& biases, bool unfold, bool ensemble) {
    STD_TORCH_CHECK(feat.dim() == 4, "liif_fast: feat must be [B, C, H, W]");
    check_layers(weights, biases, feat.size(1) * (unfold ? 9 : 1) + (cell ? 4 : 2));
    check_coord(coord, cell, feat.size(0));
    return dispatch(feat, [&](auto t) {
        return run_decode_direct<decltype(t)>(feat, coord, cell, weights, biases, unfold, ensemble);
    });
}

std::tuple<Tensor, Tensor> render(const Tensor& p, const std::optional<Tensor>& cell, const Tensors& weights,
                                  const Tensors& biases, bool ensemble, const Ints& grid, const Floats& steps,
                                  const Ints& saved) {
    check_decoder(p, cell, weights, biases);
    STD_TORCH_CHECK(steps.empty() || steps.size() == 4, "liif_fast: steps must be empty or four numbers");
    const auto [map, window] = read_grid(grid, p);
    check_saved_shape(saved, p.size(0) * window.height * window.width, ensemble ? 4 : 1);
    return dispatch(p, [&, map = map, window = window](auto t) {
        return run_render<decltype(t)>(p, cell, weights, biases, ensemble, map, window, steps, saved);
    });
}

}  // namespace liif
