/* GroupNorm statistics of a picture from those of its patches.
 *
 * Each patch sends, by image and group, the sum and the sum of squares of its own elements. What is known of
 * the others may be of the previous evaluation (Li et al. 2024, arXiv 2402.19481, section 4.3). The variance
 * is the biased one, as in GroupNorm's definition (Wu & He 2018). */
#ifndef TS_ENGINE_MOMENTS_H
#define TS_ENGINE_MOMENTS_H

#include "engine/job.h"

typedef struct ts_moments {
    int batch, groups;
    const double *own;                 /* [batch][groups][2], of this evaluation */
    double own_count;                  /* elements of a group in the own patch */
    int others;                        /* 0: local statistics */
    const double *other[TS_MAX_RANKS]; /* all of the same evaluation */
    double other_count[TS_MAX_RANKS];
    /* NULL: own and others are simply added. Else the own sums of the evaluation that the others' are of:
     * E[x] and E[x^2] are the global ones of then, plus the full change of the own ones since; but a variance
     * is at least three quarters of that of own and others simply added. */
    const double *own_before;
} ts_moments;

/* ret: [batch][groups][2], mean and variance. Any thread. */
void ts_moments_merge(const ts_moments *m, double *ret);

#endif
