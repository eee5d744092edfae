/* Attention with a running softmax (Milakov & Gimelshein 2018; Dao 2022): never the whole score matrix.
 *
 * A vector holds a number for each of LANES queries, so the softmax needs nothing from other lanes, and keys
 * and values are broadcast, so that any head size runs without padding. Keys and values are packed in chunks
 * that stay in the second-level cache. Over a chunk go blocks of BLOCK queries, and for each of them blocks
 * of KEYS keys: scores (first-level cache), the running maximum and sum of every query, weights, and the
 * weighted sum of values, rescaled as the maximum grows. Both products are the same register tile: up to ROWS
 * keys (or channels) by COLS vectors of queries. With AVX512-BF16 the operands are pairs of bf16 (adjacent
 * channels in the first product, adjacent keys in the second) that accumulate in float32; elsewhere they are
 * float32. */
#include "kernels/cpu/vec_attention.h"

#include "base/alloc.h"
#include "kernels/cpu/vec_isa.h"

#if defined(__AVX512F__)
enum { COLS = 4 };
#else
enum { COLS = 2 };
#endif

/* KEYS: whole tiles, and pairs; its scores fit into the first-level cache. */
enum { ROWS = 6, BLOCK = LANES * COLS, KEYS = 144, CHUNK_BYTES = 512 << 10 };

/* ---------------------------------------------------------------------------------------------- the layout
 */

/* A word is four bytes: a float32, or a pair of bf16. */
typedef struct layout {
    bool pairs;
    int d, steps, dv, chunk; /* steps: words of a key; dv: channels of a value, even; chunk: keys at a time */
    size_t size;             /* of an element */
    size_t keys, values, query, scores, sums, state, bytes; /* offsets of the parts, and the end */
} layout;

static layout make_layout(int d, int queries, int keys, ts_dtype dtype) {
    layout l = {.pairs = TS_ISA_BF16 && dtype == TS_BF16, .d = d, .dv = round_up(d, 2)};
    l.size = l.pairs ? 2 : 4;
    l.steps = l.pairs ? l.dv / 2 : d;
    size_t key = (size_t)l.steps * 4, value = (size_t)l.dv * l.size;
    int fit = (int)(CHUNK_BYTES / (key + value)) / KEYS * KEYS;
    l.chunk = keys <= fit ? round_up(keys, ROWS) : fit ? fit : KEYS;
    size_t at = 0, rows = (size_t)round_up(queries, BLOCK);
    l.keys = place(&at, (size_t)l.chunk * key);
    l.values = place(&at, (size_t)l.chunk * value);
    l.query = place(&at, (size_t)l.steps * BLOCK * 4);
    l.scores = place(&at, (size_t)KEYS * BLOCK * 4);
    l.sums = place(&at, rows * (size_t)l.dv * 4);
    l.state = place(&at, rows * 2 * 4);
    l.bytes = at;
    return l;
}

size_t TS_ISA_NAME(ts_attend_scratch)(int d, int queries, int keys, ts_dtype dtype) {
#ifdef __AMX_BF16__
    if (dtype == TS_BF16) return ts_attend_tiles_scratch(d, queries, keys);
#endif
    return make_layout(d, queries, keys, dtype).bytes;
}

/* ---------------------------------------------------------------------------------------------- packing */

static void pack_row(const layout *l, const void *from, size_t at, ts_dtype dtype, void *to) {
    if (l->pairs || dtype == TS_F32) {
        memcpy(to, (const char *)from + at * l->size, (size_t)l->d * l->size);
        if (l->pairs && (l->d & 1)) ((uint16_t *)to)[l->d] = 0;
        return;
    }
    for (size_t i = 0; i < (size_t)l->d; i += LANES) {
        size_t n = (size_t)l->d - i < LANES ? (size_t)l->d - i : LANES;
        put(to, i, n, TS_F32, get(from, at + i, n, dtype));
    }
}

