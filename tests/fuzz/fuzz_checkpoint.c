/* A single-file checkpoint: what it is, its configs as the readers take them, and the names of its weights.
 * An input that begins with { is the JSON beside a good one. */
#include "fuzz.h"

#include <stdbool.h>
#include <unistd.h>
#include "base/file.h"
#include "engine/checkpoint.h"
#include "engine/clip.h"
#include "engine/schedule.h"
#include "engine/unet.h"
#include "engine/vae.h"

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
    ts_unet_config unet;
    ts_vae_config vae;
    ts_clip_config clip;
    ts_schedule_config schedule;
    const bool xl = ts_checkpoint_is_xl(c);
    ts_unet_config_read(ts_checkpoint_config(c, "unet"), &unet, &e);
    ts_vae_config_read(ts_checkpoint_config(c, "vae"), &vae, &e);
    ts_clip_config_read(ts_checkpoint_config(c, "text_encoder"), false, &clip, &e);
    if (xl) ts_clip_config_read(ts_checkpoint_config(c, "text_encoder_2"), true, &clip, &e);
    if (ts_schedule_config_read(ts_checkpoint_config(c, "scheduler"), &schedule, &e) &&
        !begins_with_brace(data, size))
        fuzz_fail("our own schedule");
    for (int i = 0; i < (xl ? 4 : 3); i++) {
        ts_weights *w = NULL;
        if (!ts_checkpoint_weights(c, components[i], &w, &e)) ts_weights_free(w);
    }
    ts_checkpoint_free(c);
    return 0;
}
