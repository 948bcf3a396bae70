// The gradient of attention_impl.h: what forward made of a tile is made again and kept, then walked back.
#pragma once

#include "attention_impl.h"

namespace liif {
namespace {

// sum[0 .. lanes) += the sum of a channel's vectors
inline void add_up(const V (&x)[kParts], float* sum) {
    V total = x[0];
    for (int j = 1; j < kParts; ++j) total = total + x[j];
    Vec<float>::store(sum, load(sum) + total);
}

void sum_bias(const float* grad, int64_t width, float* sum) {
    for (int64_t c = 0; c < width; ++c) {
        V parts[kParts];
        for (int j = 0; j < kParts; ++j) parts[j] = load(grad + c * kColumns + j * kLanes);
        add_up(parts, sum + c * kGroup);
    }
}

// sum[o][i] += sum over columns of grad[o][column] * x[i][column]; turned is room for x the other way round.
void sum_weight(const Attention& net, const float* grad, int64_t outs, const float* x, int64_t ins, float* sum,
                float* turned) {
    constexpr int64_t panel = 2 * kLanes;
    const int64_t padded = (ins + panel - 1) / panel * panel;
    int64_t c = 0;
    for (; c + kLanes <= ins; c += kLanes) {
        for (int column = 0; column < kColumns; column += kLanes) {
            const float* rows[kLanes];
            for (int i = 0; i < kLanes; ++i) rows[i] = x + (c + i) * kColumns + column;
            transpose_block(rows, turned + column * padded + c, padded);
        }
    }
    for (; c < padded; ++c) {
        for (int column = 0; column < kColumns; ++column) {
            turned[column * padded + c] = c < ins ? x[c * kColumns + column] : 0.0f;
        }
    }
    net.gemm({outs, padded, kColumns, grad, kColumns, 1, turned, panel, padded, sum, padded, Init::accumulate, nullptr,
              Epilogue::none, nullptr});
}

// x_grad = weight' grad
void multiply_back(const Attention& net, const float* weight, int64_t outs, int64_t ins, const float* grad,
                   float* x_grad) {
    net.gemm({ins, kColumns, outs, weight, 1, ins, grad, 2 * kLanes, kColumns, x_grad, kColumns, Init::zero, nullptr,
              Epilogue::none, nullptr});
}

// Adds the norm's gradient to x_grad; grad is that of its output.
void normalise_back(const float* x, int64_t width, const float* weight, const float* grad, float* weight_sum,
                    float* bias_sum, float* x_grad) {
    alignas(64) float mean[kColumns], scale[kColumns];
    moments(x, width, mean, scale);
    V plain[kParts], along[kParts];  // means over the channels of g and of g * normed, g = grad * weight
    for (int j = 0; j < kParts; ++j) plain[j] = along[j] = set(0.0f);
    for (int64_t c = 0; c < width; ++c) {
        V own[kParts], given[kParts];
        const V w = set(weight[c]);
        for (int j = 0; j < kParts; ++j) {
            const int64_t at = c * kColumns + j * kLanes;
            const V normed = (load(x + at) - load(mean + j * kLanes)) * load(scale + j * kLanes);
            given[j] = load(grad + at);
            own[j] = given[j] * normed;
            plain[j] = fma(given[j], w, plain[j]);
            along[j] = fma(own[j], w, along[j]);
        }
        add_up(own, weight_sum + c * kGroup);
        add_up(given, bias_sum + c * kGroup);
    }
    const V share = set(1.0f / static_cast<float>(width));
    for (int64_t c = 0; c < width; ++c) {
        const V w = set(weight[c]);
        for (int j = 0; j < kParts; ++j) {
            const int64_t at = c * kColumns + j * kLanes;
            const V s = load(scale + j * kLanes), normed = (load(x + at) - load(mean + j * kLanes)) * s;
            const V part = load(grad + at) * w - share * (plain[j] + normed * along[j]);
            Vec<float>::store(x_grad + at, fma(part, s, load(x_grad + at)));
        }
    }
}

void attend_back(const Attention& net, const float* qkv, const float* grad, float* qkv_grad) {
    const int64_t each = net.width / net.heads, part = net.width * kColumns;
    const V share = rsqrt(set(static_cast<float>(each)));
    for (int64_t head = 0; head < net.heads; ++head) {
        const int64_t begin = head * each * kColumns;
        const float *q = qkv + begin, *k = q + part, *v = k + part, *g = grad + begin;
        float *q_grad = qkv_grad + begin, *k_grad = q_grad + part, *v_grad = k_grad + part;
        for (int j = 0; j < kGroup; j += kLanes) {
            V weight[4][4], slope[4][4];
            for (int a = 0; a < 4; ++a) {
                for (int b = 0; b < 4; ++b) weight[a][b] = slope[a][b] = set(0.0f);
            }
            for (int64_t c = 0; c < each; ++c) {
                const int64_t at = c * kColumns + j;
                for (int a = 0; a < 4; ++a) {
                    const V query = load(q + at + a * kGroup), mixed = load(g + at + a * kGroup);
                    for (int b = 0; b < 4; ++b) {
                        weight[a][b] = fma(query, load(k + at + b * kGroup), weight[a][b]);
                        slope[a][b] = fma(mixed, load(v + at + b * kGroup), slope[a][b]);
                    }
                }
            }
            for (int a = 0; a < 4; ++a) {
                V along = set(0.0f);
                for (int b = 0; b < 4; ++b) weight[a][b] = weight[a][b] * share;
                softmax(weight[a]);
                for (int b = 0; b < 4; ++b) along = fma(weight[a][b], slope[a][b], along);
                for (int b = 0; b < 4; ++b) slope[a][b] = weight[a][b] * (slope[a][b] - along) * share;
            }
            for (int64_t c = 0; c < each; ++c) {
                const int64_t at = c * kColumns + j;
                for (int a = 0; a < 4; ++a) {
                    V of_q = set(0.0f), of_k = set(0.0f), of_v = set(0.0f);
                    for (int b = 0; b < 4; ++b) {
                        of_q = fma(slope[a][b], load(k + at + b * kGroup), of_q);
                        of_k = fma(slope[b][a], load(q + at + b * kGroup), of_k);
                        of_v = fma(weight[b][a], load(g + at + b * kGroup), of_v);
                    }
                    Vec<float>::store(q_grad + at + a * kGroup, of_q);
                    Vec<float>::store(k_grad + at + a * kGroup, of_k);
                    Vec<float>::store(v_grad + at + a * kGroup, of_v);
                }
            }
        }
    }
}

// Writes channels [0, width) of grad to [first, first + width) of every row.
void turn_back(const float* grad, int64_t width, int64_t first, float* const* row_grad) {
    alignas(64) float block[kLanes * kLanes];
    int64_t c = 0;
    for (; c + kLanes <= width; c += kLanes) {
        for (int column = 0; column < kColumns; column += kLanes) {
            const float* rows[kLanes];
            for (int i = 0; i < kLanes; ++i) rows[i] = grad + (c + i) * kColumns + column;
            transpose_block(rows, block, kLanes);
            for (int i = 0; i < kLanes; ++i)
                Vec<float>::store(row_grad[column + i] + first + c, load(block + i * kLanes));
        }
    }
    for (; c < width; ++c) {
        for (int column = 0; column < kColumns; ++column) row_grad[column][first + c] = grad[c * kColumns + column];
    }
}

// The gradient of begin: from those of the normed products (changed on the way) and of the tokens.
void begin_back(const Attention& net, const AttentionTile& tile, const float* normed, float* normed_grad,
                const float* x_grad, const AttentionGradients& sum, float* const* row_grad) {
    alignas(64) float own[3][kColumns];
    for (int column = 0; column < kColumns; ++column) {
        for (int i = 0; i < 3; ++i) own[i][column] = tile.row[column][net.linear + i];
    }
    V row[kParts], col[kParts], scale[kParts], inside[kParts], slope[kParts];
    const V share = set(1.0f / static_cast<float>(net.width));
    for (int j = 0; j < kParts; ++j) {
        row[j] = load(tile.rel[0] + j * kLanes);
        col[j] = load(tile.rel[1] + j * kLanes);
        V square = variance(net, own, j, row[j], col[j], share);
        inside[j] = square < set(0.0f) ? set(0.0f) : set(1.0f);
        scale[j] = rsqrt(square * inside[j] + set(kNormEpsilon));
        slope[j] = set(0.0f);
    }
    for (int64_t c = 0; c < net.linear; ++c) {
        V given[kParts], by_row[kParts], by_col[kParts];
        const V b = set(net.bias[c]);
        for (int j = 0; j < kParts; ++j) {
            const int64_t at = c * kColumns + j * kLanes;
            given[j] = load(normed_grad + at);
            slope[j] = fma(given[j], load(normed + at) - b, slope[j]);
            const V inner = given[j] * scale[j];
            by_row[j] = inner * row[j];
            by_col[j] = inner * col[j];
            Vec<float>::store(normed_grad + at, inner);
        }
        add_up(given, sum.bias + c * kGroup);
        add_up(by_row, sum.products + 2 * c * kGroup);
        add_up(by_col, sum.products + (2 * c + 1) * kGroup);
    }
    V squares[3][kParts];
    for (int j = 0; j < kParts; ++j) {
        const V part = set(-0.5f) * scale[j] * scale[j] * slope[j] * inside[j] * share;
        const V by_row = part * row[j], by_col = part * col[j];
        Vec<float>::store(own[0] + j * kLanes, by_row);
        Vec<float>::store(own[1] + j * kLanes, by_col);
        Vec<float>::store(own[2] + j * kLanes, part);
        squares[0][j] = by_row * row[j];
        squares[1][j] = by_row * col[j];
        squares[2][j] = by_col * col[j];
    }
    for (int i = 0; i < 3; ++i) add_up(squares[i], sum.square + i * kGroup);
    turn_back(normed_grad, net.linear, 0, row_grad);
    for (int column = 0; column < kColumns; ++column) {
        for (int i = 0; i < 3; ++i) row_grad[column][net.linear + i] = own[i][column];
    }
    if (net.depth == 0) return;
    for (int64_t c = 0; c < net.width; ++c) {
        V by_row[kParts], by_col[kParts];
        for (int j = 0; j < kParts; ++j) {
            const V given = load(x_grad + c * kColumns + j * kLanes);
            by_row[j] = given * row[j];
            by_col[j] = given * col[j];
        }
        add_up(by_row, sum.products + 2 * (net.linear + c) * kGroup);
        add_up(by_col, sum.products + (2 * (net.linear + c) + 1) * kGroup);
    }
    turn_back(x_grad, net.width, net.linear + 3, row_grad);
}

// The gradient of one block: x_grad is that of its output on entry, of its input on exit; of the first block's qkv it
// is left in qkv_grad.
void block_back(const Attention& net, int64_t i, const Work& w, const BlockGradients& sum, float* x_grad, float* other,
                float* hidden_grad, float* qkv_grad, float* turned) {
    const AttentionBlock& block = net.blocks[i];
    const int64_t d = net.width;
    sum_bias(x_grad, d, sum.down_bias);
    multiply_back(net, block.down_weight, d, block.hidden, x_grad, hidden_grad);
    for (int64_t n = 0; n < block.hidden * kColumns; n += kLanes) {
        const V y = load(w.raw + n);
        V density;
        const V share = normal_share(y, density);
        Vec<float>::store(w.hidden + n, y * share);
        Vec<float>::store(hidden_grad + n, load(hidden_grad + n) * fma(y * set(0.39894228f), density, share));
    }
    sum_weight(net, x_grad, d, w.hidden, block.hidden, sum.down_weight, turned);
    sum_bias(hidden_grad, block.hidden, sum.up_bias);
    normalise(w.middle, d, block.mlp_norm_weight, block.mlp_norm_bias, w.normed);
    sum_weight(net, hidden_grad, block.hidden, w.normed, d, sum.up_weight, turned);
    multiply_back(net, block.up_weight, block.hidden, d, hidden_grad, other);
    normalise_back(w.middle, d, block.mlp_norm_weight, other, sum.mlp_norm_weight, sum.mlp_norm_bias, x_grad);
    const float* mixed_grad = x_grad;
    if (block.out_weight != nullptr) {
        sum_bias(x_grad, d, sum.out_bias);
        sum_weight(net, x_grad, d, w.mixed, d, sum.out_weight, turned);
        multiply_back(net, block.out_weight, d, d, x_grad, other);
        mixed_grad = other;
    }
    attend_back(net, w.qkv, mixed_grad, qkv_grad);
    if (i == 0) return;
    normalise(w.x, d, block.norm_weight, block.norm_bias, w.normed);
    sum_weight(net, qkv_grad, 3 * d, w.normed, d, sum.qkv, turned);
    multiply_back(net, block.qkv, 3 * d, d, qkv_grad, other);
    normalise_back(w.x, d, block.norm_weight, other, sum.norm_weight, sum.norm_bias, x_grad);
}

int64_t backward_scratch(const Attention& net) {
    const int64_t hidden = widest(net), wide = (hidden > net.width ? hidden : net.width) + 2 * kLanes;
    const int64_t kept = (net.depth + 1) * (net.linear + 3 * net.width + hidden);
    return (kept + 3 * net.width + 2 * hidden + net.linear + wide) * kColumns;
}

void backward(const Attention& net, const AttentionTile& tile, const float* grad, const AttentionGradients& sum,
              float* const* row_grad, float* scratch) {
    const int64_t hidden = widest(net);
    const auto take = [&](int64_t channels) {
        float* p = scratch;
        scratch += channels * kColumns;
        return p;
    };
    float *normed = take(net.width), *active = take(hidden);
    Work work[kMaxDepth + 1];
    for (int64_t i = 0; i <= net.depth; ++i) {
        float *x = take(net.width), *qkv = take(net.linear), *mixed = take(net.width), *middle = take(net.width);
        work[i] = {x, qkv, mixed, middle, normed, take(hidden), active};
    }
    float *x_grad = take(net.width), *other = take(net.width), *hidden_grad = take(hidden);
    float *qkv_grad = take(net.linear), *turned = scratch;
    V logit[kParts];
    run(net, tile, work, logit);

    constexpr int per_corner = kGroup / kLanes;
    for (int j = 0; j < per_corner; ++j) {
        V four[4], given[4], along = set(0.0f);
        for (int t = 0; t < 4; ++t) {
            four[t] = logit[t * per_corner + j];
            given[t] = load(grad + t * kGroup + j * kLanes);
        }
        softmax(four);
        for (int t = 0; t < 4; ++t) along = fma(four[t], given[t], along);
        for (int t = 0; t < 4; ++t) logit[t * per_corner + j] = four[t] * (given[t] - along);
    }
    if (net.depth == 0) {
        for (int j = 0; j < kParts; ++j) Vec<float>::store(qkv_grad + j * kLanes, logit[j]);
    } else {
        add_up(logit, sum.head_bias);
        for (int64_t c = 0; c < net.width; ++c) {
            V own[kParts];
            const V w = set(net.head_weight[c]);
            for (int j = 0; j < kParts; ++j) {
                const int64_t at = c * kColumns + j * kLanes;
                own[j] = logit[j] * load(normed + at);
                Vec<float>::store(other + at, logit[j] * w);
                Vec<float>::store(x_grad + at, set(0.0f));
            }
            add_up(own, sum.head_weight + c * kGroup);
        }
        normalise_back(work[net.depth].x, net.width, net.norm_weight, other, sum.norm_weight, sum.norm_bias, x_grad);
        for (int64_t i = net.depth - 1; i >= 0; --i) {
            block_back(net, i, work[i], sum.blocks[i], x_grad, other, hidden_grad, qkv_grad, turned);
        }
    }
    begin_back(net, tile, work[0].qkv, qkv_grad, x_grad, sum, row_grad);
}

const AttentionKernel attention_table = {kLanes, forward_scratch, forward, backward_scratch, backward};

}  // namespace
}  // namespace liif
