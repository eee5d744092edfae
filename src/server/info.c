/* The routes that only tell: models, health, metrics, the API's description. */
#include <stdlib.h>
#include <string.h>
#include "base/clock.h"
#include "server/loras.h"
#include "server/openapi.h"
#include "server/reply.h"
#include "server/server_internal.h"

#define TEXT_BYTES ((size_t)1024 * 1024)
#define LIST_BYTES ((size_t)16 * 1024 * 1024) /* a folder with tens of thousands of LoRAs */

ts_code ts_server_ready(const ts_server *s, ts_error *e) {
    if (s->state == TS_STATE_LOADING) return ts_fail(e, TS_ELOADING, "the models are being loaded");
    if (s->state == TS_STATE_DRAINING) return ts_fail(e, TS_ESHUTDOWN, "the server is stopping");
    return TS_OK;
}

/* While the models are being loaded they belong to another thread: true when x has been told so. */
static bool answered_loading(const ts_server *s, ts_exchange *x) {
    ts_error e = {0};
    if (s->sched || !ts_server_ready(s, &e)) return false;
    ts_reply_error(x, &e);
    return true;
}

static ts_code samplers(ts_buffer *b, const ts_model *m) {
    const char *comma = "";
    ts_code rc = ts_buffer_printf(b, "\"samplers\": [");
    for (int i = 0; i < ts_sampler_count() && !rc; i++) {
        if (!ts_model_takes_sampler(m, ts_sampler_at(i))) continue;
        rc = ts_buffer_printf(b, "%s\"%s\"", comma, ts_sampler_at(i)->name);
        comma = ", ";
    }
    if (!rc) rc = ts_buffer_printf(b, "], \"schedulers\": [");
    comma = "";
    for (int i = 0; i < TS_SCHEDULER_NAMED && !rc; i++) {
        if (!ts_model_takes_scheduler(m, (ts_scheduler)i)) continue;
        rc = ts_buffer_printf(b, "%s\"%s\"", comma, ts_scheduler_name((ts_scheduler)i));
        comma = ", ";
    }
    return rc ? rc : ts_buffer_printf(b, "]");
}

static ts_code embeddings(ts_buffer *b, const ts_model_info *m) {
    ts_code rc = ts_buffer_printf(b, ", \"embeddings\": [");
    for (int i = 0; i < m->embedding_count && !rc; i++) {
        if (i) rc = ts_buffer_append(b, ", ", 2);
        if (!rc) rc = ts_json_quote(b, m->embeddings[i]);
    }
    return rc ? rc : ts_buffer_append(b, "]", 1);
}

static ts_code model(ts_buffer *b, const ts_server *s, const ts_model *of) {
    const ts_model_info *m = ts_model_get_info(of);
    ts_code rc = ts_buffer_printf(b, "{\"id\": ");
    if (!rc) rc = ts_json_quote(b, m->id);
    if (!rc)
        rc = ts_buffer_printf(b,
                              ", \"object\": \"model\", \"created\": %lld, \"owned_by\": \"tessera\", "
                              "\"tessera\": {\"kind\": \"%s\", \"default_size\": \"%dx%d\", "
                              "\"prediction_type\": \"%s\", \"default_sampler\": \"%s\", \"max_tokens\": %d, "
                              "\"parameters\": %zu, ",
                              (long long)s->started_at, m->kind, m->default_width, m->default_height,
                              m->prediction, m->default_sampler, m->max_tokens, m->parameters);
    if (!rc) rc = samplers(b, of);
    if (!rc) rc = embeddings(b, m);
    return rc ? rc : ts_buffer_printf(b, "}}");
}

void ts_models_handle(void *server, ts_exchange *x) {
    const ts_server *s = server;
    if (answered_loading(s, x)) return;
    ts_buffer b;
    ts_buffer_init(&b, TEXT_BYTES);
    ts_code rc = ts_buffer_printf(&b, "{\"object\": \"list\", \"data\": [");
    for (int i = 0; i < s->model_count && !rc; i++) {
        if (i) rc = ts_buffer_append(&b, ", ", 2);
        if (!rc) rc = model(&b, s, s->models[i]);
    }
    if (!rc) rc = ts_buffer_printf(&b, "]}\n");
    ts_reply_buffer(x, rc, "application/json", &b);
}

void ts_model_handle(void *server, ts_exchange *x) {
    const ts_server *s = server;
    if (answered_loading(s, x)) return;
    const char *id = ts_exchange_path(x) + strlen("/v1/models/");
    const ts_model *found = NULL;
    for (int i = 0; i < s->model_count; i++)
        if (!strcmp(ts_model_get_info(s->models[i])->id, id)) found = s->models[i];
    if (!found) {
        ts_error e = {0};
        ts_fail_param(&e, TS_ENOTFOUND, "model", "there is no model %.100s", id);
        ts_reply_error(x, &e);
        return;
    }
    ts_buffer b;
    ts_buffer_init(&b, TEXT_BYTES);
    ts_code rc = model(&b, s, found);
    if (!rc) rc = ts_buffer_append(&b, "\n", 1);
    ts_reply_buffer(x, rc, "application/json", &b);
}

