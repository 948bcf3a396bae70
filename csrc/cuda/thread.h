// The work of one consumer thread besides issuing wgmmas: find its rows, gather them into operand registers, initialise
// and convert accumulators, apply the first layer's rest and the last layer. U is the arithmetic of the operand type
// (ptx.h). The host also compiles the plan (tests/cuda).
#pragma once

#include "plan.h"

namespace liif::sm90 {

struct Lane {
    int q, g;  // of the PTX ISA's tables: threadID_in_group and groupID
};
LIIF_HD Lane make_lane(int lane) {
    return {lane & 3, lane >> 2};
}

struct float4_ {
    float x, y, z, w;
};

// The source of queries, and the memory that they read and write.
struct Problem {
    Axis rows, columns;  // of the whole latent map
    const uint32_t* p;   // [B, height, width, 256] of 16 bits, a window of that map
    int top, left, height, width;
    const float* coord;  // [B, Q, 2], or null: a window of a grid
    int64_t coord_steps[3];
    Centres grid_rows, grid_columns;
    int grid_top, grid_left, grid_width;  // of the window
    const float* cell;                    // null: not decoded
    int64_t cell_steps[3];
    int64_t queries, total;  // of an image, of all
    float* out;
    int64_t out_steps[3];  // image, query, channel
    int out_dim;
    int products;
    const unsigned char* packed;
};

// A query's number among all is that of its image times the queries of an image, plus its number there.
struct Query {
    int64_t image, index;
};
LIIF_HD Query find_query(const Problem& p, int64_t number) {
    const int64_t image = number / p.queries;
    return {image, number - image * p.queries};
}

// The plan of a thread's two rows, g and g + 8 of its warp. A latent is a row of P; 2^32 of them are 2 TB.
struct Rows {
    uint32_t latent[2];
    float rel[2][2], cell[2][2], weight[2];
};

// What a thread keeps of them from one tile to the next: `terms` is operand A of the first layer's columns for rel and
// cell.
struct Kept {
    uint32_t latent[2], terms[kRegistersA];
    float weight[2];
};

LIIF_HD void read_query(const Problem& p, Query query, float (&at)[2], float (&cell)[2]) {
    if (p.coord != nullptr) {
        const float* from = p.coord + query.image * p.coord_steps[0] + query.index * p.coord_steps[1];
        at[0] = from[0];
        at[1] = from[p.coord_steps[2]];
    } else {
        const int row = static_cast<int>(query.index / p.grid_width);
        const int column = static_cast<int>(query.index - int64_t{p.grid_width} * row);
        at[0] = p.grid_rows(p.grid_top + row);
        at[1] = p.grid_columns(p.grid_left + column);
    }
    cell[0] = cell[1] = 0.0f;
    if (p.cell != nullptr) {
        const float* from = p.cell + query.image * p.cell_steps[0] + query.index * p.cell_steps[1];
        cell[0] = mul(from[0], p.rows.size);
        cell[1] = mul(from[p.cell_steps[2]], p.columns.size);
    }
}

LIIF_HD int clamp_to(int i, int n) {
    return i < 0 ? 0 : (i < n ? i : n - 1);
}

LIIF_HD void take_row(const Problem& p, int64_t image, const Corner& c, int low, Rows& rows) {
    // The window holds every latent that is read; the clamp only prevents reads outside of P from a wrong window.
    const int i = clamp_to(c.row - p.top, p.height), j = clamp_to(c.column - p.left, p.width);
    rows.latent[low] = static_cast<uint32_t>((image * p.height + i) * p.width + j);
    rows.rel[low][0] = c.rel_row;
    rows.rel[low][1] = c.rel_column;
    rows.weight[low] = c.weight;
}

// The number, within the warp, of the query of a thread's row g (low 0) or g + 8 (low 1).
template <bool kEnsemble>
LIIF_HD int query_of(Lane lane, int low) {
    return kEnsemble ? row_query(lane.g) : lane.g + 8 * low;
}

// `first` is the number of the warp's first query; past the last query, the last one's rows are computed, not stored.
template <bool kEnsemble>
LIIF_HD void find_rows(const Problem& p, int64_t first, Lane lane, Rows& rows) {
#pragma unroll
    for (int low = 0; low < (kEnsemble ? 1 : 2); ++low) {
        const int64_t number = first + query_of<kEnsemble>(lane, low);
        const Query query = find_query(p, number < p.total ? number : p.total - 1);
        float at[2];
        read_query(p, query, at, rows.cell[low]);
        if (kEnsemble) {
            Corner pair[2];
            plan_pair(p.rows, p.columns, at[0], at[1], row_corner(lane.g), pair);
            take_row(p, query.image, pair[0], 0, rows);
            take_row(p, query.image, pair[1], 1, rows);
            rows.cell[1][0] = rows.cell[0][0];
            rows.cell[1][1] = rows.cell[0][1];
        } else {
            take_row(p, query.image, plan_single(p.rows, p.columns, at[0], at[1]), low, rows);
        }
    }
}

// A lane's term is number q: rel row, rel column, cell row, cell column. Split in two, like the weights, it keeps at
// least 16 bits.
template <typename U>
LIIF_HD Kept to_keep(const Rows& rows, Lane lane) {
    Kept kept;
#pragma unroll
    for (int low = 0; low < 2; ++low) {
        kept.latent[low] = rows.latent[low];
        kept.weight[low] = rows.weight[low];
        const float row = lane.q < 2 ? rows.rel[low][0] : rows.cell[low][0];
        const float column = lane.q < 2 ? rows.rel[low][1] : rows.cell[low][1];
        const float term = lane.q % 2 == 0 ? row : column;
        const uint32_t high = U::pack(term, term);
        const float rest = term - U::low(high);
        kept.terms[operand_register(0, 0, low)] = high;
        kept.terms[operand_register(0, 1, low)] = U::pack(rest, rest);
    }
    return kept;
}

// Loads rows of P, unchanged, into the operand registers.
template <typename U>
LIIF_HD void gather(const Problem& p, const Kept& rows, Lane lane, uint32_t (&a)[kOperands]) {
#pragma unroll
    for (int low = 0; low < 2; ++low) {
        const uint32_t* from = p.p + int64_t{rows.latent[low]} * (kHidden / 2) + gathered_channel(0, lane.q, 0) / 2;
#pragma unroll
        for (int j = 0; j < kHidden / 32; ++j) {
            uint32_t piece[4];
            U::load16(from + gathered_channel(j, 0, 0) / 2, piece);
#pragma unroll
            for (int e = 0; e < 4; ++e) a[gathered_register(j, e, low)] = piece[e];
        }
    }
}

// h1 = relu(P + W1r rel + W1c cell), in place, as a product of the whole warp.
template <typename U>
LIIF_HD void add_affine(const Kept& rows, Lane lane, const float* table, uint32_t (&a)[kOperands]) {
    const float* mine = table + kAffine + affine_piece(0, lane.q, lane.g);
#pragma unroll
    for (int j = 0; j < kHidden / 32; ++j) {
        uint32_t weights[4];
        U::load4(mine + affine_piece(j, 0, 0), weights);
#pragma unroll
        for (int e = 0; e < 4; ++e) {
            uint32_t &g = a[gathered_register(j, e, 0)], &g8 = a[gathered_register(j, e, 1)];
            float sum[4] = {U::low(g), U::high(g), U::low(g8), U::high(g8)};
            U::mma(sum, rows.terms, weights[e], weights[e]);
            g = U::pack_relu(sum[0], sum[1]);
            g8 = U::pack_relu(sum[2], sum[3]);
        }
    }
}

// Accumulators start at the bias, [256] in vector_place's order.
template <typename U>
LIIF_HD void start_at_bias(const float* bias, Lane lane, float (&d)[kAccumulators]) {
#pragma unroll
    for (int blocks = 0; blocks < kHidden / 16; ++blocks) {
        float4_ b;
        U::load4(bias + (blocks * 4 + lane.q) * 4, b);
#pragma unroll
        for (int low = 0; low < 2; ++low) {
            d[accumulator(2 * blocks, low, 0)] = b.x;
            d[accumulator(2 * blocks, low, 1)] = b.y;
            d[accumulator(2 * blocks + 1, low, 0)] = b.z;
            d[accumulator(2 * blocks + 1, low, 1)] = b.w;
        }
    }
}

// The next layer's operand, with ReLU.
template <typename U>
LIIF_HD void to_operand(const float (&d)[kAccumulators], uint32_t (&a)[kOperands]) {
#pragma unroll
    for (int kk = 0; kk < kSteps; ++kk) {
#pragma unroll
        for (int high = 0; high < 2; ++high) {
#pragma unroll
            for (int low = 0; low < 2; ++low) {
                const int block = 2 * kk + high;
                a[operand_register(kk, high, low)] =
                    U::pack_relu(d[accumulator(block, low, 0)], d[accumulator(block, low, 1)]);
            }
        }
    }
}

// The last layer without its bias, as a product of the whole warp: y are the outputs 2 (q & 1) + {0, 1} of row g, then
// of row g + 8. The activations are rounded to 16 bits, like those of all other layers.
template <typename U>
LIIF_HD void last_layer(const float (&d)[kAccumulators], Lane lane, const float* table, float (&y)[4]) {
    const float* mine = table + kLast + last_piece(0, lane.g % kMaxOut, lane.q);
    float sum[2][4] = {};  // two chains of sums, because a product takes long to complete
#pragma unroll
    for (int two_steps = 0; two_steps < kSteps / 2; ++two_steps) {
        uint32_t b[4];
        U::load4(mine + last_piece(two_steps, 0, 0), b);
#pragma unroll
        for (int odd = 0; odd < 2; ++odd) {
            uint32_t a[kRegistersA];
#pragma unroll
            for (int high = 0; high < 2; ++high) {
#pragma unroll
                for (int low = 0; low < 2; ++low) {
                    const int block = 2 * (2 * two_steps + odd) + high;
                    a[operand_register(0, high, low)] =
                        U::pack_relu(d[accumulator(block, low, 0)], d[accumulator(block, low, 1)]);
                }
            }
            U::mma(sum[odd], a, b[2 * odd], b[2 * odd + 1]);
        }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) y[i] = sum[0][i] + sum[1][i];
}

}  // namespace liif::sm90
