/* A single-file checkpoint: what it is, its configs as the readers take them, and the names of its weights.
 */
#include "fuzz.h"

#include "engine/checkpoint.h"
#include "engine/clip.h"
#include "engine/schedule.h"
#include "engine/unet.h"
#include "engine/vae.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const char *const components[] = {"unet", "vae", "text_encoder", "text_encoder_2"};
    ts_checkpoint *c = NULL;
    ts_error e = {0};
    if (ts_checkpoint_open(fuzz_put("m.safetensors", data, size), &c, &e)) return 0;
    ts_unet_config unet;
    ts_vae_config vae;
    ts_clip_config clip;
    ts_schedule_config schedule;
    const bool xl = ts_checkpoint_is_xl(c);
    ts_unet_config_read(ts_checkpoint_config(c, "unet"), &unet, &e);
    ts_vae_config_read(ts_checkpoint_config(c, "vae"), &vae, &e);
    ts_clip_config_read(ts_checkpoint_config(c, "text_encoder"), false, &clip, &e);
    if (xl) ts_clip_config_read(ts_checkpoint_config(c, "text_encoder_2"), true, &clip, &e);
    if (ts_schedule_config_read(ts_checkpoint_config(c, "scheduler"), &schedule, &e))
        fuzz_fail("our own schedule");
    for (int i = 0; i < (xl ? 4 : 3); i++) {
        ts_weights *w = NULL;
        if (!ts_checkpoint_weights(c, components[i], &w, &e)) ts_weights_free(w);
    }
    ts_checkpoint_free(c);
    return 0;
}
