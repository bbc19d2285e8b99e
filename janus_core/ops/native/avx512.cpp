// The kernels for AVX-512 with VNNI (Ice Lake, Zen 4 and later), and with AMX for int8 (Sapphire
// Rapids and later).
#include "kernels.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")

namespace janus {
namespace avx512 {
namespace {

using V = __m512;
constexpr int W = 16, ROW_BLOCK = 12;
inline V load(const float* p) { return _mm512_loadu_ps(p); }
inline void store(float* p, V v) { _mm512_storeu_ps(p, v); }
inline V load_half(const uint16_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
inline void store_half(uint16_t* p, V v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
}
inline V set1(float x) { return _mm512_set1_ps(x); }
inline V add(V a, V b) { return _mm512_add_ps(a, b); }
inline V sub(V a, V b) { return _mm512_sub_ps(a, b); }
inline V mul(V a, V b) { return _mm512_mul_ps(a, b); }
inline V div(V a, V b) { return _mm512_div_ps(a, b); }
inline V fma(V a, V b, V c) { return _mm512_fmadd_ps(a, b, c); }
inline V max(V a, V b) { return _mm512_max_ps(a, b); }
inline V min(V a, V b) { return _mm512_min_ps(a, b); }
inline V absolute(V a) { return _mm512_abs_ps(a); }
inline V round(V a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT); }
inline V scale2(V a, V n) { return _mm512_scalef_ps(a, n); }
inline float sum(V v) { return _mm512_reduce_add_ps(v); }
inline float largest(V v) { return _mm512_reduce_max_ps(v); }

// vpdpbusd multiplies unsigned by signed bytes: weights are offset by 128 on the way in, and every
// sum starts at minus 128 times the row's sum.
using I = __m512i;
using Weights8 = __m512i;
constexpr int IW = 16, INT_ROW_BLOCK = 12, INT_OFFSET = 128;
inline I int_set1(int32_t x) { return _mm512_set1_epi32(x); }
inline I int_load(const int32_t* p) { return _mm512_loadu_si512(p); }
inline void int_store(int32_t* p, I v) { _mm512_storeu_si512(p, v); }
inline Weights8 prepare(const int8_t* p) {
    return _mm512_xor_si512(_mm512_loadu_si512(p), _mm512_set1_epi8(-128));
}
inline I dot(I acc, Weights8 w, const int8_t* x) {
    int32_t four;
    std::memcpy(&four, x, sizeof four);
    return _mm512_dpbusd_epi32(acc, w, _mm512_set1_epi32(four));
}
inline void to_float(I v, float* out) { _mm512_storeu_ps(out, _mm512_cvtepi32_ps(v)); }
inline void quantize_vector(V v, int8_t* out) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(v)));
}

#include "body.inl"

// The first GCC and the first clang that know these instructions.
#if defined(__linux__) && (__GNUC__ >= 11 || __clang_major__ >= 12)
#define JANUS_HAS_TILES 1
#include "amx.inl"
#endif

}  // namespace
}  // namespace avx512

const Kernels& avx512_kernels() {
    using namespace avx512;
    static const Kernels kernels{"avx512",   product, quantize,   norm,
                                 silu_mul, rotate,  write_half, attend};
    return kernels;
}

const Kernels* amx_kernels() {
#if defined(JANUS_HAS_TILES)
    // A process asks Linux for the registers of tiles, once (Documentation/arch/x86/xstate.rst).
    constexpr long REQUEST = 0x1023, TILE_DATA = 18;
    unsigned a, b, c, d = 0;
    const bool has_tiles = __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d >> 24 & 1) && (d >> 25 & 1);
    static const bool is_granted = has_tiles && !syscall(SYS_arch_prctl, REQUEST, TILE_DATA);
    static const Kernels kernels = [] {
        Kernels changed = avx512_kernels();
        changed.name = "amx";
        changed.product = avx512::tile_product;
        return changed;
    }();
    return is_granted ? &kernels : nullptr;
#else
    return nullptr;
#endif
}

}  // namespace janus
#endif
