// The functions Python calls, and the split of their work among threads.
//
// Nothing is kept between calls: weights, pool and results belong to the caller. Functions that work
// return 0, or 1 where memory ran out. Every thread of a parallel region walks the same list of
// stages; a barrier lies between stages that read each other's results.
#include "kernels.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <new>
#include <vector>

#if defined(_OPENMP)
#include <omp.h>
#else
static int omp_get_thread_num() { return 0; }
static int omp_get_num_threads() { return 1; }
#endif

namespace janus {
namespace {

// From the best to the one that always works, then null.
struct Available {
    const Kernels* list[5] = {};

    Available() {
        int count = 0;
#if defined(__x86_64__)
        __builtin_cpu_init();
        // AVX2 without F16C was never sold, and not every compiler can ask for F16C.
        const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
        if (has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
            __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
            __builtin_cpu_supports("avx512vnni")) {
            if (const Kernels* kernels = amx_kernels()) list[count++] = kernels;
            list[count++] = &avx512_kernels();
        }
        if (has_avx2) list[count++] = &avx2_kernels();
#endif
        list[count] = &scalar_kernels();
    }
};

const Kernels* const* available() {
    // Made once, whichever thread comes first.
    static const Available available;
    return available.list;
}

const Kernels* find(const char* name) {
    for (const Kernels* const* each = available(); *each; ++each)
        if (!name[0] || std::strcmp((*each)->name, name) == 0) return *each;
    return nullptr;
}

class Memory {
  public:
    ~Memory() { std::free(base_); }
    bool reserve(size_t bytes) {
        base_ = static_cast<char*>(std::aligned_alloc(64, round_up(bytes + 64, 64)));
        return base_ != nullptr;
    }
    template <typename T>
    T* take(size_t count) {
        T* at = reinterpret_cast<T*>(base_ + used_);
        used_ += size<T>(count);
        return at;
    }
    template <typename T>
    static size_t size(size_t count) {
        return round_up(count * sizeof(T), 64);
    }

  private:
    char* base_ = nullptr;
    size_t used_ = 0;
};

// One thread of several that run the same code.
struct Worker {
    const Kernels& kernels;
    int index, count;

    void wait() const {
#if defined(_OPENMP)
#pragma omp barrier
#endif
    }
    int64_t first(int64_t total) const { return total * index / count; }
    int64_t last(int64_t total) const { return total * (index + 1) / count; }
};

// The int8 form of rows of some width, with room for `rows` of them.
struct Quantized {
    int8_t* q_RK;
    float* scale_R;
    int32_t* sum_R;

