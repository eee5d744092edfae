/* Attention with a running softmax (Milakov & Gimelshein 2018; Dao 2022): never the whole score matrix.
 *
 * Keys and values are packed in chunks that stay in the second-level cache: keys so that a vector holds one
 * channel of many keys, values as padded rows. Over a chunk go blocks of BLOCK queries, and for each of them
 * blocks of KEYS keys: scores (first-level cache), the running maximum and sum of every query, probabilities,
 * and the sum of values, rescaled when the maximum grows. Both products are the same register tile of ROWS
 * queries by COLS vectors. With AVX512-BF16 the operands are pairs of bf16 (adjacent channels of the first
 * product, adjacent keys of the second) and accumulate in float32; everywhere else they are float32. */
#include "kernels/cpu/vec_math.h"

#include "kernels/cpu/vec_isa.h"

#if defined(__AVX512F__)
enum { ROWS = 6, COLS = 4 };
#elif defined(__AVX__)
enum { ROWS = 6, COLS = 2 };
#else
enum { ROWS = 4, COLS = 2 };
#endif

enum { BLOCK = TS_ATTEND_BLOCK, KEYS = 256, GROUP = LANES * COLS, CHUNK_BYTES = 512 << 10 };

/* Scores carry log2(e), so that their softmax is in powers of two. */
#define LOG2_E 1.44269504f
#define LN_2   0.693147181f

/* --------------------------------------------------------------------------------------------- the layout */

/* Sizes in elements; `pair` channels or keys lie together, each of `size` bytes. */
typedef struct layout {
    bool pairs;
    int d, dk, dv, chunk; /* dk: d in whole pairs; dv: d in whole vectors; chunk: keys packed at a time */
    size_t size;
    size_t keys, values, query, scores, weights, sums, state, bytes; /* offsets of the parts, and the end */
} layout;

static int round_up(int n, int to) {
    return (n + to - 1) / to * to;
}

static size_t place(size_t *at, size_t bytes) {
    size_t here = *at;
    *at += (bytes + TS_ATTEND_ALIGN - 1) / TS_ATTEND_ALIGN * TS_ATTEND_ALIGN;
    return here;
}

static layout make_layout(int d, int queries, int keys, ts_dtype dtype) {
    layout l = {.pairs = TS_ISA_BF16 && dtype == TS_BF16, .d = d};
    l.size = l.pairs ? 2 : 4;
    l.dk = l.pairs ? round_up(d, 2) : d;
    l.dv = round_up(d, LANES);
    int fit = (int)((size_t)CHUNK_BYTES / ((size_t)(l.dk + l.dv) * l.size)) / KEYS * KEYS;
    l.chunk = keys <= fit ? round_up(keys, GROUP) : fit ? fit : KEYS;
    size_t at = 0, rows = (size_t)round_up(queries, BLOCK), chunk = (size_t)round_up(l.chunk, GROUP);
    l.keys = place(&at, chunk * (size_t)l.dk * l.size);
    l.values = place(&at, chunk * (size_t)l.dv * l.size);
    l.query = place(&at, (size_t)BLOCK * (size_t)l.dk * l.size);
    l.scores = place(&at, (size_t)BLOCK * KEYS * 4);
    l.weights = l.pairs ? place(&at, (size_t)BLOCK * KEYS * 2) : l.scores;
    l.sums = place(&at, rows * (size_t)l.dv * 4);
    l.state = place(&at, rows * 2 * 4);
    l.bytes = at;
    return l;
}

size_t TS_ISA_NAME(ts_attend_scratch)(int d, int queries, int keys, ts_dtype dtype) {
    return make_layout(d, queries, keys, dtype).bytes;
}

/* ---------------------------------------------------------------------------------------------- packing */

static void pack_key(const layout *l, const void *from, size_t at, ts_dtype dtype, char *group, int lane) {
    if (l->pairs) {
        const uint16_t *k = (const uint16_t *)from + at;
        uint16_t *to = (uint16_t *)(void *)group + 2 * lane;
        for (int i = 0; i < l->d; i++) to[(i / 2) * 2 * GROUP + (i & 1)] = k[i];
        if (l->d & 1) to[(l->d / 2) * 2 * GROUP + 1] = 0;
    } else {
        float *to = (float *)(void *)group + lane;
        for (int i = 0; i < l->d; i++) to[i * GROUP] = get_one(from, at + (size_t)i, dtype);
    }
}

