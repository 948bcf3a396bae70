// Products that leave out terms. A ReLU sets most activations to 0, and their gradients with them. With finite B a
// term of 0 changes no sum but -0, which `finish` makes +0. So the sums are those of all terms, in the same order and
// with the same bits. Rows next to each other, which read the same latent, are mostly 0 in the same channels. So a few
// rows at a time are multiplied over the k in which one of them is not 0; row_terms_impl.h takes other rows one by one.
// Included by kernel_impl.h. Vec<T> has term_panels, the panels of B that go with a group of rows, and worthwhile, a
// percentage: with more terms it is faster to multiply all.
#pragma once

#include "row_terms_impl.h"

namespace liif {
namespace {

constexpr int kTermRows = 6;  // of a group; whole groups fill a register tile

// The k at which one of a group's rows of A is not 0. Vec<T>::list(to, a, a_row, rows, k, depth) appends those of
// k <= i < k + lanes and i < depth to a list, and returns their number; it may write `lanes` elements.
template <typename T>
struct Terms {
    static constexpr int most = 512;
    static constexpr int rows = kTermRows;
    struct Step {
        const T *a[(rows + 2) / 3], *b;
        int64_t a_row;
        typename Vec<T>::factor row(int r) const { return Vec<T>::row(a[r / 3] + (r % 3) * a_row); }
        typename Vec<T>::factor columns(int64_t offset) const { return Vec<T>::columns(b + offset); }
    };

    int count = 0;
    int k[most + Vec<T>::lanes];
    const T* a;
    int64_t a_row;

    // Returns whether there are at most `limit` terms.
    bool find(const T* from, int64_t row, int64_t depth, int64_t limit) {
        a = from, a_row = row;
        for (int64_t i = 0; i < depth; i += Vec<T>::lanes) {
            count += Vec<T>::list(k + count, from, row, rows, static_cast<int>(i), depth);
        }
        return count <= limit;
    }
    Step step(int i, const T* b) const {
        Step s;
        const int64_t at = k[i];
        LIIF_UNROLL
        for (int r = 0; r < rows; r += 3) s.a[r / 3] = a + r * a_row + at;
        s.b = b + at * (kVectors * Vec<T>::lanes);
        s.a_row = a_row;
        return s;
    }
};

// A group's rows x P panels.
template <typename T, typename C, int P>
void tile_of_terms(const Gemm<T, C>& g, const Terms<T>& terms, int64_t row, int64_t column) {
    using V = Vec<T>;
    constexpr int R = Terms<T>::rows, N = P * kVectors, L = V::lanes, NR = kVectors * L;
    typename V::type acc[R][N];
    LIIF_UNROLL
    for (int r = 0; r < R; ++r) {
        LIIF_UNROLL
        for (int v = 0; v < N; ++v) {
            acc[r][v] = g.init == Init::bias ? V::load(g.bias + column + v * L) : V::broadcast(0);
        }
    }
    const T* b = g.b + column / NR * g.b_panel;
    const int64_t b_panel = g.b_panel;
    const int count = terms.count;
    for (int i = 0; i < count; ++i) {
        const auto step = terms.step(i, b);
        typename V::factor w[N];
        LIIF_UNROLL
        for (int v = 0; v < N; ++v) w[v] = step.columns(v / kVectors * b_panel + v % kVectors * L * kDepth<T>);
        LIIF_UNROLL
        for (int r = 0; r < R; ++r) {
            const typename V::factor x = step.row(r);
            LIIF_UNROLL
            for (int v = 0; v < N; ++v) acc[r][v] = V::fma(x, w[v], acc[r][v]);
        }
    }
    LIIF_UNROLL
    for (int r = 0; r < R; ++r) {
        LIIF_UNROLL
        for (int v = 0; v < N; ++v) finish(g, g.c + (row + r) * g.c_row + column + v * L, acc[r][v]);
    }
}

template <typename T, typename C>
void gemm(const Gemm<T, C>& g);

// All columns of some rows, with all terms.
template <typename T, typename C>
void multiply_all(const Gemm<T, C>& g, int64_t first, int64_t end) {
    if (first == end) return;
    Gemm<T, C> part = g;
    part.skips = false;
    part.rows = end - first;
    part.a += first * g.a_row;
    part.c += first * g.c_row;
    if (g.mask != nullptr) part.mask += first * g.c_row;
    gemm(part);
}

// Whether a group of rows leaves out so few terms that its rows do better one by one. Judged by one of them.
template <typename T>
bool differ(const Terms<T>& terms, int64_t depth) {
    if constexpr (Vec<T>::row_vectors > 0) {
        int k[Terms<T>::most + Vec<T>::lanes], count = 0;
        for (int64_t i = 0; i < depth; i += Vec<T>::lanes) {
            count += Vec<T>::list(k + count, terms.a, terms.a_row, 1, static_cast<int>(i), depth);
        }
        return 3 * count < 2 * terms.count;
    } else {
        return false;
    }
}

template <typename T, typename C>
void multiply_other_rows(const Gemm<T, C>& g, int64_t first, int64_t end) {
    if constexpr (Vec<T>::row_vectors > 0) {
        multiply_row_terms(g, first, end);
    } else {
        multiply_all(g, first, end);
    }
}

// The rows of a register tile are multiplied in groups where every group has few enough terms.
template <typename T, typename C>
void multiply_terms(const Gemm<T, C>& g) {
    constexpr int R = Terms<T>::rows, M = Vec<T>::rows, G = M / R, P = Vec<T>::term_panels;
    constexpr int NR = kVectors * Vec<T>::lanes;
    static_assert(G * R == M);
    const int64_t depth = g.steps * kDepth<T>, limit = depth * Vec<T>::worthwhile / 100;
    int64_t done = 0;
    for (int64_t row = 0; row + M <= g.rows; row += M) {
        Terms<T> terms[G];
        bool few = true;
        for (int i = 0; few && i < G; ++i) {
            few = terms[i].find(g.a + (row + i * R) * g.a_row, g.a_row, depth, limit) && !differ(terms[i], depth);
        }
        if (!few) continue;
        multiply_other_rows(g, done, row);
        done = row + M;
        for (int i = 0; i < G; ++i) {
            int64_t column = 0;
            for (; column + (P - 1) * NR < g.columns; column += P * NR) {
                tile_of_terms<T, C, P>(g, terms[i], row + i * R, column);
            }
            if (column < g.columns) tile_of_terms<T, C, 1>(g, terms[i], row + i * R, column);
        }
    }
    multiply_other_rows(g, done, g.rows);
}

}  // namespace
}  // namespace liif
