// The micro-kernel for AVX-512: 12 x 32 floats or 12 x 16 doubles in 24 of 32 registers.
// max(0, x) in this order of operands gives NaN for a NaN, as PyTorch's ReLU does. The zero-masked form with all lanes
// on does the same as the plain one, without GCC 12's false warning about an undefined operand.
#include "attention.h"
#include "kernel.h"

#if defined(__x86_64__) || defined(_M_X64)

#include <immintrin.h>

#include "unroll.h"

namespace liif {
namespace {

template <typename T>
struct Vec;

template <>
struct Vec<float> {
    using type = __m512;
    static constexpr int lanes = 16, rows = 12;
    static constexpr const char* name = "avx512";
    static type load(const float* p) { return _mm512_loadu_ps(p); }
    static void store(float* p, type x) { _mm512_storeu_ps(p, x); }
    static type broadcast(float x) { return _mm512_set1_ps(x); }
    using factor = type;
    static factor columns(const float* b) { return load(b); }
    static factor row(const float* a) { return broadcast(*a); }
    static type fma(type a, type b, type c) { return _mm512_fmadd_ps(a, b, c); }
    static type add(type a, type b) { return _mm512_add_ps(a, b); }
    static type relu(type x) { return _mm512_maskz_max_ps(0xffff, _mm512_setzero_ps(), x); }
    static type pass_where(type x, type mask) {
        return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(mask, _mm512_setzero_ps(), _CMP_NLE_UQ), x);
    }
};

template <>
struct Vec<double> {
    using type = __m512d;
    static constexpr int lanes = 8, rows = 12;
    static constexpr const char* name = "avx512";
    static type load(const double* p) { return _mm512_loadu_pd(p); }
    static void store(double* p, type x) { _mm512_storeu_pd(p, x); }
    static type broadcast(double x) { return _mm512_set1_pd(x); }
    using factor = type;
    static factor columns(const double* b) { return load(b); }
    static factor row(const double* a) { return broadcast(*a); }
    static type fma(type a, type b, type c) { return _mm512_fmadd_pd(a, b, c); }
    static type add(type a, type b) { return _mm512_add_pd(a, b); }
    static type relu(type x) { return _mm512_maskz_max_pd(0xff, _mm512_setzero_pd(), x); }
    static type pass_where(type x, type mask) {
        return _mm512_maskz_mov_pd(_mm512_cmp_pd_mask(mask, _mm512_setzero_pd(), _CMP_NLE_UQ), x);
    }
};

#if defined(__GNUC__)
void transpose_block(const float* const* rows, float* out, int64_t out_row) {
    __m512 r[16], t[16];
    LIIF_UNROLL
    for (int i = 0; i < 16; ++i) r[i] = _mm512_loadu_ps(rows[i]);
    LIIF_UNROLL
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_maskz_unpacklo_ps(0xffff, r[i], r[i + 1]);
        t[i + 1] = _mm512_maskz_unpackhi_ps(0xffff, r[i], r[i + 1]);
    }
    LIIF_UNROLL
    for (int i = 0; i < 16; i += 4) {  // then r[i + k] holds column 4 l + k of rows i to i + 3 in its quarter l
        for (int k = 0; k < 2; ++k) {
            const __m512d a = _mm512_castps_pd(t[i + k]), b = _mm512_castps_pd(t[i + 2 + k]);
            r[i + 2 * k] = _mm512_castpd_ps(_mm512_maskz_unpacklo_pd(0xff, a, b));
            r[i + 2 * k + 1] = _mm512_castpd_ps(_mm512_maskz_unpackhi_pd(0xff, a, b));
        }
    }
    LIIF_UNROLL
    for (int k = 0; k < 4; ++k) {
        const __m512 even = _mm512_maskz_shuffle_f32x4(0xffff, r[k], r[4 + k], 0x88),
                     odd = _mm512_maskz_shuffle_f32x4(0xffff, r[k], r[4 + k], 0xdd);
        const __m512 even2 = _mm512_maskz_shuffle_f32x4(0xffff, r[8 + k], r[12 + k], 0x88);
        const __m512 odd2 = _mm512_maskz_shuffle_f32x4(0xffff, r[8 + k], r[12 + k], 0xdd);
        _mm512_storeu_ps(out + k * out_row, _mm512_maskz_shuffle_f32x4(0xffff, even, even2, 0x88));
        _mm512_storeu_ps(out + (4 + k) * out_row, _mm512_maskz_shuffle_f32x4(0xffff, odd, odd2, 0x88));
        _mm512_storeu_ps(out + (8 + k) * out_row, _mm512_maskz_shuffle_f32x4(0xffff, even, even2, 0xdd));
        _mm512_storeu_ps(out + (12 + k) * out_row, _mm512_maskz_shuffle_f32x4(0xffff, odd, odd2, 0xdd));
    }
}
#endif

}  // namespace
}  // namespace liif

#include "kernel_impl.h"
#if defined(__GNUC__)
#include "attention_backward_impl.h"
#endif

namespace liif {
template <>
const Kernel<float>* kernel_avx512<float>() {
    return &table<float>;
}
template <>
const Kernel<double>* kernel_avx512<double>() {
    return &table<double>;
}
const AttentionKernel* attention_avx512() {
#if defined(__GNUC__)
    return &attention_table;
#else
    return nullptr;
#endif
}
}  // namespace liif

#else

namespace liif {
template <>
const Kernel<float>* kernel_avx512<float>() {
    return nullptr;
}
template <>
const Kernel<double>* kernel_avx512<double>() {
    return nullptr;
}
const AttentionKernel* attention_avx512() {
    return nullptr;
}
}  // namespace liif

#endif
