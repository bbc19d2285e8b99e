"""The Triton kernels of a step over rows, layer by layer and at the head of the codes.

Owns device code only: `triton_ops.py` launches it and knows shapes and dtypes, `eager_ops.py` says
in torch what each kernel computes. Imports triton, so it is imported on CUDA only (or under
`TRITON_INTERPRET=1`, in tests).

Invariant: what a row gets depends on the row alone. The keys of a row are cut into splits of a
fixed length, added up within a split in tiles of a fixed length, and the splits merged one after
the other: neither the number of rows nor the longest context of the batch changes the order.

Index letters: H head width, L positions of a tile, D model width, M inner width, V codes of a tile.
"""

import triton
import triton.language as tl


@triton.jit
def attend_split(
    q_ptr,
    kv_ptr,
    slot_starts_ptr,
    contexts_ptr,
    sums_ptr,
    peaks_ptr,
    totals_ptr,
    q_stride,
    head_stride,
    value_offset,
    scale,
    H: tl.constexpr,
    BLOCK_H: tl.constexpr,
    GROUP: tl.constexpr,
    SPLIT: tl.constexpr,
    TILE: tl.constexpr,
):
    """Attention of one row and head over one split: unnormalised sum, peak and total, base 2."""
    row, head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    context = tl.load(contexts_ptr + row)
    first = split * SPLIT
    if first < context:
        h_H = tl.arange(0, BLOCK_H)
        in_head_H = h_H < H
        q_H = tl.load(q_ptr + row * q_stride + head * H + h_H, mask=in_head_H, other=0.0)
        q_H = q_H.to(tl.float32) * scale
        start = tl.load(slot_starts_ptr + row)
        # 64 bits: a layer of a large pool has more values than 32 can count.
        keys_ptr = kv_ptr + (head // GROUP).to(tl.int64) * head_stride + start * H
        peak = float("-inf")
        total = 0.0
        sum_H = tl.zeros([BLOCK_H], dtype=tl.float32)
        for tile in range(first, tl.minimum(first + SPLIT, context), TILE):
            l_L = tile + tl.arange(0, TILE)
            seen_L = l_L < context
            place_LH = keys_ptr + l_L[:, None] * H + h_H[None, :]
            seen_LH = seen_L[:, None] & in_head_H[None, :]
            k_LH = tl.load(place_LH, mask=seen_LH, other=0.0).to(tl.float32)
            score_L = tl.where(seen_L, tl.sum(k_LH * q_H[None, :], axis=1), float("-inf"))
            new_peak = tl.maximum(peak, tl.max(score_L, axis=0))
            weight_L = tl.exp2(score_L - new_peak)
            kept = tl.exp2(peak - new_peak)
            v_LH = tl.load(place_LH + value_offset, mask=seen_LH, other=0.0).to(tl.float32)
            sum_H = sum_H * kept + tl.sum(v_LH * weight_L[:, None], axis=0)
            total = total * kept + tl.sum(weight_L, axis=0)
            peak = new_peak
        place = (row * tl.num_programs(1) + head) * tl.num_programs(2) + split
        tl.store(sums_ptr + place * H + h_H, sum_H, mask=in_head_H)
        tl.store(peaks_ptr + place, peak)
        tl.store(totals_ptr + place, total)


@triton.jit
def merge_splits(
    sums_ptr,
    peaks_ptr,
    totals_ptr,
    contexts_ptr,
    out_ptr,
    num_splits,
    H: tl.constexpr,
    BLOCK_H: tl.constexpr,
    SPLIT: tl.constexpr,
):
    """Add up the splits that a row's context reaches, in order, and normalise."""
    row, head = tl.program_id(0), tl.program_id(1)
    context = tl.load(contexts_ptr + row)
    h_H = tl.arange(0, BLOCK_H)
    in_head_H = h_H < H
    first = (row * tl.num_programs(1) + head) * num_splits
    peak = float("-inf")
    total = 0.0
    sum_H = tl.zeros([BLOCK_H], dtype=tl.float32)
    for split in range(0, tl.cdiv(context, SPLIT)):
        place = first + split
        split_peak = tl.load(peaks_ptr + place)
        new_peak = tl.maximum(peak, split_peak)
        kept = tl.exp2(peak - new_peak)
        added = tl.exp2(split_peak - new_peak)
        split_H = tl.load(sums_ptr + place * H + h_H, mask=in_head_H, other=0.0)
        sum_H = sum_H * kept + split_H * added
        total = total * kept + tl.load(totals_ptr + place) * added
        peak = new_peak
    out_H = (sum_H / total).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + (row * tl.num_programs(1) + head) * H + h_H, out_H, mask=in_head_H)


