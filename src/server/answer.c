#include "server/answer.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include "server/reply.h"

#define MAX_EXACT ((uint64_t)1 << 53) /* as a number; as a string beyond */

static ts_code seed(ts_buffer *b, const ts_answer *a, int index) {
    uint64_t value = a->r->request.params.seed + (uint64_t)index;
    return ts_buffer_printf(b, value <= MAX_EXACT ? "\"seed\": %llu" : "\"seed\": \"%llu\"",
                            (unsigned long long)value);
}

/* Tokens of the prompt, and for each picture the places of its latent, which is what costs time. */
static ts_code usage(ts_buffer *b, const ts_answer *a, int pictures) {
    const ts_shape *s = &a->r->request.shape;
    long long in = a->r->prompt_tokens, out = (long long)(s->width / 8) * (s->height / 8) * pictures;
    return ts_buffer_printf(
        b,
        "\"usage\": {\"input_tokens\": %lld, \"input_tokens_details\": {\"image_tokens\": 0, "
        "\"text_tokens\": %lld}, \"output_tokens\": %lld, \"total_tokens\": %lld}",
        in, in, out, in + out);
}

static ts_code format(ts_buffer *b, const ts_answer *a) {
    const ts_shape *s = &a->r->request.shape;
    return ts_buffer_printf(
        b,
        "\"size\": \"%dx%d\", \"output_format\": \"png\", \"quality\": \"auto\", \"background\": \"opaque\"",
        s->width, s->height);
}

static ts_code loras(ts_buffer *b, const ts_shape *s) {
    ts_code rc = s->lora_count ? ts_buffer_printf(b, ", \"loras\": [") : TS_OK;
    for (int i = 0; i < s->lora_count; i++) {
        if (!rc) rc = ts_buffer_printf(b, "%s{\"name\": ", i ? ", " : "");
        if (!rc) rc = ts_json_quote(b, s->loras[i].name);
        if (!rc) rc = ts_buffer_printf(b, ", \"scale\": %s}", ts_digits_of(s->loras[i].scale).text);
    }
    return rc || !s->lora_count ? rc : ts_buffer_append(b, "]", 1);
}

/* How it was made, enough to make it again. */
static ts_code made(ts_buffer *b, const ts_answer *a, const ts_answer_picture *picture) {
    const ts_request *r = &a->r->request;
    const ts_picture_params *m = &r->params;
    const ts_parallel *p = &r->shape.parallel;
    const ts_job_stats *t = &picture->stats;
    bool split = t->patches > 0 && t->ranks > t->patches;
    ts_code rc = ts_buffer_printf(b, "\"tessera\": {\"mode\": \"%s\", \"devices\": %d, \"patches\": %d, ",
                                  ts_mode_name(p->mode), t->ranks, t->patches);
    if (!rc)
        rc = isinf(p->partial) ? ts_buffer_printf(b, "\"partial\": \"all\"")
                               : ts_buffer_printf(b, "\"partial\": %s", ts_digits_of(p->partial).text);
    if (!rc)
        rc = ts_buffer_printf(b, ", \"warmup_steps\": %d, \"group_norm\": \"%s\", \"cfg_split\": \"%s\", ",
                              p->warmup, ts_group_norm_mode_name(p->group_norm), split ? "on" : "off");
    if (!rc) rc = seed(b, a, picture->index);
    if (!rc)
        rc = ts_buffer_printf(
            b,
            ", \"steps\": %d, \"guidance_scale\": %s, \"guidance_rescale\": %s, "
            "\"guidance_interval\": [%s, %s], \"sampler\": \"%s\", \"scheduler\": \"%s\", "
            "\"rng\": \"%s\", \"model\": ",
            r->shape.steps, ts_digits_of(m->guidance_scale).text, ts_digits_of(m->guidance_rescale).text,
            ts_digits_of(m->guidance_interval.from).text, ts_digits_of(m->guidance_interval.to).text,
            r->shape.sampler->name, ts_scheduler_name(r->shape.scheduler), ts_rng_kind_name(m->rng));
    if (!rc) rc = ts_json_quote(b, ts_model_get_info(a->model)->id);
    if (!rc && r->shape.sampler->by_eta)
        rc = ts_buffer_printf(b, ", \"eta\": %s",
                              ts_digits_of(r->shape.has_eta ? r->shape.eta : r->shape.sampler->eta).text);
    if (!rc) rc = loras(b, &r->shape);
    if (!rc)
        rc = ts_buffer_printf(b, ", \"dtype\": \"%s\", \"evaluations\": %d, \"synchronous\": %d}",
                              ts_dtype_name(r->shape.dtype), t->evaluations, t->synchronous);
    return rc;
}

