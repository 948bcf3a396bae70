// Products that leave out terms. A ReLU leaves most activations at 0, and rows next to each other, which read the same
// latent, mostly in the same channels. So the rows of half a register tile are multiplied over the k in which one of
// them is not 0. A term of 0 changes no sum of products with finite weights, so the sums are those of all terms, in the
// same order and with the same bits. Included by kernel_impl.h.
#pragma once

namespace liif {
namespace {

// The k of some rows of A with a factor other than 0. Vec<T>::list(to, a, a_row, rows, k, depth) appends those of
// k <= i < k + lanes and i < depth to a list, and returns their number; it may write `lanes` elements.
template <typename T>
struct Terms {
    static constexpr int most = 512;
    static constexpr int rows = Vec<T>::rows / 2;
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

    // Returns the number of terms, or -1 if there are more than `limit`.
    int find(const T* from, int64_t row, int64_t depth, int64_t limit) {
        a = from, a_row = row;
        for (int64_t i = 0; i < depth; i += Vec<T>::lanes) {
            count += Vec<T>::list(k + count, from, row, rows, static_cast<int>(i), depth);
        }
        return count <= limit ? count : -1;
    }
    Step step(int i, const T* b, int64_t b_step) const {
        Step s;
        const int64_t at = k[i];
        LIIF_UNROLL
        for (int r = 0; r < rows; r += 3) s.a[r / 3] = a + r * a_row + at;
        s.b = b + at * b_step;
        s.a_row = a_row;
        return s;
    }
};

// The rows of the terms x P panels.
template <typename T, typename C, int P>
void tile_of_terms(const Gemm<T, C>& g, const Terms<T>& terms, int64_t row, int64_t column) {
    using V = Vec<T>;
    constexpr int R = Terms<T>::rows, N = P * kVectors, L = V::lanes, NR = kVectors * L;
    typename V::type acc[R][N];
    LIIF_UNROLL
    for (int r = 0; r < R; ++r) {
        LIIF_UNROLL
        for (int v = 0; v < N; ++v) acc[r][v] = V::load(g.bias + column + v * L);
    }
    const T* b = g.b + column / NR * g.b_panel;
    const int64_t b_panel = g.b_panel, b_step = g.b_step;
    const int count = terms.count;
    for (int i = 0; i < count; ++i) {
        const auto step = terms.step(i, b, b_step);
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

// A whole register tile of rows is multiplied by its terms, where they are few enough, in two halves.
template <typename T, typename C>
void multiply_terms(const Gemm<T, C>& g) {
    constexpr int R = Terms<T>::rows, NR = kVectors * Vec<T>::lanes;
    const int64_t depth = g.steps * kDepth<T>, limit = depth * Vec<T>::worthwhile / 100;
    int64_t done = 0;
    for (int64_t row = 0; row + 2 * R <= g.rows; row += 2 * R) {
        Terms<T> terms[2];
        const int first = terms[0].find(g.a + row * g.a_row, g.a_row, depth, limit);
        if (first < 0 || terms[1].find(g.a + (row + R) * g.a_row, g.a_row, depth, limit) < 0) continue;
        multiply_all(g, done, row);
        done = row + 2 * R;
        for (int half = 0; half < 2; ++half) {
            int64_t column = 0;
            for (; column + NR < g.columns; column += 2 * NR) {
                tile_of_terms<T, C, 2>(g, terms[half], row + half * R, column);
            }
            if (column < g.columns) tile_of_terms<T, C, 1>(g, terms[half], row + half * R, column);
        }
    }
    multiply_all(g, done, g.rows);
}

}  // namespace
}  // namespace liif