/* Values of pairs lie [key / 2][channel][2], others as rows. */
static void pack_value(const layout *l, const void *from, size_t at, ts_dtype dtype, char *values, int key) {
    size_t dv = (size_t)l->dv;
    if (!l->pairs) {
        pack_row(l, from, at, dtype, values + (size_t)key * dv * 4);
        return;
    }
    const uint16_t *v = (const uint16_t *)from + at;
    uint16_t *to = (uint16_t *)(void *)values + (size_t)(key / 2) * 2 * dv + (key & 1);
    for (int i = 0; i < l->d; i++) to[2 * i] = v[i];
}

/* Keys [first, first + n) of all segments, n <= chunk; zeros behind them up to a whole tile. */
static void pack(const layout *l, const ts_attend *a, int64_t first, int n, char *keys, char *values) {
    size_t key_bytes = (size_t)l->steps * 4, value_bytes = (size_t)l->dv * l->size;
    int padded = round_up(n, ROWS), whole = n & ~1;
    memset(keys + (size_t)n * key_bytes, 0, (size_t)(padded - n) * key_bytes);
    memset(values + (size_t)whole * value_bytes, 0, (size_t)(padded - whole) * value_bytes);
    if (l->dv != l->d) memset(values, 0, (size_t)whole * value_bytes);
    int64_t start = 0;
    for (int s = 0; s < a->segment_count; s++) {
        const ts_segment *g = &a->segments[s];
        int64_t from = first > start ? first - start : 0, to = first + n - start;
        if (to > g->tokens) to = g->tokens;
        for (int64_t t = from; t < to; t++) {
            size_t at = a->image * g->pitch + (size_t)t * g->ld + a->first;
            int key = (int)(start + t - first);
            pack_row(l, g->k, at, a->dtype, keys + (size_t)key * key_bytes);
            pack_value(l, g->v, at, a->dtype, values, key);
        }
        start += g->tokens;
    }
}

/* --------------------------------------------------------------------------------------- the register tile
 */

/* acc[r][c] += left[r] right[c] over n steps: left is a word, row r's k-th at left[r * row + k * step], and
 * right COLS vectors of words, the k-th at right + k * BLOCK. rows <= ROWS is a constant. */
TS_INLINE void tile(vf acc[ROWS][COLS], const float *left, size_t row, size_t step, const float *right, int n,
                    int rows, bool pairs) {
    for (int k = 0; k < n; k++) {
        vf b[COLS];
        TS_UNROLL(4)
        for (int c = 0; c < COLS; c++) b[c] = load(right + (size_t)k * BLOCK + (size_t)(c * LANES));
        TS_UNROLL(6)
        for (int r = 0; r < rows; r++) {
            const float *word = left + (size_t)r * row + (size_t)k * step;
#if TS_ISA_BF16
            if (pairs) {
                int bits;
                memcpy(&bits, word, sizeof bits);
                __m512bh a = (__m512bh)_mm512_set1_epi32(bits);
                TS_UNROLL(4)
                for (int c = 0; c < COLS; c++)
                    acc[r][c] = (vf)_mm512_dpbf16_ps((__m512)acc[r][c], a, (__m512bh)b[c]);
                continue;
            }
#else
            (void)pairs;
#endif
            vf a = splat(*word);
            TS_UNROLL(4)
            for (int c = 0; c < COLS; c++) acc[r][c] += a * b[c];
        }
    }
}

/* Scores of ROWS keys, and the maxima if all of them count. */
TS_INLINE void score_tile(const float *key, const float *query, int steps, float scale, float *s,
                          vf top[COLS], bool all, bool pairs) {
    vf acc[ROWS][COLS] = {{{0}}};
    tile(acc, key, (size_t)steps, 1, query, steps, ROWS, pairs);
    TS_UNROLL(6)
    for (int r = 0; r < ROWS; r++) TS_UNROLL(4)
    for (int c = 0; c < COLS; c++) {
        vf v = acc[r][c] * scale;
        store(s + r * BLOCK + c * LANES, v);
        if (all) top[c] = larger(v, top[c]);
    }
}

