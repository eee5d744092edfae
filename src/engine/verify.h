/* Whether a model's tensors are those that its configs speak of. */
#ifndef TS_ENGINE_VERIFY_H
#define TS_ENGINE_VERIFY_H

#include "engine/model.h"

/* What compiling a program would find missing or of another shape is found when a model is loaded: every component is built
 * once, for the smallest picture. A single file's config is read off its tensors, so there a tensor of U-Net or autoencoder
 * that no layer uses is an error too: another one must be missing. TS_EFORMAT, TS_EUNSUPPORTED for a tensor of a type that is
 * not read; with file and tensor in the message. TS_ENOMEM. */
ts_code ts_model_verify(const ts_model *m, ts_error *e);

#endif
