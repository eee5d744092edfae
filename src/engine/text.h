/* Prompts to what the U-Net attends to: tokenizers and text encoders, run on rank 0 of a group. */
#ifndef TS_ENGINE_TEXT_H
#define TS_ENGINE_TEXT_H

#include "engine/group.h"

/* Encodes a picture's prompt, or its negative one, in as many chunks (engine/prompt.h) as are asked for; an
 * absent negative prompt is zeros for a model that wants that, else "". text: float32 [chunks *
 * positions][ts_model_text_width], pooled: [ts_model_pooled_width], of the first chunk, or NULL. The caller's
 * thread; the work is done on rank 0's. The errors of ts_model_check_params and ts_prompt_read. */
ts_code ts_text_encode(ts_group *g, const ts_model *m, ts_dtype dtype, const ts_picture_params *params,
                       bool negative, int chunks, float *text, float *pooled, ts_error *e);
void ts_texts_free(ts_group *g, const ts_model *model); /* those of a model; NULL: all */

#endif
