// liif_fast::attend_corners_backward. A tile's activations are computed again. The four tokens of a query belong
// together, so tiles are visited in the order of the queries; the gradients of the rows that they gathered are put in
// the order of latents, a chunk of queries at a time, and summed per latent. These sums are the same for any number of
// threads, those of weights for one number.
#include "attend.h"
#include "by_latent.h"
#include "operators.h"

namespace liif {
namespace {

struct TileTag {};
struct RunTag {};

constexpr int64_t kChunkQueries = 4096;  // whole tiles

template <typename T, typename Spots>
class AttendBackward {
   public:
    using Net = CornerNet<T>;
    using Linear = typename Net::Linear;

    AttendBackward(const Net& net, const Spots& spots, const T* grad, const T* grad_weight, int64_t total,
                   int64_t latents, const Flags& wanted, const Tensor& like)
        : net_(net),
          wanted_(wanted),
          spots_(spots),
          grad_(grad),
          grad_weight_(grad_weight),
          total_(total),
          latents_(latents),
          row_(padded(net.columns())) {
        const int64_t threads = torch::stable::get_num_threads(), most = std::min(total, kChunkQueries);
        workers_ = std::max<int64_t>(1, std::min(threads, ceil_div(most, net.queries())));
        Arena sizes;
        make_sums(sizes);
        sum_memory_ = make_zeros<unsigned char>(like, {sizes.used()});
        Arena arena(mutable_data<unsigned char>(sum_memory_));
        sums_ = make_sums(arena);
        row_memory_ = make<T>(like, {4 * most, row_});
        rows_ = mutable_data<T>(row_memory_);
    }

    void run(T* table_grad) {
        for (int64_t first = 0; first < total_; first += kChunkQueries) {
            const int64_t count = std::min(kChunkQueries, total_ - first), tile = net_.queries();
            if (wanted_[0]) sort(first, count);
            // Contiguous shares of tiles: which worker sums what depends only on the number of threads.
            const int64_t tiles = ceil_div(count, tile), share = ceil_div(tiles, workers_);
            torch::stable::parallel_for(0, workers_, 1, [&](int64_t begin, int64_t end) {
                for (int64_t w = begin; w < end; ++w) {
                    for (int64_t i = w * share; i < std::min(tiles, (w + 1) * share); ++i) {
                        work(first, i * tile, std::min(tile, count - i * tile), sums_[static_cast<size_t>(w)]);
                    }
                }
            });
            if (!wanted_[0]) continue;
            torch::stable::parallel_for(0, 4 * count, 1024,
                                        [&](int64_t begin, int64_t end) { add_sorted(begin, end, table_grad); });
        }
    }

    // Of by_rel and of the layers, in the order in which they came.
    Tensors layer_gradients(const Tensor& like) const {
        Tensors result;
        for (size_t i = 0; i < sums_[0].size(); ++i) {
            const auto [sum, rows, columns] = sums_[0][i];
            result.push_back(reduce_workers<T>(like, sums_, {rows, columns}, padded(columns),
                                               [i](const std::vector<Sum>& worker) { return worker[i].sum; }));
        }
        return result;
    }

   private:
    struct Sum {
        T* sum;                 // null if unwanted
        int64_t rows, columns;  // the latter without padding
    };
    struct Memory {
        typename Net::Tile tile;
        T *g, *other, *hidden, *logit, *transposed;
        std::vector<const T*> rows;
    };

    static int64_t padded(int64_t columns) { return round_up(columns, kernel<T>().nr); }

    std::vector<std::vector<Sum>> make_sums(Arena& arena) const {
        std::vector<std::vector<Sum>> sums(static_cast<size_t>(workers_));
        for (auto& worker : sums) {
            const auto add = [&](int64_t rows, int64_t columns) {
                const bool want = wanted_[worker.size() + 1];
                worker.push_back({want ? arena.take<T>(rows * padded(columns)) : nullptr, rows, columns});
            };
            add(3, net_.columns());
            for (const auto& block : net_.blocks()) {
                for (const Linear& layer : {block.qkv, block.out, block.up, block.down}) {
                    if (layer.weight != nullptr) add(layer.out, layer.in);
                }
            }
            if (net_.head().weight != nullptr) add(net_.head().out, net_.head().in);
        }
        return sums;
    }

    Memory make_memory(Arena& arena) const {
        const auto rows = [&](int64_t count) { return arena.take<T>(count * net_.stride()); };
        const int64_t widest = std::max(net_.widest() + 1, net_.columns());
        Memory m{net_.make_tile(arena, true),
                 rows(net_.columns()),
                 rows(net_.width()),
                 rows(net_.widest()),
                 rows(4),
                 arena.take<T>(net_.tokens() * padded(widest)),
                 {}};
        m.rows.resize(static_cast<size_t>(widest));
        return m;
    }

