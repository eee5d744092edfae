/* A group from inside the engine: its rank threads, and the programs that they have compiled. */
#ifndef TS_ENGINE_GROUP_H
#define TS_ENGINE_GROUP_H

#include <pthread.h>
#include "engine/model.h"
#include "engine/program.h"

typedef struct ts_rank {
    ts_group *group;
    int index;
    ts_device *device;
    ts_arena *arena; /* of all programs that it runs */
    pthread_t thread;
    bool started;
} ts_rank;

/* How the ranks of a job are arranged. Rank r has patch r % patches of branch r / patches. */
typedef struct ts_layout {
    int patches, branches; /* branches 2: one half of the ranks has the unconditional one, the other the conditional */
    ts_rows rows;          /* of the latent */
} ts_layout;

/* What programs depend on. Two jobs with equal keys use the same ones. */
typedef enum ts_plan_kind { TS_PLAN_UNET, TS_PLAN_DECODER, TS_PLAN_ENCODER } ts_plan_kind;
typedef struct ts_plan_key {
    ts_plan_kind kind;
    const ts_model *model; /* the owner of the weights: a variant's decoder is its model's */
    int width, height; /* of the latent; ENCODER: of the picture */
    int batch;         /* images side by side in a rank's program */
    int chunks;        /* of the U-Net's text */
    ts_dtype dtype;
    int patches, branches;
    bool naive, displaced;
    double partial;
    ts_group_norm_mode group_norm;
} ts_plan_key;

/* A rank's end of a transport for what the sampler needs, outside the program. */
typedef struct ts_link {
    ts_transport *transport; /* the same one for all whom it connects; NULL: nobody */
    ts_exchange exchange;    /* the only one */
    char *inbox;
} ts_link;

/* What the patches of the pictures of a batch add up in one evaluation. */
#define TS_PICTURE_SUMS 4
typedef struct ts_sums {
    double of[TS_MAX_BATCH][TS_PICTURE_SUMS];
} ts_sums;

/* The programs of all ranks for one key, and what connects them. */
typedef struct ts_plan {
    struct ts_plan *next; /* most recently used first */
    ts_plan_key key;
    ts_layout layout;
    int ranks;
    ts_program *program[TS_MAX_RANKS];
    ts_transport *branch[2]; /* between the patches of a branch; NULL where there is nothing to exchange */
    ts_link noise[TS_MAX_RANKS];     /* between the two ranks of a patch */
    ts_link sums[TS_MAX_RANKS];      /* between the patches of a branch, unless they are naive */
    size_t bytes; /* of its own, on all ranks: the arenas are shared */
} ts_plan;

typedef struct ts_text_program {
    struct ts_text_program *next; /* most recently used first */
    const ts_model *model;
    int encoder, layers; /* of its model; after which the text is taken */
    ts_dtype dtype;
    ts_program *program;
} ts_text_program;

struct ts_group {
    int count;
    ts_rank ranks[TS_MAX_RANKS];
    pthread_mutex_t lock;
    pthread_cond_t work, done;
    void (*task)(void *arg, ts_rank *rank); /* of the round that runs */
    void *task_arg;
    int task_ranks, remaining;
    unsigned round;
    bool stop;
    /* Changed by the thread of the running job alone, but for what ts_group_forget takes out. */
    pthread_mutex_t kept;
    ts_plan *plans;
    size_t plan_bytes; /* what they and the arenas may take together; those in use always stay */
    ts_text_program *texts;
};

/* Runs task on the threads of ranks 0..ranks-1 and returns when all have returned. One caller at a time. */
void ts_group_each(ts_group *g, int ranks, void (*task)(void *arg, ts_rank *rank), void *arg);

/* Patches and branches for a shape: what ts_group_check has accepted always has a layout. */
ts_layout ts_layout_of(const ts_group *g, const ts_model *m, const ts_shape *shape);

/* The model's schedule as a shape asks for it, which must outlive the answer. */
ts_schedule_config ts_schedule_for(const ts_model *m, const ts_shape *shape);
/* How many of the steps are left out: ts_shape_begin, but for a latent consistency model's pipeline, which goes through the
 * lower part of the noise levels in as many steps. */
int ts_begin_for(const ts_model *m, const ts_shape *shape);

/* The plan for a key, compiled on the rank threads if it is not there. Past ones are kept in the order of their last use,
 * as far as they and the arenas fit into the budget; the answer is good until the next call but one. */
ts_code ts_plan_get(ts_group *g, const ts_plan_key *key, const ts_layout *layout, ts_plan **ret, ts_error *e);
void ts_plans_free(ts_group *g, const ts_model *model); /* those of a model; NULL: all */

#endif
