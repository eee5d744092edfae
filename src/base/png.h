/* PNG: RGB pixels to a file's bytes, with text chunks. Any thread. */
#ifndef TS_BASE_PNG_H
#define TS_BASE_PNG_H

#include <stddef.h>
#include "base/error.h"

typedef struct ts_png_text {
    const char *key;  /* 1..79 Latin-1 characters */
    const char *text; /* UTF-8, written as iTXt where it is not ASCII, else as tEXt */
} ts_png_text;

/* rgb: [height][width][3]. Fast rather than small: level 1, SUB filter. *ret is malloc'ed. TS_ENOMEM,
 * TS_EINTERNAL. */
ts_code ts_png_encode(const unsigned char *rgb, int width, int height, const ts_png_text *texts, int text_count,
                      char **ret, size_t *ret_size, ts_error *e);

#endif
