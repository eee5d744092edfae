/* LoRA files, fused into the small model of the fixtures: what is changed keeps its shape. And the
 * configuration of an adapter ("{..."), which is only read. */
#include "fuzz.h"

#include <stdlib.h>
#include <string.h>
#include "base/alloc.h"
#include "base/file.h"
#include "engine/lora.h"
#include "kernels/param.h"

static ts_code parse(const uint8_t *data, size_t size, ts_lora **ret, ts_error *e) {
    static char *adapter;
    static size_t bytes;
    if (!size || *data != '{') return ts_lora_parse("input", data, size, "{}", ret, e);
    if (!adapter && ts_read_file(FUZZ_FIXTURES "/loras/adapter_text/adapter_model.safetensors",
                                 (size_t)1 << 20, &adapter, &bytes, e))
        fuzz_fail(e->message);
    char *config = strndup((const char *)data, size);
    if (!config) abort();
    ts_code rc = ts_lora_parse("input", adapter, bytes, config, ret, e);
    free(config);
    return rc;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static ts_weights *base;
    ts_error e = {0};
    if (!base && ts_weights_open(FUZZ_FIXTURES "/pipeline_sd1/unet", &base, &e)) fuzz_fail(e.message);
    ts_lora *l = NULL;
    if (parse(data, size, &l, &e)) {
        if (!e.message[0]) fuzz_fail("an error without a word");
        return 0;
    }
    if (*data == '{') {
        ts_lora_free(l);
        return 0;
    }
    ts_weights *over = NULL;
    const ts_lora_scaled scaled = {l, 0.5};
    if (ts_weights_over(base, &over, &e)) fuzz_fail(e.message);
    ts_code rc = ts_lora_fuse(&scaled, 1, TS_LORA_UNET, 1, base, over, &e);
    if (!rc && ts_weights_seal(over, &e)) fuzz_fail("a parameter that was changed twice");
    for (size_t i = 0; !rc && i < ts_weights_count(base); i++) {
        const ts_param *p = ts_weights_at(base, i), *q = ts_weights_at(over, i);
        if (p->rank != q->rank || p->dtype != q->dtype) fuzz_fail("a parameter of another shape");
        for (int k = 0; k < p->rank; k++)
            if (p->shape[k] != q->shape[k]) fuzz_fail("a parameter of another shape");
        if (q == p) continue;
        float *made = ts_array0(float, ts_param_count(q));
        if (made && ts_param_load(q, TS_F32, made, &e)) fuzz_fail(e.message);
        free(made);
    }
    ts_weights_free(over);
    ts_lora_free(l);
    return 0;
}
