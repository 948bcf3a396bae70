// Executes Intel's AMX instructions on processors without them: a handler of the signal that they raise decodes each,
// does what Intel's manual (volume 2, "Operation" of each instruction) says, and continues behind it. What would fault
// on the hardware ends the process with a line on stderr. Loading the library installs the handler.
#include <immintrin.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>
#include <unistd.h>

namespace {

enum { kTiles = 8, kRows = 16, kBytes = 64 };

struct Shapes {  // of LDTILECFG
    uint8_t palette, start_row, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
};

// Of one thread, as the hardware has them.
thread_local Shapes shapes;
alignas(64) thread_local unsigned char tiles[kTiles][kRows][kBytes];

// A fault, from AMX_EMULATOR_FAULT: 1 and 2 change a shape, 3 loses all shapes, 4 changes the stride of B's first tile,
// 5 leaves out a row of products; 0 none.
int planted;
unsigned long long executed;

void fault(int signal, const char* what) {
    char line[160];
    const int length = snprintf(line, sizeof(line), "AMX emulator: %s: %s\n", signal == SIGILL ? "#UD" : "#GP", what);
    if (write(2, line, static_cast<size_t>(length)) < 0) _exit(99);
    struct sigaction plain = {};
    plain.sa_handler = SIG_DFL;
    sigaction(signal, &plain, nullptr);
    sigset_t none;
    sigemptyset(&none);
    sigaddset(&none, signal);
    pthread_sigmask(SIG_UNBLOCK, &none, nullptr);
    raise(signal);
    _exit(99);
}

void require(bool holds, const char* what) {
    if (!holds) fault(SIGILL, what);
}

// An instruction with the VEX prefix of three bytes, map 0F38, 128 bits, W0; all of AMX has this form.
struct Instruction {
    int prefix, opcode, reg, rm, vvvv, length;
    bool memory, index;
    uintptr_t base;
    int64_t stride;
};

bool decode(const ucontext_t* context, Instruction& it) {
    // By the numbers of instructions: rax rcx rdx rbx rsp rbp rsi rdi r8 ...
    static const int order[] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
    const auto value = [&](int number) { return context->uc_mcontext.gregs[order[number]]; };
    const auto* p = reinterpret_cast<const unsigned char*>(context->uc_mcontext.gregs[REG_RIP]);
    if (p[0] != 0xc4 || (p[1] & 0x1f) != 2 || (p[2] & 0x84) != 0) return false;
    const int r = ~p[1] >> 7 & 1, x = ~p[1] >> 6 & 1, b = ~p[1] >> 5 & 1;
    it = {};
    it.vvvv = ~p[2] >> 3 & 15;
    it.prefix = p[2] & 3;  // none, 66, F3, F2
    it.opcode = p[3];
    const int mode = p[4] >> 6;
    it.reg = (p[4] >> 3 & 7) | r << 3;
    it.rm = (p[4] & 7) | b << 3;
    it.memory = mode != 3;
    it.length = 5;
    if (!it.memory) return true;
    if ((p[4] & 7) == 4) {
        const int sib = p[it.length++], index = (sib >> 3 & 7) | x << 3, base = (sib & 7) | b << 3;
        it.index = true;
        if (index != 4) it.stride = value(index) << (sib >> 6);
        if ((base & 7) != 5 || mode != 0) it.base = static_cast<uintptr_t>(value(base));
        if ((base & 7) == 5 && mode == 0) {
            int32_t displacement;
            memcpy(&displacement, p + it.length, 4);
            it.base += static_cast<uintptr_t>(static_cast<intptr_t>(displacement));
            it.length += 4;
        }
    } else if (mode == 0 && (p[4] & 7) == 5) {  // relative to the next instruction
        it.base = static_cast<uintptr_t>(context->uc_mcontext.gregs[REG_RIP]) + 9;
        int32_t displacement;
        memcpy(&displacement, p + 5, 4);
        it.base += static_cast<uintptr_t>(static_cast<intptr_t>(displacement));
        it.length += 4;
    } else {
        it.base = static_cast<uintptr_t>(value(it.rm));
    }
    if (mode == 1) it.base += static_cast<uintptr_t>(static_cast<intptr_t>(static_cast<int8_t>(p[it.length++])));
    if (mode == 2) {
        int32_t displacement;
        memcpy(&displacement, p + it.length, 4);
        it.base += static_cast<uintptr_t>(static_cast<intptr_t>(displacement));
        it.length += 4;
    }
    return true;
}

void load_shapes(const Instruction& it) {
    Shapes next;
    memcpy(&next, reinterpret_cast<const void*>(it.base), sizeof(next));
    if (planted == 1) next.rows[6] = 8;
    if (planted == 2) next.rows[4] = 17;
    memset(tiles, 0, sizeof(tiles));
    if (next.palette == 0) {
        shapes = Shapes{};
        return;
    }
    bool right = next.palette == 1;
    for (const uint8_t each : next.reserved) right &= each == 0;
    for (int i = 0; i < 16; ++i) {
        right &= next.bytes[i] <= kBytes && next.rows[i] <= kRows && (next.bytes[i] == 0) == (next.rows[i] == 0);
        right &= i < kTiles || next.rows[i] == 0;
    }
    if (!right) fault(SIGSEGV, "LDTILECFG: an invalid configuration");
    shapes = next;
    if (planted == 3) shapes = Shapes{};
}

void require_tile(int tile) {
    require(shapes.palette == 1, "the tiles are not configured");
    require(tile < kTiles && shapes.rows[tile] != 0, "a tile without a shape");
}

void load(const Instruction& it) {
    require_tile(it.reg);
    require(it.index, "TILELOADD needs a stride");
    memset(tiles[it.reg], 0, sizeof(tiles[it.reg]));
    const int rows = shapes.rows[it.reg];
    const int64_t stride = planted == 4 && it.reg == 6 ? it.stride + 128 : it.stride;
    for (int r = 0; r < rows; ++r) {
        memcpy(tiles[it.reg][r], reinterpret_cast<const void*>(it.base + static_cast<uintptr_t>(r * stride)),
               shapes.bytes[it.reg]);
    }
}

void store(const Instruction& it) {
    require_tile(it.reg);
    require(it.index, "TILESTORED needs a stride");
    for (int r = 0; r < shapes.rows[it.reg]; ++r) {
        memcpy(reinterpret_cast<void*>(it.base + static_cast<uintptr_t>(r * it.stride)), tiles[it.reg][r],
               shapes.bytes[it.reg]);
    }
}

float bfloat16(const unsigned char* p) {
    const uint32_t bits = static_cast<uint32_t>(p[0]) << 16 | static_cast<uint32_t>(p[1]) << 24;
    float y;
    memcpy(&y, &bits, sizeof(y));
    return y;
}

// In a function of its own, so that the compiler moves no operation past a change of the modes of rounding.
__attribute__((noinline)) void add_products(int to, int a, int b) {
    const int columns = shapes.bytes[to] / 4, steps = shapes.bytes[a] / 4;
    for (int m = 0; m < shapes.rows[to]; ++m) {
        if (planted == 5 && m == 5) continue;
        float even[kRows] = {}, odd[kRows] = {};
        for (int k = 0; k < steps; ++k) {
            const float x = bfloat16(tiles[a][m] + 4 * k), y = bfloat16(tiles[a][m] + 4 * k + 2);
            for (int n = 0; n < columns; ++n) {
                even[n] = __builtin_fmaf(x, bfloat16(tiles[b][k] + 4 * n), even[n]);
                odd[n] = __builtin_fmaf(y, bfloat16(tiles[b][k] + 4 * n + 2), odd[n]);
            }
        }
        for (int n = 0; n < columns; ++n) {
            float sum;
            memcpy(&sum, tiles[to][m] + 4 * n, 4);
            sum = sum + (even[n] + odd[n]);
            memcpy(tiles[to][m] + 4 * n, &sum, 4);
        }
    }
}

void multiply(int to, int a, int b) {
    require_tile(to);
    require_tile(a);
    require_tile(b);
    require(to != a && to != b && a != b, "TDPBF16PS needs three tiles");
    require(shapes.bytes[to] % 4 == 0 && shapes.bytes[a] % 4 == 0 && shapes.bytes[b] % 4 == 0,
            "TDPBF16PS needs whole pairs");
    require(shapes.rows[to] == shapes.rows[a] && shapes.bytes[to] == shapes.bytes[b] &&
                shapes.bytes[a] / 4 == shapes.rows[b],
            "TDPBF16PS on tiles of shapes that do not fit");
    const unsigned before = _mm_getcsr();
    _mm_setcsr(0x9fc0);  // nothing raised, denormals zero in operands and results, round to nearest even
    add_products(to, a, b);
    _mm_setcsr(before);
}

bool execute(const Instruction& it) {
    enum { none, p66, pF3, pF2 };
    if (it.opcode == 0x49 && it.prefix == none && it.memory && it.reg == 0) {
        load_shapes(it);
    } else if (it.opcode == 0x49 && it.prefix == none && !it.memory && it.reg == 0 && it.rm == 0) {  // TILERELEASE
        shapes = Shapes{};
        memset(tiles, 0, sizeof(tiles));
    } else if (it.opcode == 0x49 && it.prefix == pF2 && !it.memory && it.rm == 0) {  // TILEZERO
        require_tile(it.reg);
        memset(tiles[it.reg], 0, sizeof(tiles[it.reg]));
    } else if (it.opcode == 0x4b && it.prefix == pF2 && it.memory) {
        load(it);
    } else if (it.opcode == 0x4b && it.prefix == pF3 && it.memory) {
        store(it);
    } else if (it.opcode == 0x5c && it.prefix == pF3 && !it.memory) {
        multiply(it.reg, it.rm, it.vvvv);
    } else {
        return false;
    }
    return true;
}

void handle(int, siginfo_t*, void* place) {
    auto* context = static_cast<ucontext_t*>(place);
    Instruction it;
    if (!decode(context, it) || !execute(it)) fault(SIGILL, "not an instruction of AMX that it knows");
    __atomic_fetch_add(&executed, 1, __ATOMIC_RELAXED);
    context->uc_mcontext.gregs[REG_RIP] += it.length;
}

__attribute__((constructor)) void install() {
    const char* fault = getenv("AMX_EMULATOR_FAULT");
    planted = fault == nullptr ? 0 : atoi(fault);
    struct sigaction action = {};
    action.sa_sigaction = handle;
    action.sa_flags = SA_SIGINFO | SA_NODEFER;
    sigaction(SIGILL, &action, nullptr);
}

}  // namespace

// Returns the number of executed instructions. The library looks for it (csrc/cpu/dispatch.cpp).
extern "C" unsigned long long liif_fast_amx_emulator() {
    return executed;
}
