/* The local transport between threads: what is read is what was posted for that evaluation, two copies are
 * enough under the rule of the header, and an abort wakes everybody. Also runs under ThreadSanitizer. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>
#include "engine/transport.h"

enum { RANKS = 4, EXCHANGES = 3, RUNS = 2, WORDS = 24, EVALUATIONS = 400, PITCH = WORDS * 4 + 20 };

static ts_transport *transport;
static ts_exchange exchanges[RANKS][EXCHANGES];
static uint32_t inbox[RANKS][EXCHANGES * RANKS * 2 * RUNS * WORDS];
static ts_code codes[RANKS];
static unsigned wrong[RANKS], stop_at;

/* What a word of a post must be: nothing else makes it. */
static uint32_t word(int from, int to, int x, unsigned evaluation, int i) {
    return (uint32_t)(from * 7 + to * 31 + x * 101 + i) * 2654435761u ^ evaluation;
}

static void open_transport(void) {
    memset(wrong, 0, sizeof wrong);
    stop_at = 0;
    assert_int_equal(ts_transport_local_new(RANKS, EXCHANGES, &transport), TS_OK);
    for (int r = 0; r < RANKS; r++) {
        size_t at = 0;
        for (int x = 0; x < EXCHANGES; x++)
            for (int j = 0; j < RANKS; j++) {
                if (j == r) continue;
                ts_slot s = {.runs = RUNS, .run_bytes = WORDS * 4};
                exchanges[r][x].to[j] = s;
                for (int parity = 0; parity < 2; parity++, at += RUNS * WORDS * 4) s.offset[parity] = at;
                exchanges[r][x].from[j] = s;
            }
        transport->ops->attach(transport, r, (char *)inbox[r], exchanges[r]);
    }
}

static ts_code post_all(int me, unsigned e) {
    char source[RUNS * PITCH];
    for (int x = 0; x < EXCHANGES; x++)
        for (int j = 0; j < RANKS; j++) {
            if (j == me) continue;
            for (int run = 0; run < RUNS; run++)
                for (int i = 0; i < WORDS; i++) {
                    uint32_t w = word(me, j, x, e, run * WORDS + i);
                    memcpy(source + run * PITCH + i * 4, &w, 4);
                }
            ts_code rc = transport->ops->post(transport, me, j, x, e, source, PITCH);
            if (rc) return rc;
            memset(source, 0xee, sizeof source); /* may be reused when post returns */
        }
    return TS_OK;
}

static ts_code read_all(int me, unsigned e) {
    for (int x = 0; x < EXCHANGES; x++)
        for (int j = 0; j < RANKS; j++) {
            if (j == me) continue;
            ts_code rc = transport->ops->wait(transport, me, j, x, e);
            if (rc) return rc;
            const uint32_t *w = inbox[me] + exchanges[me][x].from[j].offset[e & 1] / 4;
            for (int i = 0; i < RUNS * WORDS; i++) wrong[me] += w[i] != word(j, me, x, e, i);
        }
    return TS_OK;
}

/* An asynchronous job: evaluation e posts its own and reads what the peers posted in e - 1. */
static void *rank_main(void *arg) {
    int me = *(const int *)arg;
    ts_code rc = TS_OK;
    for (unsigned e = 1; e <= EVALUATIONS && !rc; e++) {
        for (int j = 0; j < RANKS && !rc; j++)
            if (j != me) rc = transport->ops->wait_finished(transport, me, j, e - 1);
        if (me == 2 && e == stop_at) {
            usleep(20000); /* until the others sleep */
            transport->ops->abort(transport);
            break;
        }
        if (!rc) rc = post_all(me, e);
        if (!rc && e > 1) rc = read_all(me, e - 1);
        if (!rc) transport->ops->finished(transport, me, e);
    }
    codes[me] = rc;
    return NULL;
}

static void run_ranks(void) {
    pthread_t threads[RANKS];
    int index[RANKS];
    for (int i = 0; i < RANKS; i++) {
        index[i] = i;
        assert_int_equal(pthread_create(&threads[i], NULL, rank_main, &index[i]), 0);
    }
    for (int i = 0; i < RANKS; i++) pthread_join(threads[i], NULL);
}

static void every_read_sees_the_post_of_its_evaluation(void **state) {
    (void)state;
    open_transport();
    for (int job = 0; job < 3; job++) {
        transport->ops->reset(transport, 0);
        run_ranks();
        for (int i = 0; i < RANKS; i++) {
            assert_int_equal(codes[i], TS_OK);
            assert_int_equal(wrong[i], 0);
        }
    }
    ts_transport_free(transport);
}

static void an_abort_ends_every_wait_until_the_reset(void **state) {
    (void)state;
    open_transport();
    transport->ops->reset(transport, 0);
    stop_at = 7;
    run_ranks();
    for (int i = 0; i < RANKS; i++)
        if (i != 2) assert_int_equal(codes[i], TS_ECANCELLED);
    assert_int_equal(transport->ops->wait(transport, 0, 1, 0, EVALUATIONS), TS_ECANCELLED);
    stop_at = 0;
    transport->ops->reset(transport, 0);
    run_ranks();
    for (int i = 0; i < RANKS; i++) {
        assert_int_equal(codes[i], TS_OK);
        assert_int_equal(wrong[i], 0);
    }
    ts_transport_free(transport);
    ts_transport_free(NULL);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_read_sees_the_post_of_its_evaluation),
        cmocka_unit_test(an_abort_ends_every_wait_until_the_reset),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
