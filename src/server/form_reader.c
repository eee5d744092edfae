#include "server/form_reader.h"

#include <microhttpd.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include "base/alloc.h"

#define READ_BYTES 4096 /* of the boundary and of a part's headers, at most */

struct ts_form_reader {
    struct MHD_PostProcessor *processor;
    ts_form *form;
    ts_error *error; /* of the call that is running */
    ts_code code;    /* of a piece */
};

/* True for the first piece of a part: those at offset 0. But where a part's headers end with what has come so
 * far, libmicrohttpd hands out nothing at offset 0, and then the real first piece, as if an empty part of the
 * same name came before. So an empty part that is followed by another of its name does not count. */
static bool begins_part(const ts_form_reader *r, const char *name, uint64_t at) {
    const ts_form_part *last = r->form->count ? &r->form->parts[r->form->count - 1] : NULL;
    return at == 0 && !(last && !last->bytes.size && !strcmp(last->name, name));
}

/* The pieces of each part come in order. */
static enum MHD_Result on_piece(void *arg, enum MHD_ValueKind kind, const char *name, const char *file,
                                const char *type, const char *encoding, const char *bytes, uint64_t at,
                                size_t n) {
    ts_form_reader *r = arg;
    (void)kind, (void)file, (void)type, (void)encoding;
    if (!name) name = "";
    r->code = ts_form_add(r->form, name, bytes, begins_part(r, name, at), n, r->error);
    return r->code ? MHD_NO : MHD_YES;
}

ts_code ts_form_reader_new(struct MHD_Connection *connection, ts_form_reader **ret, ts_error *e) {
    static const char wanted[] = "multipart/form-data";
    const char *type = MHD_lookup_connection_value(connection, MHD_HEADER_KIND, "content-type");
    if (!type || strncasecmp(type, wanted, sizeof wanted - 1) != 0)
        return ts_fail_param(e, TS_EMEDIATYPE, "", "the content-type must be multipart/form-data");
    ts_form_reader *r = ts_new0(ts_form_reader);
    if (r) r->form = ts_new0(ts_form);
    if (!r || !r->form) {
        ts_form_reader_free(r);
        return ts_fail(e, TS_ENOMEM, "there is no memory for the form");
    }
    r->processor = MHD_create_post_processor(connection, READ_BYTES, on_piece, r);
    if (!r->processor) {
        ts_form_reader_free(r);
        return ts_fail(e, TS_EINVAL, "the content-type names no form that can be read");
    }
    *ret = r;
    return TS_OK;
}

void ts_form_reader_free(ts_form_reader *r) {
    if (!r) return;
    ts_error ignored;
    r->error = &ignored; /* destroying may hand out a last piece */
    if (r->processor) MHD_destroy_post_processor(r->processor);
    ts_form_free(r->form);
    free(r);
}

static ts_code outcome(const ts_form_reader *r, bool good, ts_error *e) {
    if (r->code) return r->code;
    return good ? TS_OK : ts_fail(e, TS_EINVAL, "the form is malformed, or ends too early");
}

ts_code ts_form_reader_feed(ts_form_reader *r, const char *bytes, size_t n, ts_error *e) {
    r->error = e;
    return outcome(r, MHD_post_process(r->processor, bytes, n) == MHD_YES, e);
}

ts_code ts_form_reader_end(ts_form_reader *r, ts_form **ret, ts_error *e) {
    r->error = e;
    bool good = MHD_destroy_post_processor(r->processor) == MHD_YES;
    r->processor = NULL;
    ts_code rc = outcome(r, good, e);
    if (rc) return rc;
    *ret = r->form;
    r->form = NULL;
    return TS_OK;
}
