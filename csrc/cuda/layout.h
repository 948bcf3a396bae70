// The layout of the operand registers, the packed weights, the swizzle and the shared memory. The kernel and the
// packers use these formulas; tests/ptx executes the kernel's PTX with the layouts of the PTX ISA. Names: n is an
// output channel of a layer, k an input channel in the matrix unit's order.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define LIIF_HD __host__ __device__ __forceinline__
#else
#define LIIF_HD inline
#endif

namespace liif::sm90 {

constexpr int kHidden = 256;  // width of every hidden layer
constexpr int kMaxOut = 4;
constexpr int kTerms = 4;  // rel row, rel column, cell row, cell column
constexpr int kCorners = 4;

// One wgmma m64n256k16: a warpgroup's 64 rows; per thread 4 registers of A and 128 of D.
constexpr int kRows = 64, kK = 16, kRegistersA = 4, kAccumulators = 128;
constexpr int kSteps = kHidden / kK;             // wgmmas of a layer
constexpr int kOperands = kSteps * kRegistersA;  // registers of A that hold a layer's input
constexpr int kWarpgroups = 2;                   // that compute; one more loads
constexpr int kTileRows = kWarpgroups * kRows;

// ---- Registers. lane & 3 is q, lane >> 2 is g; a thread holds rows g and g + 8 of its warp's 16.

// A register of step `kk`: channels 16 kk + 8 high + 2 q + {0, 1} of row g + 8 low.
LIIF_HD constexpr int operand_register(int kk, int high, int low) {
    return kRegistersA * kk + 2 * high + low;
}

// An accumulator: channel 8 block + 2 q + odd of row g + 8 low. So registers 8 kk .. 8 kk + 7 of a layer's result,
// packed in pairs, are step kk of the next layer's operand.
LIIF_HD constexpr int accumulator(int block, int low, int odd) {
    return 4 * block + 2 * low + odd;
}

// ---- The gather. A thread reads 8 pieces of 16 bytes of its row of P: piece j holds channels 8 (4 j + q) ..., and its
// pairs e = 0..3 go as they are into steps 2 j and 2 j + 1. So channel c of P is input k of the first product:
LIIF_HD constexpr int gathered_channel(int j, int q, int e) {
    return 8 * (4 * j + q) + 2 * e;
}
LIIF_HD constexpr int gathered_register(int j, int e, int low) {
    return operand_register(2 * j + e / 2, e % 2, low);
}
// The channel of input k of the first product; its weights are packed in this order, P keeps its own.
LIIF_HD constexpr int channel_of_k(int k) {
    return gathered_channel(k / 32, k % 8 / 2, 2 * (k / 16 % 2) + k % 16 / 8) + k % 2;
}

// ---- Rows of a tile. With the ensemble a thread's two rows are two corners of one query: warp row r is corner
// (r & 1) + 2 (r >> 3) of the warp's query (r & 7) >> 1. Without it, row r is query r.
LIIF_HD constexpr int row_query(int row) {
    return row % 8 / 2;
}
LIIF_HD constexpr int row_corner(int row) {
    return row % 2 + 2 * (row / 8);
}
LIIF_HD constexpr int queries_per_warp(bool ensemble) {
    return ensemble ? 4 : 16;
}

// ---- Packed weights. A product of 256 x 256 is 4 slices of K = 64, each 256 rows (n) of 128 bytes, K-major, swizzled;
// the first is followed by the layer's bias. A slice is one bulk copy into one stage of the ring.
constexpr int kSliceK = 64, kSlices = kHidden / kSliceK, kSteps1 = kSliceK / kK;
constexpr int kRowBytes = kSliceK * 2;
constexpr int kSliceBytes = kHidden * kRowBytes;
constexpr int kBiasBytes = kHidden * 4;
constexpr int kStageBytes = kSliceBytes + kBiasBytes;
constexpr int kProductBytes = kSlices * kSliceBytes + kBiasBytes;

LIIF_HD constexpr int slice_offset(int slice) {
    return slice * kSliceBytes + (slice > 0 ? kBiasBytes : 0);
}
LIIF_HD constexpr int slice_bytes(int slice) {
    return slice > 0 ? kSliceBytes : kStageBytes;
}
// A cluster of blocks shares the copying of a slice: the block of each rank copies its share into all rings, and the
// last one also copies the bias.
LIIF_HD constexpr int share_offset(int rank, int cluster) {
    return rank * (kSliceBytes / cluster);
}
LIIF_HD constexpr int share_bytes(int slice, int rank, int cluster) {
    return kSliceBytes / cluster + (rank == cluster - 1 ? slice_bytes(slice) - kSliceBytes : 0);
}
constexpr int kMaxCluster = 2;
static_assert(kSliceBytes % (16 * kMaxCluster) == 0 && kBiasBytes % 16 == 0, "a bulk copy's unit");

// 128-byte swizzle (PTX ISA, "Strides" and "Swizzling modes"): within each 1024 bytes, the 16-byte piece of a row of
// 128 bytes is exclusive-ored with the row's number.
LIIF_HD constexpr int swizzle(int offset) {
    return offset ^ ((offset >> 7 & 7) << 4);
}
// Byte of weight (n, k) within its slice.
LIIF_HD constexpr int weight_offset(int n, int k) {
    return swizzle(n * kRowBytes + k % kSliceK * 2);
}

// Channel c's place in a vector of 256 that threads read four at a time: [16 pairs of blocks][q][block, odd].
LIIF_HD constexpr int vector_place(int c) {
    return (c / 16 * 4 + c % 8 / 2) * 4 + c % 16 / 8 * 2 + c % 2;
}

// Matrix descriptor of a K-major operand with 128-byte swizzle at a shared-memory address (PTX ISA, "Matrix descriptor
// format"): address / 16 in bits 0-13; leading offset, unused here, 1; stride between groups of 8 rows, 1024 / 16, in
// bits 32-45; base offset 0, as slices start at multiples of 1024; mode 1 in bits 62-63.
LIIF_HD constexpr uint64_t descriptor(uint32_t address) {
    return static_cast<uint64_t>(address >> 4 & 0x3FFF) | uint64_t{1} << 16 | uint64_t{8 * kRowBytes / 16} << 32 |
           uint64_t{1} << 62;
}
// The descriptor of step `step` of a slice: 16 channels are 32 bytes. The swizzle applies to the resulting address.
LIIF_HD constexpr uint32_t step_address(uint32_t slice, int step) {
    return slice + static_cast<uint32_t>(step * kK * 2);
}

// ---- After the products the packed weights hold a table: the first layer's columns for rel and cell and the last
// layer's rows, as operands B of m16n8k16 (PTX ISA, mma), and the last layer's bias, float. Of operand B, lane (q, g)
// holds, for column g, inputs 2 q + {0, 1} in one register and 8 + 2 q + {0, 1} in another. Places are counted in
// registers.
constexpr int kAffine = 0, kLast = kAffine + kTerms * kHidden, kLastBias = kLast + kMaxOut * kHidden / 2;
constexpr int kTableFloats = kLastBias + kMaxOut, kTableBytes = kTableFloats * 4;

// Column g of the product (j, e) is channel gathered_channel(j, g / 2, e) + g % 2, so that its sums fall to the lanes
// that gathered the channel. Inputs 2 q and 2 q + 1 are term q times the high and the low part of the weight. Those
// from 8 on have the same weights, so a lane loads one register for a product and 16 bytes for four.
LIIF_HD constexpr int affine_piece(int j, int q, int g) {
    return ((j * 8 + g) * 4 + q) * 4;
}
LIIF_HD constexpr int affine_place(int term, int c) {
    return kAffine + affine_piece(c / 32, term, 2 * (c % 32 / 8) + c % 2) + c % 8 / 2;
}

// Column n of the last layer is output n % 4, so each output is computed twice. A lane loads two steps at a time.
LIIF_HD constexpr int last_piece(int two_steps, int out, int q) {
    return ((two_steps * kMaxOut + out) * 4 + q) * 4;
}
// The place of weight (out, channel c) among 16-bit elements behind kLast.
LIIF_HD constexpr int last_place(int out, int c) {
    return 2 * last_piece(c / 32, out, c % 8 / 2) + c % 32 / 8 * 2 + c % 2;
}

LIIF_HD constexpr int64_t packed_bytes(int64_t products) {
    return products * kProductBytes + kTableBytes;
}

// ---- Shared memory: the ring, the table, and two barriers a stage.
constexpr int kStages = 6;
constexpr int kTableStart = kStages * kStageBytes;
constexpr int kBarrierStart = kTableStart + (kTableBytes + 15) / 16 * 16;
constexpr int kSharedBytes = kBarrierStart + 2 * kStages * 8;
static_assert(kStageBytes % 1024 == 0, "a slice starts where the swizzle's pattern does");
static_assert(kSharedBytes <= 227 * 1024, "the most that a block can have on sm_90");
static_assert(kStages >= kSlices, "a warpgroup's whole layer must fit while the other waits");

}  // namespace liif::sm90
