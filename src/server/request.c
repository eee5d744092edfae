#include "server/request.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include "base/json.h"
#include "server/loras.h"

#define DEPTH       16
#define VALUES      1024
#define MAX_EXACT   9007199254740992.0 /* 2^53: beyond it JSON numbers are no longer whole */
#define OTHER_BYTES 4096
#define MODEL_BYTES 256
#define MAX_LEVEL   1e6
#define MAX_LAYERS  128 /* of a text encoder; the model's own number is checked later */

/* All fields as they came; pointers into the JSON. What is absent is NULL, 0 or the default put in before. */
typedef struct fields {
    const ts_request_context *context;
    const ts_original *original;
    const char *prompt, *negative, *long_prompt, *model, *size, *other;
    const char *output_format, *response_format, *sampler, *scheduler, *rng, *on_disconnect;
    int64_t n, width, height, steps, clip_skip, partial_images, output_compression;
    double guidance, guidance_rescale, strength;
    ts_interval guidance_interval;
    ts_level_list sigmas, timesteps;
    bool emphasis, stream, progress, has_seed;
    uint64_t seed;
    ts_size_condition sizes;
    const char *mode, *group_norm, *cfg_split;
    ts_parallel parallel;
    int lora_count;
    ts_lora_ref loras[TS_MAX_LORAS];
} fields;

typedef struct field field;
struct field {
    const char *name;
    enum { TEXT, CHOICE, INT, NUMBER, BOOL, CUSTOM } type;
    double low, high; /* TEXT: bytes */
    size_t offset;
    const char *choices; /* "a|b" */
    ts_code (*read)(const field *f, const char *param, const cJSON *v, fields *to, ts_error *e);
};

#define TO(member) offsetof(fields, member)

static bool one_of(const char *choices, const char *text) {
    size_t n = strlen(text);
    for (const char *s = choices; n && s; s = strchr(s, '|')) {
        if (*s == '|') s++;
        if (!strncmp(s, text, n) && (s[n] == '|' || !s[n])) return true;
    }
    return false;
}

static ts_code read_text(const field *f, const char *param, const cJSON *v, fields *to, ts_error *e) {
    if (!cJSON_IsString(v)) return ts_fail_param(e, TS_EINVAL, param, "%s must be a string", param);
    size_t n = strlen(v->valuestring);
    if (f->type == CHOICE && !one_of(f->choices, v->valuestring))
        return ts_fail_param(e, TS_EINVAL, param, "%s must be one of %s", param, f->choices);
    if (f->type == TEXT && ((double)n < f->low || (double)n > f->high))
        return ts_fail_param(e, TS_EINVAL, param, "%s must have %.0f to %.0f bytes, not %zu", param, f->low,
                             f->high, n);
    *(const char **)((char *)to + f->offset) = v->valuestring;
    return TS_OK;
}

static ts_code read_int(const char *param, const cJSON *v, double low, double high, int64_t *ret,
                        ts_error *e) {
    double x = cJSON_IsNumber(v) ? v->valuedouble : NAN;
    if (!(x >= low && x <= high) || x != floor(x))
        return ts_fail_param(e, TS_EINVAL, param, "%s must be a whole number from %.0f to %.0f", param, low,
                             high);
    *ret = (int64_t)x;
    return TS_OK;
}

static ts_code read_number(const char *param, const cJSON *v, double low, double high, double *ret,
                           ts_error *e) {
    double x = cJSON_IsNumber(v) ? v->valuedouble : NAN;
    if (!(x >= low && x <= high))
        return ts_fail_param(e, TS_EINVAL, param, "%s must be a number from %g to %g", param, low, high);
    *ret = x;
    return TS_OK;
}

static ts_code read_field(const field *f, const char *param, const cJSON *v, fields *to, ts_error *e) {
    void *at = (char *)to + f->offset;
    switch (f->type) {
    case TEXT:
    case CHOICE: return read_text(f, param, v, to, e);
    case INT: return read_int(param, v, f->low, f->high, at, e);
    case NUMBER: return read_number(param, v, f->low, f->high, at, e);
    case BOOL:
        if (!cJSON_IsBool(v)) return ts_fail_param(e, TS_EINVAL, param, "%s must be true or false", param);
        *(bool *)at = cJSON_IsTrue(v);
        return TS_OK;
    case CUSTOM: return f->read(f, param, v, to, e);
    }
    return TS_EINTERNAL;
}

