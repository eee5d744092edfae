/* The files of torch.save (PyTorch 1.6 and later): a zip with NAME/data.pkl, a pickle in which tensors name
 * their storage, and the storages, NAME/data/KEY, as they lie in memory. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/alloc.h"
#include "base/json.h"
#include "base/zip.h"
#include "engine/pickle.h"
#include "engine/tensors_internal.h"

#define PICKLE_MAXIMUM ((size_t)64 << 20) /* that of a checkpoint with its optimiser has 2 MB */
#define NAME_MAXIMUM   512u
#define DEPTH_MAXIMUM  16
#define VISITS_MAXIMUM 4000000u

typedef struct reader {
    ts_tensors *s;
    ts_zip zip;
    const char *folder; /* of the entries, with its slash; not terminated */
    size_t folder_length;
    size_t visits;
    size_t copied; /* bytes of tensors that were put in order: no more than the file has */
    ts_error *e;
} reader;

/* What a storage's elements are: by its class, or where it has none by the tensor's dtype. */
static const struct {
    const char *global, *type;
} storages[] = {
    {"torch.FloatStorage", "F32"},
    {"torch.HalfStorage", "F16"},
    {"torch.BFloat16Storage", "BF16"},
    {"torch.DoubleStorage", "F64"},
    {"torch.LongStorage", "I64"},
    {"torch.IntStorage", "I32"},
    {"torch.ShortStorage", "I16"},
    {"torch.CharStorage", "I8"},
    {"torch.ByteStorage", "U8"},
    {"torch.BoolStorage", "BOOL"},
    {"torch.ComplexFloatStorage", "C64"},
    {"torch.uint16", "U16"},
    {"torch.uint32", "U32"},
    {"torch.uint64", "U64"},
    {"torch.float8_e4m3fn", "F8_E4M3"},
    {"torch.float8_e5m2", "F8_E5M2"},
    {"torch.float8_e8m0fnu", "F8_E8M0"},
};

#define UNTYPED   "torch.storage.UntypedStorage"
#define REBUILD   "torch._utils._rebuild_tensor"
#define PARAMETER "torch._utils._rebuild_parameter"
#define FROM_TYPE "torch._tensor._rebuild_from_type_v2"

static bool is_text(const ts_pickle_value *v, const char *text) {
    return (v->kind == TS_PICKLE_TEXT || v->kind == TS_PICKLE_GLOBAL) && strcmp(v->text, text) == 0;
}

static bool is_global(const ts_pickle_value *v, const char *global) {
    return v->kind == TS_PICKLE_GLOBAL && strcmp(v->text, global) == 0;
}

static bool is_call(const ts_pickle_value *v, const char *global) {
    return v->kind == TS_PICKLE_OBJECT && is_global(v->callable, global);
}

/* The i-th of a tuple or list of at least i + 1 items; NULL for anything else. */
static const ts_pickle_value *item_of(const ts_pickle_value *v, size_t i) {
    if ((v->kind != TS_PICKLE_TUPLE && v->kind != TS_PICKLE_LIST) || i >= v->count) return NULL;
    const ts_pickle_item *item = v->first;
    while (i--) item = item->next;
    return item->value;
}

/* Values may be part of many others, so that what is looked at is counted and not what is there. */
static bool visit(reader *r) {
    return ++r->visits <= VISITS_MAXIMUM;
}

static const ts_pickle_value *member(reader *r, const ts_pickle_value *dict, const char *name) {
    for (const ts_pickle_item *i = dict->first; i && visit(r); i = i->next)
        if (i->key && is_text(i->key, name)) return i->value;
    return NULL;
}

static bool is_dict(const ts_pickle_value *v) {
    return v->kind == TS_PICKLE_DICT || is_call(v, "collections.OrderedDict");
}

/* ---- tensors ---- */

/* The persistent id of a storage: ("storage", its class, its key, where it was, its elements). dtype: the
 * tensor's, or NULL. */
