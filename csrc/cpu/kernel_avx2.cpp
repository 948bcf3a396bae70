// The micro-kernel for AVX2 and FMA: 6 x 16 floats or 6 x 8 doubles in 12 of 16 registers.
// max(0, x) in this order of operands gives NaN for a NaN, as PyTorch's ReLU does.
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
    using type = __m256;
    static constexpr int lanes = 8, rows = 6;
    static constexpr const char* name = "avx2";
    static type load(const float* p) { return _mm256_loadu_ps(p); }
    static void store(float* p, type x) { _mm256_storeu_ps(p, x); }
    static type broadcast(float x) { return _mm256_set1_ps(x); }
    using factor = type;
    static factor columns(const float* b) { return load(b); }
    static factor row(const float* a) { return broadcast(*a); }
    static type fma(type a, type b, type c) { return _mm256_fmadd_ps(a, b, c); }
    static type add(type a, type b) { return _mm256_add_ps(a, b); }
    static type relu(type x) { return _mm256_max_ps(_mm256_setzero_ps(), x); }
    static type pass_where(type x, type mask) {
        return _mm256_and_ps(x, _mm256_cmp_ps(mask, _mm256_setzero_ps(), _CMP_NLE_UQ));
    }
};

template <>
struct Vec<double> {
    using type = __m256d;
    static constexpr int lanes = 4, rows = 6;
    static constexpr const char* name = "avx2";
    static type load(const double* p) { return _mm256_loadu_pd(p); }
    static void store(double* p, type x) { _mm256_storeu_pd(p, x); }
    static type broadcast(double x) { return _mm256_set1_pd(x); }
    using factor = type;
    static factor columns(const double* b) { return load(b); }
    static factor row(const double* a) { return broadcast(*a); }
    static type fma(type a, type b, type c) { return _mm256_fmadd_pd(a, b, c); }
    static type add(type a, type b) { return _mm256_add_pd(a, b); }
    static type relu(type x) { return _mm256_max_pd(_mm256_setzero_pd(), x); }
    static type pass_where(type x, type mask) {
        return _mm256_and_pd(x, _mm256_cmp_pd(mask, _mm256_setzero_pd(), _CMP_NLE_UQ));
    }
};

#if defined(__GNUC__)
void transpose_block(const float* const* rows, float* out, int64_t out_row) {
    __m256 r[8], t[8];
    LIIF_UNROLL
    for (int i = 0; i < 8; ++i) r[i] = _mm256_loadu_ps(rows[i]);
    LIIF_UNROLL
    for (int i = 0; i < 8; i += 2) {
        t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
        t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
    }
    LIIF_UNROLL
    for (int i = 0; i < 8; i += 4) {  // then r[i + k] holds column 4 l + k of rows i to i + 3 in its half l
        for (int k = 0; k < 2; ++k) {
            const __m256d a = _mm256_castps_pd(t[i + k]), b = _mm256_castps_pd(t[i + 2 + k]);
            r[i + 2 * k] = _mm256_castpd_ps(_mm256_unpacklo_pd(a, b));
            r[i + 2 * k + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(a, b));
        }
    }
    LIIF_UNROLL
    for (int k = 0; k < 4; ++k) {
        _mm256_storeu_ps(out + k * out_row, _mm256_permute2f128_ps(r[k], r[4 + k], 0x20));
        _mm256_storeu_ps(out + (4 + k) * out_row, _mm256_permute2f128_ps(r[k], r[4 + k], 0x31));
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
const Kernel<float>* kernel_avx2<float>() {
    return &table<float>;
}
template <>
const Kernel<double>* kernel_avx2<double>() {
    return &table<double>;
}
const AttentionKernel* attention_avx2() {
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
const Kernel<float>* kernel_avx2<float>() {
    return nullptr;
}
template <>
const Kernel<double>* kernel_avx2<double>() {
    return nullptr;
}
const AttentionKernel* attention_avx2() {
    return nullptr;
}
}  // namespace liif

#endif
