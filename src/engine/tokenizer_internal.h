/* What the tokenizer's loader fills and its encoder reads. */
#ifndef TS_ENGINE_TOKENIZER_INTERNAL_H
#define TS_ENGINE_TOKENIZER_INTERNAL_H

#include "engine/tokenizer.h"
#include "engine/tokenizer_bpe.h"

/* A token that is cut out of the text before words are made of it. One marked normalised is looked for in the
 * normalised text, in its own normalised form; the others in the text as it came. */
typedef struct ts_added_token {
    char *text;
    size_t size;
    int32_t id;
    bool normalised;
} ts_added_token;

struct ts_tokenizer {
    ts_bpe *bpe;
    ts_added_token *added;
    size_t added_count;
    bool begins[2][256]; /* an added token, raw or normalised, begins with this byte */
    int32_t start, end, pad, comma, size;
    int max_length;
};

#endif