static ts_code find_storage(const reader *r, const char *name, const ts_pickle_value *v,
                            const ts_pickle_value *dtype, const tensor_type **ret_type,
                            const ts_zip_entry **ret, ts_error *e) {
    const ts_pickle_value *kind = NULL, *key = NULL, *word = NULL;
    if (v->kind == TS_PICKLE_PERSISTENT) {
        word = item_of(v->arguments, 0);
        kind = item_of(v->arguments, 1);
        key = item_of(v->arguments, 2);
    }
    if (!word || !is_text(word, "storage") || !kind || kind->kind != TS_PICKLE_GLOBAL || !key ||
        key->kind != TS_PICKLE_TEXT || key->length > NAME_MAXIMUM)
        return ts_fail(e, TS_EFORMAT, "tensor %.200s has no storage", name);
    if (is_text(kind, UNTYPED) && dtype && dtype->kind == TS_PICKLE_GLOBAL) kind = dtype;
    const tensor_type *type = NULL;
    for (size_t i = 0; i < sizeof storages / sizeof *storages; i++)
        if (is_text(kind, storages[i].global)) type = tensors_type(storages[i].type);
    if (!type) return ts_fail(e, TS_EUNSUPPORTED, "tensor %.200s: a %.100s is not read", name, kind->text);

    char path[2 * NAME_MAXIMUM + 8];
    const int n = snprintf(path, sizeof path, "%.*sdata/%s", (int)r->folder_length, r->folder, key->text);
    const ts_zip_entry *entry = ts_zip_find(&r->zip, path, (size_t)n);
    if (!entry)
        return ts_fail(e, TS_EFORMAT, "tensor %.200s: its storage %.100s is not in the file", name,
                       key->text);
    *ret_type = type;
    *ret = entry;
    return TS_OK;
}

/* Sizes, and strides in elements. */
static ts_code read_shape(const char *name, const ts_pickle_value *sizes, const ts_pickle_value *strides,
                          ts_file_tensor *t, int64_t ret_strides[TS_FILE_RANK], size_t *ret_elements,
                          ts_error *e) {
    if (sizes->kind != TS_PICKLE_TUPLE || strides->kind != TS_PICKLE_TUPLE || sizes->count != strides->count)
        return ts_fail(e, TS_EFORMAT, "tensor %.200s has no shape", name);
    if (sizes->count > TS_FILE_RANK)
        return ts_fail(e, TS_EFORMAT, "tensor %.200s has more than %d dimensions", name, TS_FILE_RANK);
    for (const ts_pickle_item *i = sizes->first; i; i = i->next) {
        if (i->value->kind != TS_PICKLE_INTEGER)
            return ts_fail(e, TS_EFORMAT, "tensor %.200s has no shape", name);
        t->shape[t->rank++] = i->value->integer;
    }
    if (!tensors_elements(t->shape, t->rank, ret_elements))
        return ts_fail(e, TS_EFORMAT, "the shape of tensor %.200s overflows", name);
    int k = 0;
    for (const ts_pickle_item *i = strides->first; i; i = i->next) {
        if (i->value->kind != TS_PICKLE_INTEGER)
            return ts_fail(e, TS_EFORMAT, "tensor %.200s has no strides", name);
        ret_strides[k] = t->shape[k] == 1 ? 0 : i->value->integer; /* nobody takes that step */
        k++;
    }
    return TS_OK;
}

/* Whether it lies row by row. A size of 1 may have any stride. */
static bool is_in_order(const ts_file_tensor *t, const int64_t *strides, size_t elements) {
    size_t after = elements; /* of the dimensions behind this one */
    for (int k = 0; k < t->rank && elements; k++) {
        after /= (size_t)t->shape[k];
        if (t->shape[k] != 1 && (strides[k] < 0 || (uint64_t)strides[k] != after)) return false;
    }
    return true;
}

/* Elements from the first to behind the last; false where that overflows or one lies before the first. */
static bool extent_of(const ts_file_tensor *t, const int64_t *strides, size_t *ret) {
    size_t extent = 1, some;
    for (int k = 0; k < t->rank; k++)
        if (strides[k] < 0 || !ts_mul_size((size_t)t->shape[k] - 1, (size_t)strides[k], &some) ||
            !ts_add_size(extent, some, &extent))
            return false;
    *ret = extent;
    return true;
}

