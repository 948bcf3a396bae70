// The transforms of conv3x3, Winograd's F(4x4, 3x3) with the points 0, +-3/4, +-3/2 and infinity, compiled per
// instruction set; kernel.h says what is computed. These points round less than 0, +-1, +-2 (docs/cpu.md), and
// their factors for pixels and products are exact. Vectors run over channels.
#pragma once

#include "kernel.h"

namespace liif {
namespace {

// Vec<T> of a single channel, for the last ones.
template <typename T>
struct One {
    using type = T;
    static constexpr int lanes = 1;
    static T load(const T* p) { return *p; }
    static void store(T* p, T x) { *p = x; }
    static T broadcast(T x) { return x; }
    static T fma(T a, T b, T c) { return a * b + c; }
    static T add(T a, T b) { return a + b; }
    static T mul(T a, T b) { return a * b; }
    static T relu(T x) { return x < T(0) ? T(0) : x; }  // in this order a NaN passes
    static T pass_where(T x, T mask) { return mask <= T(0) ? T(0) : x; }
};

constexpr double kA = 0.75, kB = 1.5, kA2 = kA * kA, kB2 = kB * kB;

// The transforms of six numbers, in place.
template <typename V>
struct OfInput {  // B^T x
    static constexpr int in = 6, out = 6;
    using X = typename V::type;
    static void apply(X* x) {
        const X a = V::broadcast(kA), b = V::broadcast(kB), less_a = V::broadcast(-kA), less_b = V::broadcast(-kB);
        const X less_a2 = V::broadcast(-kA2), less_b2 = V::broadcast(-kB2);
        const X less_sum = V::broadcast(-kA2 - kB2), product = V::broadcast(kA2 * kB2);
        const X even_a = V::fma(less_b2, x[2], x[4]), odd_a = V::fma(less_b2, x[1], x[3]);
        const X even_b = V::fma(less_a2, x[2], x[4]), odd_b = V::fma(less_a2, x[1], x[3]);
        x[0] = V::fma(product, x[0], V::fma(less_sum, x[2], x[4]));
        x[5] = V::fma(product, x[1], V::fma(less_sum, x[3], x[5]));
        x[1] = V::fma(a, odd_a, even_a);
        x[2] = V::fma(less_a, odd_a, even_a);
        x[3] = V::fma(b, odd_b, even_b);
        x[4] = V::fma(less_b, odd_b, even_b);
    }
};

template <typename V>
struct OfInner {  // A x
    static constexpr int in = 4, out = 6;
    using X = typename V::type;
    static void apply(X* x) {
        const X a = V::broadcast(kA), b = V::broadcast(kB), less_a = V::broadcast(-kA), less_b = V::broadcast(-kB);
        const X a2 = V::broadcast(kA2), b2 = V::broadcast(kB2);
        const X even_a = V::fma(a2, x[2], x[0]), odd_a = V::fma(a2, x[3], x[1]);
        const X even_b = V::fma(b2, x[2], x[0]), odd_b = V::fma(b2, x[3], x[1]);
        x[5] = x[3];
        x[1] = V::fma(a, odd_a, even_a);
        x[2] = V::fma(less_a, odd_a, even_a);
        x[3] = V::fma(b, odd_b, even_b);
        x[4] = V::fma(less_b, odd_b, even_b);
    }
};

template <typename V>
struct OfProducts {  // A^T x
    static constexpr int in = 6, out = 4;
    using X = typename V::type;
    static void apply(X* x) {
        const X less = V::broadcast(-1), a = V::broadcast(kA), b = V::broadcast(kB);
        const X a2 = V::broadcast(kA2), b2 = V::broadcast(kB2);
        const X even_a = V::add(x[1], x[2]), odd_a = V::mul(a, V::fma(less, x[2], x[1]));
        const X even_b = V::add(x[3], x[4]), odd_b = V::mul(b, V::fma(less, x[4], x[3]));
        x[0] = V::add(x[0], V::add(even_a, even_b));
        x[1] = V::add(odd_a, odd_b);
        x[2] = V::fma(a2, even_a, V::mul(b2, even_b));
        x[3] = V::fma(a2, odd_a, V::fma(b2, odd_b, x[5]));
    }
};

// Along the columns, then along the rows: load(i, j) to store(i, j, x).
template <template <typename> class Of, typename V, typename Load, typename Store>
inline void transform(const Load& load, const Store& store) {
    using F = Of<V>;
    typename V::type x[6][6];
    LIIF_UNROLL
    for (int j = 0; j < F::in; ++j) {
        typename V::type column[6];
        LIIF_UNROLL
        for (int i = 0; i < F::in; ++i) column[i] = load(i, j);
        F::apply(column);
        LIIF_UNROLL
        for (int i = 0; i < F::out; ++i) x[i][j] = column[i];
    }
    LIIF_UNROLL
    for (int i = 0; i < F::out; ++i) {
        F::apply(x[i]);
        LIIF_UNROLL
        for (int j = 0; j < F::out; ++j) store(i, j, x[i][j]);
    }
}

// f(V(), c) for vectors of channels, then for single ones.
template <typename T, typename F>
inline void over_channels(int64_t channels, const F& f) {
    int64_t c = 0;
    for (; c + Vec<T>::lanes <= channels; c += Vec<T>::lanes) f(Vec<T>(), c);
    for (; c < channels; ++c) f(One<T>(), c);
}

template <template <typename> class Of, typename T>
inline void spread(T* to, int64_t position, const T* const* pixel, int64_t channels) {
    over_channels<T>(channels, [&](auto v, int64_t c) {
        using V = decltype(v);
        transform<Of, V>([&](int i, int j) { return V::load(pixel[i * Of<V>::in + j] + c); },
                         [&](int i, int j, typename V::type x) { V::store(to + (i * 6 + j) * position + c, x); });
    });
}

template <typename T>
void winograd_input(T* to, int64_t position, const T* const* pixel, int64_t channels) {
    spread<OfInput>(to, position, pixel, channels);
}

template <typename T>
void winograd_inner(T* to, int64_t position, const T* const* pixel, int64_t channels) {
    spread<OfInner>(to, position, pixel, channels);
}

template <typename T>
void winograd_add_pixels(T* sum, const T* const* pixel, int64_t channels) {
    over_channels<T>(channels, [&](auto v, int64_t c) {
        using V = decltype(v);
        typename V::type part[4];
        LIIF_UNROLL
        for (int i = 0; i < 4; ++i) {
            part[i] = V::load(pixel[i * 4] + c);
            LIIF_UNROLL
            for (int j = 1; j < 4; ++j) part[i] = V::add(part[i], V::load(pixel[i * 4 + j] + c));
        }
        const typename V::type total = V::add(V::add(part[0], part[1]), V::add(part[2], part[3]));
        V::store(sum + c, V::add(V::load(sum + c), total));
    });
}

template <typename T>
void winograd_output(T* const* pixel, const T* from, int64_t position, int64_t channels, const T* bias,
                     const T* const* addend, bool relu, const T* const* mask) {
    over_channels<T>(channels, [&](auto v, int64_t c) {
        using V = decltype(v);
        const typename V::type start = V::load(bias + c);
        const auto load = [&](int i, int j) { return V::load(from + (i * 6 + j) * position + c); };
        const auto store = [&](int i, int j, typename V::type x) {
            x = V::add(x, start);
            if (addend != nullptr) x = V::add(x, V::load(addend[i * 4 + j] + c));
            if (mask != nullptr) x = V::pass_where(x, V::load(mask[i * 4 + j] + c));
            V::store(pixel[i * 4 + j] + c, relu ? V::relu(x) : x);
        };
        transform<OfProducts, V>(load, store);
    });
}

constexpr double kWeightA = 1 / (2 * kA2 * (kA2 - kB2)), kWeightB = 1 / (2 * kB2 * (kB2 - kA2));

template <typename V>
struct OfWeight {  // G x
    static constexpr int in = 3, out = 6;
    using X = typename V::type;
    static void apply(X* x) {
        const X odd_a = V::mul(V::broadcast(kWeightA * kA), x[1]), odd_b = V::mul(V::broadcast(kWeightB * kB), x[1]);
        const X even_a = V::fma(V::broadcast(kWeightA * kA2), x[2], V::mul(V::broadcast(kWeightA), x[0]));
        const X even_b = V::fma(V::broadcast(kWeightB * kB2), x[2], V::mul(V::broadcast(kWeightB), x[0]));
        const X less = V::broadcast(-1);
        x[5] = x[2];
        x[0] = V::mul(V::broadcast(1 / (kA2 * kB2)), x[0]);
        x[1] = V::add(even_a, odd_a), x[2] = V::fma(less, odd_a, even_a);
        x[3] = V::add(even_b, odd_b), x[4] = V::fma(less, odd_b, even_b);
    }
};

template <typename V>
struct OfWeightBack {  // G^T x
    static constexpr int in = 6, out = 3;
    using X = typename V::type;
    static void apply(X* x) {
        const X less = V::broadcast(-1), a = V::broadcast(kWeightA), b = V::broadcast(kWeightB);
        const X even_a = V::mul(a, V::add(x[1], x[2])), odd_a = V::mul(a, V::fma(less, x[2], x[1]));
        const X even_b = V::mul(b, V::add(x[3], x[4])), odd_b = V::mul(b, V::fma(less, x[4], x[3]));
        x[0] = V::fma(V::broadcast(1 / (kA2 * kB2)), x[0], V::add(even_a, even_b));
        x[1] = V::fma(V::broadcast(kA), odd_a, V::mul(V::broadcast(kB), odd_b));
        x[2] = V::fma(V::broadcast(kA2), even_a, V::fma(V::broadcast(kB2), even_b, x[5]));
    }
};

// In double, because a weight's rounding is that of every pixel.
template <typename T>
void winograd_weight(T* to, int64_t position, const T* weight, int64_t step, int64_t row, int64_t column,
                     int64_t count) {
    over_channels<double>(count, [&](auto v, int64_t n) {
        using V = decltype(v);
        double lane[V::lanes];
        const auto load = [&](int i, int j) {
            const T* from = weight + n * step + i * row + j * column;
            for (int l = 0; l < V::lanes; ++l) lane[l] = static_cast<double>(from[l * step]);
            return V::load(lane);
        };
        const auto store = [&](int i, int j, typename V::type x) {
            V::store(lane, x);
            for (int l = 0; l < V::lanes; ++l) to[(i * 6 + j) * position + n + l] = static_cast<T>(lane[l]);
        };
        transform<OfWeight, V>(load, store);
    });
}

template <typename T>
void winograd_weight_back(T* to, int64_t tap, const double* from, int64_t position, int64_t count) {
    over_channels<double>(count, [&](auto v, int64_t n) {
        using V = decltype(v);
        double lane[V::lanes];
        const auto store = [&](int i, int j, typename V::type x) {
            V::store(lane, x);
            for (int l = 0; l < V::lanes; ++l) to[(i * 3 + j) * tap + n + l] = static_cast<T>(lane[l]);
        };
        transform<OfWeightBack, V>([&](int i, int j) { return V::load(from + (i * 6 + j) * position + n); }, store);
    });
}

template <typename T>
const Winograd<T> winograd_table = {winograd_input<T>,  winograd_inner<T>,  winograd_add_pixels<T>,
                                    winograd_output<T>, winograd_weight<T>, winograd_weight_back<T>};

}  // namespace
}  // namespace liif
