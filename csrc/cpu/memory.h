// Memory for the large tensors of a training step. Each lives for one step, and the system takes long to give fresh
// pages. So the memory is kept when its tensor is freed, and serves a tensor of about the size in the next step. A
// tensor is freed when nothing can read it any more: neither its graph nor a hook that holds it.
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
constexpr size_t kMostBytes = size_t{1} << 30;   // of all memory that waits for a tensor
constexpr int kPatience = 256;                   // calls without a sign of training after which no memory waits

// Memory from the system, in large pages where it gives them on request. malloc might not return it to the system.
struct Block {
    explicit Block(size_t size) : bytes(size) {
        memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        STD_TORCH_CHECK(memory != MAP_FAILED, "liif_fast: no memory for a tensor of ", bytes,
                        " bytes: use recompute=True, fewer queries or a smaller batch");
        madvise(memory, bytes, MADV_HUGEPAGE);
    }
    ~Block() {
        allow(memory, static_cast<int64_t>(bytes));
        munmap(memory, bytes);
    }
    Block(const Block&) = delete;
    Block& operator=(const Block&) = delete;

    void* memory;
    size_t bytes;
};
using Blocks = std::vector<std::unique_ptr<Block>>;

// The memory that waits, in the order in which its tensors were freed. All memory is freed outside the lock.
class Pool {
   public:
    static Pool& instance() {
        static Pool* one = new Pool;  // never destroyed, because tensors may outlive static objects
        return *one;
    }

    // Memory for a tensor, null if PyTorch shall make it. `trains`: only training needs such a tensor. Other tensors
    // are PyTorch's unless there was one shortly before. The memory of the last tensor that fits is still in a cache.
    // If none fits, those that wait longest make room, so that all that waits and the new one have kMostBytes.
    std::unique_ptr<Block> take(size_t bytes, bool trains) {
        Blocks freed;
        std::unique_lock<std::mutex> lock(mutex_);
        idle_ = trains && bytes >= kLeastBytes ? 0 : std::min(idle_ + 1, kPatience);
        if (idle_ == kPatience) {
            freed.swap(waiting_);
            return nullptr;
        }
        if (bytes < kLeastBytes) return nullptr;
        size_t best = waiting_.size(), total = bytes;
        for (size_t i = waiting_.size(); i-- > 0;) {
            const size_t size = waiting_[i]->bytes;
            const bool fits = bytes <= size && size / 2 <= bytes;
            if (fits && (best == waiting_.size() || size < waiting_[best]->bytes)) best = i;
            total += size;
        }
        if (best < waiting_.size()) {
            std::unique_ptr<Block> block = std::move(waiting_[best]);
            waiting_.erase(waiting_.begin() + static_cast<std::ptrdiff_t>(best));
            allow(block->memory, static_cast<int64_t>(block->bytes));
            return block;
        }
        make_room(total, freed);
        lock.unlock();
        freed.clear();  // before there is more
        return std::make_unique<Block>(bytes);
    }

    void put(std::unique_ptr<Block> block) {
        Blocks freed;
        const std::lock_guard<std::mutex> lock(mutex_);
        if (block->bytes > kMostBytes || idle_ == kPatience) return freed.push_back(std::move(block));
        forbid(block->memory, static_cast<int64_t>(block->bytes));
        size_t total = block->bytes;
        for (const auto& each : waiting_) total += each->bytes;
        make_room(total, freed);
        waiting_.push_back(std::move(block));
    }

   private:
    void make_room(size_t total, Blocks& freed) {
        auto end = waiting_.begin();
        for (; total > kMostBytes && end != waiting_.end(); ++end) {
            total -= (*end)->bytes;
            freed.push_back(std::move(*end));
        }
        waiting_.erase(waiting_.begin(), end);
    }

    std::mutex mutex_;
    Blocks waiting_;
    int idle_ = kPatience;  // calls since the last sign of training
};

// Whether PyTorch fills new tensors (torch.utils.deterministic), with NaN or the largest integer, so that an element
// that is never written shows. Memory that is used again would hide it.
inline bool fills_new(const Tensor& like) {
    const Tensor bytes = make<unsigned char>(like, {64});
    const unsigned char* at = data<unsigned char>(bytes);
    return std::all_of(at, at + 64, [](unsigned char each) { return each == 255; });
}

// A tensor in the memory, which its last owner gives to the pool.
template <typename T>
Tensor wrap(std::unique_ptr<Block> block, const std::vector<int64_t>& size, const std::vector<int64_t>& strides) {
    using torch::stable::detail::from;
    using torch::stable::detail::to;
    AtenTensorHandle tensor;
    const auto free = [](void*, void* context) {
        Pool::instance().put(std::unique_ptr<Block>(static_cast<Block*>(context)));
    };
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

// A dense tensor, uninitialised, in memory that is used again if it is large. `trains` as in Pool::take. Nothing if
// PyTorch shall make it.
template <typename T>
std::optional<Tensor> reuse(const Tensor& like, const std::vector<int64_t>& size, const std::vector<int64_t>& strides,
                            bool trains) {
#if defined(__linux__)
    size_t bytes = sizeof(T);
    for (const int64_t each : size) bytes *= static_cast<size_t>(each);
    if (torch_from_blob == nullptr || (bytes >= kLeastBytes && fills_new(like))) return std::nullopt;
    std::unique_ptr<Block> block = Pool::instance().take(bytes, trains);
    if (block) return wrap<T>(std::move(block), size, strides);
#endif
    return std::nullopt;
}

// The same with the last index fastest, by PyTorch if need be.
template <typename T>
Tensor make_large(const Tensor& like, const std::vector<int64_t>& size, bool trains) {
    std::vector<int64_t> strides(size.size(), 1);
    for (size_t i = size.size(); i-- > 1;) strides[i - 1] = strides[i] * size[i];
    const std::optional<Tensor> found = reuse<T>(like, size, strides, trains);
    return found ? *found : make<T>(like, size);
}

// Zeros for a gradient.
template <typename T>
Tensor make_large_zeros(const Tensor& like, const std::vector<int64_t>& size) {
    Tensor result = make_large<T>(like, size, true);
    T* to = mutable_data<T>(result);
    const int64_t count = result.numel(), part = int64_t{1} << 16;
    for_each_task(ceil_div(count, part), [=](int64_t i) {
        std::memset(to + i * part, 0, static_cast<size_t>(std::min(part, count - i * part)) * sizeof(T));
    });
    return result;
}

}  // namespace liif
