// Checks of the operators' assumptions, also for direct calls.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <vector>

#include "layout.h"

namespace liif::sm90 {

inline void check_packable(const std::vector<torch::stable::Tensor>& weights,
                           const std::vector<torch::stable::Tensor>& biases, int64_t terms) {
    const size_t layers = weights.size();
    STD_TORCH_CHECK(layers >= 3 && biases.size() == layers,
                    "liif_fast: at least two hidden layers are needed, and as many biases as weights");
    STD_TORCH_CHECK(terms == 2 || terms == kTerms, "liif_fast: terms must be 2 or 4");
    for (size_t i = 0; i < layers; ++i) {
        const auto &w = weights[i], &b = biases[i];
        STD_TORCH_CHECK(w.dim() == 2 && b.dim() == 1 && b.size(0) == w.size(0) &&
                            w.scalar_type() == weights[0].scalar_type() && b.scalar_type() == w.scalar_type(),
                        "liif_fast: weights must be [out, in], biases [out], all of one dtype");
        STD_TORCH_CHECK(i == 0 ? w.size(1) >= terms : w.size(1) == kHidden,
                        "liif_fast: hidden layers must be 256 wide");
        STD_TORCH_CHECK(i + 1 < layers ? w.size(0) == kHidden : w.size(0) >= 1 && w.size(0) <= kMaxOut,
                        "liif_fast: hidden layers must be 256 wide, the last layer 1 to 4");
    }
}

}  // namespace liif::sm90
