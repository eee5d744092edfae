/* A scheduler over the puppet, and what is heard of it. Failures fail the test. */
#ifndef TS_TESTS_STAGE_H
#define TS_TESTS_STAGE_H

#include "puppet.h"

enum { MAX_EVENTS = 65536, LONG_MS = 600000 }; /* LONG_MS: a wait that would outlast the test */

typedef struct heard {
    ts_event_kind kind;
    uint64_t token;
    int position, index, step, total, batch, colour; /* colour of the picture's first byte; -1 none */
    ts_code code;
    bool stats;
    double eta_s;
    char param[16], message[64];
} heard;

extern struct ear {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    heard events[MAX_EVENTS];
    int count;
    bool keep_rgb; /* do not take the pixels */
} ear;

void hear(void *arg, const ts_event *e); /* on_event */
/* Copies the events of a token, at most `most`; returns how many there are. */
int events_of(uint64_t token, heard *ret, int most);
int count_kind(uint64_t token, ts_event_kind kind, heard *ret_last);
heard await(uint64_t token, ts_event_kind kind); /* the last one, when there is one */

extern ts_group pair, one; /* of two devices and of one */
extern ts_model models[2];

/* Both models, and the first group_count of the two groups; nothing has been heard yet. */
ts_sched *start(int max_queue, int max_batch, int max_wait_ms, int group_count);
ts_request ask(uint64_t token); /* one picture of a shape that all have */
void submit(ts_sched *s, ts_request r);
/* Occupies the first group until the gate opens, with a shape that nobody else has. */
void occupy(ts_sched *s, uint64_t token);
/* The events of a token are in order and complete. */
void check_order(uint64_t token, int pictures);

/* The same as ask, with a LoRA. */
ts_request ask_lora(uint64_t token, const char *name, double scale);

#endif
