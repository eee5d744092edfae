/* A hash table of entries under one lock. Makers run inside it, so nothing is ever made twice. */
#include "kernels/store.h"

#include <pthread.h>
#include <stdint.h>
#include <string.h>
#include "base/alloc.h"

#define BUCKETS 1024u /* an SDXL U-Net has about 1,700 parameters */

typedef struct entry {
    struct entry *next;
    const void *param;
    void *layout, *memory;
    size_t layout_size, bytes;
} entry;

struct ts_store {
    pthread_mutex_t lock;
    entry *buckets[BUCKETS];
    void *scratch;
    size_t scratch_bytes;
};

ts_code ts_store_new(ts_store **ret) {
    ts_store *s = ts_new0(ts_store);
    if (!s) return TS_ENOMEM;
    if (pthread_mutex_init(&s->lock, NULL)) {
        free(s);
        return TS_ENOMEM;
    }
    *ret = s;
    return TS_OK;
}

static void free_entry(entry *en) {
    if (!en) return;
    free(en->memory);
    free(en->layout);
    free(en);
}

void ts_store_free(ts_store *s) {
    if (!s) return;
    for (size_t i = 0; i < BUCKETS; i++)
        for (entry *en = s->buckets[i], *next; en; en = next) {
            next = en->next;
            free_entry(en);
        }
    pthread_mutex_destroy(&s->lock);
    free(s->scratch);
    free(s);
}

/* FNV-1a over the address and the layout's bytes. */
static size_t bucket_of(ts_store_key key) {
    uint64_t h = 14695981039346656037u;
    uintptr_t p = (uintptr_t)key.param;
    const unsigned char *layout = key.layout;
    for (size_t i = 0; i < sizeof p; i++) h = (h ^ ((p >> (8 * i)) & 255u)) * 1099511628211u;
    for (size_t i = 0; i < key.layout_size; i++) h = (h ^ layout[i]) * 1099511628211u;
    return (size_t)(h ^ h >> 32) % BUCKETS;
}

static entry *find(const entry *list, ts_store_key key) {
    for (const entry *en = list; en; en = en->next)
        if (en->param == key.param && en->layout_size == key.layout_size &&
            (key.layout_size == 0 || memcmp(en->layout, key.layout, key.layout_size) == 0))
            return (entry *)(uintptr_t)en;
    return NULL;
}

static entry *new_entry(ts_store_key key, size_t bytes) {
    entry *en = ts_new0(entry);
    if (!en) return NULL;
    en->param = key.param;
    en->layout_size = key.layout_size;
    en->bytes = bytes;
    en->layout = malloc(key.layout_size ? key.layout_size : 1);
    en->memory = ts_alloc_aligned(bytes);
    if (!en->layout || !en->memory) {
        free_entry(en);
        return NULL;
    }
    if (key.layout_size) memcpy(en->layout, key.layout, key.layout_size);
    return en;
}

ts_code ts_store_get(ts_store *s, ts_store_key key, size_t bytes,
                     ts_code (*make)(void *memory, void *arg, ts_error *e), void *arg, const void **ret,
                     ts_error *e) {
    size_t bucket = bucket_of(key);
    ts_code rc = TS_OK;
    pthread_mutex_lock(&s->lock);
    entry *en = find(s->buckets[bucket], key);
    if (en) {
        ts_assert(en->bytes == bytes); /* one key, one layout, one size */
    } else if (!(en = new_entry(key, bytes))) {
        rc = ts_fail(e, TS_ENOMEM, "%zu bytes for a parameter", bytes);
    } else if ((rc = make(en->memory, arg, e))) {
        free_entry(en);
    } else {
        en->next = s->buckets[bucket];
        s->buckets[bucket] = en;
    }
    if (rc == TS_OK) *ret = en->memory;
    pthread_mutex_unlock(&s->lock);
    return rc;
}

ts_code ts_store_scratch(ts_store *s, size_t bytes, void **ret, ts_error *e) {
    if (bytes > s->scratch_bytes) {
        free(s->scratch);
        s->scratch = ts_alloc_aligned(bytes);
        s->scratch_bytes = s->scratch ? bytes : 0;
        if (!s->scratch) return ts_fail(e, TS_ENOMEM, "%zu bytes to prepare a parameter in", bytes);
    }
    *ret = s->scratch;
    return TS_OK;
}

void ts_store_rest(ts_store *s) {
    if (!s) return;
    pthread_mutex_lock(&s->lock);
    free(s->scratch);
    s->scratch = NULL;
    s->scratch_bytes = 0;
    pthread_mutex_unlock(&s->lock);
}

void ts_store_drop(ts_store *s, ts_store_choice *choice, void *arg) {
    pthread_mutex_lock(&s->lock);
    for (size_t i = 0; i < BUCKETS; i++)
        for (entry **at = &s->buckets[i], *en; (en = *at);) {
            if (!choice(arg, en->param)) {
                at = &en->next;
                continue;
            }
            *at = en->next;
            free_entry(en);
        }
    pthread_mutex_unlock(&s->lock);
}

size_t ts_store_bytes(ts_store *s, ts_store_choice *choice, void *arg) {
    size_t bytes = 0;
    pthread_mutex_lock(&s->lock);
    for (size_t i = 0; i < BUCKETS; i++)
        for (const entry *en = s->buckets[i]; en; en = en->next)
            if (!choice || choice(arg, en->param)) bytes += en->bytes;
    pthread_mutex_unlock(&s->lock);
    return bytes;
}
