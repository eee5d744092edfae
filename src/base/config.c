#include "base/config.h"

#include <errno.h>
#include <ini.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/alloc.h"
#include "base/json.h"

#define AT(section, key) offsetof(ts_config, section.key)
#define K                1024.0

static const ts_option options[] = {
    {"server", "listen", TS_OPTION_TEXT, 0, 0, "127.0.0.1:8080", NULL,
     "address and port; [::1]:8080 for IPv6; port 0 takes a free one", AT(server, listen)},
    {"server", "port_file", TS_OPTION_TEXT, 0, 0, "", NULL,
     "file that the port is written to once it is known; empty: none", AT(server, port_file)},
    {"server", "body_limit", TS_OPTION_INT, K, 64 * K *K, "1048576", NULL, "most bytes of a request's body",
     AT(server, body_limit)},
    {"server", "upload_limit", TS_OPTION_INT, K, 1024 * K *K, "33554432", NULL,
     "most bytes of a request's body that carries pictures", AT(server, upload_limit)},
    {"server", "connection_limit", TS_OPTION_INT, 4, 60000, "2000", NULL,
     "most connections; far above what is admitted, so that an overload is answered",
     AT(server, connection_limit)},
    {"server", "header_timeout", TS_OPTION_INT, 1, 3600, "10", NULL, "seconds for a request's headers",
     AT(server, header_timeout)},
    {"server", "body_timeout", TS_OPTION_INT, 1, 3600, "30", NULL, "seconds for a request's body",
     AT(server, body_timeout)},
    {"server", "idle_timeout", TS_OPTION_INT, 1, 3600, "60", NULL,
     "seconds that a connection is kept without a request, or without progress in taking the answer",
     AT(server, idle_timeout)},
    {"server", "drain_timeout", TS_OPTION_INT, 0, 86400, "90", NULL,
     "seconds for what is accepted to finish after SIGTERM; the rest is cancelled",
     AT(server, drain_timeout)},
    {"server", "ping_interval", TS_OPTION_INT, 1, 3600, "15", NULL,
     "seconds without an event after which a stream carries a comment", AT(server, ping_interval)},
    {"server", "stall_timeout", TS_OPTION_INT, 1, 86400, "600", NULL,
     "seconds without progress of a busy device after which the watchdog is no longer fed",
     AT(server, stall_timeout)},

    {"log", "level", TS_OPTION_CHOICE, 0, 0, "info", "error|warning|info|debug",
     "what is less important is not logged", AT(log, level)},
    {"log", "requests", TS_OPTION_BOOL, 0, 0, "yes", NULL, "a line for every request", AT(log, requests)},

    {"models", "path", TS_OPTION_LIST, 0, 0, "", NULL,
     "diffusers folder, or single .safetensors or .ckpt file, of a model; may come more than once, the first is the default model",
     AT(models, path)},
    {"models", "vae", TS_OPTION_TEXT, 0, 0, "", NULL,
     "file, or diffusers' folder, whose autoencoder takes the place of the first model's; empty: none does", AT(models, vae)},
    {"models", "lora", TS_OPTION_LIST, 0, 0, "", NULL,
     "file, or folder as PEFT or diffusers saves it, or that and :SCALE, of a LoRA that is fused into the first model; may come up to four times", AT(models, lora)},
    {"models", "lora_folder", TS_OPTION_TEXT, 0, 0, "", NULL,
     "folder of the LoRAs (.safetensors, .ckpt, .pt, .bin, or a folder) that requests can name; empty: none",
     AT(models, lora_folder)},
    {"models", "embeddings_folder", TS_OPTION_TEXT, 0, 0, "", NULL,
     "folder of textual inversion embeddings (.safetensors, .pt, .bin; those in folders of it too) that prompts can name; empty: none",
     AT(models, embeddings_folder)},
    {"models", "lora_memory", TS_OPTION_INT, 0, 1048576, "2048", NULL,
     "MiB of changed parameters that are kept for the next request that names the same LoRAs", AT(models, lora_memory)},

    {"devices", "devices", TS_OPTION_TEXT, 0, 0, "auto", NULL,
     "auto, cpu:N or cpu:NxT (N devices of T threads)", AT(devices, devices)},
    {"devices", "groups", TS_OPTION_TEXT, 0, 0, "all", NULL,
     "devices of each group that makes pictures: all (one group), 2 (one of two), 1,1 (two of one)",
     AT(devices, groups)},
    {"devices", "dtype", TS_OPTION_CHOICE, 0, 0, "auto", "auto|f32|bf16",
     "type of the computation; auto: bf16 where the device is faster with it", AT(devices, dtype)},
    {"devices", "program_memory", TS_OPTION_INT, 0, 1048576, "4096", NULL,
     "MiB that each group keeps beside the weights for the sizes that it made before the last one",
     AT(devices, program_memory)},

    {"scheduler", "max_queue", TS_OPTION_INT, 1, 100000, "64", NULL,
     "pictures that may wait; beyond it the answer is 429", AT(scheduler, max_queue)},
    {"scheduler", "max_batch", TS_OPTION_INT, 1, 16, "4", NULL, "most pictures that run together",
     AT(scheduler, max_batch)},
    {"scheduler", "max_wait_ms", TS_OPTION_INT, 0, 60000, "20", NULL,
     "milliseconds that a lone picture waits for company while a group is free", AT(scheduler, max_wait_ms)},

    {"limits", "max_width", TS_OPTION_INT, 8, 16384, "2048", NULL, "pixels", AT(limits, max_width)},
    {"limits", "max_height", TS_OPTION_INT, 8, 16384, "2048", NULL, "pixels", AT(limits, max_height)},
    {"limits", "max_pixels", TS_OPTION_INT, 64, 16384.0 * 16384.0, "4194304", NULL, "width times height",
     AT(limits, max_pixels)},
    {"limits", "max_input_pixels", TS_OPTION_INT, 64, 16384.0 * 16384.0, "33554432", NULL,
     "width times height of a picture that comes with a request", AT(limits, max_input_pixels)},
    {"limits", "max_steps", TS_OPTION_INT, 1, 1000, "150", NULL, "of a request", AT(limits, max_steps)},
    {"limits", "max_n", TS_OPTION_INT, 1, 10, "10", NULL, "pictures of a request", AT(limits, max_n)},
    {"limits", "max_prompt_bytes", TS_OPTION_INT, 1, K *K, "8192", NULL,
     "UTF-8 bytes of a prompt, and of a negative prompt", AT(limits, max_prompt_bytes)},
    {"limits", "max_prompt_chunks", TS_OPTION_INT, 1, 32, "8", NULL,
     "how many times a text encoder's length (75 tokens) a prompt, or a negative one, may have", AT(limits, max_prompt_chunks)},
    {"limits", "max_guidance_scale", TS_OPTION_NUMBER, 1, 1e6, "100", NULL, "of a request",
     AT(limits, max_guidance_scale)},

    {"defaults", "size", TS_OPTION_SIZE, 8, 16384, "auto", NULL, "WxH; auto: the model's",
     AT(defaults, size)},
    {"defaults", "steps", TS_OPTION_INT, 1, 1000, "20", NULL, "steps of the sampler", AT(defaults, steps)},
    {"defaults", "guidance_scale", TS_OPTION_NUMBER, 0, 1e6, "5", NULL,
     "classifier-free guidance; 1 or less: none", AT(defaults, guidance_scale)},
    {"defaults", "sampler", TS_OPTION_TEXT, 0, 0, "auto", NULL, "name of a sampler (docs/samplers.md); auto: the model's",
     AT(defaults, sampler)},
    {"defaults", "mode", TS_OPTION_CHOICE, 0, 0, "pcpp", "pcpp|distrifusion|sync|naive|single",
     "how a picture is split over devices", AT(defaults, mode)},
    {"defaults", "devices", TS_OPTION_INT_OR_ALL, 1, 16, "all", NULL,
     "devices for a picture; all: those of the group", AT(defaults, devices)},
    {"defaults", "partial", TS_OPTION_NUMBER_OR_ALL, 0, 1e6, "0.3", NULL,
     "window of neighbouring patches that attention sees, as a share of a patch; or all",
     AT(defaults, partial)},
    {"defaults", "warmup_steps", TS_OPTION_INT, 0, 1000, "4", NULL, "synchronous evaluations at the start",
     AT(defaults, warmup_steps)},
    {"defaults", "group_norm", TS_OPTION_CHOICE, 0, 0, "corrected", "sync|stale|corrected|local",
     "what a GroupNorm knows of the other patches", AT(defaults, group_norm)},
    {"defaults", "cfg_split", TS_OPTION_CHOICE, 0, 0, "auto", "auto|on|off",
     "whether the two branches of guidance run on different devices", AT(defaults, cfg_split)},

    {"compile", "shapes", TS_OPTION_TEXT, 0, 0, "", NULL,
     "compiled at start: WxH, WxH:STEPS or WxH:STEPS:BATCH, separated by commas", AT(compile, shapes)},
};

