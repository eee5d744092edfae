#include "base/map.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "base/alloc.h"
#include "base/file.h"

/* The signal handler finds these without a lock, so they stay in the list for ever and are used again. */
typedef struct ts_mapping {
    struct ts_mapping *next;      /* never changes once the mapping is in the list */
    _Atomic uintptr_t begin, end; /* whole pages; end 0: nothing is mapped */
    atomic_bool lost;             /* the handler was here */
    bool used;                    /* guarded by the lock, like what follows until the map is handed out */
    int fd;
    char *path;
    size_t size;
    struct timespec changed;
} ts_mapping;

static _Atomic(ts_mapping *) mappings;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct sigaction before;
static _Atomic uintptr_t page;

/* ---- the signal ---- */

/* A mapping is closed by `end` = 0 and opened by `begin`, then `end`: the same end before and after says that
 * the begin between them belongs to it. The one that the address is in does not change, for somebody reads
 * from it. */
static bool holds(ts_mapping *m, uintptr_t at) {
    const uintptr_t end = atomic_load(&m->end), begin = atomic_load(&m->begin);
    return at >= begin && at < end && atomic_load(&m->end) == end;
}

/* Only what is async-signal-safe: atomics and bare system calls. */
static void on_bus_error(int number, siginfo_t *info, void *context) {
    (void)context;
    const int error = errno;
    const uintptr_t at = (uintptr_t)info->si_addr & ~(page - 1);
    ts_mapping *m = info->si_code > 0 ? atomic_load(&mappings) : NULL; /* else somebody has sent it */
    while (m && !holds(m, at)) m = m->next;
    if (m) {
        /* Before the zeros can be seen. */
        atomic_store(&m->lost, true);
        long zeros = syscall(SYS_mmap, at, atomic_load(&m->end) - at, PROT_READ,
                             MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0L);
        if (zeros == -1) m = NULL;
    }
    if (!m) {
        /* Not ours: the access is made again, or the signal sent again, under the handler that was there. */
        sigaction(SIGBUS, &before, NULL);
        if (info->si_code <= 0) raise(number);
    }
    errno = error;
}

/* With the lock held. With each mapping: somebody may have put another handler in place of ours. */
static void install(void) {
    struct sigaction action = {.sa_sigaction = on_bus_error, .sa_flags = SA_SIGINFO | SA_ONSTACK}, now;
    page = (uintptr_t)sysconf(_SC_PAGESIZE);
    sigemptyset(&action.sa_mask);
    sigaction(SIGBUS, NULL, &now);
    if ((now.sa_flags & SA_SIGINFO) && now.sa_sigaction == on_bus_error) return;
    before = now;
    sigaction(SIGBUS, &action, NULL);
}

/* ---- mappings ---- */

static ts_mapping *take(void) {
    pthread_mutex_lock(&lock);
    install();
    ts_mapping *m = atomic_load(&mappings);
    while (m && m->used) m = m->next;
    if (!m && (m = ts_new0(ts_mapping))) {
        m->next = atomic_load(&mappings);
        atomic_store(&mappings, m);
    }
    if (m) m->used = true;
    pthread_mutex_unlock(&lock);
    return m;
}

static void give_back(ts_mapping *m) {
    free(m->path);
    m->path = NULL;
    pthread_mutex_lock(&lock);
    m->used = false;
    pthread_mutex_unlock(&lock);
}

ts_code ts_map_open(const char *path, ts_map *ret, ts_error *e) {
    int fd;
    struct stat st;
    ts_code rc = ts_open_regular(path, &fd, &st, e);
    if (rc) return rc;
    const size_t size = (size_t)st.st_size;
    void *data = NULL;
    ts_mapping *m = take();
    if (!m || !(m->path = ts_strdup(path))) {
        rc = ts_fail(e, TS_ENOMEM, "mapping %s", path);
        goto fail;
    }
    if (size) {
        data = mmap(NULL, size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (data == MAP_FAILED) {
            rc = ts_fail_errno(e, ts_errno_code(errno), errno, "mapping %s", path);
            goto fail;
        }
    }
    m->fd = fd;
    m->size = size;
    m->changed = st.st_mtim;
    atomic_store(&m->lost, false);
    atomic_store(&m->begin, (uintptr_t)data);
    atomic_store(&m->end, ((uintptr_t)data + size + page - 1) & ~(page - 1));
    *ret = (ts_map){.data = data, .size = size, .mapping = m};
    return TS_OK;
fail:
    if (m) give_back(m);
    close(fd);
    return rc;
}

void ts_map_close(ts_map *map) {
    if (!map || !map->mapping) return;
    ts_mapping *m = map->mapping;
    atomic_store(&m->end, 0);
    if (map->data) munmap((void *)(uintptr_t)map->data, map->size);
    close(m->fd);
    give_back(m);
    *map = (ts_map){0};
}

void ts_map_rest(const ts_map *map) {
    if (map->data) madvise((void *)(uintptr_t)map->data, map->size, MADV_DONTNEED);
}

ts_code ts_map_check(const ts_map *map, ts_error *e) {
    const ts_mapping *m = map->mapping;
    if (!m) return TS_OK;
    /* Bytes beyond a new end raise no signal where they share its page, and new ones none at all: the file
     * tells. */
    struct stat st;
    if (fstat(m->fd, &st)) return ts_fail_errno(e, TS_EIO, errno, "reading %s", m->path);
    const bool same = st.st_size >= 0 && (size_t)st.st_size == m->size &&
                      st.st_mtim.tv_sec == m->changed.tv_sec && st.st_mtim.tv_nsec == m->changed.tv_nsec;
    if (same && !atomic_load(&m->lost)) return TS_OK;
    return ts_fail(e, TS_EIO, same ? "%s could not be read" : "%s was changed while it was in use", m->path);
}
