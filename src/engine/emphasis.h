/* Emphasis in prompts, as AUTOMATIC1111 writes it: (word) is worth 1.1, [word] 1 / 1.1, (word:1.3) 1.3;
 * brackets in brackets multiply; \( \) \[ \] \\ are the characters themselves; BREAK as a word of its own
 * ends a chunk.
 *
 * A bracket that is not closed goes to the end; one that was not opened is text, and so is what only looks
 * like a weight. Where that program's own reading falls over itself this one does not: BREAK is one within
 * brackets and twice in a row too. What it has beside emphasis ([from:to:when], a|b, AND) is text here. */
#ifndef TS_ENGINE_EMPHASIS_H
#define TS_ENGINE_EMPHASIS_H

#include <stdbool.h>
#include <stddef.h>
#include "base/error.h"

#define TS_EMPHASIS_DEPTH  64   /* brackets of a kind that are open at a time */
#define TS_EMPHASIS_WEIGHT 1000 /* the largest weight, either way */

typedef struct ts_emphasis_run {
    size_t begin, size; /* of ts_emphasis.text; runs follow each other */
    double weight;
    bool ends_chunk; /* a BREAK, of no text */
} ts_emphasis_run;

typedef struct ts_emphasis {
    char *text;            /* without brackets, weights and escapes */
    ts_emphasis_run *runs; /* neighbours of equal weight are one */
    size_t count, capacity;
} ts_emphasis;

/* Any bytes. TS_EINVAL for what is no UTF-8, brackets beyond TS_EMPHASIS_DEPTH, a weight beyond
 * TS_EMPHASIS_WEIGHT; TS_ENOMEM. Time is linear in size. Any thread. */
ts_code ts_emphasis_parse(const char *text, size_t size, ts_emphasis *ret, ts_error *e);
void ts_emphasis_free(ts_emphasis *m); /* zeroed is fine */

#endif
