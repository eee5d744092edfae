/* The fields of POST /v1/images/generations and /v1/images/edits: from JSON to a request of the scheduler. */
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
    double strength;               /* of an edit; 0: nobody chose one */
} ts_images_request;

/* The size of the picture that an edit begins with. */
typedef struct ts_original {
    int width, height;
} ts_original;

/* Checks everything that can be checked before the scheduler. TS_EINVAL or TS_EUNSUPPORTED with the field as
 * param ("parallel.mode"), TS_ENOTFOUND for the model, TS_ENOMEM. Seeds that are absent are drawn. original:
 * NULL, or of an edit, which has its size where the request says none; its task is not yet known and stays
 * TEXT. */
ts_code ts_images_request_read(const ts_request_context *context, const char *body, size_t size,
                               const ts_original *original, ts_images_request *ret, ts_error *e);

/* True for a field whose value is text whatever it looks like (in a form, which knows no types). */
bool ts_images_field_is_text(const char *name, const char *value);
void ts_images_request_free(ts_images_request *r); /* zeroed is fine */

#endif
