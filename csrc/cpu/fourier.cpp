// liif_fast::fourier_decode: one pass from maps of amplitudes and frequencies to the output, tile by tile: plan,
// gather, cosines and sines, hidden layers, blend of the corners, last layer.
#include "fourier.h"

#include "forward.h"
#include "operators.h"

namespace liif {
namespace {

struct FourierTag {};

// No query may read a latent outside of the part of the map that p holds.
void check_inside(const CoordQueries& queries, int64_t count, const Ints& place, const Tensor& p) {
    std::atomic<bool> outside{false};
    torch::stable::parallel_for(0, count, 1024, [&](int64_t begin, int64_t end) {
        Corner corner[4];
        for (int64_t q = begin; q < end; ++q) {
            queries(q, corner);
            for (const Corner& c : corner) {
                const int64_t row = c.row - place[0], column = c.column - place[1];
                if (row < 0 || row >= p.size(1) || column < 0 || column >= p.size(2)) outside = true;
            }
        }
    });
    STD_TORCH_CHECK(!outside, "liif_fast: a query reads latents outside of p's part of the map");
}

template <typename T>
std::tuple<Tensor, Tensor> run(const Tensor& p, const Tensor& coord, const Tensor& cell, const Tensor& phase,
                               const Tensors& weights, const Tensors& biases, const Ints& place, const Ints& shape) {
    constexpr int corners = 4;
    const Latents<Sum<T>> latents(p, place[0], place[1]);
    const CoordQueries queries(coord, cell, place[2], place[3], true);
    const int64_t count = coord.size(0) * coord.size(1), outs = weights.back().size(0);
    if (place[2] > p.size(1) || place[3] > p.size(2)) check_inside(queries, count, place, p);
    Tensor out = make<Sum<T>>(p, {coord.size(0), coord.size(1), outs});
    Tensor packed;
    const auto net = build_packed(p, packed, [&](Arena& arena, bool dry) {
        return FourierNet<T>(phase, weights, biases, pack_forward, arena, dry);
    });
    check_saved_width(shape[0], shape[1], net.saved_width());
    Tensor saved = make_saved<T>(p, shape[0], shape[1]);
    Sum<T>* to = mutable_data<Sum<T>>(out);
    const int64_t half = net.half();
    const auto fill = [&](int64_t first, int64_t n, T* h0, Sum<T>* weight, T* extra) {
        Corner corner[corners];
        Sum<T>*phases = reinterpret_cast<Sum<T>*>(extra), *wide = phases + half;
        for (int64_t q = 0; q < n; ++q) {
            const Query at = queries(first + q, corner);
            net.phases(phases, at.cell);
            for (int t = 0; t < corners; ++t) {
                const int64_t r = q * corners + t;
                net.waves(h0 + r * net.stride(), latents.row(at.batch, corner[t]), phases, corner[t], wide);
                weight[r] = corner[t].weight;
            }
        }
    };
    constexpr int64_t per_sum = sizeof(Sum<T>) / sizeof(T);
    forward<FourierTag>(
        net, count, corners, shape[0] / corners, mutable_data<T>(saved), 3 * half * per_sum, fill,
        [&](int64_t q, const Sum<T>* y) { std::memcpy(to + q * outs, y, static_cast<size_t>(outs) * sizeof(Sum<T>)); });
    return {out, saved};
}

}  // namespace

std::tuple<Tensor, Tensor> fourier_decode(const Tensor& p, const Tensor& coord, const Tensor& cell, const Tensor& phase,
                                          const Tensors& weights, const Tensors& biases, const Ints& place,
                                          const Ints& saved) {
    check_fourier(p, coord, cell, phase, weights, biases);
    check_saved_shape(saved, coord.size(0) * coord.size(1), 4);
    STD_TORCH_CHECK(place.size() == 4 && place[0] >= 0 && place[1] >= 0 && place[0] + p.size(1) <= place[2] &&
                        place[1] + p.size(2) <= place[3],
                    "liif_fast: place must be (top, left, map_height, map_width) of a map that holds p");
    return dispatch(weights[0],
                    [&](auto t) { return run<decltype(t)>(p, coord, cell, phase, weights, biases, place, saved); });
}

}  // namespace liif