@triton.jit
def add_rms_norm(
    x_ptr,
    delta_ptr,
    weight_ptr,
    out_ptr,
    eps,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    HAS_DELTA: tl.constexpr,
):
    """`x += delta`, then the RMS norm of `x`, for one row."""
    row = tl.program_id(0)
    d_D = tl.arange(0, BLOCK_D)
    in_row_D = d_D < D
    x_D = tl.load(x_ptr + row * D + d_D, mask=in_row_D, other=0.0).to(tl.float32)
    if HAS_DELTA:
        delta_D = tl.load(delta_ptr + row * D + d_D, mask=in_row_D, other=0.0).to(tl.float32)
        # Rounded before the norm reads it, as the sum in memory is.
        rounded_D = (x_D + delta_D).to(x_ptr.dtype.element_ty)
        tl.store(x_ptr + row * D + d_D, rounded_D, mask=in_row_D)
        x_D = rounded_D.to(tl.float32)
    scale = 1.0 / tl.sqrt_rn(tl.sum(x_D * x_D, axis=0) / D + eps)
    weight_D = tl.load(weight_ptr + d_D, mask=in_row_D, other=0.0).to(tl.float32)
    out_D = (x_D * scale * weight_D).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + row * D + d_D, out_D, mask=in_row_D)


