#include "torture.h"

#include <execinfo.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { OWN_FRAMES = 2, MOST = 1 << 14 };

/* The one that is not wrapped (wrapped.c). */
int __real_pthread_create(pthread_t *ret, const pthread_attr_t *a, void *(*run)(void *), void *arg);

typedef enum mode { OFF, LEARN, ONCE, LASTING } mode;

static struct {
    pthread_mutex_t lock;
    mode mode;
    int depth;
    bool struck;     /* the place was reached, in this mode */
    bool was_struck; /* and in this run, in which the act may have relented */
    uint64_t target;
    torture_kind kind; /* of its call */
    size_t count;
    uint64_t hashes[2 * MOST]; /* an open table; 0: free */
    torture_place places[MOST];
    uint64_t hash_of[MOST];
} t = {.lock = PTHREAD_MUTEX_INITIALIZER};

static _Thread_local bool spared;

void torture_spare(void) {
    spared = true;
}

static uint64_t mix(uint64_t h, uint64_t v) {
    h = (h ^ v) * 0x9e3779b97f4a7c15u;
    return h ^ h >> 29;
}

static void learn(uint64_t hash, const torture_place *place) {
    size_t i = hash % (2 * MOST);
    while (t.hashes[i] && t.hashes[i] != hash) i = (i + 1) % (2 * MOST);
    if (t.hashes[i] || t.count == MOST) return;
    t.hashes[i] = hash;
    t.hash_of[t.count] = hash;
    t.places[t.count++] = *place;
}

bool torture_strikes(const char *call, torture_kind kind) {
    if (spared || __atomic_load_n(&t.mode, __ATOMIC_ACQUIRE) == OFF) return false;
    spared = true; /* it may itself allocate */
    void *frames[TORTURE_DEPTH + OWN_FRAMES];
    int n = backtrace(frames, t.depth + OWN_FRAMES) - OWN_FRAMES;
    spared = false;
    torture_place place = {.call = call, .kind = kind, .depth = n < 0 ? 0 : n};
    memcpy(place.callers, frames + OWN_FRAMES, (size_t)place.depth * sizeof *frames);
    uint64_t hash = mix(1, (uintptr_t)call);
    for (int i = 0; i < place.depth; i++) hash = mix(hash, (uintptr_t)place.callers[i]);
    hash |= 1;
    pthread_mutex_lock(&t.lock);
    bool strikes = false;
    if (t.mode == LEARN)
        learn(hash, &place);
    else if (t.mode == LASTING && t.struck)
        strikes = kind == t.kind;
    else if (t.mode != OFF && hash == t.target && !t.struck)
        strikes = t.struck = t.was_struck = true;
    pthread_mutex_unlock(&t.lock);
    return strikes;
}

static void set_mode(mode to, uint64_t target, torture_kind kind) {
    pthread_mutex_lock(&t.lock);
    t.target = target;
    t.kind = kind;
    t.struck = false;
    __atomic_store_n(&t.mode, to, __ATOMIC_RELEASE);
    pthread_mutex_unlock(&t.lock);
}

void torture_relent(void) {
    set_mode(OFF, 0, TORTURE_MEMORY);
}

static void describe(const torture_place *p, bool lasting) {
    fprintf(stderr, "# so it went with %s failing %s, called from\n", p->call,
            lasting ? "from here on" : "here");
    fflush(stderr);
    backtrace_symbols_fd(p->callers, p->depth, STDERR_FILENO);
}

typedef struct act_run {
    const torture_act *act;
    const torture_place *place;
    bool lasting, spared, went;
} act_run;

static void *run_act(void *arg) {
    act_run *r = arg;
    spared = r->spared;
    r->went = r->act->run(r->act->arg, r->place, r->lasting);
    return NULL;
}

/* On a thread of its own: so the chains of callers that tell places apart begin alike in every run. */
static bool go(const torture_act *act, const torture_place *place, bool lasting) {
    act_run r = {act, place, lasting, spared, false};
    pthread_t thread;
    if (__real_pthread_create(&thread, NULL, run_act, &r)) return false;
    pthread_join(thread, NULL);
    return r.went;
}

static bool learn_all(const torture_act *act) {
    void *frame[1];
    backtrace(frame, 1); /* loads what it needs */
    t.depth = act->depth;
    set_mode(LEARN, 0, TORTURE_MEMORY);
    bool good = go(act, NULL, false);
    torture_relent();
    if (t.count == MOST) fprintf(stderr, "# more places than there is room for\n");
    return good && t.count < MOST;
}

bool torture_fail_each(const torture_act *act, size_t *ret_places) {
    enum { TRIES = 4 };
    const size_t first = t.count;
    bool good = learn_all(act);
    const size_t runs = 2 * (t.count - first);
    size_t missed = 0;
    for (size_t i = 0; i < runs; i++) {
        const torture_place *place = &t.places[first + i / 2];
        const bool lasting = i % 2;
        t.was_struck = false;
        /* Which way threads go is a matter of time: what was not come through is tried again. */
        for (int k = 0; k < TRIES && !t.was_struck; k++) {
            set_mode(lasting ? LASTING : ONCE, t.hash_of[first + i / 2], place->kind);
            const bool went = go(act, place, lasting);
            torture_relent();
            if (!went) describe(place, lasting);
            good = good && went;
        }
        missed += !t.was_struck;
    }
    *ret_places = runs / 2;
    if (missed * 10 > runs) {
        fprintf(stderr, "# %zu of %zu runs never came through their place\n", missed, runs);
        return false;
    }
    return good;
}
