/* Small files as a whole. Large ones are mapped: base/map.h. */
#ifndef TS_BASE_FILE_H
#define TS_BASE_FILE_H

#include <stdbool.h>
#include <stddef.h>
#include "base/error.h"

struct stat;

/* Opens a regular file for reading, and nothing else: a FIFO, a device or a folder is TS_EIO, not a wait.
 * TS_ENOTFOUND. close() *ret_fd. */
ts_code ts_open_regular(const char *path, int *ret_fd, struct stat *ret, ts_error *e);

/* Reads a whole file of at most `maximum` bytes; the text is terminated. free() it. */
ts_code ts_read_file(const char *path, size_t maximum, char **ret, size_t *ret_size, ts_error *e);

/* Writes a file beside `path` and renames it over it, so that a reader never sees half of it. */
ts_code ts_write_file(const char *path, const void *bytes, size_t n, ts_error *e);

bool ts_folder_exists(const char *path);
bool ts_file_exists(const char *path);                 /* a regular file or a link to one */
char *ts_path_join(const char *dir, const char *name); /* free() it; NULL on failure */

/* Which of the extensions, up to a NULL, the name ends with; -1: with none, or it is nothing else. *ret_stem:
 * the bytes before it, or all of them. */
int ts_path_extension(const char *name, const char *const extensions[], size_t *ret_stem);

#endif
