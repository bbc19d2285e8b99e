// The kernels over a vector type, included once per instruction set, inside its namespace.
//
// The includer defines: V, W, ROW_BLOCK, load, store, load_half, store_half, set1, add, sub, mul,
// fma, max, min, div, round, scale2, absolute, sum, largest for fp32, and I, IW, INT_ROW_BLOCK,
// INT_OFFSET, Weights8, int_set1, prepare, dot, to_float, quantize_vector for int8.

constexpr int NV = PANEL / W;
constexpr int NI = PANEL / IW;
// A chunk of a panel stays in the first-level cache while ROW_GROUP rows pass; PANEL_GROUP panels
// share a visit to those rows.
constexpr int64_t CHUNK = 256, INT_CHUNK = 512, ROW_GROUP = 96, PANEL_GROUP = 4;
constexpr int64_t PREFETCH_BYTES = 4096;

// ---- products -----------------------------------------------------------------------------------

// acc += x[0..M) @ panel, over `count` inputs in ascending order.
template <int M>
inline void multiply(const float* x, int64_t stride, const uint16_t* w, int64_t count,
                     V (&acc)[M][NV]) {
    for (int64_t k = 0; k < count; ++k, w += PANEL) {
        __builtin_prefetch(reinterpret_cast<const char*>(w) + PREFETCH_BYTES);
        V weight[NV];
        for (int v = 0; v < NV; ++v) weight[v] = load_half(w + v * W);
        for (int m = 0; m < M; ++m) {
            const V value = set1(x[m * stride + k]);
            for (int v = 0; v < NV; ++v) acc[m][v] = fma(value, weight[v], acc[m][v]);
        }
    }
}

template <int M>
inline void multiply_int8(const int8_t* x, int64_t stride, const int8_t* w, int64_t count,
                          I (&acc)[M][NI]) {
    for (int64_t k = 0; k < count; k += 4, w += 4 * PANEL) {
        __builtin_prefetch(reinterpret_cast<const char*>(w) + PREFETCH_BYTES);
        __builtin_prefetch(reinterpret_cast<const char*>(w) + PREFETCH_BYTES + 64);
        for (int v = 0; v < NI; ++v) {
            const Weights8 weight = prepare(w + v * IW * 4);
            for (int m = 0; m < M; ++m)
                acc[m][v] = dot(acc[m][v], weight, x + m * stride + k);
        }
    }
}

// The end of a product: bias, residual, and the last panel's missing columns.
struct Target {
    float* out_RN;
    int64_t n;
    bool adds;
};

inline void finish(const Linear& linear, const Target& target, int64_t row, int64_t column,
                   V (&value)[NV]) {
    float* out = target.out_RN + row * target.n + column;
    const int64_t columns = linear.n - column;
    float bias[PANEL], old[PANEL];
    const float* bias_at = linear.bias_N ? linear.bias_N + column : nullptr;
    const float* old_at = out;
    if (columns < PANEL) {
        for (int64_t i = 0; i < PANEL; ++i) {
            bias[i] = bias_at && i < columns ? bias_at[i] : 0.0f;
            old[i] = target.adds && i < columns ? out[i] : 0.0f;
        }
        bias_at = bias_at ? bias : nullptr;
        old_at = old;
    }
    for (int v = 0; v < NV; ++v) {
        if (bias_at) value[v] = add(value[v], load(bias_at + v * W));
        if (target.adds) value[v] = add(load(old_at + v * W), value[v]);
    }
    if (columns >= PANEL) {
        for (int v = 0; v < NV; ++v) store(out + v * W, value[v]);
        return;
    }
    for (int v = 0; v < NV; ++v) store(old + v * W, value[v]);
    for (int64_t i = 0; i < columns; ++i) out[i] = old[i];
}

inline void finish_int8(const Linear& linear, const Target& target, int64_t row, int64_t column,
                        float row_scale, const I (&acc)[NI]) {
    alignas(64) float values[PANEL], scales[PANEL];
    for (int v = 0; v < NI; ++v) to_float(acc[v], values + v * IW);
    const int64_t columns = linear.n - column < PANEL ? linear.n - column : PANEL;
    for (int64_t i = 0; i < PANEL; ++i) scales[i] = i < columns ? linear.scale_N[column + i] : 0.0f;
    V scaled[NV];
    for (int v = 0; v < NV; ++v)
        scaled[v] = mul(mul(load(values + v * W), set1(row_scale)), load(scales + v * W));
    finish(linear, target, row, column, scaled);
}

