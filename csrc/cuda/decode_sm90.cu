// The decoder on Hopper (sm_90a): P -> the output, for hidden layers of 256. docs/hopper.md describes the design;
// layout.h the layout; thread.h a thread's computation; operators.h the host's part. With LIIF_KERNEL_ONLY it compiles
// without PyTorch, for inspection (benchmarks/audit_sass.py).
//
// A block is persistent and works on tiles of 128 rows, a row being a corner of a query. One warp loads: it copies the
// weights, slice after slice, layer after layer and tile after tile, into a ring of stages. Two warpgroups of 64 rows
// compute: the activations stay in their registers, from the gathered rows of P to the last layer's sums. They take
// turns in a whole layer's products, so that one converts, blends or gathers while the other keeps the matrix unit
// busy. Both use the same pass of the ring, and a stage is free once all eight warps have finished with it.
//
// With kCluster = 2 two blocks run as a cluster and use the same slices at about the same time. Each copies one half of
// a slice into both blocks' rings, so that a weight is read from L2 once for both. A full barrier then expects both
// halves, the block's and the peer's. An empty barrier counts the warps of both blocks, because each block writes into
// both. Both run the same number of tiles (`tiles` is a multiple of kCluster; a tile past the end is computed and not
// stored).
#include "ptx.h"

namespace liif::sm90 {
namespace {

constexpr int kThreads = (1 + kWarpgroups) * 128;
constexpr int kTurn = 1;  // named barriers kTurn and kTurn + 1; 0 is __syncthreads

// When block 0's warpgroups ask for a turn, get it, and have its products; with LIIF_TRACE, a build for measurements.
enum Event { kAsked, kGiven, kComplete, kEvents };
#if defined(LIIF_TRACE)
constexpr int kTraced = 1 << 12;  // turns
__device__ long long traced[kWarpgroups][kTraced][kEvents];
LIIF_DEVICE void note(int group, int turn, Event event) {
    if (blockIdx.x == 0 && threadIdx.x % 128 == 0 && turn < kTraced) traced[group][turn][event] = clock64();
}
#else
LIIF_DEVICE void note(int, int, Event) {}
#endif

struct Ring {
    uint32_t slices, full, empty;  // shared-memory addresses
    int stage = 0;
    uint32_t pass = 0;  // parity

