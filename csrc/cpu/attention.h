// The interface to the transformer over corners, compiled per instruction set beside the micro-kernel.
//
// A tile is 16 queries. Its data lie channel by channel: [channel][corner * 16 + query], 64 floats a channel. So every
// norm, softmax and GELU is a loop over vectors of queries, without a sum across a vector, and the products take the
// weights as they are.
#pragma once

#include "kernel.h"

namespace liif {

constexpr int kGroup = 16;            // queries of a tile
constexpr int kColumns = 4 * kGroup;  // floats of a channel
constexpr int kMaxDepth = 64;         // blocks
constexpr float kNormEpsilon = 1e-5f;

// Weights [out, in] as nn.Linear's, contiguous. The first block has neither norm nor qkv: they are in the table.
struct AttentionBlock {
    const float *norm_weight, *norm_bias, *qkv;
    const float *out_weight, *out_bias;  // null where the heads' output is used as it is
    const float *mlp_norm_weight, *mlp_norm_bias, *up_weight, *up_bias, *down_weight, *down_bias;
    int64_t hidden;  // outputs of up
};

// A latent's row of the table is A [linear], n1 [2], n0 and, with blocks, z' [width]: liif_fast/backends/attention.py
// says what they are.
struct Attention {
    int64_t width, heads, linear, depth;
    const float* products;  // [linear, 2], and [width, 2] with blocks
    const float* bias;      // [linear]
    float square[3];        // S: (0, 0), (0, 1) + (1, 0), (1, 1)
    const AttentionBlock* blocks;
    const float *norm_weight, *norm_bias, *head_weight;  // of the last norm and the head, with blocks
    float head_bias;
    decltype(Kernel<float>::gemm) gemm;

    int64_t row() const { return linear + (depth > 0 ? width : 0) + 3; }
};

struct AttentionTile {
    const float* row[kColumns];  // of the table
    float rel[2][kColumns];
    float weight[kColumns];  // what comes out
};

// Sums of gradients. A matrix [out, in] has rows of round_up(in, 2 * lanes) floats; of a vector, and of products and
// square, each element is kGroup floats to be added up.
struct BlockGradients {
    float *norm_weight, *norm_bias, *qkv, *out_weight, *out_bias;
    float *mlp_norm_weight, *mlp_norm_bias, *up_weight, *up_bias, *down_weight, *down_bias;
};

struct AttentionGradients {
    float *products, *bias, *square;
    BlockGradients* blocks;
    float *norm_weight, *norm_bias, *head_weight, *head_bias;
};

struct AttentionKernel {
    int lanes;
    int64_t (*forward_scratch)(const Attention&);  // floats that it needs, aligned to 64 bytes
    void (*forward)(const Attention&, AttentionTile&, float* scratch);
    // From the gradient of the weights, grad [kColumns], given those of forward, to that of the table's rows,
    // row_grad[column] [net.row()].
    int64_t (*backward_scratch)(const Attention&);
    void (*backward)(const Attention&, const AttentionTile&, const float* grad, const AttentionGradients&,
                     float* const* row_grad, float* scratch);
};

// One per translation unit; null where the architecture or the compiler lacks it.
const AttentionKernel* attention_portable();
const AttentionKernel* attention_avx2();
const AttentionKernel* attention_avx512();

}  // namespace liif
