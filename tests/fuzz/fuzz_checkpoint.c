/* A single-file checkpoint: what it is, its configs as the readers take them, its weights, and whether they fit together.
 * An input that begins with { is the JSON beside a good one. */
#include "fuzz.h"

#include <stdbool.h>
#include <unistd.h>
#include "base/file.h"
#include "engine/verify.h"

static bool begins_with_brace(const uint8_t *data, size_t size) {
    return size && data[0] == '{';
}

static const char *put_files(const uint8_t *data, size_t size) {
    static char *good;
    static size_t good_size;
    ts_error e = {0};
    if (!begins_with_brace(data, size)) {
        unlink(fuzz_put("m.json", "", 0));
        return fuzz_put("m.safetensors", data, size);
    }
    const char *corpus = FUZZ_FIXTURES "/../fuzz/corpus/checkpoint/sd1";
    if (!good && ts_read_file(corpus, 1 << 20, &good, &good_size, &e)) fuzz_fail(e.message);
    fuzz_put("m.json", data, size);
    return fuzz_put("m.safetensors", good, good_size);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const char *const components[] = {"unet", "vae", "text_encoder", "text_encoder_2"};
    ts_checkpoint *c = NULL;
    ts_error e = {0};
    if (ts_checkpoint_open(put_files(data, size), &c, &e)) {
        if (!e.message[0]) fuzz_fail("an error without a word");
        return 0;
    }
    const bool xl = ts_checkpoint_is_xl(c);
    ts_model m = {.checkpoint = c, .xl = xl, .text_count = xl ? 2 : 1};
    ts_weights *w[4] = {NULL};
    int bad = ts_unet_config_read(ts_checkpoint_config(c, "unet"), &m.unet, &e) != TS_OK;
    bad += ts_vae_config_read(ts_checkpoint_config(c, "vae"), &m.vae, &e) != TS_OK;
    for (int i = 0; i < m.text_count; i++)
        bad += ts_clip_config_read(ts_checkpoint_config(c, components[2 + i]), i, &m.text[i].config, &e) != TS_OK;
    if (ts_schedule_config_read(ts_checkpoint_config(c, "scheduler"), &m.schedule, &e) &&
        !begins_with_brace(data, size))
        fuzz_fail("our own schedule");
    for (int i = 0; i < 2 + m.text_count; i++)
        bad += ts_checkpoint_weights(c, components[i], &w[i], &e) != TS_OK;
    m.unet_weights = w[0];
    m.vae_weights = w[1];
    for (int i = 0; i < m.text_count; i++) m.text[i].weights = w[2 + i];
    if (!bad && ts_model_verify(&m, &e) && !strstr(e.message, "m.safetensors")) fuzz_fail("no file in the error");
    for (int i = 0; i < 4; i++) ts_weights_free(w[i]);
    ts_checkpoint_free(c);
    return 0;
}
