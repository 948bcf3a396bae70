// The interface between the instruction-set-specific translation units and the rest of the CPU backend.
//
// Everything that multiplies matrices goes through one register-tiled micro-kernel, compiled once per instruction set
// (kernel_portable.cpp, kernel_avx2.cpp, kernel_avx512.cpp, kernel_avx512bf16.cpp) and chosen at run time. Rows are
// (query, corner) pairs, columns are hidden channels. Each output element is one chain of multiply-adds in the order of
// k, whatever the number of rows, so a row's result never depends on its neighbours.
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
// written, so columns are padded to a multiple of nr. Rows are not padded.
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
};

template <typename T>
struct Kernel {
    const char* name;
    int mr, nr;  // rows and columns of the register tile
    void (*gemm)(const Gemm<T, T>&);
    void (*gemm_sum)(const Gemm<T, Sum<T>>&);
    // h[n] = p[n] + sum_j a[j] * u[j * u_row + n], then ReLU if asked; n < width
    void (*affine)(T* h, const T* p, const Sum<T>* a, int terms, const Sum<T>* u, int64_t u_row, int64_t width,
                   bool relu);
    // sum[n] += sum over rows of x[r * x_row + n]: the rows in a wider type, the total with its rounding error in
    // carry[n]. width is a multiple of nr.
    void (*sum_rows)(const T* x, int64_t x_row, int64_t rows, int64_t width, Sum<T>* sum, Sum<T>* carry);
    // The next two are for sums, null where T is not Sum<T>: s[n] = sum_t w[t] * h[t * h_row + n]
    void (*blend)(T* s, const T* h, int64_t h_row, const T* w, int corners, int64_t width);
    // y[n] += x[n]
    void (*add)(T* y, const T* x, int64_t width);
    // The rest is for types summed in another type, null where T is Sum<T>: rounds to the nearest in T
    void (*widen)(Sum<T>* to, const T* from, int64_t width);
    void (*narrow)(T* to, const Sum<T>* from, int64_t width);
    // to[(r / 2 * width + n) * 2 + r % 2] = x[r * x_row + n], a missing last row being zeros
    void (*pair_rows)(T* to, const T* x, int64_t x_row, int64_t rows, int64_t width);
};

// The fastest kernel that this processor runs; LIIF_FAST_CPU_ISA=portable|avx2|avx512 selects a lesser one. Float and
// double have a kernel on every processor, Bf16 only if has_bfloat16().
template <typename T>
const Kernel<T>& kernel();

bool has_bfloat16();
const char* isa_name();

// One per translation unit; null if the host's architecture lacks it.
template <typename T>
const Kernel<T>* kernel_portable();
template <typename T>
const Kernel<T>* kernel_avx2();
template <typename T>
const Kernel<T>* kernel_avx512();
const Kernel<Bf16>* kernel_avx512bf16();

}  // namespace liif