/* ---- fields with a way of their own ---- */

static ts_code read_prompt(const field *f, const char *param, const cJSON *v, fields *to, ts_error *e) {
    field with_limit = *f;
    with_limit.type = TEXT;
    with_limit.high = (double)to->context->config->limits.max_prompt_bytes;
    return read_text(&with_limit, param, v, to, e);
}

static ts_code read_seed(const field *f, const char *param, const cJSON *v, fields *to, ts_error *e) {
    (void)f;
    to->has_seed = true;
    if (cJSON_IsString(v)) {
        char *end;
        const char *s = v->valuestring;
        errno = 0;
        unsigned long long n = strtoull(s, &end, 10);
        if (*s >= '0' && *s <= '9' && !*end && !errno) {
            to->seed = n;
            return TS_OK;
        }
    } else if (cJSON_IsNumber(v)) {
        double x = v->valuedouble;
        if (x >= 0 && x <= MAX_EXACT && x == floor(x)) {
            to->seed = (uint64_t)x;
            return TS_OK;
        }
    }
    return ts_fail_param(e, TS_EINVAL, param,
                         "%s must be a whole number from 0 to 2^53, or a string of digits up to 2^64 - 1",
                         param);
}

static ts_code read_limited(const field *f, const char *param, const cJSON *v, fields *to, ts_error *e) {
    const ts_config *c = to->context->config;
    const struct {
        size_t offset;
        int64_t low, high;
    } limits[] = {{TO(n), 1, c->limits.max_n},
                  {TO(steps), 1, c->limits.max_steps},
                  {TO(width), 8, c->limits.max_width},
                  {TO(height), 8, c->limits.max_height}};
    for (size_t i = 0; i < sizeof limits / sizeof *limits; i++)
        if (limits[i].offset == f->offset)
            return read_int(param, v, (double)limits[i].low, (double)limits[i].high,
                            (int64_t *)(void *)((char *)to + f->offset), e);
    return TS_EINTERNAL;
}

static ts_code read_guidance(const field *f, const char *param, const cJSON *v, fields *to, ts_error *e) {
    (void)f;
    return read_number(param, v, 0, to->context->config->limits.max_guidance_scale, &to->guidance, e);
}

/* The levels of a plan. What makes a list of them, the engine says (ts_sampler_plan_new). */
static ts_code read_levels(const field *f, const char *param, const cJSON *v, fields *to, ts_error *e) {
    ts_level_list *list = (ts_level_list *)(void *)((char *)to + f->offset);
    const int n = cJSON_IsArray(v) ? cJSON_GetArraySize(v) : 0;
    const int zero = n > 1 && f->offset == TO(sigmas) && cJSON_GetArrayItem(v, n - 1)->valuedouble == 0;
    const cJSON *level;
    if (n - zero < 1 || n - zero > TS_LIST_LEVELS || n - zero > to->context->config->limits.max_steps)
        return ts_fail_param(e, TS_EINVAL, param,
                             "%s must be a list of 1 to %d numbers, and no more than the limit of steps",
                             param, TS_LIST_LEVELS);
    list->count = 0;
    cJSON_ArrayForEach(level, v) {
        double x = 0;
        ts_code rc = read_number(param, level, 0, MAX_LEVEL, &x, e);
        if (rc) return rc;
        if (list->count < n - zero) list->at[list->count++] = (float)x;
    }
    return TS_OK;
}

/* [from, to] */
static ts_code read_interval(const field *f, const char *param, const cJSON *v, fields *to, ts_error *e) {
    double ends[2] = {NAN, NAN};
    for (int i = 0; i < 2 && cJSON_IsArray(v) && cJSON_GetArraySize(v) == 2; i++) {
        const cJSON *end = cJSON_GetArrayItem(v, i);
        if (cJSON_IsNumber(end)) ends[i] = end->valuedouble;
    }
    if (!(ends[0] >= 0 && ends[0] < ends[1] && ends[1] <= 1))
        return ts_fail_param(e, TS_EINVAL, param,
                             "%s must be two numbers from 0 to 1, the first less than the second", param);
    *(ts_interval *)(void *)((char *)to + f->offset) = (ts_interval){ends[0], ends[1]};
    return TS_OK;
}

