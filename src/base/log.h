/* The log: one line a message on stderr, at once and whole, or lost and counted where that would have to wait.
 *
 * Under systemd's journal a line begins with its priority as "<6>", elsewhere with the time in UTC and the
 * level. Control characters of a message come out as \xNN, so that no request can forge a line; what is
 * longer than a line may be is cut. Any thread. Only server/ and main.c log: below them errors are returned.
 */
#ifndef TS_BASE_LOG_H
#define TS_BASE_LOG_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* name, name in the configuration, priority of syslog(3) */
#define TS_LOG_LEVELS(X)                                                                                     \
    X(ERROR, "error", 3)                                                                                     \
    X(WARNING, "warning", 4)                                                                                 \
    X(INFO, "info", 6)                                                                                       \
    X(DEBUG, "debug", 7)

typedef enum ts_log_level {
#define X(name, text, priority) TS_LOG_##name,
    TS_LOG_LEVELS(X)
#undef X
        TS_LOG_LEVEL_COUNT
} ts_log_level;

int ts_log_level_find(const char *name); /* -1 when there is none */

/* What is less important than `level` is dropped; the default is INFO. */
void ts_log_set_level(ts_log_level level);
bool ts_log_enabled(ts_log_level level);

void ts_log(ts_log_level level, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* For what a client can cause at will: at most `burst` lines in each `seconds`; the first line after a pause
 * tells how many were left out. Static storage, zero is a good start. */
typedef struct ts_log_limit {
    _Atomic uint64_t window;
    atomic_uint used, dropped;
} ts_log_limit;
void ts_log_limited(ts_log_limit *limit, unsigned burst, unsigned seconds, ts_log_level level,
                    const char *format, ...) __attribute__((format(printf, 5, 6)));

#endif