    static size_t size(int64_t rows, int64_t width) {
        return Memory::size<int8_t>(rows * round_up(width, K_UNIT)) + Memory::size<float>(rows) +
               Memory::size<int32_t>(rows);
    }
    static Quantized take(Memory& memory, int64_t rows, int64_t width) {
        return {memory.take<int8_t>(rows * round_up(width, K_UNIT)), memory.take<float>(rows),
                memory.take<int32_t>(rows)};
    }
    void row(const Kernels& kernels, const float* x_K, int64_t k, int64_t row) const {
        kernels.quantize(x_K, k, q_RK + row * round_up(k, K_UNIT), scale_R + row, sum_R + row);
    }
};

// A worker's panels of a product. The rows must be complete in both forms the format may need.
void multiply(const Worker& worker, const Linear& linear, const float* x_RK,
              const Quantized& quantized, int64_t rows, float* out_RN, bool adds) {
    const Rows input{x_RK, quantized.q_RK, quantized.scale_R, quantized.sum_R, rows};
    const int64_t panels = num_panels(linear);
    const int64_t first = worker.first(panels), last = worker.last(panels);
    if (first < last) worker.kernels.product(linear, input, out_RN, first, last, adds);
}

// ---- attention ----------------------------------------------------------------------------------

// As in __init__.py.
struct Span {
    int64_t first, num_tokens, slot_start, context;
};

// Neighbouring tokens of a sequence, or heads of one token that share keys: one pass over them.
struct Unit {
    int64_t token, head, slot_start, seen;
    int num_tokens, num_heads;
};

std::vector<Unit> units_of(const Span* spans, int64_t num_spans, int64_t heads_per_kv) {
    std::vector<Unit> units;
    for (int64_t s = 0; s < num_spans; ++s) {
        const Span& span = spans[s];
        const int64_t before = span.context - span.num_tokens;
        const int64_t step = heads_per_kv == 1 ? MAX_QUERIES : 1;
        for (int64_t t = 0; t < span.num_tokens; t += step)
            for (int64_t head = 0; head < heads_per_kv; head += MAX_QUERIES)
                units.push_back({span.first + t, head, span.slot_start, before + t + 1,
                                 static_cast<int>(std::min(step, span.num_tokens - t)),
                                 static_cast<int>(std::min<int64_t>(MAX_QUERIES, heads_per_kv - head))});
    }
    return units;
}

struct AttentionWork {
    const float* q;  // [T, ...]: token_stride values apart
    int64_t token_stride;
    int64_t num_heads;
    float* out_TNH;
    const std::vector<Unit>& units;
};

size_t scores_size(int64_t longest) {
    return Memory::size<float>(MAX_QUERIES * round_up(longest, 16));
}

void attend(const Worker& worker, const AttentionWork& work, const Cache& cache, float* scores) {
    const int64_t head_dim = cache.head_dim, heads_per_kv = work.num_heads / cache.num_kv_heads;
    const int64_t bytes = cache.is_half ? 2 : 4;
    const int64_t head_bytes = cache.num_positions * head_dim * bytes;
    const auto* base = static_cast<const char*>(cache.kv);
    const auto num_units = static_cast<int64_t>(work.units.size());
    for (int64_t item = worker.index; item < num_units * cache.num_kv_heads; item += worker.count) {
        const int64_t kv_head = item / num_units;
        const Unit& unit = work.units[item % num_units];
        Queries queries{};
        for (int t = 0; t < unit.num_tokens; ++t)
            for (int h = 0; h < unit.num_heads; ++h) {
                const int64_t head = kv_head * heads_per_kv + unit.head + h, token = unit.token + t;
                queries.q[queries.count] = work.q + token * work.token_stride + head * head_dim;
                queries.out[queries.count] = work.out_TNH + (token * work.num_heads + head) * head_dim;
                queries.seen[queries.count++] = unit.seen + t;
            }
        const char* keys = base + kv_head * head_bytes + unit.slot_start * head_dim * bytes;
        worker.kernels.attend(queries, keys, keys + cache.num_kv_heads * head_bytes, head_dim,
                              cache.is_half != 0, scores);
    }
}

// ---- the layers ---------------------------------------------------------------------------------

// As in __init__.py.
struct Layer {
    const float* input_norm_D;
    const float* post_norm_D;
    Linear qkv, out, gate_up, down;
};

struct Step {
    float* x_TD;
    float* hidden_TD;
    const Layer* layers;
    const float* final_norm_D;
    const float* rotary_P2H;
    const int64_t* positions_T;
    const int64_t* cache_positions_T;
    const Span* spans;
    void* kv_L2KPH;
    int64_t num_tokens, num_spans, num_layers, width, mlp_width;
    int64_t num_heads, num_kv_heads, head_dim, num_positions;
    float eps;
    int32_t is_half;
};

struct Buffers {
    float *normed_TD, *qkv, *attended, *gate_up, *mlp;
    Quantized q_width, q_heads, q_mlp;
    float* scores;  // one share for each worker
    size_t scores_stride;
};

// Rotate queries and keys, then put keys and values into the pool.
void place_keys(const Worker& worker, const Step& step, const Cache& cache, float* qkv) {
    const int64_t heads = step.num_heads + 2 * step.num_kv_heads, head_dim = step.head_dim;
    const int64_t first = worker.first(step.num_tokens * heads);
    const int64_t last = worker.last(step.num_tokens * heads);
    for (int64_t item = first; item < last; ++item) {
        const int64_t token = item / heads, head = item % heads;
        float* x_H = qkv + item * head_dim;
        if (head < step.num_heads + step.num_kv_heads)
            worker.kernels.rotate(x_H, step.rotary_P2H + step.positions_T[token] * 2 * head_dim,
                                  head_dim);
        if (head < step.num_heads) continue;
        const int64_t row =
            (head - step.num_heads) * step.num_positions + step.cache_positions_T[token];
        if (cache.is_half)
            worker.kernels.write_half(x_H, static_cast<uint16_t*>(cache.kv) + row * head_dim,
                                      head_dim);
        else
            std::memcpy(static_cast<float*>(cache.kv) + row * head_dim, x_H,
                        head_dim * sizeof(float));
    }
}

// Normalise each row, and quantise it where the product that follows reads int8.
void prepare_rows(const Worker& worker, const Step& step, const float* weight_D,
                  const Linear& next, const Buffers& buffers) {
    for (int64_t t = worker.first(step.num_tokens); t < worker.last(step.num_tokens); ++t) {
        float* row = buffers.normed_TD + t * step.width;
        worker.kernels.norm(step.x_TD + t * step.width, weight_D, row, step.width, step.eps);
        if (next.format == INT8) buffers.q_width.row(worker.kernels, row, step.width, t);
    }
    worker.wait();
}

void gate(const Worker& worker, const Step& step, const Layer& layer, const Buffers& buffers) {
    const int64_t width = step.mlp_width;
    const auto silu = [&](int64_t t, int64_t from, int64_t to) {
        const float* gate = buffers.gate_up + t * 2 * width;
        worker.kernels.silu_mul(gate + from, gate + width + from, buffers.mlp + t * width + from,
                                to - from);
    };
    if (layer.down.format == INT8) {
        for (int64_t t = worker.first(step.num_tokens); t < worker.last(step.num_tokens); ++t) {
            silu(t, 0, width);
            buffers.q_mlp.row(worker.kernels, buffers.mlp + t * width, width, t);
        }
    } else {
        for (int64_t t = 0; t < step.num_tokens; ++t) silu(t, worker.first(width), worker.last(width));
    }
    worker.wait();
}

void run_layer(const Worker& worker, const Step& step, const Layer& layer, const Cache& cache,
               const std::vector<Unit>& units, const Buffers& buffers) {
    const int64_t tokens = step.num_tokens, q_width = step.num_heads * step.head_dim;
    prepare_rows(worker, step, layer.input_norm_D, layer.qkv, buffers);
    multiply(worker, layer.qkv, buffers.normed_TD, buffers.q_width, tokens, buffers.qkv, false);
    worker.wait();
    place_keys(worker, step, cache, buffers.qkv);
    worker.wait();
    const AttentionWork work{buffers.qkv, layer.qkv.n, step.num_heads, buffers.attended, units};
    attend(worker, work, cache, buffers.scores + worker.index * buffers.scores_stride);
    worker.wait();
    if (layer.out.format == INT8) {
        for (int64_t t = worker.first(tokens); t < worker.last(tokens); ++t)
            buffers.q_heads.row(worker.kernels, buffers.attended + t * q_width, q_width, t);
        worker.wait();
    }
    multiply(worker, layer.out, buffers.attended, buffers.q_heads, tokens, step.x_TD, true);
    worker.wait();
    prepare_rows(worker, step, layer.post_norm_D, layer.gate_up, buffers);
    multiply(worker, layer.gate_up, buffers.normed_TD, buffers.q_width, tokens, buffers.gate_up,
             false);
    worker.wait();
    gate(worker, step, layer, buffers);
    multiply(worker, layer.down, buffers.mlp, buffers.q_mlp, tokens, step.x_TD, true);
    worker.wait();
}

void run_step(const Worker& worker, const Step& step, const std::vector<Unit>& units,
              const Buffers& buffers) {
    const int64_t layer_bytes = 2 * step.num_kv_heads * step.num_positions * step.head_dim *
                                (step.is_half ? 2 : 4);
    for (int64_t l = 0; l < step.num_layers; ++l) {
        const Cache cache{static_cast<char*>(step.kv_L2KPH) + l * layer_bytes, step.num_kv_heads,
                          step.num_positions, step.head_dim, step.is_half};
        run_layer(worker, step, step.layers[l], cache, units, buffers);
    }
    for (int64_t t = worker.first(step.num_tokens); t < worker.last(step.num_tokens); ++t)
        worker.kernels.norm(step.x_TD + t * step.width, step.final_norm_D,
                            step.hidden_TD + t * step.width, step.width, step.eps);
}

int64_t longest_of(const Span* spans, int64_t num_spans) {
    int64_t longest = 1;
    for (int64_t s = 0; s < num_spans; ++s) longest = std::max(longest, spans[s].context);
    return longest;
}

bool reserve(Memory& memory, Buffers& buffers, const Step& step, int64_t longest, int threads) {
    const int64_t t = step.num_tokens, q_width = step.num_heads * step.head_dim;
    const int64_t qkv_width = q_width + 2 * step.num_kv_heads * step.head_dim;
    const size_t bytes =
        Memory::size<float>(t * step.width) + Memory::size<float>(t * qkv_width) +
        Memory::size<float>(t * q_width) + Memory::size<float>(2 * t * step.mlp_width) +
        Memory::size<float>(t * step.mlp_width) + Quantized::size(t, step.width) +
        Quantized::size(t, q_width) + Quantized::size(t, step.mlp_width) +
        threads * scores_size(longest);
    if (!memory.reserve(bytes)) return false;
    buffers.normed_TD = memory.take<float>(t * step.width);
    buffers.qkv = memory.take<float>(t * qkv_width);
    buffers.attended = memory.take<float>(t * q_width);
    buffers.gate_up = memory.take<float>(2 * t * step.mlp_width);
    buffers.mlp = memory.take<float>(t * step.mlp_width);
    buffers.q_width = Quantized::take(memory, t, step.width);
    buffers.q_heads = Quantized::take(memory, t, q_width);
    buffers.q_mlp = Quantized::take(memory, t, step.mlp_width);
    buffers.scores_stride = scores_size(longest) / sizeof(float);
    buffers.scores = memory.take<float>(threads * buffers.scores_stride);
    return true;
}

}  // namespace
}  // namespace janus