static void pack_value(const layout *l, const void *from, size_t at, ts_dtype dtype, char *values, int key) {
    if (l->pairs) {
        const uint16_t *v = (const uint16_t *)from + at;
        uint16_t *to = (uint16_t *)(void *)values + (size_t)(key / 2) * 2 * (size_t)l->dv + (key & 1);
        for (int i = 0; i < l->d; i++) to[2 * i] = v[i];
    } else {
        float *to = (float *)(void *)values + (size_t)key * (size_t)l->dv;
        for (int i = 0; i < l->d; i++) to[i] = get_one(from, at + (size_t)i, dtype);
    }
}

/* Keys [first, first + n) of all segments, n <= chunk; what is beyond them in the last group is zero. */
static void pack(const layout *l, const ts_attend *a, int64_t first, int n, char *keys, char *values) {
    size_t group_bytes = (size_t)GROUP * (size_t)l->dk * l->size, row = (size_t)l->dv * l->size;
    int padded = round_up(n, GROUP);
    if (padded > n) memset(keys + (size_t)(n / GROUP) * group_bytes, 0, group_bytes);
    /* The padding channels of values, and the values of keys that do not exist. */
    if (l->dv != l->d || padded > n) memset(values, 0, (size_t)padded * row);
    int64_t start = 0;
    for (int s = 0; s < a->segment_count; s++) {
        const ts_segment *g = &a->segments[s];
        int64_t from = first > start ? first - start : 0, to = first + n - start;
        if (to > g->tokens) to = g->tokens;
        for (int64_t t = from; t < to; t++) {
            size_t at = a->image * g->pitch + (size_t)t * g->ld + a->first;
            int key = (int)(start + t - first);
            pack_key(l, g->k, at, a->dtype, keys + (size_t)(key / GROUP) * group_bytes, key % GROUP);
            pack_value(l, g->v, at, a->dtype, values, key);
        }
        start += g->tokens;
    }
}

static void pack_queries(const layout *l, const ts_attend *a, int first, int n, char *query) {
    memset(query, 0, (size_t)BLOCK * (size_t)l->dk * l->size);
    for (int r = 0; r < n; r++) {
        size_t at = (size_t)(first + r) * a->ldq;
        if (l->pairs)
            memcpy(query + (size_t)(r * l->dk) * 2, (const uint16_t *)a->q + at, (size_t)l->d * 2);
        else
            for (int i = 0; i < l->d; i++)
                ((float *)(void *)query)[r * l->dk + i] = get_one(a->q, at + (size_t)i, a->dtype);
    }
}

/* --------------------------------------------------------------------------------------- the register tile
 */

/* acc[r][c] += a[r][:] b[:][c], over n steps: a step is a float32 or a pair of bf16 of a (rows of lda steps),
 * and `vectors` vectors of b (rows of ldb vectors). */
TS_INLINE void tile(vf acc[ROWS][COLS], const float *a, size_t lda, const float *b, size_t ldb, int n,
                    int vectors, bool pairs) {
    for (int k = 0; k < n; k++) {
        vf right[COLS];
        TS_UNROLL(4)
        for (int c = 0; c < vectors; c++) right[c] = load(b + ((size_t)k * ldb + (size_t)c) * LANES);
        TS_UNROLL(6)
        for (int r = 0; r < ROWS; r++) {
#if defined(__AVX512BF16__) && defined(__AVX512BW__)
            if (pairs) {
                int bits;
                memcpy(&bits, a + (size_t)r * lda + k, sizeof bits);
                __m512bh left = (__m512bh)_mm512_set1_epi32(bits);
                TS_UNROLL(4)
                for (int c = 0; c < vectors; c++)
                    acc[r][c] = (vf)_mm512_dpbf16_ps((__m512)acc[r][c], left, (__m512bh)right[c]);
                continue;
            }
#else
            (void)pairs;
#endif
            vf left = splat(a[(size_t)r * lda + (size_t)k]);
            TS_UNROLL(4)
            for (int c = 0; c < vectors; c++) acc[r][c] += left * right[c];
        }
    }
}

