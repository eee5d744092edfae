/* Every call that can fail, failed.
 *
 * The linker puts a wrapper (wrapped.c) between the program's own code and what it calls of the C library,
 * oneDNN, libuv and libmicrohttpd that can fail; cJSON and libpng get their memory through it. An act is run once to learn its places:
 * the call and the chain of callers that leads to it. Then it is run twice more for each place that no act
 * before has been through: once with only the first call there failing, once with every call of its kind
 * failing from there on, as where memory has really run out. Under AddressSanitizer what is lost on such
 * ways shows as well. (After SQLite's and curl's tests.) */
#ifndef TS_TESTS_TORTURE_H
#define TS_TESTS_TORTURE_H

#include <stdbool.h>
#include <stddef.h>

#define TORTURE_DEPTH 6

/* What runs out when it fails. */
typedef enum torture_kind { TORTURE_MEMORY, TORTURE_SYSTEM } torture_kind;

typedef struct torture_place {
    const char *call;
    torture_kind kind;
    void *callers[TORTURE_DEPTH];
    int depth;
} torture_place;

typedef struct torture_act {
    /* Runs the whole, releases the whole. place: NULL while nothing fails, else what may be failing, once
     * or `lasting`. Whether all went as it should; if not, it has said why on stderr. */
    bool (*run)(void *arg, const torture_place *place, bool lasting);
    void *arg;
    /* How many callers tell two places apart, TORTURE_DEPTH at most. More of them find more ways through
     * the same code, and take longer. */
    int depth;
} torture_act;

/* Learns, then fails what was new. False if any run went wrong, or if more than a tenth of them did not come
 * through the place that was to fail, in several tries; *ret_places: how many there are. */
bool torture_fail_each(const torture_act *act, size_t *ret_places);

/* The calling thread's calls never fail and are no places: a client's, say. */
void torture_spare(void);

/* From here to the end of the run nothing fails: an act sees what is left. */
void torture_relent(void);

/* For the wrappers: true when this call has to fail. */
bool torture_strikes(const char *call, torture_kind kind);

#endif
