// The products of the kernels for bfloat16 alone, for ctypes: the AMX kernel and the one for AVX512-BF16.
#include "kernel.h"

extern "C" {
void product_sums(int amx, const liif::Gemm<liif::Bf16, float>* g) {
    (amx ? liif::kernel_amx() : liif::kernel_avx512bf16())->gemm_sum(*g);
}
void product(int amx, const liif::Gemm<liif::Bf16, liif::Bf16>* g) {
    (amx ? liif::kernel_amx() : liif::kernel_avx512bf16())->gemm(*g);
}
}
