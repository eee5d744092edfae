#include "server/setup.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Puts "FILE:LINE" or "command line" before the message. */
static ts_code at(const ts_config *c, const char *section, const char *key, ts_code rc, ts_error *e) {
    char where[256];
    return ts_error_context(e, rc, "%s", ts_config_where(c, section, key, where, sizeof where));
}

/* A decimal number in low..high that ends at one of `ends` or the text's end; *s moves behind it. */
static bool number(const char **s, int low, int high, int *ret) {
    char *end;
    if (**s < '0' || **s > '9') return false;
    long n = strtol(*s, &end, 10);
    if (n < low || n > high) return false;
    *s = end;
    *ret = (int)n;
    return true;
}

static void blanks(const char **s) {
    while (**s == ' ' || **s == '\t') ++*s;
}

static ts_code read_groups(const ts_config *c, int devices, ts_setup *ret, ts_error *e) {
    const char *text = c->devices.groups, *s = text;
    int left = devices;
    if (!strcmp(text, "all")) {
        ret->group_sizes[0] = devices;
        ret->group_count = 1;
        return TS_OK;
    }
    for (;;) {
        int n;
        blanks(&s);
        if (!number(&s, 1, TS_MAX_RANKS, &n) || ret->group_count == TS_MAX_RANKS)
            return ts_fail_param(
                e, TS_EINVAL, "groups",
                "groups = %.64s: all, or devices of each group separated by commas, is wanted", text);
        if (n > left)
            return ts_fail_param(e, TS_EINVAL, "groups", "groups = %.64s: there are only %d devices", text,
                                 devices);
        left -= n;
        ret->group_sizes[ret->group_count++] = n;
        blanks(&s);
        if (!*s) return TS_OK;
        if (*s++ != ',') s = "?";
    }
}

static ts_code read_shapes(const ts_config *c, ts_setup *ret, ts_error *e) {
    const char *text = c->compile.shapes, *s = text;
    blanks(&s);
    while (*s) {
        int w = 0, h = 0, steps = (int)c->defaults.steps, batch = 1;
        bool ok = number(&s, 8, (int)c->limits.max_width, &w) && *s++ == 'x' &&
                  number(&s, 8, (int)c->limits.max_height, &h) && w % 8 == 0 && h % 8 == 0 &&
                  (int64_t)w * h <= c->limits.max_pixels;
        if (ok && *s == ':') ok = s++, number(&s, 1, (int)c->limits.max_steps, &steps);
        if (ok && *s == ':') ok = s++, number(&s, 1, (int)c->scheduler.max_batch, &batch);
        blanks(&s);
        if (ok && *s == ',')
            s++;
        else
            ok = ok && !*s;
        if (!ok || ret->shape_count == TS_MAX_SHAPES)
            return ts_fail_param(
                e, TS_EINVAL, "shapes",
                "shapes = %.100s: at most %d of WxH[:STEPS[:BATCH]] within the limits, separated "
                "by commas, are wanted",
                text, TS_MAX_SHAPES);
        ret->shapes[ret->shape_count].width = w;
        ret->shapes[ret->shape_count].height = h;
        ret->shapes[ret->shape_count].steps = steps;
        ret->shapes[ret->shape_count++].batch = batch;
        blanks(&s);
    }
    return TS_OK;
}

static ts_code read_defaults(const ts_config *c, ts_setup *ret, ts_error *e) {
    if (strcmp(c->defaults.sampler, "auto")) {
        ret->sampler = ts_sampler_find(c->defaults.sampler);
        if (!ret->sampler)
            return ts_fail_param(e, TS_EINVAL, "sampler", "sampler = %.64s: there is no such sampler",
                                 c->defaults.sampler);
    }
    /* The table of options allows no other names than these. */
    int mode = ts_mode_find(c->defaults.mode), norm = ts_group_norm_mode_find(c->defaults.group_norm),
        split = ts_cfg_split_find(c->defaults.cfg_split);
    ts_assert(mode >= 0 && norm >= 0 && split >= 0);
    ret->parallel = (ts_parallel){.mode = (ts_mode)mode,
                                  .ranks = (int)c->defaults.devices,
                                  .partial = c->defaults.partial,
                                  .warmup = (int)c->defaults.warmup_steps,
                                  .group_norm = (ts_group_norm_mode)norm,
                                  .cfg_split = (ts_cfg_split)split};
    ret->dtype = !strcmp(c->devices.dtype, "f32") ? TS_F32 : !strcmp(c->devices.dtype, "bf16") ? TS_BF16 : -1;
    return TS_OK;
}

ts_code ts_setup_make(const ts_config *c, ts_setup *ret, ts_error *e) {
    ts_setup s = {0};
    int devices;
    ts_code rc = ts_devices_parse(c->devices.devices, s.devices, &devices, e);
    if (rc) return at(c, "devices", "devices", rc, e);
    rc = read_groups(c, devices, &s, e);
    if (rc) return at(c, "devices", "groups", rc, e);
    ts_lora_use loras[TS_MAX_LORAS];
    rc = ts_lora_uses_parse((const char *const *)c->models.lora.items, c->models.lora.count, loras, e);
    ts_lora_uses_free(loras);
    if (rc) return at(c, "models", "lora", rc, e);
    rc = read_shapes(c, &s, e);
    if (rc) return at(c, "compile", "shapes", rc, e);
    rc = read_defaults(c, &s, e);
    if (rc) return at(c, "defaults", "sampler", rc, e);
    if (c->defaults.steps > c->limits.max_steps) {
        rc = ts_fail_param(e, TS_EINVAL, "steps", "steps = %lld is beyond max_steps",
                           (long long)c->defaults.steps);
        return at(c, "defaults", "steps", rc, e);
    }
    const ts_size *z = &c->defaults.size;
    if (z->width > c->limits.max_width || z->height > c->limits.max_height ||
        (int64_t)z->width * z->height > c->limits.max_pixels) {
        rc = ts_fail_param(e, TS_EINVAL, "size", "size = %dx%d is beyond the limits", z->width, z->height);
        return at(c, "defaults", "size", rc, e);
    }
    *ret = s;
    return TS_OK;
}
