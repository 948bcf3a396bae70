// liif_fast::attend and attend_backward: the transformer over a query's four corners, the softmax, and the blend of
// given values.
#include "attention.h"

#include <utility>

#include "network.h"
#include "operators.h"

namespace liif {
namespace {

constexpr int64_t kTaskTiles = 8;                    // tiles that a thread takes at a time
constexpr size_t kFirst = 8, kNext = 11, kHead = 4;  // parameters of the first block, of another, of the head

constexpr int64_t kChunk = 2048;  // queries whose rows' gradients are in memory
constexpr int64_t kShares = 16;   // of the tiles, each summed in its order

struct TileTag {};
struct BackwardTag {};

const AttentionKernel& attention_kernel() {
    static const AttentionKernel* chosen = [] {
        const std::string isa = isa_name();
        if (isa.rfind("avx512", 0) == 0) return attention_avx512();
        return isa == "avx2" ? attention_avx2() : attention_portable();
    }();
    STD_TORCH_CHECK(chosen != nullptr, "liif_fast: attend was not built by this compiler");
    return *chosen;
}

const float* data(const Tensor& t, const std::vector<int64_t>& size) {
    bool fits =
        t.scalar_type() == ScalarType::Float && t.is_contiguous() && t.dim() == static_cast<int64_t>(size.size());
    for (size_t i = 0; fits && i < size.size(); ++i) fits = t.size(static_cast<int64_t>(i)) == size[i];
    STD_TORCH_CHECK(fits, "liif_fast: the parameters of attend do not fit together; all must be contiguous float32");
    return t.const_data_ptr<float>();
}

// The parameters as the tile code wants them; blocks is where those of the blocks live.
Attention network(const Tensor& products, const Tensor& square, const Tensor& bias, const Tensors& parameters,
                  int64_t width, int64_t heads, std::vector<AttentionBlock>& blocks) {
    Attention net{};
    const size_t count = parameters.size();
    STD_TORCH_CHECK(count == 0 || (count >= kFirst + kHead && (count - kFirst - kHead) % kNext == 0),
                    "liif_fast: parameters of attend must be those of no block, or of one and more");
    STD_TORCH_CHECK(count < kNext * kMaxDepth, "liif_fast: attend takes up to 63 blocks");
    net.depth = count == 0 ? 0 : static_cast<int64_t>((count - kFirst - kHead) / kNext + 1);
    STD_TORCH_CHECK(width > 0 && heads > 0 && width % heads == 0, "liif_fast: heads must divide the width");
    net.width = width;
    net.heads = heads;
    net.linear = net.depth > 0 ? 3 * width : 1;
    net.products = data(products, {net.row() - 3, 2});
    net.bias = data(bias, {net.linear});
    const float* s = data(square, {2, 2});
    net.square[0] = s[0], net.square[1] = s[1] + s[2], net.square[2] = s[3];
    const int64_t d = net.width;
    size_t at = 0;
    const auto next = [&](const std::vector<int64_t>& size) { return data(parameters[at++], size); };
    for (int64_t i = 0; i < net.depth; ++i) {
        AttentionBlock block{};
        if (i > 0) {
            block.norm_weight = next({d});
            block.norm_bias = next({d});
            block.qkv = next({3 * d, d});
        }
        if (parameters[at].numel() > 0) {
            block.out_weight = next({d, d});
            block.out_bias = next({d});
        } else {
            at += 2;
        }
        block.mlp_norm_weight = next({d});
        block.mlp_norm_bias = next({d});
        block.hidden = parameters[at].dim() == 2 ? parameters[at].size(0) : 0;
        block.up_weight = next({block.hidden, d});
        block.up_bias = next({block.hidden});
        block.down_weight = next({d, block.hidden});
        block.down_bias = next({d});
        blocks.push_back(block);
    }
    net.blocks = blocks.data();
    if (net.depth > 0) {
        net.norm_weight = next({d});
        net.norm_bias = next({d});
        net.head_weight = next({1, d});
        net.head_bias = *next({1});
    }
    net.gemm = kernel<float>().gemm;
    return net;
}

// The queries of a call: which rows they read, and what is blended.
struct Queries {
    int64_t count, channels, latents, width;
    const float *rows, *rel, *values;
    const int64_t* corner;

