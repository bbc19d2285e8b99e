// What the kernels of one instruction set offer, and the shapes they agree on.
//
// Each instruction set is compiled from the same text (body.inl) over its own vector type, into a
// namespace of its own; api.cpp chooses among the tables below when it runs. Every function computes
// each row from that row alone, in one fixed order, so that no result depends on the batch.
//
// Shapes: R rows, K input width, N output width, H head width, P pool positions.
#pragma once

#include <cstddef>
#include <cstdint>

namespace janus {

// Weights lie in panels of this many outputs: fp16 as [K][PANEL], int8 as [K / 4][PANEL][4]. Within
// a panel a kernel reads memory in one ascending stream.
constexpr int64_t PANEL = 32;
// int8 rows are padded with zeros to this many values.
constexpr int64_t K_UNIT = 64;
// Queries that share one pass over keys and values.
constexpr int MAX_QUERIES = 4;

enum Format : int32_t { FP16 = 1, INT8 = 2 };

// As in __init__.py. A weight never owns its memory.
struct Linear {
    const void* weight;
    const float* scale_N;  // int8 only
    const float* bias_N;   // may be null
    int64_t n;
    int64_t k;
    int32_t format;
    int32_t unused;
};

inline int64_t round_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }
inline int64_t num_panels(const Linear& linear) { return round_up(linear.n, PANEL) / PANEL; }

// Rows as a product reads them: fp32 for fp16 weights, int8 with one scale a row for int8 weights.
struct Rows {
    const float* x_RK;
    const int8_t* q_RK;  // stride round_up(K, K_UNIT)
    const float* scale_R;
    const int32_t* sum_R;  // of the int8 values
    int64_t count;
};

// One layer of the pool: keys, then values, each [heads][P][H].
struct Cache {
    void* kv;
    int64_t num_kv_heads;
    int64_t num_positions;
    int64_t head_dim;
    int32_t is_half;
};

// Up to MAX_QUERIES queries over one run of keys and values. Query `i` sees `seen[i]` positions.
struct Queries {
    const float* q[MAX_QUERIES];
    float* out[MAX_QUERIES];
    int64_t seen[MAX_QUERIES];
    int count;
};

struct Kernels {
    const char* name;
    // Panels [first, last) of `rows @ weight.T + bias`, added to `out_RN` or stored there.
    void (*product)(const Linear&, const Rows&, float* out_RN, int64_t first, int64_t last,
                    bool adds);
    // round(x * 127 / max|x|), padded; scale max|x| / 127; the sum of the values.
    void (*quantize)(const float* x_K, int64_t k, int8_t* q_K, float* scale, int32_t* sum);
    void (*norm)(const float* x_D, const float* weight_D, float* out_D, int64_t width, float eps);
    void (*silu_mul)(const float* gate, const float* up, float* out, int64_t count);
    // Rotates `x_H` in place; the table holds cosines, then signed sines.
    void (*rotate)(float* x_H, const float* cos_sin_2H, int64_t head_dim);
    void (*write_half)(const float* x, uint16_t* out, int64_t count);
    // `scores` has room for MAX_QUERIES * round_up(max seen, 16) values.
    void (*attend)(const Queries&, const void* k_PH, const void* v_PH, int64_t head_dim,
                   bool is_half, float* scores);
};

const Kernels& scalar_kernels();
const Kernels& avx2_kernels();
const Kernels& avx512_kernels();
// Null where the processor or the system has no tiles; for processors with AVX-512.
const Kernels* amx_kernels();

}  // namespace janus
