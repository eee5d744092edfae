/* What the fields of an image request mean together, and to this server. */
#include "server/request.h"

#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include "base/json.h"
#include "server/fields.h"
#include "server/loras.h"

#define DEPTH  16
#define VALUES 1024

static ts_code find_model(const ts_fields *f, int *ret, ts_error *e) {
    const ts_request_context *c = f->context;
    for (int i = 0; i < c->model_count; i++)
        if (!f->model || !strcmp(f->model, ts_model_get_info(c->models[i])->id)) {
            *ret = i;
            return TS_OK;
        }
    return ts_fail_param(e, TS_ENOTFOUND, "model", "there is no model %.100s; GET /v1/models lists them",
                         f->model);
}

static ts_code check_side(const char *param, int value, int64_t high, ts_error *e) {
    if (value >= 8 && value <= high && value % 8 == 0) return TS_OK;
    if (!strcmp(param, "image"))
        return ts_fail_param(
            e, TS_EINVAL, param,
            "the picture is larger than the server makes any, %lld each way: a size makes it smaller",
            (long long)high);
    return ts_fail_param(e, TS_EINVAL, param,
                         "width and height must be multiples of 8, from 8 to %lld and %s", (long long)high,
                         "no larger than the server's limits");
}

/* The largest side that a picture may have and that is not larger. */
static int below(int side) {
    return side < 8 ? 8 : side - side % 8;
}

static ts_code find_size(const ts_fields *f, const ts_model_info *model, ts_shape *shape, ts_error *e) {
    const ts_config *c = f->context->config;
    bool named = f->size && strcmp(f->size, "auto");
    const char *width = "width", *height = "height";
    if (named && (f->width || f->height))
        return ts_fail_param(e, TS_EINVAL, f->width ? "width" : "height",
                             "either size, or width and height: not both");
    if (!f->width != !f->height)
        return ts_fail_param(e, TS_EINVAL, f->width ? "height" : "width", "width and height come together");
    if (named) {
        width = height = "size";
        if (!ts_size_parse(f->size, &shape->width, &shape->height))
            return ts_fail_param(e, TS_EINVAL, "size", "size must be WIDTHxHEIGHT in pixels, or auto");
    } else if (f->width) {
        shape->width = (int)f->width;
        shape->height = (int)f->height;
    } else if (f->original) {
        width = height = "image";
        shape->width = below(f->original->width);
        shape->height = below(f->original->height);
    } else if (c->defaults.size.width) {
        shape->width = c->defaults.size.width;
        shape->height = c->defaults.size.height;
    } else {
        shape->width = model->default_width;
        shape->height = model->default_height;
    }
    ts_code rc = check_side(width, shape->width, c->limits.max_width, e);
    if (!rc) rc = check_side(height, shape->height, c->limits.max_height, e);
    if (!rc && (int64_t)shape->width * shape->height > c->limits.max_pixels)
        rc = ts_fail_param(e, TS_EINVAL, width, "%dx%d has more than %lld pixels", shape->width,
                           shape->height, (long long)c->limits.max_pixels);
    return rc;
}

/* A list is a scheduler and a number of steps. */
static ts_code take_list(const ts_fields *f, ts_shape *shape, ts_error *e) {
    const bool sigmas = f->sigmas.count > 0;
    shape->steps = f->steps ? (int)f->steps : (int)f->context->config->defaults.steps;
    if (!sigmas && !f->timesteps.count) return TS_OK;
    if (sigmas && f->timesteps.count)
        return ts_fail_param(e, TS_EINVAL, "timesteps", "either sigmas or timesteps: not both");
    if (shape->scheduler != TS_SCHEDULER_DEFAULT)
        return ts_fail_param(e, TS_EINVAL, "scheduler", "either a scheduler or a list: not both");
    shape->scheduler = sigmas ? TS_SCHEDULER_SIGMAS : TS_SCHEDULER_TIMESTEPS;
    shape->levels = sigmas ? f->sigmas : f->timesteps;
    if (f->steps && f->steps != shape->levels.count)
        return ts_fail_param(e, TS_EINVAL, "steps", "steps must be left out or %d, as many as %s",
                             shape->levels.count, ts_scheduler_name(shape->scheduler));
    shape->steps = shape->levels.count;
    return TS_OK;
}

