// Memory for the large tensors of a training step. Each lives for one step, and the system takes long to give fresh
// pages. So the memory is kept when its tensor is freed, and serves a tensor of similar size in the next step. A
// tensor is freed when nothing can read it any more: neither its graph nor a hook that holds it.
#pragma once

#include <limits>
#include <numeric>

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
// No memory waits after so many tensors without a sign of training; a call that saves nothing counts more.
constexpr int kPatience = 4096, kSavesNothing = kPatience / 16;

// What a tensor tells: only training needs it, its call could save activations and saves none, or neither.
enum class Sign { training, inference, none };

// Memory from the system, in large pages where it gives them on request. malloc might not return it to the system.
struct Block {
    Block(void* at, size_t size) : memory(at), bytes(size) { madvise(memory, bytes, MADV_HUGEPAGE); }
    ~Block() {
        allow(memory, static_cast<int64_t>(bytes));
        munmap(memory, bytes);
    }
    Block(const Block&) = delete;
    Block& operator=(const Block&) = delete;

    void* const memory;
    const size_t bytes;
};
using Blocks = std::vector<std::unique_ptr<Block>>;

// The memory that waits, in the order in which its tensors were freed. All memory is freed outside the lock.
class Pool {
   public:
    static Pool& instance() {
        static Pool* one = new Pool;  // never destroyed, because tensors may outlive static objects
        return *one;
    }

    // Memory for a tensor; null: PyTorch allocates. It does so for all tensors unless there was a sign of training not
    // long ago. Among the smallest blocks that fit, the one freed last may still be in a cache. If none fits, those
    // that have waited longest are freed, until the rest and the new one have at most kMostBytes.
    std::unique_ptr<Block> take(size_t bytes, Sign sign) {
        {
            Blocks freed;
            const std::lock_guard<std::mutex> lock(mutex_);
            idle_ = std::min(idle_ + (sign == Sign::inference ? kSavesNothing : 1), kPatience);
            if (sign == Sign::training) idle_ = 0;
            if (idle_ == kPatience) {
                freed.swap(waiting_);
                return nullptr;
            }
            if (bytes < kLeastBytes) return nullptr;
            size_t total = bytes;
            auto best = waiting_.end();
            for (auto each = waiting_.end(); each != waiting_.begin();) {
                const size_t size = (*--each)->bytes;
                // Users keep maps, and activations only for a step.
                const size_t spare = sign == Sign::none ? size / 8 : size / 2;
                const bool fits = bytes <= size && size - spare <= bytes;
                if (fits && (best == waiting_.end() || size < (*best)->bytes)) best = each;
                total += size;
            }
            if (best != waiting_.end()) {
                std::unique_ptr<Block> block = std::move(*best);
                waiting_.erase(best);
                allow(block->memory, static_cast<int64_t>(bytes));
                return block;
            }
            make_room(total, freed);
        }
        return map(bytes);
    }

    // Frees what waits.
    void clear() {
        Blocks freed;
        const std::lock_guard<std::mutex> lock(mutex_);
        freed.swap(waiting_);
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
    std::unique_ptr<Block> map(size_t bytes) {
        const auto ask = [=] {
            return mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        };
        void* memory = ask();
        if (memory == MAP_FAILED) clear(), memory = ask();
        STD_TORCH_CHECK(memory != MAP_FAILED, "liif_fast: no memory for a tensor of ", bytes,
                        " bytes: use fewer queries, a smaller batch or recompute=True");
        return std::make_unique<Block>(memory, bytes);
    }

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
    int idle_ = kPatience;  // since the last sign of training
};

// Whether PyTorch fills new tensors (torch.utils.deterministic), with NaN or the largest integer, so that an element
// that is never written shows. Memory that is used again would hide it.
inline bool fills_new(const Tensor& like) {
    constexpr int64_t count = 64;
    {
        Tensor zeros = make<unsigned char>(like, {count});  // the next tensor mostly gets its memory
        std::memset(mutable_data<unsigned char>(zeros), 0, count);
    }
    const Tensor bytes = make<unsigned char>(like, {count});
    const unsigned char* at = data<unsigned char>(bytes);
    return std::all_of(at, at + count, [](unsigned char each) { return each == 255; });
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

// A dense tensor, uninitialised, in memory that is used again; its axes from the slowest to the fastest are `order`.
// Nothing: PyTorch allocates.
template <typename T>
std::optional<Tensor> reuse(const Tensor& like, const std::vector<int64_t>& size, const std::vector<int>& order,
                            Sign sign) {
#if defined(__linux__)
    std::vector<int64_t> strides(size.size());
    int64_t count = 1;
    for (size_t i = order.size(); i-- > 0;) {
        const auto axis = static_cast<size_t>(order[i]);
        strides[axis] = count;
        if (__builtin_mul_overflow(count, size[axis], &count)) return std::nullopt;
    }
    if (torch_from_blob == nullptr || count > std::numeric_limits<int64_t>::max() / 8) return std::nullopt;
    const size_t bytes = static_cast<size_t>(count) * sizeof(T);
    if (bytes >= kLeastBytes && fills_new(like)) {
        Pool::instance().clear();
        return std::nullopt;
    }
    std::unique_ptr<Block> block = Pool::instance().take(bytes, sign);
    if (block) return wrap<T>(std::move(block), size, strides);
#endif
    return std::nullopt;
}

// The same with the last axis fastest, or by PyTorch.
template <typename T>
Tensor make_large(const Tensor& like, const std::vector<int64_t>& size, Sign sign) {
    std::vector<int> order(size.size());
    std::iota(order.begin(), order.end(), 0);
    const std::optional<Tensor> found = reuse<T>(like, size, order, sign);
    return found ? *found : make<T>(like, size);
}

// Rows of saved activations.
template <typename T>
Tensor make_saved(const Tensor& like, int64_t rows, int64_t width) {
    return make_large<T>(like, {rows, width}, rows > 0 ? Sign::training : Sign::inference);
}

// Zeros for a gradient.
template <typename T>
Tensor make_large_zeros(const Tensor& like, const std::vector<int64_t>& size) {
    Tensor result = make_large<T>(like, size, Sign::training);
    T* to = mutable_data<T>(result);
    const int64_t count = result.numel(), part = int64_t{1} << 16;
    for_each_task(ceil_div(count, part), [=](int64_t i) {
        std::memset(to + i * part, 0, static_cast<size_t>(std::min(part, count - i * part)) * sizeof(T));
    });
    return result;
}

}  // namespace liif
