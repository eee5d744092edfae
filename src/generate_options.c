#include "generate_options.h"

#include <errno.h>
#include <getopt.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct row row;
struct row {
    const char *name;
    const char *value; /* what the option takes, as the help calls it; NULL: it is a switch */
    const char *help;
    bool (*take)(const row *r, const char *text, void *at); /* false: not acceptable */
    size_t offset;
    double low, high;
    int (*find)(const char *name); /* of a choice: its number, -1: none */
};

/* ---- kinds of values ---- */

static bool take_text(const row *r, const char *text, void *at) {
    (void)r;
    *(const char **)at = text;
    return true;
}

static bool take_lora(const row *r, const char *text, void *at) {
    (void)r;
    const char **list = at;
    int n = 0;
    while (n < TS_MAX_LORAS && list[n]) n++;
    if (n < TS_MAX_LORAS) list[n] = text;
    return n < TS_MAX_LORAS;
}

static bool take_switch(const row *r, const char *text, void *at) {
    (void)r;
    (void)text;
    *(bool *)at = true;
    return true;
}

static bool as_int(const char *text, double low, double high, int *ret) {
    char *end;
    errno = 0;
    long v = strtol(text, &end, 10);
    if (end == text || *end || errno || (double)v < low || (double)v > high) return false;
    *ret = (int)v;
    return true;
}

static bool take_int(const row *r, const char *text, void *at) {
    return as_int(text, r->low, r->high, at);
}

static bool take_number(const row *r, const char *text, void *at) {
    char *end;
    double v = strtod(text, &end);
    if (end == text || *end || !(v >= r->low && v <= r->high)) return false;
    *(double *)at = v;
    return true;
}

static bool take_choice(const row *r, const char *text, void *at) {
    int v = r->find(text);
    if (v >= 0) *(int *)at = v;
    return v >= 0;
}

static bool take_seed(const row *r, const char *text, void *at) {
    (void)r;
    char *end;
    errno = 0;
    if (*text < '0' || *text > '9') return false;
    unsigned long long v = strtoull(text, &end, 10);
    if (*end || errno) return false;
    *(uint64_t *)at = v;
    return true;
}

/* Two numbers with `between` in the middle into two ints. */
static bool take_pair(const row *r, const char *text, char between, void *at) {
    const char *x = strchr(text, between);
    char first[16];
    int *sides = at;
    if (!x || (size_t)(x - text) >= sizeof first) return false;
    memcpy(first, text, (size_t)(x - text));
    first[x - text] = 0;
    return as_int(first, r->low, r->high, sides) && as_int(x + 1, r->low, r->high, sides + 1);
}

static bool take_levels(const row *r, const char *text, void *at) {
    (void)r;
    ts_level_list *list = at;
    for (list->count = 0; list->count < TS_LIST_LEVELS; text++) {
        char *end;
        list->at[list->count++] = strtof(text, &end);
        if (end == text) return false;
        text = end;
        if (!*text) return true;
        if (*text != ',') return false;
    }
    return false;
}

/* "A-B" into an interval. */
static bool take_interval(const row *r, const char *text, void *at) {
    (void)r;
    char *end;
    ts_interval *i = at;
    i->from = strtod(text, &end);
    if (end == text || *end != '-') return false;
    const char *second = end + 1;
    i->to = strtod(second, &end);
    return end != second && !*end && i->from >= 0 && i->from < i->to && i->to <= 1;
}

static bool take_size(const row *r, const char *text, void *at) {
    return take_pair(r, text, 'x', at);
}

static bool take_place(const row *r, const char *text, void *at) {
    return take_pair(r, text, ',', at);
}

static bool take_partial(const row *r, const char *text, void *at) {
    if (strcmp(text, "all") != 0) return take_number(r, text, at);
    *(double *)at = INFINITY;
    return true;
}

static bool take_dtype(const row *r, const char *text, void *at) {
    (void)r;
    int v = !strcmp(text, "f32") ? TS_F32 : !strcmp(text, "bf16") ? TS_BF16 : -1;
    if (v < 0 && strcmp(text, "auto") != 0) return false;
    *(int *)at = v;
    return true;
}

/* ---- the table ---- */

