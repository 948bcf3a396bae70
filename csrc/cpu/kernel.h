// The interface between the instruction-set-specific translation units and the rest of the CPU backend.
//
// Everything that multiplies matrices goes through one register-tiled micro-kernel, compiled once per instruction set
// (kernel_portable.cpp, kernel_avx2.cpp, kernel_avx512.cpp, kernel_avx512bf16.cpp; kernel_amx.cpp has its own) and
// chosen at run time. Rows are (query, corner) pairs, columns are hidden channels. Each output element is one chain of
// multiply-adds in the order of k, whatever the number of rows, so a row's result never depends on its neighbours.
#pragma once

#include <cstdint>

namespace liif {

enum class Init { zero, bias, accumulate };  // start of the sum: 0, a row of biases, or 0 with C added at the end
enum class Epilogue { none, relu, mask };    // applied before the store

struct Bf16 {
    uint16_t bits;
};

// The type in which products of T are summed.
template <typename T>
struct SumOf {
    using type = T;
};
template <>
struct SumOf<Bf16> {
    using type = float;
};
template <typename T>
using Sum = typename SumOf<T>::type;

// The number of k that one multiply-add takes: bfloat16 is multiplied in pairs, adjacent in both operands.
template <typename T>
constexpr int kDepth = sizeof(T) == 2 ? 2 : 1;

// C[m, n] = epilogue(init + sum over steps s and j < D of A[m * a_row + s * a_step + j] * B[n / nr][s * b_step + n % nr
// * D + j]), D = kDepth<T>, panels of B b_panel apart. Packed weights have b_step = nr * D and b_panel = steps *
// b_step; a row-major matrix (of T with D = 1) has b_step = its stride and b_panel = nr. Whole panels are read and
// written, so rows of B and C are padded to a multiple of nr columns, in C with what the padding of B and the biases
// gives, or zeros. Rows are not padded. If b_column is not 0, B lies as its caller has it: column n from b + n *
// b_column, in the order of k; there are whole panels of columns, and a_step is D.
template <typename T, typename C>
struct Gemm {
    int64_t rows, columns, steps;
    const T* a;
    int64_t a_row, a_step;
    const T* b;
    int64_t b_panel, b_step;
    C* c;
    int64_t c_row;
    Init init;
    const Sum<T>* bias;  // [columns], for Init::bias
    Epilogue epilogue;
    const T* mask;  // same shape and stride as C, for Epilogue::mask: the gradient passes where the mask is not <= 0
    int64_t b_column = 0;
    // Terms may be left out where A is 0. A's steps lie side by side. Either B is packed, without infinity and NaN, and
    // has at most Kernel::most_terms k; or C is added, and there are at most Kernel::most_steps.
    bool skips = false;
};

// The loops of a tile of attend_corners, which is kernel<T>().nr queries. Rows are channels, `stride` apart; columns
// are tokens, token t of query q at t * nr + q, 4 * nr of them. Null where T is not Sum<T>.
template <typename T>
struct Attention {
    int64_t stride;
    // to[r * to_row + c] = from[c][r], c < columns, r < rows
    void (*transpose)(T* to, int64_t to_row, const T* const* from, int64_t columns, int64_t rows);
    // x, rows of the table of latents as columns: `linear` products, two rows n1, one row n0, the rest to `rows`. Adds
    // rel_0 by_rel[0][r] + rel_1 by_rel[1][r] to each but n0; n0 becomes the variance, n0 + rel . n1; the products are
    // scaled to variance 1 and get their bias, by_rel[2][r]. rel has two rows.
    void (*place)(T* x, int64_t linear, int64_t rows, const T* rel, const T* by_rel, int64_t by_rel_row, T* scale);
    // The gradient's way back, in g: of products to that before `place`, with those of n1 and n0. rel's third row
    // becomes 1 / scale.
    void (*place_back)(T* g, const T* x, int64_t linear, const T* bias, T* rel, const T* scale);
    // y = (x - mean) * scale over the rows, without weight and bias; back: g += the gradient of x
    void (*normalise)(T* y, const T* x, int64_t rows, T* scale);
    void (*normalise_back)(T* g, const T* y_gradient, const T* y, int64_t rows, const T* scale);
    void (*gelu)(T* to, const T* x, int64_t rows);
    void (*gelu_back)(T* g, const T* x, int64_t rows);  // g *= gelu'(x)
    // Over the four tokens of one row, in place.
    void (*softmax)(T* x);
    void (*softmax_back)(T* g, const T* weight);
    // to[r] = sum over the tokens t of weight[t * weight_step] * x[r][t], nr columns
    void (*mixture)(T* to, const T* weight, int64_t weight_step, const T* x, int64_t rows);
    // qkv, 3 * width rows, to the heads' outputs, width rows; row 4 * head + t of weight is what token t gives the
    // others
    void (*attend)(T* mixed, T* weight, const T* qkv, int64_t width, int64_t heads);
    // logit: four rows of anything
    void (*attend_back)(T* qkv_gradient, const T* g, const T* qkv, const T* weight, int64_t width, int64_t heads,
                        T* logit);
};

// The transforms of conv3x3 for one tile, 4 x 4 pixels and the 6 x 6 around them. Pixels are rows of channels. A
// transformed tile is 36 rows of channels, `position` apart. Null where T is not Sum<T>.
template <typename T>
struct Winograd {
    // `input` transforms 36 pixels, from which 3 x 3 weights compute 16; `inner` transforms those 16, for the gradient
    // of the weights.
    void (*input)(T* to, int64_t position, const T* const* pixel, int64_t channels);
    void (*inner)(T* to, int64_t position, const T* const* pixel, int64_t channels);
    void (*add_pixels)(T* sum, const T* const* pixel, int64_t channels);  // sum += those 16 pixels
    // Transforms back to 16 pixels of an output. Adds the bias and, if given, the addend's pixels, and applies ReLU if
    // asked. If the mask's pixels are given, writes zero where they are <= 0.
    void (*output)(T* const* pixel, const T* from, int64_t position, int64_t channels, const T* bias,
                   const T* const* addend, bool relu, const T* const* mask);
    // `weight` transforms `count` kernels of 3 x 3 weights, `step` apart, to 36 rows; `weight_back` transforms 36 rows
    // of their gradient to 9.
    void (*weight)(T* to, int64_t position, const T* weight, int64_t step, int64_t row, int64_t column, int64_t count);
    void (*weight_back)(T* to, int64_t tap, const double* from, int64_t position, int64_t count);
};

template <typename T>
struct Kernel {
    const char* name;
    int nr;  // columns of the register tile
    // Up to so many rows gemm is faster with B as the caller has it (Gemm::b_column) than B is packed; 0: it cannot
    int turned_rows;
    int most_terms;  // how many k a product may have to leave out terms (Gemm::skips); 0: it leaves out none
    int most_steps;  // the same for a product that is added to C
    void (*gemm)(const Gemm<T, T>&);
    void (*gemm_sum)(const Gemm<T, Sum<T>>&);
    // h[n] = p[n] + sum_j a[j] * u[j * u_row + n], then ReLU if asked; n < width
    void (*affine)(T* h, const T* p, const Sum<T>* a, int terms, const Sum<T>* u, int64_t u_row, int64_t width,
                   bool relu);
    // sum[n] += sum over rows of x[r * x_row + n], with the total's rounding error in carry[n] unless carry is null.
    // width is a multiple of nr.
    void (*sum_rows)(const T* x, int64_t x_row, int64_t rows, int64_t width, Sum<T>* sum, Sum<T>* carry);
    // The next six are for sums, null where T is not Sum<T>: s[n] = sum_t w[t] * h[t * h_row + n]
    void (*blend)(T* s, const T* h, int64_t h_row, const T* w, int corners, int64_t width);
    // y[n] += x[n]
    void (*add)(T* y, const T* x, int64_t width);
    // Of a latent l, 2 K amplitudes and 2 K parts of frequencies, the waves x [2 K]: with
    // a_k = l[2K + 2k] rel[0] + l[2K + 2k + 1] rel[1] + phase[k] they are l[k] cos(pi a_k) and l[K + k] sin(pi a_k)
    void (*waves)(T* x, const T* l, const T* phase, const T* rel, int64_t half);
    // Goes from g, the gradient of x, to the gradients of l, in `to` [4 K], and of phase, in `to_phase` [K]
    void (*waves_back)(T* to, T* to_phase, const T* g, const T* l, const T* phase, const T* rel, int64_t half);
    // h = relu(x * (1 + scale) + shift), rows `row` apart, of which latent[r] holds scale and shift at [scale + n] and
    // [shift + n], n < width; h may be x
    void (*modulate)(T* h, const T* x, int64_t row, const T* const* latent, int64_t scale, int64_t shift, int64_t rows,
                     int64_t width);
    // Replaces g, the gradient of h, by the gradient of x. Writes the gradients of the latent's scale and shift to
    // to[r * to_row + scale + n] and to[r * to_row + shift + n]
    void (*modulate_back)(T* g, T* to, int64_t to_row, const T* x, int64_t row, const T* const* latent, int64_t scale,
                          int64_t shift, int64_t rows, int64_t width);
    // The rest is for types summed in another type, null where T is Sum<T>: rounds to the nearest in T
    void (*widen)(Sum<T>* to, const T* from, int64_t width);
    void (*narrow)(T* to, const Sum<T>* from, int64_t width);
    // to[(r / 2 * width + n) * 2 + r % 2] = x[r * x_row + n], a missing last row being zeros
    void (*pair_rows)(T* to, const T* x, int64_t x_row, int64_t rows, int64_t width);
    const Attention<T>* attention;
    const Winograd<T>* winograd;
};

// The fastest kernel that this processor runs, or the lesser one that LIIF_FAST_CPU_ISA=portable|avx2|avx512 names.
// Float and double have a kernel on every processor, Bf16 only if has_bfloat16().
template <typename T>
const Kernel<T>& kernel();

bool has_bfloat16();
const char* isa_name();

// Why this processor, build or system has no AMX-BF16, "" if it has. With LIIF_FAST_CPU_ISA=amx-emulated the tests'
// emulator must be loaded instead. Bf16's kernel uses AMX only after use_amx(true), which asks Linux for the permission
// once; it returns why it was refused, or "". Both of Bf16's kernels take the same packed weights, so the change may
// come at any time.
const char* missing_amx();
const char* use_amx(bool on);

// One per translation unit; null if the host's architecture lacks it.
template <typename T>
const Kernel<T>* kernel_portable();
template <typename T>
const Kernel<T>* kernel_avx2();
template <typename T>
const Kernel<T>* kernel_avx512();
const Kernel<Bf16>* kernel_avx512bf16();
const Kernel<Bf16>* kernel_amx();

}  // namespace liif
