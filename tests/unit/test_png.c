/* base/png: what libpng's reader finds in the file: the very pixels, the texts, and a stream that is in
 * order. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include <png.h>
#include "base/alloc.h"
#include "base/png.h"

typedef struct decoded {
    int width, height, type, depth, text_count;
    unsigned char *rgb;
    struct {
        char key[80], *text;
        int compression;
    } texts[8];
} decoded;

typedef struct source {
    const char *bytes;
    size_t size, at;
} source;

static void on_read(png_structp png, png_bytep to, size_t n) {
    source *s = png_get_io_ptr(png);
    if (n > s->size - s->at) png_error(png, "the file ends too early");
    memcpy(to, s->bytes + s->at, n);
    s->at += n;
}

static void on_complaint(png_structp png, png_const_charp message) {
    (void)png;
    fail_msg("libpng: %s", message);
}

/* A checksum that is wrong, a warning and bytes after the end fail the test. */
static decoded decode(const char *bytes, size_t size) {
    source s = {.bytes = bytes, .size = size};
    decoded d = {0};
    png_structp png = png_create_read_struct(PNG_LIBPNG_VER_STRING, NULL, on_complaint, on_complaint);
    png_infop info = png ? png_create_info_struct(png) : NULL;
    assert_non_null(info);
    png_set_read_fn(png, &s, on_read);
    png_set_crc_action(png, PNG_CRC_ERROR_QUIT, PNG_CRC_ERROR_QUIT);
    png_read_info(png, info);
    d.width = (int)png_get_image_width(png, info);
    d.height = (int)png_get_image_height(png, info);
    d.type = png_get_color_type(png, info);
    d.depth = png_get_bit_depth(png, info);
    size_t row = png_get_rowbytes(png, info);
    d.rgb = malloc(row * (size_t)d.height);
    assert_non_null(d.rgb);
    for (int y = 0; y < d.height; y++) png_read_row(png, d.rgb + (size_t)y * row, NULL);
    png_read_end(png, info);
    png_textp texts = NULL;
    d.text_count = png_get_text(png, info, &texts, NULL);
    assert_in_range(d.text_count, 0, 8);
    for (int i = 0; i < d.text_count; i++) {
        size_t n =
            texts[i].compression < PNG_ITXT_COMPRESSION_NONE ? texts[i].text_length : texts[i].itxt_length;
        snprintf(d.texts[i].key, sizeof d.texts[i].key, "%s", texts[i].key);
        d.texts[i].text = ts_strndup(texts[i].text, n);
        d.texts[i].compression = texts[i].compression;
    }
    png_destroy_read_struct(&png, &info, NULL);
    assert_int_equal(s.at, size);
    return d;
}

static void release(decoded *d) {
    for (int i = 0; i < d->text_count; i++) free(d->texts[i].text);
    free(d->rgb);
}

/* Encodes pixels that are exactly as large as they say, so that a sanitizer sees a byte too far. */
static decoded round_trip(const unsigned char *rgb, int width, int height, const ts_png_text *texts,
                          int count) {
    char *bytes = NULL;
    size_t size = 0;
    ts_error e = {0};
    if (ts_png_encode(rgb, width, height, texts, count, &bytes, &size, &e)) fail_msg("%s", e.message);
    decoded d = decode(bytes, size);
    free(bytes);
    assert_int_equal(d.width, width);
    assert_int_equal(d.height, height);
    assert_int_equal(d.type, PNG_COLOR_TYPE_RGB);
    assert_int_equal(d.depth, 8);
    return d;
}

static unsigned char *pixels(int width, int height, uint32_t noise) {
    size_t n = (size_t)width * (size_t)height * 3;
    unsigned char *rgb = malloc(n);
    assert_non_null(rgb);
    for (size_t i = 0; i < n; i++) {
        noise = noise * 1664525u + 1013904223u;
        rgb[i] = (unsigned char)(noise >> 24);
    }
    return rgb;
}

static void noise_of_any_size_comes_back_byte_for_byte(void **state) {
    (void)state;
    static const int sizes[][2] = {{1, 1}, {1, 7}, {7, 1}, {8, 8}, {17, 5}, {64, 48}, {513, 3}, {512, 512}};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        int w = sizes[i][0], h = sizes[i][1];
        unsigned char *rgb = pixels(w, h, (uint32_t)i);
        decoded d = round_trip(rgb, w, h, NULL, 0);
        assert_memory_equal(d.rgb, rgb, (size_t)w * (size_t)h * 3);
        assert_int_equal(d.text_count, 0);
        release(&d);
        free(rgb);
    }
}

static void flat_and_extreme_pixels_come_back_and_are_small(void **state) {
    (void)state;
    enum { SIDE = 256, BYTES = SIDE * SIDE * 3 };
    static const int values[] = {0, 1, 127, 128, 254, 255};
    unsigned char *rgb = malloc(BYTES);
    assert_non_null(rgb);
    for (size_t i = 0; i < sizeof values / sizeof *values; i++) {
        memset(rgb, values[i], BYTES);
        char *bytes = NULL;
        size_t size = 0;
        assert_int_equal(ts_png_encode(rgb, SIDE, SIDE, NULL, 0, &bytes, &size, NULL), TS_OK);
        assert_in_range(size, 1, BYTES / 50); /* it is compressed at all */
        free(bytes);
        decoded d = round_trip(rgb, SIDE, SIDE, NULL, 0);
        assert_memory_equal(d.rgb, rgb, BYTES);
        release(&d);
    }
    free(rgb);
}