/* "WxH" with nothing else in it. */
static bool parse_size(const char *text, int *w, int *h) {
    int n = 0;
    return strspn(text, "0123456789x") == strlen(text) && sscanf(text, "%5dx%5d%n", w, h, &n) == 2 &&
           !text[n];
}

/* "WxH" into two ints of fields.sizes. */
static ts_code read_size(const field *f, const char *param, const cJSON *v, fields *to, ts_error *e) {
    int *side = (int *)(void *)((char *)to + f->offset);
    if (cJSON_IsString(v) && parse_size(v->valuestring, &side[0], &side[1]) && side[0] >= 1 && side[1] >= 1 &&
        side[0] <= TS_MAX_SIZE && side[1] <= TS_MAX_SIZE)
        return TS_OK;
    return ts_fail_param(e, TS_EINVAL, param, "%s must be WIDTHxHEIGHT in pixels, each 1 to %d", param,
                         TS_MAX_SIZE);
}

static ts_code read_crop(const field *f, const char *param, const cJSON *v, fields *to, ts_error *e) {
    (void)f;
    int64_t left = 0, top = 0;
    if (!cJSON_IsArray(v) || cJSON_GetArraySize(v) != 2 ||
        read_int(param, cJSON_GetArrayItem(v, 0), 0, TS_MAX_SIZE, &left, NULL) ||
        read_int(param, cJSON_GetArrayItem(v, 1), 0, TS_MAX_SIZE, &top, NULL))
        return ts_fail_param(e, TS_EINVAL, param, "%s must be [left, top] in pixels, each 0 to %d", param,
                             TS_MAX_SIZE);
    to->sizes.crop_left = (int)left;
    to->sizes.crop_top = (int)top;
    return TS_OK;
}

static ts_code read_devices(const field *f, const char *param, const cJSON *v, fields *to, ts_error *e) {
    (void)f;
    if (cJSON_IsString(v) && one_of("all|auto", v->valuestring)) {
        to->parallel.ranks = 0;
        return TS_OK;
    }
    int64_t n = 0;
    if (!cJSON_IsNumber(v) || read_int(param, v, 1, TS_MAX_RANKS, &n, NULL))
        return ts_fail_param(e, TS_EINVAL, param, "%s must be a whole number from 1 to %d, all or auto",
                             param, TS_MAX_RANKS);
    to->parallel.ranks = (int)n;
    return TS_OK;
}

static ts_code read_partial(const field *f, const char *param, const cJSON *v, fields *to, ts_error *e) {
    (void)f;
    if (cJSON_IsString(v) && !strcmp(v->valuestring, "all")) {
        to->parallel.partial = INFINITY;
        return TS_OK;
    }
    if (read_number(param, v, 0, 1e6, &to->parallel.partial, NULL))
        return ts_fail_param(e, TS_EINVAL, param, "%s must be a number that is not negative, or all", param);
    return TS_OK;
}

static ts_code read_warmup(const field *f, const char *param, const cJSON *v, fields *to, ts_error *e) {
    (void)f;
    int64_t n = 0;
    ts_code rc = read_int(param, v, 0, TS_MAX_STEPS, &n, e);
    if (!rc) to->parallel.warmup = (int)n;
    return rc;
}

/* "NAME" or "NAME:SCALE", as a form can say it; no name has a colon. */
static bool split_lora(const char *text, ts_lora_ref *ret) {
    const char *colon = strchr(text, ':');
    size_t n = colon ? (size_t)(colon - text) : strlen(text);
    if (n >= sizeof ret->name) return false;
    memcpy(ret->name, text, n);
    ret->name[n] = 0;
    ret->scale = 1;
    if (!colon) return true;
    char *end;
    ret->scale = strtod(colon + 1, &end);
    return end > colon + 1 && !*end && fabs(ret->scale) <= TS_LORA_MAX_SCALE;
}

static bool read_lora(const cJSON *v, ts_lora_ref *ret) {
    if (cJSON_IsString(v)) return split_lora(v->valuestring, ret);
    const cJSON *member;
    const char *name = NULL;
    double scale = 1;
    cJSON_ArrayForEach(member, v) {
        if (!cJSON_IsObject(v)) return false;
        if (!strcmp(member->string, "name") && cJSON_IsString(member))
            name = member->valuestring;
        else if (strcmp(member->string, "scale") != 0 ||
                 read_number("scale", member, -TS_LORA_MAX_SCALE, TS_LORA_MAX_SCALE, &scale, NULL))
            return false;
    }
    if (!name || strchr(name, ':') || !split_lora(name, ret)) return false;
    ret->scale = scale;
    return true;
}

