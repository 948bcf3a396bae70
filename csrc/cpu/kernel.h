// The interface between the instruction-set-specific translation units and the rest of the CPU backend.
//
// Everything that multiplies matrices goes through one register-tiled micro-kernel, compiled once per instruction set
// (kernel_portable.cpp, kernel_avx2.cpp, kernel_avx512.cpp) and chosen at run time. Rows are (query, corner) pairs,
// columns are hidden channels. Each output element is one chain of multiply-adds in the order of k, whatever the
// number of rows, so a row's result never depends on its neighbours.
#pragma once

#include <cstdint>

namespace liif {

enum class Init { zero, bias, accumulate };  // where the sum starts: 0, a row of biases, or 0 with C added at the end
enum class Epilogue { none, relu, mask };    // what happens on the way to memory

// C[m, n] = epilogue(init + sum_k A[m * a_row + k * a_k] * B[n / nr][k * b_k + n % nr]),  panels of B b_panel apart.
// Packed weights have b_k = nr and b_panel = k_size * nr; a row-major matrix has b_k = its stride and b_panel = nr.
// Whole panels are read and written: columns are padded to a multiple of nr, rows are not padded.
template <typename T>
struct Gemm {
    int64_t rows, columns, depth;
    const T* a;
    int64_t a_row, a_k;
    const T* b;
    int64_t b_panel, b_k;
    T* c;
    int64_t c_row;
    Init init;
    const T* bias;  // [columns], for Init::bias
    Epilogue epilogue;
    const T* mask;  // same shape and stride as C, for Epilogue::mask: the gradient passes where the mask is not <= 0
};

template <typename T>
struct Kernel {
    const char* name;
    int mr, nr;  // rows and columns of the register tile
    void (*gemm)(const Gemm<T>&);
    // h[n] = p[n] + sum_j a[j] * u[j * u_row + n], then ReLU if asked; n < width
    void (*affine)(T* h, const T* p, const T* a, int terms, const T* u, int64_t u_row, int64_t width, bool relu);
    // s[n] = sum_t w[t] * h[t * h_row + n]
    void (*blend)(T* s, const T* h, int64_t h_row, const T* w, int corners, int64_t width);
    // sum[n] += sum over rows of x[r * x_row + n]: the rows in double, the total with its rounding error in carry[n].
    // width is a multiple of nr.
    void (*sum_rows)(const T* x, int64_t x_row, int64_t rows, int64_t width, T* sum, T* carry);
    // y[n] += a * x[n]
    void (*axpy)(T* y, const T* x, T a, int64_t width);
};

// The fastest kernel this processor runs; LIIF_FAST_CPU_ISA=portable|avx2|avx512 asks for a lesser one.
template <typename T>
const Kernel<T>& kernel();

const char* isa_name();

// One per translation unit; null where the host's architecture lacks it.
template <typename T>
const Kernel<T>* kernel_portable();
template <typename T>
const Kernel<T>* kernel_avx2();
template <typename T>
const Kernel<T>* kernel_avx512();

}  // namespace liif