/* Keeps the memory as long as the file is open; on failure it is freed. */
static ts_code own(ts_tensors *s, void *memory, const char *name, ts_error *e) {
    if (memory && ts_grow(&s->owned, &s->owned_capacity, s->owned_count + 1, sizeof *s->owned)) {
        s->owned[s->owned_count++] = memory;
        return TS_OK;
    }
    free(memory);
    return ts_fail(e, TS_ENOMEM, "tensor %.200s", name);
}

/* The elements of a transposed, channels-last or sliced view one by one, row by row. */
static void put_in_order(char *to, const char *from, size_t width, const ts_file_tensor *t,
                         const int64_t *strides) {
    int64_t at[TS_FILE_RANK] = {0}, element = 0;
    for (size_t n = t->bytes / width; n; n--, to += width) {
        memcpy(to, from + (size_t)element * width, width);
        for (int k = t->rank - 1; k >= 0; k--) {
            element += strides[k];
            if (++at[k] < t->shape[k]) break;
            element -= at[k] * strides[k];
            at[k] = 0;
        }
    }
}

/* A tensor that does not lie row by row gets a copy that does, which the file must be large enough for: what
 * repeats its elements could be of any size. */
static ts_code copy_in_order(reader *r, size_t width, const char *from, size_t room, const int64_t *strides,
                             ts_file_tensor *t) {
    size_t extent, bytes;
    if (!extent_of(t, strides, &extent) || !ts_mul_size(extent, width, &bytes) || bytes > room)
        return ts_fail(r->e, TS_EFORMAT, "tensor %.200s is longer than its storage", t->name);
    if (t->bytes > room || t->bytes > r->s->size - r->copied)
        return ts_fail(r->e, TS_EUNSUPPORTED, "tensor %.200s repeats what it is made of, which is not read",
                       t->name);
    r->copied += t->bytes;
    char *copy = malloc(t->bytes);
    ts_code rc = own(r->s, copy, t->name, r->e);
    if (rc) return rc;
    put_in_order(copy, from, width, t, strides);
    t->data = copy;
    return TS_OK;
}

/* _rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks), and v3 with a dtype behind them.
 */
static ts_code add_tensor(reader *r, const char *name, const ts_pickle_value *arguments) {
    const ts_pickle_value *storage = item_of(arguments, 0), *offset = item_of(arguments, 1),
                          *sizes = item_of(arguments, 2), *strides = item_of(arguments, 3);
    if (!strides || offset->kind != TS_PICKLE_INTEGER || offset->integer < 0)
        return ts_fail(r->e, TS_EFORMAT, "tensor %.200s is broken", name);
    const tensor_type *type = NULL;
    const ts_zip_entry *entry = NULL;
    ts_file_tensor t = {.name = name};
    int64_t step[TS_FILE_RANK] = {0};
    size_t elements = 0, begin = 0;
    ts_code rc = find_storage(r, name, storage, item_of(arguments, 6), &type, &entry, r->e);
    if (!rc) rc = read_shape(name, sizes, strides, &t, step, &elements, r->e);
    if (rc) return rc;
    const size_t width = type->bits / 8;
    const bool in_order = is_in_order(&t, step, elements);
    if (!ts_mul_size(elements, width, &t.bytes) || !ts_mul_size((size_t)offset->integer, width, &begin) ||
        begin > entry->size || (in_order && t.bytes > entry->size - begin))
        return ts_fail(r->e, TS_EFORMAT, "tensor %.200s is longer than its storage", name);
    t.data = entry->data + begin;
    if (!in_order) rc = copy_in_order(r, width, t.data, entry->size - begin, step, &t);
    return rc ? rc : tensors_add(r->s, type, &t, r->e);
}

/* Scripts save the alpha of a LoRA's layer as a number of Python's, where others have a tensor: the file has
 * an F64 more. Left out, it would be another picture. */
static bool is_alpha(const char *name, size_t length) {
    static const char end[] = ".alpha";
    const size_t n = sizeof end - 1;
    return length > n && memcmp(name + length - n, end, n) == 0;
}

