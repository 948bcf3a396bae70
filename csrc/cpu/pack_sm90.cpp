// liif_fast::pack_sm90 on the CPU: packs the weights as the Hopper kernel reads them (csrc/cuda/layout.h).
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "../cuda/checks.h"
#include "../cuda/pack.h"
#include "operators.h"

namespace liif {
namespace {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

template <typename S>
sm90::Source<S> source(const Tensor& t, int64_t first_column = 0) {
    const int64_t column = t.dim() == 2 ? t.stride(1) : 0;
    return {static_cast<const S*>(t.const_data_ptr()) + first_column * column, t.stride(0), column};
}

template <typename T, typename S>
void run(const Tensors& weights, const Tensors& biases, int64_t terms, unsigned char* to) {
    const size_t last = weights.size() - 1;
    for (size_t layer = 1; layer < last; ++layer, to += sm90::kProductBytes) {
        const auto weight = source<S>(weights[layer]), bias = source<S>(biases[layer]);
        for (int n = 0; n < sm90::kHidden; ++n) {
            for (int k = 0; k < sm90::kHidden; ++k) sm90::pack_weight<T>(weight, layer == 1, n, k, to);
            sm90::pack_bias(bias, n, to);
        }
    }
    const auto affine = source<S>(weights[0], weights[0].size(1) - terms);
    for (int c = 0; c < sm90::kHidden; ++c) {
        sm90::pack_table<T>(affine, static_cast<int>(terms), source<S>(weights[last]), source<S>(biases[last]),
                            static_cast<int>(weights[last].size(0)), c, reinterpret_cast<float*>(to));
    }
}

template <typename T>
void run_from(const Tensors& weights, const Tensors& biases, int64_t terms, unsigned char* to) {
    switch (weights[0].scalar_type()) {
        case ScalarType::Float:
            return run<T, float>(weights, biases, terms, to);
        case ScalarType::Half:
            return run<T, Half>(weights, biases, terms, to);
        case ScalarType::BFloat16:
            return run<T, BFloat16>(weights, biases, terms, to);
        default:
            STD_TORCH_CHECK(false, "liif_fast: pack_sm90 takes float32, float16 or bfloat16");
    }
}

}  // namespace

Tensor pack_sm90(const Tensors& weights, const Tensors& biases, int64_t terms, bool bfloat) {
    sm90::check_packable(weights, biases, terms);
    Tensor packed = torch::stable::new_empty(weights[0], {sm90::packed_bytes(static_cast<int64_t>(weights.size()) - 2)},
                                             ScalarType::Byte);
    auto* to = static_cast<unsigned char*>(packed.mutable_data_ptr());
    if (bfloat) {
        run_from<BFloat16>(weights, biases, terms, to);
    } else {
        run_from<Half>(weights, biases, terms, to);
    }
    return packed;
}

}  // namespace liif
