// The kernels for AVX2 with FMA and F16C (Haswell, Zen and later).
#include "kernels.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>

#if defined(__x86_64__)
#include <immintrin.h>
#pragma GCC target("avx2,fma,f16c")

namespace janus {
namespace avx2 {
namespace {

using V = __m256;
constexpr int W = 8, ROW_BLOCK = 3;
inline V load(const float* p) { return _mm256_loadu_ps(p); }
inline void store(float* p, V v) { _mm256_storeu_ps(p, v); }
inline V load_half(const uint16_t* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
inline void store_half(uint16_t* p, V v) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
}
inline V set1(float x) { return _mm256_set1_ps(x); }
inline V add(V a, V b) { return _mm256_add_ps(a, b); }
inline V sub(V a, V b) { return _mm256_sub_ps(a, b); }
inline V mul(V a, V b) { return _mm256_mul_ps(a, b); }
inline V div(V a, V b) { return _mm256_div_ps(a, b); }
inline V fma(V a, V b, V c) { return _mm256_fmadd_ps(a, b, c); }
inline V max(V a, V b) { return _mm256_max_ps(a, b); }
inline V min(V a, V b) { return _mm256_min_ps(a, b); }
inline V absolute(V a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
inline V round(V a) {
    return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
inline V scale2(V a, V n) {
    const __m256i bits = _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23);
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a), bits));
}
inline float sum(V v) {
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_shuffle_ps(half, half, 1)));
}
inline float largest(V v) {
    __m128 half = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    half = _mm_max_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_max_ss(half, _mm_shuffle_ps(half, half, 1)));
}

// vpmaddubsw multiplies unsigned by signed bytes and saturates at 16 bits: with |w| and x times the
// sign of w, two products are at most 2 * 127 * 127, which fits.
using I = __m256i;
struct Weights8 {
    __m256i value, magnitude;
};
constexpr int IW = 8, INT_ROW_BLOCK = 3, INT_OFFSET = 0;
inline I int_set1(int32_t x) { return _mm256_set1_epi32(x); }
inline I int_load(const int32_t* p) { return _mm256_loadu_si256(reinterpret_cast<const I*>(p)); }
inline void int_store(int32_t* p, I v) { _mm256_storeu_si256(reinterpret_cast<I*>(p), v); }
inline Weights8 prepare(const int8_t* p) {
    const __m256i value = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return {value, _mm256_abs_epi8(value)};
}
inline I dot(I acc, Weights8 w, const int8_t* x) {
    int32_t four;
    std::memcpy(&four, x, sizeof four);
    const __m256i signed_x = _mm256_sign_epi8(_mm256_set1_epi32(four), w.value);
    const __m256i pairs = _mm256_maddubs_epi16(w.magnitude, signed_x);
    return _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
inline void to_float(I v, float* out) { _mm256_storeu_ps(out, _mm256_cvtepi32_ps(v)); }
inline void quantize_vector(V v, int8_t* out) {
    const __m256i words = _mm256_cvtps_epi32(v);
    const __m128i shorts =
        _mm_packs_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(out), _mm_packs_epi16(shorts, shorts));
}

#include "body.inl"

}  // namespace
}  // namespace avx2

const Kernels& avx2_kernels() {
    using namespace avx2;
    static const Kernels kernels{"avx2",   product, quantize,   norm,
                                 silu_mul, rotate,  write_half, attend};
    return kernels;
}

}  // namespace janus
#endif