    LIIF_DEVICE uint32_t slice() const { return slices + static_cast<uint32_t>(stage * kStageBytes); }
    LIIF_DEVICE uint32_t full_barrier() const { return full + static_cast<uint32_t>(stage * 8); }
    LIIF_DEVICE uint32_t empty_barrier() const { return empty + static_cast<uint32_t>(stage * 8); }
    LIIF_DEVICE void advance() {
        const bool wraps = stage == kStages - 1;
        stage = wraps ? 0 : stage + 1;
        pass ^= wraps ? 1 : 0;
    }
};

template <int kCluster>
LIIF_DEVICE void produce(const Problem& problem, int64_t tiles, Ring ring) {
    const int rank = static_cast<int>(blockIdx.x) % kCluster;
    ring.slices += share_offset(rank, kCluster);
    for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        const unsigned char* from = problem.packed + share_offset(rank, kCluster);
        for (int product = 0; product < problem.products; ++product, from += kProductBytes) {
            for (int slice = 0; slice < kSlices; ++slice) {
                barrier_wait(ring.empty_barrier(), ring.pass ^ 1);
                barrier_expect(ring.full_barrier(), slice_bytes(slice));
                copy<kCluster>(ring.slice(), from + slice_offset(slice), share_bytes(slice, rank, kCluster),
                               ring.full_barrier());
                ring.advance();
            }
        }
    }
}

// One layer's products, on accumulators that hold the bias. Each slice is a separate group. A stage is handed back when
// its group is complete, and `a` must not be written before all groups are.
template <typename U, int kCluster>
LIIF_DEVICE void multiply(float (&d)[kAccumulators], uint32_t (&a)[kOperands], Ring& ring, int elected, int give,
                          int other) {
    uint32_t before = 0;
#pragma unroll
    for (int slice = 0; slice < kSlices; ++slice) {
        if (slice > 0) barrier_wait(ring.full_barrier(), ring.pass);
        wgmma_fence();
#pragma unroll
        for (int step = 0; step < kSteps1; ++step) {
            const int at = operand_register(slice * kSteps1 + step, 0, 0);
            U::wgmma(d, a[at], a[at + 1], a[at + 2], a[at + 3], descriptor(step_address(ring.slice(), step)));
        }
        wgmma_commit();
        if (slice > 0) {
            wgmma_wait<1>();
            barrier_arrive_if<kCluster>(before, elected);
        }
        before = ring.empty_barrier();
        ring.advance();
    }
    if (give) turn_give(other);  // the partner's products queue up behind the last of these
    wgmma_wait<0>();
    barrier_arrive_if<kCluster>(before, elected);
    keep(a);
}

// Stores the outputs y of last_layer. Each of a quad's lanes stores one channel.
template <bool kEnsemble>
LIIF_DEVICE void store(const Problem& problem, int64_t first, Lane lane, const float* table, const float (&weight)[2],
                       const float (&y)[4]) {
    const bool odd = lane.q > 1;
    const int channel = 2 * (lane.q & 1) + odd;
    float out[2] = {odd ? y[1] : y[0], odd ? y[3] : y[2]};
    if (kEnsemble) {  // two corners here, two in the lanes of the neighbouring row
        out[0] = fmaf(weight[1], out[1], mul(weight[0], out[0]));
        out[0] += __shfl_xor_sync(0xFFFFFFFF, out[0], 4);
    }
#pragma unroll
    for (int low = 0; low < (kEnsemble ? 1 : 2); ++low) {
        const int64_t number = first + query_of<kEnsemble>(lane, low);
        if (channel < problem.out_dim && number < problem.total && (!kEnsemble || row_corner(lane.g) == 0)) {
            const Query query = find_query(problem, number);
            const int64_t at = query.image * problem.out_steps[0] + query.index * problem.out_steps[1] +
                               channel * problem.out_steps[2];
            problem.out[at] = out[low] + table[kLastBias + channel];
        }
    }
}

// Lanes diverge in find_rows and in store; the instructions behind them need whole warps.
template <typename U, bool kEnsemble>
LIIF_DEVICE Kept plan(const Problem& problem, int64_t first, Lane lane) {
    Rows rows;
    find_rows<kEnsemble>(problem, first, lane, rows);
    __syncwarp();
    return to_keep<U>(rows, lane);
}

template <typename U, bool kEnsemble, int kCluster>
LIIF_DEVICE void consume(const Problem& problem, int64_t tiles, Ring ring, const unsigned char* shared, int group) {
    const int thread = static_cast<int>(threadIdx.x) % 128;
    const Lane lane = make_lane(thread % 32);
    const int warp = group * 4 + thread / 32;
    const int elected = thread % 32 < kCluster;  // lane r of a warp hands stages back to the block of rank r
    const int mine = kTurn + group, other = kTurn + 1 - group;
    const float* table = reinterpret_cast<const float*>(shared + kTableStart);
    constexpr int kPerWarp = queries_per_warp(kEnsemble), kPerTile = kPerWarp * 4 * kWarpgroups;
    uint32_t a[kOperands];
    float d[kAccumulators];
    int turn = 0;

    if (group == 1) turn_give(other);  // the first turn is warpgroup 0's
    int64_t first = static_cast<int64_t>(blockIdx.x) * kPerTile + warp * kPerWarp;
    Kept rows = plan<U, kEnsemble>(problem, first, lane);
    gather<U>(problem, rows, lane, a);
    for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        const bool last_tile = tile + gridDim.x >= tiles;
        add_affine<U>(rows, lane, table, a);
        keep(a);
        const float weight[2] = {rows.weight[0], rows.weight[1]};
        const int64_t next = first + static_cast<int64_t>(gridDim.x) * kPerTile;
        int left = problem.products;  // at least one: the compiler must see that `d` is written
#pragma unroll 1
        while (true) {
            barrier_wait(ring.full_barrier(), ring.pass);
            start_at_bias<U>(reinterpret_cast<const float*>(shared + ring.stage * kStageBytes + kSliceBytes), lane, d);
            reads_before_copies();  // reads of the bias; multiply hands its stage back
            note(group, turn, kAsked);
            turn_wait(mine);
            note(group, turn, kGiven);
            // Warpgroup 1's very last turn has no successor.
            multiply<U, kCluster>(d, a, ring, elected, group == 0 || left > 1 || !last_tile, other);
            note(group, turn++, kComplete);
            // The next tile is planned behind the first product, while the partner multiplies. Between two tiles its
            // chain of loads and divisions would take longer than the partner's turn.
            if (left == problem.products) rows = plan<U, kEnsemble>(problem, next, lane);
            if (--left == 0) break;
            to_operand<U>(d, a);
            keep(a);
        }
        gather<U>(problem, rows, lane, a);  // loads while this tile's last layer is computed
        float y[4];
        last_layer<U>(d, lane, table, y);
        store<kEnsemble>(problem, first, lane, table, weight, y);
        __syncwarp();
        first = next;
    }
}

