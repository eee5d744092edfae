#include "engine/sampler_rows.h"

#include <math.h>
#include <stdlib.h>
#include "base/alloc.h"

double ts_linspace_at(double high, int n, int i) {
    if (n == 1) return 0;
    return i == n - 1 ? high : i * (high / (n - 1));
}

double ts_arange_down_at(double high, double step, int i) {
    /* numpy fills from the first two values' difference. */
    return high + i * ((high - step) - high);
}

float *ts_sigma_table(const ts_schedule_config *c, const float *alphas) {
    int n = c->num_train_timesteps;
    float *sigma = ts_array0(float, (size_t)n);
    if (!sigma) return NULL;
    for (int i = 0; i < n; i++) {
        float a = i == n - 1 && c->rescale_betas_zero_snr ? 0x1p-24f : alphas[i];
        sigma[i] = sqrtf((1.0f - a) / a);
    }
    return sigma;
}

double ts_sigma_at(const float *table, int n, double timestep) {
    if (!(timestep > 0)) return (double)table[0];
    if (timestep >= n - 1) return (double)table[n - 1];
    int i = (int)timestep;
    double low = (double)table[i], high = (double)table[i + 1];
    return low + (high - low) * (timestep - i);
}

double ts_timestep_of_sigma(const ts_schedule_config *c, const float *table, double sigma) {
    const int n = c->num_train_timesteps;
    double s = log(sigma > 1e-10 ? sigma : 1e-10);
    if (c->sigma_data > 0) return s / 4;
    /* The last place whose sigma is not above s. All but the last increase; that one need not
     * (ts_sigma_table). */
    int low = 0, high = n - 2;
    if ((double)logf(table[n - 1]) <= s) low = high;
    while (low < high) {
        int middle = (low + high + 1) / 2;
        if ((double)logf(table[middle]) <= s)
            low = middle;
        else
            high = middle - 1;
    }
    if (low > n - 2) low = n - 2;
    double a = (double)logf(table[low]), b = (double)logf(table[low + 1]), w = (a - s) / (a - b);
    w = w < 0 ? 0 : w > 1 ? 1 : w;
    return (1 - w) * low + w * (low + 1);
}

double ts_timestep_at(const ts_schedule_config *c, int steps, int i) {
    int n = c->num_train_timesteps;
    if (c->asked == TS_SCHEDULER_TIMESTEPS) return (double)c->list->at[i];
    if (c->timestep_spacing == TS_SPACING_LINSPACE) return rint(ts_linspace_at(n - 1, steps, steps - 1 - i));
    if (c->timestep_spacing == TS_SPACING_LEADING)
        return (double)((steps - 1 - i) * (n / steps) + c->steps_offset);
    return rint(ts_arange_down_at(n, (double)n / steps, i)) - 1;
}

ts_code ts_bad_steps(ts_error *e, int steps) {
    return ts_fail_param(e, TS_EINVAL, "steps", "the model's schedule has no timesteps for %d steps", steps);
}

static double karras_sigma(double high, double low, double at) {
    const double rho = 7;
    double a = pow(high, 1 / rho), b = pow(low, 1 / rho);
    return pow(a + at * (b - a), rho);
}

#define BETA_SHAPE 0.6

/* The beta distribution's share below x, 0 <= x <= 1/2, times the whole integral: a power series. */
static double beta_below(double x) {
    double term = pow(x, BETA_SHAPE), sum = 0;
    for (int k = 0; k < 60; k++) {
        sum += term / (BETA_SHAPE + k);
        term *= x * (k + 1 - BETA_SHAPE) / (k + 1);
    }
    return sum;
}

/* Where a share of the distribution, which is symmetric, lies below: Newton's method from where the first
 * term of the series alone is as much. The density falls up to the middle, so that all but the first step
 * come from below. */
static double beta_quantile(double share) {
    if (share > 0.5) return 1 - beta_quantile(1 - share);
    const double whole = tgamma(BETA_SHAPE) * tgamma(BETA_SHAPE) / tgamma(2 * BETA_SHAPE);
    double x = fmin(pow(share * whole * BETA_SHAPE, 1 / BETA_SHAPE), 0.5);
    for (int k = 0; k < 8 && x > 0; k++)
        x -= (beta_below(x) - share * whole) * pow(x * (1 - x), 1 - BETA_SHAPE);
    return x;
}

double ts_curve_sigma(ts_curve curve, double high, double low, int n, int i) {
    const double at = ts_linspace_at(1, n, i);
    if (curve == TS_CURVE_KARRAS) return karras_sigma(high, low, at);
    if (curve == TS_CURVE_BETA) return low + beta_quantile(1 - at) * (high - low);
    /* Lu's begins at logarithms in float32. */
    const bool lu = curve == TS_CURVE_LU;
    const double a = lu ? (double)logf((float)high) : log(high), b = lu ? (double)logf((float)low) : log(low);
    return exp(a + at * (b - a));
}

/* x0 = c_skip x / alpha + c_out out, the input c_in x / alpha (arXiv 2206.00364, table 1). */
static void predict_edm(const ts_schedule_config *c, double alpha, double sigma, ts_sampler_row *row) {
    const double level = sigma / alpha, data = c->sigma_data, scale = sqrt(level * level + data * data);
    const double out = level * data / scale;
    row->c_in = (float)(1 / (alpha * scale));
    row->d_from_x = (float)(data * data / (scale * scale * alpha));
    row->d_from_out = (float)(c->prediction_type == TS_PREDICT_V ? -out : out);
}

void ts_predict_x0(const ts_schedule_config *c, double alpha, double sigma, ts_sampler_row *row) {
    const double scale = sqrt(alpha * alpha + sigma * sigma), a = alpha / scale, s = sigma / scale;
    const ts_prediction prediction = c->prediction_type;
    row->signal = (float)alpha;
    row->noise = (float)sigma;
    row->c_in = (float)(1 / scale);
    if (c->sigma_data > 0) {
        predict_edm(c, alpha, sigma, row);
    } else if (prediction == TS_PREDICT_SAMPLE) {
        row->d_from_x = 0;
        row->d_from_out = 1;
    } else if (prediction == TS_PREDICT_V) {
        row->d_from_x = (float)(a / scale);
        row->d_from_out = (float)-s;
    } else {
        row->d_from_x = (float)(1 / alpha);
        row->d_from_out = (float)(-sigma / alpha);
    }
}

void ts_add_noise_prediction(ts_prediction prediction, double signal, double noise, double weight,
                             ts_sampler_row *row) {
    if (prediction == TS_PREDICT_EPSILON) {
        row->x_from_out += (float)weight;
    } else if (prediction == TS_PREDICT_V) {
        row->x_from_x += (float)(weight * noise);
        row->x_from_out += (float)(weight * signal);
    } else {
        row->x_from_x += (float)(weight / noise);
        row->x_from_out += (float)(-weight * signal / noise);
    }
}
