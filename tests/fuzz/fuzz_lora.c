/* LoRA files, fused into the small model of the fixtures: what is changed keeps its shape. */
#include "fuzz.h"

#include "engine/lora.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static ts_weights *base;
    ts_error e = {0};
    if (!base && ts_weights_open(FUZZ_FIXTURES "/pipeline_sd1/unet", &base, &e)) fuzz_fail(e.message);
    ts_lora *l = NULL;
    if (ts_lora_parse("input", data, size, &l, &e)) {
        if (!e.message[0]) fuzz_fail("an error without a word");
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
    }
    ts_weights_free(over);
    ts_lora_free(l);
    return 0;
}
