// csrc/cuda's headers compiled for the host, as plain functions for tests/cuda/model.py: a warpgroup at a time, each
// thread executing what the kernel's threads execute. Reductions over lanes and the products themselves are the
// model's.
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstring>

#include "pack.h"
#include "thread.h"

using namespace liif::sm90;

namespace {

template <typename T>
struct Host {
    static void load16(const uint32_t* from, uint32_t (&to)[4]) { std::memcpy(to, from, 16); }
    static void load4(const float* from, float4_& to) { std::memcpy(&to, from, 16); }
    static float relu(float x) { return x < 0.0f ? 0.0f : x; }
    static uint32_t bits(float x) {
        const T value(relu(x));
        uint16_t half;
        std::memcpy(&half, &value, 2);
        return half;
    }
    static uint32_t pack_relu(float low, float high) { return bits(low) | bits(high) << 16; }
    static float value(uint32_t half) {
        const auto narrow = static_cast<uint16_t>(half);
        T t;
        std::memcpy(&t, &narrow, 2);
        return static_cast<float>(t);
    }
    static float low(uint32_t pair) { return value(pair & 0xFFFF); }
    static float high(uint32_t pair) { return value(pair >> 16); }
};

using F16 = Host<torch::headeronly::Half>;
using Bf16 = Host<torch::headeronly::BFloat16>;

}  // namespace

extern "C" {

int constant(const char* name) {
    const struct {
        const char* name;
        int value;
    } all[] = {{"hidden", kHidden},
               {"slices", kSlices},
               {"steps_per_slice", kSteps1},
               {"slice_bytes", kSliceBytes},
               {"stage_bytes", kStageBytes},
               {"product_bytes", kProductBytes},
               {"stages", kStages},
               {"shared_bytes", kSharedBytes},
               {"table_floats", kTableFloats},
               {"last_bias", kLastBias},
               {"tile_rows", kTileRows}};
    for (const auto& each : all) {
        if (std::strcmp(each.name, name) == 0) return each.value;
    }
    return -1;
}
int first_register(int kk) {
    return operand_register(kk, 0, 0);
}
int copy_offset(int slice) {
    return slice_offset(slice);
}
int copy_share(int rank, int cluster) {
    return share_offset(rank, cluster);
}
int copy_bytes(int slice, int rank, int cluster) {
    return share_bytes(slice, rank, cluster);
}
uint64_t step_descriptor(uint32_t slice, int step) {
    return descriptor(step_address(slice, step));
}

void pack(const float* const* weights, const float* const* biases, int layers, int in, int terms, int out, int bfloat,
          unsigned char* to) {
    for (int layer = 1; layer < layers - 1; ++layer, to += kProductBytes) {
        const Source<float> weight{weights[layer], kHidden, 1}, bias{biases[layer], 1, 0};
        for (int n = 0; n < kHidden; ++n) {
            for (int k = 0; k < kHidden; ++k) {
                if (bfloat) {
                    pack_weight<torch::headeronly::BFloat16>(weight, layer == 1, n, k, to);
                } else {
                    pack_weight<torch::headeronly::Half>(weight, layer == 1, n, k, to);
                }
            }
            pack_bias(bias, n, to);
        }
    }
    const Source<float> affine{weights[0] + in - terms, in, 1}, last{weights[layers - 1], kHidden, 1};
    const Source<float> bias{biases[layers - 1], 1, 0};
    for (int c = 0; c < kHidden; ++c) pack_table(affine, terms, last, bias, out, c, reinterpret_cast<float*>(to));
}

// where: map height, map width, p's top, left, height, width, Q, total, grid height, width, the window's top, left,
// width. coord [B, Q, 2] or null; cell [B, Q, 2] (or with step 0) or null.
void* problem(const int64_t* where, int ensemble, const uint32_t* p, const float* coord, const float* cell,
              int64_t cell_step) {
    const auto at = [&](int i) { return static_cast<int>(where[i]); };
    auto* made = new Problem{};
    made->rows = make_axis(at(0), ensemble);
    made->columns = make_axis(at(1), ensemble);
    made->p = p;
    made->top = at(2), made->left = at(3), made->height = at(4), made->width = at(5);
    made->queries = where[6], made->total = where[7];
    made->grid_rows = make_centres(at(8)), made->grid_columns = make_centres(at(9));
    made->grid_top = at(10), made->grid_left = at(11), made->grid_width = at(12);
    made->coord = coord;
    made->cell = cell;
    const int64_t q = where[6];
    const int64_t coord_steps[] = {2 * q, 2, 1}, cell_steps[] = {cell_step ? 2 * q : 2, cell_step, 1};
    std::memcpy(made->coord_steps, coord_steps, sizeof coord_steps);
    std::memcpy(made->cell_steps, cell_steps, sizeof cell_steps);
    return made;
}
void forget(void* problem) {
    delete static_cast<Problem*>(problem);
}

// One thread's rows: rel [2, 2], weight [2], latent row of p [2].
void rows_of(const void* problem, int ensemble, int64_t first, int lane, float* rel, float* weight, int64_t* latent) {
    const auto& p = *static_cast<const Problem*>(problem);
    Rows rows;
    if (ensemble) {
        find_rows<true>(p, first, make_lane(lane), rows);
    } else {
        find_rows<false>(p, first, make_lane(lane), rows);
    }
    std::memcpy(rel, rows.rel, sizeof rows.rel);
    std::memcpy(weight, rows.weight, sizeof rows.weight);
    for (int low = 0; low < 2; ++low) latent[low] = (rows.latent[low] - p.p) / (kHidden / 2);
}

}  // extern "C"

