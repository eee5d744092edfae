/* What a request line and headers must be before anything else is believed.
 *
 * libmicrohttpd's parser is lenient: it serves a request with Transfer-Encoding and Content-Length, with two
 * lengths that differ, or with blanks before the colon. A proxy in front may read such bytes differently, and
 * then two requests hide in one. Here each of these is an error, after which the connection is closed. What
 * the parser has already hidden (folded lines, bare line feeds) cannot be seen here: where strangers can
 * reach the server, a proxy that normalises belongs in front of it. */
#ifndef TS_SERVER_GUARD_H
#define TS_SERVER_GUARD_H

#include <microhttpd.h>
#include "base/error.h"

/* TS_OK, or TS_EINVAL with the sentence. Loop thread. */
ts_code ts_guard(struct MHD_Connection *connection, const char *url, const char *method, const char *version,
                 ts_error *e);

#endif
