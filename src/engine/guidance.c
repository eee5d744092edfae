#include "engine/guidance.h"

#include <math.h>

bool ts_guidance_acts(ts_interval i, int step, int steps) {
    const double to = i.to > 0 ? i.to : 1;
    return step >= (int)(i.from * steps) && step < (int)(to * steps);
}

void ts_guide(float scale, const float *uncond, const float *cond, float *out, size_t n) {
    for (size_t i = 0; i < n; i++) out[i] = uncond[i] + scale * (cond[i] - uncond[i]);
}

ts_guidance_sums ts_guidance_sum(const float *cond, const float *out, size_t n) {
    ts_guidance_sums s = {0};
    for (size_t i = 0; i < n; i++) {
        const double c = (double)cond[i], o = (double)out[i];
        s.cond += c;
        s.cond_squares += c * c;
        s.out += o;
        s.out_squares += o * o;
    }
    return s;
}

static double variance(double sum, double squares, double n) {
    return (squares - sum * (sum / n)) / (n - 1);
}

float ts_guidance_factor(double rescale, const ts_guidance_sums *s, size_t n) {
    const double cond = variance(s->cond, s->cond_squares, (double)n);
    const double out = variance(s->out, s->out_squares, (double)n);
    if (out <= 0 || cond < 0) return 1;
    return (float)(1 + rescale * (sqrt(cond / out) - 1));
}
