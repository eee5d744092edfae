"""samplers_placed.safetensors and .json: the levels that a request asks for, and diffusers' steps on them.

sgm_uniform is ComfyUI's formula, align_your_steps diffusers' AysSchedules and, for other numbers of steps, ComfyUI's
interpolation of its eleven levels. Where a class takes sigmas or timesteps it is given them; where it only knows
Karras' ones, those are replaced. The model is that of samplers.py. DDIM on a list of timesteps is TCD with eta 0.
"""
import inspect

import numpy as np
import torch
from diffusers import EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler, TCDScheduler
from diffusers.schedulers import AysSchedules

import common
from samplers import CLASSES, MORE, SEED, SHAPE, model

BASE = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
        "prediction_type": "epsilon"}
FLOW = {"num_train_timesteps": 1000, "shift": 3.0}
FLOW_FILE = {"_class_name": "FlowMatchEulerDiscreteScheduler", **FLOW}
FLOW_SIGMAS = [1.0, 0.93, 0.71, 0.5, 0.22, 0.05]
ETA_STEPS = 6
SIGMAS = [12.5, 7.25, 3.5, 1.75, 0.8, 0.31, 0.0625]
TIMESTEPS = [990, 801, 610, 400, 333, 121, 17]
BY_SIGMAS = ("euler", "euler_a", "heun", "lms", "dpm2", "dpm2_a", "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_3m_sde",
             "dpmpp_2s", "deis", "unipc")
BY_TIMESTEPS = ("ddim", "ddpm", "euler", "heun", "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_3m_sde", "dpmpp_2s", "lcm", "tcd")


def table():
    s = EulerDiscreteScheduler(**BASE)
    return np.array(((1 - s.alphas_cumprod) / s.alphas_cumprod) ** 0.5)


def sgm_uniform(steps):
    logs, found = np.log(table().astype(np.float64)), []
    for t in np.linspace(999, 0, steps + 1)[:-1]:
        low = int(np.floor(t))
        w = t - low
        found.append(np.exp((1 - w) * logs[low] + w * logs[min(low + 1, 999)]))
    return found


def align_your_steps(steps, xl):
    levels = AysSchedules["StableDiffusionXLSigmas" if xl else "StableDiffusionSigmas"]
    assert len(levels) == 11 and levels[-1] == 0
    if steps == 10:
        return levels[:-1]
    logs = np.log(np.array([*levels[:-1], 0.029]))
    return np.exp(np.interp(np.linspace(0, 1, steps + 1), np.linspace(0, 1, 11), logs))[:-1].tolist()


def class_of(sampler):
    cls, own, _ = MORE.get(sampler, (CLASSES.get(sampler), {}, None))
    if sampler == "dpmpp_2m":
        own = {}  # of the second order
    return cls, own


def open_scheduler(sampler, sigmas, timesteps):
    if sampler == "flow_euler":
        scheduler = FlowMatchEulerDiscreteScheduler(**FLOW)
        scheduler.set_timesteps(sigmas=sigmas)
        return scheduler
    cls, own = class_of(sampler)
    if sampler == "ddim" and timesteps:
        cls = TCDScheduler
    elif sampler == "ddim":
        own = {"clip_sample": False, "set_alpha_to_one": False}
    if timesteps is None and sigmas is None:
        scheduler = cls(**BASE, **own)
        scheduler.set_timesteps(ETA_STEPS)
        return scheduler
    if timesteps:
        scheduler = cls(**BASE, **own)
        scheduler.set_timesteps(timesteps=timesteps)
        return scheduler
    if sampler == "euler":
        scheduler = cls(**BASE)
        scheduler.set_timesteps(sigmas=[*sigmas, 0.0])
    elif sampler == "euler_a":
        scheduler, euler = cls(**BASE), EulerDiscreteScheduler(**BASE)
        scheduler.set_timesteps(len(sigmas))
        euler.set_timesteps(sigmas=[*sigmas, 0.0])
        scheduler.sigmas, scheduler.timesteps = euler.sigmas, euler.timesteps
    else:
        scheduler = cls(**BASE, **own, use_karras_sigmas=True)
        scheduler._convert_to_karras = lambda in_sigmas, num_inference_steps=None: np.array(sigmas)
        scheduler.set_timesteps(len(sigmas))
        if sampler == "deis":  # which cannot go to zero, and whose Karras sigmas stop where they are
            scheduler.sigmas[-1] = float(table()[0])
    return scheduler


