// Products that leave out the terms of one row of A at a time. They leave out more than terms_impl.h where rows next to
// each other are 0 at different k, but read B for each row: some columns and steps of it, which stay in the first-level
// cache. The sums have the bits of those of all terms. Included by terms_impl.h. Vec<T> has row_vectors, the vectors of
// such columns, 0 if it does not gain by this, and rows_worthwhile, a percentage: with more terms it is faster to
// multiply all.
#pragma once

namespace liif {
namespace {

template <typename T, typename C>
void multiply_all(const Gemm<T, C>& g, int64_t first, int64_t end);

// The terms of some rows for some steps: the elements of A that are not 0, and their steps, padded with zeros to a
// multiple of `unroll`. Vec<T>::compress(element, step, a, k, steps) copies those of k <= i < k + lanes and i < steps,
// and returns their number; it may write `lanes` of each. Vec<T>::row4(x, element) is `row` for four elements.
template <typename T>
struct RowTerms {
    static constexpr int most_rows = 96, most_steps = 96, unroll = 4;
    T element[most_rows][most_steps + 16];
    unsigned char step[most_rows][most_steps + 16];
    int count[most_rows];

    // Returns the number of terms.
    int find(int64_t r, const T* a, int64_t steps) {
        int found = 0;
        for (int64_t k = 0; k < steps; k += Vec<T>::lanes) {
            found += Vec<T>::compress(element[r] + found, step[r] + found, a, static_cast<int>(k), steps);
        }
        count[r] = found;
        for (; count[r] % unroll != 0; ++count[r]) element[r][count[r]] = 0, step[r][count[r]] = 0;
        return found;
    }
};

// The rows from `first` on whose terms are given, x N vectors of columns. The sums of several blocks of steps are one
// chain, which waits in C.
template <typename T, typename C, int N>
void tiles_of_rows(const Gemm<T, C>& g, const RowTerms<T>& terms, int64_t first, int64_t rows, int64_t begin,
                   int64_t column) {
    using V = Vec<T>;
    constexpr int L = V::lanes, unroll = RowTerms<T>::unroll;
    const bool last = begin + RowTerms<T>::most_steps >= g.steps;
    const int64_t b_panel = g.b_panel, b_step = g.b_step;
    const T* b = g.b + column / (kVectors * L) * b_panel + begin * b_step;
    for (int64_t r = 0; r < rows; ++r) {
        C* c = g.c + (first + r) * g.c_row + column;
        typename V::type acc[N];
        LIIF_UNROLL
        for (int v = 0; v < N; ++v) {
            if (begin > 0) {
                acc[v] = V::load(c + v * L);
            } else {
                acc[v] = g.init == Init::bias ? V::load(g.bias + column + v * L) : V::broadcast(0);
                LIIF_PREFETCH(c + v * L);
            }
        }
        const T* element = terms.element[r];
        const unsigned char* step = terms.step[r];
        const int count = terms.count[r];
        for (int i = 0; i < count; i += unroll) {
            typename V::factor x[unroll];
            V::row4(x, element + i);
            LIIF_UNROLL
            for (int j = 0; j < unroll; ++j) {
                const T* at = b + step[i + j] * b_step;
                LIIF_UNROLL
                for (int v = 0; v < N; ++v) {
                    acc[v] = V::fma(x[j], V::columns(at + v / kVectors * b_panel + v % kVectors * L), acc[v]);
                }
            }
        }
        LIIF_UNROLL
        for (int v = 0; v < N; ++v) {
            if (last) {
                finish(g, c + v * L, acc[v]);
            } else {
                V::store(c + v * L, acc[v]);
            }
        }
    }
}

// The rows [first, end), by their terms if the first steps have few enough.
template <typename T, typename C>
void multiply_row_terms(const Gemm<T, C>& g, int64_t first, int64_t end) {
    using Found = RowTerms<T>;
    constexpr int N = Vec<T>::row_vectors, L = Vec<T>::lanes;
    Found terms;
    int64_t rows = 0;
    for (; first < end; first += rows) {
        rows = end - first < Found::most_rows ? end - first : Found::most_rows;
        for (int64_t begin = 0; begin < g.steps; begin += Found::most_steps) {
            const int64_t steps = g.steps - begin < Found::most_steps ? g.steps - begin : Found::most_steps;
            int64_t total = 0;
            for (int64_t r = 0; r < rows; ++r) total += terms.find(r, g.a + (first + r) * g.a_row + begin, steps);
            if (begin == 0 && total * 100 > rows * steps * Vec<T>::rows_worthwhile) {
                multiply_all(g, first, first + rows);
                break;
            }
            int64_t column = 0;
            for (; column + N * L <= g.columns; column += N * L) {
                tiles_of_rows<T, C, N>(g, terms, first, rows, begin, column);
            }
            for (; column < g.columns; column += kVectors * L) {
                tiles_of_rows<T, C, kVectors>(g, terms, first, rows, begin, column);
            }
        }
    }
}

// Whether B is finite in the columns that C has: 0 times infinity or NaN is NaN.
template <typename T, typename C>
bool finite_columns(const Gemm<T, C>& g) {
    using V = Vec<T>;
    constexpr int L = V::lanes;
    static_assert(kVectors == 2);
    typename V::type sum[kVectors] = {V::broadcast(0), V::broadcast(0)};
    int64_t n = 0;
    const T* b = g.b;
    for (; n + kVectors * L <= g.columns; n += kVectors * L, b += g.b_panel) {
        for (int64_t s = 0; s < g.steps; ++s) {
            LIIF_UNROLL
            for (int v = 0; v < kVectors; ++v) {
                sum[v] = V::fma(V::broadcast(0), V::load(b + s * g.b_step + v * L), sum[v]);
            }
        }
    }
    T all[L], rest(0);
    for (int64_t s = 0; s < g.steps; ++s) {
        for (int64_t i = 0; n + i < g.columns; ++i) rest += T(0) * b[s * g.b_step + i];
    }
    V::store(all, V::add(sum[0], sum[1]));
    for (int i = 0; i < L; ++i) rest += all[i];
    return rest == T(0);
}

}  // namespace
}  // namespace liif
