// Memory for the activations that a forward pass saves: up to hundreds of megabytes that live for one step. Fresh pages
// would cost a third of the forward pass, so the memory of a step serves the next one, if both save as much.
#pragma once

#include <mutex>
#include <optional>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "common.h"

namespace liif {

// The memory that the last backward pass gave back.
class Spare {
   public:
    static Spare& instance() {
        static Spare* one = new Spare;  // never destroyed, because PyTorch's allocator may be gone by then
        return *one;
    }
    void put(const Tensor& saved) {
        const std::lock_guard<std::mutex> lock(mutex_);
        tensor_ = saved;
        refused_ = 0;
    }
    // The memory if it fits. Several calls that it does not fit, such as those of an inference, free it.
    std::optional<Tensor> take(ScalarType type, int64_t rows, int64_t width) {
        constexpr int patience = 16;
        const std::lock_guard<std::mutex> lock(mutex_);
        std::optional<Tensor> taken;
        if (!tensor_) return taken;
        if (tensor_->scalar_type() == type && tensor_->size(0) == rows && tensor_->size(1) == width) {
            taken.swap(tensor_);
        } else if (++refused_ == patience) {
            tensor_.reset();
        }
        return taken;
    }

   private:
    std::mutex mutex_;
    std::optional<Tensor> tensor_;
    int refused_ = 0;
};

// A tensor [rows, width], uninitialised. Large pages are requested where the system gives them on request.
template <typename T>
Tensor make_saved(const Tensor& like, int64_t rows, int64_t width) {
    if (const std::optional<Tensor> spare = Spare::instance().take(scalar_type<T>, rows, width)) return *spare;
    Tensor saved = make<T>(like, {rows, width});
#if defined(__linux__)
    constexpr uintptr_t page = 4096;
    const auto begin = (reinterpret_cast<uintptr_t>(saved.mutable_data_ptr()) + page - 1) / page * page;
    const auto bytes = static_cast<size_t>(rows * width) * sizeof(T);
    if (bytes >= (size_t{8} << 20)) madvise(reinterpret_cast<void*>(begin), bytes - page, MADV_HUGEPAGE);
#endif
    return saved;
}

}  // namespace liif
