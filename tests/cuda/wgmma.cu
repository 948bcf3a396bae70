// A kernel small enough to see through: two products of a group, then what is computed is stored. For the tests of
// benchmarks/audit_sass.py; with a macro it does what the audit is to find.
#include <cstdint>

__device__ __forceinline__ void product(float (&d)[4], const uint32_t (&a)[4], uint64_t b) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16 {%0, %1, %2, %3}, {%4, %5, %6, %7}, %8, 1, 1, 1, 0;"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

__global__ void products(const uint32_t* from, float* to, uint64_t b, int count) {
    uint32_t a[2][4];
    float d[4] = {0, 0, 0, 0};
    for (int i = 0; i < 4; ++i) a[0][i] = from[4 * threadIdx.x + i];
    for (int i = 0; i < 4; ++i) a[1][i] = from[4 * threadIdx.x + i + 512];
#pragma unroll 1
    for (int n = 0; n < count; ++n) {
        asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
        product(d, a[0], b);
#if defined(TOUCH)  // an accumulator read among products: ptxas has to wait
        to[threadIdx.x] = d[0];
#endif
        product(d, a[1], b + 2);
        asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
        asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
    }
#if defined(SPILL)  // an array whose index is not known has to lie in memory
    float local[64];
    for (int i = 0; i < 64; ++i) local[(i * count) & 63] = d[i % 4];
    d[0] = local[count & 63];
#endif
    for (int i = 0; i < 4; ++i) to[4 * threadIdx.x + i] = d[i];
}
