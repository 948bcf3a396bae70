// Chooses the micro-kernel once per process.
#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>

#include "kernel.h"

#if defined(_MSC_VER)
#include <intrin.h>
#endif
#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#if defined(__x86_64__) && defined(__linux__)
// The tests' emulator of AMX has it; null if it was not loaded, for all to see, before this library.
extern "C" __attribute__((weak)) unsigned long long liif_fast_amx_emulator();
#endif

namespace liif {
namespace {

enum class Isa { portable, avx2, avx512, avx512bf16 };

#if defined(_MSC_VER) && defined(_M_X64)
Isa detect() {
    int leaf1[4], leaf7[4];
    __cpuidex(leaf1, 1, 0);
    __cpuidex(leaf7, 7, 0);
    const bool os_saves_registers = (leaf1[2] & (1 << 27)) != 0;
    const unsigned long long saved = os_saves_registers ? _xgetbv(0) : 0;
    const bool avx2 = (leaf1[2] & (1 << 12)) && (leaf7[1] & (1 << 5)) && (saved & 0x6) == 0x6;
    const int needed = (1 << 16) | (1 << 17) | (1 << 30) | (1 << 31);  // F, DQ, BW, VL
    const bool avx512 = avx2 && (leaf7[1] & needed) == needed && (saved & 0xe6) == 0xe6;
    int more[4];
    __cpuidex(more, 7, 1);
    const bool bf16 = avx512 && leaf7[0] >= 1 && (more[0] & (1 << 5)) != 0;
    return bf16 ? Isa::avx512bf16 : avx512 ? Isa::avx512 : avx2 ? Isa::avx2 : Isa::portable;
}
#elif defined(__x86_64__)
Isa detect() {
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl"))
        return __builtin_cpu_supports("avx512bf16") ? Isa::avx512bf16 : Isa::avx512;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Isa::avx2;
    return Isa::portable;
}
#else
Isa detect() {
    return Isa::portable;
}
#endif

Isa choose() {
    const Isa best = detect();
    const char* wish = std::getenv("LIIF_FAST_CPU_ISA");
    if (wish == nullptr) return best;
    const char* names[] = {"portable", "avx2", "avx512"};
    for (int i = 0; i < 3; ++i) {
        if (std::strcmp(wish, names[i]) == 0) return std::min(best, static_cast<Isa>(i));
    }
    return best;
}

Isa chosen_isa() {
    static const Isa isa = choose();
    return isa;
}

// Asked for by the tests alone.
bool emulates_amx() {
    const char* wish = std::getenv("LIIF_FAST_CPU_ISA");
    return wish != nullptr && std::strcmp(wish, "amx-emulated") == 0;
}

#if defined(__x86_64__) && defined(__linux__)
const char* find_emulator() {
    return liif_fast_amx_emulator != nullptr ? ""
                                             : "LIIF_FAST_CPU_ISA=amx-emulated is for tests, which load an emulator";
}

const char* find_amx() {
    unsigned a, b, c, d;
    const unsigned needed = 1u << 22 | 1u << 24;  // AMX-BF16, AMX-TILE
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & needed) != needed) return "this processor has no AMX-BF16";
    __asm__ volatile("xgetbv" : "=a"(a), "=d"(d) : "c"(0));  // a processor with AVX-512 has it
    const unsigned tiles = 1u << 17 | 1u << 18;              // XTILECFG, XTILEDATA
    return (a & tiles) == tiles ? "" : "the system does not save AMX's registers";
}

// Linux gives a process the memory for the tile registers on request (its documentation: x86/xstate).
const char* request_amx() {
    const long request_permission = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return syscall(SYS_arch_prctl, request_permission, tile_data) == 0 ? "" : "the system does not permit AMX";
}
#else
const char* find_amx() {
    return "AMX is used on Linux only";
}
const char* request_amx() {
    return find_amx();
}
const char* find_emulator() {
    return find_amx();
}
#endif

std::atomic<bool> amx{false};

}  // namespace

template <typename T>
const Kernel<T>& kernel() {
    static const Kernel<T>& chosen = []() -> const Kernel<T>& {
        switch (chosen_isa()) {
            case Isa::avx512bf16:
            case Isa::avx512:
                return *kernel_avx512<T>();
            case Isa::avx2:
                return *kernel_avx2<T>();
            default:
                return *kernel_portable<T>();
        }
    }();
    return chosen;
}

template <>
const Kernel<Bf16>& kernel<Bf16>() {
    return amx.load(std::memory_order_relaxed) ? *kernel_amx() : *kernel_avx512bf16();
}

bool has_bfloat16() {
    return chosen_isa() == Isa::avx512bf16;
}

const char* missing_amx() {
    if (!has_bfloat16()) return "it needs AVX512-BF16";
    if (kernel_amx() == nullptr) return "the compiler of the kernels did not know it";
    return emulates_amx() ? find_emulator() : find_amx();
}

const char* use_amx(bool on) {
    if (on) {
        const char* missing = missing_amx();
        if (*missing) return missing;
        static const char* refused = emulates_amx() ? "" : request_amx();
        if (*refused) return refused;
    }
    amx = on;
    return "";
}

template const Kernel<float>& kernel<float>();
template const Kernel<double>& kernel<double>();

const char* isa_name() {
    return kernel<float>().name;
}

}  // namespace liif