template <int M>
void few_rows(const Linear& linear, const Rows& rows, const Target& target, int64_t row,
              int64_t panel) {
    V acc[M][NV];
    for (int m = 0; m < M; ++m)
        for (int v = 0; v < NV; ++v) acc[m][v] = set1(0.0f);
    const auto* w = static_cast<const uint16_t*>(linear.weight) + panel * PANEL * linear.k;
    multiply<M>(rows.x_RK + row * linear.k, linear.k, w, linear.k, acc);
    for (int m = 0; m < M; ++m) finish(linear, target, row + m, panel * PANEL, acc[m]);
}

template <int M>
void few_rows_int8(const Linear& linear, const Rows& rows, const Target& target, int64_t row,
                   int64_t panel) {
    const int64_t stride = round_up(linear.k, K_UNIT);
    I acc[M][NI];
    for (int m = 0; m < M; ++m)
        for (int v = 0; v < NI; ++v) acc[m][v] = int_set1(-INT_OFFSET * rows.sum_R[row + m]);
    const auto* w = static_cast<const int8_t*>(linear.weight) + panel * PANEL * stride;
    multiply_int8<M>(rows.q_RK + row * stride, stride, w, stride, acc);
    for (int m = 0; m < M; ++m)
        finish_int8(linear, target, row + m, panel * PANEL, rows.scale_R[row + m], acc[m]);
}

// A chunk of inputs for a block of rows, continuing the sums in `sums` [.][PANEL].
template <int M>
void continue_rows(const float* x, int64_t stride, const uint16_t* w, int64_t count, float* sums) {
    V acc[M][NV];
    for (int m = 0; m < M; ++m)
        for (int v = 0; v < NV; ++v) acc[m][v] = load(sums + m * PANEL + v * W);
    multiply<M>(x, stride, w, count, acc);
    for (int m = 0; m < M; ++m)
        for (int v = 0; v < NV; ++v) store(sums + m * PANEL + v * W, acc[m][v]);
}

template <int M>
void continue_rows_int8(const int8_t* x, int64_t stride, const int8_t* w, int64_t count,
                        int32_t* sums) {
    I acc[M][NI];
    for (int m = 0; m < M; ++m)
        for (int v = 0; v < NI; ++v) acc[m][v] = int_load(sums + m * PANEL + v * IW);
    multiply_int8<M>(x, stride, w, count, acc);
    for (int m = 0; m < M; ++m)
        for (int v = 0; v < NI; ++v) int_store(sums + m * PANEL + v * IW, acc[m][v]);
}

// Calls `function<M>` for M = count, which is at most LIMIT.
template <int M, int LIMIT, typename Function>
inline void with_rows(int64_t count, Function&& function) {
    if (count == M) {
        function(std::integral_constant<int, M>{});
    } else if constexpr (M < LIMIT) {
        with_rows<M + 1, LIMIT>(count, function);
    }
}

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

void many_rows(const Linear& linear, const Rows& rows, const Target& target, int64_t first,
               int64_t last) {
    alignas(64) float sums[PANEL_GROUP][ROW_GROUP][PANEL];
    const auto* weight = static_cast<const uint16_t*>(linear.weight);
    for (int64_t row = 0; row < rows.count; row += ROW_GROUP) {
        const int64_t group = smaller(ROW_GROUP, rows.count - row);
        for (int64_t panel = 0; panel < last - first; ++panel) std::memset(sums[panel], 0, sizeof sums[panel]);
        for (int64_t k = 0; k < linear.k; k += CHUNK) {
            const int64_t count = smaller(CHUNK, linear.k - k);
            for (int64_t panel = first; panel < last; ++panel) {
                const uint16_t* w = weight + (panel * linear.k + k) * PANEL;
                for (int64_t block = 0; block < group; block += ROW_BLOCK) {
                    const float* x = rows.x_RK + (row + block) * linear.k + k;
                    float* sum = sums[panel - first][block];
                    with_rows<1, ROW_BLOCK>(smaller(ROW_BLOCK, group - block), [&](auto m) {
                        continue_rows<decltype(m)::value>(x, linear.k, w, count, sum);
                    });
                }
            }
        }
        for (int64_t panel = first; panel < last; ++panel)
            for (int64_t m = 0; m < group; ++m) {
                V value[NV];
                for (int v = 0; v < NV; ++v) value[v] = load(sums[panel - first][m] + v * W);
                finish(linear, target, row + m, panel * PANEL, value);
            }
    }
}