#define COUNT (sizeof options / sizeof *options)

const ts_option *ts_config_options(void) {
    return options;
}

size_t ts_config_option_count(void) {
    return COUNT;
}

static int find(const char *section, const char *key) {
    for (size_t i = 0; i < COUNT; i++)
        if (!strcmp(options[i].section, section) && !strcmp(options[i].key, key)) return (int)i;
    return -1;
}

static void *place(ts_config *c, const ts_option *o) {
    return (char *)c + o->offset;
}

static void list_clear(ts_text_list *list) {
    for (size_t i = 0; i < list->count; i++) free(list->items[i]);
    free(list->items);
    *list = (ts_text_list){0};
}

static bool replace(char **text, const char *value) {
    char *copy = ts_strdup(value);
    if (!copy) return false;
    free(*text);
    *text = copy;
    return true;
}

/* Decimal, all of the text, finite. */
static bool read_number(const char *text, double *ret) {
    char *end;
    if (!(*text >= '0' && *text <= '9') && *text != '-' && *text != '.') return false;
    for (const char *s = text; *s; s++)
        if (!strchr("0123456789.eE+-", *s)) return false;
    double x = strtod(text, &end);
    if (end == text || *end || !isfinite(x)) return false;
    *ret = x;
    return true;
}

static bool read_int(const char *text, int64_t *ret) {
    char *end;
    if (!(*text >= '0' && *text <= '9') && *text != '-') return false;
    errno = 0;
    long long n = strtoll(text, &end, 10);
    if (errno || end == text || *end) return false;
    *ret = n;
    return true;
}

