/* What the readers of the two formats share: the table of tensors that they fill. */
#ifndef TS_ENGINE_TENSORS_INTERNAL_H
#define TS_ENGINE_TENSORS_INTERNAL_H

#include <cjson/cJSON.h>
#include <stdbool.h>
#include "base/map.h"
#include "engine/tensors.h"

struct ts_tensors {
    ts_map map; /* empty when the bytes are the caller's */
    size_t size; /* of the file */
    ts_file_tensor *tensors;
    size_t count, capacity;
    ts_file_other *others;
    size_t other_count, other_capacity;
    void **owned; /* what lies elsewhere than in the file: numbers of a pickle, tensors put in order */
    size_t owned_count, owned_capacity;
    cJSON *metadata;
};

/* The types, as safetensors calls them. bits: a few are smaller than a byte. used: it maps to a ts_dtype. */
typedef struct tensor_type {
    const char *name;
    unsigned bits;
    bool used;
    ts_dtype dtype;
} tensor_type;

const tensor_type *tensors_type(const char *name); /* NULL when there is none */
const char *tensors_type_name(ts_dtype dtype);

/* The product of the shape; false where a size is negative or the product overflows. */
bool tensors_elements(const int64_t *shape, int rank, size_t *ret);

/* One more tensor; t's name is copied, its dtype is the type's. TS_ENOMEM. */
ts_code tensors_add(ts_tensors *s, const tensor_type *type, const ts_file_tensor *t, ts_error *e);

/* Both fill a zeroed *s from `size` bytes that outlive it; what a failed one leaves is freed by the caller.
 * The order is the caller's to make. */
ts_code tensors_parse_safetensors(ts_tensors *s, const unsigned char *bytes, size_t size, ts_error *e);
ts_code tensors_parse_torch(ts_tensors *s, const unsigned char *bytes, size_t size, ts_error *e);

#endif
