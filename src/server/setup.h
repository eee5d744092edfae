/* What the configuration means to the engine: devices, groups, defaults of a request, shapes to compile. */
#ifndef TS_SERVER_SETUP_H
#define TS_SERVER_SETUP_H

#include "base/config.h"
#include "engine/engine.h"

#define TS_MAX_SHAPES 64

typedef struct ts_setup {
    ts_device_spec devices[TS_MAX_RANKS]; /* dealt out to the groups in order */
    int group_sizes[TS_MAX_RANKS];
    int group_count;
    int dtype;                 /* ts_dtype, -1: what the group prefers */
    const ts_sampler *sampler; /* NULL: the model's */
    ts_parallel parallel;
    struct {
        int width, height, steps, batch;
    } shapes[TS_MAX_SHAPES];
    int shape_count;
} ts_setup;

/* Nothing is loaded or opened. TS_EINVAL with "FILE:LINE: ..." and the option as param. */
ts_code ts_setup_make(const ts_config *config, ts_setup *ret, ts_error *e);

#endif
