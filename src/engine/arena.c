#include "engine/arena.h"

#include <stdlib.h>
#include "base/alloc.h"

struct ts_arena {
    ts_device *device;
    char *memory;
    size_t bytes;
};

/* The new memory comes first, so that a failure changes nothing; none of it is touched yet. */
static bool resize(ts_arena *a, size_t bytes) {
    const ts_backend *backend = a->device->backend;
    char *memory = bytes ? backend->alloc(a->device, bytes) : NULL;
    if (bytes && !memory) return false;
    if (a->memory) backend->release(a->device, a->memory);
    a->memory = memory;
    a->bytes = bytes;
    return true;
}

ts_code ts_arena_new(ts_device *device, ts_arena **ret, ts_error *e) {
    ts_arena *a = ts_new0(ts_arena);
    if (!a) return ts_fail(e, TS_ENOMEM, "an arena");
    a->device = device;
    *ret = a;
    return TS_OK;
}

void ts_arena_free(ts_arena *a) {
    if (!a) return;
    resize(a, 0);
    free(a);
}

ts_device *ts_arena_device(const ts_arena *a) {
    return a->device;
}
char *ts_arena_memory(const ts_arena *a) {
    return a->memory;
}
size_t ts_arena_bytes(const ts_arena *a) {
    return a->bytes;
}

ts_code ts_arena_grow(ts_arena *a, size_t bytes, ts_error *e) {
    if (bytes <= a->bytes || resize(a, bytes)) return TS_OK;
    return ts_fail(e, TS_ENOMEM, "an arena of %zu MiB", bytes >> 20);
}

void ts_arena_shrink(ts_arena *a, size_t bytes) {
    if (bytes < a->bytes) resize(a, bytes);
}
