// The micro-kernel for other processors, in 16-byte vectors that GCC and Clang map to NEON, SSE2, VSX or plain code.
// Other compilers get short loops that they may vectorise. NEON has 32 registers, so its tile is 8 x 8 floats.
#include <math.h>

#include "kernel.h"
#include "unroll.h"

namespace liif {
namespace {

template <typename T>
struct Vec {
    static constexpr int lanes = 16 / sizeof(T);
    static constexpr bool skips = false;
    static constexpr bool transposes = false;
    static constexpr int turned_rows = 0;
#if defined(__aarch64__)
    static constexpr int rows = 8;
#else
    static constexpr int rows = 6;
#endif
    static constexpr const char* name = "portable";

#if defined(__GNUC__)
    typedef T type __attribute__((vector_size(16)));
    static type load(const T* p) {
        type x;
        __builtin_memcpy(&x, p, sizeof(x));
        return x;
    }
    static void store(T* p, type x) { __builtin_memcpy(p, &x, sizeof(x)); }
    static type broadcast(T v) { return v - type{}; }
    static type fma(type a, type b, type c) { return a * b + c; }
    static type add(type a, type b) { return a + b; }
    static type mul(type a, type b) { return a * b; }
    static type inverse_root(type x) {
        for (int i = 0; i < lanes; ++i) x[i] = T(1) / static_cast<T>(sqrt(static_cast<double>(x[i])));
        return x;
    }
    static type relu(type x) { return x < type{} ? type{} : x; }  // a NaN passes
    static type pass_where(type x, type mask) { return mask <= type{} ? type{} : x; }
#else
    struct type {
        T lane[lanes];
    };
    static type load(const T* p) {
        type x;
        for (int i = 0; i < lanes; ++i) x.lane[i] = p[i];
        return x;
    }
    static void store(T* p, const type& x) {
        for (int i = 0; i < lanes; ++i) p[i] = x.lane[i];
    }
    static type broadcast(T v) {
        type x;
        for (int i = 0; i < lanes; ++i) x.lane[i] = v;
        return x;
    }
    static type fma(const type& a, const type& b, type c) {
        for (int i = 0; i < lanes; ++i) c.lane[i] += a.lane[i] * b.lane[i];
        return c;
    }
    static type add(type a, const type& b) {
        for (int i = 0; i < lanes; ++i) a.lane[i] += b.lane[i];
        return a;
    }
    static type mul(type a, const type& b) {
        for (int i = 0; i < lanes; ++i) a.lane[i] *= b.lane[i];
        return a;
    }
    static type inverse_root(type x) {
        for (int i = 0; i < lanes; ++i) x.lane[i] = T(1) / static_cast<T>(sqrt(static_cast<double>(x.lane[i])));
        return x;
    }
    static type relu(type x) {
        for (int i = 0; i < lanes; ++i) x.lane[i] = x.lane[i] < T(0) ? T(0) : x.lane[i];
        return x;
    }
    static type pass_where(type x, const type& mask) {
        for (int i = 0; i < lanes; ++i) x.lane[i] = mask.lane[i] <= T(0) ? T(0) : x.lane[i];
        return x;
    }
#endif
    using factor = type;
    static factor columns(const T* b) { return load(b); }
    static factor row(const T* a) { return broadcast(*a); }
};

}  // namespace
}  // namespace liif

#include "kernel_impl.h"

namespace liif {
template <>
const Kernel<float>* kernel_portable<float>() {
    return &table<float>;
}
template <>
const Kernel<double>* kernel_portable<double>() {
    return &table<double>;
}
}  // namespace liif
