// liif_fast::decode_backward. Rows, one per (query, corner), are visited in the order of the latent they read, so that
// each latent's gradient is one sum in a fixed order; a chunk of queries at a time bounds the memory. Activations are
// those that the forward pass saved, or are computed again, tile by tile.
#include <algorithm>

#include "operators.h"
#include "queries.h"

namespace liif {
namespace {

struct PackTag {};
struct SumTag {};
struct TileTag {};

constexpr int64_t kTileRows = 96;
constexpr int64_t kChunkQueries = 65536;

struct Row {  // what the plan says of one row of a chunk
    int64_t latent;
    Corner corner;
    Query query;
};

// The chunk's rows in the order of their latents, equal ones in their own order: a counting sort.
void sort_by_latent(const std::vector<Row>& rows, int64_t count, int64_t latents, std::vector<int32_t>& start,
                    std::vector<int32_t>& order) {
    start.assign(static_cast<size_t>(latents) + 1, 0);
    for (int64_t r = 0; r < count; ++r) ++start[static_cast<size_t>(rows[static_cast<size_t>(r)].latent) + 1];
    for (size_t i = 1; i < start.size(); ++i) start[i] += start[i - 1];
    order.resize(static_cast<size_t>(count));
    for (int64_t r = 0; r < count; ++r) {
        const auto latent = static_cast<size_t>(rows[static_cast<size_t>(r)].latent);
        order[static_cast<size_t>(start[latent]++)] = static_cast<int32_t>(r);
    }
}

// What one worker sums: the layers' gradients, the affine part's, and the projection gradient of its first latent
// where the worker before it ends in the same one.
template <typename T>
struct Sums {
    Gradients<T> layers;
    T *affine, *edge;
};

template <typename T>
Tensors run(const Tensor& grad, const Tensor& p, const Tensor& coord, const std::optional<Tensor>& cell,
            const Tensors& weights, const Tensors& biases, const Tensor& saved, bool ensemble, int64_t map_height,
            int64_t map_width, int64_t p_top, int64_t p_left) {
    const auto& kern = kernel<T>();
    const int corners = ensemble ? 4 : 1;
    const bool have_saved = saved.size(0) > 0;
    const Latents<T> latents(p, p_top, p_left);
    const CoordQueries queries(coord, cell, map_height, map_width, ensemble);
    const int64_t total = coord.size(0) * coord.size(1), outs = weights.back().size(0);
    const auto net = build_packed<T, PackTag>([&](Arena<T>& arena, bool dry) {
        return DecoderNet<T>(weights, biases, cell ? 4 : 2, pack_backward | (have_saved ? 0 : pack_forward), arena,
                             dry);
    });
    const Backward<T> backward(net);
    const int64_t hidden = net.hidden(), stride = net.stride(), levels = std::max<int64_t>(hidden, 1);
    const int64_t channels = latents.channels(), padded = round_up(channels, kern.nr);
    const int64_t latent_count = p.size(0) * p.size(1) * p.size(2);

    const int64_t workers =
        std::max<int64_t>(1, std::min<int64_t>(torch::stable::get_num_threads(), ceil_div(total * corners, kTileRows)));
    const auto sums_of = [&](Arena<T>& arena) {
        std::vector<Sums<T>> sums;
        for (int64_t w = 0; w < workers; ++w) {
            sums.push_back({backward.gradients(arena), arena.take(net.terms() * padded), arena.take(padded)});
        }
        return sums;
    };
    Arena<T> sizes;
    sums_of(sizes);
    T* sum_memory = scratch<T, SumTag>(sizes.used());
    std::memset(sum_memory, 0, static_cast<size_t>(sizes.used()) * sizeof(T));
    Arena<T> sum_arena(sum_memory);
    const std::vector<Sums<T>> sums = sums_of(sum_arena);

    Tensor p_grad = make_zeros(p, {p.size(0), p.size(1), p.size(2), p.size(3)});
    T* to_latents = p_grad.mutable_data_ptr<T>();
    const T* from = grad.const_data_ptr<T>();
    const T* activations = have_saved ? saved.const_data_ptr<T>() : nullptr;
    const int64_t saved_width = net.saved_width();

    const int64_t chunk = std::min(kChunkQueries, total);
    std::vector<Row> rows(static_cast<size_t>(chunk * corners));
    std::vector<int32_t> start, order;
    for (int64_t first = 0; first < total; first += chunk) {
        const int64_t count = std::min(chunk, total - first), row_count = count * corners;
        torch::stable::parallel_for(0, count, 1024, [&](int64_t begin, int64_t end) {
            Corner corner[4];
            for (int64_t q = begin; q < end; ++q) {
                const Query query = queries(first + q, corner);
                for (int t = 0; t < corners; ++t) {
                    rows[static_cast<size_t>(q * corners + t)] = {latents.index(query.batch, corner[t]), corner[t],
                                                                  query};
                }
            }
        });
        sort_by_latent(rows, row_count, latent_count, start, order);
        const auto sorted = [&](int64_t i) -> const Row& {
            return rows[static_cast<size_t>(order[static_cast<size_t>(i)])];
        };

        // Contiguous shares of the sorted rows: which worker sums what depends on nothing but the number of threads.
        const int64_t share = ceil_div(row_count, workers);
        torch::stable::parallel_for(0, workers, 1, [&](int64_t worker_begin, int64_t worker_end) {
            for (int64_t w = worker_begin; w < worker_end; ++w) {
                const int64_t begin = std::min(row_count, w * share), end = std::min(row_count, begin + share);
                if (begin == end) continue;
                const Sums<T>& sum = sums[static_cast<size_t>(w)];
                const bool shared = begin > 0 && sorted(begin - 1).latent == sorted(begin).latent;
                const int64_t edge_latent = shared ? sorted(begin).latent : -1;

                const auto layout = [&](Arena<T>& arena) {
                    struct {
                        std::vector<T*> h;
                        T *g, *other, *out, *affine;
                    } b;
                    for (int64_t l = 0; l < levels; ++l) b.h.push_back(arena.take(kTileRows * stride));
                    b.g = arena.take(kTileRows * stride);
                    b.other = arena.take(kTileRows * stride);
                    b.out = arena.take(kTileRows * net.out_padded());
                    b.affine = arena.take(kTileRows * 4);
                    return b;
                };
                Arena<T> tile_sizes;
                layout(tile_sizes);
                Arena<T> arena(scratch<T, TileTag>(tile_sizes.used()));
                auto b = layout(arena);

                for (int64_t tile = begin; tile < end; tile += kTileRows) {
                    const int64_t n = std::min(kTileRows, end - tile);
                    for (int64_t r = 0; r < n; ++r) {
                        const int64_t in_chunk = order[static_cast<size_t>(tile + r)];
                        const Row& row = rows[static_cast<size_t>(in_chunk)];
                        if (hidden > 0)
                            net.affine(b.h[0] + r * stride, latents.row(row.latent), row.corner, row.query.cell);
                        if (have_saved) {
                            const T* kept = activations + (first * corners + in_chunk) * saved_width;
                            for (int64_t l = 1; l < hidden; kept += net.width(l), ++l) {
                                std::memcpy(b.h[static_cast<size_t>(l)] + r * stride, kept,
                                            static_cast<size_t>(net.width(l)) * sizeof(T));
                            }
                        }
                        const T weight = static_cast<T>(row.corner.weight);
                        const T* y = from + (first + in_chunk / corners) * outs;
                        T* out_row = b.out + r * net.out_padded();
                        for (int64_t o = 0; o < net.out_padded(); ++o) out_row[o] = o < outs ? weight * y[o] : T(0);
                        const float affine[4] = {row.corner.rel_row, row.corner.rel_column, row.query.cell[0],
                                                 row.query.cell[1]};
                        for (int j = 0; j < 4; ++j) b.affine[r * 4 + j] = static_cast<T>(affine[j]);
                    }
                    if (!have_saved) net.forward_hidden(b.h.data(), n);

                    backward.run(b.h.data(), b.out, n, b.g, b.other, sum.layers);
                    const T* g = hidden > 0 ? b.g : b.out;
                    const int64_t g_stride = hidden > 0 ? stride : net.out_padded();
                    Backward<T>::accumulate(b.affine, 4, net.terms(), g, g_stride, padded, n, sum.affine);
                    for (int64_t r = 0; r < n; ++r) {
                        const int64_t latent = sorted(tile + r).latent;
                        kern.axpy(latent == edge_latent ? sum.edge : to_latents + latent * channels, g + r * g_stride,
                                  T(1), channels);
                    }
                }
            }
        });
        for (int64_t w = 1; w < workers; ++w) {
            const int64_t begin = std::min(row_count, w * share);
            if (begin == row_count || sorted(begin - 1).latent != sorted(begin).latent) continue;
            T* edge = sums[static_cast<size_t>(w)].edge;
            kern.axpy(to_latents + sorted(begin).latent * channels, edge, T(1), channels);
            std::memset(edge, 0, static_cast<size_t>(padded) * sizeof(T));
        }
    }

    Tensors result{p_grad, make(p, {net.terms(), channels})};
    const auto reduce = [&](Tensor& to, int64_t height, int64_t width, int64_t row, const auto& pick) {
        std::vector<const T*> parts;
        for (const Sums<T>& sum : sums) parts.push_back(pick(sum));
        reduce_workers<T>(parts, height, width, row, to.mutable_data_ptr<T>());
    };
    reduce(result[1], net.terms(), channels, padded, [](const Sums<T>& s) { return s.affine; });
    for (size_t l = 1; l < weights.size(); ++l) {
        const Layer<T>& layer = net.layer(static_cast<int64_t>(l));
        Tensor w = make(p, {layer.out, layer.in}), b = make(p, {layer.out});
        reduce(w, layer.out, layer.in, backward.padded_in(static_cast<int64_t>(l)),
               [l](const Sums<T>& s) { return s.layers.weight[l]; });
        reduce(b, 1, layer.out, layer.out_padded, [l](const Sums<T>& s) { return s.layers.bias[l]; });
        result.push_back(w);
        result.push_back(b);
    }
    return result;
}

}  // namespace

Tensors decode_backward(const Tensor& grad, const Tensor& p, const Tensor& coord, const std::optional<Tensor>& cell,
                        const Tensors& weights, const Tensors& biases, const Tensor& saved, bool ensemble,
                        int64_t map_height, int64_t map_width, int64_t p_top, int64_t p_left) {
    STD_TORCH_CHECK(grad.is_contiguous() && saved.is_contiguous(), "liif_fast: grad and saved must be contiguous");
    return dispatch(p, [&](auto t) {
        return run<decltype(t)>(grad, p, coord, cell, weights, biases, saved, ensemble, map_height, map_width, p_top,
                                p_left);
    });
}

}  // namespace liif
