/* A picture that comes in, as far as the engine: decoded, its colours and its mask, and resampled. */
#include "fuzz.h"

#include <stdlib.h>
#include <string.h>
#include "base/png.h"

#define PIXELS 4096

static uint32_t big_endian(const uint8_t *p) {
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

/* (PNG, 5.5; its polynomial.) */
static uint32_t crc(const uint8_t *p, size_t n) {
    uint32_t c = 0xffffffffu;
    for (size_t i = 0; i < n; i++) {
        c ^= p[i];
        for (int k = 0; k < 8; k++) c = c >> 1 ^ (c & 1 ? 0xedb88320u : 0);
    }
    return ~c;
}

/* Gives each chunk its checksum, which no mutation would hit. */
static uint8_t *mended(const uint8_t *data, size_t size) {
    uint8_t *copy = malloc(size ? size : 1);
    if (!copy) return NULL;
    memcpy(copy, data, size);
    for (size_t at = 8; size >= 12 && at <= size - 12;) {
        const size_t length = big_endian(copy + at);
        if (length > size - at - 12) break;
        const uint32_t c = crc(copy + at + 4, 4 + length);
        for (unsigned i = 0; i < 4; i++) copy[at + 8 + length + i] = (uint8_t)(c >> (24 - 8 * i));
        at += 12 + length;
    }
    return copy;
}

static void use(const ts_image *image) {
    ts_image part = {0}, small = {0};
    if (!ts_image_mask(image, &part, NULL) && !ts_image_resize(&part, 16, 8, &small, NULL))
        ts_image_free(&small);
    ts_image_free(&part);
    if (!ts_image_colours(image, &part, NULL) && !ts_image_resize(&part, 8, 64, &small, NULL))
        ts_image_free(&small);
    ts_image_free(&part);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    ts_image image = {0};
    ts_error e = {0};
    uint8_t *bytes = mended(data, size);
    if (!bytes) return 0;
    if (ts_png_decode((const char *)bytes, size, PIXELS, &image, &e)) {
        if (!e.message[0]) fuzz_fail("an error without a word");
    } else {
        int width, height;
        if (ts_png_size((const char *)bytes, size, &width, &height, &e) || width != image.width ||
            height != image.height)
            fuzz_fail("two sizes of one picture");
        if (image.channels != 4 || width < 1 || height < 1 || (size_t)width > PIXELS / (size_t)height)
            fuzz_fail("a picture that cannot be");
        use(&image);
    }
    ts_image_free(&image);
    free(bytes);
    return 0;
}
