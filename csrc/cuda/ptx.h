// The kernel's PTX instructions: barriers, bulk copies, wgmma, and the arithmetic of the operand types.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "thread.h"

#if defined(LIIF_TRAP)
extern "C" {
__device__ uint32_t* liif_hangs;  // see barrier_wait; outside of the namespace, for nvcc's sake
}
#endif

namespace liif::sm90 {

#define LIIF_DEVICE __device__ __forceinline__

LIIF_DEVICE uint32_t shared_address(const void* p) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// ---- mbarriers. A wait for parity p returns once the phase of that parity has completed; a new barrier counts as
// having completed its phase of parity 1.
LIIF_DEVICE void barrier_init(uint32_t barrier, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
#if defined(LIIF_TRAP)
// A build for tests that says where it hangs: after 2 seconds in one wait a warp writes 1, its block, the barrier and
// the parity to its 16 bytes of a page of the host, because the device's memory is lost with the trap, and stops the
// kernel. Printing would be a call, for which ptxas serialises all products.
LIIF_DEVICE void barrier_wait(uint32_t barrier, uint32_t parity) {
    asm volatile(
        "{\n.reg .pred done;\n.reg .b32 start;\n.reg .b32 now;\n.reg .b64 page;\n.reg .b64 place;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n@done bra end;\n"
        "mov.u32 start, %%globaltimer_lo;\n"
        "wait:\nmbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n@done bra end;\n"
        "mov.u32 now, %%globaltimer_lo;\nsub.u32 now, now, start;\n"
        "setp.lt.u32 done, now, 2000000000;\n@done bra wait;\n"
        "mov.u64 place, liif_hangs;\nld.global.u64 page, [place];\n"
        "mov.u32 now, %%tid.x;\nshr.u32 now, now, 5;\nmul.wide.u32 place, now, 16;\nadd.s64 page, page, place;\n"
        "mov.u32 now, %%ctaid.x;\nmov.u32 start, 1;\n"
        "st.global.v4.u32 [page], {start, now, %0, %1};\nfence.sc.sys;\ntrap;\nend:\n}" ::"r"(barrier),
        "r"(parity)
        : "memory");
}
#else
LIIF_DEVICE void barrier_wait(uint32_t barrier, uint32_t parity) {
    asm volatile(
        "{\n.reg .pred done;\nwait:\nmbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n@done bra end;\n"
        "bra wait;\nend:\n}" ::"r"(barrier),
        "r"(parity)
        : "memory");
}
#endif
// Predicated, so that no branch comes among wgmmas in flight. With a cluster, lane r arrives at the barrier of the
// block of rank r; that address is computed each time, which costs no register. The scope stays the block's, as in
// CUTLASS, because only bulk copies write between blocks, and at the cluster's scope ptxas adds MEMBAR.GPU and drops L1
// at every slice.
template <int kCluster>
LIIF_DEVICE void barrier_arrive_if(uint32_t barrier, int condition) {
    if constexpr (kCluster > 1) {
        asm volatile(
            "{\n.reg .pred yes;\n.reg .b32 there;\nsetp.ne.s32 yes, %1, 0;\nmov.u32 there, %%laneid;\n"
            "@yes mapa.shared::cluster.u32 there, %0, there;\n"
            "@yes mbarrier.arrive.shared::cluster.b64 _, [there];\n}" ::"r"(barrier),
            "r"(condition)
            : "memory");
    } else {
        asm volatile(
            "{\n.reg .pred yes;\nsetp.ne.s32 yes, %1, 0;\n"
            "@yes mbarrier.arrive.shared::cta.b64 _, [%0];\n}" ::"r"(barrier),
            "r"(condition)
            : "memory");
    }
}
// One arrival that also expects `bytes` of bulk copies.
LIIF_DEVICE void barrier_expect(uint32_t barrier, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
// A bulk copy; with a cluster it goes to the same address in every block, and signals the barrier at the same address.
template <int kCluster>
LIIF_DEVICE void copy(uint32_t to, const void* from, int bytes, uint32_t barrier) {
    if constexpr (kCluster > 1) {
        asm volatile(
            "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1], %2, "
            "[%3], %4;" ::"r"(to),
            "l"(from), "r"(bytes), "r"(barrier), "h"(static_cast<uint16_t>((1 << kCluster) - 1))
            : "memory");
    } else {
        asm volatile(
            "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
            "l"(from), "r"(bytes), "r"(barrier)
            : "memory");
    }
}

// Waits for all threads of all blocks of a cluster; a warp's threads may arrive separately.
LIIF_DEVICE void cluster_sync() {
    asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
}

// Orders this thread's reads of shared memory before a bulk copy, which goes through another proxy and may overwrite
// it. Place it between the reads and the hand-back of the memory.
LIIF_DEVICE void reads_before_copies() {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// ---- Named barriers, by which the two warpgroups take turns: 128 threads wait, 128 only arrive.
LIIF_DEVICE void turn_wait(int id) {
    asm volatile("bar.sync %0, 256;" ::"r"(id) : "memory");
}
LIIF_DEVICE void turn_give(int id) {
    asm volatile("bar.arrive %0, 256;" ::"r"(id) : "memory");
}

template <int kRegisters>
LIIF_DEVICE void give_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
LIIF_DEVICE void take_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// ---- wgmma.
LIIF_DEVICE void wgmma_fence() {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
LIIF_DEVICE void wgmma_commit() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int kPending>
LIIF_DEVICE void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}
template <int kCount>
LIIF_DEVICE void keep(uint32_t (&registers)[kCount]) {  // in use up to here, whatever the compiler thinks
#pragma unroll
    for (int i = 0; i < kCount; ++i) asm volatile("" : "+r"(registers[i])::"memory");
}

#define LIIF_8(f, i) f(i), f(i + 1), f(i + 2), f(i + 3), f(i + 4), f(i + 5), f(i + 6), f(i + 7)
#define LIIF_32(f, i) LIIF_8(f, i), LIIF_8(f, i + 8), LIIF_8(f, i + 16), LIIF_8(f, i + 24)
#define LIIF_128(f) LIIF_32(f, 0), LIIF_32(f, 32), LIIF_32(f, 64), LIIF_32(f, 96)
#define LIIF_D(i) "+f"(d[i])
#define LIIF_NAMES                                                                                                   \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, " \
    "%24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, " \
    "%46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, %64, %65, %66, %67, " \
    "%68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, " \
    "%90, %91, %92, %93, %94, %95, %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, " \
    "%110, %111, %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"

// d += a B: A in registers, B K-major in shared memory. The last operands: accumulate, no negation, no transposition.
#define LIIF_WGMMA(type)                                                             \
    asm volatile(                                                                    \
        "{\n.reg .pred add;\nsetp.eq.u32 add, 0, 0;\n"                               \
        "wgmma.mma_async.sync.aligned.m64n256k16.f32." type "." type " {" LIIF_NAMES \
        "}, {%128, %129, %130, %131}, %132, add, 1, 1, 0;\n}"                        \
        : LIIF_128(LIIF_D)                                                           \
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(b))

// d += a B of one warp: rows g and g + 8, columns 2 q and 2 q + 1.
#define LIIF_MMA(type)                                                                  \
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." type "." type                 \
                 ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                       \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1))

struct Memory {
    LIIF_DEVICE static void load16(const uint32_t* from, uint32_t (&to)[4]) {
        const uint4 v = __ldg(reinterpret_cast<const uint4*>(from));
        to[0] = v.x, to[1] = v.y, to[2] = v.z, to[3] = v.w;
    }
    LIIF_DEVICE static void load4(const float* from, float4_& to) {
        // Volatile, so that the table is not kept in registers from one tile to the next.
        asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
                     : "=f"(to.x), "=f"(to.y), "=f"(to.z), "=f"(to.w)
                     : "r"(shared_address(from)));
    }
    LIIF_DEVICE static void load4(const float* from, uint32_t (&to)[4]) {
        asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                     : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                     : "r"(shared_address(from)));
    }
};

// pack_relu: negative becomes 0; a NaN becomes the canonical NaN (PTX ISA, cvt), not 0.
struct Half : Memory {
    LIIF_DEVICE static uint32_t pack(float low, float high) {
        uint32_t r;
        asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
        return r;
    }
    LIIF_DEVICE static uint32_t pack_relu(float low, float high) {
        uint32_t r;
        asm volatile("cvt.rn.relu.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
        return r;
    }
    LIIF_DEVICE static float low(uint32_t pair) {
        return __half2float(__ushort_as_half(static_cast<unsigned short>(pair & 0xFFFF)));
    }
    LIIF_DEVICE static float high(uint32_t pair) {
        return __half2float(__ushort_as_half(static_cast<unsigned short>(pair >> 16)));
    }
    LIIF_DEVICE static void wgmma(float (&d)[kAccumulators], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                                  uint64_t b) {
        LIIF_WGMMA("f16");
    }
    LIIF_DEVICE static void mma(float (&d)[4], const uint32_t (&a)[kRegistersA], uint32_t b0, uint32_t b1) {
        LIIF_MMA("f16");
    }
};

struct Bfloat : Memory {
    LIIF_DEVICE static uint32_t pack(float low, float high) {
        uint32_t r;
        asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
        return r;
    }
    LIIF_DEVICE static uint32_t pack_relu(float low, float high) {
        uint32_t r;
        asm volatile("cvt.rn.relu.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
        return r;
    }
    LIIF_DEVICE static float low(uint32_t pair) { return __uint_as_float(pair << 16); }
    LIIF_DEVICE static float high(uint32_t pair) { return __uint_as_float(pair & 0xFFFF0000u); }
    LIIF_DEVICE static void wgmma(float (&d)[kAccumulators], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                                  uint64_t b) {
        LIIF_WGMMA("bf16");
    }
    LIIF_DEVICE static void mma(float (&d)[4], const uint32_t (&a)[kRegistersA], uint32_t b0, uint32_t b1) {
        LIIF_MMA("bf16");
    }
};

}  // namespace liif::sm90
