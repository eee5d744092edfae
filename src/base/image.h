/* Pictures in memory: what comes in, before the engine sees it. Any thread. */
#ifndef TS_BASE_IMAGE_H
#define TS_BASE_IMAGE_H

#include <stdbool.h>
#include "base/error.h"

typedef struct ts_image {
    int width, height, channels; /* channels: 1 grey, 3 RGB, 4 RGBA, not premultiplied; 8 bits each */
    unsigned char *pixels;       /* [height][width][channels], malloc'ed */
} ts_image;

void ts_image_free(ts_image *image); /* zeroed is fine; leaves it zeroed */

/* The colours without the alpha of an RGBA picture. TS_ENOMEM. */
ts_code ts_image_colours(const ts_image *rgba, ts_image *ret, ts_error *e);

/* One channel, 255 where a mask asks to paint: where it is transparent, if any of it is (OpenAI's way of
 * saying it); otherwise where it is white, its luma as PIL's convert("L") weighs it. TS_ENOMEM. */
ts_code ts_image_mask(const ts_image *rgba, ts_image *ret, ts_error *e);

bool ts_image_transparent(const ts_image *rgba); /* any pixel is not fully opaque */

/* Resampled with Lanczos' filter of three lobes, widened when it shrinks, as PIL does: within 1 of its
 * result (Pillow 13). width, height > 0. TS_ENOMEM. */
ts_code ts_image_resize(const ts_image *image, int width, int height, ts_image *ret, ts_error *e);

#endif