void many_rows_int8(const Linear& linear, const Rows& rows, const Target& target, int64_t first,
                    int64_t last) {
    alignas(64) int32_t sums[PANEL_GROUP][ROW_GROUP][PANEL];
    const int64_t stride = round_up(linear.k, K_UNIT);
    const auto* weight = static_cast<const int8_t*>(linear.weight);
    for (int64_t row = 0; row < rows.count; row += ROW_GROUP) {
        const int64_t group = smaller(ROW_GROUP, rows.count - row);
        for (int64_t panel = 0; panel < last - first; ++panel)
            for (int64_t m = 0; m < group; ++m)
                for (int64_t i = 0; i < PANEL; ++i)
                    sums[panel][m][i] = -INT_OFFSET * rows.sum_R[row + m];
        for (int64_t k = 0; k < stride; k += INT_CHUNK) {
            const int64_t count = smaller(INT_CHUNK, stride - k);
            for (int64_t panel = first; panel < last; ++panel) {
                const int8_t* w = weight + (panel * stride + k) * PANEL;
                for (int64_t block = 0; block < group; block += INT_ROW_BLOCK) {
                    const int8_t* x = rows.q_RK + (row + block) * stride + k;
                    int32_t* sum = sums[panel - first][block];
                    with_rows<1, INT_ROW_BLOCK>(smaller(INT_ROW_BLOCK, group - block), [&](auto m) {
                        continue_rows_int8<decltype(m)::value>(x, stride, w, count, sum);
                    });
                }
            }
        }
        for (int64_t panel = first; panel < last; ++panel)
            for (int64_t m = 0; m < group; ++m) {
                I acc[NI];
                for (int v = 0; v < NI; ++v) acc[v] = int_load(sums[panel - first][m] + v * IW);
                finish_int8(linear, target, row + m, panel * PANEL, rows.scale_R[row + m], acc);
            }
    }
}

void product(const Linear& linear, const Rows& rows, float* out_RN, int64_t first, int64_t last,
             bool adds) {
    const Target target{out_RN, linear.n, adds};
    const bool is_int8 = linear.format == INT8;
    if (rows.count > (is_int8 ? INT_ROW_BLOCK : ROW_BLOCK)) {
        for (int64_t panel = first; panel < last; panel += PANEL_GROUP) {
            const int64_t end = smaller(panel + PANEL_GROUP, last);
            is_int8 ? many_rows_int8(linear, rows, target, panel, end)
                    : many_rows(linear, rows, target, panel, end);
        }
        return;
    }
    for (int64_t panel = first; panel < last; ++panel) {
        if (is_int8)
            with_rows<1, INT_ROW_BLOCK>(rows.count, [&](auto m) {
                few_rows_int8<decltype(m)::value>(linear, rows, target, 0, panel);
            });
        else
            with_rows<1, ROW_BLOCK>(rows.count, [&](auto m) {
                few_rows<decltype(m)::value>(linear, rows, target, 0, panel);
            });
    }
}

// ---- rows ---------------------------------------------------------------------------------------

void quantize(const float* x_K, int64_t k, int8_t* q_K, float* scale, int32_t* sum_out) {
    // Zero times a value is not a number where the value is not finite: it must show in the result.
    V highest = set1(0.0f), zeros = set1(0.0f);
    int64_t i = 0;
    for (; i + W <= k; i += W) {
        highest = max(highest, absolute(load(x_K + i)));
        zeros = fma(load(x_K + i), set1(0.0f), zeros);
    }
    float limit = largest(highest), zero = sum(zeros);
    for (; i < k; ++i) {
        limit = std::max(limit, std::fabs(x_K[i]));
        zero += x_K[i] * 0.0f;
    }
    const float factor = limit > 0.0f ? 127.0f / limit : 0.0f;
    *scale = limit / 127.0f + zero;
    int32_t total = 0;
    for (i = 0; i + W <= k; i += W) quantize_vector(mul(load(x_K + i), set1(factor)), q_K + i);
    for (; i < k; ++i) q_K[i] = static_cast<int8_t>(std::nearbyint(x_K[i] * factor));
    for (; i < round_up(k, K_UNIT); ++i) q_K[i] = 0;
    for (i = 0; i < k; ++i) total += q_K[i];
    *sum_out = total;
}