/* Masks what a query must not see: keys [n, ROWS) of the tile and, causally, those after it (by `ahead`: the
 * tile's first key minus the block's first query). */
TS_INLINE void mask_tile(float *s, int n, bool causal, int64_t ahead, vf top[COLS]) {
    const vi lane = LANE_NUMBERS;
    for (int r = 0; r < ROWS; r++)
        for (int c = 0; c < COLS; c++) {
            float *at = s + r * BLOCK + c * LANES;
            vf v = load(at), none = splat(-INFINITY);
            if (r >= n)
                v = none;
            else if (causal)
                v = where_less(__builtin_convertvector(lane + c * LANES, vf), splat((float)(ahead + r)), none,
                               v);
            store(at, v);
            top[c] = larger(v, top[c]);
        }
}

TS_INLINE void value_tile(const float *v, size_t dv, const float *weights, int steps, float *sums,
                          const vf factor[COLS], int rows, bool pairs) {
    vf acc[ROWS][COLS];
    TS_UNROLL(6)
    for (int r = 0; r < rows; r++) TS_UNROLL(4)
    for (int c = 0; c < COLS; c++) acc[r][c] = load(sums + r * BLOCK + c * LANES) * factor[c];
    tile(acc, v, 1, dv, weights, steps, rows, pairs);
    TS_UNROLL(6)
    for (int r = 0; r < rows; r++) TS_UNROLL(4)
    for (int c = 0; c < COLS; c++) store(sums + r * BLOCK + c * LANES, acc[r][c]);
}

/* ------------------------------------------------------------------------------------------- blocks of keys
 */

/* Two rows of weights: as they are, or as pairs of bf16 in one row. */
TS_INLINE void store_weights(float *scores, int j, int c, vf even, vf odd, bool pairs) {
#if TS_ISA_BF16
    if (pairs) {
        /* Over the scores: row j / 2 has been read when row j is. */
        store(scores + j / 2 * BLOCK + c * LANES, pair_up(even, odd));
        return;
    }
#else
    (void)pairs;
#endif
    store(scores + j * BLOCK + c * LANES, even);
    store(scores + (j + 1) * BLOCK + c * LANES, odd);
}

/* One vector of queries: n rows of scores become weights; top: their maxima. Returns what the running sums
 * are to be multiplied by. */
TS_INLINE vf soften(float *scores, int n, int c, vf top, float *state, bool pairs) {
    float *running = state + c * LANES, *total = state + BLOCK + c * LANES;
    vf before = load(running), now = larger(top, before), sum = {0};
    vf factor = exp2_vf(before - now, false);
    for (int j = 0; j < n; j += 2) {
        vf even = exp2_vf(load(scores + j * BLOCK + c * LANES) - now, pairs);
        vf odd = exp2_vf(load(scores + (j + 1) * BLOCK + c * LANES) - now, pairs);
        sum += even + odd;
        store_weights(scores, j, c, even, odd, pairs);
    }
    store(running, now);
    store(total, load(total) * factor + sum);
    return factor;
}

