/* The local transport: ranks are threads of one process, a post is a memcpy and a counter. */
#include "engine/transport.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include "base/alloc.h"

/* How often a wait looks before it sleeps. Peers are usually ahead or nearly there; with more ranks than
 * cores a longer spin would only keep them from running. */
#define SPINS 200

typedef struct bell {
    pthread_mutex_t lock;
    pthread_cond_t rung;
    atomic_int sleeping;
} bell;

typedef struct local {
    ts_transport base;
    int exchanges;
    char *inbox[TS_MAX_RANKS];
    const ts_exchange *table[TS_MAX_RANKS];
    bell bells[TS_MAX_RANKS];
    atomic_uint *arrived; /* [to][exchange][from]: the last evaluation whose post is there */
    atomic_uint finished[TS_MAX_RANKS];
    atomic_bool aborted;
} local;

static atomic_uint *counter(local *l, int to, int x, int from) {
    size_t n = (size_t)l->base.ranks;
    return &l->arrived[((size_t)to * (size_t)l->exchanges + (size_t)x) * n + (size_t)from];
}

/* Tells the core that this is a spin. */
static void relax(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#endif
}

/* The sleeper announces itself before it looks again, the ringer stores before it looks for sleepers; both
 * sequentially consistent, so one of them sees the other. */
static void ring(bell *b) {
    if (!atomic_load(&b->sleeping)) return;
    pthread_mutex_lock(&b->lock);
    pthread_cond_broadcast(&b->rung);
    pthread_mutex_unlock(&b->lock);
}

static ts_code wait_until(local *l, int rank, atomic_uint *at, unsigned least) {
    for (int i = 0; i < SPINS; i++) {
        if (atomic_load(at) >= least) return TS_OK;
        if (atomic_load(&l->aborted)) return TS_ECANCELLED;
        relax();
    }
    bell *b = &l->bells[rank];
    pthread_mutex_lock(&b->lock);
    atomic_fetch_add(&b->sleeping, 1);
    while (atomic_load(at) < least && !atomic_load(&l->aborted)) pthread_cond_wait(&b->rung, &b->lock);
    atomic_fetch_sub(&b->sleeping, 1);
    pthread_mutex_unlock(&b->lock);
    return atomic_load(at) >= least ? TS_OK : TS_ECANCELLED;
}

static void local_free(ts_transport *t) {
    local *l = (local *)t;
    for (int i = 0; i < t->ranks; i++) {
        pthread_mutex_destroy(&l->bells[i].lock);
        pthread_cond_destroy(&l->bells[i].rung);
    }
    free(l->arrived);
    free(l);
}

static void local_attach(ts_transport *t, int rank, char *inbox, const ts_exchange *exchanges) {
    local *l = (local *)t;
    l->inbox[rank] = inbox;
    l->table[rank] = exchanges;
}

static void local_reset(ts_transport *t, unsigned evaluation) {
    local *l = (local *)t;
    size_t n = (size_t)t->ranks * (size_t)t->ranks * (size_t)l->exchanges;
    for (size_t i = 0; i < n; i++) atomic_store(&l->arrived[i], evaluation);
    for (int i = 0; i < t->ranks; i++) atomic_store(&l->finished[i], evaluation);
    atomic_store(&l->aborted, false);
}

static ts_code local_post(ts_transport *t, int rank, int peer, int x, unsigned evaluation, const void *source,
                          size_t pitch) {
    local *l = (local *)t;
    const ts_slot *s = &l->table[peer][x].from[rank];
    char *to = l->inbox[peer] + s->offset[evaluation & 1];
    const char *from = source;
    for (int i = 0; i < s->runs; i++)
        memcpy(to + (size_t)i * s->run_bytes, from + (size_t)i * pitch, s->run_bytes);
    atomic_store(counter(l, peer, x, rank), evaluation);
    ring(&l->bells[peer]);
    return TS_OK;
}

static ts_code local_wait(ts_transport *t, int rank, int peer, int x, unsigned evaluation) {
    local *l = (local *)t;
    return wait_until(l, rank, counter(l, rank, x, peer), evaluation);
}

static void local_finished(ts_transport *t, int rank, unsigned evaluation) {
    local *l = (local *)t;
    atomic_store(&l->finished[rank], evaluation);
    for (int i = 0; i < t->ranks; i++)
        if (i != rank) ring(&l->bells[i]);
}

static ts_code local_wait_finished(ts_transport *t, int rank, int peer, unsigned evaluation) {
    local *l = (local *)t;
    return wait_until(l, rank, &l->finished[peer], evaluation);
}

static void local_abort(ts_transport *t) {
    local *l = (local *)t;
    atomic_store(&l->aborted, true);
    for (int i = 0; i < t->ranks; i++) ring(&l->bells[i]);
}

static const ts_transport_ops local_ops = {
    .free = local_free,
    .attach = local_attach,
    .reset = local_reset,
    .post = local_post,
    .wait = local_wait,
    .finished = local_finished,
    .wait_finished = local_wait_finished,
    .abort = local_abort,
};

ts_code ts_transport_local_new(int ranks, int exchanges, ts_transport **ret) {
    local *l = ts_new0(local);
    size_t n = (size_t)ranks * (size_t)ranks * (size_t)exchanges;
    atomic_uint *arrived = ts_array0(atomic_uint, n);
    if (!l || !arrived) {
        free(l);
        free(arrived);
        return TS_ENOMEM;
    }
    l->base = (ts_transport){.ops = &local_ops, .ranks = ranks};
    l->exchanges = exchanges;
    l->arrived = arrived;
    for (int i = 0; i < ranks; i++) {
        pthread_mutex_init(&l->bells[i].lock, NULL);
        pthread_cond_init(&l->bells[i].rung, NULL);
    }
    *ret = &l->base;
    return TS_OK;
}
