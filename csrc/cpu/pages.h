// Memory for large tensors straight from the system: pages are zeros already, and large where it gives them on request.
#pragma once

#include "common.h"

#if defined(__linux__)
#include <sys/mman.h>

#include <memory>
#include <utility>

// PyTorch's headers hide this function from code that also runs with 2.10, which lacks it: there it is null.
extern "C" AOTI_TORCH_EXPORT __attribute__((weak)) AOTITorchError
torch_from_blob(void* data, int64_t dims, const int64_t* sizes, const int64_t* strides, int64_t offset, int32_t dtype,
                int32_t device, int32_t index, AtenTensorHandle* tensor, int32_t layout, const uint8_t* metadata,
                int64_t metadata_bytes, void (*deleter)(void* data, void* context), void* context);

namespace liif {

// Zeros. malloc might not return such memory to the system.
struct Block {
    explicit Block(size_t size) : bytes(size) {
        memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        STD_TORCH_CHECK(memory != MAP_FAILED, "liif_fast: no memory for ", bytes,
                        " bytes; recompute=True and fewer queries need less");
        madvise(memory, bytes, MADV_HUGEPAGE);
    }
    ~Block() { munmap(memory, bytes); }
    Block(const Block&) = delete;
    Block& operator=(const Block&) = delete;

    void* memory;
    size_t bytes;
};

// A tensor in the memory. Its last owner calls `free` with the block as the context.
template <typename T>
Tensor wrap(std::unique_ptr<Block> block, const std::vector<int64_t>& size, void (*free)(void* data, void* context)) {
    using torch::stable::detail::from;
    using torch::stable::detail::to;
    std::vector<int64_t> strides(size.size(), 1);
    for (size_t i = size.size() - 1; i > 0; --i) strides[i - 1] = strides[i] * size[i];
    AtenTensorHandle tensor;
    STABLE_TORCH_ERROR_CODE_CHECK(torch_from_blob(block->memory, static_cast<int64_t>(size.size()), size.data(),
                                                  strides.data(), 0, to<int32_t>(from(scalar_type<T>)),
                                                  aoti_torch_device_type_cpu(), -1, &tensor,
                                                  aoti_torch_layout_strided(), nullptr, 0, free, block.get()));
    block.release();
    return Tensor(tensor);
}

}  // namespace liif
#endif

namespace liif {

// A tensor of zeros. From this size on malloc takes fresh pages for every tensor, so zeros need not be written.
template <typename T>
Tensor make_zeros(const Tensor& like, const std::vector<int64_t>& size) {
#if defined(__linux__)
    constexpr size_t least = size_t{32} << 20;
    size_t bytes = sizeof(T);
    for (const int64_t side : size) bytes *= static_cast<size_t>(side);
    if (bytes >= least && torch_from_blob != nullptr) {
        return wrap<T>(std::make_unique<Block>(bytes), size,
                       [](void*, void* context) { delete static_cast<Block*>(context); });
    }
#endif
    return torch::stable::new_zeros(like, size, scalar_type<T>);
}

}  // namespace liif
