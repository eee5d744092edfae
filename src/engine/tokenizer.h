/* The CLIP tokenizer: text to the ids that a text encoder was trained on.
 *
 * The same ids as transformers' CLIPTokenizer (version 5) with padding="max_length" and truncation=True:
 * special tokens spelled in the text are cut out first; the rest is brought to NFC, runs of white space to
 * one space, lower case; split into words (contractions, runs of letters, single digits, runs of anything
 * else); and each word's UTF-8 bytes are merged pair by pair, best rank first, the last byte carrying "</w>"
 * (Sennrich et al. 2016, arXiv 1508.07909). A tokenizer is immutable once open: any number of threads. */
#ifndef TS_ENGINE_TOKENIZER_H
#define TS_ENGINE_TOKENIZER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "base/error.h"

#define TS_TOKENIZER_TEXT ((size_t)1 << 20) /* the most bytes of a text */

typedef struct ts_tokenizer ts_tokenizer;

/* Opens a model's tokenizer folder: vocab.json and merges.txt, or tokenizer.json (which wins where both are
 * there), with tokenizer_config.json, special_tokens_map.json and added_tokens.json where they exist. Errors
 * name the file: TS_ENOTFOUND, TS_EFORMAT or TS_EINVAL for what it holds, TS_EUNSUPPORTED, TS_ENOMEM. */
ts_code ts_tokenizer_open(const char *dir, ts_tokenizer **ret, ts_error *e);
/* The same with a padding token of the caller's in place of the folder's; NULL: the folder's. */
ts_code ts_tokenizer_open_padded(const char *dir, const char *pad, ts_tokenizer **ret, ts_error *e);
void ts_tokenizer_free(ts_tokenizer *t); /* NULL is fine */

/* ids: max_length of them: start, the text's tokens, end, then padding to max_length, which must be 2 or
 * more. ret_count: ids before the padding, start and end included. ret_truncated: the text had more tokens
 * than fit; the end token is there all the same. Both may be NULL. TS_EINVAL for text that is not UTF-8,
 * TS_ETOOLARGE beyond TS_TOKENIZER_TEXT bytes, TS_ENOMEM; then nothing is written. */
ts_code ts_tokenizer_encode(const ts_tokenizer *t, const char *text, size_t size, int max_length,
                            int32_t *ids, int *ret_count, bool *ret_truncated, ts_error *e);

/* The text's own ids, without start, end and padding: at most `room` of them to ids. *ret_count is how many
 * there are, or any number above room where there are more. Errors as above. */
ts_code ts_tokenizer_ids(const ts_tokenizer *t, const char *text, size_t size, int32_t *ids, size_t room,
                         size_t *ret_count, ts_error *e);

/* Gives a word of its own vectors: where the name is found in normalised text (as another word, not within
 * one) it becomes `count` ids, one after another, which no vocabulary has. Before any other thread reads t.
 * TS_EFORMAT for a name that is empty, too long or no UTF-8, TS_ECONFLICT for one that is there, TS_ENOMEM.
 */
#define TS_TOKENIZER_NAME 256 /* bytes */
ts_code ts_tokenizer_add_name(ts_tokenizer *t, const char *name, int count, ts_error *e);

/* Which of all the vectors of names an id is, from 0 in the order of adding; -1: a token of the vocabulary.
 * And how many of its name there are from it on; 0 for a token. */
int ts_tokenizer_row(const ts_tokenizer *t, int32_t id);
int ts_tokenizer_rest(const ts_tokenizer *t, int32_t id);

/* What the folder says is the encoder's length (77 where it says nothing). */
int ts_tokenizer_max_length(const ts_tokenizer *t);

/* One more than the largest id that can come out: the text encoder must have as many embeddings. */
int32_t ts_tokenizer_size(const ts_tokenizer *t);
int32_t ts_tokenizer_start(const ts_tokenizer *t);
int32_t ts_tokenizer_end(const ts_tokenizer *t);
int32_t ts_tokenizer_pad(const ts_tokenizer *t);
int32_t ts_tokenizer_comma(const ts_tokenizer *t); /* of a comma that stands alone; -1: there is none */

#endif
