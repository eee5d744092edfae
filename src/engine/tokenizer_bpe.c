#include "engine/tokenizer_bpe.h"

#include <stdlib.h>
#include <string.h>
#include "base/alloc.h"
#include "base/buffer.h"

#define POOL_MAXIMUM ((size_t)256 << 20)
#define LAST         "</w>"

typedef struct entry {
    size_t text, size; /* in the pool */
    int32_t id;
} entry;

typedef struct merge {
    uint64_t pair; /* left id, right id */
    uint32_t rank;
    int32_t id;
} merge;

struct ts_bpe {
    ts_buffer pool;
    entry *entries; /* sorted by text once sealed */
    size_t count, capacity;
    merge *merges; /* sorted by pair once finished */
    size_t merge_count, merge_capacity;
    int32_t largest;
    int32_t byte[256], last_byte[256];
};

/* A word is a list of symbols; a merged one swallows its right neighbour. */
typedef struct ts_bpe_symbol {
    int32_t id; /* -1: swallowed */
    int32_t before, after;
} symbol;

/* A pair that could be merged, best rank first, then leftmost. It may be out of date when its turn comes. */
typedef struct ts_bpe_candidate {
    uint32_t rank;
    int32_t at, id;
} candidate;

ts_code ts_bpe_new(ts_bpe **ret, ts_error *e) {
    ts_bpe *b = ts_new0(ts_bpe);
    if (!b) return ts_fail(e, TS_ENOMEM, "a vocabulary");
    ts_buffer_init(&b->pool, POOL_MAXIMUM);
    b->largest = -1;
    *ret = b;
    return TS_OK;
}

void ts_bpe_free(ts_bpe *b) {
    if (!b) return;
    ts_buffer_free(&b->pool);
    free(b->entries);
    free(b->merges);
    free(b);
}

ts_code ts_bpe_add_token(ts_bpe *b, const char *text, size_t size, int64_t id, ts_error *e) {
    if (id < 0 || id > TS_BPE_ID)
        return ts_fail(e, TS_EFORMAT, "token %.100s has the id %lld", text, (long long)id);
    if (b->count == TS_BPE_ENTRIES) return ts_fail(e, TS_EFORMAT, "more than %d tokens", TS_BPE_ENTRIES);
    if (!ts_grow(&b->entries, &b->capacity, b->count + 1, sizeof *b->entries))
        return ts_fail(e, TS_ENOMEM, "a vocabulary");
    size_t at = b->pool.size;
    ts_code rc = ts_buffer_append(&b->pool, text, size);
    if (rc) return ts_fail(e, rc == TS_ENOMEM ? rc : TS_EFORMAT, "a vocabulary of more than %zu bytes", at);
    b->entries[b->count++] = (entry){.text = at, .size = size, .id = (int32_t)id};
    if (id > b->largest) b->largest = (int32_t)id;
    return TS_OK;
}

static int compare(const char *a, size_t n, const char *b, size_t m) {
    size_t shorter = n < m ? n : m;
    int order = shorter ? memcmp(a, b, shorter) : 0;
    return order ? order : (n > m) - (n < m);
}

static int by_text(const void *a, const void *b, void *pool) {
    const entry *x = a, *y = b;
    return compare((char *)pool + x->text, x->size, (char *)pool + y->text, y->size);
}

ts_code ts_bpe_seal(ts_bpe *b, ts_error *e) {
    if (!b->count) return ts_fail(e, TS_EFORMAT, "the vocabulary is empty");
    qsort_r(b->entries, b->count, sizeof *b->entries, by_text, b->pool.data);
    for (size_t i = 1; i < b->count; i++)
        if (by_text(&b->entries[i - 1], &b->entries[i], b->pool.data) == 0)
            return ts_fail(e, TS_EFORMAT, "token %.*s comes twice",
                           (int)(b->entries[i].size < 100 ? b->entries[i].size : 100),
                           b->pool.data + b->entries[i].text);
    return TS_OK;
}

