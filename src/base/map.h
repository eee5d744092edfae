/* Large files, mapped read-only, that may change while they are mapped.
 *
 * Whoever can write to a file can take bytes from under a mapping (truncation, a disk that fails), and
 * reading them raises SIGBUS. Mapping installs a handler for that signal: where the address is in a mapping
 * of ours, it puts zeros in place of the rest of the file, so that the reader, whichever thread it is and
 * whatever library it is in, goes on; anything else goes to the handler that was there before. Such bytes
 * mean nothing, so what was made from a mapping is to be used only after ts_map_check has found the file as
 * it was.
 *
 * Replacing a file by renaming another one over it changes nothing here: the mapping keeps the old one. */
#ifndef TS_BASE_MAP_H
#define TS_BASE_MAP_H

#include <stddef.h>
#include "base/error.h"

typedef struct ts_map {
    const unsigned char *data; /* read-only; NULL for an empty file */
    size_t size;
    struct ts_mapping *mapping; /* of map.c */
} ts_map;

/* Maps a regular file privately and read-only. TS_ENOTFOUND, TS_EIO, TS_ENOMEM. */
ts_code ts_map_open(const char *path, ts_map *ret, ts_error *e);
void ts_map_close(ts_map *map); /* NULL and closed are fine */

/* Nobody will read much of it for now: its pages leave the process's memory, and come back from the file when
 * they are read after all. Any thread, also while another reads. */
void ts_map_rest(const ts_map *map);

/* TS_OK when every byte that was read so far was the file's, as it was when it was opened; TS_EIO when it has
 * been written to, has lost bytes or could not be read, now and ever after. The answer also holds for other
 * threads' reads that happened before this call. Any thread. */
ts_code ts_map_check(const ts_map *map, ts_error *e);

#endif
