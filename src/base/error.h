/* Errors: one list of codes, and the message that goes with one failure.
 *
 * A function that can fail returns a ts_code. Where the reason is worth telling it takes a ts_error from its
 * caller, fills it with ts_fail and returns the code; a NULL ts_error is always allowed. Nobody below server/
 * and main.c prints: the caller decides whether the message becomes a log line or an HTTP answer. */
#ifndef TS_BASE_ERROR_H
#define TS_BASE_ERROR_H

/* name, HTTP status, machine-readable code of the API, sentence for people */
#define TS_CODES(X)                                                                                          \
    X(OK, 200, "ok", "success")                                                                              \
    X(EINVAL, 400, "invalid_value", "a value is not acceptable")                                             \
    X(EUNSUPPORTED, 400, "unsupported", "a known feature that this server does not offer")                   \
    X(EUNAUTHORIZED, 401, "invalid_api_key", "the request carries no valid key")                             \
    X(ENOTFOUND, 404, "not_found", "there is no such thing")                                                 \
    X(EMETHOD, 405, "method_not_allowed", "the resource exists but not with this method")                    \
    X(ETIMEDOUT, 408, "timeout", "it took too long")                                                         \
    X(ECONFLICT, 409, "conflict", "it contradicts something that exists")                                    \
    X(ETOOLARGE, 413, "too_large", "larger than the limit")                                                  \
    X(EMEDIATYPE, 415, "unsupported_media_type", "the body is of a type that is not understood")             \
    X(EFULL, 429, "queue_full", "the queue is full")                                                         \
    X(ECANCELLED, 499, "cancelled", "the client gave up")                                                    \
    X(EINTERNAL, 500, "internal_error", "a bug of ours")                                                     \
    X(EFORMAT, 500, "bad_file", "a file does not hold what it should")                                       \
    X(EIO, 500, "io_error", "reading or writing failed")                                                     \
    X(ENONFINITE, 500, "non_finite", "a value became infinite or not a number")                              \
    X(EDEVICE, 500, "device_error", "a device failed")                                                       \
    X(ENOMEM, 503, "out_of_memory", "memory ran out")                                                        \
    X(ELOADING, 503, "loading", "the models are being loaded")                                               \
    X(ESHUTDOWN, 503, "shutting_down", "the server is stopping")

typedef enum ts_code {
#define X(name, status, api, sentence) TS_##name,
    TS_CODES(X)
#undef X
        TS_CODE_COUNT
} ts_code;

typedef struct ts_error {
    ts_code code;
    char param[64];    /* the field, key or file that it is about; "" when none */
    char message[448]; /* a sentence for people; always terminated */
} ts_error;

const char *ts_code_name(ts_code code);     /* "EINVAL" */
int ts_code_http(ts_code code);             /* 400 */
const char *ts_code_api(ts_code code);      /* "invalid_value" */
const char *ts_code_sentence(ts_code code); /* "a value is not acceptable" */

/* What an errno of opening something is: TS_ENOTFOUND, TS_ENOMEM, else TS_EIO. */
ts_code ts_errno_code(int err);

/* Fills e (NULL is fine) and returns code, which must not be TS_OK. */
ts_code ts_fail(ts_error *e, ts_code code, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* The same, naming the field or file at fault. */
ts_code ts_fail_param(ts_error *e, ts_code code, const char *param, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

/* The same with the sentence of errno appended. */
ts_code ts_fail_errno(ts_error *e, ts_code code, int err, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

/* Puts "context: " before the message that e already holds, as an error unwinds. Returns e->code. */
ts_code ts_error_context(ts_error *e, ts_code code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* Takes "folder/" out of the message, wherever it stands: what a client may not see. folder has no slash
 * at its end; an empty one hides nothing. */
void ts_error_hide_folder(ts_error *e, const char *folder, int length);

/* A programmer's bug, checked in release builds too: prints the place to stderr and aborts. */
#define ts_assert(cond) ((cond) ? (void)0 : ts_assert_failed(#cond, __FILE__, __LINE__))
_Noreturn void ts_assert_failed(const char *cond, const char *file, int line);

#endif