static ts_code find_sampler(const ts_fields *f, const ts_model_info *model, ts_shape *shape, ts_error *e) {
    const char *name = f->sampler ? f->sampler : model->default_sampler;
    shape->sampler =
        f->sampler || !f->context->setup->sampler ? ts_sampler_find(name) : f->context->setup->sampler;
    if (!shape->sampler)
        return ts_fail_param(e, TS_EINVAL, "sampler", "there is no sampler %.64s; GET /v1/models lists them",
                             name);
    const int scheduler = f->scheduler ? ts_scheduler_find(f->scheduler) : TS_SCHEDULER_DEFAULT;
    if (scheduler < 0)
        return ts_fail_param(e, TS_EINVAL, "scheduler",
                             "there is no scheduler %.64s; GET /v1/models lists them", f->scheduler);
    shape->scheduler = (ts_scheduler)scheduler;
    shape->has_eta = f->eta >= 0;
    if (shape->has_eta) shape->eta = f->eta;
    ts_code rc = take_list(f, shape, e);
    return rc ? rc : ts_sampler_takes(shape->sampler, shape->scheduler, e);
}

static ts_code check_offered(const ts_fields *f, ts_error *e) {
    if (f->output_format && strcmp(f->output_format, "png"))
        return ts_fail_param(e, TS_EUNSUPPORTED, "output_format", "output_format: only png is offered");
    if (f->response_format && strcmp(f->response_format, "b64_json"))
        return ts_fail_param(e, TS_EUNSUPPORTED, "response_format",
                             "response_format: only b64_json is offered");
    if (f->partial_images > 0)
        return ts_fail_param(e, TS_EUNSUPPORTED, "partial_images", "partial_images: only 0 is offered");
    if (f->strength > 0 && !f->original)
        return ts_fail_param(e, TS_EINVAL, "strength", "strength goes with a picture: POST /v1/images/edits");
    if (f->progress && !f->stream) return ts_fail_param(e, TS_EINVAL, "progress", "progress needs stream");
    return TS_OK;
}

static int by_name(const void *a, const void *b) {
    return strcmp(((const ts_lora_ref *)a)->name, ((const ts_lora_ref *)b)->name);
}

static ts_code find_loras(const ts_fields *f, ts_shape *shape, ts_error *e) {
    const char *folder = f->context->config->models.lora_folder;
    if (f->lora_count && !*folder)
        return ts_fail_param(e, TS_EUNSUPPORTED, "loras",
                             "loras is not offered by this server: it has no folder");
    for (int i = 0; i < f->lora_count; i++) {
        ts_code rc = ts_loras_find(folder, f->loras[i].name, &shape->loras[i], e);
        if (rc) return rc;
        shape->loras[i].scale = f->loras[i].scale;
    }
    shape->lora_count = f->lora_count;
    qsort(shape->loras, (size_t)shape->lora_count, sizeof *shape->loras, by_name);
    for (int i = 1; i < shape->lora_count; i++)
        if (!by_name(&shape->loras[i - 1], &shape->loras[i]))
            return ts_fail_param(e, TS_EINVAL, "loras", "loras: %s comes twice", shape->loras[i].name);
    return TS_OK;
}