/* Something that is no number to us; whoever wants one there refuses its type. */
static ts_code add_object(reader *r, const char *name) {
    static const tensor_type object = {.name = "object", .bits = 64};
    return tensors_add(r->s, &object, &(ts_file_tensor){.name = name, .data = ""}, r->e);
}

static ts_code add_number(reader *r, const char *name, const ts_pickle_value *v) {
    const bool whole = v->kind == TS_PICKLE_INTEGER;
    if (!whole && v->kind != TS_PICKLE_NUMBER) return add_object(r, name);
    double *number = ts_new0(double);
    ts_code rc = own(r->s, number, name, r->e);
    if (rc) return rc;
    *number = whole ? (double)v->integer : v->number;
    const ts_file_tensor t = {.name = name, .data = number, .bytes = sizeof *number};
    return tensors_add(r->s, tensors_type("F64"), &t, r->e);
}

/* Tensors that are made in another way, of numpy's arrays or sparse. Left out, some would not be missed. */
static bool makes_tensor(const ts_pickle_value *callable) {
    static const char *const makers[] = {"torch._utils._rebuild_", "torch._tensor._rebuild_",
                                         "numpy.core.multiarray._reconstruct",
                                         "numpy._core.multiarray._reconstruct"};
    for (size_t i = 0; i < sizeof makers / sizeof *makers && callable->kind == TS_PICKLE_GLOBAL; i++)
        if (!strncmp(callable->text, makers[i], strlen(makers[i]))) return true;
    return false;
}

/* ---- the tree ---- */

static ts_code too_many(reader *r) {
    return ts_fail(r->e, TS_ETOOLARGE, "a pickle of too many values in values");
}

static ts_code walk(reader *r, char name[NAME_MAXIMUM + 1], size_t length, int depth,
                    const ts_pickle_value *v);

/* Every member under its name, behind the names of what it is in. What has no text for a name is no tensor of
 * a model. */
static ts_code walk_members(reader *r, char name[NAME_MAXIMUM + 1], size_t length, int depth,
                            const ts_pickle_value *dict) {
    ts_code rc = TS_OK;
    for (const ts_pickle_item *i = dict->first; i && !rc; i = i->next) {
        if (!visit(r)) return too_many(r);
        if (!i->key || i->key->kind != TS_PICKLE_TEXT) continue;
        const size_t dot = length > 0, n = i->key->length;
        if (!ts_utf8_valid(i->key->text, n)) return ts_fail(r->e, TS_EFORMAT, "a name that is no UTF-8");
        if (n > NAME_MAXIMUM - length - dot)
            return ts_fail(r->e, TS_EFORMAT, "a name of more than %u bytes", NAME_MAXIMUM);
        if (dot) name[length] = '.';
        memcpy(name + length + dot, i->key->text, n + 1);
        rc = walk(r, name, length + dot + n, depth + 1, i->value);
        name[length] = 0;
    }
    return rc;
}

static bool is_known(const ts_pickle_value *callable) {
    static const char *const known[] = {REBUILD "_v2", REBUILD "_v3", PARAMETER, PARAMETER "_with_state",
                                        FROM_TYPE};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (is_global(callable, known[i])) return true;
    return false;
}

/* The result of a call. */
static ts_code walk_object(reader *r, char name[NAME_MAXIMUM + 1], size_t length, int depth,
                           const ts_pickle_value *callable, const ts_pickle_value *arguments,
                           const ts_pickle_value *state) {
    if (depth > DEPTH_MAXIMUM) return too_many(r);
    /* A tensor with attributes of Python's: (function, class, its arguments, attributes). */
    if (is_global(callable, FROM_TYPE)) {
        const ts_pickle_value *function = item_of(arguments, 0), *with = item_of(arguments, 2);
        if (function && with && is_known(function))
            return walk_object(r, name, length, depth + 1, function, with, NULL);
    }
    if (is_global(callable, REBUILD "_v2") || is_global(callable, REBUILD "_v3"))
        return length ? add_tensor(r, name, arguments) : TS_OK;
    if (is_global(callable, PARAMETER) || is_global(callable, PARAMETER "_with_state")) {
        const ts_pickle_value *of = item_of(arguments, 0);
        return of ? walk(r, name, length, depth + 1, of) : TS_OK;
    }
    if (makes_tensor(callable)) return length ? add_object(r, name) : TS_OK;
    /* A module that was saved whole: a ParameterDict is one. */
    const ts_pickle_value *parameters = state && is_dict(state) ? member(r, state, "_parameters") : NULL;
    if (parameters && is_dict(parameters)) return walk_members(r, name, length, depth, parameters);
    return is_alpha(name, length) ? add_object(r, name) : TS_OK;
}

