#include "base/base64.h"

#include <stdint.h>
#include <stdlib.h>

char *ts_base64(const void *bytes, size_t n, size_t *ret_size) {
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const unsigned char *s = bytes;
    if (n > SIZE_MAX / 2) return NULL;
    size_t size = (n + 2) / 3 * 4;
    char *text = malloc(size + 1), *to = text;
    if (!text) return NULL;
    for (size_t i = 0; i < n; i += 3) {
        size_t have = n - i < 3 ? n - i : 3;
        uint32_t v = (uint32_t)s[i] << 16;
        if (have > 1) v |= (uint32_t)s[i + 1] << 8;
        if (have > 2) v |= s[i + 2];
        *to++ = digits[v >> 18 & 63];
        *to++ = digits[v >> 12 & 63];
        *to++ = have > 1 ? digits[v >> 6 & 63] : '=';
        *to++ = have > 2 ? digits[v & 63] : '=';
    }
    *to = 0;
    if (ret_size) *ret_size = size;
    return text;
}
