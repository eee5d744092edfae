/* Allocation helpers: zeroed, overflow-checked, and NULL on failure. */
#ifndef TS_BASE_ALLOC_H
#define TS_BASE_ALLOC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>

#define ts_new0(type) ((type *)calloc(1, sizeof(type)))
#define ts_array0(type, count) ((type *)calloc((count) > 0 ? (size_t)(count) : 1, sizeof(type)))

/* *ret = a * b or a + b; false and *ret untouched when it does not fit. */
static inline bool ts_mul_size(size_t a, size_t b, size_t *ret) {
    size_t r;
    if (__builtin_mul_overflow(a, b, &r)) return false;
    *ret = r;
    return true;
}
static inline bool ts_add_size(size_t a, size_t b, size_t *ret) {
    size_t r;
    if (__builtin_add_overflow(a, b, &r)) return false;
    *ret = r;
    return true;
}

/* Grows *items (of `size` bytes each) so that it holds `need` of them; doubles. False when memory ran out,
 * with *items and *capacity as they were. */
bool ts_grow(void *items, size_t *capacity, size_t need, size_t size);

/* Cache-line aligned, for tensors. Free with free(). NULL on failure. */
void *ts_alloc_aligned(size_t bytes);
#define TS_ALIGN 64u

char *ts_strdup(const char *s);                         /* NULL stays NULL */
char *ts_strndup(const char *s, size_t n);              /* copies n bytes and terminates */
char *ts_format(const char *format, ...) __attribute__((format(printf, 1, 2))); /* free() it; NULL on failure */

#endif
