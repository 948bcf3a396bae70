// The micro-kernel, written once over a small vector type `Vec<T>` that each translation unit defines before it
// includes this file: lanes, rows (of the register tile), type (of sums) with load, store, broadcast, add, mul, relu,
// inverse_root, pass_where, and factor with columns (of B), row (of A) and fma; if it `transposes`, also turn4(to,
// from), which writes to to[i] what from(c) + i points at, i < 4, c < lanes; if it `skips`, also what terms_impl.h
// needs. The namespace is anonymous so that the linker never merges the same template compiled for other instruction
// sets. For the same reason this file uses nothing from the standard library.
#pragma once

#include "kernel.h"

namespace liif {
namespace {

constexpr int kVectors = 2;  // vectors per row of the register tile

// Stores a vector of sums at c, an address in C.
template <typename T, typename C>
LIIF_INLINE void finish(const Gemm<T, C>& g, C* c, typename Vec<T>::type y) {
    using V = Vec<T>;
    // C is added last, because over many tiles a sum of short sums rounds far less than one long chain. 0 is added to
    // make -0 +0, because a sum's terms of 0 may make it either, and neighbouring rows decide which are left out.
    y = V::add(y, g.init == Init::accumulate ? V::load(c) : V::broadcast(0));
    if (g.epilogue == Epilogue::relu) y = V::relu(y);
    if (g.epilogue == Epilogue::mask) y = V::pass_where(y, V::load(g.mask + (c - g.c)));
    V::store(c, y);
}

// One register tile: R rows x N vectors of columns, with zeros for the rest of the panel. R and N are constants, so the
// accumulators stay in registers. If Turned, B is not packed, and one vector of its columns is turned in registers.
template <typename T, typename C, int R, int N, bool Turned>
void tile(const Gemm<T, C>& g, int64_t row, int64_t column) {
    using V = Vec<T>;
    constexpr int L = V::lanes;
    constexpr int NR = kVectors * L;
    typename V::type acc[R][N];
    C* c = g.c + row * g.c_row + column;
    const T* b = g.b + (Turned ? column * g.b_column : column / NR * g.b_panel);

    LIIF_UNROLL
    for (int r = 0; r < R; ++r) {
        LIIF_UNROLL
        for (int v = 0; v < N; ++v) {
            acc[r][v] = g.init == Init::bias ? V::load(g.bias + column + v * L) : V::broadcast(0);
        }
    }

    // Rows in groups of three: x86 addresses a, a + s and a + 2s from one pointer and one index register.
    constexpr int groups = (R + 2) / 3;
    const T* a[groups];
    LIIF_UNROLL
    for (int i = 0; i < groups; ++i) a[i] = g.a + (row + 3 * i) * g.a_row;
    const int64_t a_row = g.a_row;
    const int64_t a_step = g.a_step;
    const int64_t b_step = g.b_step;
    // A sum of weight gradients is larger than a second-level cache, and its rows are too far apart for the processor
    // to predict.
    if (g.init == Init::accumulate) {
        LIIF_UNROLL
        for (int r = 0; r < R; ++r) {
            LIIF_UNROLL
            for (int v = 0; v < kVectors; ++v) LIIF_PREFETCH(c + r * g.c_row + v * L);
        }
    }
    int64_t s = 0;
    if constexpr (Turned) {
        static_assert(N == 1);
        constexpr int D = kDepth<T>;
        const int64_t b_column = g.b_column;
        for (; s + 4 <= g.steps; s += 4) {
            typename V::factor w[4];
            V::turn4(w, [=](int64_t c) { return b + c * b_column; });
            LIIF_UNROLL
            for (int i = 0; i < 4; ++i) {
                LIIF_UNROLL
                for (int r = 0; r < R; ++r) {
                    acc[r][0] = V::fma(V::row(a[r / 3] + (r % 3) * a_row + i * D), w[i], acc[r][0]);
                }
            }
            b += 4 * D;
            LIIF_UNROLL
            for (int i = 0; i < groups; ++i) a[i] += 4 * D;
        }
    }
    for (; s < g.steps; ++s) {
        typename V::factor w[N];
        if constexpr (Turned) {
            T values[L * kDepth<T>];
            for (int c = 0; c < L; ++c) {
                for (int j = 0; j < kDepth<T>; ++j) values[c * kDepth<T> + j] = b[c * g.b_column + j];
            }
            w[0] = V::columns(values);
        } else {
            LIIF_UNROLL
            for (int v = 0; v < N; ++v) w[v] = V::columns(b + v * L * kDepth<T>);
        }
        LIIF_UNROLL
        for (int r = 0; r < R; ++r) {
            const typename V::factor x = V::row(a[r / 3] + (r % 3) * a_row);
            LIIF_UNROLL
            for (int v = 0; v < N; ++v) acc[r][v] = V::fma(x, w[v], acc[r][v]);
        }
        b += Turned ? kDepth<T> : b_step;
        LIIF_UNROLL
        for (int i = 0; i < groups; ++i) a[i] += a_step;
    }

    LIIF_UNROLL
    for (int r = 0; r < R; ++r) {
        LIIF_UNROLL
        for (int v = 0; v < N; ++v) finish(g, c + r * g.c_row + v * L, acc[r][v]);
        LIIF_UNROLL
        for (int v = N; v < (Turned ? N : kVectors); ++v) V::store(c + r * g.c_row + v * L, V::broadcast(0));
    }
}

// The last rows of a block, fewer than a whole register tile.
template <typename T, typename C, int R, int N, bool Turned>
void tail(const Gemm<T, C>& g, int64_t row, int64_t column, int64_t rows) {
    if constexpr (R > 0) {
        if (rows == R) {
            tile<T, C, R, N, Turned>(g, row, column);
        } else {
            tail<T, C, R - 1, N, Turned>(g, row, column, rows);
        }
    }
}

template <typename T, typename C, int N, bool Turned = false>
void multiply_columns(const Gemm<T, C>& g, int64_t column) {
    constexpr int MR = Vec<T>::rows;
    const int64_t whole = g.rows - g.rows % MR;
    for (int64_t row = 0; row < whole; row += MR) tile<T, C, MR, N, Turned>(g, row, column);
    tail<T, C, MR - 1, N, Turned>(g, whole, column, g.rows - whole);
}

}  // namespace
}  // namespace liif