static bool read_size(const char *text, double low, double high, ts_size *ret) {
    if (!strcmp(text, "auto")) {
        *ret = (ts_size){0, 0};
        return true;
    }
    int w, h, n = 0;
    if (strspn(text, "0123456789x") != strlen(text)) return false;
    if (sscanf(text, "%5dx%5d%n", &w, &h, &n) != 2 || text[n]) return false;
    if (w < low || w > high || h < low || h > high || w % 8 || h % 8) return false;
    *ret = (ts_size){w, h};
    return true;
}

bool ts_config_choice(const char *choices, const char *text) {
    const size_t n = strcspn(text, "|");
    if (!n || text[n]) return false; /* several of them, one behind the other, are none */
    for (const char *s = choices; s; s = strchr(s, '|')) {
        if (*s == '|') s++;
        if (!strncmp(s, text, n) && (s[n] == '|' || !s[n])) return true;
    }
    return false;
}

/* Puts a value in its place. TS_EINVAL tells what would have been good. */
static ts_code assign(ts_config *c, const ts_option *o, const char *value, ts_error *e) {
    void *at = place(c, o);
    double x = 0;
    int64_t n = 0;
    bool ok = true, all = !strcmp(value, "all");
    switch (o->type) {
    case TS_OPTION_INT_OR_ALL:
        if (all) {
            *(int64_t *)at = 0;
            break;
        } /* fall through */
    case TS_OPTION_INT:
        if (!read_int(value, &n) || (double)n < o->low || (double)n > o->high)
            return ts_fail_param(e, TS_EINVAL, o->key,
                                 "%s = %.100s: a whole number from %.0f to %.0f%s is wanted", o->key, value,
                                 o->low, o->high, o->type == TS_OPTION_INT ? "" : ", or all,");
        *(int64_t *)at = n;
        break;
    case TS_OPTION_NUMBER_OR_ALL:
        if (all) {
            *(double *)at = INFINITY;
            break;
        } /* fall through */
    case TS_OPTION_NUMBER:
        if (!read_number(value, &x) || x < o->low || x > o->high)
            return ts_fail_param(e, TS_EINVAL, o->key, "%s = %.100s: a number from %g to %g%s is wanted",
                                 o->key, value, o->low, o->high,
                                 o->type == TS_OPTION_NUMBER ? "" : ", or all,");
        *(double *)at = x;
        break;
    case TS_OPTION_BOOL:
        if (strcmp(value, "yes") && strcmp(value, "no"))
            return ts_fail_param(e, TS_EINVAL, o->key, "%s = %.100s: yes or no is wanted", o->key, value);
        *(bool *)at = value[0] == 'y';
        break;
    case TS_OPTION_CHOICE:
        if (!ts_config_choice(o->choices, value))
            return ts_fail_param(e, TS_EINVAL, o->key, "%s = %.100s: one of %s is wanted", o->key, value,
                                 o->choices);
        ok = replace(at, value);
        break;
    case TS_OPTION_TEXT: ok = replace(at, value); break;
    case TS_OPTION_SIZE:
        if (!read_size(value, o->low, o->high, at))
            return ts_fail_param(
                e, TS_EINVAL, o->key,
                "%s = %.100s: WIDTHxHEIGHT, multiples of 8 from %.0f to %.0f, or auto is wanted", o->key,
                value, o->low, o->high);
        break;
    case TS_OPTION_LIST: {
        ts_text_list *list = at;
        char *copy = NULL;
        if (!*value) break;
        ok = ts_grow(&list->items, &list->capacity, list->count + 1, sizeof *list->items) &&
             (copy = ts_strdup(value));
        if (ok) list->items[list->count++] = copy;
        break;
    }
    }
    return ok ? TS_OK : ts_fail(e, TS_ENOMEM, "the configuration");
}

