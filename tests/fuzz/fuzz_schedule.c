/* scheduler_config.json, from a file as models bring it, and the schedule that it makes. */
#include "fuzz.h"

#include <math.h>
#include <stdlib.h>
#include "engine/schedule.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    ts_schedule_config c;
    ts_error e = {0};
    if (ts_schedule_config_open(fuzz_put("scheduler_config.json", data, size), NULL, &c, &e)) return 0;
    if (c.num_train_timesteps < 1 || c.num_train_timesteps > TS_MAX_TRAIN_TIMESTEPS) fuzz_fail("timesteps");
    float *alphas = malloc((size_t)c.num_train_timesteps * sizeof *alphas);
    if (alphas) {
        ts_schedule_alphas(&c, alphas);
        for (int i = 0; i < c.num_train_timesteps; i++)
            if (isnan(alphas[i])) fuzz_fail("not a number");
    }
    free(alphas);
    return 0;
}
