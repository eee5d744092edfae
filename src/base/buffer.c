#include "base/buffer.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/alloc.h"

void ts_buffer_init(ts_buffer *b, size_t maximum) {
    *b = (ts_buffer){.maximum = maximum};
}

void ts_buffer_free(ts_buffer *b) {
    if (!b) return;
    free(b->data);
    *b = (ts_buffer){.maximum = b->maximum};
}

ts_code ts_buffer_reserve(ts_buffer *b, size_t more) {
    if (more > b->maximum - b->size) return TS_ETOOLARGE;
    /* One byte beyond, so that ts_buffer_text never needs to move anything. */
    return ts_grow(&b->data, &b->capacity, b->size + more + 1, 1) ? TS_OK : TS_ENOMEM;
}

ts_code ts_buffer_append(ts_buffer *b, const void *bytes, size_t n) {
    ts_code rc = ts_buffer_reserve(b, n);
    if (rc) return rc;
    if (n) memcpy(b->data + b->size, bytes, n);
    b->size += n;
    return TS_OK;
}

ts_code ts_buffer_printf(ts_buffer *b, const char *format, ...) {
    va_list args, again;
    va_start(args, format);
    va_copy(again, args);
    int n = vsnprintf(NULL, 0, format, args);
    va_end(args);
    ts_code rc = n < 0 ? TS_EINTERNAL : ts_buffer_reserve(b, (size_t)n);
    if (!rc) {
        vsnprintf(b->data + b->size, (size_t)n + 1, format, again);
        b->size += (size_t)n;
    }
    va_end(again);
    return rc;
}

ts_digits ts_digits_of(double number) {
    ts_digits d;
    for (int digits = 6; digits <= 17; digits++) {
        snprintf(d.text, sizeof d.text, "%.*g", digits, number);
        if (strtod(d.text, NULL) == number) break;
    }
    return d;
}

char *ts_buffer_text(ts_buffer *b) {
    if (ts_buffer_reserve(b, 0)) return NULL;
    b->data[b->size] = 0;
    return b->data;
}

char *ts_buffer_take(ts_buffer *b, size_t *ret_size) {
    char *text = ts_buffer_text(b);
    if (!text) return NULL;
    if (ret_size) *ret_size = b->size;
    size_t maximum = b->maximum;
    *b = (ts_buffer){.maximum = maximum};
    return text;
}