void norm(const float* x_D, const float* weight_D, float* out_D, int64_t width, float eps) {
    V squares = set1(0.0f);
    int64_t i = 0;
    for (; i + W <= width; i += W) squares = fma(load(x_D + i), load(x_D + i), squares);
    float total = sum(squares);
    for (; i < width; ++i) total += x_D[i] * x_D[i];
    const float factor = 1.0f / std::sqrt(total / static_cast<float>(width) + eps);
    for (i = 0; i + W <= width; i += W)
        store(out_D + i, mul(mul(load(x_D + i), set1(factor)), load(weight_D + i)));
    for (; i < width; ++i) out_D[i] = x_D[i] * factor * weight_D[i];
}

// Range reduction and a Taylor polynomial on |r| <= ln(2) / 2: error below 2 units in the last place.
inline V exponential(V x) {
    // What is not a number stays so: min and max return the second operand then.
    x = min(set1(88.0f), max(set1(-87.0f), x));
    const V n = round(mul(x, set1(1.44269504f)));
    V r = fma(n, set1(-0.693359375f), x);
    r = fma(n, set1(2.12194440e-4f), r);
    V y = set1(1.0f / 5040);
    y = fma(y, r, set1(1.0f / 720));
    y = fma(y, r, set1(1.0f / 120));
    y = fma(y, r, set1(1.0f / 24));
    y = fma(y, r, set1(1.0f / 6));
    y = fma(y, r, set1(0.5f));
    y = fma(y, r, set1(1.0f));
    y = fma(y, r, set1(1.0f));
    return scale2(y, n);
}

inline V silu_mul_vector(V gate, V up) {
    const V denominator = add(set1(1.0f), exponential(sub(set1(0.0f), gate)));
    return mul(div(gate, denominator), up);
}

void silu_mul(const float* gate, const float* up, float* out, int64_t count) {
    int64_t i = 0;
    for (; i + W <= count; i += W) store(out + i, silu_mul_vector(load(gate + i), load(up + i)));
    if (i == count) return;
    // The same arithmetic for the rest, so that a value does not depend on its place.
    float gates[W] = {}, ups[W] = {};
    for (int64_t j = i; j < count; ++j) gates[j - i] = gate[j], ups[j - i] = up[j];
    store(gates, silu_mul_vector(load(gates), load(ups)));
    for (int64_t j = i; j < count; ++j) out[j] = gates[j - i];
}

void rotate(float* x_H, const float* cos_sin_2H, int64_t head_dim) {
    const int64_t half = head_dim / 2;
    const float *cos = cos_sin_2H, *sin = cos_sin_2H + head_dim;
    int64_t i = 0;
    for (; i + W <= half; i += W) {
        const V a = load(x_H + i), b = load(x_H + half + i);
        store(x_H + i, fma(b, load(sin + i), mul(a, load(cos + i))));
        store(x_H + half + i, fma(a, load(sin + half + i), mul(b, load(cos + half + i))));
    }
    for (; i < half; ++i) {
        const float a = x_H[i], b = x_H[half + i];
        x_H[i] = a * cos[i] + b * sin[i];
        x_H[half + i] = b * cos[half + i] + a * sin[half + i];
    }
}

void write_half(const float* x, uint16_t* out, int64_t count) {
    // Saturated: an infinity in the pool would be read for ever.
    const V low = set1(-65504.0f), high = set1(65504.0f);
    int64_t i = 0;
    for (; i + W <= count; i += W) store_half(out + i, min(high, max(low, load(x + i))));
    if (i == count) return;
    float rest[W] = {};
    uint16_t halves[W];
    for (int64_t j = i; j < count; ++j) rest[j - i] = x[j];
    store_half(halves, min(high, max(low, load(rest))));
    for (int64_t j = i; j < count; ++j) out[j] = halves[j - i];
}

// ---- attention ----------------------------------------------------------------------------------

inline V load_as(const uint16_t* p) { return load_half(p); }
inline V load_as(const float* p) { return load(p); }
inline float value_of(const uint16_t* p) {
    uint16_t halves[W] = {*p};
    float values[W];
    store(values, load_half(halves));
    return values[0];
}
inline float value_of(const float* p) { return *p; }

template <int Q, typename T>
void score(const float* q_QH, const T* k_PH, int64_t head_dim, int64_t longest, float* scores,
           int64_t room) {
    for (int64_t position = 0; position < longest; ++position) {
        const T* key = k_PH + position * head_dim;
        V acc[Q];
        for (int q = 0; q < Q; ++q) acc[q] = set1(0.0f);
        int64_t d = 0;
        for (; d + W <= head_dim; d += W) {
            const V values = load_as(key + d);
            for (int q = 0; q < Q; ++q) acc[q] = fma(load(q_QH + q * head_dim + d), values, acc[q]);
        }
        for (int q = 0; q < Q; ++q) {
            float total = sum(acc[q]);
            for (int64_t e = d; e < head_dim; ++e) total += q_QH[q * head_dim + e] * value_of(key + e);
            scores[q * room + position] = total;
        }
    }
}

