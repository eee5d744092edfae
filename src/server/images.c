/* POST /v1/images/generations and /v1/images/edits: what is asked for, and whether it can be. */
#include <stdlib.h>
#include <string.h>
#include "base/alloc.h"
#include "base/png.h"
#include "server/form.h"
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
            const char *end = s + length;
            for (const char *p = s + n; (p = memchr(p, ';', (size_t)(end - p)));) {
                p += 1 + strspn(p + 1, " \t");
                if (!strncasecmp(p, "q=", 2)) return strtod(p + 2, NULL);
            }
            return 1;
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

/* What both kinds of request have in common; original as in ts_images_request_read. */
static ts_code read_fields(ts_generation *g, const char *body, size_t size, const ts_original *original,
                           ts_error *e) {
    ts_server *s = g->server;
    const char *accept = ts_exchange_header(g->x, "accept");
    const ts_request_context context = {.config = s->config,
                                        .setup = &s->setup,
                                        .models = s->models,
                                        .model_count = s->model_count,
                                        .group = s->groups[0]};
    ts_code rc = ts_images_request_read(&context, body, size, original, &g->r, e);
    if (rc) return rc;
    g->png = accept && wants_png(accept);
    if (g->png && g->r.stream)
        return ts_fail_param(e, TS_EINVAL, "stream",
                             "a stream cannot be the picture itself: Accept is image/png");
    if (g->png && g->r.request.n > 1)
        return ts_fail_param(e, TS_EINVAL, "n", "n must be 1 when the answer is the picture itself");
    g->answer = (ts_answer){.r = &g->r,
                            .model = s->models[g->r.request.model],
                            .event = original ? "image_edit" : "image_generation",
                            .created = (int64_t)time(NULL)};
    const ts_shape *shape = &g->r.request.shape;
    ts_exchange_note(g->x, "%d of %dx%d, %d steps, %s", g->r.request.n, shape->width, shape->height,
                     shape->steps, ts_mode_name(shape->parallel.mode));
    return TS_OK;
}

static ts_code read_json(ts_generation *g, ts_error *e) {
    const char *type = ts_exchange_header(g->x, "content-type");
    if (type && !is_json(type))
        return ts_fail_param(e, TS_EMEDIATYPE, "", "the content-type must be application/json");
    size_t size;
    const char *body = ts_exchange_body(g->x, &size);
    return read_fields(g, body, size, NULL, e);
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
    if (!ts_generation_submit(g, &e) || !g->x) return;
    rename_param(g, &e);
    refuse(g, &e);
}

/* Pictures of edits count as waiting from the beginning, so that what max_queue bounds is all there is. */
static ts_code find_room(ts_server *s, size_t pictures, ts_error *e) {
    ts_sched_stats stats;
    ts_sched_get_stats(s->sched, &stats);
    const size_t waiting = (size_t)(stats.waiting + s->edit_pictures);
    if (waiting + pictures <= (size_t)s->config->scheduler.max_queue) return TS_OK;
    s->metrics.refused++;
    return ts_fail(e, TS_EFULL, "the queue is full");
}

/* For a request, which is told so if there will never be enough. */
static ts_code find_room_for(const ts_generation *g, ts_error *e) {
    const int n = g->r.request.n, most = (int)g->server->config->scheduler.max_queue;
    if (n > most) return ts_fail_param(e, TS_EINVAL, "n", "the queue holds %d pictures in all", most);
    return find_room(g->server, (size_t)n, e);
}

/* NULL: the exchange has been answered. */
static ts_generation *begin(ts_server *s, ts_exchange *x) {
    ts_error e = {0};
    ts_generation *g = ts_generation_new(s, x);
    if (!g) {
        ts_fail(&e, TS_ENOMEM, "there is no memory for the request");
        ts_reply_error(x, &e);
        return NULL;
    }
    if (!ts_server_ready(s, &e)) return g;
    refuse(g, &e);
    return NULL;
}

void ts_images_handle(void *server, ts_exchange *x) {
    ts_error e = {0};
    ts_generation *g = begin(server, x);
    if (!g) return;
    if (read_json(g, &e) || find_room_for(g, &e))
        refuse(g, &e);
    else
        submit(g);
}

/* ---- edits: their pictures are read on threads of the loop's pool ---- */

/* Not on all of its four: finished pictures are encoded there too. */
#define DECODERS 2

typedef struct ts_edit {
    uv_work_t work;
    struct ts_edit *next;
    ts_generation *g; /* one of its references */
    ts_form *form;
    const ts_form_part *image, *mask; /* mask: NULL where there is none */
    ts_error error;
} edit;

static void start_decoding(ts_server *s);

static void edit_free(edit *d) {
    ts_form_free(d->form);
    free(d);
}

static void decode(uv_work_t *work) {
    edit *d = work->data;
    const ts_shape *shape = &d->g->r.request.shape;
    const size_t most = (size_t)d->g->server->config->limits.max_input_pixels;
    ts_source_read(d->image->bytes.data, d->image->bytes.size, d->mask ? d->mask->bytes.data : NULL,
                   d->mask ? d->mask->bytes.size : 0, shape->width, shape->height, most, &d->g->source,
                   &d->error);
}

