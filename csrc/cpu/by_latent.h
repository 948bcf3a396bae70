// Rows in the order of the latent that they read, so that each latent's gradient is one sum in a fixed order.
#pragma once

#include "common.h"

namespace liif {

// Sorts rows by latent, by counting: calls put(row, position) for row 0, 1, ... Row r reads latent(r) < latents; rows
// of one latent keep their order.
template <typename Latent, typename Put>
void sort_by_latent(int64_t rows, int64_t latents, std::vector<int32_t>& start, const Latent& latent, const Put& put) {
    start.assign(static_cast<size_t>(latents) + 1, 0);
    for (int64_t r = 0; r < rows; ++r) ++start[static_cast<size_t>(latent(r)) + 1];
    for (size_t i = 1; i < start.size(); ++i) start[i] += start[i - 1];
    for (int64_t r = 0; r < rows; ++r) put(r, start[static_cast<size_t>(latent(r))]++);
}

// to += the sum of consecutive rows of one latent, `padded` wide (whole vectors) of which `width` count. They are
// summed among themselves first: thousands in one chain would round too often. memory holds `padded`.
template <typename T>
void add_rows(T* to, const T* rows, int64_t row, int64_t count, int64_t width, int64_t padded, T* memory) {
    if (width == padded) return kernel<T>().sum_rows(rows, row, count, padded, to, nullptr);
    std::memset(memory, 0, static_cast<size_t>(padded) * sizeof(T));
    kernel<T>().sum_rows(rows, row, count, padded, memory, nullptr);
    kernel<T>().add(to, memory, width);
}

}  // namespace liif
