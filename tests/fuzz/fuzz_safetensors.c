/* Files of tensors, safetensors and torch.save's: whatever opens must lie inside the file, tensor by tensor
 * (or, of torch.save's, be a copy that can be read), and be found by its name. */
#include "fuzz.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include "engine/tensors.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    ts_tensors *s = NULL;
    ts_error e = {0};
    if (ts_tensors_parse("input", data, size, &s, &e)) return 0;
    for (size_t i = 0; i < ts_tensors_count(s); i++) {
        const ts_file_tensor *t = ts_tensors_at(s, i);
        const uint8_t *from = t->data;
        const bool zip = size > 2 && !memcmp(data, "PK", 2);
        if (t->bytes && !zip &&
            (from < data || from > data + size || t->bytes > (size_t)(data + size - from)))
            fuzz_fail("a tensor outside the file");
        if (ts_tensors_find(s, t->name) != t) fuzz_fail("a tensor that is not found");
        size_t n = ts_file_tensor_elements(t), product = 1;
        for (int k = 0; k < t->rank; k++) product *= (size_t)t->shape[k];
        if (product != n) fuzz_fail("a shape that is not the bytes'");
        float *values = malloc(n * sizeof *values + 1);
        if (values) ts_file_tensor_to_f32(t, values);
        free(values);
    }
    ts_tensors_free(s);
    return 0;
}
