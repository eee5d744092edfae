#include "base/log.h"

#include <poll.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include "base/clock.h"

#define LINE_BYTES 2048

static const struct {
    const char *text;
    int priority;
} levels[] = {
#define X(name, text, priority) {text, priority},
    TS_LOG_LEVELS(X)
#undef X
};

static atomic_int threshold = TS_LOG_INFO;
static bool to_journal;
static pthread_once_t once = PTHREAD_ONCE_INIT;

int ts_log_level_find(const char *name) {
    for (int i = 0; i < TS_LOG_LEVEL_COUNT; i++)
        if (!strcmp(levels[i].text, name)) return i;
    return -1;
}

void ts_log_set_level(ts_log_level level) {
    atomic_store(&threshold, (int)level);
}

bool ts_log_enabled(ts_log_level level) {
    return (int)level <= atomic_load_explicit(&threshold, memory_order_relaxed);
}

/* systemd names the socket that it gave; stderr may have been redirected since. */
static void find_journal(void) {
    const char *stream = getenv("JOURNAL_STREAM");
    unsigned long long device, inode;
    struct stat st;
    to_journal = stream && sscanf(stream, "%llu:%llu", &device, &inode) == 2 &&
                 fstat(STDERR_FILENO, &st) == 0 && st.st_dev == device && st.st_ino == inode;
}

static size_t prefix(char *out, size_t room, ts_log_level level) {
    int n;
    if (to_journal) {
        n = snprintf(out, room, "<%d>", levels[level].priority);
    } else {
        struct timespec now;
        struct tm tm;
        char day[32];
        clock_gettime(CLOCK_REALTIME, &now);
        if (!gmtime_r(&now.tv_sec, &tm) || !strftime(day, sizeof day, "%Y-%m-%dT%H:%M:%S", &tm)) day[0] = 0;
        n = snprintf(out, room, "%s.%03ldZ %-7s ", day, now.tv_nsec / 1000000, levels[level].text);
    }
    return n > 0 && (size_t)n < room ? (size_t)n : 0;
}

/* One write a line: lines of several threads do not mix. Where nobody reads them (a pipe that has filled up)
 * they are lost, and how many is said later: a pipe that can be written to has room for PIPE_BUF bytes, more
 * than a line. */
static void put(const char *line, size_t n) {
    static atomic_uint lost;
    struct pollfd p = {.fd = STDERR_FILENO, .events = POLLOUT};
    if (poll(&p, 1, 0) == 0) {
        atomic_fetch_add(&lost, 1);
        return;
    }
    char note[LINE_BYTES];
    const unsigned gone = atomic_exchange(&lost, 0);
    ssize_t written = 0;
    if (gone) {
        size_t k = prefix(note, sizeof note, TS_LOG_WARNING);
        k += (size_t)snprintf(note + k, sizeof note - k, "%u lines were lost: nobody read them\n", gone);
        written = write(STDERR_FILENO, note, k);
        if (poll(&p, 1, 0) == 0) {
            atomic_fetch_add(&lost, 1);
            return;
        }
    }
    written = write(STDERR_FILENO, line, n);
    (void)written; /* nobody can be told of a failure */
}

static void write_line(ts_log_level level, const char *message) {
    char line[LINE_BYTES];
    pthread_once(&once, find_journal);
    size_t n = prefix(line, sizeof line, level);
    for (const char *s = message; *s && n + 6 < sizeof line; s++) {
        unsigned char c = (unsigned char)*s;
        if (c < 32 || c == 127)
            n += (size_t)snprintf(line + n, 5, "\\x%02x", c);
        else
            line[n++] = *s;
    }
    line[n++] = '\n';
    put(line, n);
}

void ts_log(ts_log_level level, const char *format, ...) {
    if (!ts_log_enabled(level)) return;
    char message[LINE_BYTES];
    va_list args;
    va_start(args, format);
    vsnprintf(message, sizeof message, format, args);
    va_end(args);
    write_line(level, message);
}

void ts_log_limited(ts_log_limit *limit, unsigned burst, unsigned seconds, ts_log_level level,
                    const char *format, ...) {
    if (!ts_log_enabled(level)) return;
    uint64_t window = ts_now_ns() / 1000000000u / (seconds ? seconds : 1) + 1;
    if (atomic_exchange(&limit->window, window) != window) {
        atomic_store(&limit->used, 0);
        unsigned dropped = atomic_exchange(&limit->dropped, 0);
        if (dropped) ts_log(level, "%u lines like the next were left out", dropped);
    }
    if (atomic_fetch_add(&limit->used, 1) >= burst) {
        atomic_fetch_add(&limit->dropped, 1);
        return;
    }
    char message[LINE_BYTES];
    va_list args;
    va_start(args, format);
    vsnprintf(message, sizeof message, format, args);
    va_end(args);
    write_line(level, message);
}