/* [{"name": "...", "scale": 1}]; their order means nothing. */
static ts_code read_loras(const field *f, const char *param, const cJSON *v, fields *to, ts_error *e) {
    (void)f;
    if (!cJSON_IsArray(v) || cJSON_GetArraySize(v) > TS_MAX_LORAS)
        return ts_fail_param(e, TS_EINVAL, param, "%s must be an array of at most %d LoRAs", param,
                             TS_MAX_LORAS);
    const cJSON *entry;
    cJSON_ArrayForEach(entry, v) if (!read_lora(entry, &to->loras[to->lora_count++])) return ts_fail_param(
        e, TS_EINVAL, param, "%s: a name of at most %d bytes and a scale from %g to %g are wanted", param,
        TS_LORA_NAME_BYTES - 1, -TS_LORA_MAX_SCALE, TS_LORA_MAX_SCALE);
    return TS_OK;
}

static ts_code unsupported(const field *f, const char *param, const cJSON *v, fields *to, ts_error *e) {
    (void)f;
    (void)v;
    (void)to;
    return ts_fail_param(e, TS_EUNSUPPORTED, param, "%s is not offered by this server", param);
}

static ts_code read_parallel(const field *f, const char *param, const cJSON *v, fields *to, ts_error *e);

#define CHOICES(member, text)       .type = CHOICE, .offset = TO(member), .choices = text
#define CUSTOM_AS(function, member) .type = CUSTOM, .offset = TO(member), .read = function

static const field table[] = {
    {"prompt", CUSTOM_AS(read_prompt, prompt)},
    {"negative_prompt", CUSTOM_AS(read_prompt, negative)},
    {"emphasis", BOOL, .offset = TO(emphasis)},
    {"long_prompt", CHOICES(long_prompt, "chunk|truncate")},
    {"model", TEXT, 1, MODEL_BYTES, TO(model)},
    {"n", CUSTOM_AS(read_limited, n)},
    {"size", TEXT, 1, 32, TO(size)},
    {"width", CUSTOM_AS(read_limited, width)},
    {"height", CUSTOM_AS(read_limited, height)},
    {"seed", CUSTOM_AS(read_seed, seed)},
    {"steps", CUSTOM_AS(read_limited, steps)},
    {"guidance_scale", CUSTOM_AS(read_guidance, guidance)},
    {"strength", NUMBER, 1e-6, 1, TO(strength)},
    {"clip_skip", INT, 0, MAX_LAYERS, TO(clip_skip)},
    {"guidance_rescale", NUMBER, 0, 1, TO(guidance_rescale)},
    {"guidance_interval", CUSTOM_AS(read_interval, guidance_interval)},
    {"original_size", CUSTOM_AS(read_size, sizes.original_width)},
    {"crop", .type = CUSTOM, .read = read_crop},
    {"target_size", CUSTOM_AS(read_size, sizes.target_width)},
    {"sampler", TEXT, 1, 64, TO(sampler)},
    {"scheduler", TEXT, 1, 64, TO(scheduler)},
    {"sigmas", CUSTOM_AS(read_levels, sigmas)},
    {"timesteps", CUSTOM_AS(read_levels, timesteps)},
    {"rng", CHOICES(rng, "torch-cpu|torch-cuda")},
    {"parallel", .type = CUSTOM, .read = read_parallel},
    {"loras", .type = CUSTOM, .read = read_loras},
    {"stream", BOOL, .offset = TO(stream)},
    {"progress", BOOL, .offset = TO(progress)},
    {"partial_images", INT, 0, 3, TO(partial_images)},
    {"on_disconnect", CHOICES(on_disconnect, "cancel|finish")},
    {"output_format", CHOICES(output_format, "png|jpeg|webp")},
    {"output_compression", INT, 0, 100, TO(output_compression)},
    {"response_format", CHOICES(response_format, "b64_json|url")},
    /* Without a meaning here; OpenAI's clients send them. */
    {"quality", TEXT, 0, OTHER_BYTES, TO(other)},
    {"background", TEXT, 0, OTHER_BYTES, TO(other)},
    {"style", TEXT, 0, OTHER_BYTES, TO(other)},
    {"moderation", TEXT, 0, OTHER_BYTES, TO(other)},
    {"user", TEXT, 0, OTHER_BYTES, TO(other)},
    {"priority", .type = CUSTOM, .read = unsupported},
    {"deadline_ms", .type = CUSTOM, .read = unsupported},
};

