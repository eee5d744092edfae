/* Pickles: a walk over what one says it holds, with a limit, for a value may be part of itself. */
#include "fuzz.h"

#include "engine/pickle.h"

static size_t visits;

static void walk(const ts_pickle_value *v, int depth) {
    if (!v || depth > 12 || ++visits > 20000) return;
    size_t n = 0;
    for (const ts_pickle_item *i = v->first; i; i = i->next, n++) {
        walk(i->key, depth + 1);
        walk(i->value, depth + 1);
    }
    if (n != v->count) fuzz_fail("items that are not counted");
    if ((v->kind == TS_PICKLE_TEXT || v->kind == TS_PICKLE_GLOBAL) && v->text[v->length])
        fuzz_fail("a text without an end");
    if (v->kind == TS_PICKLE_OBJECT) {
        walk(v->callable, depth + 1);
        walk(v->state, depth + 1);
    }
    if (v->kind == TS_PICKLE_OBJECT || v->kind == TS_PICKLE_PERSISTENT) walk(v->arguments, depth + 1);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    ts_pickle *p = NULL;
    ts_error e = {0};
    if (ts_pickle_parse(data, size, &p, &e)) {
        if (!e.message[0]) fuzz_fail("an error without a word");
        return 0;
    }
    visits = 0;
    walk(ts_pickle_root(p), 0);
    ts_pickle_free(p);
    return 0;
}
