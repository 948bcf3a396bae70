// Sines and cosines of fourier_decode; kernel.h says what is computed. Plain loops, which compilers vectorise.
#pragma once

#include <math.h>

#include "kernel.h"

namespace liif {
namespace {

// sin(pi a) and cos(pi a): a = r + n / 2 with |r| <= 1 / 4, n taken from the last bits of a sum, exactly. Polynomials
// in r are within 1e-7. Beyond 2^21 the fraction of a float is noise, and a counts as 0; NaN and infinity give NaN.
inline void sin_cos_pi(float a, float& sine, float& cosine) {
    constexpr float shift = 12582912.0f, most = 2097152.0f;  // 1.5 * 2^23, 2^21
    a = a < most && a > -most ? a : a - a;
    union {
        float number;
        unsigned bits;
    } half_turns;
    half_turns.number = 2.0f * a + shift;
    const float r = a - 0.5f * (half_turns.number - shift), z = r * r;
    float s = 0.0821458866f;
    s = s * z - 0.599264529f;
    s = s * z + 2.55016404f;
    s = s * z - 5.16771278f;
    s = (s * z + 3.14159265f) * r;
    float c = -0.0258068913f;
    c = c * z + 0.235330630f;
    c = c * z - 1.33526277f;
    c = c * z + 4.05871213f;
    c = c * z - 4.93480220f;
    c = c * z + 1.0f;
    const unsigned n = half_turns.bits;
    const float x = n & 1u ? c : s, y = n & 1u ? s : c;
    sine = n & 2u ? -x : x;
    cosine = (n + 1u) & 2u ? -y : y;
}

inline void sin_cos_pi(double a, double& sine, double& cosine) {
    constexpr double pi = 3.14159265358979323846;
    const double r = fmod(a, 2.0);
    sine = sin(pi * r);
    cosine = cos(pi * r);
}

template <typename T>
void waves(T* x, const T* l, const T* phase, const T* rel, int64_t half) {
    const T row = rel[0], column = rel[1], *f = l + 2 * half;
    for (int64_t k = 0; k < half; ++k) {
        T sine, cosine;
        sin_cos_pi(f[2 * k] * row + f[2 * k + 1] * column + phase[k], sine, cosine);
        x[k] = l[k] * cosine;
        x[half + k] = l[half + k] * sine;
    }
}

template <typename T>
void waves_back(T* to, T* to_phase, const T* g, const T* l, const T* phase, const T* rel, int64_t half) {
    constexpr T pi = T(3.14159265358979323846);
    const T row = rel[0], column = rel[1], *f = l + 2 * half;
    T* to_f = to + 2 * half;
    for (int64_t k = 0; k < half; ++k) {
        T sine, cosine;
        sin_cos_pi(f[2 * k] * row + f[2 * k + 1] * column + phase[k], sine, cosine);
        to[k] = g[k] * cosine;
        to[half + k] = g[half + k] * sine;
        const T angle = pi * (g[half + k] * l[half + k] * cosine - g[k] * l[k] * sine);
        to_f[2 * k] = angle * row;
        to_f[2 * k + 1] = angle * column;
        to_phase[k] = angle;
    }
}

}  // namespace
}  // namespace liif
