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
    static constexpr bool skips = true;
    static constexpr int term_panels = 2;
    static constexpr int worthwhile = 84;
    static constexpr int row_vectors = 0;
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

// From the upper vector's pairs their half `upper`, from the lower's their half `lower`.
struct Picks {
    alignas(64) uint16_t of[2][2][32] = {};
    constexpr Picks() {
        for (int upper = 0; upper < 2; ++upper) {
            for (int lower = 0; lower < 2; ++lower) {
                for (int i = 0; i < 32; i += 2) {
                    of[upper][lower][i] = static_cast<uint16_t>(32 + i + lower);
                    of[upper][lower][i + 1] = static_cast<uint16_t>(i + upper);
                }
            }
        }
    }
};
constexpr Picks picks;

template <typename T>
struct Terms;

// vdpbf16ps adds the product of a pair's upper halves, rounds, and adds that of the lower halves. So the terms, in the
// order of the sums, are 1, 0, 3, 2, and so on. Those that are left form pairs of their own, of any two k: A's are
// copied, and B's are picked from two pairs, which loses to whole pairs where most terms are left.
template <>
struct Terms<Bf16> {
    static constexpr int most = 512;
    static constexpr int rows = 6;
    static constexpr int step_of_b = 2 * 2 * Vec<Bf16>::lanes;  // two vectors of pairs
    struct Pair {
        int upper, lower;      // where a packed panel of B has the pairs that hold them
        const uint16_t* pick;  // their places in vectors of these
    };
    struct Step {
        const Bf16 *a, *upper, *lower;
        __m512i pick;
        __m512i row(int r) const { return Vec<Bf16>::row(a + r * (most + 32)); }
        __m512i columns(int64_t offset) const {
            return _mm512_permutex2var_epi16(_mm512_loadu_si512(upper + offset), pick,
                                             _mm512_loadu_si512(lower + offset));
        }
    };

    int count = 0;  // of pairs
    alignas(64) Bf16 a[rows][most + 32];
    Pair pair[most / 2 + 1];

    bool find(const Bf16* from, int64_t row, int64_t depth, int64_t limit) {
        unsigned found[most / 32];
        int terms = 0;
        for (int64_t k = 0; k < depth; k += 32) {
            const __mmask32 held = depth - k < 32 ? (__mmask32(1) << (depth - k)) - 1 : ~__mmask32(0);
            __m512i any = _mm512_setzero_si512();
            LIIF_UNROLL
            for (int r = 0; r < rows; ++r) {
                any = _mm512_or_si512(any, _mm512_maskz_loadu_epi16(held, from + r * row + k));
            }
            found[k / 32] = _mm512_test_epi16_mask(any, _mm512_set1_epi16(0x7fff));
            terms += static_cast<int>(_mm_popcnt_u32(found[k / 32]));
        }
        if (terms > limit) return false;
        copy(from, row, depth, found);
        return true;
    }
    Step step(int i, const Bf16* b) const {
        const Pair p = pair[i];
        return {a[0] + 2 * i, b + p.upper, b + p.lower, _mm512_loadu_si512(p.pick)};
    }

   private:
    void copy(const Bf16* from, int64_t row, int64_t depth, const unsigned* found) {
        const __m512i lane = _mm512_set_epi32(14, 15, 12, 13, 10, 11, 8, 9, 6, 7, 4, 5, 2, 3, 0, 1);
        int term[most + 16], terms = 0;
        for (int64_t k = 0; k < depth; k += 16) {
            const unsigned bits = found[k / 32] >> k % 32 & 0xffff;
            const __mmask16 held = depth - k < 16 ? __mmask16((1u << (depth - k)) - 1) : __mmask16(0xffff);
            const __mmask16 left = __mmask16((bits & 0x5555) << 1 | (bits >> 1 & 0x5555));
            const __m512i at = _mm512_add_epi32(lane, _mm512_set1_epi32(static_cast<int>(k)));
            _mm512_storeu_si512(term + terms, _mm512_maskz_compress_epi32(left, at));
            LIIF_UNROLL
            for (int r = 0; r < rows; ++r) {
                const __m512i x = spread(turned(_mm256_maskz_loadu_epi16(held, from + r * row + k)));
                const __m512i y = _mm512_maskz_compress_epi32(left, x);
                _mm256_storeu_si256(reinterpret_cast<__m256i*>(a[r] + terms), _mm512_maskz_cvtepi32_epi16(0xffff, y));
            }
            terms += static_cast<int>(_mm_popcnt_u32(left));
        }
        while (terms == 0 || terms % 2 != 0) {  // one at least, which flushes a denormal bias as all terms would
            for (int r = 0; r < rows; ++r) a[r][terms] = {};
            term[terms++] = 0;
        }
        count = terms / 2;
        for (int r = 0; r < rows; ++r) {
            for (int i = 0; i < terms; i += 32) {
                _mm512_store_si512(a[r] + i, _mm512_maskz_rol_epi32(0xffff, _mm512_load_si512(a[r] + i), 16));
            }
        }
        for (int i = 0; i < count; ++i) {
            const int upper = term[2 * i], lower = term[2 * i + 1];
            pair[i] = {upper / 2 * step_of_b, lower / 2 * step_of_b, picks.of[upper % 2][lower % 2]};
        }
    }
    static __m256i turned(__m256i pairs) { return _mm256_maskz_rol_epi32(0xff, pairs, 16); }
};

}  // namespace
}  // namespace liif

#include "kernel_impl.h"