#define TO(member)           offsetof(ts_generate_options, member)
#define TEXT(member)         take_text, TO(member)
#define SWITCH(member)       take_switch, TO(member)
#define INT(member, a, b)    take_int, TO(member), a, b
#define NUMBER(member, a, b) take_number, TO(member), a, b
#define CHOICE(member, f)    take_choice, TO(member), .find = f

static const row table[] = {
    {"model", "MODEL", "a diffusers folder or a single .safetensors or .ckpt file; needed", TEXT(model)},
    {"prompt", "TEXT", "what the picture shows; needed", TEXT(prompt)},
    {"o", "OUT.png", "where it is written; needed", TEXT(out)},
    {"vae", "FILE|DIR", "an autoencoder in place of the model's", TEXT(vae)},
    {"lora", "FILE[:SCALE]", "a LoRA (a file, or its folder), fused into the model; up to four", take_lora, TO(loras)},
    {"negative", "TEXT", "what the picture should not show", TEXT(negative)},
    {"embeddings", "DIR", "of textual inversion embeddings that prompts can name", TEXT(embeddings)},
    {"emphasis", NULL, "(word), [word] and (word:1.3) in the prompts are weights", SWITCH(emphasis)},
    {"truncate", NULL, "what is longer than a text encoder is cut off, not encoded in pieces",
     SWITCH(truncate)},
    {"seed", "N", "of the first picture; the next ones count up (default 0)", take_seed, TO(seed)},
    {"rng", "NAME", "torch-cpu or torch-cuda: whose noise the seed means (default torch-cpu)",
     CHOICE(rng, ts_rng_kind_find)},
    {"steps", "N", "(default 20)", INT(steps, 1, TS_MAX_STEPS)},
    {"guidance", "X", "1 or less: none (default 5)", NUMBER(guidance, 0, 1000)},
    {"clip-skip", "N", "layers of the text encoders left out at their end (default 0)",
     INT(clip_skip, 0, 128)},
    {"guidance-rescale", "X", "0 to 1: how much of the spread that guidance adds is taken back (default 0)",
     NUMBER(guidance_rescale, 0, 1)},
    {"guidance-interval", "A-B", "shares of the steps between which there is guidance (default 0-1)",
     take_interval, TO(guidance_interval)},
    {"size", "WxH", "multiples of 8 (default: the model's)", take_size, TO(width), 8, 16384},
    {"original-size", "WxH", "XL: of the picture that this is a part of (default: this one's)", take_size,
     TO(sizes.original_width), 1, TS_MAX_SIZE},
    {"crop", "LEFT,TOP", "XL: where that part begins (default 0,0)", take_place, TO(sizes.crop_left), 0,
     TS_MAX_SIZE},
    {"target-size", "WxH", "XL: of the picture that it is scaled to (default: this one's)", take_size,
     TO(sizes.target_width), 1, TS_MAX_SIZE},
    {"batch", "N", "pictures in one run; OUT-0.png, OUT-1.png, ... (default 1)", INT(batch, 1, TS_MAX_BATCH)},
    {"init", "FILE.png", "a picture to begin with; where it is transparent it is painted anew", TEXT(init)},
    {"mask", "FILE.png", "of its size: painted where transparent, else where white; the rest is kept",
     TEXT(mask)},
    {"strength", "X", "share of the steps that is run from there (default 0.8; with a mask 1)",
     NUMBER(strength, 1e-6, 1)},
    {"sampler", "NAME", "docs/samplers.md lists them and the schedulers (default: the model's)",
     TEXT(sampler)},
    {"scheduler", "NAME", "where its noise levels lie (default: as the model says)",
     CHOICE(scheduler, ts_scheduler_find)},
    {"sigmas", "LIST", "the noise levels themselves, \"12.5,4,1\"; as many steps", take_levels, TO(sigmas)},
    {"timesteps", "LIST", "the training timesteps, \"999,500,120\"; as many steps", take_levels,
     TO(timesteps)},
    {"eta", "X", "0 to 1: how much noise DDIM (default 0) and TCD (0.3) draw anew", NUMBER(eta, 0, 1)},
    {"mode", "NAME", "pcpp, distrifusion, sync, naive or single (default pcpp)",
     CHOICE(parallel.mode, ts_mode_find)},
    {"ranks", "N", "devices that take part (default all)", INT(parallel.ranks, 1, TS_MAX_RANKS)},
    {"partial", "P", "keys seen before and after a patch, as a share of its own; or \"all\" (default 0.3)",
     take_partial, TO(parallel.partial), 0, 1000},
    {"warmup", "N", "synchronous evaluations before the last one (default 4)",
     INT(parallel.warmup, 0, TS_MAX_STEPS)},
    {"group-norm", "NAME", "sync, stale, corrected or local (default corrected)",
     CHOICE(parallel.group_norm, ts_group_norm_mode_find)},
    {"cfg-split", "NAME", "auto, on or off (default auto)", CHOICE(parallel.cfg_split, ts_cfg_split_find)},
    {"devices", "SPEC", "cpu:N, cpu:NxT (T threads each) or auto (default auto)", TEXT(devices)},
    {"dtype", "NAME", "f32, bf16 or auto (default auto)", take_dtype, TO(dtype)},
    {"latents-in", "FILE", "unit-normal starting noise, tensor \"latents\", N x C x H x W float32",
     TEXT(latents_in)},
    {"latents-out", "FILE", "keeps the final latents likewise", TEXT(latents_out)},
    {"dump", "FILE", "keeps the text, the noise, the U-Net's first prediction and every latent", TEXT(dump)},
    {"json", NULL, "figures on stdout", SWITCH(json)},
    {"profile", NULL, "time by op of rank 0 on stderr", SWITCH(profile)},
};
enum { ROWS = sizeof table / sizeof *table, OPT_ROW = 256, OPT_HELP = OPT_ROW + ROWS };

