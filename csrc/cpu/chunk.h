// Chunks of queries whose rows, one per (query, corner), are in the order of the latent that they read, so that each
// latent's gradient is one sum in a fixed order.
#pragma once

#include "by_latent.h"
#include "queries.h"

namespace liif {

constexpr int64_t kChunkQueries = 65536;

template <typename T>
T dot(const T* a, const T* b, int64_t count) {
    constexpr int64_t lanes = 16;  // sums that the compiler keeps in vectors
    T part[lanes] = {};
    int64_t i = 0;
    for (; i + lanes <= count; i += lanes) {
        for (int64_t j = 0; j < lanes; ++j) part[j] += a[i + j] * b[i + j];
    }
    for (; i < count; ++i) part[i % lanes] += a[i] * b[i];
    T sum(0);
    for (const T each : part) sum += each;
    return sum;
}

struct Row {  // the plan of one row of a chunk
    int64_t latent;
    Corner corner;
    Query query;
};

// A chunk of queries: its rows, and their order by latent, equal ones in their own order (a counting sort).
struct Chunk {
    int64_t first = 0, count = 0;  // queries
    bool saved = false;            // the forward pass has saved its activations
    std::vector<Row> rows;
    std::vector<int32_t> order, start;

    const Row& sorted(int64_t i) const { return rows[static_cast<size_t>(order[static_cast<size_t>(i)])]; }

    // Whether a row reads the latent of the one before it.
    bool starts_inside(int64_t row) const { return row > 0 && sorted(row - 1).latent == sorted(row).latent; }

    // Fills rows, order and start; `first` and `count` are set.
    template <typename Queries, typename Latents>
    void plan(const Queries& queries, const Latents& latents, int corners) {
        rows.resize(static_cast<size_t>(count * corners));
        torch::stable::parallel_for(0, count, 1024, [&](int64_t begin, int64_t end) {
            Corner corner[4];
            for (int64_t q = begin; q < end; ++q) {
                const Query query = queries(first + q, corner);
                for (int t = 0; t < corners; ++t) {
                    rows[static_cast<size_t>(q * corners + t)] = {latents.index(query.batch, corner[t]), corner[t],
                                                                  query};
                }
            }
        });
        sort(latents.count());
    }

   private:
    void sort(int64_t latents) {
        order.resize(rows.size());
        sort_by_latent(
            static_cast<int64_t>(rows.size()), latents, start,
            [this](int64_t r) { return rows[static_cast<size_t>(r)].latent; },
            [this](int64_t r, int32_t at) { order[static_cast<size_t>(at)] = static_cast<int32_t>(r); });
    }
};

// The output's gradient, [B, Q, out] or, of a render, [B, out, h, w]; any strides.
template <typename T>
class OutGradient {
   public:
    explicit OutGradient(const Tensor& grad)
        : data_(data<T>(grad)), width_(grad.dim() == 4 ? grad.size(3) : 1), step_b_(grad.stride(0)) {
        const bool grid = grad.dim() == 4;
        height_ = grad.size(grid ? 2 : 1);
        step_row_ = grad.stride(grid ? 2 : 1), step_column_ = grid ? grad.stride(3) : 0;
        step_out_ = grad.stride(grid ? 1 : 2);
    }
    const T* query(int64_t q) const {
        const int64_t b = q / (height_ * width_), i = q / width_ % height_, j = q % width_;
        return data_ + b * step_b_ + i * step_row_ + j * step_column_;
    }
    int64_t step_out() const { return step_out_; }

   private:
    const T* data_;
    int64_t height_, width_, step_b_, step_row_, step_column_, step_out_;
};

}  // namespace liif
