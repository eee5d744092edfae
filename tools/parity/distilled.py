"""distilled.json: what diffusers' pipeline of latent consistency models (LCM_Dreamshaper_v7) makes in four steps of
pipeline_sd1 with unet_lcm, which is told the guidance scale, of a text and of a picture."""
import torch
from diffusers import (LatentConsistencyModelImg2ImgPipeline, LatentConsistencyModelPipeline, LCMScheduler,
                       UNet2DConditionModel)
from PIL import Image

import common
import edits

PROMPT, STEPS, HEIGHT, WIDTH = "a yellow sun over purple mountains, a lake at dawn", 4, 64, 96
CASES = [{"name": "scale_8", "guidance": 8.5, "seed": 42}, {"name": "scale_1", "guidance": 1.0, "seed": 42},
         {"name": "scale_14", "guidance": 14.3, "seed": 7}]
EDITS = [{"name": f"strength_{s}", "guidance": 8.5, "seed": 42, "strength": s} for s in (0.2, 0.5, 1.0)]


def main():
    config = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
              "original_inference_steps": 50, "clip_sample": False, "set_alpha_to_one": True, "steps_offset": 0,
              "prediction_type": "epsilon", "timestep_spacing": "leading", "rescale_betas_zero_snr": False}
    common.save_json(common.folder("lcm_scheduler") / "scheduler_config.json",
                     {"_class_name": "LCMScheduler", "_diffusers_version": "0.42.1", **config})
    parts = {"scheduler": LCMScheduler.from_pretrained(common.folder("lcm_scheduler")),
             "unet": UNet2DConditionModel.from_pretrained(common.folder("unet_lcm"))}
    pipe, edit = (cls.from_pretrained(common.folder("pipeline_sd1"), **parts)
                  for cls in (LatentConsistencyModelPipeline, LatentConsistencyModelImg2ImgPipeline))
    pipe.set_progress_bar_config(disable=True)
    edit.set_progress_bar_config(disable=True)
    tensors = {}
    for case in CASES:
        made = pipe(PROMPT, num_inference_steps=STEPS, guidance_scale=case["guidance"], height=HEIGHT, width=WIDTH,
                    generator=common.generator(case["seed"]), output_type="latent").images
        tensors[f"{case['name']}.latents"] = made
        print(case["name"], f"{made.std():.2f}")
    for case in EDITS:
        made = edit(PROMPT, Image.fromarray(edits.picture()), num_inference_steps=STEPS, guidance_scale=case["guidance"],
                    strength=case["strength"], generator=common.generator(case["seed"]), output_type="latent").images
        tensors[f"{case['name']}.latents"] = made
        print(case["name"], f"{made.std():.2f}", len(edit.scheduler.timesteps))
    assert common.rel_l2(tensors["scale_1.latents"], tensors["scale_8.latents"]) > 0.01
    common.save_tensors(common.folder() / "distilled.safetensors", tensors)
    common.save_json(common.folder() / "distilled.json", {"prompt": PROMPT, "steps": STEPS, "width": WIDTH,
                                                          "height": HEIGHT, "cases": CASES, "edits": EDITS})


if __name__ == "__main__":
    common.check_versions()
    main()
