#include "server/fields.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/config.h"
#include "base/json.h"

#define MAX_EXACT   9007199254740992.0 /* 2^53: beyond it JSON numbers are no longer whole */
#define OTHER_BYTES 4096
#define MODEL_BYTES 256
#define MAX_LEVEL   1e6
#define MAX_LAYERS  128 /* of a text encoder; the model's own number is checked later */

typedef struct field field;
struct field {
    const char *name;
    enum { TEXT, CHOICE, INT, NUMBER, BOOL, CUSTOM } type;
    double low, high; /* TEXT: bytes */
    size_t offset;
    const char *choices; /* "a|b" */
    ts_code (*read)(const field *f, const char *param, const cJSON *v, ts_fields *to, ts_error *e);
};

#define TO(member) offsetof(ts_fields, member)

static ts_code read_text(const field *f, const char *param, const cJSON *v, ts_fields *to, ts_error *e) {
    if (!cJSON_IsString(v)) return ts_fail_param(e, TS_EINVAL, param, "%s must be a string", param);
    size_t n = strlen(v->valuestring);
    if (f->type == CHOICE && !ts_config_choice(f->choices, v->valuestring))
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

static ts_code read_field(const field *f, const char *param, const cJSON *v, ts_fields *to, ts_error *e) {
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

static ts_code read_prompt(const field *f, const char *param, const cJSON *v, ts_fields *to, ts_error *e) {
    field with_limit = *f;
    with_limit.type = TEXT;
    with_limit.high = (double)to->context->config->limits.max_prompt_bytes;
    return read_text(&with_limit, param, v, to, e);
}

static ts_code read_seed(const field *f, const char *param, const cJSON *v, ts_fields *to, ts_error *e) {
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

static ts_code read_limited(const field *f, const char *param, const cJSON *v, ts_fields *to, ts_error *e) {
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

static ts_code read_guidance(const field *f, const char *param, const cJSON *v, ts_fields *to, ts_error *e) {
    (void)f;
    return read_number(param, v, 0, to->context->config->limits.max_guidance_scale, &to->guidance, e);
}

/* The levels of a plan. What makes a list of them, the engine says (ts_sampler_plan_new). */
static ts_code read_levels(const field *f, const char *param, const cJSON *v, ts_fields *to, ts_error *e) {
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
static ts_code read_interval(const field *f, const char *param, const cJSON *v, ts_fields *to, ts_error *e) {
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

/* "WxH" with nothing else in it, nor a zero before a number. */
bool ts_size_parse(const char *text, int *w, int *h) {
    int n = 0;
    return strspn(text, "0123456789x") == strlen(text) && text[0] != '0' && !strstr(text, "x0") &&
           sscanf(text, "%5dx%5d%n", w, h, &n) == 2 && !text[n];
}

/* "WxH" into two ints of fields.sizes. */
static ts_code read_size(const field *f, const char *param, const cJSON *v, ts_fields *to, ts_error *e) {
    int *side = (int *)(void *)((char *)to + f->offset);
    if (cJSON_IsString(v) && ts_size_parse(v->valuestring, &side[0], &side[1]) && side[0] >= 1 &&
        side[1] >= 1 && side[0] <= TS_MAX_SIZE && side[1] <= TS_MAX_SIZE)
        return TS_OK;
    return ts_fail_param(e, TS_EINVAL, param, "%s must be WIDTHxHEIGHT in pixels, each 1 to %d", param,
                         TS_MAX_SIZE);
}

static ts_code read_crop(const field *f, const char *param, const cJSON *v, ts_fields *to, ts_error *e) {
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

static ts_code read_devices(const field *f, const char *param, const cJSON *v, ts_fields *to, ts_error *e) {
    (void)f;
    if (cJSON_IsString(v) && ts_config_choice("all|auto", v->valuestring)) {
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

static ts_code read_partial(const field *f, const char *param, const cJSON *v, ts_fields *to, ts_error *e) {
    (void)f;
    if (cJSON_IsString(v) && !strcmp(v->valuestring, "all")) {
        to->parallel.partial = INFINITY;
        return TS_OK;
    }
    if (read_number(param, v, 0, 1e6, &to->parallel.partial, NULL))
        return ts_fail_param(e, TS_EINVAL, param, "%s must be a number that is not negative, or all", param);
    return TS_OK;
}

static ts_code read_warmup(const field *f, const char *param, const cJSON *v, ts_fields *to, ts_error *e) {
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
static ts_code read_loras(const field *f, const char *param, const cJSON *v, ts_fields *to, ts_error *e) {
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

static ts_code unsupported(const field *f, const char *param, const cJSON *v, ts_fields *to, ts_error *e) {
    (void)f;
    (void)v;
    (void)to;
    return ts_fail_param(e, TS_EUNSUPPORTED, param, "%s is not offered by this server", param);
}

static ts_code read_parallel(const field *f, const char *param, const cJSON *v, ts_fields *to, ts_error *e);

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
    {"eta", NUMBER, 0, 1, TO(eta)},
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
    {"input_fidelity", TEXT, 0, OTHER_BYTES, TO(other)},
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

static ts_code read_object(const field *fields_of, size_t count, const char *prefix, const cJSON *object,
                           ts_fields *to, ts_error *e) {
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

static ts_code read_parallel(const field *f, const char *param, const cJSON *v, ts_fields *to, ts_error *e) {
    (void)f;
    if (!cJSON_IsObject(v)) return ts_fail_param(e, TS_EINVAL, param, "%s must be an object", param);
    return read_object(parallel_table, sizeof parallel_table / sizeof *parallel_table, "parallel.", v, to, e);
}

ts_code ts_fields_read(const cJSON *object, ts_fields *to, ts_error *e) {
    return read_object(table, sizeof table / sizeof *table, "", object, to, e);
}

bool ts_images_field_is_text(const char *name, const char *value) {
    if (!strcmp(name, "name")) return true; /* of a LoRA */
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        const field *f = &table[i];
        if (strcmp(f->name, name)) continue;
        if (f->read == read_prompt) return true;
        return (f->type == TEXT || f->type == CHOICE || f->read == read_seed || f->read == read_loras) &&
               strcmp(value, "null") != 0;
    }
    return false;
}
