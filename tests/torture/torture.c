#include "torture.h"

#include <execinfo.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { OWN_FRAMES = 2, MOST = 1 << 14 };

typedef enum mode { OFF, LEARN, ONCE, LASTING } mode;

static struct {
    pthread_mutex_t lock;
    mode mode;
    int depth;
    bool struck; /* the place was reached */
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
        strikes = t.struck = true;
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

bool torture_learn(const torture_act *act) {
    void *frame[1];
    backtrace(frame, 1); /* loads what it needs */
    t.depth = act->depth;
    set_mode(LEARN, 0, TORTURE_MEMORY);
    bool good = act->run(act->arg, NULL, false);
    torture_relent();
    if (t.count == MOST) fprintf(stderr, "# more places than there is room for\n");
    return good && t.count < MOST;
}

bool torture_fail_each(const torture_act *act, size_t *ret_places) {
    const size_t first = t.count;
    bool good = torture_learn(act);
    const size_t end = t.count;
    for (size_t i = first; i < end; i++)
        for (int lasting = 0; lasting < 2; lasting++) {
            set_mode(lasting ? LASTING : ONCE, t.hash_of[i], t.places[i].kind);
            bool went = act->run(act->arg, &t.places[i], lasting);
            torture_relent();
            if (!went) describe(&t.places[i], lasting);
            good = good && went;
        }
    *ret_places = end - first;
    return good;
}
