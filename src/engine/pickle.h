/* Python pickles, read as data: what a program would build from one, as a tree. Nothing is run.
 *
 * A pickle is a program for a small stack machine (Python's pickletools lists its instructions) that may call
 * any function by name. Here a call becomes an OBJECT that says what was called with what; making sense of it
 * is the caller's. Protocols 0 to 5 as torch.save, protocol 2, uses them: the instructions for texts,
 * numbers, tuples, lists, dicts, sets, the memo, persistent ids and calls; another one is an error. Nothing
 * in a pickle is trusted. A value may be part of several others, of itself too: walk it with a limit. */
#ifndef TS_ENGINE_PICKLE_H
#define TS_ENGINE_PICKLE_H

#include <stddef.h>
#include <stdint.h>
#include "base/error.h"

typedef enum ts_pickle_kind {
    TS_PICKLE_NONE,    /* also for what nobody here asks for, such as bytes */
    TS_PICKLE_INTEGER, /* booleans too; one beyond 64 bits is NONE */
    TS_PICKLE_NUMBER,
    TS_PICKLE_TEXT,
    TS_PICKLE_TUPLE,      /* items */
    TS_PICKLE_LIST,       /* items; sets too */
    TS_PICKLE_DICT,       /* items with keys */
    TS_PICKLE_GLOBAL,     /* text: module and name, a '.' between them */
    TS_PICKLE_OBJECT,     /* the result of a call: callable, arguments, what was put into it afterwards */
    TS_PICKLE_PERSISTENT, /* arguments: the id, which means something to the writer */
} ts_pickle_kind;

typedef struct ts_pickle_value ts_pickle_value;

typedef struct ts_pickle_item {
    const ts_pickle_value *key; /* NULL but in dicts and objects */
    const ts_pickle_value *value;
    struct ts_pickle_item *next;
} ts_pickle_item;

struct ts_pickle_value {
    ts_pickle_kind kind;
    union {
        int64_t integer;
        double number;
        struct {
            const char *text; /* terminated; may hold further zeros, and need not be UTF-8 */
            size_t length;
        };
        struct {
            const ts_pickle_value *callable, *arguments;
            const ts_pickle_value *state; /* of __setstate__; NULL: there was none */
        };
    };
    ts_pickle_item *first, *last;
    size_t count;
};

typedef struct ts_pickle ts_pickle;

/* TS_EFORMAT, TS_ETOOLARGE (more than a million values), TS_ENOMEM. *ret keeps nothing of the bytes. */
ts_code ts_pickle_parse(const void *bytes, size_t size, ts_pickle **ret, ts_error *e);
void ts_pickle_free(ts_pickle *p); /* NULL is fine; every value dies too */

const ts_pickle_value *ts_pickle_root(const ts_pickle *p);

#endif
