// The gradients of conv3x3.
#include "operators.h"
#include "winograd.h"

namespace liif {
namespace {

struct TotalTag {};

// One worker's sums for a block of the weights: 36 positions of `kChannels` rows, then the bias.
constexpr int64_t kShareBias = kPositions * kChannels * kChannels, kShare = kShareBias + kChannels;

// The gradients, from tiles of 4 x 4 pixels of x and the 6 x 6 of the output's gradient that depend on them.
// Transformed once, these give the gradient of x, by kernels turned by 180 degrees, and that of the weights, turned
// likewise.
template <typename T>
struct BackwardPass {
    Tiling tiling;
    int64_t more;  // rows that x repeats, at both ends
    Map<const T> grad, x;
    const Weights<T>* weights;  // null if the gradient of x is not wanted
    Map<T>* of_x;
    const Map<const T>*addend, *mask;  // added to the gradient of x; where it is zero. Null if not given
    bool of_weight, of_bias;

    // Adds the tiles [begin, end) to a worker's sums and to the gradient of x, for the channels of grad from n on and
    // those of x from k on.
    void operator()(int64_t begin, int64_t end, int64_t n, int64_t k, T* sum) const {
        const int64_t nr = kernel<T>().nr, widest = std::max(x.channels, grad.channels);
        const int64_t width = std::min(kChannels, grad.channels - n), depth = std::min(kChannels, x.channels - k);
        const auto m = take_memory<T>(widest);
        std::fill(m.two, m.two + kPositions * kPosition, T(0));  // the products read whole panels
        std::fill(sum + kShareBias, sum + kShare, T(0));
        const std::vector<T> no_bias(static_cast<size_t>(kChannels));
        const bool last = n + kChannels >= grad.channels;
        const T *pixel[kPositions], *other[16];
        const Edge edge = more ? Edge::wrap_rows : Edge::zeros;
        const Winograd<T>& winograd = *kernel<T>().winograd;
        for (int64_t first = begin; first < end; first += tiling.block) {
            const int64_t count = std::min(tiling.block, end - first);
            for (int64_t t = 0; t < count; ++t) {
                tiling.find<6>(first + t, grad, n, 1 + more, 1, edge, m.zeros, pixel);
                if (weights || of_weight) winograd.input(m.one + t * kChannels, kPosition, pixel, width);
                if (!of_bias || k > 0) continue;
                tiling.find<4>(first + t, grad, n, more, 0, Edge::zeros, m.zeros, pixel);
                winograd.add_pixels(sum + kShareBias, pixel, width);
            }
            if (weights) {
                Ahead<T> ahead;
                for (int64_t t = first; t < first + count; ++t) {
                    ahead.add(tiling, t, *of_x, k, 0, 0);
                    if (n == 0 && addend) ahead.add(tiling, t, *addend, k, 0, 0);
                    if ((last && mask) || of_weight) ahead.add(tiling, t, x, k, more, 0);
                    if (!of_weight) ahead.add(tiling, t + tiling.block, grad, n, more - 1, -1);
                }
                weights->multiply(m.one, m.two, count, n, width, k, depth, Init::zero, ahead);
                for (int64_t t = 0; t < count; ++t) {
                    T* target[16];
                    tiling.find<4>(first + t, *of_x, k, 0, 0, Edge::zeros, m.spare, target);
                    const bool adds = n > 0 || addend, masks = last && mask;
                    if (n > 0) std::copy(target, target + 16, pixel);
                    if (n == 0 && addend) tiling.find<4>(first + t, *addend, k, 0, 0, Edge::zeros, m.zeros, pixel);
                    if (masks) tiling.find<4>(first + t, *mask, k, 0, 0, Edge::zeros, m.zeros, other);
                    winograd.output(target, m.two + t * kChannels, kPosition, depth, no_bias.data(),
                                    adds ? pixel : nullptr, false, masks ? other : nullptr);
                }
            }
            if (of_weight) {
                for (int64_t t = 0; t < count; ++t) {
                    tiling.find<4>(first + t, x, k, more, 0, more ? Edge::repeat : Edge::zeros, m.zeros, pixel);
                    winograd.inner(m.two + t * kChannels, kPosition, pixel, depth);
                }
                Ahead<T> ahead;
                for (int64_t t = first; t < first + count; ++t)
                    ahead.add(tiling, t + tiling.block, grad, n, more - 1, -1);
                multiply_blocks<T>({width, depth, count, m.one, 1, kChannels, m.two, nr, kChannels, sum, kChannels,
                                    first == begin ? Init::zero : Init::accumulate, nullptr, Epilogue::none, nullptr},
                                   kPosition, kChannels * kChannels, kChannels, ahead);
            }
        }
    }
};

// `padded` has the gradients of rows that `wrap` repeats, too: adds each to that of the row itself, then the addend.
// The result is zero where the mask is <= 0.
template <typename T>
Tensor fold(const Tensor& padded, const Map<const T>* addend, const Map<const T>* mask) {
    const int64_t images = padded.size(0), channels = padded.size(1), height = padded.size(2) - 2;
    const int64_t width = padded.size(3), row = width * channels;
    Tensor result = make_channels_last<T>(padded, {images, channels, height, width}, Sign::training);
    const T* from = data<T>(padded);
    T* to = mutable_data<T>(result);
    for_each_task(row == 0 ? 0 : images * height, [&](int64_t task) {
        const int64_t image = task / height, i = task % height;
        const T* source = from + (image * (height + 2) + i + 1) * row;
        T* target = to + task * row;
        std::memcpy(target, source, static_cast<size_t>(row) * sizeof(T));
        if (i == 0) kernel<T>().add(target, source - row, row);
        if (i == height - 1) kernel<T>().add(target, source + row, row);
        for (int64_t j = 0; j < width; ++j, target += channels) {
            if (addend) kernel<T>().add(target, addend->at(image, i, j), channels);
            const T* kept = mask ? mask->at(image, i, j) : nullptr;
            for (int64_t c = 0; mask && c < channels; ++c) target[c] = kept[c] <= T(0) ? T(0) : target[c];
        }
    });
    return result;
}

// Each worker has a share of the tiles and its own sums, which are added in the order of the workers.
template <typename T>
Tensors run_backward(const Tensor& grad, const Tensor& x, const Tensor& weight, const std::optional<Tensor>& addend,
                     bool wrap, const Flags& wanted, bool relu) {
    const int64_t ins = x.size(1), outs = grad.size(1), height = x.size(2), width = x.size(3), more = wrap ? 1 : 0;
    const Tiling tiling(x.size(0), height + 2 * more, width);
    const int64_t blocks = ceil_div(tiling.count(), tiling.block);
    const int64_t workers = std::min<int64_t>(blocks, torch::stable::get_num_threads());
    Tensor of_x = wanted[0] ? make_channels_last<T>(x, {x.size(0), ins, height + 2 * more, width}, Sign::training)
                            : make<T>(x, {0});
    Tensor of_weight = wanted[1] ? make_channels_last<T>(x, {outs, ins, 3, 3}, Sign::training) : make<T>(x, {0});
    Tensor of_bias = make<T>(x, {wanted[2] ? outs : 0}), memory = make<T>(x, {workers * kShare});
    std::optional<Weights<T>> weights;
    std::optional<Map<T>> to_x;
    if (wanted[0]) weights.emplace(weight, true), to_x.emplace(mutable_data<T>(of_x), of_x);
    T *to_weight = mutable_data<T>(of_weight), *to_bias = mutable_data<T>(of_bias), *sums = mutable_data<T>(memory);
    const auto added = map_of<T>(addend);
    const auto from = map_of<T>(x);
    const Map<const T>*adds = added ? &*added : nullptr, *masks = relu ? &from : nullptr;
    const BackwardPass<T> pass{tiling,
                               more,
                               map_of<T>(grad),
                               from,
                               weights ? &*weights : nullptr,
                               to_x ? &*to_x : nullptr,
                               wrap ? nullptr : adds,
                               wrap ? nullptr : masks,
                               wanted[1],
                               wanted[2]};
    const auto total = [&](int64_t at) {
        double sum = 0;
        for (int64_t w = 0; w < workers; ++w) sum += static_cast<double>(sums[w * kShare + at]);
        return sum;
    };
    for (int64_t k = 0; k < (wanted[0] || wanted[1] ? ins : 1); k += kChannels) {
        for (int64_t n = 0; n < outs; n += kChannels) {
            torch::stable::parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) {
                for (int64_t w = begin; w < end; ++w) {
                    pass(w * blocks / workers * tiling.block,
                         std::min(tiling.count(), (w + 1) * blocks / workers * tiling.block), n, k, sums + w * kShare);
                }
            });
            const int64_t depth = std::min(kChannels, ins - k), count = std::min(kChannels, outs - n);
            for (int64_t o = 0; wanted[2] && k == 0 && o < count; ++o) {
                to_bias[n + o] = static_cast<T>(total(kShareBias + o));
            }
            for_each_task(wanted[1] ? count : 0, [&](int64_t o) {
                double* sum = scratch<double, TotalTag>(kPositions * depth);
                for (int64_t p = 0; p < kPositions; ++p) {
                    for (int64_t c = 0; c < depth; ++c) {
                        sum[p * depth + c] = total((p * kChannels + o) * kChannels + c);
                    }
                }
                kernel<T>().winograd->weight_back(to_weight + ((n + o) * 9 + 8) * ins + k, -ins, sum, depth, depth);
            });
        }
    }
    return {wanted[0] && wrap ? fold<T>(of_x, adds, masks) : of_x, of_weight, of_bias};
}

}  // namespace

Tensors conv3x3_backward(const Tensor& grad, const Tensor& x, const Tensor& weight, const std::optional<Tensor>& addend,
                         bool wrap, const Flags& wanted, bool relu) {
    check_conv3x3(x, weight);
    check_like(grad, x, weight.size(0), "grad must have the output's shape, [B, out, H, W]");
    if (addend) check_like(*addend, x, weight.size(1), "addend must have the shape of x");
    check_wanted(wanted, 3);
    return dispatch_wide(
        x, [&](auto t) { return run_backward<decltype(t)>(grad, x, weight, addend, wrap, wanted, relu); });
}

}  // namespace liif
