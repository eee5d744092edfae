"""samplers.safetensors and samplers.json: schedules and steps of diffusers' schedulers.

The model is an analytic function, so that a test can compute it again:
    out = 0.3*x + 0.1*sin(5*x) + 0.05*t/1000
by element in float32, x being the scaled model input and t the timestep as the U-Net gets it.
"""
import itertools

import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler

import common

CLASSES = {"ddim": DDIMScheduler, "euler": EulerDiscreteScheduler, "dpmpp_2m": DPMSolverMultistepScheduler}
BETAS = {"scaled_linear": (0.00085, 0.012), "linear": (0.0001, 0.02)}
SHAPE = (1, 4, 2, 2)


def model(x, t):
    return 0.3 * x + 0.1 * torch.sin(5.0 * x) + 0.05 * float(t) / 1000.0


def make_config(sampler, beta, spacing, prediction, zero_snr, **extra):
    start, end = BETAS[beta]
    config = {"num_train_timesteps": 1000, "beta_start": start, "beta_end": end, "beta_schedule": beta,
              "timestep_spacing": spacing, "prediction_type": prediction, "rescale_betas_zero_snr": zero_snr,
              "steps_offset": 1 if spacing == "leading" else 0}
    if sampler == "ddim":
        config.update(clip_sample=False, set_alpha_to_one=False)
    else:
        config.update(use_karras_sigmas=False, final_sigmas_type="zero")
    if sampler == "dpmpp_2m":
        config.update(algorithm_type="dpmsolver++", solver_order=2, solver_type="midpoint")
    config.update(extra)
    return config


def plan():
    """(sampler, config, step counts), the product of what the issue asks for and then single variations."""
    kinds = [("epsilon", False), ("v_prediction", False), ("v_prediction", True)]
    for sampler, beta, spacing, (prediction, zero_snr) in itertools.product(
            CLASSES, BETAS, ("leading", "trailing", "linspace"), kinds):
        counts = (1, 4, 20, 50) if beta == "scaled_linear" else (4, 20)
        yield sampler, make_config(sampler, beta, spacing, prediction, zero_snr), counts
    for sampler, spacing, (prediction, zero_snr) in itertools.product(
            ("dpmpp_2m", "euler"), ("leading", "trailing", "linspace"), kinds):
        if sampler == "dpmpp_2m" and spacing == "trailing":
            continue
        yield sampler, make_config(sampler, "scaled_linear", spacing, prediction, zero_snr,
                                   use_karras_sigmas=True), (2, 4, 20)
    eps = ("scaled_linear", "leading", "epsilon", False)
    yield "ddim", make_config("ddim", *eps, clip_sample=True), (4,)
    yield "ddim", make_config("ddim", *eps, clip_sample=True, clip_sample_range=1.5), (4,)
    yield "ddim", make_config("ddim", *eps, set_alpha_to_one=True), (1, 4)
    yield "ddim", make_config("ddim", *eps, steps_offset=0), (4,)
    yield "ddim", make_config("ddim", "scaled_linear", "trailing", "v_prediction", True,
                              set_alpha_to_one=True), (4, 7, 30)
    yield "ddim", make_config("ddim", "scaled_linear", "leading", "sample", False), (4,)
    for sampler in ("euler", "dpmpp_2m"):
        yield sampler, make_config(sampler, *eps, final_sigmas_type="sigma_min"), (1, 4)
        yield sampler, make_config(sampler, *eps, steps_offset=0), (4,)
        for spacing in ("leading", "trailing", "linspace"):
            yield sampler, make_config(sampler, "scaled_linear", spacing, "epsilon", False), (3, 7, 30)
    yield "dpmpp_2m", make_config("dpmpp_2m", *eps, euler_at_final=True), (4, 20)
    yield "dpmpp_2m", make_config("dpmpp_2m", *eps, lower_order_final=False), (4,)
    yield "dpmpp_2m", make_config("dpmpp_2m", *eps, solver_order=1), (4,)
    yield "dpmpp_2m", make_config("dpmpp_2m", *eps, solver_type="heun"), (4,)


def run(sampler, config, steps, noise):
    scheduler = CLASSES[sampler](**config)
    scheduler.set_timesteps(steps)
    sigma = float(scheduler.init_noise_sigma)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)  # Karras timesteps can repeat; the step is counted, not looked up
    latents = noise * scheduler.init_noise_sigma
    rows = []
    for t in scheduler.timesteps:
        out = model(scheduler.scale_model_input(latents, t), t)
        latents = scheduler.step(out, t, latents).prev_sample
        assert latents.dtype == torch.float32 and torch.isfinite(latents).all(), (sampler, config, steps)
        rows.append(latents)
    tensors = {"timesteps": scheduler.timesteps.float(), "latents": torch.cat(rows)}
    if sampler != "ddim":
        tensors["sigmas"] = scheduler.sigmas
    return sigma, tensors


def main():
    noise = common.randn(SHAPE, 2024)
    tensors, configs, cases = {"noise": noise}, [], []
    for beta, zero_snr in itertools.product(BETAS, (False, True)):
        s = DDIMScheduler(**make_config("ddim", beta, "leading", "v_prediction", zero_snr))
        tensors[f"alphas_cumprod_{beta}{'_zero_snr' if zero_snr else ''}"] = s.alphas_cumprod

    for sampler, config, counts in plan():
        configs.append({"_class_name": CLASSES[sampler].__name__, **config})
        for steps in counts:
            name = f"c{len(configs) - 1}_s{steps}"
            sigma, found = run(sampler, config, steps, noise)
            tensors.update({f"{name}_{k}": v for k, v in found.items()})
            cases.append({"name": name, "sampler": sampler, "config": len(configs) - 1, "steps": steps,
                          "evaluations": len(found["timesteps"]), "init_noise_sigma": sigma})
    common.save_tensors(common.folder() / "samplers.safetensors", tensors)
    common.save_json(common.folder() / "samplers.json", {"configs": configs, "cases": cases})
    odd = [c["name"] for c in cases if c["steps"] != c["evaluations"]]
    print(f"samplers: {len(configs)} configs, {len(cases)} cases, evaluations differ from steps: {odd}")


if __name__ == "__main__":
    common.check_versions()
    main()
