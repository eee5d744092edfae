/* What the tokenizer's loader fills and its encoder reads. */
#ifndef TS_ENGINE_TOKENIZER_INTERNAL_H
#define TS_ENGINE_TOKENIZER_INTERNAL_H

#include "engine/tokenizer.h"
#include "engine/tokenizer_bpe.h"

/* A token that is cut out of the text before words are made of it. One marked normalised is looked for in the
 * normalised text, in its own normalised form; the others in the text as it came. A name is normalised, and
 * found only where no word goes on at its ends. */
typedef struct ts_added_token {
    char *text;
    size_t size;
    int32_t id;
    bool normalised;
    int count; /* of a name (ts_tokenizer_add_name): ids from `id` on; else 0 */
} ts_added_token;

struct ts_tokenizer {
    ts_bpe *bpe;
    ts_added_token *added;
    size_t added_count;
    bool begins[2][256]; /* an added token, raw or normalised, begins with this byte */
    int32_t start, end, pad, comma, size;
    int max_length;
    uint8_t *rest; /* of names: by row, ts_tokenizer_rest */
    size_t rows, row_capacity;
};

#endif
