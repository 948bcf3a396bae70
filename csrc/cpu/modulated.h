// Shared by modulated.cpp and modulated_backward.cpp: the network of a query, whose layers each latent modulates.
#pragma once

#include "checks.h"

namespace liif {

// p [B, h, w, 2 L K + C]: of each latent the scales and the shifts of L hidden layers of K neurons, and C features. The
// network's input, h[0] of `Network`, is the features, rel and, if decoded, the cell. Layers 1 .. L are modulated, in
// the type of sums.
template <typename T>
class ModulatedNet : public Network<T> {
   public:
    ModulatedNet(const std::vector<Tensor>& weights, const std::vector<Tensor>& biases, int64_t places, int packs,
                 Arena& arena, bool dry)
        : Network<T>(weights[0].size(1), weights, biases, 0, packs, arena, dry),
          neurons_(weights[0].size(0)),
          places_(places) {}

    int64_t depth() const { return this->hidden() - 1; }
    int64_t neurons() const { return neurons_; }
    int64_t places() const { return places_; }  // of rel and of the cell
    int64_t features() const { return this->first_out() - places_; }
    // Where a latent's row holds what layer l is multiplied by and what is added, and the features.
    int64_t scale(int64_t l) const { return (l - 1) * neurons_; }
    int64_t shift(int64_t l) const { return (depth() + l - 1) * neurons_; }
    int64_t first_feature() const { return 2 * depth() * neurons_; }

    // A row of h[0]; `wide` holds as many sums if their type is not T.
    void enter(T* h, const Sum<T>* latent, const Corner& c, const float* cell, Sum<T>* wide) const {
        const Sum<T> places[4] = {c.rel_row, c.rel_column, cell[0], cell[1]};
        if constexpr (std::is_same_v<T, Sum<T>>) wide = h;
        std::memcpy(wide, latent + first_feature(), static_cast<size_t>(features()) * sizeof(Sum<T>));
        for (int64_t j = 0; j < places_; ++j) wide[features() + j] = places[j];
        if constexpr (!std::is_same_v<T, Sum<T>>) narrow(h, wide, this->first_out());
    }

    // The products of layer l with h[l - 1], and relu(product * (1 + scale) + shift), which may take their place. Row r
    // reads latent[r].
    void forward_modulated(int64_t l, const T* from, const Sum<T>* const* latent, int64_t rows, Sum<T>* product,
                           Sum<T>* to) const {
        this->forward_level(l, from, rows, product, Epilogue::none);
        kernel<Sum<T>>().modulate(to, product, this->stride(), latent, scale(l), shift(l), rows, neurons_);
    }

    // A row of the type of products, with a zero behind it where products take pairs.
    static void narrow(T* to, const Sum<T>* from, int64_t width) {
        narrow_row(to, from, width);
        if (width % kDepth<T> != 0) to[width] = T{};
    }

   private:
    int64_t neurons_, places_;
};

inline void check_modulated(const Tensor& p, const Tensor& coord, const std::optional<Tensor>& cell,
                            const std::vector<Tensor>& weights, const std::vector<Tensor>& biases) {
    const int64_t places = cell ? 4 : 2;
    STD_TORCH_CHECK(p.dim() == 4 && p.is_contiguous(), "liif_fast: p must be [B, h, w, 2 L K + C], contiguous");
    STD_TORCH_CHECK(weights.size() > 1 && weights[0].dim() == 2 && weights[0].size(1) >= places,
                    "liif_fast: weights must be those of a modulated layer at least and of the last one");
    check_layers(weights, biases, weights[0].size(1));
    const auto depth = static_cast<int64_t>(weights.size()) - 1;
    for (const Tensor& w : weights) {
        STD_TORCH_CHECK(&w == &weights.back() || w.size(0) == weights[0].size(0),
                        "liif_fast: the modulated layers must have one width");
    }
    STD_TORCH_CHECK(p.size(3) == 2 * depth * weights[0].size(0) + weights[0].size(1) - places,
                    "liif_fast: p must be [B, h, w, 2 L K + C], contiguous");
    check_coord(coord, cell, p.size(0));
}

}  // namespace liif
