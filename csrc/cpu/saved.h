// Memory for the activations that a forward pass saves: up to a gigabyte that lives for one step. The system takes long
// to give fresh pages, so the memory is kept when its tensor is freed, and serves the next forward pass that saves
// about as much. A tensor is freed when nothing can read it any more: neither its graph nor a hook that holds it.
#pragma once

#include "pages.h"

#if defined(__linux__)
#include <mutex>

namespace liif {

constexpr size_t kLeastBytes = size_t{8} << 20;  // smaller tensors are PyTorch's
constexpr size_t kMostBytes = size_t{1} << 30;   // larger memory is freed at once

// The memory of the tensor that was freed last. All memory is freed outside the lock.
class Spare {
   public:
    static Spare& instance() {
        static Spare* one = new Spare;  // never destroyed, because tensors may outlive static objects
        return *one;
    }
    void put(std::unique_ptr<Block> block) {
        if (block->bytes > kMostBytes) return;
        const std::lock_guard<std::mutex> lock(mutex_);
        block_.swap(block);
        passed_ = 0;
    }
    // The memory if it fits. It is freed if it does not fit, and by several calls that save little, as in inference.
    std::unique_ptr<Block> take(size_t bytes) {
        constexpr int patience = 16;
        std::unique_ptr<Block> block;
        const std::lock_guard<std::mutex> lock(mutex_);
        if (bytes < kLeastBytes && ++passed_ < patience) return nullptr;
        block.swap(block_);
        const bool fits = block && bytes <= block->bytes && block->bytes / 2 <= bytes;
        return fits ? std::move(block) : nullptr;
    }

   private:
    std::mutex mutex_;
    std::unique_ptr<Block> block_;
    int passed_ = 0;
};

// Whether PyTorch fills new tensors with NaN (torch.utils.deterministic), so that an element that is never written
// shows. Memory that is used again would hide it.
// The element gets the memory of one that was 0, not of an old NaN.
template <typename T>
bool fills_new(const Tensor& like) {
    {
        Tensor zero = make<T>(like, {1});
        *mutable_data<T>(zero) = T{};
    }
    const Tensor one = make<T>(like, {1});
    const float value = convert<float>(*data<T>(one));
    return value != value;
}

}  // namespace liif
#endif

namespace liif {

// A tensor [rows, width], uninitialised.
template <typename T>
Tensor make_saved(const Tensor& like, int64_t rows, int64_t width) {
#if defined(__linux__)
    const size_t bytes = static_cast<size_t>(rows * width) * sizeof(T);
    std::unique_ptr<Block> block = Spare::instance().take(bytes);
    if (bytes >= kLeastBytes && torch_from_blob != nullptr && !fills_new<T>(like)) {
        if (!block) block = std::make_unique<Block>(bytes);
        return wrap<T>(std::move(block), {rows, width}, [](void*, void* context) {
            Spare::instance().put(std::unique_ptr<Block>(static_cast<Block*>(context)));
        });
    }
#endif
    return make<T>(like, {rows, width});
}

}  // namespace liif