def run(sampler, scheduler, eta=None):
    generator = torch.Generator().manual_seed(SEED)
    noise = torch.randn(SHAPE, generator=generator)
    takes = inspect.signature(scheduler.step).parameters
    extra = {"generator": generator} if "generator" in takes else {}
    if sampler == "ddim" and eta is None:
        extra = {"eta": 0.0}
    if eta is not None:
        extra["eta"] = eta
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)
    sigma = float(getattr(scheduler, "init_noise_sigma", 1))
    latents, rows = noise * sigma, []
    for t in scheduler.timesteps:
        seen = scheduler.scale_model_input(latents, t) if hasattr(scheduler, "scale_model_input") else latents
        latents = scheduler.step(model(seen, t), t, latents, **extra).prev_sample
        assert torch.isfinite(latents).all(), sampler
        rows.append(latents)
    return sigma, {"timesteps": scheduler.timesteps.float(), "latents": torch.cat(rows)}


def plan():
    """(sampler, scheduler, xl, sigmas, timesteps, eta or nothing)"""
    for sampler in BY_SIGMAS:
        for steps in (5, 21):  # an even number has a timestep halfway, which rounds either way
            yield sampler, "sgm_uniform", False, sgm_uniform(steps), None
        yield sampler, "align_your_steps", False, align_your_steps(10, False), None
        yield sampler, "align_your_steps", True, align_your_steps(7, True), None
        yield sampler, "sigmas", False, SIGMAS, None
    yield "euler", "align_your_steps", False, align_your_steps(1, False), None
    yield "euler", "align_your_steps", False, align_your_steps(25, False), None
    yield "euler", "align_your_steps", True, align_your_steps(10, True), None
    for sampler in BY_TIMESTEPS:
        yield sampler, "timesteps", False, None, TIMESTEPS
    for sampler in ("ddim", "tcd"):
        for eta in (0.0, 0.5, 1.0):
            yield sampler, "default", False, None, None, eta
    yield "flow_euler", "sigmas", False, FLOW_SIGMAS, None
    yield "flow_euler", "sgm_uniform", False, np.linspace(1, 1 / 8, 8).tolist(), None


def main():
    tensors, cases = {}, []
    for sampler, scheduler, xl, sigmas, timesteps, *eta in plan():
        steps = ETA_STEPS if eta else len(sigmas or timesteps)
        name = f"{sampler}_{scheduler}{'_xl' if xl else ''}_{steps}{f'_eta{eta[0]}' if eta else ''}"
        sigma, found = run(sampler, open_scheduler(sampler, sigmas, timesteps), *eta)
        tensors.update({f"{name}_{k}": v for k, v in found.items()})
        if scheduler in ("sigmas", "timesteps"):
            tensors[f"{name}_list"] = torch.tensor(sigmas or timesteps, dtype=torch.float32)
        cases.append({"name": name, "sampler": sampler, "scheduler": scheduler, "xl": xl, "steps": steps,
                      "evaluations": len(found["timesteps"]), "init_noise_sigma": sigma,
                      **({"eta": eta[0]} if eta else {}), **({"config": FLOW_FILE} if sampler == "flow_euler" else {})})
    common.save_tensors(common.folder() / "samplers_placed.safetensors", tensors)
    config = {**BASE, "clip_sample": False, "set_alpha_to_one": False}  # what DDIM has besides
    common.save_json(common.folder() / "samplers_placed.json", {"config": config, "cases": cases})
    print(f"samplers_placed: {len(cases)} cases")


if __name__ == "__main__":
    common.check_versions()
    main()
