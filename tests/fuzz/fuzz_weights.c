/* model.safetensors.index.json, in a folder with one shard. */
#include "fuzz.h"

#include "engine/safetensors.h"
#include "engine/weights.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const float values[2] = {1, 2};
    static const ts_file_tensor t = {
        .name = "a", .dtype = TS_F32, .rank = 1, .shape = {2}, .data = values, .bytes = sizeof values};
    static bool ready;
    ts_weights *w = NULL;
    ts_error e = {0};
    if (!ready && ts_safetensors_write(fuzz_put("1.safetensors", "", 0), &t, 1, &e)) fuzz_fail(e.message);
    ready = true;
    fuzz_put("model.safetensors.index.json", data, size);
    if (ts_weights_open(fuzz_folder(), &w, &e)) {
        if (!e.message[0]) fuzz_fail("an error without a word");
        return 0;
    }
    /* There is nothing else that an index could name. */
    const ts_param *p = ts_weights_find(w, "a");
    if (ts_weights_elements(w) != (p ? 2 : 0)) fuzz_fail("tensors from nowhere");
    ts_weights_free(w);
    return 0;
}
