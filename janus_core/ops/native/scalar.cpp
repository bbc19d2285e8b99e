// The kernels in plain C++: for every other processor, and the twin of the vector ones.
#include "kernels.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>

namespace janus {
namespace scalar {
namespace {

constexpr int W = 8, ROW_BLOCK = 2;
struct V {
    float lane[W];
};

template <typename Function>
inline V each(Function&& function) {
    V v;
    for (int i = 0; i < W; ++i) v.lane[i] = function(i);
    return v;
}

// IEEE 754 binary16, by hand: not every compiler has the type.
inline float from_half(uint16_t half) {
    const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16;
    const uint32_t exponent = (half >> 10) & 0x1f, fraction = half & 0x3ff;
    uint32_t bits;
    if (exponent == 0) {
        const float small = static_cast<float>(fraction) * 5.9604644775390625e-8f;  // 2^-24
        std::memcpy(&bits, &small, sizeof bits);
    } else {
        bits = ((exponent == 31 ? 255 : exponent + 112) << 23) | (fraction << 13);
    }
    bits |= sign;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

inline uint16_t to_half(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000);
    bits &= 0x7fffffff;
    if (bits > 0x7f800000) return sign | 0x7e00;
    if (bits >= 0x477ff000) return sign | 0x7c00;
    if (bits < 0x38800000) {  // below 2^-14: a multiple of 2^-24
        float magnitude;
        std::memcpy(&magnitude, &bits, sizeof magnitude);
        return sign | static_cast<uint16_t>(std::nearbyint(magnitude * 16777216.0f));
    }
    const uint32_t odd = (bits >> 13) & 1;
    return sign | static_cast<uint16_t>((bits - 0x38000000 + 0xfff + odd) >> 13);
}

inline V load(const float* p) { return each([=](int i) { return p[i]; }); }
inline void store(float* p, V v) { std::memcpy(p, v.lane, sizeof v.lane); }
inline V load_half(const uint16_t* p) { return each([=](int i) { return from_half(p[i]); }); }
inline void store_half(uint16_t* p, V v) {
    for (int i = 0; i < W; ++i) p[i] = to_half(v.lane[i]);
}
inline V set1(float x) { return each([=](int) { return x; }); }
inline V add(V a, V b) { return each([&](int i) { return a.lane[i] + b.lane[i]; }); }
inline V sub(V a, V b) { return each([&](int i) { return a.lane[i] - b.lane[i]; }); }
inline V mul(V a, V b) { return each([&](int i) { return a.lane[i] * b.lane[i]; }); }
inline V div(V a, V b) { return each([&](int i) { return a.lane[i] / b.lane[i]; }); }
inline V fma(V a, V b, V c) { return add(mul(a, b), c); }
inline V max(V a, V b) {
    return each([&](int i) { return a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]; });
}
inline V min(V a, V b) {
    return each([&](int i) { return a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i]; });
}
inline V absolute(V a) { return each([&](int i) { return std::fabs(a.lane[i]); }); }
inline V round(V a) { return each([&](int i) { return std::nearbyint(a.lane[i]); }); }
inline V scale2(V a, V n) {
    return each([&](int i) { return std::ldexp(a.lane[i], static_cast<int>(n.lane[i])); });
}
inline float sum(V v) {
    float total = 0.0f;
    for (float lane : v.lane) total += lane;
    return total;
}
inline float largest(V v) { return *std::max_element(v.lane, v.lane + W); }

constexpr int IW = 8, INT_ROW_BLOCK = 2, INT_OFFSET = 0;
struct I {
    int32_t lane[IW];
};
using Weights8 = const int8_t*;
inline I int_set1(int32_t x) {
    I v;
    std::fill(v.lane, v.lane + IW, x);
    return v;
}
inline I int_load(const int32_t* p) {
    I v;
    std::memcpy(v.lane, p, sizeof v.lane);
    return v;
}
inline void int_store(int32_t* p, I v) { std::memcpy(p, v.lane, sizeof v.lane); }
inline Weights8 prepare(const int8_t* p) { return p; }
inline I dot(I acc, Weights8 w, const int8_t* x) {
    for (int i = 0; i < IW; ++i)
        for (int j = 0; j < 4; ++j) acc.lane[i] += w[4 * i + j] * x[j];
    return acc;
}
inline void to_float(I v, float* out) {
    for (int i = 0; i < IW; ++i) out[i] = static_cast<float>(v.lane[i]);
}
inline void quantize_vector(V v, int8_t* out) {
    for (int i = 0; i < W; ++i) out[i] = static_cast<int8_t>(std::nearbyint(v.lane[i]));
}

#include "body.inl"

}  // namespace
}  // namespace scalar

const Kernels& scalar_kernels() {
    using namespace scalar;
    static const Kernels kernels{"scalar", product, quantize,   norm,
                                 silu_mul, rotate,  write_half, attend};
    return kernels;
}

}  // namespace janus