static ts_code walk(reader *r, char name[NAME_MAXIMUM + 1], size_t length, int depth,
                    const ts_pickle_value *v) {
    if (depth > DEPTH_MAXIMUM || !visit(r)) return too_many(r);
    if (is_dict(v)) return walk_members(r, name, length, depth, v);
    if (v->kind == TS_PICKLE_OBJECT)
        return walk_object(r, name, length, depth, v->callable, v->arguments, v->state);
    return is_alpha(name, length) ? add_number(r, name, v) : TS_OK;
}

static ts_code walk_root(reader *r, const ts_pickle_value *root) {
    char name[NAME_MAXIMUM + 1] = "";
    /* A checkpoint of a training: the model is only a part of it; or of one that has been saved in another.
     */
    for (int i = 0; i < DEPTH_MAXIMUM && is_dict(root); i++) {
        const ts_pickle_value *model = member(r, root, "state_dict");
        if (model && is_dict(model)) root = model;
    }
    ts_code rc = walk(r, name, 0, 0, root);
    if (!rc && !r->s->count && !r->s->other_count)
        rc = ts_fail(r->e, TS_EFORMAT, "it holds no tensors by name");
    return rc;
}

/* ---- the file ---- */

static const ts_zip_entry *find_pickle(reader *r) {
    static const char name[] = "/data.pkl";
    const size_t k = sizeof name - 1;
    for (size_t i = 0; i < r->zip.count; i++) {
        const ts_zip_entry *at = &r->zip.entries[i];
        if (at->name_length <= k || at->name_length > NAME_MAXIMUM ||
            memcmp(at->name + at->name_length - k, name, k) != 0)
            continue;
        r->folder = at->name;
        r->folder_length = at->name_length - k + 1;
        return at;
    }
    return NULL;
}

/* Files of before 2.1 do not say. */
static bool is_little_endian(const reader *r) {
    char path[NAME_MAXIMUM + 16];
    const int n = snprintf(path, sizeof path, "%.*sbyteorder", (int)r->folder_length, r->folder);
    const ts_zip_entry *order = ts_zip_find(&r->zip, path, (size_t)n);
    return !order || (order->size == 6 && memcmp(order->data, "little", 6) == 0);
}

ts_code tensors_parse_torch(ts_tensors *s, const unsigned char *bytes, size_t size, ts_error *e) {
    reader r = {.s = s, .e = e};
    ts_pickle *pickle = NULL;
    ts_code rc = ts_zip_open(bytes, size, &r.zip, e);
    if (rc) return rc;
    const ts_zip_entry *entry = find_pickle(&r);
    if (!entry)
        rc = ts_fail(e, TS_EFORMAT, "a zip file that torch.save did not write: there is no data.pkl");
    else if (entry->size > PICKLE_MAXIMUM)
        rc = ts_fail(e, TS_ETOOLARGE, "data.pkl has %zu bytes; at most %zu are read", entry->size,
                     PICKLE_MAXIMUM);
    else if (!is_little_endian(&r))
        rc = ts_fail(e, TS_EUNSUPPORTED, "its numbers are big-endian, which is not read");
    if (!rc) rc = ts_pickle_parse(entry->data, entry->size, &pickle, e);
    if (!rc) rc = walk_root(&r, ts_pickle_root(pickle));
    ts_pickle_free(pickle);
    ts_zip_free(&r.zip);
    return rc;
}
