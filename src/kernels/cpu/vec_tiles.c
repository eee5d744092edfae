/* Attention in bf16 with AMX tiles: the running softmax of vec_attention.c, its two products in tiles.
 *
 * Both products have queries as their columns. Scores: keys (rows, as they lie) by queries (pairs of
 * channels). Sums: values (rows of a channel, 32 keys long) by weights (pairs of keys). So a vector holds a
 * number for each of 16 queries here too, and the weights become an operand where they are made.
 *
 * A product of two tiles takes 16 cycles, the softmax of a tile of scores more than 100: the vector units are
 * what is short. Over a block of QUERIES queries go strips of STRIP keys: the next strip's products are begun before
 * a strip is softened, for the processor to do both at once. The maximum that a query's weights are relative
 * to moves only when a score would weigh more than 2^HEADROOM (the rule of FlashAttention-4): most strips
 * leave the sums alone. Weights of up to GATHER keys are multiplied by their values together, for the sums
 * pass through memory. */
#include "kernels/cpu/vec_attention.h"

#include "kernels/cpu/amx.h"
#include "kernels/cpu/vec_isa.h"

enum {
    STRIP = 32,             /* keys: the rows of two tiles, and the depth of one */
    QUERIES = 2 * LANES,    /* the columns of two tiles */
    GATHER = 8 * STRIP,     /* weights of 16 kB, beside two strips of scores, the queries and the sums */
    CHUNK_BYTES = 1 << 20,  /* of keys and values; processors with AMX have 2 MB of second-level cache */
    HEADROOM = 8,           /* weights stay below 256 */
    ROW_BYTES = QUERIES * 4 /* of scores, queries, weights and sums */
};

/* ---------------------------------------------------------------------------------------------- the layout
 */

typedef struct layout {
    int depth, channels, chunk; /* channels of a key and of a value, padded; keys at a time */
    size_t keys, values, query, scores, weights, sums, state, bytes; /* offsets of the parts, and the end */
} layout;

static layout make_layout(int d, int queries, int keys) {
    layout l = {.depth = round_up(d, 2 * TS_TILE_WORDS), .channels = round_up(d, TS_TILE_ROWS)};
    size_t key = (size_t)(l.depth + l.channels) * 2;
    int fit = (int)(CHUNK_BYTES / key) / STRIP * STRIP;
    l.chunk = keys <= fit ? round_up(keys, STRIP) : fit ? fit : STRIP;
    size_t at = 0, rows = (size_t)round_up(queries, QUERIES);
    l.keys = place(&at, (size_t)l.chunk * (size_t)l.depth * 2);
    l.values = place(&at, (size_t)l.chunk * (size_t)l.channels * 2);
    l.query = place(&at, (size_t)l.depth / 2 * ROW_BYTES);
    l.scores = place(&at, 2 * STRIP * ROW_BYTES);
    l.weights = place(&at, GATHER / 2 * ROW_BYTES);
    l.sums = place(&at, rows * (size_t)l.channels * 4);
    l.state = place(&at, rows * 2 * 4);
    l.bytes = at;
    return l;
}

size_t ts_attend_tiles_scratch(int d, int queries, int keys) {
    return make_layout(d, queries, keys).bytes;
}

/* ---------------------------------------------------------------------------------------------- packing */

/* The next keys of the segments, in order. */
typedef struct cursor {
    const ts_attend *a;
    int segment, token;
} cursor;

/* The offset of the next key, and the segment that it is in. There is one. */
static size_t next_key(cursor *at, const ts_segment **segment) {
    while (at->token == at->a->segments[at->segment].tokens) {
        at->segment++;
        at->token = 0;
    }
    *segment = &at->a->segments[at->segment];
    return at->a->image * (*segment)->pitch + (size_t)at->token++ * (*segment)->ld + at->a->first;
}

/* Sixteen channels from the c-th on, as words; zeros beyond the end. */
TS_INLINE vu channel_words(const uint16_t *v, int d, int c) {
    uint16_t some[LANES] = {0};
    const uint16_t *from = v + c;
    if (d - c < LANES) {
        memcpy(some, from, (size_t)(d - c) * sizeof *some);
        from = some;
    }
    return __builtin_convertvector((vh) * (const vh_any *)from, vu);
}

