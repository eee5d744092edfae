/* A growable byte buffer that is born with a maximum: an append beyond it fails and changes nothing. */
#ifndef TS_BASE_BUFFER_H
#define TS_BASE_BUFFER_H

#include <stddef.h>
#include "base/error.h"

typedef struct ts_buffer {
    char *data; /* not terminated unless ts_buffer_text was used */
    size_t size, capacity, maximum;
} ts_buffer;

void ts_buffer_init(ts_buffer *b, size_t maximum);
void ts_buffer_free(ts_buffer *b); /* frees the bytes and empties b; NULL is fine */

/* TS_OK, TS_ETOOLARGE beyond the maximum, TS_ENOMEM. */
ts_code ts_buffer_append(ts_buffer *b, const void *bytes, size_t n);
ts_code ts_buffer_printf(ts_buffer *b, const char *format, ...) __attribute__((format(printf, 2, 3)));
ts_code ts_buffer_reserve(ts_buffer *b, size_t more); /* room for `more` bytes after size */

/* The bytes as a terminated string (the terminator is not counted in size), NULL when memory ran out. */
char *ts_buffer_text(ts_buffer *b);

/* The bytes leave the buffer, which is empty afterwards; free() them. */
char *ts_buffer_take(ts_buffer *b, size_t *ret_size);

/* A finite number in the fewest digits that read as it again: ts_buffer_printf(b, "%s", ts_digits_of(x).text). */
typedef struct ts_digits {
    char text[32];
} ts_digits;
ts_digits ts_digits_of(double number);

#endif