ts_code ts_config_new(ts_config **ret, ts_error *e) {
    ts_config *c = ts_new0(ts_config);
    if (c) c->lines = ts_array0(int, COUNT);
    if (!c || !c->lines) {
        ts_config_free(c);
        return ts_fail(e, TS_ENOMEM, "the configuration");
    }
    for (size_t i = 0; i < COUNT; i++) {
        ts_code rc = assign(c, &options[i], options[i].otherwise, e);
        if (rc) {
            ts_config_free(c);
            return rc;
        }
    }
    *ret = c;
    return TS_OK;
}

void ts_config_free(ts_config *c) {
    if (!c) return;
    for (size_t i = 0; i < COUNT; i++) {
        void *at = place(c, &options[i]);
        if (options[i].type == TS_OPTION_TEXT || options[i].type == TS_OPTION_CHOICE) free(*(char **)at);
        if (options[i].type == TS_OPTION_LIST) list_clear(at);
    }
    free(c->lines);
    free(c->file);
    free(c);
}

typedef struct reading {
    ts_config *c;
    FILE *file;
    const char *path;
    int line;
    ts_code rc; /* the first failure; nothing is read after it */
    ts_error *e;
} reading;

static ts_code fail_at(reading *r, ts_code rc) {
    r->rc = ts_error_context(r->e, rc, "%s:%d", r->path, r->line);
    return r->rc;
}

static bool section_known(const char *section, size_t n) {
    for (size_t i = 0; i < COUNT; i++)
        if (!strncmp(options[i].section, section, n) && !options[i].section[n]) return true;
    return false;
}

/* Up to a line's end or what the room holds, terminated; false at the end of the file. fgets would not tell of
 * a NUL among the bytes. */
static bool take_line(FILE *file, char *room, size_t size, size_t *ret_n) {
    size_t n = 0;
    int c = 0;
    while (n + 1 < size && c != '\n' && (c = getc(file)) != EOF) room[n++] = (char)c;
    room[n] = 0;
    *ret_n = n;
    return n > 0;
}

/* Feeds inih and counts. inih would silently break a line that is longer than its buffer, end one at a NUL, and
 * say nothing of a section without options. */