@triton.jit
def rotate_and_store(
    heads_ptr,
    rotary_ptr,
    positions_ptr,
    cache_positions_ptr,
    q_ptr,
    kv_ptr,
    head_stride,
    limit,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    H: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    """One head of one row: rotate a query, rotate a key and write it, or write a value.

    Queries go to memory of their own: threads read what others would already have overwritten.
    """
    row, head = tl.program_id(0), tl.program_id(1)
    h_H = tl.arange(0, BLOCK_H)
    in_head_H = h_H < H
    from_ptr = heads_ptr + (row * tl.num_programs(1) + head) * H
    x_H = tl.load(from_ptr + h_H, mask=in_head_H, other=0.0)
    if head < NUM_HEADS + NUM_KV_HEADS:
        angles_ptr = rotary_ptr + tl.load(positions_ptr + row) * 2 * H
        cos_H = tl.load(angles_ptr + h_H, mask=in_head_H, other=0.0)
        sin_H = tl.load(angles_ptr + H + h_H, mask=in_head_H, other=0.0)
        swapped_H = tl.load(from_ptr + (h_H + H // 2) % H, mask=in_head_H, other=0.0)
        rotated_H = x_H.to(tl.float32) * cos_H + swapped_H.to(tl.float32) * sin_H
        x_H = rotated_H.to(heads_ptr.dtype.element_ty)
    if head < NUM_HEADS:
        tl.store(q_ptr + (row * NUM_HEADS + head) * H + h_H, x_H, mask=in_head_H)
    else:
        # Values follow the keys of all heads in the pool as they do in the row: one stride.
        place = tl.load(cache_positions_ptr + row) * H
        to_ptr = kv_ptr + (head - NUM_HEADS).to(tl.int64) * head_stride + place
        wide_H = x_H.to(tl.float32)
        # Comparisons, not a minimum: what is not a number must stay so, to be found.
        wide_H = tl.where(wide_H > limit, limit, tl.where(wide_H < -limit, -limit, wide_H))
        tl.store(to_ptr + h_H, wide_H.to(kv_ptr.dtype.element_ty), mask=in_head_H)


@triton.jit
def silu_multiply(gate_up_ptr, out_ptr, M: tl.constexpr, BLOCK_M: tl.constexpr):
    """`silu(gate) * up` for a block of one row."""
    row = tl.program_id(0)
    m_M = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    in_row_M = m_M < M
    gate_M = tl.load(gate_up_ptr + row * 2 * M + m_M, mask=in_row_M, other=0.0)
    up_M = tl.load(gate_up_ptr + row * 2 * M + M + m_M, mask=in_row_M, other=0.0)
    gate_M = gate_M.to(tl.float32)
    # Rounded in between, as the product of two tensors in memory is.
    silu_M = (gate_M / (1.0 + tl.exp(-gate_M))).to(out_ptr.dtype.element_ty)
    out_M = (silu_M.to(tl.float32) * up_M.to(tl.float32)).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + row * M + m_M, out_M, mask=in_row_M)


@triton.jit
def gelu_and_guide(
    inner_ptr, guidance_ptr, out_ptr, num_pictures, M: tl.constexpr, BLOCK_M: tl.constexpr
):
    """`uncond + guidance * (cond - uncond)` of the activated inner vectors of a picture."""
    picture = tl.program_id(0)
    m_M = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    in_row_M = m_M < M
    cond_M = _gelu(tl.load(inner_ptr + picture * M + m_M, mask=in_row_M, other=0.0))
    other_ptr = inner_ptr + (num_pictures + picture) * M
    uncond_M = _gelu(tl.load(other_ptr + m_M, mask=in_row_M, other=0.0))
    mixed_M = uncond_M + tl.load(guidance_ptr + picture) * (cond_M - uncond_M)
    tl.store(out_ptr + picture * M + m_M, mixed_M.to(out_ptr.dtype.element_ty), mask=in_row_M)


@triton.jit
def _gelu(x):
    """Exact form, rounded to the dtype of `x` as in memory, returned in fp32."""
    wide = x.to(tl.float32)
    return (0.5 * wide * (1.0 + tl.erf(wide * 0.7071067811865476))).to(x.dtype).to(tl.float32)


@triton.jit
def draw_tile(
    logits_ptr,
    seeds_ptr,
    places_ptr,
    temperatures_ptr,
    scores_ptr,
    codes_ptr,
    finite_ptr,
    num_codes,
    greedy_below,
    BLOCK_V: tl.constexpr,
):
    """The best code of a tile of one picture's logits, its score, and whether all were finite."""
    picture, tile = tl.program_id(0), tl.program_id(1)
    v_V = tile * BLOCK_V + tl.arange(0, BLOCK_V)
    in_row_V = v_V < num_codes
    logits_V = tl.load(logits_ptr + picture * num_codes + v_V, mask=in_row_V, other=0.0)
    logits_V = logits_V.to(tl.float32)
    is_finite_V = tl.abs(logits_V) < float("inf")
    temperature = tl.load(temperatures_ptr + picture)
    key = _stream_key(tl.load(seeds_ptr + picture), tl.load(places_ptr + picture))
    is_drawn = temperature >= greedy_below
    noise_V = tl.where(is_drawn, _gumbel(key, v_V), 0.0)
    score_V = tl.math.div_rn(logits_V, tl.where(is_drawn, temperature, 1.0)) + noise_V
    score_V = tl.where(in_row_V & is_finite_V, score_V, float("-inf"))
    score = tl.max(score_V, axis=0)
    # Ties go to the smallest code.
    code = tl.min(tl.where((score_V == score) & in_row_V, v_V, num_codes - 1), axis=0)
    place = picture * tl.num_programs(1) + tile
    tl.store(scores_ptr + place, score)
    tl.store(codes_ptr + place, code)
    num_bad = tl.sum(tl.where(is_finite_V, 0, 1), axis=0)
    tl.store(finite_ptr + place, num_bad == 0)


@triton.jit
def merge_tiles(
    scores_ptr, codes_ptr, finite_ptr, out_ptr, out_finite_ptr, num_tiles, BLOCK: tl.constexpr
):
    """The best of all tiles of one picture; the first of equals."""
    picture = tl.program_id(0)
    tile_B = tl.arange(0, BLOCK)
    in_row_B = tile_B < num_tiles
    place_B = picture * num_tiles + tile_B
    score_B = tl.load(scores_ptr + place_B, mask=in_row_B, other=float("-inf"))
    best = tl.max(score_B, axis=0)
    winner = tl.min(tl.where((score_B == best) & in_row_B, tile_B, num_tiles - 1), axis=0)
    tl.store(out_ptr + picture, tl.load(codes_ptr + picture * num_tiles + winner).to(tl.int64))
    finite_B = tl.load(finite_ptr + place_B, mask=in_row_B, other=1)
    tl.store(out_finite_ptr + picture, tl.min(finite_B.to(tl.int32), axis=0) != 0)


@triton.jit
def write_noise(seeds_ptr, places_ptr, out_ptr, num_tokens, BLOCK_V: tl.constexpr):
    """The noise alone, a tile of one row."""
    row = tl.program_id(0)
    v_V = tl.program_id(1) * BLOCK_V + tl.arange(0, BLOCK_V)
    key = _stream_key(tl.load(seeds_ptr + row), tl.load(places_ptr + row))
    tl.store(out_ptr + row * num_tokens + v_V, _gumbel(key, v_V), mask=v_V < num_tokens)


@triton.jit
def _stream_key(seed, place):
    """As `janus_core.ops.sampling.gumbel_noise` mixes seed and position."""
    gamma = tl.full([], 0x9E3779B97F4A7C15, tl.uint64)
    return _mix(_mix(seed.to(tl.uint64)) + (place.to(tl.uint64) + 1) * gamma)


@triton.jit
def _mix(state):
    """The output function of SplitMix64 (Steele, Lea and Flood, 2014)."""
    state = (state ^ (state >> 30)) * tl.full([], 0xBF58476D1CE4E5B9, tl.uint64)
    state = (state ^ (state >> 27)) * tl.full([], 0x94D049BB133111EB, tl.uint64)
    return state ^ (state >> 31)


@triton.jit
def _gumbel(key, token_V):
    """Gumbel noise from the upper 32 bits of each number of the stream.

    `log1p(a)` is `log(w) * a / (w - 1)` with `w = fl(1 + a)`, and `a` where `w` is 1 (W. Kahan; D.
    Goldberg, "What every computer scientist should know about floating-point arithmetic", theorem
    4): the quotient undoes the rounding of `w`. Within a few units in the last place of torch's.
    """
    counts_V = (token_V.to(tl.uint64) + 1) * tl.full([], 0x9E3779B97F4A7C15, tl.uint64)
    bits_V = (_mix(key + counts_V) >> 32).to(tl.uint32).to(tl.float32)
    minus_uniform_V = tl.maximum((bits_V + 0.5) * -(2.0**-32), 2.0**-24 - 1.0)
    whole_V = 1.0 + minus_uniform_V
    step_V = tl.where(whole_V == 1.0, 1.0, whole_V - 1.0)
    log1p_V = tl.where(
        whole_V == 1.0,
        minus_uniform_V,
        tl.log(whole_V) * tl.math.div_rn(minus_uniform_V, step_V),
    )
    return -tl.log(-log1p_V)
