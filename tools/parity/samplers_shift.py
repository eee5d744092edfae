"""samplers_shift.safetensors and .json: DDIM with the time-shift sampler (Li et al. 2024, arXiv 2305.15583, algorithm
3), written from the paper on diffusers' DDIM.

After a step has arrived at timestep t, t above the cutoff, the timestep within the window around t whose noise has the
variance of x takes its place: the model is told of it and the next step begins there, going where it would have gone.
The window is half the distance of two timesteps, the cutoff 300. The model is that of samplers.py.
"""
import torch
from diffusers import DDIMScheduler

import common
from samplers import SEED, SHAPE, model

BASE = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
        "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}
CUTOFF = 300


def coupled(x, t, alphas, window):
    low, high = max(0, t - window // 2), min(len(alphas) - 1, t + window // 2)
    distances = (x.double().var() - (1 - alphas[low:high + 1].double())).abs()
    return low + int(distances.argmin())


def step(scheduler, x, out, t, after):
    """From t to `after` (negative: the end), by the class itself where it knows the way."""
    alpha = scheduler.alphas_cumprod[t]
    to = scheduler.alphas_cumprod[after] if after >= 0 else scheduler.final_alpha_cumprod
    if scheduler.config.prediction_type == "v_prediction":
        x0, noise = alpha.sqrt() * x - (1 - alpha).sqrt() * out, alpha.sqrt() * out + (1 - alpha).sqrt() * x
    else:
        x0, noise = (x - (1 - alpha).sqrt() * out) / alpha.sqrt(), out
    return to.sqrt() * x0 + (1 - to).sqrt() * noise


def run(config, steps, spread):
    scheduler = DDIMScheduler(**config)
    scheduler.set_timesteps(steps)
    stride = 1000 // steps
    x = torch.randn(SHAPE, generator=common.generator(SEED)) * spread
    rows, told = [], []
    for i, t in enumerate(scheduler.timesteps.tolist()):
        shifted = coupled(x, t, scheduler.alphas_cumprod, 2 * (stride // 4)) if i and t > CUTOFF else t
        if not i:
            plain = scheduler.step(model(x, t), t, x).prev_sample
        x = step(scheduler, x, model(x, shifted), shifted, t - stride)
        if not i:
            assert torch.allclose(x, plain, atol=1e-5)
        rows.append(x)
        told.append(shifted)
    return {"timesteps": torch.tensor(told).float(), "latents": torch.cat(rows)}, scheduler.timesteps.tolist()


def main():
    tensors, cases, shifts, inside = {}, [], 0, 0
    for prediction in ("epsilon", "v_prediction"):
        for spacing in ("leading", "trailing"):
            for steps in (2, 5, 10, 25):
                for spread in (1.0, 0.8, 0.6, 0.5):
                    config = {**BASE, "prediction_type": prediction, "timestep_spacing": spacing}
                    name = f"c{len(cases)}"
                    found, scheduled = run(config, steps, spread)
                    away = [abs(a - b) for a, b in zip(found["timesteps"].tolist(), scheduled)]
                    shifts += sum(d > 0 for d in away)
                    inside += sum(0 < d < 1000 // steps // 4 for d in away)
                    tensors.update({f"{name}_{k}": v for k, v in found.items()})
                    cases.append({"name": name, "config": config, "steps": steps, "spread": spread})
    assert inside > 10
    common.save_tensors(common.folder() / "samplers_shift.safetensors", tensors)
    common.save_json(common.folder() / "samplers_shift.json", {"cases": cases})
    print(f"samplers_shift: {len(cases)} cases, {shifts} shifts, {inside} of them within the window")


if __name__ == "__main__":
    common.check_versions()
    main()
