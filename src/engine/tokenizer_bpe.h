/* Byte-pair merging with a vocabulary in which a word's last byte carries "</w>". */
#ifndef TS_ENGINE_TOKENIZER_BPE_H
#define TS_ENGINE_TOKENIZER_BPE_H

#include <stddef.h>
#include <stdint.h>
#include "base/error.h"

#define TS_BPE_ENTRIES 1000000  /* the most tokens, and the most merges */
#define TS_BPE_ID      0xffffff /* the largest id */

typedef struct ts_bpe ts_bpe; /* built once, then read by any number of threads */

ts_code ts_bpe_new(ts_bpe **ret, ts_error *e);
void ts_bpe_free(ts_bpe *b); /* NULL is fine */

/* Adds an entry; the text is copied. TS_EFORMAT beyond the limits, TS_ENOMEM. */
ts_code ts_bpe_add_token(ts_bpe *b, const char *text, size_t size, int64_t id, ts_error *e);

/* All entries are there. TS_EFORMAT for an entry that comes twice. */
ts_code ts_bpe_seal(ts_bpe *b, ts_error *e);

/* Adds the next best merge, of two entries into a third, all sealed; of equal pairs the last one counts. */
ts_code ts_bpe_add_merge(ts_bpe *b, const char *left, size_t left_size, const char *right, size_t right_size,
                         ts_error *e);

/* All merges are there; a byte that is no entry becomes `unknown` (-1: then it is TS_EFORMAT that it is
 * none). */
ts_code ts_bpe_finish(ts_bpe *b, int32_t unknown, ts_error *e);

int32_t ts_bpe_find(const ts_bpe *b, const char *text, size_t size); /* sealed; -1 when there is none */
size_t ts_bpe_count(const ts_bpe *b);
int32_t ts_bpe_largest(const ts_bpe *b); /* id; -1 when empty */

/* Room for the merging of a word, reused from word to word by one thread; zero to begin with. */
typedef struct ts_bpe_scratch {
    struct ts_bpe_symbol *symbols;
    struct ts_bpe_candidate *heap;
    size_t symbol_capacity, heap_capacity, heap_count;
} ts_bpe_scratch;
void ts_bpe_scratch_free(ts_bpe_scratch *s);

/* The ids of one word of `size` > 0 bytes, at most `room` of them to ids; *ret_count is how many there are in
 * all. Time n log n. TS_ENOMEM. */
ts_code ts_bpe_word(const ts_bpe *b, ts_bpe_scratch *s, const char *word, size_t size, int32_t *ids,
                    size_t room, size_t *ret_count);

#endif