/* One block of queries against n packed keys, the first of which is number `first`. */
TS_INLINE void attend_block(const layout *l, const ts_attend *a, const char *keys, const char *values, int n,
                            int64_t ahead, float *sums, float *state, bool pairs) {
    char *base = a->scratch;
    const float *query = (const float *)(void *)(base + l->query), *k = (const float *)(const void *)keys;
    const float *v = (const float *)(const void *)values;
    float *scores = (float *)(void *)(base + l->scores), scale = a->scale * LOG2_E;
    int padded = round_up(n, ROWS), steps = pairs ? padded / 2 : padded;
    vf top[COLS], factor[COLS];
    for (int c = 0; c < COLS; c++) top[c] = splat(-INFINITY);
    for (int j = 0; j < padded; j += ROWS) {
        bool all = !a->causal && n - j >= ROWS;
        if (all) {
            score_tile(k + (size_t)j * (size_t)l->steps, query, l->steps, scale, scores + j * BLOCK, top,
                       true, pairs);
        } else {
            score_tile(k + (size_t)j * (size_t)l->steps, query, l->steps, scale, scores + j * BLOCK, top,
                       false, pairs);
            mask_tile(scores + j * BLOCK, n - j, a->causal, ahead + j, top);
        }
    }
    for (int c = 0; c < COLS; c++) factor[c] = soften(scores, padded, c, top[c], state, pairs);
    int r = 0;
    size_t dv = (size_t)l->dv;
    for (; r + ROWS <= l->dv; r += ROWS)
        value_tile(v + r, dv, scores, steps, sums + (size_t)r * BLOCK, factor, ROWS, pairs);
    if (l->dv - r == 4) value_tile(v + r, dv, scores, steps, sums + (size_t)r * BLOCK, factor, 4, pairs);
    if (l->dv - r == 2) value_tile(v + r, dv, scores, steps, sums + (size_t)r * BLOCK, factor, 2, pairs);
}

TS_INLINE void attend_chunk(const layout *l, const ts_attend *a, int64_t first, int n, bool pairs) {
    char *base = a->scratch;
    float *state = (float *)(void *)(base + l->state), *sums = (float *)(void *)(base + l->sums);
    for (int q = a->begin; q < a->end; q += BLOCK, state += 2 * BLOCK, sums += (size_t)l->dv * BLOCK) {
        if (a->causal && first > q + BLOCK - 1) continue;
        pack_queries(a, q, a->end - q < BLOCK ? a->end - q : BLOCK, l->steps, BLOCK, pairs,
                     (float *)(void *)(base + l->query));
        for (int j = 0; j < n && !(a->causal && first + j > q + BLOCK - 1); j += KEYS)
            attend_block(l, a, base + l->keys + (size_t)j * (size_t)l->steps * 4,
                         base + l->values + (size_t)j * (size_t)l->dv * l->size, n - j < KEYS ? n - j : KEYS,
                         first + j - q, sums, state, pairs);
    }
}

void TS_ISA_NAME(ts_attend)(const ts_attend *a) {
#ifdef __AMX_BF16__
    if (a->dtype == TS_BF16) {
        ts_attend_tiles(a);
        return;
    }
#endif
    int64_t all = all_keys(a);
    layout l = make_layout(a->d, a->end - a->begin, (int)all, a->dtype);
    char *base = a->scratch;
    float *sums = (float *)(void *)(base + l.sums), *state = (float *)(void *)(base + l.state);
    int rows = round_up(a->end - a->begin, BLOCK);
    memset(sums, 0, (size_t)rows * (size_t)l.dv * sizeof *sums);
    for (int q = 0; q < rows; q += BLOCK)
        for (int i = 0; i < BLOCK; i++) {
            state[2 * q + i] = -INFINITY;
            state[2 * q + BLOCK + i] = all ? 0 : 1; /* no key, nothing to attend to: zero, not 0 / 0 */
        }
    for (int64_t first = 0; first < all; first += l.chunk) {
        int n = all - first < l.chunk ? (int)(all - first) : l.chunk;
        pack(&l, a, first, n, base + l.keys, base + l.values);
        if (TS_ISA_BF16 && l.pairs)
            attend_chunk(&l, a, first, n, true);
        else
            attend_chunk(&l, a, first, n, false);
    }
    for (int q = 0; a->begin + q < a->end; q += BLOCK)
        write_queries(a, a->begin + q, a->end - a->begin - q < BLOCK ? a->end - a->begin - q : BLOCK, BLOCK,
                      sums + (size_t)q * (size_t)l.dv, state + 2 * q + BLOCK);
}

const int TS_ISA_NAME(ts_attend_block) = BLOCK;
