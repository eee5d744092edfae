/* A job: pictures that run together as one batch, and how they are to be made.
 *
 * The caller fills the job and its pictures, hands it to ts_group_run (engine/engine.h) and gets each picture
 * back through on_picture. Nothing here is copied: strings and arrays must outlive the run. */
#ifndef TS_ENGINE_JOB_H
#define TS_ENGINE_JOB_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "base/dtype.h"
#include "base/error.h"
#include "engine/random.h"
#include "engine/sampler.h"
#include "engine/trace.h"

#define TS_MAX_RANKS 16
#define TS_MAX_BATCH 16
#define TS_MAX_STEPS 1000
#define TS_MAX_CHUNKS 32   /* of a prompt */
#define TS_MAX_SIZE  16384 /* pixels, of what a size condition says */

/* How a picture is split over ranks (docs/ARCHITECTURE.md, "PCPP"). */
#define TS_MODES(X)                                                                                          \
    X(PCPP, "pcpp")                 /* window of neighbouring keys, everything one evaluation old */             \
    X(DISTRIFUSION, "distrifusion") /* the window is the whole picture (arXiv 2402.19481) */                     \
    X(SYNC, "sync")                 /* everything fresh: one device's picture within rounding */                 \
    X(NAIVE, "naive")               /* patches that know nothing of each other */                                \
    X(SINGLE, "single")             /* one rank */

typedef enum ts_mode {
#define X(name, text) TS_MODE_##name,
    TS_MODES(X)
#undef X
        TS_MODE_COUNT
} ts_mode;

/* What a GroupNorm of an asynchronous evaluation knows of the other patches. */
#define TS_GROUP_NORM_MODES(X)                                                                               \
    X(SYNC, "sync")           /* fresh global statistics */                                                    \
    X(STALE, "stale")         /* the others' of the previous evaluation, one's own fresh */                    \
    X(CORRECTED, "corrected") /* the previous global ones plus the full change of one's own */                 \
    X(LOCAL, "local")         /* one's own only */

typedef enum ts_group_norm_mode {
#define X(name, text) TS_GROUP_NORM_##name,
    TS_GROUP_NORM_MODES(X)
#undef X
        TS_GROUP_NORM_MODE_COUNT
} ts_group_norm_mode;

/* What a picture begins with. */
#define TS_TASKS(X)                                                                                          \
    X(TEXT, "text")       /* noise */                                                                        \
    X(IMAGE, "image")     /* a picture, made noisy: image to image (Meng et al. 2022, arXiv 2108.01073) */     \
    X(INPAINT, "inpaint") /* a picture of which only what a mask says is painted anew */

typedef enum ts_task {
#define X(name, text) TS_TASK_##name,
    TS_TASKS(X)
#undef X
        TS_TASK_COUNT
} ts_task;

#define TS_CFG_SPLITS(X) X(AUTO, "auto") X(ON, "on") X(OFF, "off")

typedef enum ts_cfg_split {
#define X(name, text) TS_CFG_SPLIT_##name,
    TS_CFG_SPLITS(X)
#undef X
        TS_CFG_SPLIT_COUNT
} ts_cfg_split;

/* Names of the values above, and back; a name that is none is -1. */
const char *ts_task_name(ts_task task);
const char *ts_mode_name(ts_mode mode);
const char *ts_group_norm_mode_name(ts_group_norm_mode mode);
const char *ts_cfg_split_name(ts_cfg_split split);
int ts_mode_find(const char *name);
int ts_group_norm_mode_find(const char *name);
int ts_cfg_split_find(const char *name);

typedef struct ts_parallel {
    ts_mode mode;
    int ranks;      /* 0: all of the group's devices. Fewer are used where the picture has too few rows */
    double partial; /* window, as a share of the patch's tokens before and after it; INFINITY: "all" */
    int warmup;     /* synchronous evaluations before the last synchronous one */
    ts_group_norm_mode group_norm;
    ts_cfg_split cfg_split;
} ts_parallel;

#define TS_PARALLEL_DEFAULT                                                                                  \
    {                                                                                                        \
        .mode = TS_MODE_PCPP, .ranks = 0, .partial = 0.3, .warmup = 4,                                       \
        .group_norm = TS_GROUP_NORM_CORRECTED, .cfg_split = TS_CFG_SPLIT_AUTO                                \
    }

/* A LoRA by its name, and how much of it. (engine/lora.h) */
#define TS_MAX_LORAS       4
#define TS_LORA_NAME_BYTES 256 /* of a file's name, without its extension */
#define TS_LORA_MAX_SCALE  10.0 /* either way */
typedef struct ts_lora_ref {
    char name[TS_LORA_NAME_BYTES];
    double scale;
    uint64_t stamp; /* tells the file from one that has taken its place; 0 where it does not matter */
} ts_lora_ref;

/* What all pictures of a batch have in common: two requests can share a batch if and only if these are equal. */
typedef struct ts_shape {
    int width, height; /* pixels, multiples of 8 */
    int steps;         /* 1..TS_MAX_STEPS */
    const ts_sampler *sampler;
    ts_scheduler scheduler;
    ts_level_list levels; /* of the schedulers SIGMAS and TIMESTEPS, as many as steps */
    bool has_eta;         /* else the sampler's own */
    double eta;           /* 0 to 1 */
    ts_parallel parallel;
    ts_dtype dtype; /* TS_F32 or TS_BF16 */
    bool guided;    /* classifier-free guidance: two U-Net passes a step */
    int chunks;     /* of the text (engine/prompt.h): as many as the longest of the prompts has; 0: 1 */
    ts_task task;
    double strength; /* IMAGE, INPAINT: the share of the steps that is run, 0 < strength <= 1 (but ts_begin_for) */
    int lora_count;  /* of the variant of the model, in order of name */
    ts_lora_ref loras[TS_MAX_LORAS];
} ts_shape;