/* A choice is written through an int. */
_Static_assert(sizeof(ts_mode) == sizeof(int), "an enum of another size");

static const char *dashes(const row *r) {
    return r->name[1] ? "--" : "-";
}

static void print_help(void) {
    printf("usage: tesserad generate --model MODEL --prompt TEXT -o OUT.png [options]\n");
    for (size_t i = 0; i < ROWS; i++) {
        const row *r = &table[i];
        int n = printf("  %s%s%s%s", dashes(r), r->name, r->value ? " " : "", r->value ? r->value : "");
        printf("%*s%s\n", n < 24 ? 25 - n : 1, "", r->help);
    }
}

static int complain(const char *format, const char *a, const char *b) {
    fprintf(stderr, "tesserad generate: ");
    fprintf(stderr, format, a, b);
    fprintf(stderr, "\n");
    return 2;
}

int ts_generate_options_parse(int argc, char **argv, ts_generate_options *ret) {
    struct option longs[ROWS + 2] = {0};
    for (int i = 0; i < (int)ROWS; i++)
        longs[i] = (struct option){table[i].name, table[i].value != NULL, NULL, OPT_ROW + i};
    longs[ROWS] = (struct option){"help", 0, NULL, OPT_HELP};
    ts_generate_options o = {
        .batch = 1, .dtype = -1, .guidance = 5, .eta = -1, .devices = "auto", .parallel = TS_PARALLEL_DEFAULT};
    optind = 1;
    for (int c; (c = getopt_long(argc, argv, "o:", longs, NULL)) != -1;) {
        if (c == '?') return 2; /* getopt has said what */
        if (c == OPT_HELP) {
            print_help();
            return 0;
        }
        const row *r = NULL;
        for (int i = 0; i < (int)ROWS && !r; i++)
            if (c == OPT_ROW + i || (c == 'o' && !strcmp(table[i].name, "o"))) r = &table[i];
        if (!r->take(r, optarg, (char *)&o + r->offset))
            return complain("--%s: \"%s\" is not acceptable", r->name, optarg);
    }
    if (optind < argc) return complain("unexpected \"%s\"; --help tells what there is%s", argv[optind], "");
    const struct {
        const char *name, *value;
    } needed[] = {{"--model", o.model}, {"--prompt", o.prompt}, {"-o", o.out}};
    if (!o.init && (o.mask || o.strength > 0))
        return complain("%s goes with --init%s", o.mask ? "--mask" : "--strength", "");
    if (o.dump && o.batch > 1) return complain("%s goes with one picture%s", "--dump", "");
    for (size_t i = 0; i < sizeof needed / sizeof *needed; i++)
        if (!needed[i].value) return complain("%s is missing%s", needed[i].name, "");
    *ret = o;
    return -1;
}
