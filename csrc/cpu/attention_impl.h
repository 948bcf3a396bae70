// The loops of a tile of attend_corners, over the vectors of kernel_impl.h; kernel.h says what each computes. A row is
// eight vectors, so nothing is left over at its end, and a query's bits do not depend on its place in the tile.
#pragma once

#include <math.h>

#include "kernel.h"

namespace liif {
namespace {

constexpr int kTokens = 4;         // the corners of a query
constexpr int kGroup = 4;          // vectors whose sums run side by side: one sum would wait for itself
constexpr float kEpsilon = 1e-5f;  // of every LayerNorm

template <typename T>
constexpr int kQueries = kVectors * Vec<T>::lanes;
template <typename T>
constexpr int kColumns = kTokens * kQueries<T>;
template <typename T>
constexpr int kStride = kColumns<T> + Vec<T>::lanes;  // no power of two: rows of a column do not share cache sets

// exp(x) for x <= 0: 2^n e^r with |r| <= ln(2) / 2, n taken from the last bits of a sum; a NaN passes.
inline float exponential(float x) {
    constexpr float low = -87.0f, shift = 12582912.0f;  // 1.5 * 2^23
    x = x < low ? low : x;
    union {
        float number;
        unsigned bits;
    } power;
    power.number = x * 1.44269504f + shift;
    const float n = power.number - shift;
    float r = x - n * 0.693359375f;
    r = r + n * 2.12194440e-4f;  // ln(2) in two parts
    float y = 1.0f / 720;
    y = y * r + 1.0f / 120;
    y = y * r + 1.0f / 24;
    y = y * r + 1.0f / 6;
    y = y * r + 0.5f;
    y = y * r + 1.0f;
    y = y * r + 1.0f;
    power.bits = (power.bits << 23) + 0x3f800000u;
    return y * power.number;
}

inline double exponential(double x) {
    return exp(x);
}

// The normal distribution's function, Phi(x): in float a rational function fitted to it, within 1.4e-7.
inline float cumulative(float x) {
    constexpr float end = 5.3f;
    x = x < -end ? -end : (x > end ? end : x);
    const float u = x * x;
    float p = 2.4054264e-8f;
    p = p * u + 6.3789557e-6f;
    p = p * u + 1.6029806e-4f;
    p = p * u + 4.6277777e-3f;
    p = p * u + 3.2932077e-2f;
    p = p * u + 3.9894226e-1f;
    float q = 1.2372751e-6f;
    q = q * u + 7.1341332e-5f;
    q = q * u + 1.8363665e-3f;
    q = q * u + 2.8136733e-2f;
    q = q * u + 2.4921471e-1f;
    q = q * u + 1.0f;
    return 0.5f + x * (p / q);
}

inline double cumulative(double x) {
    return 0.5 * erfc(-x * 0.70710678118654752440);
}

template <typename T>
void transpose(T* to, int64_t to_row, const T* const* from, int64_t columns, int64_t rows) {
    constexpr int64_t side = 16;  // in squares of a few cache lines, whose writes stay in the first-level cache
    for (int64_t c0 = 0; c0 < columns; c0 += side) {
        const int64_t c1 = c0 + side < columns ? c0 + side : columns;
        for (int64_t r0 = 0; r0 < rows; r0 += side) {
            const int64_t r1 = r0 + side < rows ? r0 + side : rows;
            int64_t r = r0;
            if constexpr (Vec<T>::transposes) {
                for (; c1 - c0 == side && r + 4 <= r1; r += 4) {
                    for (int64_t c = c0; c < c1; c += Vec<T>::lanes) {
                        typename Vec<T>::type x[4];
                        Vec<T>::turn4(x, [=](int64_t i) { return from[c + i] + r; });
                        LIIF_UNROLL
                        for (int i = 0; i < 4; ++i) Vec<T>::store(to + (r + i) * to_row + c, x[i]);
                    }
                }
            }
            for (; r < r1; ++r) {
                for (int64_t c = c0; c < c1; ++c) to[r * to_row + c] = from[c][r];
            }
        }
    }
}

template <typename T>
void place(T* x, int64_t linear, int64_t rows, const T* rel, const T* by_rel, int64_t by_rel_row, T* scale) {
    using V = Vec<T>;
    constexpr int L = V::lanes, S = kStride<T>;
    const T* by_column = by_rel + by_rel_row;
    const T* bias = by_column + by_rel_row;
    const auto moved = [=](int64_t r, int n) {
        const typename V::type one = V::fma(V::load(rel + n), V::broadcast(by_rel[r]), V::load(x + r * S + n));
        return V::fma(V::load(rel + S + n), V::broadcast(by_column[r]), one);
    };
    for (int n = 0; n < kColumns<T>; n += L) {
        typename V::type variance = V::load(x + (linear + 2) * S + n);
        for (int j = 0; j < 2; ++j) variance = V::fma(V::load(rel + j * S + n), moved(linear + j, n), variance);
        V::store(x + (linear + 2) * S + n, variance);
        V::store(scale + n, V::inverse_root(V::add(V::relu(variance), V::broadcast(T(kEpsilon)))));
    }
    for (int64_t r = 0; r < linear; ++r) {
        for (int n = 0; n < kColumns<T>; n += L) {
            V::store(x + r * S + n, V::fma(moved(r, n), V::load(scale + n), V::broadcast(bias[r])));
        }
    }
    for (int64_t r = linear + 3; r < rows; ++r) {
        for (int n = 0; n < kColumns<T>; n += L) V::store(x + r * S + n, moved(r, n));
    }
}

template <typename T>
void place_back(T* g, const T* x, int64_t linear, const T* bias, T* rel, const T* scale) {
    using V = Vec<T>;
    constexpr int L = V::lanes, S = kStride<T>;
    const typename V::type minus = V::broadcast(T(-1));
    for (int n = 0; n < kColumns<T>; n += L) {
        const typename V::type s = V::load(scale + n);
        typename V::type sum = V::broadcast(T(0));
        for (int64_t r = 0; r < linear; ++r) {
            const typename V::type gradient = V::load(g + r * S + n);
            sum = V::fma(gradient, V::fma(V::broadcast(bias[r]), minus, V::load(x + r * S + n)), sum);
            V::store(g + r * S + n, V::mul(gradient, s));
        }
        const typename V::type variance = V::load(x + (linear + 2) * S + n);
        sum = V::pass_where(V::mul(V::mul(V::mul(sum, V::broadcast(T(-0.5))), s), s), variance);
        for (int j = 0; j < 2; ++j) V::store(g + (linear + j) * S + n, V::mul(sum, V::load(rel + j * S + n)));
        V::store(g + (linear + 2) * S + n, sum);
        V::store(rel + 2 * S + n, V::mul(V::add(V::relu(variance), V::broadcast(T(kEpsilon))), s));
    }
}

template <typename T>
void normalise(T* y, const T* x, int64_t rows, T* scale) {
    using V = Vec<T>;
    constexpr int L = V::lanes, S = kStride<T>;
    const typename V::type share = V::broadcast(T(1) / T(rows)), minus = V::broadcast(T(-1));
    for (int n = 0; n < kColumns<T>; n += kGroup * L) {
        typename V::type mean[kGroup], square[kGroup];
        LIIF_UNROLL
        for (int v = 0; v < kGroup; ++v) mean[v] = square[v] = V::broadcast(T(0));
        for (int64_t r = 0; r < rows; ++r) {
            LIIF_UNROLL
            for (int v = 0; v < kGroup; ++v) mean[v] = V::add(mean[v], V::load(x + r * S + n + v * L));
        }
        LIIF_UNROLL
        for (int v = 0; v < kGroup; ++v) mean[v] = V::mul(V::mul(mean[v], share), minus);
        for (int64_t r = 0; r < rows; ++r) {
            LIIF_UNROLL
            for (int v = 0; v < kGroup; ++v) {
                const typename V::type centred = V::add(V::load(x + r * S + n + v * L), mean[v]);
                square[v] = V::fma(centred, centred, square[v]);
            }
        }
        LIIF_UNROLL
        for (int v = 0; v < kGroup; ++v) {
            square[v] = V::inverse_root(V::fma(square[v], share, V::broadcast(T(kEpsilon))));
            V::store(scale + n + v * L, square[v]);
        }
        for (int64_t r = 0; r < rows; ++r) {
            LIIF_UNROLL
            for (int v = 0; v < kGroup; ++v) {
                const int64_t at = r * S + n + v * L;
                V::store(y + at, V::mul(V::add(V::load(x + at), mean[v]), square[v]));
            }
        }
    }
}

template <typename T>
void normalise_back(T* g, const T* y_gradient, const T* y, int64_t rows, const T* scale) {
    using V = Vec<T>;
    constexpr int L = V::lanes, S = kStride<T>;
    const typename V::type share = V::broadcast(T(-1) / T(rows));
    for (int n = 0; n < kColumns<T>; n += kGroup * L) {
        typename V::type mean[kGroup], slope[kGroup];
        LIIF_UNROLL
        for (int v = 0; v < kGroup; ++v) mean[v] = slope[v] = V::broadcast(T(0));
        for (int64_t r = 0; r < rows; ++r) {
            LIIF_UNROLL
            for (int v = 0; v < kGroup; ++v) {
                const typename V::type gradient = V::load(y_gradient + r * S + n + v * L);
                mean[v] = V::add(mean[v], gradient);
                slope[v] = V::fma(gradient, V::load(y + r * S + n + v * L), slope[v]);
            }
        }
        LIIF_UNROLL
        for (int v = 0; v < kGroup; ++v) mean[v] = V::mul(mean[v], share), slope[v] = V::mul(slope[v], share);
        for (int64_t r = 0; r < rows; ++r) {
            LIIF_UNROLL
            for (int v = 0; v < kGroup; ++v) {
                const int64_t at = r * S + n + v * L;
                const typename V::type gradient = V::add(V::load(y_gradient + at), mean[v]);
                V::store(g + at, V::fma(V::fma(V::load(y + at), slope[v], gradient), V::load(scale + n + v * L),
                                        V::load(g + at)));
            }
        }
    }
}

template <typename T>
void gelu(T* to, const T* x, int64_t rows) {
    for (int64_t r = 0; r < rows; ++r, to += kStride<T>, x += kStride<T>) {
        for (int n = 0; n < kColumns<T>; ++n) to[n] = x[n] * cumulative(x[n]);
    }
}

template <typename T>
void gelu_back(T* g, const T* x, int64_t rows) {
    for (int64_t r = 0; r < rows; ++r, g += kStride<T>, x += kStride<T>) {
        for (int n = 0; n < kColumns<T>; ++n) {
            const T density = T(0.39894228040143267794) * exponential(x[n] * x[n] * T(-0.5));
            g[n] *= cumulative(x[n]) + x[n] * density;
        }
    }
}

template <typename T>
void softmax(T* x) {
    constexpr int N = kQueries<T>;
    for (int n = 0; n < N; ++n) {
        T largest = x[n];
        for (int t = 1; t < kTokens; ++t) largest = x[t * N + n] > largest ? x[t * N + n] : largest;
        for (int t = 0; t < kTokens; ++t) x[t * N + n] -= largest;
    }
    for (int n = 0; n < kColumns<T>; ++n) x[n] = exponential(x[n]);
    for (int n = 0; n < N; ++n) {
        T sum = x[n];
        for (int t = 1; t < kTokens; ++t) sum += x[t * N + n];
        const T share = T(1) / sum;
        for (int t = 0; t < kTokens; ++t) x[t * N + n] *= share;
    }
}

template <typename T>
void softmax_back(T* g, const T* weight) {
    constexpr int N = kQueries<T>;
    for (int n = 0; n < N; ++n) {
        T sum = g[n] * weight[n];
        for (int t = 1; t < kTokens; ++t) sum += g[t * N + n] * weight[t * N + n];
        for (int t = 0; t < kTokens; ++t) g[t * N + n] = weight[t * N + n] * (g[t * N + n] - sum);
    }
}

// to[t] = factor * sum over r < rows of one[r] * others[r][t], of a token and of all four.
template <typename T>
void dots(T* to, const T* one, const T* others, int64_t rows, T factor) {
    using V = Vec<T>;
    constexpr int L = V::lanes, S = kStride<T>, N = kQueries<T>;
    typename V::type sum[kTokens][kVectors];
    LIIF_UNROLL
    for (int t = 0; t < kTokens; ++t) {
        LIIF_UNROLL
        for (int v = 0; v < kVectors; ++v) sum[t][v] = V::broadcast(T(0));
    }
    for (int64_t r = 0; r < rows; ++r, one += S, others += S) {
        LIIF_UNROLL
        for (int v = 0; v < kVectors; ++v) {
            const typename V::type x = V::load(one + v * L);
            LIIF_UNROLL
            for (int t = 0; t < kTokens; ++t) sum[t][v] = V::fma(x, V::load(others + t * N + v * L), sum[t][v]);
        }
    }
    LIIF_UNROLL
    for (int t = 0; t < kTokens; ++t) {
        LIIF_UNROLL
        for (int v = 0; v < kVectors; ++v) V::store(to + t * N + v * L, V::mul(sum[t][v], V::broadcast(factor)));
    }
}

// to[r] = sum over the tokens t of weight[t * weight_step] * x[r][t]
template <typename T>
void mixture(T* to, const T* weight, int64_t weight_step, const T* x, int64_t rows) {
    using V = Vec<T>;
    constexpr int L = V::lanes, S = kStride<T>, N = kQueries<T>;
    LIIF_UNROLL
    for (int v = 0; v < kVectors; ++v) {
        typename V::type w[kTokens];
        LIIF_UNROLL
        for (int t = 0; t < kTokens; ++t) w[t] = V::load(weight + t * weight_step + v * L);
        for (int64_t r = 0; r < rows; ++r) {
            const T* from = x + r * S + v * L;
            typename V::type sum = V::mul(w[0], V::load(from));
            LIIF_UNROLL
            for (int t = 1; t < kTokens; ++t) sum = V::fma(w[t], V::load(from + t * N), sum);
            V::store(to + r * S + v * L, sum);
        }
    }
}

// The logits' factor of a head, 1 / sqrt(its channels).
template <typename T>
T head_factor(int64_t channels) {
    return T(1 / sqrt(static_cast<double>(channels)));
}

template <typename T>
void attend(T* mixed, T* weight, const T* qkv, int64_t width, int64_t heads) {
    constexpr int S = kStride<T>, N = kQueries<T>;
    const int64_t channels = width / heads;
    for (int64_t h = 0; h < heads; ++h) {
        const T *q = qkv + h * channels * S, *k = q + width * S, *v = k + width * S;
        for (int t = 0; t < kTokens; ++t, weight += S) {
            dots(weight, q + t * N, k, channels, head_factor<T>(channels));
            softmax(weight);
            mixture(mixed + h * channels * S + t * N, weight, N, v, channels);
        }
    }
}

template <typename T>
void attend_back(T* qkv_gradient, const T* g, const T* qkv, const T* weight, int64_t width, int64_t heads, T* logit) {
    constexpr int S = kStride<T>, N = kQueries<T>;
    const int64_t channels = width / heads;
    const T factor = head_factor<T>(channels);
    for (int64_t h = 0; h < heads; ++h, weight += kTokens * S) {
        const int64_t at = h * channels * S;
        const T *q = qkv + at, *k = q + width * S, *v = k + width * S;
        T *dq = qkv_gradient + at, *dk = dq + width * S, *dv = dk + width * S;
        for (int t = 0; t < kTokens; ++t) {
            T* row = logit + t * S;
            dots(row, g + at + t * N, v, channels, T(1));
            softmax_back(row, weight + t * S);
            for (int n = 0; n < kColumns<T>; ++n) row[n] *= factor;
            mixture(dq + t * N, row, N, k, channels);
        }
        for (int t = 0; t < kTokens; ++t) {  // of the key and the value of token t, read by all four
            mixture(dk + t * N, logit + t * N, S, q, channels);
            mixture(dv + t * N, weight + t * N, S, g + at, channels);
        }
    }
}

template <typename T>
const Attention<T> attention_table = {kStride<T>,        transpose<T>, place<T>,      place_back<T>, normalise<T>,
                                      normalise_back<T>, gelu<T>,      gelu_back<T>,  softmax<T>,    softmax_back<T>,
                                      mixture<T>,        attend<T>,    attend_back<T>};

}  // namespace
}  // namespace liif
