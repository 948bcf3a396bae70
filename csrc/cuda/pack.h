// Packing: computes one element of the packed weights. The CPU operator (csrc/cpu) and the CUDA one call it for every
// element.
#pragma once

#include "layout.h"

namespace liif::sm90 {

// A matrix or a vector with any strides.
template <typename S>
struct Source {
    const S* data;
    int64_t row, column;
    LIIF_HD float operator()(int i, int j) const { return static_cast<float>(data[i * row + j * column]); }
};

// Element (n, k) of a product, k in the unit's order; `gathered` for the first one, whose input comes from P.
template <typename T, typename S>
LIIF_HD void pack_weight(const Source<S>& weight, bool gathered, int n, int k, unsigned char* product) {
    unsigned char* at = product + slice_offset(k / kSliceK) + weight_offset(n, k);
    *reinterpret_cast<T*>(at) = static_cast<T>(weight(n, gathered ? channel_of_k(k) : k));
}

template <typename S>
LIIF_HD void pack_bias(const Source<S>& bias, int n, unsigned char* product) {
    reinterpret_cast<float*>(product + kSliceBytes)[vector_place(n)] = bias(n, 0);
}

// Channel c of the table: `affine` are the first layer's last `terms` columns [256, terms]; `last` [out, 256].
template <typename T, typename S>
LIIF_HD void pack_table(const Source<S>& affine, int terms, const Source<S>& last, const Source<S>& bias, int out,
                        int c, float* table) {
    for (int j = 0; j < kTerms; ++j) {
        const float weight = j < terms ? affine(c, j) : 0.0f;
        T* parts = reinterpret_cast<T*>(table + affine_place(j, c));  // their sum is the weight
        parts[0] = static_cast<T>(weight);
        parts[1] = static_cast<T>(weight - static_cast<float>(parts[0]));
    }
    for (int o = 0; o < kMaxOut; ++o) {
        reinterpret_cast<T*>(table + kLast)[last_place(o, c)] = static_cast<T>(o < out ? last(o, c) : 0.0f);
        if (c == 0) table[kLastBias + o] = o < out ? bias(o, 0) : 0.0f;
    }
}

}  // namespace liif::sm90
