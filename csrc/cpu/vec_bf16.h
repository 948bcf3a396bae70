// kernel_impl.h over vectors of AVX512-BF16: sums in float, stored as float or rounded to bfloat16.
#pragma once

#include <immintrin.h>

#include "kernel.h"
#include "unroll.h"

namespace liif {
namespace {

// Zero-masked with all lanes on, as in kernel_avx512.cpp.
__m512i spread(__m256i bits) {
    return _mm512_maskz_cvtepu16_epi32(0xffff, bits);
}
__m512i to_upper_half(__m512i x) {
    return _mm512_maskz_slli_epi32(0xffff, x, 16);
}

template <typename T>
struct Vec;

template <>
struct Vec<Bf16> {
    using type = __m512;
    static constexpr int lanes = 16, rows = 12;
    static constexpr const char* name = "avx512bf16";
    static type load(const float* p) { return _mm512_loadu_ps(p); }
    static type load(const Bf16* p) {
        return _mm512_castsi512_ps(to_upper_half(spread(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))));
    }
    static void store(float* p, type x) { _mm512_storeu_ps(p, x); }
    static void store(Bf16* p, type x) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), (__m256i)_mm512_cvtneps_pbh(x));
    }
    static type broadcast(float x) { return _mm512_set1_ps(x); }
    static type add(type a, type b) { return _mm512_add_ps(a, b); }
    static type relu(type x) { return _mm512_maskz_max_ps(0xffff, _mm512_setzero_ps(), x); }
    static type pass_where(type x, type mask) {
        return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(mask, _mm512_setzero_ps(), _CMP_NLE_UQ), x);
    }

    using factor = __m512i;  // pairs
    static factor columns(const Bf16* b) { return _mm512_loadu_si512(b); }
    static factor row(const Bf16* a) {
        int pair;
        __builtin_memcpy(&pair, a, sizeof(pair));
        return _mm512_set1_epi32(pair);
    }
    static type fma(factor a, factor b, type c) { return _mm512_dpbf16_ps(c, (__m512bh)a, (__m512bh)b); }
    // Of pairs; quarters of vectors are those of every fourth column.
    static constexpr bool transposes = true;
    static constexpr int turned_rows = 60;
    template <typename From>
    static void turn4(factor (&to)[4], const From& from) {
        const auto four = [&](int c) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from(c))); };
        __m512i x[4];
        LIIF_UNROLL
        for (int i = 0; i < 4; ++i) {
            x[i] = _mm512_castsi128_si512(four(i));
            x[i] = _mm512_maskz_inserti32x4(0xffff, x[i], four(4 + i), 1);
            x[i] = _mm512_maskz_inserti32x4(0xffff, x[i], four(8 + i), 2);
            x[i] = _mm512_maskz_inserti32x4(0xffff, x[i], four(12 + i), 3);
        }
        LIIF_UNROLL
        for (int i = 0; i < 4; i += 2) {
            const __m512i a = i == 0 ? _mm512_maskz_unpacklo_epi32(0xffff, x[0], x[1])
                                     : _mm512_maskz_unpackhi_epi32(0xffff, x[0], x[1]);
            const __m512i b = i == 0 ? _mm512_maskz_unpacklo_epi32(0xffff, x[2], x[3])
                                     : _mm512_maskz_unpackhi_epi32(0xffff, x[2], x[3]);
            to[i] = _mm512_maskz_unpacklo_epi64(0xff, a, b);
            to[i + 1] = _mm512_maskz_unpackhi_epi64(0xff, a, b);
        }
    }
};

}  // namespace
}  // namespace liif

#include "kernel_impl.h"
