/* A body of multipart/form-data (RFC 7578, RFC 2046 section 5.1) on its way in: taken apart as it arrives, so that it is
 * never held whole and never read in one go. How it is cut into pieces makes no difference.
 *
 * One thread. After an error nothing but ts_form_reader_free may be called. */
#ifndef TS_SERVER_FORM_READER_H
#define TS_SERVER_FORM_READER_H

#include <stddef.h>
#include "base/error.h"
#include "server/form.h"

typedef struct ts_form_reader ts_form_reader;

/* content_type: the header's value, or NULL. TS_EMEDIATYPE when it is no multipart/form-data, TS_EINVAL when it names no
 * boundary, TS_ENOMEM. */
ts_code ts_form_reader_new(const char *content_type, ts_form_reader **ret, ts_error *e);
void ts_form_reader_free(ts_form_reader *reader); /* NULL is fine */

/* The next n bytes of the body. TS_EINVAL for a form that is malformed or has too many parts, TS_ENOMEM. */
ts_code ts_form_reader_feed(ts_form_reader *reader, const char *bytes, size_t n, ts_error *e);

/* The body is complete: *ret is the form, the caller's. TS_EINVAL when it ends too early. */
ts_code ts_form_reader_end(ts_form_reader *reader, ts_form **ret, ts_error *e);

#endif