    Queries(const Attention& net, const Tensor& table, const Tensor& at, const Tensor& rel_, const Tensor& values_)
        : count(at.size(0)),
          channels(values_.dim() == 2 ? values_.size(1) : 0),
          latents(table.size(0)),
          width(net.row()),
          rows(data(table, {latents, width})),
          rel(data(rel_, {count, 4, 2})),
          values(data(values_, {latents, channels})) {
        STD_TORCH_CHECK(at.dim() == 2 && at.size(1) == 4 && at.is_contiguous() && at.scalar_type() == ScalarType::Long,
                        "liif_fast: at must be int64 [Q, 4], contiguous");
        corner = at.const_data_ptr<int64_t>();
        bool inside = true;
        for (int64_t i = 0; i < 4 * count; ++i) inside &= corner[i] >= 0 && corner[i] < latents;
        STD_TORCH_CHECK(inside, "liif_fast: at must be rows of the table");
    }

    void fill(AttentionTile& tile, int64_t first, int64_t last) const {
        for (int64_t q = 0; q < kGroup; ++q) {
            const int64_t query = std::min(first + q, last - 1);  // the last one fills the tile
            for (int64_t t = 0; t < 4; ++t) {
                const int64_t column = t * kGroup + q, i = 4 * query + t;
                tile.row[column] = rows + corner[i] * width;
                tile.rel[0][column] = rel[2 * i];
                tile.rel[1][column] = rel[2 * i + 1];
            }
        }
    }
};

// Sums of gradients of one share of the tiles, and how each is read in the end.
struct Sums {
    struct Part {
        float* memory;
        int64_t rows, columns, stride;  // columns 0: a vector of kGroup floats an element
    };
    std::vector<Part> parts;  // products, square, bias, then the parameters' in their order; memory null: no such one
    std::vector<BlockGradients> blocks;
    AttentionGradients gradients{};

    Sums(const Attention& net, int lanes, Arena& arena) {
        const auto vector = [&](int64_t size) {
            parts.push_back({arena.take<float>(size * kGroup), size, 0, 0});
            return parts.back().memory;
        };
        const auto matrix = [&](int64_t outs, int64_t ins) {
            const int64_t stride = round_up(ins, 2 * lanes);
            parts.push_back({arena.take<float>(outs * stride), outs, ins, stride});
            return parts.back().memory;
        };
        const int64_t d = net.width;
        gradients.products = vector(2 * (net.row() - 3));
        gradients.square = vector(3);
        gradients.bias = vector(net.linear);
        for (int64_t i = 0; i < net.depth; ++i) {
            BlockGradients g{};
            if (i > 0) g.norm_weight = vector(d), g.norm_bias = vector(d), g.qkv = matrix(3 * d, d);
            if (net.blocks[i].out_weight != nullptr) {
                g.out_weight = matrix(d, d), g.out_bias = vector(d);
            } else {
                vector(0), vector(0);
            }
            g.mlp_norm_weight = vector(d), g.mlp_norm_bias = vector(d);
            g.up_weight = matrix(net.blocks[i].hidden, d), g.up_bias = vector(net.blocks[i].hidden);
            g.down_weight = matrix(d, net.blocks[i].hidden), g.down_bias = vector(d);
            blocks.push_back(g);
        }
        if (net.depth > 0) {
            gradients.norm_weight = vector(d), gradients.norm_bias = vector(d);
            gradients.head_weight = vector(d), gradients.head_bias = vector(1);
        }
        gradients.blocks = blocks.data();
    }
};

// The sum of part `index` over all shares, in their order, as a tensor of the given size.
Tensor total(const std::vector<Sums>& shares, size_t index, const Tensor& like, const std::vector<int64_t>& size) {
    Tensor result = make<float>(like, size);
    float* to = result.mutable_data_ptr<float>();
    const Sums::Part& part = shares[0].parts[index];
    for (int64_t r = 0; r < part.rows; ++r) {
        for (int64_t c = 0; c < std::max<int64_t>(part.columns, 1); ++c) {
            double sum = 0;
            for (const Sums& share : shares) {
                const float* from = share.parts[index].memory + r * (part.columns > 0 ? part.stride : kGroup) + c;
                for (int64_t i = 0; i < (part.columns > 0 ? 1 : kGroup); ++i) sum += static_cast<double>(from[i]);
            }
            *to++ = static_cast<float>(sum);
        }
    }
    return result;
}

// to[row] += from[i] for all i with that row, each row by one thread and in the order of i.
void scatter(std::vector<std::pair<int64_t, int64_t>>& order, const float* from, int64_t width, float* to) {
    std::sort(order.begin(), order.end());
    const auto size = static_cast<int64_t>(order.size());
    const int64_t workers = std::max<int64_t>(1, std::min<int64_t>(torch::stable::get_num_threads(), size / 256));
    const auto border = [&](int64_t worker) {  // the first entry of a row, at or after a worker's even share
        int64_t i = size * worker / workers;
        while (i > 0 && i < size && order[static_cast<size_t>(i)].first == order[static_cast<size_t>(i - 1)].first) ++i;
        return i;
    };
    torch::stable::parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = border(begin); i < border(end); ++i) {
            const auto [row, source] = order[static_cast<size_t>(i)];
            for (int64_t n = 0; n < width; ++n) to[row * width + n] += from[source * width + n];
        }
    });
}

}  // namespace

