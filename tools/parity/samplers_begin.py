"""samplers_begin.safetensors and .json: diffusers' schedulers with their first steps left out, as its image-to-image
and inpainting pipelines use them: the noisy picture that they begin with, each step, and the noisy picture that an
inpainting pipeline puts in place of what is kept. The model is that of samplers.py."""
import inspect

import torch

import common
import kdiffusion
from samplers import MORE, SEED, SHAPE, CLASSES, make_config, model

COUNTS = ((1, 0), (6, 1), (6, 2), (7, 3), (20, 13), (20, 19))  # steps, left out


def plan():
    for sampler in CLASSES:
        yield sampler, CLASSES[sampler], make_config(sampler, "scaled_linear", "leading", "epsilon", False)
    for sampler, (cls, own, rescales) in MORE.items():
        config = {"num_train_timesteps": 1000, "beta_start": .00085, "beta_end": .012,
                  "beta_schedule": "scaled_linear", "prediction_type": "epsilon", **own}
        if sampler not in ("dpmpp_2s", "lcm", "tcd"):
            config.update(timestep_spacing="linspace")
        yield sampler, cls, config
    yield "ddim", CLASSES["ddim"], make_config("ddim", "scaled_linear", "trailing", "v_prediction", True)


def run(sampler, cls, config, steps, begin):
    scheduler = cls(**config)
    scheduler.set_timesteps(steps)
    generator = torch.Generator().manual_seed(SEED)
    noise = torch.randn(SHAPE, generator=generator)
    picture = torch.linspace(-1, 1, noise.numel()).reshape(SHAPE)
    first = begin * scheduler.order
    timesteps = scheduler.timesteps[first:]
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(first)
    takes = inspect.signature(scheduler.step).parameters
    extra = {"generator": generator} if "generator" in takes else {}
    latents = scheduler.add_noise(picture, noise, timesteps[:1])
    start, rows, kept = latents, [], []
    for i, t in enumerate(timesteps):
        seen = scheduler.scale_model_input(latents, t) if hasattr(scheduler, "scale_model_input") else latents
        if sampler == "lms":
            extra["order"] = min(i + 1, 4)  # the class would weigh one prediction as if it had four
        latents = scheduler.step(model(seen, t), t, latents, **extra).prev_sample
        assert torch.isfinite(latents).all(), (sampler, steps, begin)
        rows.append(latents)
        kept.append(scheduler.add_noise(picture, noise, timesteps[i + 1:i + 2]) if i + 1 < len(timesteps) else picture)
    return {"timesteps": timesteps.float(), "start": start, "latents": torch.cat(rows), "kept": torch.cat(kept)}


def main():
    tensors, configs, cases = {}, [], []
    for sampler, cls, config in plan():
        configs.append({"_class_name": kdiffusion.class_name(cls), **config})
        for steps, begin in COUNTS:
            name = f"c{len(configs) - 1}_s{steps}_b{begin}"
            found = run(sampler, cls, config, steps, begin)
            tensors.update({f"{name}_{k}": v for k, v in found.items()})
            cases.append({"name": name, "sampler": sampler, "config": len(configs) - 1, "steps": steps, "begin": begin,
                          "evaluations": len(found["timesteps"])})
    common.save_tensors(common.folder() / "samplers_begin.safetensors", tensors)
    common.save_json(common.folder() / "samplers_begin.json", {"configs": configs, "cases": cases})
    print(f"samplers_begin: {len(configs)} configs, {len(cases)} cases")


if __name__ == "__main__":
    common.check_versions()
    main()
