// The micro-kernel for AVX-512: 12 x 32 floats or 12 x 16 doubles in 24 of 32 registers.
// max(0, x) in this order of operands gives NaN for a NaN, as PyTorch's ReLU does. The zero-masked form with all lanes
// on does the same as the plain one, without GCC 12's false warning about an undefined operand.
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
    static type mul(type a, type b) { return _mm512_mul_ps(a, b); }
    static type inverse_root(type x) { return _mm512_div_ps(broadcast(1), _mm512_maskz_sqrt_ps(0xffff, x)); }
    static type relu(type x) { return _mm512_maskz_max_ps(0xffff, _mm512_setzero_ps(), x); }
    static type pass_where(type x, type mask) {
        return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(mask, _mm512_setzero_ps(), _CMP_NLE_UQ), x);
    }
    static constexpr bool skips = true;
    static constexpr int term_panels = 2;
    static constexpr int worthwhile = 88;
    static constexpr int row_vectors = 4, rows_worthwhile = 75;
    static int compress(float* element, unsigned char* step, const float* a, int k, int64_t steps) {
        const auto lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
        const __mmask16 held = steps - k < lanes ? __mmask16((1u << (steps - k)) - 1) : __mmask16(0xffff);
        const type x = _mm512_maskz_loadu_ps(held, a + k);
        const __mmask16 found = _mm512_cmp_ps_mask(x, broadcast(0), _CMP_NEQ_UQ);
        store(element, _mm512_maskz_compress_ps(found, x));
        const __m512i at = _mm512_maskz_compress_epi32(found, _mm512_add_epi32(lane, _mm512_set1_epi32(k)));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(step), _mm512_maskz_cvtepi32_epi8(0xffff, at));
        return static_cast<int>(_mm_popcnt_u32(found));
    }
    static void row4(type (&x)[4], const float* a) {
        const type all = _mm512_maskz_broadcast_f32x4(0xffff, _mm_loadu_ps(a));
        x[0] = _mm512_maskz_permute_ps(0xffff, all, 0x00);
        x[1] = _mm512_maskz_permute_ps(0xffff, all, 0x55);
        x[2] = _mm512_maskz_permute_ps(0xffff, all, 0xaa);
        x[3] = _mm512_maskz_permute_ps(0xffff, all, 0xff);
    }
    static int list(int* to, const float* a, int64_t a_row, int rows, int k, int64_t depth) {
        const auto lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
        const __mmask16 held = depth - k < lanes ? __mmask16((1u << (depth - k)) - 1) : __mmask16(0xffff);
        __mmask16 found = 0;
        LIIF_UNROLL
        for (int r = 0; r < rows; ++r) {
            found |= _mm512_cmp_ps_mask(_mm512_maskz_loadu_ps(held, a + r * a_row + k), broadcast(0), _CMP_NEQ_UQ);
        }
        _mm512_storeu_si512(to, _mm512_maskz_compress_epi32(found, _mm512_add_epi32(lane, _mm512_set1_epi32(k))));
        return static_cast<int>(_mm_popcnt_u32(found));
    }
    // Quarters of vectors are those of every fourth column.
    static constexpr bool transposes = true;
    static constexpr int turned_rows = 60;
    template <typename From>
    static void turn4(type (&to)[4], const From& from) {
        __m512 x[4];
        LIIF_UNROLL
        for (int i = 0; i < 4; ++i) {
            x[i] = _mm512_castps128_ps512(_mm_loadu_ps(from(i)));
            x[i] = _mm512_maskz_insertf32x4(0xffff, x[i], _mm_loadu_ps(from(4 + i)), 1);
            x[i] = _mm512_maskz_insertf32x4(0xffff, x[i], _mm_loadu_ps(from(8 + i)), 2);
            x[i] = _mm512_maskz_insertf32x4(0xffff, x[i], _mm_loadu_ps(from(12 + i)), 3);
        }
        LIIF_UNROLL
        for (int i = 0; i < 4; i += 2) {
            const __m512 one =
                i == 0 ? _mm512_maskz_unpacklo_ps(0xffff, x[0], x[1]) : _mm512_maskz_unpackhi_ps(0xffff, x[0], x[1]);
            const __m512 two =
                i == 0 ? _mm512_maskz_unpacklo_ps(0xffff, x[2], x[3]) : _mm512_maskz_unpackhi_ps(0xffff, x[2], x[3]);
            const __m512d a = _mm512_castps_pd(one), b = _mm512_castps_pd(two);
            to[i] = _mm512_castpd_ps(_mm512_maskz_unpacklo_pd(0xff, a, b));
            to[i + 1] = _mm512_castpd_ps(_mm512_maskz_unpackhi_pd(0xff, a, b));
        }
    }
};