std::tuple<Tensor, Tensor> attend(const Tensor& table, const Tensor& at, const Tensor& rel, const Tensor& values,
                                  const Tensor& products, const Tensor& square, const Tensor& bias,
                                  const Tensors& parameters, int64_t width, int64_t heads) {
    std::vector<AttentionBlock> blocks;
    const Attention net = network(products, square, bias, parameters, width, heads, blocks);
    const AttentionKernel& kern = attention_kernel();
    const Queries queries_of(net, table, at, rel, values);
    const int64_t queries = queries_of.count, channels = queries_of.channels;
    const int64_t* corner = queries_of.corner;
    const float* from = queries_of.values;
    Tensor out = make<float>(table, {queries, channels}), weight = make<float>(table, {queries, 4});
    float *to = out.mutable_data_ptr<float>(), *to_weight = weight.mutable_data_ptr<float>();
    const int64_t scratch = kern.forward_scratch(net);
    for_each_task(ceil_div(queries, kTaskTiles * kGroup), [&](int64_t task) {
        float* memory = in_scratch<TileTag>([&](Arena& arena) { return arena.take<float>(scratch); });
        const int64_t last = std::min(queries, (task + 1) * kTaskTiles * kGroup);
        for (int64_t first = task * kTaskTiles * kGroup; first < last; first += kGroup) {
            AttentionTile tile;
            queries_of.fill(tile, first, last);
            kern.forward(net, tile, memory);
            for (int64_t query = first; query < std::min(first + kGroup, last); ++query) {
                float w[4];
                for (int64_t t = 0; t < 4; ++t)
                    w[t] = to_weight[4 * query + t] = tile.weight[t * kGroup + query - first];
                for (int64_t c = 0; c < channels; ++c) {
                    float sum = 0;
                    for (int64_t t = 0; t < 4; ++t) sum += w[t] * from[corner[4 * query + t] * channels + c];
                    to[query * channels + c] = sum;
                }
            }
        }
    });
    return {out, weight};
}

