// The layers of modulated_decode between products; kernel.h says what is computed. Vectorised by hand, because the
// latents' rows, which differ from row to row, could overlap the others for all that a compiler knows.
#pragma once

#include "kernel.h"

namespace liif {
namespace {

template <typename T>
void modulate(T* h, const T* x, int64_t row, const T* const* latent, int64_t scale, int64_t shift, int64_t rows,
              int64_t width) {
    using V = Vec<T>;
    const typename V::type one = V::broadcast(T(1));
    for (int64_t r = 0; r < rows; ++r, h += row, x += row) {
        const T *s = latent[r] + scale, *t = latent[r] + shift;
        int64_t n = 0;
        for (; n + V::lanes <= width; n += V::lanes) {
            const typename V::type y = V::fma(V::load(x + n), V::add(V::load(s + n), one), V::load(t + n));
            V::store(h + n, V::relu(y));
        }
        for (; n < width; ++n) {
            const T y = x[n] * (s[n] + T(1)) + t[n];
            h[n] = y < T(0) ? T(0) : y;  // in this order a NaN passes
        }
    }
}

template <typename T>
void modulate_back(T* g, T* to, int64_t to_row, const T* x, int64_t row, const T* const* latent, int64_t scale,
                   int64_t shift, int64_t rows, int64_t width) {
    using V = Vec<T>;
    const typename V::type one = V::broadcast(T(1));
    for (int64_t r = 0; r < rows; ++r, g += row, x += row, to += to_row) {
        const T *s = latent[r] + scale, *t = latent[r] + shift;
        int64_t n = 0;
        for (; n + V::lanes <= width; n += V::lanes) {
            const typename V::type factor = V::add(V::load(s + n), one), product = V::load(x + n);
            const typename V::type passed = V::pass_where(V::load(g + n), V::fma(product, factor, V::load(t + n)));
            V::store(to + scale + n, V::mul(passed, product));
            V::store(to + shift + n, passed);
            V::store(g + n, V::mul(passed, factor));
        }
        for (; n < width; ++n) {
            const T factor = s[n] + T(1), y = x[n] * factor + t[n], passed = y <= T(0) ? T(0) : g[n];
            to[scale + n] = passed * x[n];
            to[shift + n] = passed;
            g[n] = passed * factor;
        }
    }
}

}  // namespace
}  // namespace liif