/* STRIP values, of which v[k] is the k-th or NULL, as [channels][STRIP]. */
static void pack_values(const layout *l, int d, const uint16_t *const v[STRIP], uint16_t *to) {
    for (int c = 0; c < l->channels; c += LANES) {
        vf r[LANES];
        for (int i = 0; i < LANES; i++) {
            vu even = v[2 * i] ? channel_words(v[2 * i], d, c) : (vu){0};
            vu odd = v[2 * i + 1] ? channel_words(v[2 * i + 1], d, c) : (vu){0};
            r[i] = (vf)(even | odd << 16);
        }
        transpose(r);
        for (int i = 0; i < LANES; i++) store(to + (size_t)(c + i) * STRIP, r[i]);
    }
}

/* The next n keys, n <= chunk, in whole strips: keys [n][depth], values by strip [channels][STRIP]. */
static void pack(const layout *l, cursor *at, int n, uint16_t *keys, uint16_t *values) {
    int d = at->a->d;
    for (int j = 0; j < n; j += STRIP, values += (size_t)l->channels * STRIP) {
        const uint16_t *v[STRIP] = {0};
        for (int k = 0; k < STRIP; k++, keys += l->depth) {
            int there = 0;
            if (j + k < n) {
                const ts_segment *g;
                size_t from = next_key(at, &g);
                memcpy(keys, (const uint16_t *)g->k + from, (size_t)d * 2);
                v[k] = (const uint16_t *)g->v + from;
                there = d;
            }
            memset(keys + there, 0, (size_t)(l->depth - there) * 2);
        }
        pack_values(l, d, v, values);
    }
}

/* ------------------------------------------------------------------------------------------- the products
 */

/* scores [STRIP][QUERIES] of keys [STRIP][depth] and queries [depth / 2][QUERIES] words. */
TS_INLINE void score_strip(int depth, const uint16_t *keys, const float *query, float *scores) {
    size_t pitch = (size_t)depth * 2;
    TS_TILE_ZERO(0);
    TS_TILE_ZERO(1);
    TS_TILE_ZERO(2);
    TS_TILE_ZERO(3);
    for (int i = 0; i < depth; i += 2 * TS_TILE_WORDS, query += TS_TILE_ROWS * QUERIES) {
        TS_TILE_LOAD(4, keys + i, pitch);
        TS_TILE_LOAD(6, query, ROW_BYTES);
        TS_TILE_PRODUCT(0, 4, 6);
        TS_TILE_LOAD(7, query + LANES, ROW_BYTES);
        TS_TILE_PRODUCT(1, 4, 7);
        TS_TILE_LOAD(5, keys + (size_t)TS_TILE_ROWS * (size_t)depth + i, pitch);
        TS_TILE_PRODUCT(2, 5, 6);
        TS_TILE_PRODUCT(3, 5, 7);
    }
    TS_TILE_STORE(0, scores, ROW_BYTES);
    TS_TILE_STORE(1, scores + LANES, ROW_BYTES);
    TS_TILE_STORE(2, scores + TS_TILE_ROWS * QUERIES, ROW_BYTES);
    TS_TILE_STORE(3, scores + TS_TILE_ROWS * QUERIES + LANES, ROW_BYTES);
}

