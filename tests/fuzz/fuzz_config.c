/* The configs of a model's components. The first byte says whose: u(net), v(ae), c(lip), p(rojected clip). */
#include "fuzz.h"

#include <string.h>
#include "base/json.h"
#include "engine/clip.h"
#include "engine/unet.h"
#include "engine/vae.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (!size) return 0;
    cJSON *json = NULL;
    ts_error e = {0};
    /* What model.c allows. */
    if (ts_json_parse((const char *)data + 1, size - 1, (ts_json_limits){.depth = 16, .values = 20000}, &json,
                      &e))
        return 0;
    ts_unet_config unet;
    ts_vae_config vae;
    ts_clip_config clip;
    if (data[0] == 'u' && !ts_unet_config_read(json, &unet, &e)) {
        if (unet.levels < 1 || unet.levels > TS_UNET_LEVELS) fuzz_fail("levels");
        for (int i = 0; i < unet.levels; i++)
            if (unet.channels[i] < 1 || unet.heads[i] < 1 || unet.layers[i] < 1)
                fuzz_fail("a level of nothing");
        for (int i = 0; i < unet.levels; i++) {
            if (unet.down_attention[i] && unet.down_depth[i][unet.layers[i] - 1] < 1)
                fuzz_fail("attention of nothing");
            if (unet.up_attention[i] && unet.up_depth[i][unet.layers[unet.levels - 1 - i]] < 1)
                fuzz_fail("attention of nothing");
        }
    }
    if (data[0] == 'v' && !ts_vae_config_read(json, &vae, &e) &&
        (vae.levels < 1 || vae.levels > TS_VAE_LEVELS))
        fuzz_fail("levels");
    if ((data[0] == 'c' || data[0] == 'p') && !ts_clip_config_read(json, data[0] == 'p', &clip, &e) &&
        (clip.hidden < 1 || clip.heads < 1 || clip.positions < 1 || clip.vocabulary < 1))
        fuzz_fail("an encoder of nothing");
    cJSON_Delete(json);
    return 0;
}