template <>
struct Vec<double> {
    using type = __m512d;
    static constexpr int lanes = 8, rows = 12;
    static constexpr bool skips = true;
    static constexpr int term_panels = 2;
    static constexpr int worthwhile = 88;
    static constexpr int row_vectors = 4, rows_worthwhile = 75;
    static int compress(double* element, unsigned char* step, const double* a, int k, int64_t steps) {
        const auto lane = _mm256_set_epi32(7, 6, 5, 4, 3, 2, 1, 0);
        const __mmask8 held = steps - k < lanes ? __mmask8((1u << (steps - k)) - 1) : __mmask8(0xff);
        const type x = _mm512_maskz_loadu_pd(held, a + k);
        const __mmask8 found = _mm512_cmp_pd_mask(x, broadcast(0), _CMP_NEQ_UQ);
        store(element, _mm512_maskz_compress_pd(found, x));
        const __m256i at = _mm256_maskz_compress_epi32(found, _mm256_add_epi32(lane, _mm256_set1_epi32(k)));
        _mm_storel_epi64(reinterpret_cast<__m128i*>(step), _mm256_maskz_cvtepi32_epi8(0xff, at));
        return static_cast<int>(_mm_popcnt_u32(found));
    }
    static void row4(type (&x)[4], const double* a) {
        LIIF_UNROLL
        for (int i = 0; i < 4; ++i) x[i] = broadcast(a[i]);
    }
    static int list(int* to, const double* a, int64_t a_row, int rows, int k, int64_t depth) {
        const auto lane = _mm256_set_epi32(7, 6, 5, 4, 3, 2, 1, 0);
        const __mmask8 held = depth - k < lanes ? __mmask8((1u << (depth - k)) - 1) : __mmask8(0xff);
        __mmask8 found = 0;
        LIIF_UNROLL
        for (int r = 0; r < rows; ++r) {
            found |= _mm512_cmp_pd_mask(_mm512_maskz_loadu_pd(held, a + r * a_row + k), broadcast(0), _CMP_NEQ_UQ);
        }
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to),
                            _mm256_maskz_compress_epi32(found, _mm256_add_epi32(lane, _mm256_set1_epi32(k))));
        return static_cast<int>(_mm_popcnt_u32(found));
    }
    static constexpr bool transposes = false;
    static constexpr int turned_rows = 0;
    static constexpr const char* name = "avx512";
    static type load(const double* p) { return _mm512_loadu_pd(p); }
    static void store(double* p, type x) { _mm512_storeu_pd(p, x); }
    static type broadcast(double x) { return _mm512_set1_pd(x); }
    using factor = type;
    static factor columns(const double* b) { return load(b); }
    static factor row(const double* a) { return broadcast(*a); }
    static type fma(type a, type b, type c) { return _mm512_fmadd_pd(a, b, c); }
    static type add(type a, type b) { return _mm512_add_pd(a, b); }
    static type mul(type a, type b) { return _mm512_mul_pd(a, b); }
    static type inverse_root(type x) { return _mm512_div_pd(broadcast(1), _mm512_maskz_sqrt_pd(0xff, x)); }
    static type relu(type x) { return _mm512_maskz_max_pd(0xff, _mm512_setzero_pd(), x); }
    static type pass_where(type x, type mask) {
        return _mm512_maskz_mov_pd(_mm512_cmp_pd_mask(mask, _mm512_setzero_pd(), _CMP_NLE_UQ), x);
    }
};

}  // namespace
}  // namespace liif

#include "kernel_impl.h"

namespace liif {
template <>
const Kernel<float>* kernel_avx512<float>() {
    return &table<float>;
}
template <>
const Kernel<double>* kernel_avx512<double>() {
    return &table<double>;
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
}  // namespace liif

#endif
