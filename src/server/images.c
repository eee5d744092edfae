/* POST /v1/images/generations: what is asked for, and whether it can be. */
#include <stdlib.h>
#include <string.h>
#include "server/generation.h"
#include "server/reply.h"

static bool is_json(const char *type) {
    static const char wanted[] = "application/json";
    size_t n = sizeof wanted - 1;
    return !strncasecmp(type, wanted, n) && (!type[n] || strchr("; \t", type[n]));
}

/* The weight that an Accept header gives to a type that it names; -1 when it does not. (RFC 9110, 12.5.1) */
static double weight(const char *accept, const char *type) {
    size_t n = strlen(type);
    for (const char *s = accept; *s;) {
        s += strspn(s, ", \t");
        size_t length = strcspn(s, ",");
        if (!strncasecmp(s, type, n) && (length == n || strchr("; \t", s[n]))) {
            const char *q = memmem(s, length, "q=", 2);
            return q ? strtod(q + 2, NULL) : 1;
        }
        s += length;
    }
    return -1;
}

/* Only for those who ask for it by name and like it better than JSON. */
static bool wants_png(const char *accept) {
    double png = weight(accept, "image/png"), json = weight(accept, "application/json");
    return png > 0 && png > json;
}

static ts_code read_request(ts_generation *g, ts_error *e) {
    ts_server *s = g->server;
    if (s->state == TS_STATE_LOADING) return ts_fail(e, TS_ELOADING, "the models are being loaded");
    if (s->state == TS_STATE_DRAINING) return ts_fail(e, TS_ESHUTDOWN, "the server is stopping");
    const char *type = ts_exchange_header(g->x, "content-type"), *accept = ts_exchange_header(g->x, "accept");
    if (type && !is_json(type))
        return ts_fail_param(e, TS_EMEDIATYPE, "", "the content-type must be application/json");
    size_t size;
    const char *body = ts_exchange_body(g->x, &size);
    const ts_request_context context = {.config = s->config,
                                        .setup = &s->setup,
                                        .models = s->models,
                                        .model_count = s->model_count,
                                        .group = s->groups[0]};
    ts_code rc = ts_images_request_read(&context, body, size, &g->r, e);
    if (rc) return rc;
    g->png = accept && wants_png(accept);
    if (g->png && g->r.stream)
        return ts_fail_param(e, TS_EINVAL, "stream",
                             "a stream cannot be the picture itself: Accept is image/png");
    if (g->png && g->r.request.n > 1)
        return ts_fail_param(e, TS_EINVAL, "n", "n must be 1 when the answer is the picture itself");
    g->answer =
        (ts_answer){.r = &g->r, .model = s->models[g->r.request.model], .created = (int64_t)time(NULL)};
    return TS_OK;
}

/* The engine speaks of width and height; the client may have said size. */
static void rename_param(const ts_generation *g, ts_error *e) {
    bool side = !strcmp(e->param, "width") || !strcmp(e->param, "height");
    if (side && !cJSON_HasObjectItem(g->r.json, "width")) strcpy(e->param, "size");
}

static void refuse(ts_generation *g, ts_error *e) {
    char after[16];
    ts_header headers[1];
    size_t n = 0;
    g->done = true;
    if (e->code == TS_EFULL) {
        snprintf(after, sizeof after, "%d", ts_sched_retry_after(g->server->sched));
        headers[n++] = (ts_header){"retry-after", after};
    }
    ts_reply_error_headers(g->x, e, headers, n);
}

static void submit(ts_generation *g) {
    ts_error e = {0};
    if (!ts_generation_submit(g, &e)) return;
    rename_param(g, &e);
    refuse(g, &e);
}

void ts_images_handle(void *server, ts_exchange *x) {
    ts_error e = {0};
    ts_generation *g = ts_generation_new(server, x);
    if (!g) {
        ts_fail(&e, TS_ENOMEM, "there is no memory for the request");
        ts_reply_error(x, &e);
        return;
    }
    if (read_request(g, &e)) {
        refuse(g, &e);
        return;
    }
    const ts_shape *shape = &g->r.request.shape;
    ts_exchange_note(x, "%d of %dx%d, %d steps, %s", g->r.request.n, shape->width, shape->height, shape->steps,
                     ts_mode_name(shape->parallel.mode));
    submit(g);
}