    // x [rows][tokens] as [tokens][padded(rows)]
    void transpose(Memory& m, const T* x, int64_t rows) const {
        for (int64_t r = 0; r < rows; ++r) m.rows[static_cast<size_t>(r)] = x + r * net_.stride();
        net_.loops().transpose(m.transposed, padded(rows), m.rows.data(), rows, net_.tokens());
    }

    // sum[o][i] += sum over tokens of y[o] x[i], with x in m.transposed
    void accumulate(const Memory& m, const T* y, const Sum& sum) const {
        const int64_t columns = padded(sum.columns);
        kernel<T>().gemm({sum.rows, columns, net_.tokens(), y, net_.stride(), 1, m.transposed, kernel<T>().nr, columns,
                          sum.sum, columns, Init::accumulate, nullptr, Epilogue::none, nullptr});
    }

    // The way back through a linear layer: adds to its gradient, and leaves its input's in `to`.
    void back(Memory& m, const Linear& layer, const T* y_gradient, const T* x, T* to, const Sum& sum) const {
        if (sum.sum != nullptr) {
            transpose(m, x, layer.in);
            accumulate(m, y_gradient, sum);
        }
        net_.back(layer, y_gradient, to);
    }

    void work(int64_t chunk, int64_t first, int64_t count, const std::vector<Sum>& sums) {
        Memory m = in_scratch<TileTag>([this](Arena& arena) { return make_memory(arena); });
        auto& b = m.tile;
        const auto& loops = net_.loops();
        const int64_t stride = net_.stride(), width = net_.width();
        net_.forward(spots_, chunk + first, count, b);
        T* x_gradient = m.g + (net_.linear() + 3) * stride;
        std::fill_n(x_gradient, width * stride, T(0));
        T* logit = net_.blocks().empty() ? m.g : m.logit;
        output_gradient(chunk + first, count, b, logit, m.g + net_.before_values() * stride);
        loops.softmax_back(logit, b.weight);
        const Sum* sum = sums.data() + sums.size();
        if (!net_.blocks().empty()) {
            back(m, net_.head(), logit, b.top, m.other, *--sum);
            loops.normalise_back(x_gradient, m.other, b.top, width, b.top_scale);
        }
        for (size_t i = net_.blocks().size(); i-- > 0;) {
            const auto& block = net_.blocks()[i];
            const auto& step = b.blocks[i];
            back(m, block.down, x_gradient, step.active, m.hidden, *--sum);
            loops.gelu_back(m.hidden, step.hidden, block.up.out);
            back(m, block.up, m.hidden, step.between, m.other, *--sum);
            loops.normalise_back(x_gradient, m.other, step.between, width, step.between_scale);
            back(m, block.out, x_gradient, step.mixed, m.other, *--sum);
            loops.attend_back(m.g, m.other, i > 0 ? step.qkv : b.first, step.weight, width, net_.heads(), m.logit);
            if (i > 0) {
                back(m, block.qkv, m.g, step.y, m.other, *--sum);
                loops.normalise_back(x_gradient, m.other, step.y, width, step.y_scale);
            }
        }
        loops.place_back(m.g, b.first, net_.linear(), net_.bias(), b.rel, b.scale);
        if (wanted_[0] || sums[0].sum != nullptr) transpose(m, m.g, net_.columns());
        if (sums[0].sum != nullptr) accumulate(m, b.rel, sums[0]);
        for (int64_t q = 0; wanted_[0] && q < count; ++q) {
            for (int64_t t = 0; t < 4; ++t) {
                const int64_t at = position_[static_cast<size_t>(4 * (first + q) + t)];
                std::memcpy(rows_ + at * row_, m.transposed + (t * net_.queries() + q) * row_,
                            static_cast<size_t>(row_) * sizeof(T));
            }
        }
    }

    // The gradients of the weights, and of the values that they blend; zeros for the queries behind the end.
    void output_gradient(int64_t first, int64_t count, const typename Net::Tile& b, T* weight, T* value) const {
        const int64_t n = net_.queries(), values = net_.values(), stride = net_.stride();
        for (int64_t t = 0; t < 4; ++t) {
            for (int64_t q = 0; q < n; ++q) {
                const int64_t at = t * n + q;
                weight[at] = q < count ? grad_weight_[(first + q) * 4 + t] : T(0);
                for (int64_t v = 0; v < values; ++v) {
                    const T g = q < count ? grad_[(first + q) * values + v] : T(0);
                    weight[at] += g * net_.value(b)[v * stride + at];
                    value[v * stride + at] = g * b.weight[at];
                }
            }
        }
    }