static ts_code make(const ts_fields *f, ts_images_request *ret, ts_error *e) {
    const ts_setup *setup = f->context->setup;
    ts_request *r = &ret->request;
    if (!f->prompt) return ts_fail_param(e, TS_EINVAL, "prompt", "prompt is required");
    ts_code rc = check_offered(f, e);
    if (!rc) rc = find_model(f, &r->model, e);
    if (rc) return rc;
    const ts_model_info *model = ts_model_get_info(f->context->models[r->model]);
    rc = find_size(f, model, &r->shape, e);
    if (!rc) rc = find_sampler(f, model, &r->shape, e);
    if (!rc) rc = find_loras(f, &r->shape, e);
    if (rc) return rc;

    r->shape.parallel = f->parallel;
    /* Names that the tables allow are the engine's. */
    if (f->mode) r->shape.parallel.mode = (ts_mode)ts_mode_find(f->mode);
    if (f->group_norm)
        r->shape.parallel.group_norm = (ts_group_norm_mode)ts_group_norm_mode_find(f->group_norm);
    if (f->cfg_split) r->shape.parallel.cfg_split = (ts_cfg_split)ts_cfg_split_find(f->cfg_split);
    r->shape.dtype = setup->dtype >= 0                          ? (ts_dtype)setup->dtype
                     : ts_group_prefers_bf16(f->context->group) ? TS_BF16
                                                                : TS_F32;
    r->shape.guided = ts_model_guides(f->context->models[r->model], f->guidance);
    r->params.prompt = f->prompt;
    r->params.negative = f->negative;
    r->params.guidance_scale = f->guidance;
    r->params.guidance_rescale = f->guidance_rescale;
    r->params.guidance_interval = f->guidance_interval;
    r->n = (int)f->n;
    r->params.seed = f->seed;
    if (f->rng) r->params.rng = (ts_rng_kind)ts_rng_kind_find(f->rng);
    if (!f->has_seed) {
        /* 32 bits, which is all that PyTorch's generator takes, and short to write down. */
        uint32_t seed;
        if (getrandom(&seed, sizeof seed, 0) != sizeof seed)
            return ts_fail(e, TS_EINTERNAL, "there is no randomness for a seed");
        r->params.seed = seed;
    }
    r->params.clip_skip = (int)f->clip_skip;
    r->params.sizes = f->sizes;
    r->params.emphasis = f->emphasis;
    r->params.truncate = f->long_prompt && !strcmp(f->long_prompt, "truncate");
    const ts_model *m = f->context->models[r->model];
    rc = ts_model_check_params(m, &r->params, e);
    if (!rc)
        rc = ts_model_measure_prompts(m, &r->params, r->shape.guided,
                                      (int)f->context->config->limits.max_prompt_chunks, &r->shape.chunks,
                                      &ret->prompt_tokens, e);
    if (rc) return rc;
    ret->strength = f->strength;
    ret->stream = f->stream;
    ret->progress = f->progress;
    ret->finish = f->on_disconnect && !strcmp(f->on_disconnect, "finish");
    return TS_OK;
}

ts_code ts_images_request_read(const ts_request_context *context, const char *body, size_t size,
                               const ts_original *original, ts_images_request *ret, ts_error *e) {
    const ts_config *c = context->config;
    ts_images_request r = {0};
    ts_fields f = {.context = context,
                   .original = original,
                   .n = 1,
                   .guidance = c->defaults.guidance_scale,
                   .guidance_interval = {0, 1},
                   .eta = -1, /* absent */
                   .parallel = context->setup->parallel};
    ts_code rc = ts_json_parse(body, size, (ts_json_limits){DEPTH, VALUES}, &r.json, e);
    if (!rc && !cJSON_IsObject(r.json)) rc = ts_fail(e, TS_EINVAL, "the body must be a JSON object");
    if (!rc) rc = ts_fields_read(r.json, &f, e);
    if (!rc) rc = make(&f, &r, e);
    if (rc) {
        ts_images_request_free(&r);
        return rc;
    }
    *ret = r;
    return TS_OK;
}

void ts_images_request_free(ts_images_request *r) {
    cJSON_Delete(r->json);
    *r = (ts_images_request){0};
}
