/* Reading files: a whole small file, or a read-only mapping of a large one. */
#ifndef TS_BASE_FILE_H
#define TS_BASE_FILE_H

#include <stdbool.h>
#include <stddef.h>
#include "base/error.h"

typedef struct ts_map {
    const unsigned char *data; /* read-only; NULL for an empty file */
    size_t size;
} ts_map;

/* Maps a regular file privately and read-only. TS_ENOTFOUND, TS_EIO, TS_ENOMEM. */
ts_code ts_map_open(const char *path, ts_map *ret, ts_error *e);
void ts_map_close(ts_map *map); /* NULL and empty are fine */

/* Reads a whole file of at most `maximum` bytes; the text is terminated. free() it. */
ts_code ts_read_file(const char *path, size_t maximum, char **ret, size_t *ret_size, ts_error *e);

/* Writes a file beside `path` and renames it over it, so that a reader never sees half of it. */
ts_code ts_write_file(const char *path, const void *bytes, size_t n, ts_error *e);

bool ts_file_exists(const char *path);             /* a regular file or a link to one */
char *ts_path_join(const char *dir, const char *name); /* free() it; NULL on failure */

#endif