    // Finds the order of a chunk's rows.
    void sort(int64_t first, int64_t count) {
        latent_.resize(static_cast<size_t>(4 * count));
        for (int64_t q = 0; q < count; ++q) {
            Spot spot[4];
            spots_(first + q, spot);
            for (int64_t t = 0; t < 4; ++t) latent_[static_cast<size_t>(4 * q + t)] = spot[t].latent;
        }
        sorted_.resize(latent_.size());
        position_.resize(latent_.size());
        sort_by_latent(
            4 * count, latents_, start_, [this](int64_t r) { return latent_[static_cast<size_t>(r)]; },
            [this](int64_t r, int32_t at) {
                position_[static_cast<size_t>(r)] = at;
                sorted_[static_cast<size_t>(at)] = latent_[static_cast<size_t>(r)];
            });
    }

    // Adds the rows of the latents whose first row is in [begin, end).
    void add_sorted(int64_t begin, int64_t end, T* table_grad) const {
        const auto rows = static_cast<int64_t>(sorted_.size());
        const auto same = [this](int64_t a, int64_t b) {
            return sorted_[static_cast<size_t>(a)] == sorted_[static_cast<size_t>(b)];
        };
        T* memory = scratch<T, RunTag>(row_);
        while (begin > 0 && begin < end && same(begin - 1, begin)) ++begin;
        for (int64_t after = begin; begin < end; begin = after) {
            for (after = begin + 1; after < rows && same(begin, after);) ++after;
            add_rows(table_grad + sorted_[static_cast<size_t>(begin)] * net_.columns(), rows_ + begin * row_, row_,
                     after - begin, net_.columns(), row_, memory);
        }
    }

    const Net& net_;
    const Flags wanted_;  // of the table, by_rel and the layers
    const Spots& spots_;
    const T *grad_, *grad_weight_;
    const int64_t total_, latents_, row_;
    int64_t workers_;
    Tensor sum_memory_, row_memory_;
    std::vector<std::vector<Sum>> sums_;
    T* rows_;  // of a chunk, in the order of latents
    std::vector<int32_t> start_, position_;
    std::vector<int64_t> latent_, sorted_;  // of rows in their own order, and in that of latents
};

template <typename T, typename Spots>
Tensors run(const Tensor& grad, const Tensor& grad_weight, const Tensor& table, const Tensor& by_rel,
            const Tensors& layers, const Spots& spots, int64_t total, int64_t heads, const Flags& wanted) {
    const CornerNet<T> net(table, by_rel, layers, heads);
    Tensors result{wanted[0] ? make_zeros<T>(table, {table.size(0), table.size(1)}) : make<T>(table, {0})};
    AttendBackward<T, Spots> pass(net, spots, data<T>(grad), data<T>(grad_weight), total, table.size(0), wanted, table);
    pass.run(mutable_data<T>(result[0]));
    for (Tensor& t : pass.layer_gradients(table)) result.push_back(t);
    return result;
}

}  // namespace

Tensors attend_corners_backward(const Tensor& grad, const Tensor& grad_weight, const Tensor& table,
                                const Tensor& by_rel, const Tensors& layers, const Tensors& queries, const Ints& shape,
                                bool wrap, int64_t heads, const Flags& wanted) {
    check_wanted(wanted, 2 + layers.size());
    check_attend(table, by_rel, layers, queries, shape, heads);
    const int64_t per_image = queries[0].size(1), width = layers.empty() ? 0 : layers[0].size(0);
    const int64_t values = table.size(1) - (layers.empty() ? 4 : 4 * width + 3);
    STD_TORCH_CHECK(grad.dim() == 3 && grad.size(0) == shape[0] && grad.size(1) == per_image &&
                        grad.size(2) == values && grad.is_contiguous() && grad_weight.dim() == 3 &&
                        grad_weight.size(0) == shape[0] && grad_weight.size(1) == per_image &&
                        grad_weight.size(2) == 4 && grad_weight.is_contiguous(),
                    "liif_fast: the gradients must have the outputs' shapes, contiguous");
    return dispatch_wide(table, [&](auto t) {
        return with_spots(queries, shape, wrap, [&](const auto& spots) {
            return run<decltype(t)>(grad, grad_weight, table, by_rel, layers, spots, shape[0] * per_image, heads,
                                    wanted);
        });
    });
}

}  // namespace liif