void ts_loras_handle(void *server, ts_exchange *x) {
    const ts_server *s = server;
    const char *folder = s->config->models.lora_folder;
    char **names = NULL;
    size_t count = 0;
    ts_error e = {0};
    if (*folder && ts_loras_list(folder, &names, &count, &e)) {
        ts_reply_error(x, &e);
        return;
    }
    ts_buffer b;
    ts_buffer_init(&b, LIST_BYTES);
    ts_code rc = ts_buffer_printf(&b, "{\"object\": \"list\", \"data\": [");
    for (size_t i = 0; i < count; i++) {
        if (!rc) rc = ts_buffer_printf(&b, "%s{\"object\": \"lora\", \"id\": ", i ? ", " : "");
        if (!rc) rc = ts_json_quote(&b, names[i]);
        if (!rc) rc = ts_buffer_append(&b, "}", 1);
        free(names[i]);
    }
    free(names);
    if (!rc) rc = ts_buffer_printf(&b, "]}\n");
    ts_reply_buffer(x, rc, "application/json", &b);
}

/* ---- as AUTOMATIC1111's front ends read them ---- */

static bool anyone_takes(const ts_server *s, const ts_sampler *sampler) {
    for (int i = 0; i < s->model_count; i++)
        if (ts_model_takes_sampler(s->models[i], sampler)) return true;
    return false;
}

void ts_sdapi_samplers_handle(void *server, ts_exchange *x) {
    const ts_server *s = server;
    if (answered_loading(s, x)) return;
    ts_buffer b;
    ts_buffer_init(&b, TEXT_BYTES);
    const char *comma = "";
    ts_code rc = ts_buffer_printf(&b, "[");
    for (int i = 0; i < ts_sampler_count() && !rc; i++) {
        const ts_sampler *one = ts_sampler_at(i);
        if (!anyone_takes(s, one)) continue;
        rc = ts_buffer_printf(&b, "%s{\"name\": \"%s\", \"aliases\": [\"%s\"", comma, one->label, one->name);
        for (int k = 0; one->aliases[k] && !rc; k++) rc = ts_buffer_printf(&b, ", \"%s\"", one->aliases[k]);
        if (!rc)
            rc = ts_buffer_printf(&b, "], \"options\": {%s}}",
                                  one->evaluations > 1 ? "\"second_order\": \"True\"" : "");
        comma = ", ";
    }
    if (!rc) rc = ts_buffer_printf(&b, "]\n");
    ts_reply_buffer(x, rc, "application/json", &b);
}

void ts_sdapi_schedulers_handle(void *server, ts_exchange *x) {
    (void)server;
    ts_buffer b;
    ts_buffer_init(&b, TEXT_BYTES);
    ts_code rc = ts_buffer_printf(&b, "[");
    for (int i = 0; i < TS_SCHEDULER_NAMED && !rc; i++)
        rc = ts_buffer_printf(
            &b,
            "%s{\"name\": \"%s\", \"label\": \"%s\", \"aliases\": null, \"default_rho\": %d, "
            "\"need_inner_model\": false}",
            i ? ", " : "", ts_scheduler_name((ts_scheduler)i), ts_scheduler_label((ts_scheduler)i),
            i == TS_SCHEDULER_KARRAS ? 7 : -1);
    if (!rc) rc = ts_buffer_printf(&b, "]\n");
    ts_reply_buffer(x, rc, "application/json", &b);
}

void ts_health_handle(void *server, ts_exchange *x) {
    ts_error e = {0};
    if (ts_server_ready(server, &e)) {
        ts_reply_error(x, &e);
        return;
    }
    ts_buffer b;
    ts_buffer_init(&b, TEXT_BYTES);
    ts_code rc = ts_buffer_printf(&b, "{\"status\": \"ok\", \"version\": \"%s\"}\n", TS_VERSION);
    ts_reply_buffer(x, rc, "application/json", &b);
}

void ts_metrics_handle(void *server, ts_exchange *x) {
    ts_server *s = server;
    const char *names[TS_METRIC_ROUTES];
    ts_sched_stats stats = {0};
    if (s->sched) ts_sched_get_stats(s->sched, &stats);
    stats.waiting += s->edit_pictures;
    ts_assert(ts_route_count < TS_METRIC_ROUTES);
    for (size_t i = 0; i < ts_route_count; i++) names[i] = ts_routes[i].path;
    ts_metrics_now now = {.route_names = names,
                          .route_count = (int)ts_route_count,
                          .sched = s->sched ? &stats : NULL,
                          .ready = s->state == TS_STATE_READY,
                          .models = s->sched ? s->model_count : 0,
                          .connections = ts_http_connections(s->http),
                          .uptime_s = ts_seconds(ts_now_ns() - s->started_ns)};
    ts_buffer b;
    ts_buffer_init(&b, TEXT_BYTES);
    ts_code rc = ts_metrics_write(&b, &s->metrics, &now);
    ts_reply_buffer(x, rc, "text/plain; version=0.0.4; charset=utf-8", &b);
}

void ts_openapi_handle(void *server, ts_exchange *x) {
    (void)server;
    ts_buffer b;
    ts_buffer_init(&b, TEXT_BYTES);
    ts_code rc = ts_buffer_append(&b, ts_openapi, ts_openapi_size);
    ts_reply_buffer(x, rc, "application/yaml", &b);
}