static void texts_come_back_and_only_ascii_is_text_that_latin1_readers_see(void **state) {
    (void)state;
    char large[20000];
    memset(large, 'x', sizeof large - 1);
    large[sizeof large - 1] = 0;
    const ts_png_text texts[] = {
        {"parameters", "a lake at dawn\nNegative prompt: fog\nSteps: 20, Sampler: Euler, Seed: 1, Size: 8x8"},
        {"Title", "ein See \xc3\xa4 \xe2\x82\xac \xf0\x9f\x98\x80"},
        {"Comment", ""},
        {"Description", large},
    };
    unsigned char *rgb = pixels(8, 8, 1);
    decoded d = round_trip(rgb, 8, 8, texts, 4);
    assert_memory_equal(d.rgb, rgb, 8 * 8 * 3);
    assert_int_equal(d.text_count, 4);
    for (int i = 0; i < 4; i++) {
        int found = -1;
        for (int k = 0; k < 4; k++)
            if (!strcmp(d.texts[k].key, texts[i].key)) found = k;
        assert_in_range(found, 0, 3);
        assert_string_equal(d.texts[found].text, texts[i].text);
        /* tEXt is Latin-1 by definition: UTF-8 in it would be read as something else. */
        assert_int_equal(d.texts[found].compression,
                         i == 1 ? PNG_ITXT_COMPRESSION_NONE : PNG_TEXT_COMPRESSION_NONE);
    }
    release(&d);
    free(rgb);
}

static void texts_come_before_the_pixels(void **state) {
    (void)state;
    const ts_png_text text = {"parameters", "p"};
    unsigned char *rgb = pixels(32, 32, 2);
    char *bytes = NULL;
    size_t size = 0;
    assert_int_equal(ts_png_encode(rgb, 32, 32, &text, 1, &bytes, &size, NULL), TS_OK);
    const char *where = memmem(bytes, size, "tEXt", 4), *data = memmem(bytes, size, "IDAT", 4);
    assert_true(where && data && where < data);
    free(bytes);
    free(rgb);
}

static void the_same_pixels_give_the_same_bytes(void **state) {
    (void)state;
    unsigned char *rgb = pixels(64, 64, 3);
    char *a = NULL, *b = NULL;
    size_t m = 0, n = 0;
    const ts_png_text text = {"parameters", "p"};
    assert_int_equal(ts_png_encode(rgb, 64, 64, &text, 1, &a, &m, NULL), TS_OK);
    assert_int_equal(ts_png_encode(rgb, 64, 64, &text, 1, &b, &n, NULL), TS_OK);
    assert_int_equal(m, n);
    assert_memory_equal(a, b, n);
    free(a);
    free(b);
    free(rgb);
}

static void what_png_cannot_hold_is_an_error_and_leaves_the_outputs_alone(void **state) {
    (void)state;
    static const int sizes[][2] = {{0, 1}, {1, 0}, {0, 0}};
    unsigned char rgb[3] = {0};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        char *bytes = (char *)rgb;
        size_t size = 77;
        ts_error e = {0};
        assert_int_not_equal(ts_png_encode(rgb, sizes[i][0], sizes[i][1], NULL, 0, &bytes, &size, &e), TS_OK);
        assert_true(*e.message);
        assert_ptr_equal(bytes, rgb);
        assert_int_equal(size, 77);
    }
}

/* What base/png.c asks for, libpng's memory included; the linker puts this before the library's own. */
void *__real_malloc(size_t n);
void *__wrap_malloc(size_t n);
static size_t asked_for;
void *__wrap_malloc(size_t n) {
    asked_for += n;
    return __real_malloc(n);
}

static size_t asked_for_reading(const char *bytes, size_t size) {
    int width = 0, height = 0;
    ts_image image = {0};
    ts_error e = {0};
    asked_for = 0;
    assert_int_equal(ts_png_size(bytes, size, &width, &height, &e), TS_OK);
    assert_int_equal(ts_png_decode(bytes, size, 100, &image, &e), TS_OK);
    assert_true(width == 10 && height == 10 && image.width == 10);
    ts_image_free(&image);
    return asked_for;
}

/* Nobody reads them, and a packed one could be of any size. */
static void texts_of_a_picture_that_is_read_take_no_memory(void **state) {
    (void)state;
    enum { TEXTS = 8, BYTES = 400000 };
    unsigned char rgb[300] = {0};
    char *long_one = malloc(BYTES + 1), *plain, *with;
    assert_non_null(long_one);
    memset(long_one, 'a', BYTES);
    long_one[BYTES] = 0;
    ts_png_text texts[TEXTS];
    for (int i = 0; i < TEXTS; i++) texts[i] = (ts_png_text){"Comment", long_one};
    size_t plain_size, with_size;
    ts_error e = {0};
    assert_int_equal(ts_png_encode(rgb, 10, 10, NULL, 0, &plain, &plain_size, &e), TS_OK);
    assert_int_equal(ts_png_encode(rgb, 10, 10, texts, TEXTS, &with, &with_size, &e), TS_OK);
    assert_true(with_size > TEXTS * (size_t)BYTES);
    const size_t least = asked_for_reading(plain, plain_size);
    assert_true(least > 400); /* the pixels at least: it counts */
    assert_true(asked_for_reading(with, with_size) < least + BYTES / 10);
    free(plain), free(with), free(long_one);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(noise_of_any_size_comes_back_byte_for_byte),
        cmocka_unit_test(flat_and_extreme_pixels_come_back_and_are_small),
        cmocka_unit_test(texts_come_back_and_only_ascii_is_text_that_latin1_readers_see),
        cmocka_unit_test(texts_come_before_the_pixels),
        cmocka_unit_test(the_same_pixels_give_the_same_bytes),
        cmocka_unit_test(texts_of_a_picture_that_is_read_take_no_memory),
        cmocka_unit_test(what_png_cannot_hold_is_an_error_and_leaves_the_outputs_alone),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
