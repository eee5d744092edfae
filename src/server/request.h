/* The body of POST /v1/images/generations: from bytes to a request of the scheduler. */
#ifndef TS_SERVER_REQUEST_H
#define TS_SERVER_REQUEST_H

#include <cjson/cJSON.h>
#include "base/config.h"
#include "sched/sched.h"
#include "server/setup.h"

/* What a request is read against. */
typedef struct ts_request_context {
    const ts_config *config;
    const ts_setup *setup;
    ts_model *const *models;
    int model_count;
    const ts_group *group; /* whose preference `dtype = auto` follows */
} ts_request_context;

typedef struct ts_images_request {
    cJSON *json;                   /* owns the strings */
    ts_request request;            /* all but the token */
    int prompt_tokens;             /* begin and end of each chunk included */
    bool stream, progress, finish; /* finish: goes on when the client has gone */
} ts_images_request;

/* Checks everything that can be checked before the scheduler. TS_EINVAL or TS_EUNSUPPORTED with the field as
 * param ("parallel.mode"), TS_ENOTFOUND for the model, TS_ENOMEM. Seeds that are absent are drawn. */
ts_code ts_images_request_read(const ts_request_context *context, const char *body, size_t size,
                               ts_images_request *ret, ts_error *e);
void ts_images_request_free(ts_images_request *r); /* zeroed is fine */

#endif
