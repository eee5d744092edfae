/* How a picture was made, as the text that AUTOMATIC1111's tools read from a PNG's "parameters" chunk. */
#ifndef TS_ENGINE_INFOTEXT_H
#define TS_ENGINE_INFOTEXT_H

#include "engine/engine.h"

/* *ret is malloc'ed. The job must have run (ranks and patches are from its figures). TS_ENOMEM. Any thread. */
ts_code ts_infotext(const ts_model *model, const ts_job *job, const ts_picture *picture, char **ret);

#endif
