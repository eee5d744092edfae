/* What "cpu:2" and "auto" mean. */
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "engine/engine.h"

static int cores(void) {
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
    long n = sysconf(_SC_NPROCESSORS_ONLN);
    return n > 0 ? (int)n : 1;
}

/* A decimal number in 1..high that ends at one of `ends`; *at moves behind it. */
static bool number(const char **at, int high, int *ret) {
    char *end;
    if (**at < '0' || **at > '9') return false;
    long n = strtol(*at, &end, 10);
    if (n < 1 || n > high) return false;
    *at = end;
    *ret = (int)n;
    return true;
}

ts_code ts_devices_parse(const char *text, ts_device_spec ret[TS_MAX_RANKS], int *ret_count, ts_error *e) {
    const ts_backend *backend = ts_backend_find("cpu");
    int count = 0, threads = 0, all = cores();
    if (!strcmp(text, "auto")) {
        count = all / 2 < 2 ? 2 : all / 2 > TS_MAX_RANKS ? TS_MAX_RANKS : all / 2;
    } else {
        const char *at = strchr(text, ':');
        char kind[16] = "";
        if (at && (size_t)(at - text) < sizeof kind) memcpy(kind, text, (size_t)(at - text));
        backend = kind[0] ? ts_backend_find(kind) : NULL;
        if (!backend)
            return ts_fail_param(e, TS_EINVAL, "devices",
                                 "devices: \"%.64s\" is not \"auto\", \"cpu:N\" or \"cpu:NxT\"", text);
        at++;
        bool good = number(&at, TS_MAX_RANKS, &count);
        if (good && *at == 'x') {
            at++;
            good = number(&at, 1024, &threads);
        }
        if (!good || *at)
            return ts_fail_param(
                e, TS_EINVAL, "devices",
                "devices: \"%.64s\" is not %.8s:N with N from 1 to %d, or %.8s:NxT with T threads each", text,
                kind, TS_MAX_RANKS, kind);
    }
    if (!threads) threads = all / count > 0 ? all / count : 1;
    for (int i = 0; i < count; i++)
        ret[i] = (ts_device_spec){.backend = backend, .index = i, .threads = threads};
    *ret_count = count;
    return TS_OK;
}
