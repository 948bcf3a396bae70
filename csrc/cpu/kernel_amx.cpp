// The micro-kernel for AMX-BF16: 32 x 32 sums of products of bfloat16 pairs, in four tile registers. A tile register
// holds 16 rows of 64 bytes, which are 16 sums or pairs each. 16 rows of A, and 16 steps of a packed panel of B, are
// tiles as they lie in memory, so all else is the same as in kernel_avx512bf16.cpp. Rows, columns and steps that fill
// no tile are copied between zeros, so every tile has one shape, and a row's result never depends on its neighbours.
// tdpbf16ps treats denormal numbers as zero and rounds to nearest. It adds the even and the odd products of its 16
// steps apart, and both to the sum.
#include "kernel.h"

#if defined(__AMX_BF16__) && defined(__GNUC__)

#include "vec_bf16.h"

namespace liif {
namespace {

using V = Vec<Bf16>;

constexpr int kSide = 16;          // rows of a tile, and sums or pairs in each
constexpr int kBlock = 2 * kSide;  // rows and columns of sums in the registers; elements in a row of copied pairs
constexpr int kHeld = 8;           // copies of A's rows kept for all panels, so many times kSide steps
static_assert(kBlock == kVectors * V::lanes);

// What ldtilecfg reads: palette 1, eight tiles of 16 rows and 64 bytes.
struct alignas(64) Shapes {
    uint8_t palette, start_row, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
};
constexpr Shapes kShapes = {1, 0, {}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};

struct alignas(64) Copies {
    Bf16 a[kHeld][kBlock * kBlock], b[kSide * 2 * kBlock];
    float sums[kBlock * kBlock];
};

__mmask16 first(int64_t count) {
    return count < kSide ? __mmask16((1u << count) - 1) : __mmask16(0xffff);
}

// Turns a square of pairs around its diagonal, by exchanges between halves, then quarters, and so on.
LIIF_INLINE void turn(__m512i* x) {
    const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    LIIF_UNROLL
    for (int half = 1; half < kSide; half *= 2) {
        const __m512i other = _mm512_xor_si512(lane, _mm512_set1_epi32(half));
        const __mmask16 upper = _mm512_test_epi32_mask(lane, _mm512_set1_epi32(half));
        const __m512i low = _mm512_mask_add_epi32(lane, upper, other, _mm512_set1_epi32(kSide));
        const __m512i high = _mm512_mask_add_epi32(other, upper, lane, _mm512_set1_epi32(kSide));
        LIIF_UNROLL
        for (int i = 0; i < kSide; ++i) {
            if (i & half) continue;
            const __m512i a = x[i], b = x[i + half];
            x[i] = _mm512_permutex2var_epi32(a, low, b);
            x[i + half] = _mm512_permutex2var_epi32(a, high, b);
        }
    }
}

// Copies `count` vectors of `pairs` pairs, `step` elements apart, to a tile with rows `to_row` apart and with zeros
// behind them; the vectors become columns if they are turned.
void copy(Bf16* to, int64_t to_row, const Bf16* from, int64_t step, int64_t count, int64_t pairs, bool turned) {
    __m512i x[kSide];
    LIIF_UNROLL
    for (int i = 0; i < kSide; ++i) {
        x[i] = i < count ? _mm512_maskz_loadu_epi32(first(pairs), from + i * step) : _mm512_setzero_si512();
    }
    if (turned) turn(x);
    LIIF_UNROLL
    for (int i = 0; i < kSide; ++i) _mm512_storeu_si512(to + i * to_row, x[i]);
}

// A block of sums: R x N tiles, registers 0 to 3. Registers 4 and 5 hold rows of A, 6 and 7 columns of B. The numbers
// of registers are part of the instructions.
template <typename C, int R, int N>
void block(const Gemm<Bf16, C>& g, int64_t row, int64_t panel, Copies& copies) {
    const int64_t rows = g.rows - row < kBlock ? g.rows - row : kBlock;
    if (g.init == Init::bias) {  // rows 0 bytes apart
        const float* bias = g.bias + panel * kBlock;
        _tile_loadd(0, bias, 0);
        if constexpr (N > 1) _tile_loadd(1, bias + kSide, 0);
        if constexpr (R > 1) _tile_loadd(2, bias, 0);
        if constexpr (R > 1 && N > 1) _tile_loadd(3, bias + kSide, 0);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    C* c = g.c + row * g.c_row + panel * kBlock;
    if (g.init == Init::accumulate) {
        for (int64_t r = 0; r < rows; ++r) {
            for (int v = 0; v < N; ++v) LIIF_PREFETCH(c + r * g.c_row + v * kSide);
        }
    }

    const bool turned = g.a_step != kDepth<Bf16>;  // then A's rows are adjacent pairs
    for (int64_t s = 0, chunk = 0; s < g.steps; s += kSide, ++chunk) {
        const int64_t steps = g.steps - s < kSide ? g.steps - s : kSide;
        const Bf16* a = g.a + row * g.a_row + s * g.a_step;
        int64_t a_row = g.a_row;
        if (turned || steps < kSide || rows < R * kSide) {
            Bf16* held = copies.a[chunk % kHeld];
            if (panel == 0 || g.steps > kHeld * kSide) {
                for (int r = 0; r < R; ++r) {
                    const Bf16* from = a + r * kSide * g.a_row;
                    const int64_t left = rows - r * kSide;
                    copy(held + r * kSide * kBlock, kBlock, from, turned ? g.a_step : g.a_row, turned ? steps : left,
                         turned ? left : steps, turned);
                }
            }
            a = held;
            a_row = kBlock;
        }
        const Bf16* b = g.b + panel * g.b_panel + s * g.b_step;
        int64_t b_row = g.b_step;
        if (steps < kSide || g.b_column != 0) {
            for (int n = 0; n < N; ++n) {
                Bf16* to = copies.b + n * kBlock;
                if (g.b_column != 0) {
                    const Bf16* from = g.b + (panel * kBlock + n * kSide) * g.b_column + s * kDepth<Bf16>;
                    copy(to, 2 * kBlock, from, g.b_column, kSide, steps, true);
                } else {
                    copy(to, 2 * kBlock, b + n * kBlock, g.b_step, steps, kSide, false);
                }
            }
            b = copies.b;
            b_row = 2 * kBlock;
        }
        __asm__ volatile("" ::: "memory");  // a load of a tile does not tell GCC that it reads memory
        _tile_loadd(6, b, 2 * b_row);
        _tile_loadd(4, a, 2 * a_row);
        _tile_dpbf16ps(0, 4, 6);
        if constexpr (N > 1) {
            _tile_loadd(7, b + kBlock, 2 * b_row);
            _tile_dpbf16ps(1, 4, 7);
        }
        if constexpr (R > 1) {
            _tile_loadd(5, a + kSide * a_row, 2 * a_row);
            _tile_dpbf16ps(2, 5, 6);
        }
        if constexpr (R > 1 && N > 1) _tile_dpbf16ps(3, 5, 7);
    }

    constexpr int64_t bytes = kBlock * sizeof(float);
    _tile_stored(0, copies.sums, bytes);
    if constexpr (N > 1) _tile_stored(1, copies.sums + kSide, bytes);
    if constexpr (R > 1) _tile_stored(2, copies.sums + kSide * kBlock, bytes);
    if constexpr (R > 1 && N > 1) _tile_stored(3, copies.sums + kSide * kBlock + kSide, bytes);
    for (int64_t r = 0; r < rows; ++r) {
        for (int v = 0; v < N; ++v)
            finish(g, c + r * g.c_row + v * kSide, V::load(copies.sums + r * kBlock + v * kSide));
        for (int v = N; v < kVectors; ++v) V::store(c + r * g.c_row + v * kSide, V::broadcast(0));
    }
}

template <typename C>
void multiply_tiles(const Gemm<Bf16, C>& g) {
    Copies copies;
    _tile_loadconfig(&kShapes);
    for (int64_t row = 0; row < g.rows; row += kBlock) {
        const bool tall = g.rows - row > kSide;
        for (int64_t panel = 0; panel * kBlock < g.columns; ++panel) {
            const bool wide = g.columns - panel * kBlock > kSide;
            const auto run = tall ? wide ? block<C, 2, 2> : block<C, 2, 1> : wide ? block<C, 1, 2> : block<C, 1, 1>;
            run(g, row, panel, copies);
        }
    }
    _tile_release();
}

Kernel<Bf16> with_tiles() {
    Kernel<Bf16> kernel = *kernel_avx512bf16();
    kernel.name = "amx";
    kernel.most_terms = 0;
    kernel.gemm = multiply_tiles<Bf16>;
    kernel.gemm_sum = multiply_tiles<float>;
    return kernel;
}

}  // namespace

const Kernel<Bf16>* kernel_amx() {
    static const Kernel<Bf16> kernel = with_tiles();
    return &kernel;
}

}  // namespace liif

#else

namespace liif {

const Kernel<Bf16>* kernel_amx() {
    return nullptr;
}

}  // namespace liif

#endif
