/* Noise schedules: how much noise a model was trained to see at each timestep.
 *
 * Read from a diffusers folder's scheduler/scheduler_config.json, whichever of diffusers' scheduler classes
 * wrote it; any sampler can then be run on it (engine/sampler.h), as `from_config` does there. Keys that the
 * file leaves out take the default of the class that runs, not of the one that wrote: those fields have an
 * UNSET value. An unknown value of a known key is an error that names the key; unknown keys are ignored. */
#ifndef TS_ENGINE_SCHEDULE_H
#define TS_ENGINE_SCHEDULE_H

#include <cjson/cJSON.h>
#include <stdbool.h>
#include "base/error.h"

#define TS_MAX_TRAIN_TIMESTEPS 10000
#define TS_MOMENTUM            0.8 /* no class of diffusers has it; its authors' "order 1.8" of two */

typedef enum ts_beta_schedule {
    TS_BETA_LINEAR,
    TS_BETA_SCALED_LINEAR,
    TS_BETA_SQUARED_COSINE,
    TS_BETA_UNSAID
} ts_beta_schedule;
typedef enum ts_prediction {
    TS_PREDICT_EPSILON,
    TS_PREDICT_V,
    TS_PREDICT_SAMPLE,
    TS_PREDICT_FLOW
} ts_prediction;
typedef enum ts_spacing {
    TS_SPACING_UNSET,
    TS_SPACING_LEADING,
    TS_SPACING_TRAILING,
    TS_SPACING_LINSPACE
} ts_spacing;
typedef enum ts_final_sigma { TS_FINAL_ZERO, TS_FINAL_SIGMA_MIN } ts_final_sigma;
/* Levels of a curve between two ends, instead of those at timesteps: Karras et al. 2022 (arXiv 2206.00364, eq. 5, rho
 * 7); evenly in log sigma; quantiles of the beta distribution 0.6, 0.6 (Lee et al. 2024, arXiv 2407.12173); Lu's, the
 * exponential ones as DPMSolverMultistepScheduler has them besides, whose timesteps it rounds and which only it has. */
typedef enum ts_curve {
    TS_CURVE_NONE,
    TS_CURVE_KARRAS,
    TS_CURVE_EXPONENTIAL,
    TS_CURVE_BETA,
    TS_CURVE_LU
} ts_curve;
typedef enum ts_solver_type { TS_SOLVER_MIDPOINT, TS_SOLVER_HEUN } ts_solver_type;

/* Where a plan's levels lie, as a request may have it instead of what the file says.
 *
 * Karras', exponential and beta ones lie between the ends that the spacing gives. sgm_uniform: timesteps evenly down
 * from the last to one that is no longer used, and 0 after them (ComfyUI's and AUTOMATIC1111's, for
 * k-diffusion). align_your_steps: the levels that were optimised for SD 1.5 and SDXL (Sabour et al. 2024,
 * arXiv 2404.14507; ten steps as in diffusers' AysSchedules, other numbers interpolated in log sigma as
 * ComfyUI does; flow models have none). The last two are lists of the caller's and not found by name. */
#define TS_SCHEDULERS(X)                                                                                     \
    X(DEFAULT, "default", "Automatic", TS_PLACE_BY_FILE)                                                     \
    X(KARRAS, "karras", "Karras", TS_PLACE_BY_SIGMAS)                                                        \
    X(EXPONENTIAL, "exponential", "Exponential", TS_PLACE_BY_SIGMAS)                                         \
    X(BETA, "beta", "Beta", TS_PLACE_BY_SIGMAS)                                                              \
    X(LEADING, "leading", "Leading", TS_PLACE_BY_SPACING)                                                    \
    X(TRAILING, "trailing", "Trailing", TS_PLACE_BY_SPACING)                                                 \
    X(LINSPACE, "linspace", "Linspace", TS_PLACE_BY_SPACING)                                                 \
    X(SGM_UNIFORM, "sgm_uniform", "SGM Uniform", TS_PLACE_BY_SIGMAS)                                         \
    X(ALIGN_YOUR_STEPS, "align_your_steps", "Align Your Steps", TS_PLACE_BY_SIGMAS)                          \
    X(SIGMAS, "sigmas", "Sigmas", TS_PLACE_BY_SIGMAS)                                                        \
    X(TIMESTEPS, "timesteps", "Timesteps", TS_PLACE_BY_TIMESTEPS)

typedef enum ts_scheduler {
#define X(name, text, label, by) TS_SCHEDULER_##name,
    TS_SCHEDULERS(X)
#undef X
        TS_SCHEDULER_COUNT,
    TS_SCHEDULER_NAMED = TS_SCHEDULER_SIGMAS /* how many have no list */
} ts_scheduler;

/* What a scheduler places, which a sampler can take or not (ts_sampler_takes). */
typedef enum ts_place {
    TS_PLACE_BY_FILE,
    TS_PLACE_BY_SPACING,
    TS_PLACE_BY_SIGMAS,
    TS_PLACE_BY_TIMESTEPS
} ts_place;

/* One level for each step, decreasing: sigmas (noise over signal, of a flow model the share of noise; 0 follows the
 * last) or whole timesteps. */
