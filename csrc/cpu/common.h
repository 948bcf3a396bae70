// Shared by all operators of the CPU backend: tensors, threads, scratch memory.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <optional>
#include <vector>

#include "kernel.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace liif {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline int64_t ceil_div(int64_t a, int64_t b) {
    return (a + b - 1) / b;
}

inline int64_t round_up(int64_t a, int64_t b) {
    return ceil_div(a, b) * b;
}

// Converts a number; to Bf16 it rounds to nearest, ties to even, as PyTorch and the processor's instructions do.
template <typename To, typename From>
To convert(From x) {
    return static_cast<To>(x);
}

template <>
inline float convert<float, Bf16>(Bf16 x) {
    const uint32_t bits = uint32_t{x.bits} << 16;
    float y;
    std::memcpy(&y, &bits, sizeof(y));
    return y;
}

template <>
inline Bf16 convert<Bf16, Bf16>(Bf16 x) {
    return x;
}

template <>
inline Bf16 convert<Bf16, float>(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof(bits));
    const bool nan = (bits & 0x7fffffff) > 0x7f800000;
    return {static_cast<uint16_t>(nan ? 0x7fc0 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

template <typename T>
constexpr ScalarType scalar_type = sizeof(T) == 1   ? ScalarType::Byte
                                   : sizeof(T) == 2 ? ScalarType::BFloat16
                                   : sizeof(T) == 4 ? ScalarType::Float
                                                    : ScalarType::Double;

// The elements of a tensor, whose dtype must be T.
template <typename T>
const T* data(const Tensor& t) {
    STD_TORCH_CHECK(t.scalar_type() == scalar_type<T>, "liif_fast: the tensors' dtypes do not fit together");
    return static_cast<const T*>(t.const_data_ptr());
}

template <typename T>
T* mutable_data(Tensor& t) {
    STD_TORCH_CHECK(t.scalar_type() == scalar_type<T>, "liif_fast: the tensors' dtypes do not fit together");
    return static_cast<T*>(t.mutable_data_ptr());
}

// Of the gradients that an operator returns, in order, which are wanted; the others are returned empty.
using Flags = std::vector<bool>;

inline void check_wanted(const Flags& wanted, size_t gradients) {
    STD_TORCH_CHECK(wanted.size() == gradients, "liif_fast: wanted must be ", gradients,
                    " flags, one for each gradient, got ", wanted.size());
}

// New tensors of T on the device of another tensor: uninitialised, and zeros.
template <typename T>
Tensor make(const Tensor& like, const std::vector<int64_t>& size) {
    return torch::stable::new_empty(like, size, scalar_type<T>);
}

template <typename T>
Tensor make_zeros(const Tensor& like, const std::vector<int64_t>& size) {
    return torch::stable::new_zeros(like, size, scalar_type<T>);
}

// Calls f<float> or f<double> by the tensor's dtype; f is a generic lambda that takes a value of the type.
template <typename F>
auto dispatch_wide(const Tensor& t, F f) {
    const ScalarType type = t.scalar_type();
    STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Double,
                    "liif_fast: this cpu kernel takes float32 or float64");
    return type == ScalarType::Float ? f(float()) : f(double());
}

// As dispatch_wide, or calls f<Bf16>.
template <typename F>
auto dispatch(const Tensor& t, F f) {
    if (t.scalar_type() != ScalarType::BFloat16) return dispatch_wide(t, f);
    STD_TORCH_CHECK(has_bfloat16(), "liif_fast: this processor has no bfloat16 instructions");
    return f(Bf16());
}

// Runs f(task) for every task in [0, tasks) on PyTorch's threads; a free thread takes the next task. Use it only for
// tasks whose results do not depend on the thread.
template <typename F>
void for_each_task(int64_t tasks, const F& f) {
    std::atomic<int64_t> next{0};
    const int64_t workers = std::min<int64_t>(tasks, torch::stable::get_num_threads());
    torch::stable::parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) {
        for (int64_t worker = begin; worker < end; ++worker) {
            for (int64_t task = next++; task < tasks; task = next++) f(task);
        }
    });
}

// AddressSanitizer knows memory by allocations. These tell it which bytes of one may be touched: parts of an arena lie
// kGap bytes apart, and scratch memory ends where its user's part does.
#if defined(__SANITIZE_ADDRESS__)
constexpr int64_t kGap = 64;
inline void allow(const void* memory, int64_t bytes) {
    __asan_unpoison_memory_region(memory, static_cast<size_t>(bytes));
}
inline void forbid(const void* memory, int64_t bytes) {
    __asan_poison_memory_region(memory, static_cast<size_t>(bytes));
}
#else
constexpr int64_t kGap = 0;
inline void allow(const void*, int64_t) {}
inline void forbid(const void*, int64_t) {}
#endif

// Aligned, uninitialised memory for the tiles of one worker: some hundred kilobytes that each thread keeps between
// calls, so that small calls do not pay for fresh pages. Each Tag has a separate region.
template <typename T, typename Tag>
T* scratch(int64_t count) {
    constexpr size_t alignment = 64;
    thread_local std::vector<unsigned char> memory;
    const size_t bytes = static_cast<size_t>(count) * sizeof(T), need = bytes + alignment;
    allow(memory.data(), static_cast<int64_t>(memory.size()));
    if (memory.size() < need) {
        memory.clear();
        memory.resize(need);
    }
    const auto address = reinterpret_cast<uintptr_t>(memory.data());
    const uintptr_t start = (address + alignment - 1) / alignment * alignment;
    forbid(reinterpret_cast<void*>(start + bytes), static_cast<int64_t>(address + memory.size() - start - bytes));
    return reinterpret_cast<T*>(start);
}

// A bump allocator over one block of memory; a first, dry run of the same code finds the block's size.
class Arena {
   public:
    explicit Arena(unsigned char* memory = nullptr) : memory_(memory) {}
    template <typename T>
    T* take(int64_t count) {
        unsigned char* p = memory_ ? memory_ + used_ : nullptr;
        const int64_t bytes = count * static_cast<int64_t>(sizeof(T)), taken = round_up(bytes, 64) + kGap;
        if (p) forbid(p + bytes, taken - bytes);
        used_ += taken;
        return reinterpret_cast<T*>(p);
    }
    int64_t used() const { return used_; }

   private:
    unsigned char* memory_;
    int64_t used_ = 0;
};

// Places the allocations of layout(arena) in the thread's scratch memory.
template <typename Tag, typename Layout>
auto in_scratch(const Layout& layout) {
    Arena sizes;
    layout(sizes);
    Arena arena(scratch<unsigned char, Tag>(sizes.used()));
    return layout(arena);
}

}  // namespace liif