static char *next_line(char *room, int size, void *arg) {
    reading *r = arg;
    size_t n;
    if (r->rc || !take_line(r->file, room, (size_t)size, &n)) return NULL;
    r->line++;
    const char *wrong = NULL;
    if (n + 1 == (size_t)size && room[n - 1] != '\n')
        wrong = "the line is too long";
    else if (!ts_utf8_valid(room, n))
        wrong = "the line is not UTF-8 text";
    if (wrong) {
        ts_fail(r->e, TS_EINVAL, "%s", wrong);
        fail_at(r, TS_EINVAL);
        return NULL;
    }
    /* A line of blanks at the front would continue the option above it, an accident more often than not. */
    char *text = room;
    while (*text == ' ' || *text == '\t') text++;
    if (*text == '[') {
        size_t name = strcspn(text + 1, "]\r\n");
        bool closed = text[1 + name] == ']';
        if (!closed || !section_known(text + 1, name)) {
            ts_fail(r->e, TS_EINVAL, closed ? "there is no section [%.*s]" : "[%.*s is not closed",
                    (int)name, text + 1);
            fail_at(r, TS_EINVAL);
            return NULL;
        }
        const char *behind = text + name + 2;
        behind += strspn(behind, " \t\r\n");
        if (*behind && *behind != ';' && *behind != '#') {
            ts_fail(r->e, TS_EINVAL, "there is something behind [%.*s]", (int)name, text + 1);
            fail_at(r, TS_EINVAL);
            return NULL;
        }
    }
    return memmove(room, text, strlen(text) + 1);
}

static int on_value(void *arg, const char *section, const char *key, const char *value) {
    reading *r = arg;
    if (r->rc) return 0;
    ts_config *c = r->c;
    int i = find(section, key);
    if (i < 0) {
        if (*section)
            ts_fail_param(r->e, TS_EINVAL, key, "there is no option %.100s in [%s]", key, section);
        else
            ts_fail_param(r->e, TS_EINVAL, key, "%.100s comes before any [section]", key);
        return !fail_at(r, TS_EINVAL);
    }
    if (c->lines[i] > 0 && options[i].type != TS_OPTION_LIST) {
        ts_fail_param(r->e, TS_EINVAL, key, "%s is given twice, before in line %d", key, c->lines[i]);
        return !fail_at(r, TS_EINVAL);
    }
    ts_code rc = assign(c, &options[i], value, r->e);
    if (rc) return !fail_at(r, rc);
    c->lines[i] = r->line;
    return 1;
}

ts_code ts_config_read(ts_config *c, const char *path, ts_error *e) {
    reading r = {.c = c, .path = path, .e = e};
    if (!replace(&c->file, path)) return ts_fail(e, TS_ENOMEM, "the configuration");
    r.file = fopen(path, "re");
    if (!r.file) return ts_fail_errno(e, errno == ENOENT ? TS_ENOTFOUND : TS_EIO, errno, "opening %s", path);
    int line = ini_parse_stream(next_line, &r, on_value, &r);
    bool bad = ferror(r.file);
    fclose(r.file);
    if (r.rc) return r.rc;
    if (bad) return ts_fail(e, TS_EIO, "reading %s", path);
    if (line > 0)
        return ts_fail(e, TS_EINVAL, "%s:%d: neither a section nor key = value nor a comment", path, line);
    if (line < 0) return ts_fail(e, TS_ENOMEM, "reading %s", path);
    return TS_OK;
}

ts_code ts_config_set(ts_config *c, const char *section, const char *key, const char *value, ts_error *e) {
    int i = find(section, key);
    if (i < 0) return ts_fail_param(e, TS_EINVAL, key, "there is no option %s in [%s]", key, section);
    if (options[i].type == TS_OPTION_LIST && c->lines[i] >= 0) list_clear(place(c, &options[i]));
    ts_code rc = assign(c, &options[i], value, e);
    if (!rc) c->lines[i] = -1;
    return rc;
}

const char *ts_config_where(const ts_config *c, const char *section, const char *key, char *room,
                            size_t size) {
    int i = find(section, key);
    int line = i < 0 ? 0 : c->lines[i];
    if (line > 0)
        snprintf(room, size, "%s:%d", c->file ? c->file : "?", line);
    else
        snprintf(room, size, "%s", line < 0 ? "command line" : "default");
    return room;
}
