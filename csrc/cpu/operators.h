// The operators of the CPU backend; their schemas, shapes and gradients are in liif_fast/ops/.
#pragma once

#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "common.h"

namespace liif {

using Tensors = std::vector<Tensor>;
using Ints = std::vector<int64_t>;
using Floats = std::vector<double>;

Tensor project(const Tensor& feat, const Tensor& weight, const Tensor& bias, bool unfold, const Ints& window);

std::tuple<Tensor, Tensor> decode(const Tensor& p, const Tensor& coord, const std::optional<Tensor>& cell,
                                  const Tensors& weights, const Tensors& biases, bool ensemble, const Ints& saved);

Tensor decode_direct(const Tensor& feat, const Tensor& coord, const std::optional<Tensor>& cell, const Tensors& weights,
                     const Tensors& biases, bool unfold, bool ensemble);

std::tuple<Tensor, Tensor> render(const Tensor& p, const std::optional<Tensor>& cell, const Tensors& weights,
                                  const Tensors& biases, bool ensemble, const Ints& grid, const Floats& steps,
                                  const Ints& saved);

Tensors decode_backward(const Tensor& grad, const Tensor& p, const Tensor& coord, const std::optional<Tensor>& cell,
                        const Tensors& weights, const Tensors& biases, const Tensor& saved, bool ensemble,
                        const Flags& wanted);

Tensors render_backward(const Tensor& grad, const Tensor& p, const std::optional<Tensor>& cell, const Tensors& weights,
                        const Tensors& biases, const Tensor& saved, bool ensemble, const Ints& grid,
                        const Flags& wanted);

std::tuple<Tensor, Tensor> gather_corners(const Tensor& feat, const Tensor& coord, const std::optional<Tensor>& cell,
                                          bool unfold, bool ensemble);

Tensor gather_corners_backward(const Tensor& grad, const Tensor& coord, int64_t channels, int64_t height, int64_t width,
                               bool unfold, bool ensemble);

std::tuple<Tensor, Tensor> fused_mlp(const Tensor& x, const Tensors& weights, const Tensors& biases, const Ints& saved);

Tensors fused_mlp_backward(const Tensor& grad, const Tensor& x, const Tensors& weights, const Tensors& biases,
                           const Tensor& saved, const Flags& wanted);

std::tuple<Tensor, Tensor> attend_corners(const Tensor& table, const Tensor& by_rel, const Tensors& layers,
                                          const Tensors& queries, const Ints& shape, bool wrap, int64_t heads);

Tensors attend_corners_backward(const Tensor& grad, const Tensor& grad_weight, const Tensor& table,
                                const Tensor& by_rel, const Tensors& layers, const Tensors& queries, const Ints& shape,
                                bool wrap, int64_t heads, const Flags& wanted);

std::tuple<Tensor, Tensor> fourier_decode(const Tensor& p, const Tensor& coord, const Tensor& cell, const Tensor& phase,
                                          const Tensors& weights, const Tensors& biases, const Ints& place,
                                          const Ints& saved);

Tensors fourier_decode_backward(const Tensor& grad, const Tensor& p, const Tensor& coord, const Tensor& cell,
                                const Tensor& phase, const Tensors& weights, const Tensors& biases, const Tensor& saved,
                                const Flags& wanted);

Tensor modulated_decode(const Tensor& p, const Tensor& coord, const std::optional<Tensor>& cell, const Tensors& weights,
                        const Tensors& biases, bool ensemble, const Ints& place);

Tensors modulated_decode_backward(const Tensor& grad, const Tensor& p, const Tensor& coord,
                                  const std::optional<Tensor>& cell, const Tensors& weights, const Tensors& biases,
                                  bool ensemble, const Flags& wanted);

Tensor bicubic_resize(const Tensor& image, const Tensor& first_row, const Tensor& row_weight,
                      const Tensor& first_column, const Tensor& column_weight);

Tensor pack_sm90(const Tensors& weights, const Tensors& biases, int64_t terms, bool bfloat);

Tensor conv3x3(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
               const std::optional<Tensor>& addend, bool wrap, bool relu);

Tensors conv3x3_backward(const Tensor& grad, const Tensor& x, const Tensor& weight, const std::optional<Tensor>& addend,
                         bool wrap, const Flags& wanted, bool relu);

std::string cpu_isa();

bool cpu_has_bfloat16();

std::string cpu_missing_amx();

std::string cpu_use_amx(bool on);

}  // namespace liif