/* sums [16 or 32 channels][QUERIES] += values, of which strips lie `next` elements apart, by the weights. */
TS_INLINE void add_channels(const uint16_t *values, size_t next, const float *weights, int strips,
                            float *sums, bool two) {
    float *lower = sums + TS_TILE_ROWS * QUERIES;
    TS_TILE_LOAD(0, sums, ROW_BYTES);
    TS_TILE_LOAD(1, sums + LANES, ROW_BYTES);
    if (two) {
        TS_TILE_LOAD(2, lower, ROW_BYTES);
        TS_TILE_LOAD(3, lower + LANES, ROW_BYTES);
    }
    for (int s = 0; s < strips; s++, values += next, weights += STRIP / 2 * QUERIES) {
        TS_TILE_LOAD(4, values, STRIP * 2);
        TS_TILE_LOAD(6, weights, ROW_BYTES);
        TS_TILE_PRODUCT(0, 4, 6);
        TS_TILE_LOAD(7, weights + LANES, ROW_BYTES);
        TS_TILE_PRODUCT(1, 4, 7);
        if (two) {
            TS_TILE_LOAD(5, values + TS_TILE_ROWS * STRIP, STRIP * 2);
            TS_TILE_PRODUCT(2, 5, 6);
            TS_TILE_PRODUCT(3, 5, 7);
        }
    }
    TS_TILE_STORE(0, sums, ROW_BYTES);
    TS_TILE_STORE(1, sums + LANES, ROW_BYTES);
    if (two) {
        TS_TILE_STORE(2, lower, ROW_BYTES);
        TS_TILE_STORE(3, lower + LANES, ROW_BYTES);
    }
}

static void add_values(int channels, const uint16_t *values, const float *weights, int strips, float *sums) {
    size_t next = (size_t)channels * STRIP;
    int c = 0;
    for (; c + 2 * TS_TILE_ROWS <= channels; c += 2 * TS_TILE_ROWS)
        add_channels(values + c * STRIP, next, weights, strips, sums + c * QUERIES, true);
    if (c < channels) add_channels(values + c * STRIP, next, weights, strips, sums + c * QUERIES, false);
}

/* -------------------------------------------------------------------------------------------- the softmax
 */

/* One block of queries on its way over a chunk of keys. */
typedef struct block {
    const layout *l;
    float scale;
    const uint16_t *values; /* of the first strip whose weights are gathered */
    float *weights, *sums, *running, *total;
    int gathered; /* strips */
} block;

static void flush(block *b) {
    if (b->gathered) add_values(b->l->channels, b->values, b->weights, b->gathered, b->sums);
    b->values += (size_t)b->gathered * (size_t)b->l->channels * STRIP;
    b->gathered = 0;
}

/* Keys [n, STRIP) are not there and, causally, no query sees those after it; `ahead` is the strip's first key
 * minus the block's first query. */
static void mask_strip(float *scores, int n, bool causal, int64_t ahead) {
    for (int j = 0; j < STRIP; j++)
        for (int q = 0; q < QUERIES; q++)
            if (j >= n || (causal && ahead + j > q)) scores[j * QUERIES + q] = -INFINITY;
}

/* Moves the running maxima to `top` where that is far above them, with everything that is relative to them.
 */
TS_INLINE void follow(block *b, const vf top[2]) {
    vf running[2], now[2], factor[2];
    for (int c = 0; c < 2; c++) {
        running[c] = load(b->running + c * LANES);
        now[c] = where_less(running[c] + (float)HEADROOM, top[c], top[c], running[c]);
        factor[c] = exp2_vf(running[c] - now[c], false);
        store(b->running + c * LANES, now[c]);
        store(b->total + c * LANES, load(b->total + c * LANES) * factor[c]);
    }
    flush(b);
    for (int i = 0; i < b->l->channels; i++)
        for (int c = 0; c < 2; c++) {
            float *sum = b->sums + i * QUERIES + c * LANES;
            store(sum, load(sum) * factor[c]);
        }
}

TS_INLINE bool far_above(vf top, vf running) {
    return _mm512_cmp_ps_mask((__m512)(running + (float)HEADROOM), (__m512)top, _CMP_LT_OQ);
}

