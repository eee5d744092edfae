/* The table for AMX on processors where only that is missing. */
#include "kerncheck.h"

#if defined(__x86_64__) && defined(__linux__)
#include <signal.h>
#include <stdlib.h>
#include "../amx/emulate.h"

static void on_illegal(int number, siginfo_t *info, void *context) {
    (void)info;
    if (!amx_emulate(context)) signal(number, SIG_DFL); /* and again, for good */
}

const ts_vec *kc_emulated_amx(void) {
    const ts_vec *tables[TS_VEC_TABLES];
    int n = ts_vec_all(tables);
    if (tables[n - 1] == &ts_vec_amx || !tables[n - 1]->fast_bf16) return NULL;
    struct sigaction action = {.sa_sigaction = on_illegal, .sa_flags = SA_SIGINFO};
    if (sigaction(SIGILL, &action, NULL)) abort();
    return &ts_vec_amx;
}
#else
const ts_vec *kc_emulated_amx(void) {
    return NULL;
}
#endif