#include "terms_impl.h"

namespace liif {
namespace {

template <typename T, typename C>
void gemm(const Gemm<T, C>& g) {
    constexpr int L = Vec<T>::lanes, NR = kVectors * L;
    if constexpr (Vec<T>::transposes) {
        if (g.b_column != 0) {
            for (int64_t column = 0; column < g.columns; column += L) multiply_columns<T, C, 1, true>(g, column);
            return;
        }
    }
    if constexpr (Vec<T>::skips) {
        if (g.skips && g.init != Init::accumulate) return multiply_terms(g);
        if constexpr (Vec<T>::row_vectors > 0) {
            if (g.skips && g.steps <= RowTerms<T>::most_steps && finite_columns(g)) {
                return multiply_row_terms(g, 0, g.rows);
            }
        }
    }
    for (int64_t column = 0; column < g.columns; column += NR) {  // a panel of B stays in the first-level cache
        if (g.columns - column <= L) {
            multiply_columns<T, C, 1>(g, column);
        } else {
            multiply_columns<T, C, kVectors>(g, column);
        }
    }
}

// The element-wise kernels are plain loops, because they are a percent of the work and compilers vectorise them.
template <typename T>
void affine(T* h, const T* p, const T* a, int terms, const T* u, int64_t u_row, int64_t width, bool relu) {
    const T a0 = a[0], a1 = a[1];
    const T a2 = terms > 2 ? a[2] : T(0), a3 = terms > 3 ? a[3] : T(0);
    const T *u0 = u, *u1 = u + u_row, *u2 = u1 + (terms > 2 ? u_row : 0), *u3 = u2 + (terms > 3 ? u_row : 0);
    for (int64_t n = 0; n < width; ++n) {
        T x = p[n] + a0 * u0[n] + a1 * u1[n];
        if (terms > 2) x = x + a2 * u2[n] + a3 * u3[n];
        h[n] = relu && x < T(0) ? T(0) : x;  // in this order a NaN passes
    }
}

// Vectorised by hand, because compilers vectorise the sum and not the columns.
template <typename T>
void blend(T* s, const T* h, int64_t h_row, const T* w, int corners, int64_t width) {
    using V = Vec<T>;
    constexpr int NR = kVectors * V::lanes;
    int64_t n = 0;
    for (; n + NR <= width; n += NR) {
        typename V::type sum[kVectors];
        LIIF_UNROLL
        for (int v = 0; v < kVectors; ++v) sum[v] = V::broadcast(T(0));
        for (int t = 0; t < corners; ++t) {
            const typename V::type x = V::broadcast(w[t]);
            LIIF_UNROLL
            for (int v = 0; v < kVectors; ++v) sum[v] = V::fma(x, V::load(h + t * h_row + n + v * V::lanes), sum[v]);
        }
        LIIF_UNROLL
        for (int v = 0; v < kVectors; ++v) V::store(s + n + v * V::lanes, sum[v]);
    }
    for (; n + V::lanes <= width; n += V::lanes) {
        typename V::type sum = V::broadcast(T(0));
        for (int t = 0; t < corners; ++t) sum = V::fma(V::broadcast(w[t]), V::load(h + t * h_row + n), sum);
        V::store(s + n, sum);
    }
    for (; n < width; ++n) {
        T sum = w[0] * h[n];
        for (int t = 1; t < corners; ++t) sum += w[t] * h[t * h_row + n];
        s[n] = sum;
    }
}

// Four sums at a time, because one chain of additions would wait for each of them.
template <typename T>
void sum_rows(const T* x, int64_t x_row, int64_t rows, int64_t width, Sum<T>* sum, Sum<T>* carry) {
    using V = Vec<T>;
    constexpr int L = V::lanes, chains = 4;
    for (int64_t n = 0; n < width; n += L) {
        typename V::type part[chains];
        LIIF_UNROLL
        for (int i = 0; i < chains; ++i) part[i] = V::broadcast(0);
        int64_t r = 0;
        for (; r + chains <= rows; r += chains) {
            LIIF_UNROLL
            for (int i = 0; i < chains; ++i) part[i] = V::add(part[i], V::load(x + (r + i) * x_row + n));
        }
        for (; r < rows; ++r) part[0] = V::add(part[0], V::load(x + r * x_row + n));
        Sum<T> total[L];
        V::store(total, V::add(V::add(part[0], part[1]), V::add(part[2], part[3])));
        for (int64_t j = n; j < n + L; ++j) {  // Kahan's sum
            const Sum<T> y = total[j - n] - (carry == nullptr ? Sum<T>(0) : carry[j]);
            const Sum<T> t = sum[j] + y;
            if (carry != nullptr) carry[j] = (t - sum[j]) - y;
            sum[j] = t;
        }
    }
}

template <typename T>
void add(T* y, const T* x, int64_t width) {
    for (int64_t n = 0; n < width; ++n) y[n] += x[n];
}

}  // namespace
}  // namespace liif

#include "attention_impl.h"
#include "modulation_impl.h"
#include "waves_impl.h"
#include "winograd_impl.h"

namespace liif {
namespace {

template <typename T>
constexpr int row_steps() {
    if constexpr (Vec<T>::skips) return Vec<T>::row_vectors > 0 ? RowTerms<T>::most_steps : 0;
    return 0;
}

template <typename T>
const Kernel<T> table = {Vec<T>::name,
                         kVectors * Vec<T>::lanes,
                         Vec<T>::turned_rows,
                         Vec<T>::skips ? Terms<T>::most : 0,
                         row_steps<T>(),
                         gemm<T, T>,
                         gemm<T, T>,
                         affine<T>,
                         sum_rows<T>,
                         blend<T>,
                         add<T>,
                         waves<T>,
                         waves_back<T>,
                         modulate<T>,
                         modulate_back<T>,
                         nullptr,
                         nullptr,
                         nullptr,
                         &attention_table<T>,
                         &winograd_table<T>};

}  // namespace
}  // namespace liif
