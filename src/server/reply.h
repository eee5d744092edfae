/* Answers: JSON text, and errors in the shape that OpenAI's clients read. */
#ifndef TS_SERVER_REPLY_H
#define TS_SERVER_REPLY_H

#include "base/buffer.h"
#include "server/http.h"

/* Appends a JSON string with its quotes; NULL is null. Bytes that are not UTF-8 become U+FFFD, so that a path
 * of the file system cannot break an answer. Fails as ts_buffer_append does. */
ts_code ts_json_quote(ts_buffer *b, const char *text);

/* {"error": {"message", "type", "param", "code"}} */
ts_code ts_json_error(ts_buffer *b, const ts_error *error);

/* Answers with what the buffer holds; the buffer is empty afterwards. rc is what filling it came to: on
 * failure the answer is that error instead. */
void ts_reply_buffer(ts_exchange *x, ts_code rc, const char *type, ts_buffer *b);

/* The error with its status. 5xx that would only fail again say x-should-retry: false; 503 says retry-after.
 */
void ts_reply_error(ts_exchange *x, const ts_error *error);
void ts_reply_error_headers(ts_exchange *x, const ts_error *error, const ts_header *headers, size_t count);

/* For an answer that cannot say so in its status any more, and by the two above: what the server is to
 * blame for goes to the log, and the answer does not count as a good one. */
void ts_reply_failed(ts_exchange *x, const ts_error *error);

#endif
