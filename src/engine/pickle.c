#include "engine/pickle.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include "base/alloc.h"

#define VALUES_MAXIMUM 1000000u /* a checkpoint of SD with its optimiser has a tenth of that */
#define BLOCK_BYTES    65536u

typedef struct block {
    struct block *next;
    size_t used, size;
    _Alignas(16) char bytes[];
} block;

struct ts_pickle {
    block *blocks;
    const ts_pickle_value *root;
};

typedef struct machine {
    ts_pickle *p;
    const unsigned char *at, *end;
    size_t values;
    ts_pickle_value **stack;
    size_t depth, stack_capacity;
    size_t *marks; /* depths of the stack */
    size_t mark_count, mark_capacity;
    ts_pickle_value **memo;
    size_t memo_count, memo_capacity;
    ts_error *e;
} machine;

static ts_code broken(machine *m, const char *why) {
    return ts_fail(m->e, TS_EFORMAT, "a broken pickle: %s", why);
}
static ts_code no_memory(machine *m) {
    return ts_fail(m->e, TS_ENOMEM, "reading a pickle");
}

/* ---- memory: everything dies with the pickle ---- */

static void *take(ts_pickle *p, size_t size) {
    size = (size + 15) / 16 * 16;
    block *b = p->blocks;
    if (!b || size > b->size - b->used) {
        const size_t room = size > BLOCK_BYTES ? size : BLOCK_BYTES;
        b = malloc(sizeof *b + room);
        if (!b) return NULL;
        *b = (block){.next = p->blocks, .size = room};
        p->blocks = b;
    }
    void *at = b->bytes + b->used;
    b->used += size;
    return at;
}

static ts_pickle_value *new_value(machine *m, ts_pickle_kind kind) {
    ts_pickle_value *v = take(m->p, sizeof *v);
    if (v) *v = (ts_pickle_value){.kind = kind};
    return v;
}

/* ---- the stack ---- */

static ts_code push(machine *m, ts_pickle_value *v) {
    if (!v) return no_memory(m);
    if (++m->values > VALUES_MAXIMUM)
        return ts_fail(m->e, TS_ETOOLARGE, "a pickle of more than %u values", VALUES_MAXIMUM);
    if (!ts_grow(&m->stack, &m->stack_capacity, m->depth + 1, sizeof *m->stack)) return no_memory(m);
    m->stack[m->depth++] = v;
    return TS_OK;
}

static size_t floor_of(const machine *m) {
    return m->mark_count ? m->marks[m->mark_count - 1] : 0;
}

/* The top n values, which are taken off; NULL when there are not as many above the mark. */
static ts_pickle_value **pop(machine *m, size_t n) {
    if (m->depth - floor_of(m) < n) return NULL;
    m->depth -= n;
    return m->stack + m->depth;
}

/* All above the mark, and the mark. */
static ts_pickle_value **pop_mark(machine *m, size_t *ret_count) {
    if (!m->mark_count) return NULL;
    const size_t at = m->marks[--m->mark_count];
    *ret_count = m->depth - at;
    m->depth = at;
    return m->stack + at;
}

static ts_code add_items(machine *m, ts_pickle_value *to, ts_pickle_value **from, size_t n, bool keyed) {
    if (keyed && n % 2) return broken(m, "a key without a value");
    for (size_t i = 0; i < n; i += keyed ? 2 : 1) {
        ts_pickle_item *item = take(m->p, sizeof *item);
        if (!item) return no_memory(m);
        *item = (ts_pickle_item){.key = keyed ? from[i] : NULL, .value = from[i + keyed]};
        if (to->last)
            to->last->next = item;
        else
            to->first = item;
        to->last = item;
        to->count++;
    }
    return TS_OK;
}

/* A new container of the n values that were just taken off. */
static ts_code make(machine *m, ts_pickle_kind kind, ts_pickle_value **from, size_t n) {
    if (!from) return broken(m, "the stack is empty");
    ts_pickle_value *v = new_value(m, kind);
    if (!v) return no_memory(m);
    ts_code rc = add_items(m, v, from, n, kind == TS_PICKLE_DICT);
    return rc ? rc : push(m, v);
}

