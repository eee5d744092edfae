/* From the configuration to a scheduler: models, groups, compiled shapes. */
#include <stdlib.h>
#include <string.h>
#include "base/alloc.h"
#include "base/clock.h"
#include "base/log.h"
#include "server/server_internal.h"

static ts_code fuse(ts_server *s, ts_model *model, ts_error *e) {
    const ts_text_list *list = &s->config->models.lora;
    ts_lora_use uses[TS_MAX_LORAS];
    ts_code rc = ts_lora_uses_parse((const char *const *)list->items, list->count, uses, e);
    if (!rc) rc = ts_model_fuse(model, uses, list->count, e);
    ts_lora_uses_free(uses);
    return rc;
}

static ts_code load_models(ts_server *s, ts_error *e) {
    const ts_text_list *paths = &s->config->models.path;
    s->models = ts_array0(ts_model *, paths->count);
    if (!s->models) return ts_fail(e, TS_ENOMEM, "the models");
    for (size_t i = 0; i < paths->count && !atomic_load(&s->abandon); i++) {
        uint64_t begin = ts_now_ns();
        const char *vae = i == 0 && s->config->models.vae[0] ? s->config->models.vae : NULL;
        ts_code rc = ts_model_load(paths->items[i], vae, &s->models[i], e);
        if (rc) return rc;
        s->model_count++;
        if (i == 0) rc = fuse(s, s->models[0], e);
        if (!rc && *s->config->models.embeddings_folder)
            rc = ts_model_add_embeddings(s->models[i], s->config->models.embeddings_folder, e);
        if (rc) return rc;
        const ts_model_info *m = ts_model_get_info(s->models[i]);
        ts_log(TS_LOG_INFO, "model %s: %s, %.1f million parameters, %dx%d, predicts %s, loaded in %.2f s",
               m->id, m->kind, (double)m->parameters * 1e-6, m->default_width, m->default_height,
               m->prediction, ts_seconds(ts_now_ns() - begin));
        if (!ts_model_takes_sampler(s->models[i], ts_sampler_find(m->default_sampler)))
            ts_log(TS_LOG_WARNING,
                   "%s: its scheduler asks for %s, which cannot run on it: requests must name a sampler",
                   m->id, m->default_sampler);
        for (size_t k = 0; k < i; k++)
            if (!strcmp(ts_model_get_info(s->models[k])->id, m->id))
                return ts_fail_param(e, TS_ECONFLICT, "path", "two models are called %s", m->id);
    }
    return TS_OK;
}

ts_code ts_server_check_models(const ts_config *config, ts_error *e) {
    ts_server *s = ts_new0(ts_server);
    if (!s) return ts_fail(e, TS_ENOMEM, "the models");
    s->config = config;
    ts_code rc = load_models(s, e);
    for (int i = 0; i < s->model_count; i++) ts_model_free(s->models[i]);
    free(s->models);
    free(s);
    return rc;
}

static ts_code open_groups(ts_server *s, ts_error *e) {
    const ts_device_spec *devices = s->setup.devices;
    s->groups = ts_array0(ts_group *, (size_t)s->setup.group_count);
    if (!s->groups) return ts_fail(e, TS_ENOMEM, "the groups");
    for (int g = 0; g < s->setup.group_count; g++) {
        int size = s->setup.group_sizes[g];
        ts_code rc = ts_group_open(devices, size, &s->groups[g], e);
        if (rc) return ts_error_context(e, rc, "group %d", g);
        s->group_count++;
        ts_group_set_program_bytes(s->groups[g], (size_t)s->config->devices.program_memory << 20);
        ts_log(TS_LOG_INFO, "group %d: %d %s device%s of %d thread%s", g, size, devices->backend->name,
               size == 1 ? "" : "s", devices->threads, devices->threads == 1 ? "" : "s");
        devices += size;
    }
    return TS_OK;
}

static ts_code compile(ts_server *s, ts_group *group, ts_model *model, int i, ts_error *e) {
    const ts_setup *u = &s->setup;
    const ts_sampler *sampler =
        u->sampler ? u->sampler : ts_sampler_find(ts_model_get_info(model)->default_sampler);
    ts_shape shape = {.width = u->shapes[i].width,
                      .height = u->shapes[i].height,
                      .steps = u->shapes[i].steps,
                      .sampler = sampler,
                      .parallel = u->parallel,
                      .dtype = u->dtype >= 0                  ? (ts_dtype)u->dtype
                               : ts_group_prefers_bf16(group) ? TS_BF16
                                                              : TS_F32,
                      .guided = ts_model_guides(model, s->config->defaults.guidance_scale)};
    uint64_t begin = ts_now_ns();
    ts_code rc = ts_group_check(group, model, &shape, e);
    if (!rc) rc = ts_group_compile(group, model, &shape, u->shapes[i].batch, e);
    if (rc) return ts_error_context(e, rc, "compiling %dx%d", shape.width, shape.height);
    ts_log(TS_LOG_INFO, "compiled %dx%d, %d at a time, in %.2f s", shape.width, shape.height,
           u->shapes[i].batch, ts_seconds(ts_now_ns() - begin));
    return TS_OK;
}

static ts_code compile_all(ts_server *s, ts_error *e) {
    for (int m = 0; m < s->model_count; m++)
        for (int g = 0; g < s->group_count; g++)
            for (int i = 0; i < s->setup.shape_count && !atomic_load(&s->abandon); i++) {
                ts_code rc = compile(s, s->groups[g], s->models[m], i, e);
                if (rc) return rc;
            }
    return TS_OK;
}

ts_code ts_server_load(ts_server *s, ts_error *e) {
    const ts_sched_config config = {.max_queue = (int)s->config->scheduler.max_queue,
                                    .max_batch = (int)s->config->scheduler.max_batch,
                                    .max_wait_ms = (int)s->config->scheduler.max_wait_ms,
                                    .lora_folder =
                                        *s->config->models.lora_folder ? s->config->models.lora_folder : NULL,
                                    .lora_bytes = (size_t)s->config->models.lora_memory << 20,
                                    .on_event = ts_images_on_event,
                                    .arg = s};
    ts_code rc = load_models(s, e);
    if (!rc) rc = open_groups(s, e);
    if (!rc) rc = compile_all(s, e);
    if (!rc && atomic_load(&s->abandon)) rc = ts_fail(e, TS_ESHUTDOWN, "stopped while loading");
    if (!rc) rc = ts_sched_new(&config, s->models, s->model_count, s->groups, s->group_count, &s->loaded, e);
    return rc;
}

void ts_server_unload(ts_server *s) {
    ts_sched_free(s->loaded);
    for (int g = 0; g < s->group_count; g++) ts_group_close(s->groups[g]);
    for (int m = 0; m < s->model_count; m++) ts_model_free(s->models[m]);
    free(s->groups);
    free(s->models);
    s->sched = s->loaded = NULL;
    s->groups = NULL;
    s->models = NULL;
    s->group_count = s->model_count = 0;
}
