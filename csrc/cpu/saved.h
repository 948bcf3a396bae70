// Memory for the activations that a forward pass saves: up to a gigabyte that lives for one step. The system takes long
// to give fresh pages, so the memory is kept when its tensor is freed, and serves the next forward pass that saves
// about as much. A tensor is freed when nothing can read it any more: neither its graph nor a hook that holds it.
#pragma once

#include "common.h"

#if defined(__linux__)
#include <sys/mman.h>

#include <memory>
#include <mutex>
#include <utility>

// PyTorch's headers hide this function from code that also runs with 2.10, which lacks it: there it is null.
extern "C" AOTI_TORCH_EXPORT __attribute__((weak)) AOTITorchError
torch_from_blob(void* data, int64_t dims, const int64_t* sizes, const int64_t* strides, int64_t offset, int32_t dtype,
                int32_t device, int32_t index, AtenTensorHandle* tensor, int32_t layout, const uint8_t* metadata,
                int64_t metadata_bytes, void (*deleter)(void* data, void* context), void* context);

namespace liif {

constexpr size_t kLeastBytes = size_t{8} << 20;  // smaller tensors are PyTorch's
constexpr size_t kMostBytes = size_t{1} << 30;   // larger memory is freed at once

// Memory from the system, in large pages where it gives them on request. malloc might not return it to the system.
struct Block {
    explicit Block(size_t size) : bytes(size) {
        memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        STD_TORCH_CHECK(memory != MAP_FAILED, "liif_fast: no memory for ", bytes,
                        " bytes of activations: use recompute=True or fewer queries");
        madvise(memory, bytes, MADV_HUGEPAGE);
    }
    ~Block() { munmap(memory, bytes); }
    Block(const Block&) = delete;
    Block& operator=(const Block&) = delete;

    void* memory;
    size_t bytes;
};

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

// A tensor [rows, width] in the memory, which its last owner gives to Spare.
template <typename T>
Tensor wrap(std::unique_ptr<Block> block, int64_t rows, int64_t width) {
    using torch::stable::detail::from;
    using torch::stable::detail::to;
    const int64_t sizes[] = {rows, width}, strides[] = {width, 1};
    AtenTensorHandle tensor;
    const auto free = [](void*, void* context) {
        Spare::instance().put(std::unique_ptr<Block>(static_cast<Block*>(context)));
    };
    STABLE_TORCH_ERROR_CODE_CHECK(torch_from_blob(block->memory, 2, sizes, strides, 0,
                                                  to<int32_t>(from(scalar_type<T>)), aoti_torch_device_type_cpu(), -1,
                                                  &tensor, aoti_torch_layout_strided(), nullptr, 0, free, block.get()));
    block.release();
    return Tensor(tensor);
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
        return wrap<T>(std::move(block), rows, width);
    }
#endif
    return make<T>(like, {rows, width});
}

}  // namespace liif