static void finish_edit(edit *d, int status) {
    ts_generation *g = d->g;
    ts_request *r = &g->r.request;
    g->server->edit_pictures -= r->n;       /* from here on they are the scheduler's */
    if (g->error.code) d->error = g->error; /* it has been cancelled */
    if (status && !d->error.code) ts_fail(&d->error, TS_ECANCELLED, "the picture was not read");
    if (d->error.code || (!g->x && !g->r.finish)) {
        if (g->x) refuse(g, &d->error);
    } else {
        const bool inpaint = g->source.mask != NULL;
        r->params.image = g->source.rgb;
        r->params.mask = g->source.mask;
        r->shape.task = inpaint ? TS_TASK_INPAINT : TS_TASK_IMAGE;
        r->shape.strength = g->r.strength > 0 ? g->r.strength
                            : inpaint         ? TS_STRENGTH_INPAINT
                                              : TS_STRENGTH_IMAGE;
        submit(g);
        r->params.image = r->params.mask = NULL; /* the scheduler has copies */
    }
    ts_source_free(&g->source);
    edit_free(d);
    ts_server_drain_sched(g->server);
    ts_generation_release(g);
}

static void decoded(uv_work_t *work, int status) {
    edit *d = work->data;
    ts_server *s = d->g->server;
    s->decoding--;
    finish_edit(d, status);
    start_decoding(s);
}

static void start_decoding(ts_server *s) {
    edit *d;
    while (s->decoding < DECODERS && (d = s->edits)) {
        s->edits = d->next;
        d->g->edit = NULL;
        if (!d->g->error.code && !uv_queue_work(&s->loop, &d->work, decode, decoded))
            s->decoding++;
        else
            finish_edit(d, UV_ECANCELED);
    }
}

void ts_images_drop_edit(ts_generation *g) {
    ts_server *s = g->server;
    edit *d = g->edit, **at = &s->edits;
    while (*at != d) at = &(*at)->next;
    *at = d->next;
    if (!d->next) s->edits_end = at;
    g->edit = NULL;
    finish_edit(d, UV_ECANCELED);
}

ts_code ts_images_admit(void *server, ts_error *e) {
    ts_server *s = server;
    ts_code rc = ts_server_ready(s, e);
    return rc ? rc : find_room(s, ts_http_forms(s->http) + 1, e);
}

static bool is_file(const char *name) {
    return !strcmp(name, "image") || !strcmp(name, "mask");
}

/* One file of that name, with something in it. */
static ts_code find_file(const ts_form *form, const char *name, const ts_form_part **ret, ts_error *e) {
    int count;
    *ret = ts_form_find(form, name, &count);
    if (count > 1) return ts_fail_param(e, TS_EUNSUPPORTED, name, "there can be only one %s", name);
    if (*ret && !(*ret)->bytes.size) return ts_fail_param(e, TS_EINVAL, name, "%s is empty", name);
    return TS_OK;
}

static ts_code read_edit(edit *d, ts_error *e) {
    ts_original original;
    ts_buffer json;
    ts_buffer_init(&json, SIZE_MAX); /* the body, which it is made of, has a limit */
    d->form = ts_exchange_take_form(d->g->x);
    ts_code rc = find_file(d->form, "image", &d->image, e);
    if (!rc) rc = find_file(d->form, "mask", &d->mask, e);
    if (!rc && !d->image) rc = ts_fail_param(e, TS_EINVAL, "image", "image is required");
    if (!rc) {
        rc = ts_png_size(d->image->bytes.data, d->image->bytes.size, &original.width, &original.height, e);
        if (rc) {
            rc = ts_error_context(e, rc, "image");
            strcpy(e->param, "image");
        }
    }
    if (!rc)
        rc = ts_form_json(d->form, is_file, ts_images_field_is_text,
                          (size_t)d->g->server->config->server.body_limit, &json, e);
    if (!rc) rc = read_fields(d->g, json.data, json.size, &original, e);
    ts_buffer_free(&json);
    return rc;
}

static void enqueue(edit *d) {
    ts_server *s = d->g->server;
    s->edit_pictures += d->g->r.request.n;
    if (!s->edits) s->edits_end = &s->edits;
    *s->edits_end = d;
    s->edits_end = &d->next;
    d->g->edit = d;
    start_decoding(s);
}

void ts_images_edit_handle(void *server, ts_exchange *x) {
    ts_error e = {0};
    ts_generation *g = begin(server, x);
    if (!g) return;
    edit *d = ts_new0(edit);
    ts_code rc = d ? TS_OK : ts_fail(&e, TS_ENOMEM, "there is no memory for the request");
    if (d) {
        d->g = g;
        d->work.data = d;
        rc = read_edit(d, &e);
    }
    if (!rc) rc = find_room_for(g, &e);
    if (!rc) {
        g->references++; /* the edit's */
        enqueue(d);
        return;
    }
    if (d) edit_free(d);
    refuse(g, &e);
}
