/* The text side of the CLIP tokenizer: normalisation and the split into words. UTF-8 in and out. */
#ifndef TS_ENGINE_TOKENIZER_TEXT_H
#define TS_ENGINE_TOKENIZER_TEXT_H

#include <stdbool.h>
#include <stddef.h>
#include "base/buffer.h"
#include "base/error.h"

/* True for well-formed UTF-8; unlike in JSON, NUL is a character like others here. */
bool ts_text_valid(const char *text, size_t size);

/* Appends NFC, each run of white space one space, lower case, of valid UTF-8. Time n log n at worst. */
ts_code ts_text_normalise(const char *text, size_t size, ts_buffer *out);

/* Whether a letter, a number or _ begins at `at`, or ends before it; false at the text's ends. Valid UTF-8.
 */
bool ts_text_word_at(const char *text, size_t size, size_t at);
bool ts_text_word_before(const char *text, size_t at);

/* Words of normalised text, one after another. */
typedef struct ts_words {
    const char *text;
    size_t size, at;
    size_t stop; /* words that begin before it end there too */
} ts_words;

/* The next word and its length, or NULL at the end. Begin with {.text, .size}. */
const char *ts_words_next(ts_words *w, size_t *ret_length);

#endif
