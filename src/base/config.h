/* The configuration: one table of options, filled from defaults, a file and the command line, in this order.
 *
 * The file is INI (sections in brackets, `key = value`, comments from `#` or `;` at the start of a line, or from `;` behind a
 * blank). An unknown section or key, a key given twice, a value out of range and a line that is too long are errors that
 * carry file and line. What an option means is in the table (ts_config_options), and in conf/tesserad.conf,
 * which a test holds against it. Values that only the engine can judge (devices, sampler) are checked later;
 * ts_config_where then says where they came from. */
#ifndef TS_BASE_CONFIG_H
#define TS_BASE_CONFIG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "base/error.h"

typedef struct ts_text_list {
    char **items;
    size_t count, capacity;
} ts_text_list;

typedef struct ts_size {
    int width, height; /* pixels; 0 x 0: "auto" */
} ts_size;

typedef struct ts_config {
    struct {
        char *listen, *port_file;
        int64_t body_limit, upload_limit, connection_limit;
        int64_t header_timeout, body_timeout, idle_timeout, drain_timeout, ping_interval, stall_timeout;
    } server;
    struct {
        char *level;
        bool requests;
    } log;
    struct {
        ts_text_list path, lora;
        char *vae, *lora_folder, *embeddings_folder;
        int64_t lora_memory; /* MiB */
    } models;
    struct {
        char *devices, *groups, *dtype;
        int64_t program_memory; /* MiB */
    } devices;
    struct {
        int64_t max_queue, max_batch, max_wait_ms;
    } scheduler;
    struct {
        int64_t max_width, max_height, max_pixels, max_input_pixels, max_steps, max_n;
        int64_t max_prompt_bytes, max_prompt_chunks;
        double max_guidance_scale;
    } limits;
    struct {
        int64_t steps, warmup_steps, devices; /* devices 0: all */
        double guidance_scale, partial;       /* partial INFINITY: all */
        char *sampler, *mode, *group_norm, *cfg_split;
        ts_size size;
    } defaults;
    struct {
        char *shapes;
    } compile;

    char *file; /* that was read, for messages; NULL when none */
    int *lines; /* by option: 0 default, > 0 line of the file, -1 command line */
} ts_config;

typedef enum ts_option_type {
    TS_OPTION_INT,           /* int64_t, low..high */
    TS_OPTION_INT_OR_ALL,    /* int64_t; "all" is 0 */
    TS_OPTION_NUMBER,        /* double */
    TS_OPTION_NUMBER_OR_ALL, /* double; "all" is INFINITY */
    TS_OPTION_BOOL,          /* yes, no */
    TS_OPTION_TEXT,          /* char * */
    TS_OPTION_CHOICE,        /* char *, one of `choices` */
    TS_OPTION_SIZE,          /* ts_size: WxH, low..high each, or auto */
    TS_OPTION_LIST           /* ts_text_list: the key may come more than once */
} ts_option_type;

typedef struct ts_option {
    const char *section, *key;
    ts_option_type type;
    double low, high;
    const char *otherwise; /* the default, as one would write it */
    const char *choices;   /* "a|b|c" */
    const char *help;      /* one line */
    size_t offset;
} ts_option;

/* The table; ends where ts_config_option_count says. */
const ts_option *ts_config_options(void);
size_t ts_config_option_count(void);

/* Whether the text is one of "a|b|c". */
bool ts_config_choice(const char *choices, const char *text);

/* All defaults. TS_ENOMEM. */
ts_code ts_config_new(ts_config **ret, ts_error *e);
void ts_config_free(ts_config *c); /* NULL is fine */

/* Reads a file over what is there. TS_EINVAL with "FILE:LINE: ..." and the key as param, TS_ENOTFOUND,
 * TS_EIO, TS_ENOMEM. */
ts_code ts_config_read(ts_config *c, const char *path, ts_error *e);

/* One option from the command line. The first value of a list replaces what the file gave. TS_EINVAL. */
ts_code ts_config_set(ts_config *c, const char *section, const char *key, const char *value, ts_error *e);

/* Where the value came from, for messages: "FILE:LINE", "command line" or "default". */
const char *ts_config_where(const ts_config *c, const char *section, const char *key, char *room,
                            size_t size);

#endif