#define TS_LIST_LEVELS  128
#define TS_ALPHA_UNSAID (-1)
#define TS_ETA_UNSAID   (-1.0)
typedef struct ts_level_list {
    int count;
    float at[TS_LIST_LEVELS];
} ts_level_list;

typedef struct ts_schedule_config {
    const char *sampler; /* name of the sampler that the file asks for, or the nearest; static */
    int num_train_timesteps;
    double beta_start, beta_end; /* 0: the file does not say */
    ts_beta_schedule beta_schedule;
    ts_prediction prediction_type;
    ts_spacing timestep_spacing;
    int steps_offset;
    bool rescale_betas_zero_snr;
    ts_curve curve;
    bool lu; /* in place of the curve, unless that is Karras', where the class has Lu's */
    double sigma_min, sigma_max; /* the curve's ends; 0: those of the schedule */
    /* EDM's preconditioning (arXiv 2206.00364, table 1): the standard deviation of the data, 1 for latents as other
     * models have them. Then timesteps are log(sigma) / 4, and epsilon and v differ in the output's sign. 0: none. */
    double sigma_data;
    ts_final_sigma final_sigmas_type;
    double final_sigma; /* SIGMA_MIN, of EDM's classes; 0: the schedule's lowest */
    /* DDIM and what counts in training timesteps */
    int set_alpha_to_one; /* a bool; TS_ALPHA_UNSAID: the file does not say, so true but for PNDM */
    double clip_sample_range; /* the predicted picture is clamped to +-range; 0: it is not */
    bool clip_unsaid;         /* by the file: LCM and Heun do not, then */
    bool large_variance;      /* DDPM: the noise has the variance beta, not the posterior's */
    /* LCM, TCD */
    int original_inference_steps;
    double origin_share; /* of those, the least noisy, that all steps go through; 0: all */
    double timestep_scaling;
    /* DPM-Solver++, DEIS, UniPC */
    int solver_order; /* 1 to 3 */
    ts_solver_type solver_type;
    bool lower_order_final, euler_at_final;
    bool begins_with_prk; /* PNDM's file: Runge-Kutta steps, which its sampler does not have here */
    bool lower_unsaid; /* the first of them: so true but for 2S */
    double lambda_min_clipped; /* -INFINITY: not clipped */
    bool unipc_bh1;            /* B(h) = h; otherwise e^h - 1 */
    double flow_shift;         /* of flow matching */
    double flow_terminal;      /* its last level before 0; 0: where the shift puts it */
    double momentum;           /* HB, GHVB: the share of what is new, 0 < momentum <= 1 */
    /* What was asked for, not found in the file (ts_schedule_place). */
    ts_scheduler asked;
    const ts_level_list *list; /* of SIGMAS and TIMESTEPS */
    double eta;                /* TS_ETA_UNSAID: the sampler's own */
    bool xl;
} ts_schedule_config;

/* From a parsed scheduler_config.json. TS_EINVAL for a value that is wrong, TS_EUNSUPPORTED for one that is
 * known and not offered; e->param is the key.
 * clip_sample is true where a DDIM file leaves it out (diffusers' default); where the file is of a class that
 * has no such key it is false: clamping a latent to +-1 for want of a key ruins it. */
ts_code ts_schedule_config_read(const cJSON *json, ts_schedule_config *ret, ts_error *e);

/* The same from a file (ts_json_python_file). class_name: NULL, or
 * the class that counts in place of the file's. */
ts_code ts_schedule_config_open(const char *path, const char *class_name, ts_schedule_config *ret, ts_error *e);

/* What diffusers' pipelines of 1.x and 2.x (not XL's) do to any scheduler that they are given: the keys
 * steps_offset and clip_sample, which the files of 2022 lack or have wrong, are 1 and false. */
void ts_schedule_suit_sd(ts_schedule_config *c);

const char *ts_prediction_name(ts_prediction prediction); /* as files write it */

const char *ts_scheduler_name(ts_scheduler scheduler);
const char *ts_scheduler_label(ts_scheduler scheduler); /* for people, and what other front ends call it */
ts_place ts_scheduler_places(ts_scheduler scheduler);
int ts_scheduler_find(const char *name); /* by name or label, case ignored; -1: none */

/* Changes c to what was asked for. list: of SIGMAS and TIMESTEPS, else NULL; it must outlive c. xl: the model
 * is an SDXL one. */
void ts_schedule_place(ts_schedule_config *c, ts_scheduler scheduler, const ts_level_list *list, bool xl);

/* The betas' numbers where the file does not say them: those of most of diffusers' classes; published: those of the models of
 * 1.x, as of the classes of Heun and DPM2; scaled: on their schedule too, as of LCM's and TCD's. */
void ts_schedule_default_betas(ts_schedule_config *c, bool published, bool scaled);

/* alphas_cumprod of training timesteps 0..num_train_timesteps-1, decreasing, each as diffusers holds it in
 * float32 (float32 intermediates, products accumulated in double). With rescale_betas_zero_snr the last is 0.
 * Betas that are not said are those of most classes. `ret` has room for num_train_timesteps. */
void ts_schedule_alphas(const ts_schedule_config *c, float *ret);

#endif