/* Scores become weights, gathered. */
TS_INLINE void soften_strip(block *b, const float *scores) {
    vf top[2] = {splat(-INFINITY), splat(-INFINITY)};
    TS_UNROLL(8)
    for (int j = 0; j < STRIP; j++)
        for (int c = 0; c < 2; c++) top[c] = larger(load(scores + j * QUERIES + c * LANES), top[c]);
    for (int c = 0; c < 2; c++) top[c] *= b->scale;
    if (far_above(top[0], load(b->running)) || far_above(top[1], load(b->running + LANES))) follow(b, top);
    float *weights = b->weights + b->gathered * (STRIP / 2) * QUERIES;
    for (int c = 0; c < 2; c++) {
        vf now = load(b->running + c * LANES), sum[2] = {load(b->total + c * LANES), {0}};
        TS_UNROLL(4)
        for (int j = 0; j < STRIP; j += 2) {
            vf even = load(scores + j * QUERIES + c * LANES),
               odd = load(scores + (j + 1) * QUERIES + c * LANES);
            even = exp2_vf(even * b->scale - now, true);
            odd = exp2_vf(odd * b->scale - now, true);
            sum[0] += even;
            sum[1] += odd;
            store(weights + j / 2 * QUERIES + c * LANES, pair_up(even, odd));
        }
        store(b->total + c * LANES, sum[0] + sum[1]);
    }
    if (++b->gathered == GATHER / STRIP) flush(b);
}

/* A block against n packed keys; `ahead` is the first key minus the first query. */
static void attend_block(block *b, const uint16_t *keys, int n, const float *query, float *scores,
                         bool causal, int64_t ahead) {
    int depth = b->l->depth;
    size_t next = (size_t)STRIP * (size_t)depth;
    if (causal && ahead + n > QUERIES) n = (int)(QUERIES - ahead);
    score_strip(depth, keys, query, scores);
    for (int j = 0, turn = 0; j < n; j += STRIP, turn ^= 1) {
        float *own = scores + turn * STRIP * QUERIES;
        keys += next;
        if (j + STRIP < n) score_strip(depth, keys, query, scores + (turn ^ 1) * STRIP * QUERIES);
        if (n - j < STRIP || (causal && ahead + j + STRIP > 1)) mask_strip(own, n - j, causal, ahead + j);
        soften_strip(b, own);
    }
    flush(b);
}

void ts_attend_tiles(const ts_attend *a) {
    int64_t all = all_keys(a);
    int count = a->end - a->begin, rows = round_up(count, QUERIES);
    layout l = make_layout(a->d, count, (int)all);
    char *base = a->scratch;
    uint16_t *keys = (uint16_t *)(void *)(base + l.keys), *values = (uint16_t *)(void *)(base + l.values);
    float *query = (float *)(void *)(base + l.query), *scores = (float *)(void *)(base + l.scores);
    float *sums = (float *)(void *)(base + l.sums), *state = (float *)(void *)(base + l.state);
    memset(sums, 0, (size_t)rows * (size_t)l.channels * sizeof *sums);
    for (int i = 0; i < 2 * rows; i++) /* no key, nothing to attend to: zero, not 0 / 0 */
        state[i] = i / QUERIES % 2 == 0 ? -INFINITY : all ? 0 : 1;
    ts_amx_config before;
    ts_amx_begin(&before);
    cursor at = {.a = a};
    for (int64_t first = 0; first < all; first += l.chunk) {
        int n = all - first < l.chunk ? (int)(all - first) : l.chunk;
        pack(&l, &at, n, keys, values);
        for (int q = 0; q < count; q += QUERIES) {
            int64_t ahead = first - (a->begin + q);
            if (a->causal && ahead >= QUERIES) continue;
            pack_queries(a, a->begin + q, count - q < QUERIES ? count - q : QUERIES, l.depth / 2, QUERIES,
                         true, query);
            block b = {.l = &l,
                       .scale = a->scale * LOG2_E,
                       .values = values,
                       .weights = (float *)(void *)(base + l.weights),
                       .sums = sums + (size_t)q * (size_t)l.channels,
                       .running = state + 2 * q,
                       .total = state + 2 * q + QUERIES};
            attend_block(&b, keys, n, query, scores, a->causal, ahead);
        }
    }
    ts_amx_end(&before);
    for (int q = 0; q < count; q += QUERIES)
        write_queries(a, a->begin + q, count - q < QUERIES ? count - q : QUERIES, QUERIES,
                      sums + (size_t)q * (size_t)l.channels, state + 2 * q + QUERIES);
}
