#include "base/png.h"

#include <png.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include "base/alloc.h"
#include "base/buffer.h"

#define MAX_TEXTS 8

typedef struct sink {
    ts_buffer bytes;
    char message[128];
} sink;

static void on_error(png_structp png, png_const_charp message) {
    sink *s = png_get_error_ptr(png);
    strncpy(s->message, message, sizeof s->message - 1);
    longjmp(png_jmpbuf(png), 1);
}
static void on_warning(png_structp png, png_const_charp message) {
    (void)png;
    (void)message;
}
static void on_write(png_structp png, png_bytep data, size_t n) {
    sink *s = png_get_io_ptr(png);
    if (ts_buffer_append(&s->bytes, data, n)) png_error(png, "out of memory");
}
static void on_flush(png_structp png) {
    (void)png;
}

static bool is_ascii(const char *s) {
    while (*s)
        if ((unsigned char)*s++ >= 0x80) return false;
    return true;
}

/* Everything that libpng may leave by longjmp; no local of it is read afterwards. */
static bool write_all(png_structp png, png_infop info, const unsigned char *rgb, int width, int height,
                      png_text *texts, int text_count) {
    if (setjmp(png_jmpbuf(png))) return false;
    png_set_IHDR(png, info, (png_uint_32)width, (png_uint_32)height, 8, PNG_COLOR_TYPE_RGB,
                 PNG_INTERLACE_NONE, PNG_COMPRESSION_TYPE_DEFAULT, PNG_FILTER_TYPE_DEFAULT);
    png_set_compression_level(png, 1);
    png_set_filter(png, 0, PNG_FILTER_SUB);
    if (text_count) png_set_text(png, info, texts, text_count);
    png_write_info(png, info);
    for (int y = 0; y < height; y++) png_write_row(png, rgb + (size_t)y * (size_t)width * 3);
    png_write_end(png, info);
    return true;
}

ts_code ts_png_encode(const unsigned char *rgb, int width, int height, const ts_png_text *texts,
                      int text_count, char **ret, size_t *ret_size, ts_error *e) {
    ts_assert(text_count >= 0 && text_count <= MAX_TEXTS);
    sink s = {.message = ""};
    png_infop info = NULL;
    png_text chunks[MAX_TEXTS];
    ts_code rc = TS_OK;
    memset(chunks, 0, sizeof chunks);
    for (int i = 0; i < text_count; i++) {
        chunks[i].compression =
            is_ascii(texts[i].text) ? PNG_TEXT_COMPRESSION_NONE : PNG_ITXT_COMPRESSION_NONE;
        chunks[i].key = (char *)(size_t)texts[i].key;
        chunks[i].text = (char *)(size_t)texts[i].text;
        chunks[i].text_length = strlen(texts[i].text);
        chunks[i].itxt_length = chunks[i].text_length;
    }
    /* Deflate never grows pixels by more than a few bytes a row. */
    size_t bound = (size_t)width * (size_t)height * 3 + (size_t)height * 64 + ((size_t)1 << 20);
    ts_buffer_init(&s.bytes, bound);
    png_structp png = png_create_write_struct(PNG_LIBPNG_VER_STRING, &s, on_error, on_warning);
    if (png) info = png_create_info_struct(png);
    if (!png || !info) {
        rc = ts_fail(e, TS_ENOMEM, "encoding a PNG");
        goto done;
    }
    png_set_write_fn(png, &s, on_write, on_flush);
    if (!write_all(png, info, rgb, width, height, chunks, text_count)) {
        rc = ts_fail(e, TS_EINTERNAL, "encoding a PNG: %s", s.message);
        goto done;
    }
    *ret = ts_buffer_take(&s.bytes, ret_size);
    if (!*ret) rc = ts_fail(e, TS_ENOMEM, "encoding a PNG");
done:
    png_destroy_write_struct(&png, &info);
    ts_buffer_free(&s.bytes);
    return rc;
}
