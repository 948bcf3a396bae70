// liif_fast::bicubic_resize: Pillow's resizing of an 8-bit image, the width first, from a table of coefficients.
//
// A pass weighs consecutive pixels with integers in units of 2^-22, adds a half, shifts (which rounds down), and clips
// to 8 bits. In double that is exact, because no sum reaches 2^53. The kernel's `blend` computes a weighted sum of
// rows.
#include <cmath>

#include "operators.h"

namespace liif {
namespace {

constexpr int64_t kRows = 16;         // rows of the image that the first pass takes at a time
constexpr int64_t kMiddle = 1 << 16;  // values between the passes, unless one column has more: 512 KB
struct BytesTag {};
struct TurnedTag {};
struct MiddleTag {};
struct SumsTag {};

// The outputs of a pass: the first pixel of `in` that each reads, and the weights of its pixels.
struct Axis {
    const int64_t* first;
    const double* weight;
    int64_t in, out, taps;

    Axis(const Tensor& from, const Tensor& weights, int64_t size) : in(size) {
        STD_TORCH_CHECK(from.scalar_type() == ScalarType::Long && from.dim() == 1 && from.is_contiguous() &&
                            weights.scalar_type() == ScalarType::Double && weights.dim() == 2 &&
                            weights.is_contiguous() && weights.size(0) == from.size(0),
                        "liif_fast: first must be int64 [out] and weight float64 [out, taps], contiguous");
        first = from.const_data_ptr<int64_t>();
        weight = weights.const_data_ptr<double>();
        out = weights.size(0);
        taps = weights.size(1);
        for (int64_t n = 0; n < out; ++n) {
            double total = 0;
            for (int64_t t = 0; t < taps; ++t) total += std::abs(weight[n * taps + t]);
            STD_TORCH_CHECK(taps > 0 && first[n] >= 0 && first[n] < in && total < 1 << 24,
                            "liif_fast: first must lie in the image, and weight be in units of 2^-22");
        }
    }
    int used(int64_t n) const {
        return static_cast<int>(std::min(taps, in - first[n]));
    }  // pixels beyond have weight 0
};

inline int to_8_bits(double sum) {
    constexpr int above = 1 << 20;  // so that cutting off the fraction rounds down
    const int value = static_cast<int>(sum * 0x1p-22 + (0.5 + above)) - above;
    return std::min(std::max(value, 0), 255);
}

struct Image {
    const uint8_t* data;
    int64_t height, width, channels, row, column, channel;  // sizes and strides
};

// The first pass, for some columns of its result: [height, end - begin, channels].
void along_width(const Image& image, const Axis& axis, int64_t begin, int64_t end, double* result) {
    int64_t left = image.width, right = 0;
    for (int64_t n = begin; n < end; ++n) {
        left = std::min(left, axis.first[n]);
        right = std::max(right, axis.first[n] + axis.used(n));
    }
    const auto blend = kernel<double>().blend;
    const int64_t step = image.channels * kRows, count = (right - left) * step;
    const int64_t result_row = (end - begin) * image.channels;
    uint8_t* bytes = scratch<uint8_t, BytesTag>(count);
    double* turned = scratch<double, TurnedTag>(count);  // [right - left, channels, kRows]: whole vectors to be weighed
    double* sums = scratch<double, SumsTag>(step);
    for (int64_t top = 0; top < image.height; top += kRows) {
        const int64_t rows = std::min(kRows, image.height - top);
        uint8_t* to = bytes;
        for (int64_t x = left; x < right; ++x) {
            for (int64_t c = 0; c < image.channels; ++c, to += kRows) {
                const uint8_t* from = image.data + top * image.row + x * image.column + c * image.channel;
                for (int64_t r = 0; r < rows; ++r) to[r] = from[r * image.row];
            }
        }
        for (int64_t i = 0; i < count; ++i) turned[i] = bytes[i];
        double* column = result + top * result_row;
        for (int64_t n = begin; n < end; ++n) {
            blend(sums, turned + (axis.first[n] - left) * step, step, axis.weight + n * axis.taps, axis.used(n), step);
            for (int64_t c = 0; c < image.channels; ++c, ++column) {
                for (int64_t r = 0; r < rows; ++r) column[r * result_row] = to_8_bits(sums[c * kRows + r]);
            }
        }
    }
}

// The second pass: from rows of values [in, width] to rows of bytes that are `stride` apart.
void along_height(const double* rows, int64_t width, const Axis& axis, uint8_t* to, int64_t stride) {
    const auto blend = kernel<double>().blend;
    double* sums = scratch<double, SumsTag>(width);
    for (int64_t n = 0; n < axis.out; ++n, to += stride) {
        blend(sums, rows + axis.first[n] * width, width, axis.weight + n * axis.taps, axis.used(n), width);
        for (int64_t i = 0; i < width; ++i) to[i] = static_cast<uint8_t>(to_8_bits(sums[i]));
    }
}

}  // namespace

Tensor bicubic_resize(const Tensor& image, const Tensor& first_row, const Tensor& row_weight,
                      const Tensor& first_column, const Tensor& column_weight) {
    STD_TORCH_CHECK(image.dim() == 3 && image.scalar_type() == ScalarType::Byte,
                    "liif_fast: image must be uint8 [H, W, C]");
    const Image from = {image.const_data_ptr<uint8_t>(),
                        image.size(0),
                        image.size(1),
                        image.size(2),
                        image.stride(0),
                        image.stride(1),
                        image.stride(2)};
    const Axis rows(first_row, row_weight, from.height), columns(first_column, column_weight, from.width);
    Tensor result = make<uint8_t>(image, {rows.out, columns.out, from.channels});
    uint8_t* to = result.mutable_data_ptr<uint8_t>();
    const int64_t strip = std::max<int64_t>(1, kMiddle / std::max<int64_t>(1, from.height * from.channels));
    for (int64_t begin = 0; begin < columns.out; begin += strip) {
        const int64_t end = std::min(columns.out, begin + strip), width = (end - begin) * from.channels;
        double* middle = scratch<double, MiddleTag>(from.height * width);
        along_width(from, columns, begin, end, middle);
        along_height(middle, width, rows, to + begin * from.channels, columns.out * from.channels);
    }
    return result;
}

}  // namespace liif