static ts_code make_marked(machine *m, ts_pickle_kind kind) {
    size_t n = 0;
    ts_pickle_value **from = pop_mark(m, &n);
    return make(m, kind, from, n);
}

/* Puts the values into the container below them. */
static ts_code put(machine *m, ts_pickle_value **from, size_t n, bool keyed) {
    if (!from || m->depth == floor_of(m)) return broken(m, "the stack is empty");
    ts_pickle_value *to = m->stack[m->depth - 1];
    const ts_pickle_kind fits = keyed ? TS_PICKLE_DICT : TS_PICKLE_LIST;
    if (to->kind != fits && to->kind != TS_PICKLE_OBJECT) return broken(m, "items for what holds none");
    return add_items(m, to, from, n, keyed);
}

static ts_code put_marked(machine *m, bool keyed) {
    size_t n = 0;
    ts_pickle_value **from = pop_mark(m, &n);
    return put(m, from, n, keyed);
}

/* ---- what an instruction carries ---- */

static const unsigned char *bytes_of(machine *m, size_t n) {
    if (n > (size_t)(m->end - m->at)) return NULL;
    m->at += n;
    return m->at - n;
}

static bool unsigned_of(machine *m, unsigned n, uint64_t *ret) {
    const unsigned char *p = bytes_of(m, n);
    if (!p) return false;
    *ret = 0;
    for (unsigned i = 0; i < n; i++) *ret |= (uint64_t)p[i] << (8 * i);
    return true;
}

/* Up to the end of the line, which is skipped. */
static const char *line_of(machine *m, size_t *ret_length) {
    const char *at = (const char *)m->at;
    const void *end = memchr(at, '\n', (size_t)(m->end - m->at));
    if (!end) return NULL;
    *ret_length = (size_t)((const char *)end - at);
    m->at += *ret_length + 1;
    return at;
}

static ts_code push_text(machine *m, ts_pickle_kind kind, const char *a, size_t n, const char *b, size_t k) {
    ts_pickle_value *v = new_value(m, kind);
    char *text = v ? take(m->p, n + k + 2) : NULL;
    if (!text) return no_memory(m);
    memcpy(text, a, n);
    if (b) {
        text[n++] = '.';
        memcpy(text + n, b, k);
        n += k;
    }
    text[n] = 0;
    v->text = text;
    v->length = n;
    return push(m, v);
}

static ts_code push_integer(machine *m, int64_t n) {
    ts_pickle_value *v = new_value(m, TS_PICKLE_INTEGER);
    if (v) v->integer = n;
    return push(m, v);
}

static ts_code cut_off(machine *m) {
    return broken(m, "it is cut off");
}

/* A text with its length in `width` bytes before it; what is no text is skipped and becomes None. */
static ts_code counted(machine *m, unsigned width, bool is_text) {
    uint64_t n;
    if (!unsigned_of(m, width, &n) || n > (uint64_t)(m->end - m->at)) return cut_off(m);
    const char *text = (const char *)bytes_of(m, (size_t)n);
    return is_text ? push_text(m, TS_PICKLE_TEXT, text, (size_t)n, NULL, 0)
                   : push(m, new_value(m, TS_PICKLE_NONE));
}

/* Two's complement in `width` bytes. */
static ts_code integer(machine *m, unsigned width, bool is_signed) {
    uint64_t n;
    if (!unsigned_of(m, width, &n)) return cut_off(m);
    if (is_signed && width && width < 8 && n >> (8 * width - 1)) n |= UINT64_MAX << (8 * width);
    return push_integer(m, (int64_t)n);
}

static ts_code long_integer(machine *m, unsigned width) {
    uint64_t n;
    if (!unsigned_of(m, width, &n)) return cut_off(m);
    if (n <= 8) return integer(m, (unsigned)n, true);
    if (n > (uint64_t)(m->end - m->at)) return cut_off(m);
    bytes_of(m, (size_t)n);
    return push(m, new_value(m, TS_PICKLE_NONE));
}