int32_t ts_bpe_find(const ts_bpe *b, const char *text, size_t size) {
    size_t low = 0, high = b->count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        const entry *t = &b->entries[middle];
        int order = compare(text, size, b->pool.data + t->text, t->size);
        if (!order) return t->id;
        if (order < 0)
            high = middle;
        else
            low = middle + 1;
    }
    return -1;
}

size_t ts_bpe_count(const ts_bpe *b) {
    return b->count;
}
int32_t ts_bpe_largest(const ts_bpe *b) {
    return b->largest;
}

static uint64_t pair_of(int32_t left, int32_t right) {
    return (uint64_t)left << 32 | (uint64_t)right;
}

ts_code ts_bpe_add_merge(ts_bpe *b, const char *left, size_t left_size, const char *right, size_t right_size,
                         ts_error *e) {
    if (b->merge_count == TS_BPE_ENTRIES)
        return ts_fail(e, TS_EFORMAT, "more than %d merges", TS_BPE_ENTRIES);
    if (!ts_grow(&b->merges, &b->merge_capacity, b->merge_count + 1, sizeof *b->merges))
        return ts_fail(e, TS_ENOMEM, "a vocabulary");
    int32_t l = ts_bpe_find(b, left, left_size), r = ts_bpe_find(b, right, right_size), both = -1;
    char small[256], *joined = small;
    size_t size = left_size + right_size;
    if (l >= 0 && r >= 0) {
        if (size > sizeof small) joined = malloc(size);
        if (!joined) return ts_fail(e, TS_ENOMEM, "a vocabulary");
        memcpy(joined, left, left_size);
        memcpy(joined + left_size, right, right_size);
        both = ts_bpe_find(b, joined, size);
        if (joined != small) free(joined);
    }
    if (both < 0)
        return ts_fail(e, TS_EFORMAT, "merge %zu, %.*s and %.*s: %s is no token", b->merge_count,
                       (int)(left_size < 100 ? left_size : 100), left,
                       (int)(right_size < 100 ? right_size : 100), right,
                       l < 0   ? "the left one"
                       : r < 0 ? "the right one"
                               : "the result");
    b->merges[b->merge_count] = (merge){.pair = pair_of(l, r), .rank = (uint32_t)b->merge_count, .id = both};
    b->merge_count++;
    return TS_OK;
}

static int by_pair(const void *a, const void *b) {
    const merge *x = a, *y = b;
    if (x->pair != y->pair) return x->pair < y->pair ? -1 : 1;
    return (x->rank > y->rank) - (x->rank < y->rank);
}

/* GPT-2's printable stand-in for a byte, in UTF-8: itself where that is printable, else 256 and up. */
static size_t stand_in(unsigned byte, char *out) {
    unsigned code = byte;
    if (byte <= 0x20)
        code = 256 + byte;
    else if (byte >= 0x7f && byte <= 0xa0)
        code = 256 + 33 + (byte - 0x7f);
    else if (byte == 0xad)
        code = 256 + 33 + 34;
    if (code < 0x80) {
        out[0] = (char)code;
        return 1;
    }
    out[0] = (char)(0xc0 | code >> 6);
    out[1] = (char)(0x80 | (code & 0x3f));
    return 2;
}

ts_code ts_bpe_finish(ts_bpe *b, int32_t unknown, ts_error *e) {
    if (b->merge_count) qsort(b->merges, b->merge_count, sizeof *b->merges, by_pair);
    size_t kept = 0;
    for (size_t i = 0; i < b->merge_count; i++) {
        if (i + 1 < b->merge_count && b->merges[i + 1].pair == b->merges[i].pair) continue;
        b->merges[kept++] = b->merges[i];
    }
    b->merge_count = kept;
    for (unsigned byte = 0; byte < 256; byte++) {
        char text[8];
        size_t n = stand_in(byte, text);
        b->byte[byte] = ts_bpe_find(b, text, n);
        memcpy(text + n, LAST, sizeof LAST - 1);
        b->last_byte[byte] = ts_bpe_find(b, text, n + sizeof LAST - 1);
        if (unknown < 0 && (b->byte[byte] < 0 || b->last_byte[byte] < 0))
            return ts_fail(e, TS_EFORMAT, "byte 0x%02x is no token, and there is no unknown token", byte);
        if (b->byte[byte] < 0) b->byte[byte] = unknown;
        if (b->last_byte[byte] < 0) b->last_byte[byte] = unknown;
    }
    return TS_OK;
}

