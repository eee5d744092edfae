/* AMX's instructions on processors that have none, where each raises SIGILL: done in its handler.
 *
 * So the code that is tested is the code that runs where there is AMX, down to the encoding. Semantics: Intel
 * SDM, volume 2, LDTILECFG, STTILECFG, TILELOADD, TILELOADDT1, TILESTORED, TILEZERO, TILERELEASE, TDPBF16PS. Each
 * thread has tiles of its own. */
#ifndef TS_TESTS_AMX_EMULATE_H
#define TS_TESTS_AMX_EMULATE_H

#include <stdbool.h>
#include <stdint.h>
#include <ucontext.h>

/* Does what the instruction at the context's RIP would have done, and steps over it. False: it is none of AMX's, or one that
 * would fault. For a handler of SIGILL. */
bool amx_emulate(ucontext_t *context);

/* How many of them there have been, on all threads. */
typedef struct amx_counts {
    uint64_t products, moves, others; /* TDPBF16PS; loads and stores of tiles; zeros and configurations */
} amx_counts;
amx_counts amx_counted(void);

/* The same of a program that only pretends (pretend.c); NULL in any other. */
__attribute__((weak)) amx_counts amx_pretended(void);

#endif
