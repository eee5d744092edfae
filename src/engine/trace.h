/* A trace: what a run of one picture computes on the way, to be compared with what another implementation
 * computes (tools/parity/compare.py). Nothing is computed for it; it costs the memory of its copies. */
#ifndef TS_ENGINE_TRACE_H
#define TS_ENGINE_TRACE_H

#include "base/error.h"

/* All float32. images: 2 where the picture is guided, the unconditional one first. */
typedef struct ts_trace {
    int images, tokens, text_width, pooled_width;
    int channels, height, width; /* of a latent */
    int evaluations;
    float *text;       /* [images][tokens][text_width] */
    float *pooled;     /* [images][pooled_width]; pooled_width is 0 but for XL */
    float *noise;      /* [channels][height][width], unit normal */
    float *prediction; /* [images][height][width][channels]: what the U-Net says in the first evaluation */
    float *latents;    /* [evaluations][height][width][channels], after each of them */
} ts_trace;

/* Memory for what the numbers above say. TS_ENOMEM; ts_trace_free in any case. */
ts_code ts_trace_make(ts_trace *t, ts_error *e);
void ts_trace_free(ts_trace *t); /* zeroed is fine; leaves it zeroed */

/* To a safetensors file, under the members' names, pictures as channels x height x width. TS_EIO, TS_ENOMEM.
 * */
ts_code ts_trace_write(const ts_trace *t, const char *path, ts_error *e);

#endif