void ts_bpe_scratch_free(ts_bpe_scratch *s) {
    free(s->symbols);
    free(s->heap);
    *s = (ts_bpe_scratch){0};
}

static bool better(const candidate *a, const candidate *b) {
    return a->rank != b->rank ? a->rank < b->rank : a->at < b->at;
}

static const merge *find_merge(const ts_bpe *b, int32_t left, int32_t right) {
    uint64_t pair = pair_of(left, right);
    size_t low = 0, high = b->merge_count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (b->merges[middle].pair == pair) return &b->merges[middle];
        if (pair < b->merges[middle].pair)
            high = middle;
        else
            low = middle + 1;
    }
    return NULL;
}

/* Puts the pair that begins at symbol `at` on the heap if it can be merged. */
static bool consider(const ts_bpe *b, ts_bpe_scratch *s, int32_t at) {
    int32_t after = at < 0 ? -1 : s->symbols[at].after;
    const merge *m = after < 0 ? NULL : find_merge(b, s->symbols[at].id, s->symbols[after].id);
    if (!m) return true;
    if (!ts_grow(&s->heap, &s->heap_capacity, s->heap_count + 1, sizeof *s->heap)) return false;
    candidate c = {.rank = m->rank, .at = at, .id = m->id};
    size_t i = s->heap_count++;
    for (; i && better(&c, &s->heap[(i - 1) / 2]); i = (i - 1) / 2) s->heap[i] = s->heap[(i - 1) / 2];
    s->heap[i] = c;
    return true;
}

static candidate take_best(ts_bpe_scratch *s) {
    candidate best = s->heap[0], last = s->heap[--s->heap_count];
    size_t i = 0, child;
    while ((child = 2 * i + 1) < s->heap_count) {
        if (child + 1 < s->heap_count && better(&s->heap[child + 1], &s->heap[child])) child++;
        if (!better(&s->heap[child], &last)) break;
        s->heap[i] = s->heap[child];
        i = child;
    }
    s->heap[i] = last;
    return best;
}

ts_code ts_bpe_word(const ts_bpe *b, ts_bpe_scratch *s, const char *word, size_t size, int32_t *ids,
                    size_t room, size_t *ret_count) {
    if (size > INT32_MAX || !ts_grow(&s->symbols, &s->symbol_capacity, size, sizeof *s->symbols))
        return TS_ENOMEM;
    symbol *y = s->symbols;
    s->heap_count = 0;
    for (size_t i = 0; i < size; i++) {
        unsigned char byte = (unsigned char)word[i];
        bool last = i + 1 == size;
        y[i] = (symbol){.id = last ? b->last_byte[byte] : b->byte[byte],
                        .before = (int32_t)i - 1,
                        .after = last ? -1 : (int32_t)i + 1};
    }
    for (size_t i = 0; i < size; i++)
        if (!consider(b, s, (int32_t)i)) return TS_ENOMEM;
    while (s->heap_count) {
        candidate c = take_best(s);
        symbol *left = &y[c.at];
        if (left->id < 0 || left->after < 0) continue;
        symbol *right = &y[left->after];
        const merge *m = find_merge(b, left->id, right->id);
        if (!m || m->id != c.id) continue; /* one of the two has changed since */
        left->id = c.id;
        right->id = -1;
        left->after = right->after;
        if (left->after >= 0) y[left->after].before = c.at;
        if (!consider(b, s, left->before) || !consider(b, s, c.at)) return TS_ENOMEM;
    }
    size_t count = 0;
    for (int32_t i = 0; i >= 0; i = y[i].after) {
        if (count < room) ids[count] = y[i].id;
        count++;
    }
    *ret_count = count;
    return TS_OK;
}
