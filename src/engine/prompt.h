/* A prompt cut into chunks: what a text encoder is given, one after another, where the words are more than
 * fit.
 *
 * A chunk is the encoder's positions: begin, up to positions - 2 tokens, end, padding. As in AUTOMATIC1111 a
 * chunk that is full ends after its last comma where that is no more than 20 tokens back, so that what
 * belongs together stays so. With emphasis a BREAK ends a chunk too, and each run of equal weight is
 * tokenized by itself. Where the prompt is to be truncated there is one chunk: filled to its last place, and
 * not ended by BREAK. The vectors of a name (textual inversion) stay in one chunk. */
#ifndef TS_ENGINE_PROMPT_H
#define TS_ENGINE_PROMPT_H

#include "engine/job.h"
#include "engine/tokenizer.h"

typedef struct ts_prompt {
    int chunks, positions;
    int tokens;     /* begin and end of every chunk included, padding not */
    int32_t *ids;   /* [chunks][positions], those of names among them (ts_tokenizer_row) */
    float *weights; /* likewise: with emphasis, what the encoder's output is multiplied by; else NULL */
} ts_prompt;

/* Reads the prompt, or the negative one, as params say, into `chunks` chunks, the last of them empty where it
 * has fewer; 0: into as many as it has, one at least. No text is "". Errors carry "prompt" or
 * "negative_prompt" as param: TS_EINVAL for text that is no UTF-8 or takes more chunks than that, or than
 * TS_MAX_CHUNKS; TS_ENOMEM. Any thread. */
ts_code ts_prompt_read(const ts_tokenizer *t, int positions, const ts_picture_params *params, bool negative,
                       int chunks, ts_prompt *ret, ts_error *e);
void ts_prompt_free(ts_prompt *p); /* zeroed is fine */

#endif
