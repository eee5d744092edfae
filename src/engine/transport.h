/* Transports: how what one rank computes reaches the inboxes of its peers.
 *
 * Every rank of a patch group builds the same program for its own rows, so an exchange (one layer's halo, say)
 * has the same index on all of them. What a rank receives lies in its inbox, a buffer of the program's, in a
 * slot for each exchange and sender that only that sender writes. A slot has two copies by the parity of the
 * evaluation, so that what a peer still reads is never overwritten, provided that nobody begins evaluation
 * t + 1 before those it writes to have finished t (ts_transport_finished, ts_transport_wait_finished).
 *
 * Evaluations count from 1 within a job. */
#ifndef TS_ENGINE_TRANSPORT_H
#define TS_ENGINE_TRANSPORT_H

#include "engine/job.h"

typedef enum ts_exchange_kind {
    TS_EXCHANGE_HALO,   /* a row from each neighbour */
    TS_EXCHANGE_STATS,  /* GroupNorm sums from everyone; the own slot holds the own ones */
    TS_EXCHANGE_WINDOW, /* keys and values of the window, for the next evaluation */
    TS_EXCHANGE_GATHER, /* all keys and values, for this evaluation */
    TS_EXCHANGE_NOISE   /* the other guidance branch's prediction */
} ts_exchange_kind;

/* What one sender puts into this rank's inbox: `runs` runs of `run_bytes`, dense. */
typedef struct ts_slot {
    int runs; /* 0: nothing comes from that peer */
    size_t run_bytes;
    size_t offset[2]; /* in the inbox, by parity */
    long first_token; /* WINDOW, GATHER: which token of the picture is the first */
    int tokens;
} ts_slot;

typedef struct ts_exchange {
    ts_exchange_kind kind;
    ts_slot from[TS_MAX_RANKS]; /* what this rank receives */
    ts_slot to[TS_MAX_RANKS];   /* what it sends: runs, run_bytes, first_token, tokens; offsets unused */
} ts_exchange;

typedef struct ts_transport ts_transport;

typedef struct ts_transport_ops {
    void (*free)(ts_transport *t);
    /* Rank's own thread, before the first post of anyone: where its inbox is. `exchanges` stays the caller's. */
    void (*attach)(ts_transport *t, int rank, char *inbox, const ts_exchange *exchanges);
    /* All ranks idle: everything up to `evaluation` counts as posted and finished, nothing after it; an abort
     * is forgotten. 0 before a job. */
    void (*reset)(ts_transport *t, unsigned evaluation);
    /* Sends `runs` runs, `pitch` bytes apart, as exchange x of evaluation t to `peer`. The source may be
     * reused when it returns. */
    ts_code (*post)(ts_transport *t, int rank, int peer, int x, unsigned evaluation, const void *source,
                    size_t pitch);
    /* Until peer's post of exchange x of that evaluation is in this rank's inbox. TS_ECANCELLED after abort. */
    ts_code (*wait)(ts_transport *t, int rank, int peer, int x, unsigned evaluation);
    void (*finished)(ts_transport *t, int rank, unsigned evaluation);
    ts_code (*wait_finished)(ts_transport *t, int rank, int peer, unsigned evaluation);
    /* Any thread: every wait, now and later, returns TS_ECANCELLED until reset. */
    void (*abort)(ts_transport *t);
} ts_transport_ops;

struct ts_transport {
    const ts_transport_ops *ops;
    int ranks;
};

/* Ranks are threads of one process that share memory; a post is a memcpy. exchanges: how many there are. */
ts_code ts_transport_local_new(int ranks, int exchanges, ts_transport **ret);

static inline void ts_transport_free(ts_transport *t) {
    if (t) t->ops->free(t);
}

#endif