template <typename U, bool kEnsemble, int kCluster>
__global__ void __launch_bounds__(kThreads, 1) decode_sm90(const __grid_constant__ Problem problem, int64_t tiles) {
    extern __shared__ __align__(1024) unsigned char shared[];
    Ring ring{shared_address(shared), shared_address(shared + kBarrierStart),
              shared_address(shared + kBarrierStart + kStages * 8)};
    const float* from = reinterpret_cast<const float*>(problem.packed + int64_t{kProductBytes} * problem.products);
    float* table = reinterpret_cast<float*>(shared + kTableStart);
    for (int i = static_cast<int>(threadIdx.x); i < kTableFloats; i += kThreads) table[i] = from[i];
    if (threadIdx.x == 0) {
        for (int stage = 0; stage < kStages; ++stage) {
            barrier_init(ring.full + static_cast<uint32_t>(stage * 8), 1);
            barrier_init(ring.empty + static_cast<uint32_t>(stage * 8), kWarpgroups * 4 * kCluster);
        }
        asm volatile("fence.mbarrier_init.release.cluster;\nfence.proxy.async.shared::cta;" ::: "memory");
    }
    __syncthreads();
    if constexpr (kCluster > 1) cluster_sync();  // the peer's barriers exist before any use
    // So that the compiler knows that it is the same in a warp.
    const int group = __shfl_sync(0xFFFFFFFF, static_cast<int>(threadIdx.x) / 128, 0);
    if (group == kWarpgroups) {
        give_registers<24>();
        if (threadIdx.x == kWarpgroups * 128) produce<kCluster>(problem, tiles, ring);
    } else {
        take_registers<240>();
        consume<U, kEnsemble, kCluster>(problem, tiles, ring, shared, group);
    }
    if constexpr (kCluster > 1) cluster_sync();  // a block stays while the peer may hand a stage back to it
}

#if defined(LIIF_KERNEL_ONLY)
#define LIIF_INSTANCES(cluster)                                                                            \
    template __global__ void decode_sm90<Half, true, cluster>(const __grid_constant__ Problem, int64_t);   \
    template __global__ void decode_sm90<Half, false, cluster>(const __grid_constant__ Problem, int64_t);  \
    template __global__ void decode_sm90<Bfloat, true, cluster>(const __grid_constant__ Problem, int64_t); \
    template __global__ void decode_sm90<Bfloat, false, cluster>(const __grid_constant__ Problem, int64_t);
LIIF_INSTANCES(1)
LIIF_INSTANCES(2)
#endif

}  // namespace
}  // namespace liif::sm90

#if !defined(LIIF_KERNEL_ONLY)
#include "operators.h"
#endif
