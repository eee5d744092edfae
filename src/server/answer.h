/* What is said about a picture: the JSON of answers and of events. */
#ifndef TS_SERVER_ANSWER_H
#define TS_SERVER_ANSWER_H

#include "base/buffer.h"
#include "server/request.h"

/* What one answer has in common. */
typedef struct ts_answer {
    const ts_images_request *r;
    const ts_model *model;
    const char *event; /* what the names of its events begin with: "image_generation", "image_edit" */
    int64_t created;   /* seconds since 1970 */
} ts_answer;

/* One finished picture. */
typedef struct ts_answer_picture {
    const char *base64;
    size_t base64_size;
    int index;
    ts_job_stats stats;
} ts_answer_picture;

/* The whole answer of a request that was not streamed. Each fails as ts_buffer_append does. */
ts_code ts_answer_json(ts_buffer *b, const ts_answer *a, const ts_answer_picture *pictures, int n);

/* Events of a stream, with their empty line. */
ts_code ts_answer_queued(ts_buffer *b, const ts_answer *a, int position);
ts_code ts_answer_progress(ts_buffer *b, const ts_answer *a, int step, int total, double eta_s);
ts_code ts_answer_completed(ts_buffer *b, const ts_answer *a, const ts_answer_picture *picture);
ts_code ts_answer_failed(ts_buffer *b, const ts_error *error);
ts_code ts_answer_done(ts_buffer *b);

#endif
