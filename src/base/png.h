/* PNG: RGB pixels to a file's bytes, with text chunks, and files of any kind to RGBA. Any thread. */
#ifndef TS_BASE_PNG_H
#define TS_BASE_PNG_H

#include <stddef.h>
#include "base/error.h"
#include "base/image.h"

typedef struct ts_png_text {
    const char *key;  /* 1..79 Latin-1 characters */
    const char *text; /* UTF-8, written as iTXt where it is not ASCII, else as tEXt */
} ts_png_text;

/* rgb: [height][width][3]. Fast rather than small: level 1, SUB filter. *ret is malloc'ed. TS_ENOMEM,
 * TS_EINTERNAL. */
ts_code ts_png_encode(const unsigned char *rgb, int width, int height, const ts_png_text *texts, int text_count,
                      char **ret, size_t *ret_size, ts_error *e);

/* The size that a file says it has; nothing but its head is read. TS_EINVAL when it is no PNG, TS_ENOMEM. */
ts_code ts_png_size(const char *bytes, size_t size, int *ret_width, int *ret_height, ts_error *e);

/* Any colour type, depth and interlacing, to RGBA; the bytes are not trusted. A picture of more than max_pixels
 * is refused before there is memory for it. TS_EINVAL says what is wrong, TS_ETOOLARGE, TS_ENOMEM. */
ts_code ts_png_decode(const char *bytes, size_t size, size_t max_pixels, ts_image *ret, ts_error *e);

#endif