namespace {

template <typename U>
void first_layer(const Problem& p, bool ensemble, int64_t first, Lane lane, const float* table,
                 uint32_t (&a)[kOperands], float* weight) {
    Rows rows;
    if (ensemble) {
        find_rows<true>(p, first, lane, rows);
    } else {
        find_rows<false>(p, first, lane, rows);
    }
    gather<U>(rows, lane, a);
    add_affine<U>(rows, lane, table, a);
    std::memcpy(weight, rows.weight, sizeof rows.weight);
}

using Operands = uint32_t (&)[kOperands];
using Accumulators = float (&)[kAccumulators];
using Sums = float (&)[2][kMaxOut];

}  // namespace

extern "C" {

// Of a whole warpgroup, `first` being the number of its first query: a [128, 64], weight [128, 2].
void gather_rows(const void* problem, int ensemble, int bfloat, int64_t first, const float* table, uint32_t* a,
                 float* weight) {
    const auto& p = *static_cast<const Problem*>(problem);
    for (int t = 0; t < 128; ++t) {
        const int64_t warp_first = first + t / 32 * queries_per_warp(ensemble);
        auto& registers = reinterpret_cast<Operands>(a[t * kOperands]);
        if (bfloat) {
            first_layer<Bf16>(p, ensemble, warp_first, make_lane(t % 32), table, registers, weight + 2 * t);
        } else {
            first_layer<F16>(p, ensemble, warp_first, make_lane(t % 32), table, registers, weight + 2 * t);
        }
    }
}

void start(const float* bias, float* d) {
    for (int t = 0; t < 128; ++t) {
        start_at_bias<F16>(bias, make_lane(t % 32), reinterpret_cast<Accumulators>(d[t * kAccumulators]));
    }
}

void convert(const float* d, int bfloat, uint32_t* a) {
    for (int t = 0; t < 128; ++t) {
        const auto& from = reinterpret_cast<const float (&)[kAccumulators]>(d[t * kAccumulators]);
        auto& to = reinterpret_cast<Operands>(a[t * kOperands]);
        if (bfloat) {
            to_operand<Bf16>(from, to);
        } else {
            to_operand<F16>(from, to);
        }
    }
}

// sum [128, 2, 4].
void last(const float* d, const float* weight, int ensemble, const float* table, float* sum) {
    for (int t = 0; t < 128; ++t) {
        const auto& from = reinterpret_cast<const float (&)[kAccumulators]>(d[t * kAccumulators]);
        const float weights[2] = {weight[2 * t], weight[2 * t + 1]};
        auto& to = reinterpret_cast<Sums>(sum[t * 2 * kMaxOut]);
        if (ensemble) {
            last_layer<F16, true>(from, weights, make_lane(t % 32), table, to);
        } else {
            last_layer<F16, false>(from, weights, make_lane(t % 32), table, to);
        }
    }
}
}
