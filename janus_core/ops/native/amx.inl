// int8 products by AMX tiles (Sapphire Rapids and later), included into the namespace of AVX-512.
//
// Owns the blocking over tiles; everything around a sum is body.inl's. Sums of int8 products are exact
// integers, so a row has the same bits by tiles, by vpdpbusd and by any other instruction, and the
// choice between them may follow the number of rows. Panels are read as they lie: four inputs of an
// output are neighbours, which is what a tile of weights wants.
//
// Tiles: 0 to 3 sums of 16 rows x 16 outputs, [row half][output half]; 4 and 5 rows; 6 and 7 weights.

#define JANUS_AMX __attribute__((target("amx-tile,amx-int8")))

// Below, reading the weights takes all the time, and a row of a tile costs as much as sixteen.
constexpr int64_t TILE_MIN_ROWS = 9;
constexpr int64_t TILE_ROWS = 16, TILE_K = 64, TILE_BYTES = 64;
// Rows that stay in the second-level cache while PANEL_GROUP panels pass.
constexpr int64_t TILE_ROW_GROUP = 128;

// The operand of ldtilecfg (Intel SDM, volume 1, 18.3).
struct alignas(64) TileConfig {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};

    // Sums for `count` rows, at most 32; halves without rows have no tiles.
    explicit TileConfig(int64_t count) {
        const int64_t halves[2] = {smaller(TILE_ROWS, count), count > TILE_ROWS ? count - TILE_ROWS : 0};
        for (int half = 0; half < 2; ++half)
            for (int tile : {2 * half, 2 * half + 1, 4 + half}) set(tile, halves[half]);
        set(6, TILE_ROWS);
        set(7, TILE_ROWS);
    }
    void set(int tile, int64_t count) {
        rows[tile] = static_cast<uint8_t>(count);
        row_bytes[tile] = count ? TILE_BYTES : 0;
    }
};

// GCC 12's intrinsics for loading do not say that they read memory: a configuration or a row that
// nobody else reads might never be stored. An operand of its full size, and a barrier, say it.
JANUS_AMX inline void load_config(const TileConfig& config) {
    __asm__ volatile("ldtilecfg %0" ::"m"(config));
}

inline void finish_stores() { __asm__ volatile("" ::: "memory"); }

// `sums` [32][PANEL] of at most 32 rows with one panel, whose tiles are configured.
template <bool BOTH>
JANUS_AMX inline void tile_block(const int8_t* x, int64_t stride, const int8_t* w, int32_t* sums) {
    constexpr int64_t row_bytes = PANEL * sizeof(int32_t);
    _tile_zero(0);
    _tile_zero(1);
    if (BOTH) {
        _tile_zero(2);
        _tile_zero(3);
    }
    for (int64_t k = 0; k < stride; k += TILE_K, w += TILE_K * PANEL) {
        _tile_loadd(6, w, 4 * PANEL);
        _tile_loadd(7, w + TILE_BYTES, 4 * PANEL);
        _tile_loadd(4, x + k, stride);
        _tile_dpbssd(0, 4, 6);
        _tile_dpbssd(1, 4, 7);
        if (BOTH) {
            _tile_loadd(5, x + TILE_ROWS * stride + k, stride);
            _tile_dpbssd(2, 5, 6);
            _tile_dpbssd(3, 5, 7);
        }
    }
    _tile_stored(0, sums, row_bytes);
    _tile_stored(1, sums + TILE_ROWS, row_bytes);
    if (BOTH) {
        _tile_stored(2, sums + TILE_ROWS * PANEL, row_bytes);
        _tile_stored(3, sums + TILE_ROWS * PANEL + TILE_ROWS, row_bytes);
    }
}

JANUS_AMX void tile_panels(const Linear& linear, const Rows& rows, const Target& target,
                           int64_t first, int64_t last) {
    alignas(64) int32_t sums[2 * TILE_ROWS][PANEL];
    const int64_t stride = round_up(linear.k, K_UNIT);
    const auto* weight = static_cast<const int8_t*>(linear.weight);
    int64_t configured = 0;
    finish_stores();
    for (int64_t row = 0; row < rows.count; row += TILE_ROW_GROUP) {
        const int64_t end = smaller(row + TILE_ROW_GROUP, rows.count);
        for (int64_t panel = first; panel < last; ++panel)
            for (int64_t block = row; block < end; block += 2 * TILE_ROWS) {
                const int64_t count = smaller(2 * TILE_ROWS, end - block);
                if (count != configured) {
                    const TileConfig config(count);
                    load_config(config);
                    configured = count;
                }
                const int8_t* x = rows.q_RK + block * stride;
                const int8_t* w = weight + panel * PANEL * stride;
                count > TILE_ROWS ? tile_block<true>(x, stride, w, sums[0])
                                  : tile_block<false>(x, stride, w, sums[0]);
                for (int64_t m = 0; m < count; ++m) {
                    I acc[NI];
                    for (int v = 0; v < NI; ++v) acc[v] = int_load(sums[m] + v * IW);
                    finish_int8(linear, target, block + m, panel * PANEL, rows.scale_R[block + m],
                                acc);
                }
            }
    }
}

JANUS_AMX void tile_product(const Linear& linear, const Rows& rows, float* out_RN, int64_t first,
                            int64_t last, bool adds) {
    if (linear.format != INT8 || rows.count < TILE_MIN_ROWS)
        return product(linear, rows, out_RN, first, last, adds);
    for (int64_t panel = first; panel < last; panel += PANEL_GROUP)
        tile_panels(linear, rows, {out_RN, linear.n, adds}, panel,
                    smaller(panel + PANEL_GROUP, last));
    // Without it the kernel saves eight kilobytes more at every switch of this thread.
    _tile_release();
}
