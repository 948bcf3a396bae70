// liif_fast::fourier_decode: one pass from maps of amplitudes and frequencies to the output, tile by tile: plan,
// gather, cosines and sines, hidden layers, blend of the corners, last layer.
#include "fourier.h"

#include "forward.h"
#include "memory.h"
#include "operators.h"

namespace liif {
namespace {

struct FourierTag {};

template <typename T>
std::tuple<Tensor, Tensor> run(const Tensor& p, const Tensor& coord, const Tensor& cell, const Tensor& phase,
                               const Tensors& weights, const Tensors& biases, const Ints& place, const Ints& shape) {
    constexpr int corners = 4;
    const Latents<Sum<T>> latents(p, place[0], place[1]);
    const CoordQueries queries(coord, cell, place[2], place[3], true);
    const int64_t count = coord.size(0) * coord.size(1), outs = weights.back().size(0);
    check_inside(queries, count, 4, place, p);
    Tensor out = make<Sum<T>>(p, {coord.size(0), coord.size(1), outs});
    Tensor packed;
    const auto net = build_packed(p, packed, [&](Arena& arena, bool dry) {
        return FourierNet<T>(phase, weights, biases, forward_packs<T>(4 * count), arena, dry);
    });
    check_saved_width(shape[0], shape[1], net.saved_width());
    Tensor saved = make_saved<T>(p, shape[0], shape[1]);
    Sum<T>* to = mutable_data<Sum<T>>(out);
    const int64_t half = net.half();
    const auto fill = [&](int64_t first, int64_t n, T* h0, Sum<T>* weight, Sum<T>* phases) {
        Corner corner[corners];
        Sum<T>* wide = phases + half;
        for (int64_t q = 0; q < n; ++q) {
            const Query at = queries(first + q, corner);
            net.phases(phases, at.cell);
            for (int t = 0; t < corners; ++t) {
                T* row = h0 + (t * n + q) * net.stride();
                net.waves(row, latents.row(at.batch, corner[t]), phases, corner[t], wide);
                weight[q * corners + t] = corner[t].weight;
            }
        }
    };
    forward<FourierTag>(
        net, count, corners, shape[0] / corners, mutable_data<T>(saved),
        [half](Arena& arena) { return arena.take<Sum<T>>(3 * half); }, fill,
        [&](int64_t q, const Sum<T>* y) { std::memcpy(to + q * outs, y, static_cast<size_t>(outs) * sizeof(Sum<T>)); });
    return {out, saved};
}

}  // namespace

std::tuple<Tensor, Tensor> fourier_decode(const Tensor& p, const Tensor& coord, const Tensor& cell, const Tensor& phase,
                                          const Tensors& weights, const Tensors& biases, const Ints& place,
                                          const Ints& saved) {
    check_fourier(p, coord, cell, phase, weights, biases);
    check_saved_shape(saved, coord.size(0) * coord.size(1), 4);
    check_place(place, p);
    return dispatch(weights[0],
                    [&](auto t) { return run<decltype(t)>(p, coord, cell, phase, weights, biases, place, saved); });
}

}  // namespace liif