// Scores to weights in place; what lies beyond `seen` becomes zero.
inline void softmax(float* scores, int64_t seen, int64_t room) {
    for (int64_t i = seen; i < room; ++i) scores[i] = -INFINITY;
    V highest = set1(-INFINITY);
    for (int64_t i = 0; i < round_up(seen, W); i += W) highest = max(highest, load(scores + i));
    const V limit = set1(largest(highest));
    V total = set1(0.0f);
    for (int64_t i = 0; i < round_up(seen, W); i += W) {
        // exponential() has a floor, so what is not seen is set to zero below, before it is summed.
        store(scores + i, exponential(sub(load(scores + i), limit)));
        if (i + W > seen)
            for (int64_t j = seen; j < i + W; ++j) scores[j] = 0.0f;
        total = add(total, load(scores + i));
    }
    for (int64_t i = round_up(seen, W); i < room; ++i) scores[i] = 0.0f;
    const V factor = set1(1.0f / sum(total));
    for (int64_t i = 0; i < round_up(seen, W); i += W)
        store(scores + i, mul(load(scores + i), factor));
}

// Vectors [d, d + C * W) of the outputs.
template <int Q, int C, typename T>
void mix(const Queries& queries, const T* v_PH, int64_t head_dim, int64_t d, int64_t longest,
         const float* weights, int64_t room) {
    V acc[Q][C];
    for (int q = 0; q < Q; ++q)
        for (int c = 0; c < C; ++c) acc[q][c] = set1(0.0f);
    for (int64_t position = 0; position < longest; ++position) {
        const T* row = v_PH + position * head_dim + d;
        V values[C];
        for (int c = 0; c < C; ++c) values[c] = load_as(row + c * W);
        for (int q = 0; q < Q; ++q) {
            const V weight = set1(weights[q * room + position]);
            for (int c = 0; c < C; ++c) acc[q][c] = fma(weight, values[c], acc[q][c]);
        }
    }
    for (int q = 0; q < Q; ++q)
        for (int c = 0; c < C; ++c) store(queries.out[q] + d + c * W, acc[q][c]);
}

template <int Q, typename T>
void attend_queries(const Queries& queries, const T* k_PH, const T* v_PH, int64_t head_dim,
                    float* scores) {
    constexpr int WIDE = Q == 1 ? 8 : 4;
    int64_t longest = 0;
    for (int q = 0; q < Q; ++q) longest = std::max(longest, queries.seen[q]);
    const int64_t room = round_up(longest, 16);
    float scaled[Q * 512];
    const float scale = 1.0f / std::sqrt(static_cast<float>(head_dim));
    for (int q = 0; q < Q; ++q)
        for (int64_t d = 0; d < head_dim; ++d) scaled[q * head_dim + d] = queries.q[q][d] * scale;
    score<Q>(scaled, k_PH, head_dim, longest, scores, room);
    for (int q = 0; q < Q; ++q) softmax(scores + q * room, queries.seen[q], room);
    int64_t d = 0;
    for (; d + WIDE * W <= head_dim; d += WIDE * W)
        mix<Q, WIDE>(queries, v_PH, head_dim, d, longest, scores, room);
    for (; d + W <= head_dim; d += W)
        mix<Q, 1>(queries, v_PH, head_dim, d, longest, scores, room);
    for (; d < head_dim; ++d)
        for (int q = 0; q < Q; ++q) {
            float total = 0.0f;
            for (int64_t position = 0; position < longest; ++position)
                total += scores[q * room + position] * value_of(v_PH + position * head_dim + d);
            queries.out[q][d] = total;
        }
}

void attend(const Queries& queries, const void* k_PH, const void* v_PH, int64_t head_dim,
            bool is_half, float* scores) {
    with_rows<1, MAX_QUERIES>(queries.count, [&](auto q) {
        constexpr int Q = decltype(q)::value;
        if (is_half)
            attend_queries<Q>(queries, static_cast<const uint16_t*>(k_PH),
                              static_cast<const uint16_t*>(v_PH), head_dim, scores);
        else
            attend_queries<Q>(queries, static_cast<const float*>(k_PH),
                              static_cast<const float*>(v_PH), head_dim, scores);
    });
}