using namespace janus;

extern "C" {

// Raised with every change of a signature or a layout here; __init__.py names the one it speaks.
int32_t janus_interface() { return 1; }

// The name of the n-th best instruction set this processor has, null beyond the last.
const char* janus_path(int32_t n) {
    const Kernels* const* list = available();
    for (int32_t i = 0; i <= n; ++i)
        if (!list[i]) return nullptr;
    return list[n]->name;
}

int64_t janus_packed_bytes(int32_t format, int64_t n, int64_t k) {
    const int64_t rows = round_up(n, PANEL);
    return format == INT8 ? rows * round_up(k, K_UNIT) : rows * k * 2;
}

// Bring `weight_NK` into the format's panels; int8 writes `scale_N`.
void janus_pack(int32_t format, const float* weight_NK, int64_t n, int64_t k, void* packed,
                float* scale_N, int32_t threads) {
    const Kernels& kernels = *find("");
    const int64_t stride = round_up(k, K_UNIT), panels = round_up(n, PANEL) / PANEL;
    std::memset(packed, 0, janus_packed_bytes(format, n, k));
#pragma omp parallel for num_threads(threads)
    for (int64_t panel = 0; panel < panels; ++panel)
        for (int64_t i = 0; i < std::min(PANEL, n - panel * PANEL); ++i) {
            const float* row_K = weight_NK + (panel * PANEL + i) * k;
            if (format == FP16) {
                std::vector<uint16_t> half_K(k);
                kernels.write_half(row_K, half_K.data(), k);
                auto* out = static_cast<uint16_t*>(packed) + panel * PANEL * k + i;
                for (int64_t j = 0; j < k; ++j) out[j * PANEL] = half_K[j];
                continue;
            }
            std::vector<int8_t> q_K(stride);
            int32_t sum;
            kernels.quantize(row_K, k, q_K.data(), scale_N + panel * PANEL + i, &sum);
            auto* out = static_cast<int8_t*>(packed) + panel * PANEL * stride + 4 * i;
            for (int64_t j = 0; j < stride; ++j)
                out[j / 4 * 4 * PANEL + j % 4] = q_K[j];
        }
}

int32_t janus_linear(const char* path, const Linear* linear, const float* x_RK, int64_t rows,
                     float* out_RN, int32_t threads) {
    const Kernels& kernels = *find(path);
    Memory memory;
    Quantized quantized{};
    if (linear->format == INT8) {
        if (!memory.reserve(Quantized::size(rows, linear->k))) return 1;
        quantized = Quantized::take(memory, rows, linear->k);
    }
#pragma omp parallel num_threads(threads)
    {
        const Worker worker{kernels, omp_get_thread_num(), omp_get_num_threads()};
        if (linear->format == INT8) {
            for (int64_t r = worker.first(rows); r < worker.last(rows); ++r)
                quantized.row(kernels, x_RK + r * linear->k, linear->k, r);
            worker.wait();
        }
        multiply(worker, *linear, x_RK, quantized, rows, out_RN, false);
    }
    return 0;
}

int32_t janus_attend(const char* path, const float* q, int64_t token_stride, int64_t num_heads,
                     const Cache* cache, const Span* spans, int64_t num_spans, float* out_TNH,
                     int32_t threads) {
    try {
        const Kernels& kernels = *find(path);
        const auto units = units_of(spans, num_spans, num_heads / cache->num_kv_heads);
        const int64_t longest = longest_of(spans, num_spans);
        const AttentionWork work{q, token_stride, num_heads, out_TNH, units};
        Memory memory;
        if (!memory.reserve(threads * scores_size(longest))) return 1;
        auto* scores = memory.take<float>(0);
#pragma omp parallel num_threads(threads)
        {
            const Worker worker{kernels, omp_get_thread_num(), omp_get_num_threads()};
            attend(worker, work, *cache, scores + worker.index * (scores_size(longest) / 4));
        }
        return 0;
    } catch (const std::bad_alloc&) {
        return 1;
    }
}

int32_t janus_step(const char* path, const Step* step, int32_t threads) {
    try {
        const Kernels& kernels = *find(path);
        const auto units =
            units_of(step->spans, step->num_spans, step->num_heads / step->num_kv_heads);
        const int64_t longest = longest_of(step->spans, step->num_spans);
        Memory memory;
        Buffers buffers{};
        if (!reserve(memory, buffers, *step, longest, threads)) return 1;
#pragma omp parallel num_threads(threads)
        run_step(Worker{kernels, omp_get_thread_num(), omp_get_num_threads()}, *step, units,
                 buffers);
        return 0;
    } catch (const std::bad_alloc&) {
        return 1;
    }
}

}  // extern "C"