TS_INLINE void score_tile(const float *q, const float *k, int steps, float scale, float *s, bool pairs) {
    vf acc[ROWS][COLS] = {{{0}}};
    tile(acc, q, (size_t)steps, k, COLS, steps, COLS, pairs);
    TS_UNROLL(6)
    for (int r = 0; r < ROWS; r++) TS_UNROLL(4)
    for (int c = 0; c < COLS; c++) store(s + r * KEYS + c * LANES, acc[r][c] * scale);
}

TS_INLINE void value_tile(const float *p, size_t ldp, const float *v, size_t ldv, int steps, float *sum,
                          size_t dv, int vectors, bool pairs) {
    vf acc[ROWS][COLS];
    TS_UNROLL(6)
    for (int r = 0; r < ROWS; r++) TS_UNROLL(4)
    for (int c = 0; c < vectors; c++) acc[r][c] = load(sum + (size_t)r * dv + (size_t)(c * LANES));
    tile(acc, p, ldp, v, ldv, steps, vectors, pairs);
    TS_UNROLL(6)
    for (int r = 0; r < ROWS; r++) TS_UNROLL(4)
    for (int c = 0; c < vectors; c++) store(sum + (size_t)r * dv + (size_t)(c * LANES), acc[r][c]);
}

TS_INLINE void score_block(const layout *l, const char *query, const char *keys, int n, float scale,
                           float *scores, bool pairs) {
    int steps = pairs ? l->dk / 2 : l->dk; /* of four bytes each */
    for (int j = 0; j < n; j += GROUP)
        for (int r = 0; r < BLOCK; r += ROWS)
            score_tile((const float *)(const void *)query + r * steps,
                       (const float *)(const void *)keys + (size_t)j * (size_t)steps, steps, scale,
                       scores + r * KEYS + j, pairs);
}

/* Adds the values of n keys; n is whole groups. */
TS_INLINE void value_block(const layout *l, const char *weights, const char *values, int n, float *sums,
                           bool pairs) {
    int steps = pairs ? n / 2 : n, vectors = l->dv / LANES;
    size_t ldp = pairs ? KEYS / 2 : KEYS, dv = (size_t)l->dv;
    const float *v = (const float *)(const void *)values, *p = (const float *)(const void *)weights;
    for (int c = 0; c < vectors; c += COLS)
        for (int r = 0; r < BLOCK; r += ROWS) {
            const float *pr = p + (size_t)r * ldp, *vc = v + c * LANES;
            float *to = sums + (size_t)r * dv + (size_t)(c * LANES);
            switch (vectors - c) {
            case 1: value_tile(pr, ldp, vc, (size_t)vectors, steps, to, dv, 1, pairs); break;
#if defined(__AVX512F__)
            case 2: value_tile(pr, ldp, vc, (size_t)vectors, steps, to, dv, 2, pairs); break;
            case 3: value_tile(pr, ldp, vc, (size_t)vectors, steps, to, dv, 3, pairs); break;
#endif
            default: value_tile(pr, ldp, vc, (size_t)vectors, steps, to, dv, COLS, pairs); break;
            }
        }
}

/* ------------------------------------------------------------------------------------------- the softmax */

/* One query's n scores become weights (bf16 for pairs); top and total are its running maximum and sum, sum
 * its dv running values. n is whole groups; masked scores are -inf. */
TS_INLINE void soften(float *s, int n, void *weights, float *top, float *total, float *sum, int dv,
                      bool pairs) {
    vf most = load(s), added = {0};
    for (int j = LANES; j < n; j += LANES) most = larger(most, load(s + j));
    float before = *top, now = lane_max(most);
    now = now > before ? now : before;
    for (int j = 0; j < n; j += LANES) {
        vf p = exp2_negative(load(s + j) - now, pairs);
        added += p;
#if defined(__AVX512BF16__) && defined(__AVX512BW__)
        if (pairs) {
            __m256bh half = _mm512_cvtneps_pbh((__m512)p);
            memcpy((uint16_t *)weights + j, &half, sizeof half);
            continue;
        }
#else
        (void)pairs;
#endif
        store((float *)weights + j, p);
    }
    if (now > before) {
        float factor = before > -INFINITY ? expf((before - now) * LN_2) : 0;
        *total *= factor;
        for (int i = 0; i < dv; i += LANES) store(sum + i, load(sum + i) * factor);
        *top = now;
    }
    *total += lane_sum(added);
}