int ts_shape_chunks(const ts_shape *s); /* at least 1 */
bool ts_shape_equal(const ts_shape *a, const ts_shape *b);
bool ts_shape_same_loras(const ts_shape *a, const ts_shape *b);

/* How many of the steps are left out, 0..steps: all but floor(steps * strength). */
int ts_shape_begin(const ts_shape *s);

/* A part of the steps, as shares of all, 0 <= from < to <= 1; to 0: 1. */
typedef struct ts_interval {
    double from, to;
} ts_interval;

/* What XL is told of the picture that it should paint a part of, in pixels. A width of 0: the picture's own size. (Podell
 * et al. 2023, arXiv 2307.01952, 2.2) */
typedef struct ts_size_condition {
    int original_width, original_height; /* before the model's training would have scaled it to this size */
    int crop_left, crop_top;             /* what was cut off at the left and the top */
    int target_width, target_height;     /* that it is scaled to */
} ts_size_condition;

/* What may differ between the pictures of a batch. */
typedef struct ts_picture_params {
    const char *prompt;   /* UTF-8, terminated */
    const char *negative; /* NULL: absent, which XL does not treat as "" */
    bool emphasis; /* brackets in the prompts are weights (engine/emphasis.h) */
    bool truncate; /* what does not fit into one chunk of text is left out, as in diffusers */
    uint64_t seed;
    ts_rng_kind rng; /* of the starting noise and of what the sampler draws; 0: PyTorch's on the CPU */
    int clip_skip; /* layers earlier that the prompt's text is taken from the encoders, 0: where the pipeline takes it;
                      the negative prompt's never is, as in diffusers */
    ts_size_condition sizes; /* XL only; zeros for other models */
    /* Used when the shape is guided (engine/guidance.h). */
    double guidance_scale; /* a model that is told it (ts_model_guides) always is */
    double guidance_rescale; /* 0..1 */
    ts_interval guidance_interval;
    /* IMAGE, INPAINT: [height][width][3] and, INPAINT, [height][width], of the shape's size. */
    const unsigned char *image, *mask;
} ts_picture_params;

/* The strength of a task where nobody chose one, as in diffusers. */
#define TS_STRENGTH_IMAGE   0.8
#define TS_STRENGTH_INPAINT 1.0

/* What a value of the mask says: at least half painted is painted. */
static inline bool ts_mask_paints(unsigned char value) { return value >= 128; }

typedef struct ts_picture {
    ts_picture_params params;
    /* NULL, or what the text encoder would make, float32 [tokens][width]: of the negative prompt where the shape
     * is guided, then of the prompt. Not for models with pooled text (XL). */
    const float *text_in;
    const float *latents_in; /* NULL, or unit-normal noise [4][h/8][w/8] instead of the seed's */
    atomic_bool cancelled; /* any thread may set it; the picture stops within one evaluation */
    void *arg;             /* the caller's */

    /* Filled before on_picture. */
    ts_error error;     /* code TS_OK, TS_ECANCELLED, TS_ENONFINITE, ... */
    unsigned char *rgb; /* [height][width][3], malloc'ed; the callback may take it and set it to NULL */
    float *latents_out; /* [4][h/8][w/8], malloc'ed, only if the job's keep_latents; likewise */
} ts_picture;

/* Figures of one run. */
typedef struct ts_job_stats {
    int ranks;          /* that took part */
    int patches;        /* rows were split into; ranks / patches is 2 where the guidance branches were split */
    int evaluations, synchronous; /* of the U-Net in all, and how many of them were synchronous */
    double compile_s; /* of the U-Net's and the autoencoder's programs, which the next ones do not count */
    double text_s, encode_s, denoise_s, decode_s, total_s;
    double wait_s[TS_MAX_RANKS];         /* time that the rank waited for peers */
    double flops[TS_MAX_RANKS];          /* of the U-Net and the decoder */
    uint64_t sent_bytes[TS_MAX_RANKS];   /* to all peers, whole job */
    uint64_t sent_steady[TS_MAX_RANKS];  /* by one asynchronous evaluation */
    uint64_t arena_bytes[TS_MAX_RANKS];
} ts_job_stats;

typedef struct ts_job {
    ts_shape shape;
    ts_picture *pictures;
    int count; /* 1..TS_MAX_BATCH */
    bool keep_latents;
    /* On a thread of the group; must not block. step counts finished evaluations, 1..total. */
    void (*on_step)(void *arg, int step, int total);
    /* Once for every picture, in any order, on a thread of the group. */
    void (*on_picture)(void *arg, ts_picture *picture);
    void *arg;
    ts_job_stats stats;
    bool want_profile;
    ts_trace *trace; /* NULL, or zeroed, to be filled by a job of one picture; ts_trace_free it */
    /* Afterwards, if wanted: a text, one line an op of rank 0, slowest first; free() it. Of the last leg (engine/run.h),
     * which is all evaluations unless a picture or the guidance has ended before. */
    char *profile;
} ts_job;

#endif