static ts_code base64(ts_buffer *b, const ts_answer_picture *picture) {
    ts_code rc = ts_buffer_printf(b, "\"b64_json\": \"");
    if (!rc) rc = ts_buffer_append(b, picture->base64, picture->base64_size);
    return rc ? rc : ts_buffer_append(b, "\"", 1);
}

ts_code ts_answer_json(ts_buffer *b, const ts_answer *a, const ts_answer_picture *pictures, int n) {
    ts_code rc = ts_buffer_printf(b, "{\"created\": %lld, \"data\": [", (long long)a->created);
    for (int i = 0; i < n && !rc; i++) {
        rc = ts_buffer_printf(b, "%s{", i ? ", " : "");
        if (!rc) rc = base64(b, &pictures[i]);
        if (!rc) rc = ts_buffer_append(b, ", ", 2);
        if (!rc) rc = seed(b, a, pictures[i].index);
        if (!rc) rc = ts_buffer_append(b, "}", 1);
    }
    if (!rc) rc = ts_buffer_printf(b, "], ");
    if (!rc) rc = format(b, a);
    if (!rc) rc = ts_buffer_append(b, ", ", 2);
    if (!rc) rc = usage(b, a, n);
    if (!rc) rc = ts_buffer_append(b, ", ", 2);
    if (!rc) rc = made(b, a, &pictures[0]);
    return rc ? rc : ts_buffer_append(b, "}\n", 2);
}

/* An event's line and the beginning of its data. */
static ts_code event(ts_buffer *b, const ts_answer *a, const char *name) {
    return ts_buffer_printf(b, "event: %s.%s\ndata: {\"type\": \"%s.%s\", ", a->event, name, a->event, name);
}

ts_code ts_answer_queued(ts_buffer *b, const ts_answer *a, int position) {
    ts_code rc = event(b, a, "queued");
    return rc ? rc : ts_buffer_printf(b, "\"position\": %d}\n\n", position);
}

ts_code ts_answer_progress(ts_buffer *b, const ts_answer *a, int step, int total, double eta_s) {
    char eta[32] = "null";
    if (eta_s >= 0 && eta_s < 1e9) snprintf(eta, sizeof eta, "%.0f", eta_s * 1e3);
    ts_code rc = event(b, a, "progress");
    if (rc) return rc;
    return ts_buffer_printf(b, "\"step\": %d, \"total_steps\": %d, \"eta_ms\": %s}\n\n", step, total, eta);
}

ts_code ts_answer_completed(ts_buffer *b, const ts_answer *a, const ts_answer_picture *picture) {
    ts_code rc = event(b, a, "completed");
    if (!rc)
        rc = ts_buffer_printf(b, "\"created_at\": %lld, \"index\": %d, ", (long long)a->created,
                              picture->index);
    if (!rc) rc = seed(b, a, picture->index);
    if (!rc) rc = ts_buffer_append(b, ", ", 2);
    if (!rc) rc = format(b, a);
    if (!rc) rc = ts_buffer_append(b, ", ", 2);
    if (!rc) rc = usage(b, a, 1);
    if (!rc) rc = ts_buffer_append(b, ", ", 2);
    if (!rc) rc = made(b, a, picture);
    if (!rc) rc = ts_buffer_append(b, ", ", 2);
    if (!rc) rc = base64(b, picture);
    return rc ? rc : ts_buffer_append(b, "}\n\n", 3);
}

ts_code ts_answer_failed(ts_buffer *b, const ts_error *error) {
    ts_code rc = ts_buffer_printf(b, "event: error\ndata: ");
    if (!rc) rc = ts_json_error(b, error);
    return rc ? rc : ts_buffer_append(b, "\n\n", 2);
}

ts_code ts_answer_done(ts_buffer *b) {
    return ts_buffer_printf(b, "data: [DONE]\n\n");
}