static ts_code number(machine *m) {
    const unsigned char *p = bytes_of(m, 8);
    ts_pickle_value *v = p ? new_value(m, TS_PICKLE_NUMBER) : NULL;
    if (!p) return cut_off(m);
    if (!v) return no_memory(m);
    uint64_t bits = 0; /* most significant byte first */
    for (int i = 0; i < 8; i++) bits = bits << 8 | p[i];
    memcpy(&v->number, &bits, sizeof bits);
    return push(m, v);
}

/* ---- the memo ---- */

static ts_code remember(machine *m, uint64_t at) {
    if (m->depth == floor_of(m)) return broken(m, "the stack is empty");
    if (at >= VALUES_MAXIMUM) return broken(m, "a place of the memo that is too high");
    if (!ts_grow(&m->memo, &m->memo_capacity, (size_t)at + 1, sizeof *m->memo)) return no_memory(m);
    while (m->memo_count <= at) m->memo[m->memo_count++] = NULL;
    m->memo[at] = m->stack[m->depth - 1];
    return TS_OK;
}

static ts_code remember_at(machine *m, unsigned width) {
    uint64_t at;
    return unsigned_of(m, width, &at) ? remember(m, at) : cut_off(m);
}

static ts_code recall(machine *m, unsigned width) {
    uint64_t at;
    if (!unsigned_of(m, width, &at)) return cut_off(m);
    if (at >= m->memo_count || !m->memo[at]) return broken(m, "a place of the memo that is empty");
    return push(m, m->memo[at]);
}

/* ---- calls ---- */

static ts_code global(machine *m) {
    size_t n = 0, k = 0;
    const char *module = line_of(m, &n), *name = module ? line_of(m, &k) : NULL;
    return name ? push_text(m, TS_PICKLE_GLOBAL, module, n, name, k) : cut_off(m);
}

static ts_code stack_global(machine *m) {
    ts_pickle_value **from = pop(m, 2);
    if (!from || from[0]->kind != TS_PICKLE_TEXT || from[1]->kind != TS_PICKLE_TEXT)
        return broken(m, "no name of a global");
    return push_text(m, TS_PICKLE_GLOBAL, from[0]->text, from[0]->length, from[1]->text, from[1]->length);
}

/* n: callable and arguments, or an id alone. */
static ts_code call(machine *m, ts_pickle_kind kind, size_t n) {
    ts_pickle_value **from = pop(m, n);
    if (!from) return broken(m, "the stack is empty");
    ts_pickle_value *v = new_value(m, kind);
    if (!v) return no_memory(m);
    v->arguments = from[n - 1];
    if (n > 1) v->callable = from[0];
    return push(m, v);
}

/* What is set on other things than objects (an OrderedDict's attributes are) tells nothing here. */
static ts_code build(machine *m) {
    ts_pickle_value **state = pop(m, 1);
    if (!state || m->depth == floor_of(m)) return broken(m, "the stack is empty");
    ts_pickle_value *to = m->stack[m->depth - 1];
    if (to->kind == TS_PICKLE_OBJECT) to->state = *state;
    return TS_OK;
}

static ts_code mark(machine *m) {
    if (!ts_grow(&m->marks, &m->mark_capacity, m->mark_count + 1, sizeof *m->marks)) return no_memory(m);
    m->marks[m->mark_count++] = m->depth;
    return TS_OK;
}

static ts_code duplicate(machine *m) {
    if (m->depth == floor_of(m)) return broken(m, "the stack is empty");
    return push(m, m->stack[m->depth - 1]);
}

static ts_code drop(machine *m) {
    size_t n;
    return pop(m, 1) || pop_mark(m, &n) ? TS_OK : broken(m, "the stack is empty");
}

static ts_code drop_marked(machine *m) {
    size_t n;
    return pop_mark(m, &n) ? TS_OK : broken(m, "there is no mark");
}

static ts_code skip(machine *m, size_t n) {
    return bytes_of(m, n) ? TS_OK : cut_off(m);
}