Tensors attend_backward(const Tensor& grad, const Tensor& weight_grad, const Tensor& weight, const Tensor& table,
                        const Tensor& at, const Tensor& rel, const Tensor& values, const Tensor& products,
                        const Tensor& square, const Tensor& bias, const Tensors& parameters, int64_t width,
                        int64_t heads) {
    std::vector<AttentionBlock> blocks;
    const Attention net = network(products, square, bias, parameters, width, heads, blocks);
    const AttentionKernel& kern = attention_kernel();
    const Queries queries_of(net, table, at, rel, values);
    const int64_t queries = queries_of.count, channels = queries_of.channels, row = queries_of.width;
    const float *given = data(grad, {queries, channels}), *given_weight = data(weight_grad, {queries, 4});
    const float* weights = data(weight, {queries, 4});

    // A fixed number of shares, so that the sums do not depend on the number of threads.
    const int64_t count = std::max<int64_t>(1, std::min(kShares, ceil_div(queries, kGroup)));
    Arena sizes;
    Sums(net, kern.lanes, sizes);
    Tensor memory = make_zeros<unsigned char>(table, {count, sizes.used()});
    std::vector<Sums> shares;
    for (int64_t i = 0; i < count; ++i) {
        Arena arena(mutable_data<unsigned char>(memory) + i * sizes.used());
        shares.emplace_back(net, kern.lanes, arena);
        shares.back().gradients.blocks = shares.back().blocks.data();
    }
    const int64_t chunk = std::min(queries, kChunk), scratch = kern.backward_scratch(net);
    Tensor table_grad = make_zeros<float>(table, {queries_of.latents, row});
    Tensor values_grad = make_zeros<float>(table, {queries_of.latents, channels});
    Tensor rows_memory = make<float>(table, {4 * chunk + 1, row}),
           blended_memory = make<float>(table, {4 * chunk, channels});
    float *row_grads = rows_memory.mutable_data_ptr<float>(), *blended = blended_memory.mutable_data_ptr<float>();
    for (int64_t base = 0; base < queries; base += chunk) {
        const int64_t end = std::min(queries, base + chunk), tiles = ceil_div(end - base, kGroup);
        for_each_task(count, [&](int64_t share) {
            float *scrap = nullptr, *work = nullptr;
            in_scratch<BackwardTag>([&](Arena& arena) {
                work = arena.take<float>(scratch);
                scrap = arena.take<float>(row);
                return 0;
            });
            for (int64_t tile_index = tiles * share / count; tile_index < tiles * (share + 1) / count; ++tile_index) {
                const int64_t first = base + tile_index * kGroup, last = std::min(end, first + kGroup);
                AttentionTile tile;
                queries_of.fill(tile, first, last);
                alignas(64) float slope[kColumns];
                float* targets[kColumns];
                for (int64_t q = 0; q < kGroup; ++q) {
                    const int64_t query = first + q;
                    for (int64_t t = 0; t < 4; ++t) {
                        const int64_t column = t * kGroup + q, i = 4 * query + t;
                        if (query >= last) {  // a copy of the last one: it counts for nothing
                            slope[column] = 0;
                            targets[column] = scrap;
                            continue;
                        }
                        const float* value = queries_of.values + queries_of.corner[i] * channels;
                        float sum = given_weight[i];
                        for (int64_t c = 0; c < channels; ++c) {
                            sum += given[query * channels + c] * value[c];
                            blended[(i - 4 * base) * channels + c] = given[query * channels + c] * weights[i];
                        }
                        slope[column] = sum;
                        targets[column] = row_grads + (i - 4 * base) * row;
                    }
                }
                kern.backward(net, tile, slope, shares[static_cast<size_t>(share)].gradients, targets, work);
            }
        });
        std::vector<std::pair<int64_t, int64_t>> order;
        for (int64_t i = 4 * base; i < 4 * end; ++i) order.emplace_back(queries_of.corner[i], i - 4 * base);
        scatter(order, row_grads, row, table_grad.mutable_data_ptr<float>());
        scatter(order, blended, channels, values_grad.mutable_data_ptr<float>());
    }
    Tensors result{table_grad, values_grad, total(shares, 0, table, {row - 3, 2})};
    const Tensor squares = total(shares, 1, table, {3});
    Tensor square_grad = make<float>(table, {2, 2});
    const float* s = squares.const_data_ptr<float>();
    float* to = square_grad.mutable_data_ptr<float>();
    to[0] = s[0], to[1] = to[2] = s[1], to[3] = s[2];
    result.push_back(square_grad);
    result.push_back(total(shares, 2, table, {net.linear}));
    for (size_t i = 0; i < parameters.size(); ++i) {
        std::vector<int64_t> size;
        for (int64_t k = 0; k < parameters[i].dim(); ++k) size.push_back(parameters[i].size(k));
        result.push_back(total(shares, i + 3, table, size));
    }
    return result;
}

}  // namespace liif
