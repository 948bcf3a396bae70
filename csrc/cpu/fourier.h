// Shared by fourier.cpp and fourier_backward.cpp: the network behind the waves of LTE, and the queries' phases.
#pragma once

#include "checks.h"
#include "chunk.h"

namespace liif {

// p [B, h, w, 4 K]: of each latent 2 K amplitudes, half of them for cosines, and K frequencies of a row's and a
// column's part. The network's input, h[0] of `Network`, is the 2 K waves; they and the phases are computed in the type
// of sums.
template <typename T>
class FourierNet : public Network<T> {
   public:
    FourierNet(const Tensor& phase, const std::vector<Tensor>& weights, const std::vector<Tensor>& biases, int packs,
               Arena& arena, bool dry)
        : Network<T>(2 * phase.size(0), weights, biases, 0, packs, arena, dry), half_(phase.size(0)) {
        Sum<T>* to = arena.take<Sum<T>>(2 * half_);
        phase_ = to;
        if (dry) return;
        const Sum<T>* from = data<Sum<T>>(phase);
        for (int64_t k = 0; k < half_; ++k) {
            for (int64_t j = 0; j < 2; ++j) to[j * half_ + k] = from[k * phase.stride(0) + j * phase.stride(1)];
        }
    }

    int64_t half() const { return half_; }

    // to[k] = phase[k] . cell
    void phases(Sum<T>* to, const float* cell) const {
        const Sum<T> row = cell[0], column = cell[1];
        for (int64_t k = 0; k < half_; ++k) to[k] = phase_[k] * row + phase_[half_ + k] * column;
    }

    // Of angles, those of the cell: to[j] = sum over k of angle[k] phase[k][j].
    void phases_back(Sum<T>* to, const Sum<T>* angle) const {
        for (int64_t j = 0; j < 2; ++j) to[j] = dot(angle, phase_ + j * half_, half_);
    }

    // A row of h[0]; `wide` holds 2 K.
    void waves(T* h, const Sum<T>* latent, const Sum<T>* phases, const Corner& c, Sum<T>* wide) const {
        const Sum<T> rel[2] = {c.rel_row, c.rel_column};
        if constexpr (std::is_same_v<T, Sum<T>>) {
            kernel<T>().waves(h, latent, phases, rel, half_);
        } else {
            kernel<Sum<T>>().waves(wide, latent, phases, rel, half_);
            narrow_row(h, wide, 2 * half_);
        }
    }

   private:
    int64_t half_;
    const Sum<T>* phase_;
};

inline void check_fourier(const Tensor& p, const Tensor& coord, const Tensor& cell, const Tensor& phase,
                          const std::vector<Tensor>& weights, const std::vector<Tensor>& biases) {
    STD_TORCH_CHECK(p.dim() == 4 && p.is_contiguous(), "liif_fast: p must be [B, h, w, 4 K], contiguous");
    STD_TORCH_CHECK(phase.dim() == 2 && phase.size(1) == 2 && phase.size(0) >= 1 && 4 * phase.size(0) == p.size(3),
                    "liif_fast: phase must be [K, 2]");
    check_layers(weights, biases, 2 * phase.size(0));
    check_coord(coord, cell, p.size(0));
}

}  // namespace liif
