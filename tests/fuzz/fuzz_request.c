/* The body of POST /v1/images/generations, read against the small model of the fixtures. */
#include "fuzz.h"

#include <stdlib.h>
#include "engine/engine.h"
#include "server/request.h"

static ts_config *config;
static ts_setup setup;
static ts_model *model;

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    ts_error e = {0};
    if (!model) {
        const char *fixture = FUZZ_FIXTURES "/pipeline_sd1";
        if (ts_config_new(&config, &e) || ts_config_set(config, "models", "path", fixture, &e) ||
            ts_config_set(config, "models", "lora_folder", FUZZ_FIXTURES "/loras", &e) ||
            ts_model_load(fixture, NULL, &model, &e) || ts_setup_make(config, &setup, &e))
            fuzz_fail(e.message);
        setup.dtype = TS_F32; /* auto would ask a group, and none runs here */
    }
    ts_request_context context = {.config = config, .setup = &setup, .models = &model, .model_count = 1};
    ts_images_request r = {0};
    if (ts_images_request_read(&context, (const char *)data, size, NULL, &r, &e)) {
        if (!e.message[0]) fuzz_fail("an error without a word");
        return 0;
    }
    if (r.request.shape.width < 8 || r.request.shape.height < 8 || r.request.shape.width % 8 ||
        r.request.shape.height % 8 || r.request.n < 1 || r.request.shape.steps < 1 ||
        !r.request.params.prompt)
        fuzz_fail("a request that cannot be");
    ts_images_request_free(&r);
    return 0;
}
