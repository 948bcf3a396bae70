// The transformer over corners of a tile, written once over Vec<float>::type, with the operators that GCC and Clang
// give vectors. The including file also defines transpose_block: out[i * out_row + j] = rows[j][i] for lanes x lanes
// floats. Anonymous and without the standard library, as kernel_impl.h.
#pragma once

#include "attention.h"

namespace liif {
namespace {

using V = Vec<float>::type;
typedef int Ints __attribute__((vector_size(sizeof(V))));
typedef unsigned Bits __attribute__((vector_size(sizeof(V))));
constexpr int kLanes = Vec<float>::lanes;
constexpr int kParts = kColumns / kLanes;  // vectors of a channel

inline V set(float x) {
    return Vec<float>::broadcast(x);
}

inline V load(const float* p) {
    return Vec<float>::load(p);
}

inline V fma(V a, V b, V c) {
    return Vec<float>::fma(a, b, c);
}

inline V larger(V a, V b) {  // a NaN in either passes
    return (a > b) | (a != a) ? a : b;
}

// exp(x) for x <= 88, from 2^round(x / ln 2) and a polynomial; below -87 it stays what it is there.
inline V exp_of(V x) {
    x = x < set(-87.0f) ? set(-87.0f) : x;
    const V magic = set(12582912.0f);  // 1.5 * 2^23: adding it rounds
    const V n = fma(x, set(1.44269504f), magic) - magic;
    const V r = fma(n, set(-1.42860677e-6f), fma(n, set(-0.693145752f), x));
    V p = set(1.0f / 5040);
    p = fma(p, r, set(1.0f / 720));
    p = fma(p, r, set(1.0f / 120));
    p = fma(p, r, set(1.0f / 24));
    p = fma(p, r, set(1.0f / 6));
    p = fma(p, r, set(0.5f));
    p = fma(p, r, set(1.0f));
    p = fma(p, r, set(1.0f));
    const Bits power = (Bits)(__builtin_convertvector(n, Ints) + 127) << 23;
    return p * (V)power;
}

// 1 / sqrt(x) for positive x: a guess from the exponent, and Newton's steps.
inline V rsqrt(V x) {
    V y = (V)(0x5f3759dfu - ((Bits)x >> 1));
    for (int i = 0; i < 4; ++i) y = y * (set(1.5f) - set(0.5f) * x * y * y);
    return y;
}

// Phi(x), the share of a normal distribution below x, with phi(x) = exp(-x^2 / 2): Abramowitz and Stegun, 7.1.26.
inline V normal_share(V x, V& density) {
    density = exp_of(set(-0.5f) * x * x);
    const V size = x < set(0.0f) ? -x : x;
    const V t = set(1.0f) / fma(size, set(0.3275911f * 0.70710678f), set(1.0f));
    V p = set(1.061405429f);
    p = fma(p, t, set(-1.453152027f));
    p = fma(p, t, set(1.421413741f));
    p = fma(p, t, set(-0.284496736f));
    p = fma(p, t, set(0.254829592f));
    const V above = set(0.5f) * p * t * density;
    return x < set(0.0f) ? above : set(1.0f) - above;
}

// mean [kColumns] and 1 / standard deviation [kColumns] over the channels.
void moments(const float* x, int64_t width, float* mean, float* scale) {
    V sum[kParts];
    for (int j = 0; j < kParts; ++j) sum[j] = set(0.0f);
    for (int64_t c = 0; c < width; ++c) {
        for (int j = 0; j < kParts; ++j) sum[j] = sum[j] + load(x + c * kColumns + j * kLanes);
    }
    const V share = set(1.0f / static_cast<float>(width));
    V square[kParts];
    for (int j = 0; j < kParts; ++j) {
        sum[j] = sum[j] * share;
        square[j] = set(0.0f);
    }
    for (int64_t c = 0; c < width; ++c) {
        for (int j = 0; j < kParts; ++j) {
            const V d = load(x + c * kColumns + j * kLanes) - sum[j];
            square[j] = fma(d, d, square[j]);
        }
    }
    for (int j = 0; j < kParts; ++j) {
        Vec<float>::store(mean + j * kLanes, sum[j]);
        Vec<float>::store(scale + j * kLanes, rsqrt(fma(square[j], share, set(kNormEpsilon))));
    }
}

// y = (x - mean) * scale * weight + bias
void normalise(const float* x, int64_t width, const float* weight, const float* bias, float* y) {
    alignas(64) float mean[kColumns], scale[kColumns];
    moments(x, width, mean, scale);
    for (int64_t c = 0; c < width; ++c) {
        const V w = set(weight[c]), b = set(bias[c]);
        for (int j = 0; j < kParts; ++j) {
            const int64_t at = c * kColumns + j * kLanes;
            const V d = (load(x + at) - load(mean + j * kLanes)) * load(scale + j * kLanes);
            Vec<float>::store(y + at, fma(d, w, b));
        }
    }
}

// y = weight x, or y + weight x
void multiply(const Attention& net, const float* weight, int64_t outs, int64_t ins, const float* x, float* y,
              Init init) {
    net.gemm({outs, kColumns, ins, weight, ins, 1, x, 2 * kLanes, kColumns, y, kColumns, init, nullptr, Epilogue::none,
              nullptr});
}

void add_bias(float* y, int64_t width, const float* bias) {
    for (int64_t c = 0; c < width; ++c) {
        const V b = set(bias[c]);
        for (int j = 0; j < kColumns; j += kLanes)
            Vec<float>::store(y + c * kColumns + j, load(y + c * kColumns + j) + b);
    }
}

// Softmax over four vectors.
inline void softmax(V (&x)[4]) {
    const V most = larger(larger(x[0], x[1]), larger(x[2], x[3]));
    V sum = set(0.0f);
    for (int t = 0; t < 4; ++t) {
        x[t] = exp_of(x[t] - most);
        sum = sum + x[t];
    }
    const V share = set(1.0f) / sum;
    for (int t = 0; t < 4; ++t) x[t] = x[t] * share;
}

// mixed [width] = attention of each corner to all four; q, k and v are [width] channels each.
void attend(const Attention& net, const float* qkv, float* mixed) {
    const int64_t each = net.width / net.heads, part = net.width * kColumns;
    V share = set(static_cast<float>(each));
    share = rsqrt(share);
    for (int64_t head = 0; head < net.heads; ++head) {
        const float *q = qkv + head * each * kColumns, *k = q + part, *v = k + part;
        for (int j = 0; j < kGroup; j += kLanes) {
            V logit[4][4];
            for (int a = 0; a < 4; ++a) {
                for (int b = 0; b < 4; ++b) logit[a][b] = set(0.0f);
            }
            for (int64_t c = 0; c < each; ++c) {
                V key[4];
                for (int b = 0; b < 4; ++b) key[b] = load(k + c * kColumns + b * kGroup + j);
                for (int a = 0; a < 4; ++a) {
                    const V query = load(q + c * kColumns + a * kGroup + j);
                    for (int b = 0; b < 4; ++b) logit[a][b] = fma(query, key[b], logit[a][b]);
                }
            }
            for (int a = 0; a < 4; ++a) {
                for (int b = 0; b < 4; ++b) logit[a][b] = logit[a][b] * share;
                softmax(logit[a]);
            }
            for (int64_t c = 0; c < each; ++c) {
                V value[4];
                for (int b = 0; b < 4; ++b) value[b] = load(v + c * kColumns + b * kGroup + j);
                for (int a = 0; a < 4; ++a) {
                    V sum = logit[a][0] * value[0];
                    for (int b = 1; b < 4; ++b) sum = fma(logit[a][b], value[b], sum);
                    Vec<float>::store(mixed + (head * each + c) * kColumns + a * kGroup + j, sum);
                }
            }
        }
    }
}

// Channels [first, last) of the table's rows, turned: y[(c - first) * kColumns + column].
void turn(const AttentionTile& tile, int64_t first, int64_t last, float* y) {
    int64_t c = first;
    for (; c + kLanes <= last; c += kLanes) {
        for (int column = 0; column < kColumns; column += kLanes) {
            const float* rows[kLanes];
            for (int i = 0; i < kLanes; ++i) rows[i] = tile.row[column + i] + c;
            transpose_block(rows, y + (c - first) * kColumns + column, kColumns);
        }
    }
    for (; c < last; ++c) {
        for (int column = 0; column < kColumns; ++column) y[(c - first) * kColumns + column] = tile.row[column][c];
    }
}

// The variance that the first norm divides by, from n1 and n0 (own) and rel; a little below 0 at times.
inline V variance(const Attention& net, const float (&own)[3][kColumns], int j, V row, V col, V share) {
    V sum = load(own[2] + j * kLanes);
    sum = fma(row, fma(row, set(net.square[0]), load(own[0] + j * kLanes)), sum);
    sum = fma(col, fma(col, set(net.square[2]), load(own[1] + j * kLanes)), sum);
    return fma(row * col, set(net.square[1]), sum) * share;
}

// The first norm with the linear map behind it, and the tokens x where the blocks need them.
void begin(const Attention& net, const AttentionTile& tile, float* normed, float* x) {
    const int64_t blocked = net.depth > 0 ? net.width : 0, end = net.linear + blocked;
    alignas(64) float own[3][kColumns];
    for (int column = 0; column < kColumns; ++column) {
        for (int i = 0; i < 3; ++i) own[i][column] = tile.row[column][net.linear + i];
    }
    V scale[kParts], row[kParts], col[kParts];
    const V share = set(1.0f / static_cast<float>(net.width));
    for (int j = 0; j < kParts; ++j) {
        row[j] = load(tile.rel[0] + j * kLanes);
        col[j] = load(tile.rel[1] + j * kLanes);
        V sum = variance(net, own, j, row[j], col[j], share);
        sum = sum < set(0.0f) ? set(0.0f) : sum;
        scale[j] = rsqrt(sum + set(kNormEpsilon));
    }
    turn(tile, 0, net.linear, normed);
    if (blocked > 0) turn(tile, net.linear + 3, end + 3, x);
    for (int64_t c = 0; c < end; ++c) {
        const V p = set(net.products[2 * c]), q = set(net.products[2 * c + 1]);
        const bool inner = c < net.linear;
        float* y = inner ? normed + c * kColumns : x + (c - net.linear) * kColumns;
        const V b = set(inner ? net.bias[c] : 0.0f);
        for (int j = 0; j < kParts; ++j) {
            V value = fma(row[j], p, fma(col[j], q, load(y + j * kLanes)));
            if (inner) value = fma(value, scale[j], b);
            Vec<float>::store(y + j * kLanes, value);
        }
    }
}

// Where a block's data lie; forward lets most of them share memory, backward keeps them apart.
struct Work {
    float *x, *qkv, *mixed, *middle, *normed, *raw, *hidden;
};

void copy(const float* from, int64_t width, float* to) {
    if (from == to) return;
    for (int64_t n = 0; n < width * kColumns; n += kLanes) Vec<float>::store(to + n, load(from + n));
}

// All blocks: from the table's rows to the tokens work[depth].x, and to the logits of each corner.
void run(const Attention& net, const AttentionTile& tile, const Work* work, V (&logit)[kParts]) {
    begin(net, tile, work[0].qkv, work[0].x);
    for (int64_t i = 0; i < net.depth; ++i) {
        const AttentionBlock& block = net.blocks[i];
        const Work& w = work[i];
        if (i > 0) {
            normalise(w.x, net.width, block.norm_weight, block.norm_bias, w.normed);
            multiply(net, block.qkv, 3 * net.width, net.width, w.normed, w.qkv, Init::zero);
        }
        attend(net, w.qkv, w.mixed);
        copy(w.x, net.width, w.middle);
        if (block.out_weight != nullptr) {
            multiply(net, block.out_weight, net.width, net.width, w.mixed, w.middle, Init::accumulate);
            add_bias(w.middle, net.width, block.out_bias);
        } else {
            for (int64_t n = 0; n < net.width * kColumns; n += kLanes) {
                Vec<float>::store(w.middle + n, load(w.middle + n) + load(w.mixed + n));
            }
        }
        normalise(w.middle, net.width, block.mlp_norm_weight, block.mlp_norm_bias, w.normed);
        multiply(net, block.up_weight, block.hidden, net.width, w.normed, w.raw, Init::zero);
        add_bias(w.raw, block.hidden, block.up_bias);
        for (int64_t n = 0; n < block.hidden * kColumns; n += kLanes) {
            const V y = load(w.raw + n);
            V density;
            Vec<float>::store(w.hidden + n, y * normal_share(y, density));
        }
        float* next = work[i + 1].x;
        copy(w.middle, net.width, next);
        multiply(net, block.down_weight, net.width, block.hidden, w.hidden, next, Init::accumulate);
        add_bias(next, net.width, block.down_bias);
    }
    if (net.depth == 0) {
        for (int j = 0; j < kParts; ++j) logit[j] = load(work[0].qkv + j * kLanes);
        return;
    }
    const Work& last = work[net.depth];
    normalise(last.x, net.width, net.norm_weight, net.norm_bias, last.normed);
    for (int j = 0; j < kParts; ++j) logit[j] = set(net.head_bias);
    for (int64_t c = 0; c < net.width; ++c) {
        const V w = set(net.head_weight[c]);
        for (int j = 0; j < kParts; ++j) logit[j] = fma(load(last.normed + c * kColumns + j * kLanes), w, logit[j]);
    }
}

// The weights of the corners, from their logits.
void finish(V (&logit)[kParts], float* weight) {
    constexpr int per_corner = kGroup / kLanes;
    for (int j = 0; j < per_corner; ++j) {
        V four[4];
        for (int t = 0; t < 4; ++t) four[t] = logit[t * per_corner + j];
        softmax(four);
        for (int t = 0; t < 4; ++t) Vec<float>::store(weight + t * kGroup + j * kLanes, four[t]);
    }
}

int64_t widest(const Attention& net) {
    int64_t hidden = 0;
    for (int64_t i = 0; i < net.depth; ++i) hidden = net.blocks[i].hidden > hidden ? net.blocks[i].hidden : hidden;
    return hidden;
}

int64_t forward_scratch(const Attention& net) {
    return (net.linear + 2 * net.width + widest(net)) * kColumns;
}

void forward(const Attention& net, AttentionTile& tile, float* scratch) {
    float* x = scratch + net.linear * kColumns;
    float *other = x + net.width * kColumns, *hidden = other + net.width * kColumns;
    Work work[kMaxDepth + 1];
    for (int64_t i = 0; i <= net.depth; ++i) work[i] = {x, scratch, other, x, other, hidden, hidden};
    V logit[kParts];
    run(net, tile, work, logit);
    finish(logit, tile.weight);
}

}  // namespace
}  // namespace liif
