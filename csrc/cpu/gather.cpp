// liif_fast::gather_corners: lookup of the nearest latents, 3x3 unfolding, rel, cell and weights in one pass, for the
// caller's own network.
#include "checks.h"
#include "operators.h"
#include "plan.h"
#include "queries.h"

namespace liif {
namespace {

// Whether the 3x3 neighbourhood lies in the map, as it does almost everywhere.
bool inside(const Corner& at, int64_t height, int64_t width) {
    return at.row > 0 && at.row < height - 1 && at.column > 0 && at.column < width - 1;
}

template <typename T>
std::tuple<Tensor, Tensor> run(const Tensor& feat, const Tensor& coord, const std::optional<Tensor>& cell, bool unfold,
                               bool ensemble) {
    const int corners = ensemble ? 4 : 1, terms = cell ? 4 : 2;
    const int64_t channels = feat.size(1), height = feat.size(2), width = feat.size(3);
    const int64_t sb = feat.stride(0), sc = feat.stride(1), sh = feat.stride(2), sw = feat.stride(3);
    const int64_t images = coord.size(0), per_image = coord.size(1);
    const int64_t depth = channels * (unfold ? 9 : 1) + terms;
    Tensor x = make<T>(feat, {images, per_image, corners, depth});
    Tensor weight = make<float>(coord, {images, per_image, corners});
    const CoordQueries queries(coord, cell, height, width, ensemble);
    const T* from = data<T>(feat);
    T* to = mutable_data<T>(x);
    float* to_weight = weight.mutable_data_ptr<float>();
    torch::stable::parallel_for(0, images * per_image, 64, [&](int64_t begin, int64_t end) {
        Corner corner[4];
        for (int64_t q = begin; q < end; ++q) {
            const Query query = queries(q, corner);
            for (int t = 0; t < corners; ++t) {
                const Corner& at = corner[t];
                const T* latent = from + query.batch * sb + at.row * sh + at.column * sw;
                T* row = to + (q * corners + t) * depth;
                if (!unfold) {
                    for (int64_t c = 0; c < channels; ++c, latent += sc) *row++ = *latent;
                } else if (sw == 1 && inside(at, height, width)) {
                    for (int64_t c = 0; c < channels; ++c, latent += sc) {
                        for (int64_t i = -1; i <= 1; ++i, row += 3) {
                            const T* three = latent + i * sh - 1;
                            row[0] = three[0], row[1] = three[1], row[2] = three[2];
                        }
                    }
                } else {
                    for (int64_t c = 0; c < channels; ++c, latent += sc) {
                        for (int64_t i = -1; i <= 1; ++i) {
                            const bool row_inside = at.row + i >= 0 && at.row + i < height;
                            for (int64_t j = -1; j <= 1; ++j) {
                                const bool in_map = row_inside && at.column + j >= 0 && at.column + j < width;
                                *row++ = in_map ? latent[i * sh + j * sw] : T(0);
                            }
                        }
                    }
                }
                *row++ = static_cast<T>(at.rel_row);
                *row++ = static_cast<T>(at.rel_column);
                if (terms == 4) {
                    *row++ = static_cast<T>(query.cell[0]);
                    *row++ = static_cast<T>(query.cell[1]);
                }
                to_weight[q * corners + t] = at.weight;
            }
        }
    });
    return {x, weight};
}

// Each task owns some channels of one image and adds the rows in order, so the result does not depend on the threads.
template <typename T>
Tensor run_backward(const Tensor& grad, const Tensor& coord, int64_t channels, int64_t height, int64_t width,
                    bool unfold, bool ensemble) {
    const int corners = ensemble ? 4 : 1;
    const int64_t images = coord.size(0), per_image = coord.size(1), depth = grad.size(3);
    Tensor feat_grad = make_zeros<T>(grad, {images, channels, height, width});
    const CoordQueries queries(coord, std::nullopt, height, width, ensemble);
    struct Latent {
        int64_t row, column;
    };
    std::vector<Latent> latents(static_cast<size_t>(images * per_image * corners));
    torch::stable::parallel_for(0, images * per_image, 1024, [&](int64_t begin, int64_t end) {
        Corner corner[4];
        for (int64_t q = begin; q < end; ++q) {
            queries(q, corner);
            for (int t = 0; t < corners; ++t) {
                latents[static_cast<size_t>(q * corners + t)] = {corner[t].row, corner[t].column};
            }
        }
    });
    const T* from = data<T>(grad);
    T* to = mutable_data<T>(feat_grad);
    constexpr int64_t block = 8;
    const int64_t blocks = ceil_div(channels, block), taps = unfold ? 9 : 1, reach = unfold ? 1 : 0;
    for_each_task(images * blocks, [&](int64_t task) {
        const int64_t b = task / blocks, first = task % blocks * block, last = std::min(channels, first + block);
        for (int64_t r = b * per_image * corners; r < (b + 1) * per_image * corners; ++r) {
            const Latent at = latents[static_cast<size_t>(r)];
            const T* row = from + r * depth + first * taps;
            for (int64_t c = first; c < last; ++c) {
                T* plane = to + (b * channels + c) * height * width;
                for (int64_t i = at.row - reach; i <= at.row + reach; ++i) {
                    for (int64_t j = at.column - reach; j <= at.column + reach; ++j, ++row) {
                        if (i >= 0 && i < height && j >= 0 && j < width) plane[i * width + j] += *row;
                    }
                }
            }
        }
    });
    return feat_grad;
}

}  // namespace

std::tuple<Tensor, Tensor> gather_corners(const Tensor& feat, const Tensor& coord, const std::optional<Tensor>& cell,
                                          bool unfold, bool ensemble) {
    STD_TORCH_CHECK(feat.dim() == 4, "liif_fast: feat must be [B, C, H, W]");
    check_coord(coord, cell, feat.size(0));
    return dispatch_wide(feat, [&](auto t) { return run<decltype(t)>(feat, coord, cell, unfold, ensemble); });
}

Tensor gather_corners_backward(const Tensor& grad, const Tensor& coord, int64_t channels, int64_t height, int64_t width,
                               bool unfold, bool ensemble) {
    STD_TORCH_CHECK(grad.is_contiguous() && grad.dim() == 4 && grad.size(0) == coord.size(0) &&
                        grad.size(1) == coord.size(1) && grad.size(2) == (ensemble ? 4 : 1) &&
                        grad.size(3) >= channels * (unfold ? 9 : 1),
                    "liif_fast: grad must be contiguous, as x of gather_corners");
    check_coord(coord, std::nullopt, grad.size(0));
    return dispatch_wide(grad, [&](auto t) {
        return run_backward<decltype(t)>(grad, coord, channels, height, width, unfold, ensemble);
    });
}

}  // namespace liif
