// The micro-kernel for AVX2 and FMA: 6 x 16 floats or 6 x 8 doubles in 12 of 16 registers.
// max(0, x) in this order of operands gives NaN for a NaN, as PyTorch's ReLU does.
#include "kernel.h"

#if defined(__x86_64__) || defined(_M_X64)

#include <immintrin.h>

#include "unroll.h"

namespace liif {
namespace {

template <typename T>
struct Vec;

// The places of the ones of each byte, and their number.
struct Ones {
    unsigned char of[256][8] = {}, count[256] = {};
    constexpr Ones() {
        for (int byte = 0; byte < 256; ++byte) {
            for (int bit = 0; bit < 8; ++bit) {
                if (byte >> bit & 1) of[byte][count[byte]++] = static_cast<unsigned char>(bit);
            }
        }
    }
};
constexpr Ones ones;

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
    static type mul(type a, type b) { return _mm256_mul_ps(a, b); }
    static type inverse_root(type x) { return _mm256_div_ps(broadcast(1), _mm256_sqrt_ps(x)); }
    static type relu(type x) { return _mm256_max_ps(_mm256_setzero_ps(), x); }
    static type pass_where(type x, type mask) {
        return _mm256_and_ps(x, _mm256_cmp_ps(mask, _mm256_setzero_ps(), _CMP_NLE_UQ));
    }
    // Halves of vectors are those of every fourth column.
    static constexpr bool skips = true;
    static constexpr int term_panels = 1;
    static constexpr int worthwhile = 88;
    static constexpr int row_vectors = 0;
    static int list(int* to, const float* a, int64_t a_row, int rows, int k, int64_t depth) {
        __m256 found = _mm256_setzero_ps();
        if (depth - k < lanes) {
            int count = 0;
            for (; k < depth; ++k) {
                bool any = false;
                for (int r = 0; r < rows; ++r) any |= a[r * a_row + k] != 0;
                to[count] = k;
                count += any;
            }
            return count;
        }
        LIIF_UNROLL
        for (int r = 0; r < rows; ++r) {
            found = _mm256_or_ps(found, _mm256_cmp_ps(load(a + r * a_row + k), _mm256_setzero_ps(), _CMP_NEQ_UQ));
        }
        const unsigned char* lane = ones.of[_mm256_movemask_ps(found)];
        const __m256i at = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(lane)));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_add_epi32(at, _mm256_set1_epi32(k)));
        return ones.count[_mm256_movemask_ps(found)];
    }
    static constexpr bool transposes = true;
    static constexpr int turned_rows = 6;
    template <typename From>
    static void turn4(type (&to)[4], const From& from) {
        __m256 x[4];
        LIIF_UNROLL
        for (int i = 0; i < 4; ++i) {
            x[i] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(from(i))), _mm_loadu_ps(from(4 + i)), 1);
        }
        LIIF_UNROLL
        for (int i = 0; i < 4; i += 2) {
            const __m256 one = i == 0 ? _mm256_unpacklo_ps(x[0], x[1]) : _mm256_unpackhi_ps(x[0], x[1]);
            const __m256 two = i == 0 ? _mm256_unpacklo_ps(x[2], x[3]) : _mm256_unpackhi_ps(x[2], x[3]);
            const __m256d a = _mm256_castps_pd(one), b = _mm256_castps_pd(two);
            to[i] = _mm256_castpd_ps(_mm256_unpacklo_pd(a, b));
            to[i + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(a, b));
        }
    }
};

template <>
struct Vec<double> {
    using type = __m256d;
    static constexpr int lanes = 4, rows = 6;
    static constexpr bool skips = false;
    static constexpr bool transposes = false;
    static constexpr int turned_rows = 0;
    static constexpr const char* name = "avx2";
    static type load(const double* p) { return _mm256_loadu_pd(p); }
    static void store(double* p, type x) { _mm256_storeu_pd(p, x); }
    static type broadcast(double x) { return _mm256_set1_pd(x); }
    using factor = type;
    static factor columns(const double* b) { return load(b); }
    static factor row(const double* a) { return broadcast(*a); }
    static type fma(type a, type b, type c) { return _mm256_fmadd_pd(a, b, c); }
    static type add(type a, type b) { return _mm256_add_pd(a, b); }
    static type mul(type a, type b) { return _mm256_mul_pd(a, b); }
    static type inverse_root(type x) { return _mm256_div_pd(broadcast(1), _mm256_sqrt_pd(x)); }
    static type relu(type x) { return _mm256_max_pd(_mm256_setzero_pd(), x); }
    static type pass_where(type x, type mask) {
        return _mm256_and_pd(x, _mm256_cmp_pd(mask, _mm256_setzero_pd(), _CMP_NLE_UQ));
    }
};

}  // namespace
}  // namespace liif

#include "kernel_impl.h"

namespace liif {
template <>
const Kernel<float>* kernel_avx2<float>() {
    return &table<float>;
}
template <>
const Kernel<double>* kernel_avx2<double>() {
    return &table<double>;
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
}  // namespace liif

#endif
