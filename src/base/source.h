/* The picture that an edit begins with and its mask, from PNG to what the engine takes. Any thread. */
#ifndef TS_BASE_SOURCE_H
#define TS_BASE_SOURCE_H

#include <stddef.h>
#include "base/error.h"

typedef struct ts_source {
    unsigned char *rgb;  /* [height][width][3], malloc'ed */
    unsigned char *mask; /* [height][width], 255 where it is painted; NULL: there is none */
} ts_source;

void ts_source_free(ts_source *s); /* zeroed is fine; leaves it zeroed */

/* image: a PNG. mask: another of the same size, or NULL; a picture that is transparent somewhere is its own
 * mask then (base/image.h says what a mask means). Both are resampled to width x height. TS_EINVAL,
 * TS_ETOOLARGE (param "image" or "mask"), TS_ENOMEM. */
ts_code ts_source_read(const char *image, size_t image_size, const char *mask, size_t mask_size, int width,
                       int height, size_t max_pixels, ts_source *ret, ts_error *e);

#endif
