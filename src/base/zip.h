/* The directory of a zip file (PKWARE's APPNOTE 6.3, with ZIP64) whose entries are stored as they are, read
 * in place. Libraries copy an entry out; here it stays in the mapping. Nothing in the file is trusted. */
#ifndef TS_BASE_ZIP_H
#define TS_BASE_ZIP_H

#include <stddef.h>
#include "base/error.h"

typedef struct ts_zip_entry {
    const char *name; /* in the file, not terminated */
    size_t name_length;
    const unsigned char *data; /* lies whole inside the file */
    size_t size;
} ts_zip_entry;

typedef struct ts_zip {
    ts_zip_entry *entries; /* in order of name (memcmp, the shorter first) */
    size_t count;
} ts_zip;

/* The bytes must outlive *ret. TS_EFORMAT; TS_EUNSUPPORTED for entries that are compressed or encrypted;
 * TS_ENOMEM. Any thread. */
ts_code ts_zip_open(const void *bytes, size_t size, ts_zip *ret, ts_error *e);
void ts_zip_free(ts_zip *z); /* zeroed is fine; leaves it zeroed */

/* NULL when there is none; of several of one name, any. */
const ts_zip_entry *ts_zip_find(const ts_zip *z, const char *name, size_t length);

#endif