static ts_code step(machine *m, unsigned char instruction) {
    switch (instruction) {
    case 0x80: return skip(m, 1); /* the protocol */
    case 0x95: return skip(m, 8); /* a frame */
    case '(': return mark(m);
    case '0': return drop(m);
    case '1': return drop_marked(m);
    case '2': return duplicate(m);

    case 'N': return push(m, new_value(m, TS_PICKLE_NONE));
    case 0x88: return push_integer(m, 1);
    case 0x89: return push_integer(m, 0);
    case 'J': return integer(m, 4, true);
    case 'K': return integer(m, 1, false);
    case 'M': return integer(m, 2, false);
    case 0x8a: return long_integer(m, 1);
    case 0x8b: return long_integer(m, 4);
    case 'G': return number(m);
    case 'X': return counted(m, 4, true);
    case 0x8c: return counted(m, 1, true);
    case 0x8d: return counted(m, 8, true);
    case 'U': return counted(m, 1, true); /* Python 2's texts */
    case 'T': return counted(m, 4, true);
    case 'C': return counted(m, 1, false);
    case 'B': return counted(m, 4, false);
    case 0x8e: return counted(m, 8, false);
    case 0x96: return counted(m, 8, false);

    case ')': return push(m, new_value(m, TS_PICKLE_TUPLE));
    case 0x85: return make(m, TS_PICKLE_TUPLE, pop(m, 1), 1);
    case 0x86: return make(m, TS_PICKLE_TUPLE, pop(m, 2), 2);
    case 0x87: return make(m, TS_PICKLE_TUPLE, pop(m, 3), 3);
    case 't': return make_marked(m, TS_PICKLE_TUPLE);
    case ']':
    case 0x8f: return push(m, new_value(m, TS_PICKLE_LIST));
    case 'l':
    case 0x91: return make_marked(m, TS_PICKLE_LIST);
    case 'a': return put(m, pop(m, 1), 1, false);
    case 'e':
    case 0x90: return put_marked(m, false);
    case '}': return push(m, new_value(m, TS_PICKLE_DICT));
    case 'd': return make_marked(m, TS_PICKLE_DICT);
    case 's': return put(m, pop(m, 2), 2, true);
    case 'u': return put_marked(m, true);

    case 'q': return remember_at(m, 1);
    case 'r': return remember_at(m, 4);
    case 0x94: return remember(m, m->memo_count);
    case 'h': return recall(m, 1);
    case 'j': return recall(m, 4);

    case 'c': return global(m);
    case 0x93: return stack_global(m);
    case 'R':
    case 0x81: return call(m, TS_PICKLE_OBJECT, 2);
    case 0x92:
        return pop(m, 1) ? call(m, TS_PICKLE_OBJECT, 2) : broken(m, "the stack is empty"); /* keywords */
    case 'b': return build(m);
    case 'Q': return call(m, TS_PICKLE_PERSISTENT, 1);
    default: return ts_fail(m->e, TS_EFORMAT, "a broken pickle: unknown instruction %u", instruction);
    }
}

ts_code ts_pickle_parse(const void *bytes, size_t size, ts_pickle **ret, ts_error *e) {
    ts_pickle *p = ts_new0(ts_pickle);
    if (!p) return ts_fail(e, TS_ENOMEM, "reading a pickle");
    machine m = {.p = p, .at = bytes, .end = (const unsigned char *)bytes + size, .e = e};
    /* Something to point to even while it is empty. */
    ts_code rc = ts_grow(&m.stack, &m.stack_capacity, 64, sizeof *m.stack) ? TS_OK : no_memory(&m);
    while (!rc && !p->root) {
        const unsigned char *instruction = bytes_of(&m, 1);
        if (!instruction)
            rc = cut_off(&m);
        else if (*instruction != '.')
            rc = step(&m, *instruction);
        else if (m.depth == 1 && !m.mark_count)
            p->root = m.stack[0];
        else
            rc = broken(&m, "it leaves no single value");
    }
    free(m.stack);
    free(m.marks);
    free(m.memo);
    if (rc) {
        ts_pickle_free(p);
        return rc;
    }
    *ret = p;
    return TS_OK;
}

void ts_pickle_free(ts_pickle *p) {
    if (!p) return;
    for (block *b = p->blocks, *next; b; b = next) {
        next = b->next;
        free(b);
    }
    free(p);
}

const ts_pickle_value *ts_pickle_root(const ts_pickle *p) {
    return p->root;
}
