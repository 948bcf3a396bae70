// The micro-kernel for AVX512-BF16: 12 x 32 sums in float of products of bfloat16 pairs, in 24 of 32 registers.
// vdpbf16ps treats denormal numbers as zero and rounds each sum to nearest; it has no other mode.
#include "kernel.h"

#if defined(__x86_64__) || defined(_M_X64)

#include "vec_bf16.h"

namespace liif {
namespace {

using V = Vec<Bf16>;

// Whole vectors of memory, without access behind its end.
template <typename F>
void in_vectors(int64_t width, const F& f) {
    int64_t n = 0;
    for (; n + V::lanes <= width; n += V::lanes) f(n, __mmask16(0xffff));
    if (n < width) f(n, __mmask16((1u << (width - n)) - 1));
}

V::type load_masked(const Bf16* p, __mmask16 mask) {
    return _mm512_castsi512_ps(to_upper_half(spread(_mm256_maskz_loadu_epi16(mask, p))));
}

void store_masked(Bf16* p, __mmask16 mask, V::type x) {
    _mm256_mask_storeu_epi16(p, mask, (__m256i)_mm512_cvtneps_pbh(x));
}

// The number of terms, 2 or 4, is a constant, so that their factors stay in registers.
template <int Terms>
void affine_of(Bf16* h, const Bf16* p, const float* a, const float* u, int64_t u_row, int64_t width, bool relu) {
    V::type factor[Terms];
    LIIF_UNROLL
    for (int j = 0; j < Terms; ++j) factor[j] = _mm512_set1_ps(a[j]);
    in_vectors(width, [&](int64_t n, __mmask16 mask) {
        V::type x = load_masked(p + n, mask);
        LIIF_UNROLL
        for (int j = 0; j < Terms; ++j) {
            x = _mm512_fmadd_ps(factor[j], _mm512_maskz_loadu_ps(mask, u + j * u_row + n), x);
        }
        store_masked(h + n, mask, relu ? V::relu(x) : x);
    });
}

void affine(Bf16* h, const Bf16* p, const float* a, int terms, const float* u, int64_t u_row, int64_t width,
            bool relu) {
    (terms == 2 ? affine_of<2> : affine_of<4>)(h, p, a, u, u_row, width, relu);
}

void widen(float* to, const Bf16* from, int64_t width) {
    in_vectors(width,
               [=](int64_t n, __mmask16 mask) { _mm512_mask_storeu_ps(to + n, mask, load_masked(from + n, mask)); });
}

void narrow(Bf16* to, const float* from, int64_t width) {
    in_vectors(width,
               [=](int64_t n, __mmask16 mask) { store_masked(to + n, mask, _mm512_maskz_loadu_ps(mask, from + n)); });
}

void pair_rows(Bf16* to, const Bf16* x, int64_t x_row, int64_t rows, int64_t width) {
    const auto row = [x](int64_t at, __mmask16 mask) { return spread(_mm256_maskz_loadu_epi16(mask, x + at)); };
    for (int64_t r = 0; r < rows; r += 2) {
        in_vectors(width, [=](int64_t n, __mmask16 mask) {
            const __m512i low = row(r * x_row + n, mask);
            const __m512i high = row((r + 1) * x_row + n, r + 1 < rows ? mask : __mmask16(0));
            _mm512_mask_storeu_epi32(to + (r / 2 * width + n) * 2, mask, _mm512_or_si512(low, to_upper_half(high)));
        });
    }
}

const Kernel<Bf16> bfloat16_table = {V::name,
                                     kVectors * V::lanes,
                                     V::turned_rows,
                                     Terms<Bf16>::most,
                                     0,
                                     gemm<Bf16, Bf16>,
                                     gemm<Bf16, float>,
                                     affine,
                                     sum_rows<Bf16>,
                                     nullptr,
                                     nullptr,
                                     nullptr,
                                     nullptr,
                                     nullptr,
                                     nullptr,
                                     widen,
                                     narrow,
                                     pair_rows,
                                     nullptr,
                                     nullptr};

}  // namespace

const Kernel<Bf16>* kernel_avx512bf16() {
    return &bfloat16_table;
}

}  // namespace liif

#else

namespace liif {

const Kernel<Bf16>* kernel_avx512bf16() {
    return nullptr;
}

}  // namespace liif

#endif