/* Scores of keys [n, padded) and, causally, of keys after the query (key 0 of the block is number `key`). */
static void mask(float *scores, int rows, int n, int padded, bool causal, int64_t query, int64_t key) {
    for (int r = 0; r < rows; r++) {
        int64_t seen = causal ? query + r + 1 - key : n;
        int from = seen < 0 ? 0 : seen < n ? (int)seen : n;
        for (int j = from; j < padded; j++) scores[r * KEYS + j] = -INFINITY;
    }
}

TS_INLINE void attend_chunk(const layout *l, const ts_attend *a, int64_t first, int n, bool pairs) {
    char *base = a->scratch, *query = base + l->query;
    float *scores = (float *)(void *)(base + l->scores);
    size_t dv = (size_t)l->dv;
    for (int q = a->begin; q < a->end; q += BLOCK) {
        int rows = a->end - q < BLOCK ? a->end - q : BLOCK;
        float *sums = (float *)(void *)(base + l->sums) + (size_t)(q - a->begin) * dv;
        float *state = (float *)(void *)(base + l->state) + 2 * (q - a->begin);
        pack_queries(l, a, q, rows, query);
        for (int j = 0; j < n; j += KEYS) {
            int some = n - j < KEYS ? n - j : KEYS, padded = round_up(some, GROUP);
            if (a->causal && first + j > q + rows - 1) break;
            score_block(l, query, base + l->keys + (size_t)j * (size_t)l->dk * l->size, padded,
                        a->scale * LOG2_E, scores, pairs);
            if (padded > some || a->causal) mask(scores, BLOCK, some, padded, a->causal, q, first + j);
            for (int r = 0; r < rows; r++)
                soften(scores + r * KEYS, padded, base + l->weights + (size_t)(r * KEYS) * l->size,
                       &state[2 * r], &state[2 * r + 1], sums + (size_t)r * dv, l->dv, pairs);
            value_block(l, base + l->weights, base + l->values + (size_t)j * dv * l->size, padded, sums,
                        pairs);
        }
    }
}

void TS_ISA_NAME(ts_attend)(const ts_attend *a) {
    int64_t all = 0;
    for (int s = 0; s < a->segment_count; s++) all += a->segments[s].tokens;
    layout l = make_layout(a->d, a->end - a->begin, (int)all, a->dtype);
    char *base = a->scratch;
    float *sums = (float *)(void *)(base + l.sums), *state = (float *)(void *)(base + l.state);
    int rows = round_up(a->end - a->begin, BLOCK);
    memset(sums, 0, (size_t)rows * (size_t)l.dv * sizeof *sums);
    for (int r = 0; r < rows; r++) state[2 * r] = -INFINITY, state[2 * r + 1] = 0;
    /* Rows of a block beyond the last query are multiplied too: give them finite weights. */
    memset(base + l.weights, 0, (size_t)BLOCK * KEYS * l.size);
    for (int64_t first = 0; first < all; first += l.chunk) {
        int n = all - first < l.chunk ? (int)(all - first) : l.chunk;
        pack(&l, a, first, n, base + l.keys, base + l.values);
        if (TS_ISA_BF16 && l.pairs)
            attend_chunk(&l, a, first, n, true);
        else
            attend_chunk(&l, a, first, n, false);
    }
    for (int r = 0; r < a->end - a->begin; r++) {
        void *y = (char *)a->y + (size_t)(a->begin + r) * a->ldy * ts_dtype_size(a->dtype);
        /* Without any key there is nothing to attend to: zero. */
        float factor = all ? 1 / state[2 * r + 1] : 0;
        for (int i = 0; i < l.d; i += LANES) {
            size_t n = l.d - i < LANES ? (size_t)(l.d - i) : LANES;
            put(y, (size_t)i, n, a->dtype, load(sums + (size_t)r * (size_t)l.dv + (size_t)i) * factor);
        }
    }
}
