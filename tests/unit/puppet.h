/* A puppet instead of the engine, for tests of the scheduler: its runs stop at a gate, its pictures are one
 * colour, a prompt or the name of a LoRA can ask it to fail ("nan", "device", "silence"; "missing", "broken",
 * "disk"), and its models fail the test when they go while a group runs or remembers them. Linked instead of
 * the engine, so that this also runs under ThreadSanitizer. */
#ifndef TS_TESTS_PUPPET_H
#define TS_TESTS_PUPPET_H

#include <pthread.h>
#include <stdatomic.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include "sched/sched.h"

struct ts_group {
    int size;
};
struct ts_model {
    const ts_model *base;        /* of a variant */
    char path[64];               /* its last file */
    atomic_int users, ran, forgotten; /* runs now, and ever; groups that have forgotten it */
};

enum { MAX_RUNS = 4096, VARIANT_BYTES = 100 };

typedef struct run {
    const ts_group *group;
    const ts_model *model;
    char path[64];
    ts_shape shape;
    int count;
    uint64_t seeds[TS_MAX_BATCH];
    char prompts[TS_MAX_BATCH][16];
    double guidance[TS_MAX_BATCH];
} run;

/* What it did, and what it is to do. Under the lock while groups run. */
extern struct puppet {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool closed; /* no evaluation passes */
    run runs[MAX_RUNS];
    int begun;
    bool slow;        /* no variant is made */
    int made, living; /* variants */
    uint64_t stamp;   /* of all files, from now on */
    int groups;       /* that are to forget a variant before it goes */
} puppet;

void puppet_gate(bool closed);
void puppet_await_runs(int n); /* since the scheduler was started */
run puppet_run(int i);         /* the i-th of them */
int puppet_living(void);       /* variants */

#endif
