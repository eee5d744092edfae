/* Base64 (RFC 4648, section 4, with padding). Any thread. */
#ifndef TS_BASE_BASE64_H
#define TS_BASE_BASE64_H

#include <stddef.h>

/* The encoded text, terminated; malloc'ed. NULL when memory ran out. */
char *ts_base64(const void *bytes, size_t n, size_t *ret_size);

#endif
