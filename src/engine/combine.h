/* What ranks put together outside their programs, at the end of an evaluation or between its parts: sums over
 * the patches of a picture, and one prediction from two. Private to combine.c and denoise.c. A rank's own
 * thread; evaluations count from 1. TS_ECANCELLED when another rank has failed; run->error of the rank says
 * more. */
#ifndef TS_ENGINE_COMBINE_H
#define TS_ENGINE_COMBINE_H

#include "engine/patch.h"

/* What is added up; each at most once in an evaluation. */
typedef enum ts_sum_use { TS_SUM_VARIANCE, TS_SUM_GUIDANCE } ts_sum_use;

/* For each picture of the leg, what each patch has of it becomes the sum over all of them. Naive patches keep
 * their own. */
ts_code ts_patch_add_up(ts_patch *p, unsigned evaluation, ts_sum_use use, ts_sums *sums);

/* p->out = the prediction that the sampler gets: guided, rescaled, or as the program made it
 * (engine/guidance.h). */
ts_code ts_patch_predict(ts_patch *p, unsigned evaluation);

#endif
