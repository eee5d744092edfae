"""samplers.safetensors and samplers.json: schedules and steps of diffusers' schedulers.

The model is an analytic function, so that a test can compute it again:
    out = 0.3*x + 0.1*sin(5*x) + 0.05*t/1000
by element in float32, x being the scaled model input and t the timestep as the U-Net gets it.
"""
import inspect
import itertools

import torch
from diffusers import (DDIMScheduler, DDPMScheduler, DEISMultistepScheduler, DPMSolverMultistepScheduler,
                       DPMSolverSinglestepScheduler, EDMDPMSolverMultistepScheduler, EDMEulerScheduler,
                       EulerAncestralDiscreteScheduler, EulerDiscreteScheduler,
                       FlowMatchEulerDiscreteScheduler, HeunDiscreteScheduler, KDPM2AncestralDiscreteScheduler,
                       KDPM2DiscreteScheduler, LCMScheduler, LMSDiscreteScheduler, PNDMScheduler, TCDScheduler,
                       UniPCMultistepScheduler)

import common
import kdiffusion

CLASSES = {"ddim": DDIMScheduler, "euler": EulerDiscreteScheduler, "dpmpp_2m": DPMSolverMultistepScheduler}
BETAS = {"scaled_linear": (0.00085, 0.012), "linear": (0.0001, 0.02)}
# What came later, each with the keys that its class has besides the common ones.
MORE = {
    "ddpm": (DDPMScheduler, {"clip_sample": False}, True),
    "euler_a": (EulerAncestralDiscreteScheduler, {}, True),
    "heun": (HeunDiscreteScheduler, {}, False),
    "lms": (LMSDiscreteScheduler, {}, False),
    "dpm2": (KDPM2DiscreteScheduler, {}, False),
    "dpm2_a": (KDPM2AncestralDiscreteScheduler, {}, False),
    "dpmpp_2m": (DPMSolverMultistepScheduler, {"solver_order": 3}, True),
    "dpmpp_2m_sde": (DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++"}, True),
    "dpmpp_3m_sde": (kdiffusion.DPMPP3MSDE, {"algorithm_type": "sde-dpmsolver++", "solver_order": 3}, True),
    "dpmpp_2s": (DPMSolverSinglestepScheduler, {}, False),
    "pndm": (PNDMScheduler, {"skip_prk_steps": True}, False),
    "deis": (DEISMultistepScheduler, {}, False),
    "unipc": (UniPCMultistepScheduler, {}, True),
    "lcm": (LCMScheduler, {}, True),
    "tcd": (TCDScheduler, {}, True),
}
KARRAS = ("heun", "lms", "dpm2", "dpm2_a", "dpmpp_2m_sde", "dpmpp_3m_sde", "dpmpp_2s", "deis", "unipc")
SHAPE = (1, 4, 2, 2)
SEED = 2024


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


def config_base():
    start, end = BETAS["scaled_linear"]
    return {"num_train_timesteps": 1000, "beta_start": start, "beta_end": end, "beta_schedule": "scaled_linear",
            "prediction_type": "epsilon"}


def more():
    """(sampler, class, config, step counts)"""
    def config(sampler, spacing, prediction="epsilon", zero_snr=False, **extra):
        cls, own, rescales = MORE[sampler]
        start, end = BETAS["scaled_linear"]
        c = {"num_train_timesteps": 1000, "beta_start": start, "beta_end": end, "beta_schedule": "scaled_linear",
             "prediction_type": prediction, **own}
        if sampler != "dpmpp_2s":
            c.update(timestep_spacing=spacing, steps_offset=1 if spacing == "leading" else 0)
        if zero_snr:
            assert rescales
            c["rescale_betas_zero_snr"] = True
        c.update(extra)
        return sampler, cls, c

    for sampler, (cls, _, rescales) in MORE.items():
        distilled = sampler in ("lcm", "tcd")
        for spacing in ("leading",) if distilled else ("leading", "trailing", "linspace"):
            # Two ancestral steps are one from the most noise to the least, where float32 leaves diffusers no digits.
            counts = (1, 4, 8) if distilled else (1, 5, 20) if sampler in ("euler_a", "dpm2_a") else (1, 2, 5, 20)
            yield *config(sampler, spacing), counts
            yield *config(sampler, spacing, "v_prediction"), (4,)
            if rescales:
                yield *config(sampler, spacing, "v_prediction", True), (4,) if distilled else (4, 20)
    for sampler in KARRAS:
        yield *config(sampler, "linspace", use_karras_sigmas=True), (4, 20)
        yield *config(sampler, "linspace", use_exponential_sigmas=True), (4, 20)
    for sampler in ("euler", "dpmpp_2m"):
        yield sampler, CLASSES[sampler], make_config(sampler, "scaled_linear", "leading", "epsilon", False,
                                                     use_exponential_sigmas=True), (4, 20)
    for sampler in ("ddpm", "lcm", "heun"):
        yield *config(sampler, "leading", clip_sample=True, clip_sample_range=1.5), (4,)
    yield *config("ddpm", "leading", variance_type="fixed_large"), (4,)
    yield *config("pndm", "leading", set_alpha_to_one=True), (4,)
    yield *config("lcm", "leading", original_inference_steps=40, timestep_scaling=3.0), (4, 7)
    yield *config("tcd", "leading", original_inference_steps=40), (4, 7)
    for sampler in ("dpmpp_2m", "dpmpp_2m_sde", "dpmpp_3m_sde", "dpmpp_2s", "unipc"):
        yield *config(sampler, "linspace", final_sigmas_type="sigma_min"), (4, 5, 20)
    for sampler in ("dpmpp_2m", "dpmpp_2m_sde", "dpmpp_3m_sde", "deis"):
        yield *config(sampler, "linspace", lower_order_final=False), (5,)
    for sampler in ("dpmpp_2m_sde", "dpmpp_2s"):
        yield *config(sampler, "linspace", solver_type="heun"), (5,)
    for order in (1, 3):
        yield *config("deis", "linspace", solver_order=order), (2, 5, 20)
        yield *config("unipc", "linspace", solver_order=order), (2, 5, 20)
    yield *config("unipc", "linspace", solver_type="bh1", final_sigmas_type="sigma_min"), (5, 20)
    for shift in (1.0, 3.0):
        yield "flow_euler", FlowMatchEulerDiscreteScheduler, {"num_train_timesteps": 1000, "shift": shift}, (1, 4, 20)
    cosine = {"num_train_timesteps": 1000, "beta_schedule": "squaredcos_cap_v2"}
    yield "ddim", DDIMScheduler, {**cosine, "clip_sample": False, "set_alpha_to_one": False}, (4, 20)
    yield "ddpm", DDPMScheduler, {**cosine, "clip_sample": False}, (4,)
    for prediction in ("epsilon", "v_prediction"):
        for sampler, spacing in (("euler", "leading"), ("dpmpp_2m", "linspace"), ("unipc", "linspace")):
            cls = {**CLASSES, "unipc": UniPCMultistepScheduler}[sampler]
            yield sampler, cls, {**cosine, "timestep_spacing": spacing, "prediction_type": prediction}, (4, 20)
    yield "dpmpp_2m", DPMSolverMultistepScheduler, {**cosine, "lambda_min_clipped": -5.1}, (4, 20)
    yield "dpmpp_2m", DPMSolverMultistepScheduler, {**cosine, "use_karras_sigmas": True}, (4, 20)
    # Only DPMSolverMultistep leaves Karras' timesteps as they are where the betas are a cosine's.
    for sampler in ("deis", "unipc", "dpmpp_2s"):
        own = {"lower_order_final": True} if sampler == "dpmpp_2s" else {}
        yield sampler, MORE[sampler][0], {**cosine, "use_karras_sigmas": True, **own}, (4, 10)
    ends = {**config_base(), "use_karras_sigmas": True, "sigma_min": 0.1, "sigma_max": 10.0}
    yield "unipc", UniPCMultistepScheduler, ends, (4, 10)
    yield "unipc", UniPCMultistepScheduler, {**ends, "use_karras_sigmas": False, "use_exponential_sigmas": True}, (4, 10)
    for extra in ({"use_karras_sigmas": True}, {"use_exponential_sigmas": True}, {"shift_terminal": 0.1},
                  {"shift_terminal": 0.02, "use_karras_sigmas": True}):
        yield "flow_euler", FlowMatchEulerDiscreteScheduler, {"num_train_timesteps": 1000, "shift": 3.0, **extra}, (2, 20)
    for sampler in ("euler", "dpmpp_2m", *KARRAS):
        cls, own, _ = MORE.get(sampler, (CLASSES.get(sampler), {}, None))
        yield sampler, cls, {**config_base(), **own, "use_beta_sigmas": True}, (1, 4, 20)
    for spacing in ("leading", "trailing"):
        yield *config("heun", spacing, use_beta_sigmas=True), (5,)
    yield "unipc", UniPCMultistepScheduler, {**ends, "use_karras_sigmas": False, "use_beta_sigmas": True,
                                             "final_sigmas_type": "sigma_min"}, (4, 10)
    yield "flow_euler", FlowMatchEulerDiscreteScheduler, {"num_train_timesteps": 1000, "shift": 3.0,
                                                          "use_beta_sigmas": True}, (2, 20)
    for sampler, extra in itertools.product(("dpmpp_2m", "dpmpp_2m_sde"), ({}, {"use_karras_sigmas": True})):
        yield *config(sampler, "linspace", use_lu_lambdas=True, **extra), (4, 20)
    yield "dpmpp_2m", DPMSolverMultistepScheduler, {**cosine, "use_lu_lambdas": True}, (4, 20)
    # Only DPMSolverMultistep has them; the others' classes do not read the key.
    for sampler, cls in (("euler", EulerDiscreteScheduler), ("unipc", UniPCMultistepScheduler)):
        yield sampler, cls, {**config_base(), "use_lu_lambdas": True}, (4,)
    for sampler in ("ddim", "euler", *MORE):  # what a file leaves out is the running class's own
        cls, own, _ = MORE.get(sampler, (CLASSES.get(sampler), {}, None))
        yield sampler, cls, dict(own), (4,)
    for extra in ({"use_karras_sigmas": True}, {"use_exponential_sigmas": True}):  # LMS' class overlooks the ends of Karras'
        yield "lms", LMSDiscreteScheduler, {**config_base(), **extra, "sigma_min": 0.03, "sigma_max": 12.0}, (4,)
    lu = {**config_base(), "use_lu_lambdas": True}
    yield "dpmpp_2m", DPMSolverMultistepScheduler, {**lu, "sigma_min": 0.1, "sigma_max": 10.0}, (4,)
    yield "dpmpp_2m", DPMSolverMultistepScheduler, {**lu, "use_exponential_sigmas": True}, (4,)
    yield "deis", DEISMultistepScheduler, {**lu, "use_exponential_sigmas": True}, (4,)
    # The table's last sigma is not its largest.
    yield "dpmpp_2m", DPMSolverMultistepScheduler, {**lu, "beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02,
                                                    "rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}, (4,)
    for extra in ({"use_karras_sigmas": True}, {"use_beta_sigmas": True}):
        yield "flow_euler", FlowMatchEulerDiscreteScheduler, {"num_train_timesteps": 1000, "shift": 6.0, "sigma_max": 0.9,
                                                              "sigma_min": 0.02, **extra}, (5,)
    playground, cosxl = {}, {"sigma_max": 120.0, "sigma_data": 1.0, "prediction_type": "v_prediction",
                             "sigma_schedule": "exponential"}
    for cls, sampler in ((EDMEulerScheduler, "euler"), (EDMDPMSolverMultistepScheduler, "dpmpp_2m")):
        for own in (playground, cosxl):
            yield sampler, cls, own, (2, 5, 20)
        yield sampler, cls, {"final_sigmas_type": "sigma_min", "sigma_min": 0.1, "prediction_type": "v_prediction"}, (5,)
    for own in ({"solver_order": 3}, {"solver_type": "heun"}, {"lower_order_final": False}, {"euler_at_final": True}):
        yield "dpmpp_2m", EDMDPMSolverMultistepScheduler, own, (5, 20)
    yield "dpmpp_2m_sde", EDMDPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++"}, (5, 20)
    continuous = {**config_base(), "timestep_type": "continuous", "prediction_type": "v_prediction", "sigma_min": 0.002,
                  "sigma_max": 120.0}
    for curve, spacing in (("use_karras_sigmas", "linspace"), ("use_exponential_sigmas", "leading")):
        yield "euler", EulerDiscreteScheduler, {**continuous, curve: True, "timestep_spacing": spacing}, (5,)
    # Euler ends at the schedule's lowest level all the same; EDM's classes have no Lu's.
    yield "euler", EulerDiscreteScheduler, {**continuous, "use_karras_sigmas": True, "final_sigmas_type": "sigma_min"}, (5,)
    yield "dpmpp_2m", EDMDPMSolverMultistepScheduler, {"sigma_schedule": "exponential", "use_lu_lambdas": True}, (5,)


def run(sampler, cls, config, steps):
    takes = inspect.signature(cls).parameters
    known = {k: v for k, v in config.items() if k in takes or "config" in takes}
    scheduler = cls(**known)
    scheduler.register_to_config(**{k: v for k, v in config.items() if k not in known})  # as from_config does
    scheduler.set_timesteps(steps)
    generator = torch.Generator().manual_seed(SEED)
    noise = torch.randn(SHAPE, generator=generator)
    sigma = float(getattr(scheduler, "init_noise_sigma", 1.0))
    takes_noise = "generator" in inspect.signature(scheduler.step).parameters
    extra = {"generator": generator} if takes_noise else {}
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)  # Karras timesteps can repeat; the step is counted, not looked up
    latents = noise * getattr(scheduler, "init_noise_sigma", 1.0)
    rows = []
    scales = [1.0] * len(scheduler.timesteps)
    if cls is EDMDPMSolverMultistepScheduler:  # whose latents are not of unit variance; ours of that solver are
        scales, sigma = (1 / (scheduler.sigmas[1:] ** 2 + 1) ** 0.5).tolist(), 1.0
    for t, scale in zip(scheduler.timesteps, scales):
        seen = scheduler.scale_model_input(latents, t) if hasattr(scheduler, "scale_model_input") else latents
        latents = scheduler.step(model(seen, t), t, latents, **extra).prev_sample
        assert latents.dtype == torch.float32 and torch.isfinite(latents).all(), (sampler, config, steps)
        rows.append(latents * scale)
    tensors = {"timesteps": scheduler.timesteps.float(), "latents": torch.cat(rows)}
    if sampler in ("euler", "dpmpp_2m"):
        tensors["sigmas"] = scheduler.sigmas
    return sigma, tensors


def main():
    kdiffusion.check(model)
    noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(SEED))
    tensors, configs, cases = {"noise": noise}, [], []
    for beta, zero_snr in itertools.product(BETAS, (False, True)):
        s = DDIMScheduler(**make_config("ddim", beta, "leading", "v_prediction", zero_snr))
        tensors[f"alphas_cumprod_{beta}{'_zero_snr' if zero_snr else ''}"] = s.alphas_cumprod
    for zero_snr in (False, True):
        s = DDIMScheduler(beta_schedule="squaredcos_cap_v2", rescale_betas_zero_snr=zero_snr)
        tensors[f"alphas_cumprod_cosine{'_zero_snr' if zero_snr else ''}"] = s.alphas_cumprod

    old = ((sampler, CLASSES[sampler], config, counts) for sampler, config, counts in plan())
    for sampler, cls, config, counts in itertools.chain(old, more()):
        configs.append({"_class_name": kdiffusion.class_name(cls), **config})
        for steps in counts:
            name = f"c{len(configs) - 1}_s{steps}"
            sigma, found = run(sampler, cls, config, steps)
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
