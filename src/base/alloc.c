#include "base/alloc.h"

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

bool ts_grow(void *items, size_t *capacity, size_t need, size_t size) {
    if (need <= *capacity) return true;
    size_t cap = *capacity < 8 ? 8 : *capacity;
    while (cap < need) {
        if (cap > SIZE_MAX / 2) return false;
        cap *= 2;
    }
    size_t bytes;
    if (!ts_mul_size(cap, size, &bytes)) return false;
    void *old;
    memcpy(&old, items, sizeof old);
    void *grown = realloc(old, bytes);
    if (!grown) return false;
    memcpy(items, &grown, sizeof grown);
    *capacity = cap;
    return true;
}

void *ts_alloc_aligned(size_t bytes) {
    size_t rounded;
    if (!ts_add_size(bytes ? bytes : 1, TS_ALIGN - 1, &rounded)) return NULL;
    return aligned_alloc(TS_ALIGN, rounded & ~(size_t)(TS_ALIGN - 1));
}

char *ts_strndup(const char *s, size_t n) {
    if (n == SIZE_MAX) return NULL;
    char *copy = malloc(n + 1);
    if (!copy) return NULL;
    memcpy(copy, s, n);
    copy[n] = 0;
    return copy;
}

char *ts_strdup(const char *s) { return s ? ts_strndup(s, strlen(s)) : NULL; }

char *ts_format(const char *format, ...) {
    va_list args;
    char *text = NULL;
    va_start(args, format);
    int n = vasprintf(&text, format, args);
    va_end(args);
    return n < 0 ? NULL : text;
}