static const field parallel_table[] = {
    {"mode", CHOICES(mode, "pcpp|distrifusion|sync|naive|single")},
    {"devices", .type = CUSTOM, .read = read_devices},
    {"partial", .type = CUSTOM, .read = read_partial},
    {"warmup_steps", .type = CUSTOM, .read = read_warmup},
    {"cfg_split", CHOICES(cfg_split, "auto|on|off")},
    {"group_norm", CHOICES(group_norm, "sync|stale|corrected|local")},
};

/* Every member is a field of the table; null is absent, as OpenAI's clients send it. */
static ts_code read_object(const field *fields_of, size_t count, const char *prefix, const cJSON *object,
                           fields *to, ts_error *e) {
    const cJSON *v;
    cJSON_ArrayForEach(v, object) {
        char param[64];
        const field *f = NULL;
        for (size_t i = 0; i < count && !f; i++)
            if (!strcmp(fields_of[i].name, v->string)) f = &fields_of[i];
        snprintf(param, sizeof param, "%s%s", prefix, v->string);
        if (!f) return ts_fail_param(e, TS_EINVAL, param, "there is no field %s", param);
        ts_code rc = cJSON_IsNull(v) ? TS_OK : read_field(f, param, v, to, e);
        if (rc) return rc;
    }
    return TS_OK;
}

static ts_code read_parallel(const field *f, const char *param, const cJSON *v, fields *to, ts_error *e) {
    (void)f;
    if (!cJSON_IsObject(v)) return ts_fail_param(e, TS_EINVAL, param, "%s must be an object", param);
    return read_object(parallel_table, sizeof parallel_table / sizeof *parallel_table, "parallel.", v, to, e);
}

/* ---- what the fields mean together ---- */

static ts_code find_model(const fields *f, int *ret, ts_error *e) {
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
    return ts_fail_param(e, TS_EINVAL, param,
                         "width and height must be multiples of 8, from 8 to %lld and %s", (long long)high,
                         "no larger than the server's limits");
}

/* The largest side that a picture may have and that is not larger. */
static int below(int side) {
    return side < 8 ? 8 : side - side % 8;
}

static ts_code find_size(const fields *f, const ts_model_info *model, ts_shape *shape, ts_error *e) {
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
        if (!parse_size(f->size, &shape->width, &shape->height))
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
static ts_code take_list(const fields *f, ts_shape *shape, ts_error *e) {
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

static ts_code find_sampler(const fields *f, const ts_model_info *model, ts_shape *shape, ts_error *e) {
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
    ts_code rc = take_list(f, shape, e);
    return rc ? rc : ts_sampler_takes(shape->sampler, shape->scheduler, e);
}

static ts_code check_offered(const fields *f, ts_error *e) {
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

static ts_code find_loras(const fields *f, ts_shape *shape, ts_error *e) {
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

static ts_code make(const fields *f, ts_images_request *ret, ts_error *e) {
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
    r->shape.guided = f->guidance > 1;
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
    fields f = {.context = context,
                .original = original,
                .n = 1,
                .guidance = c->defaults.guidance_scale,
                .guidance_interval = {0, 1},
                .parallel = context->setup->parallel};
    ts_code rc = ts_json_parse(body, size, (ts_json_limits){DEPTH, VALUES}, &r.json, e);
    if (!rc && !cJSON_IsObject(r.json)) rc = ts_fail(e, TS_EINVAL, "the body must be a JSON object");
    if (!rc) rc = read_object(table, sizeof table / sizeof *table, "", r.json, &f, e);
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

bool ts_images_field_is_text(const char *name) {
    for (size_t i = 0; i < sizeof table / sizeof *table; i++)
        if (!strcmp(table[i].name, name))
            return table[i].type == TEXT || table[i].type == CHOICE || table[i].read == read_prompt ||
                   table[i].read == read_seed;
    return false;
}
