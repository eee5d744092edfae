"""edm.json and .safetensors: what XL's pipelines make of pipeline_xl as if it were Playground 2.5, whose noise levels are
EDM's and whose latents are normalised by channel, or CosXL, which predicts v on such levels."""
import torch
from diffusers import (EDMDPMSolverMultistepScheduler, EDMEulerScheduler, StableDiffusionXLImg2ImgPipeline,
                       StableDiffusionXLPipeline)
from PIL import Image

import common
import edits
from pipelines import HEIGHT, WIDTH

PROMPT, NEGATIVE, SEED, STEPS = "a yellow sun over purple mountains, a lake at dawn", "blurry", 42, 6
NORMALISED = {"scaling_factor": 0.5, "latents_mean": [-1.6574, 1.886, -1.383, 2.5155],
              "latents_std": [8.4927, 5.9022, 6.5498, 5.2299]}
PLAYGROUND = {"_class_name": "EDMDPMSolverMultistepScheduler", "sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 0.5,
              "sigma_schedule": "karras", "prediction_type": "epsilon", "solver_order": 2, "lower_order_final": True}
COSXL = {"_class_name": "EDMEulerScheduler", "sigma_min": 0.002, "sigma_max": 120.0, "sigma_data": 1.0,
         "sigma_schedule": "exponential", "prediction_type": "v_prediction"}
CASES = [{"name": "playground", "scheduler": PLAYGROUND, "vae": NORMALISED, "guidance": 3.0, "strength": 0},
         {"name": "playground_image", "scheduler": PLAYGROUND, "vae": NORMALISED, "guidance": 3.0, "strength": 0.6},
         {"name": "cosxl", "scheduler": COSXL, "vae": {"scaling_factor": 0.13025}, "guidance": 5.0, "strength": 0}]


def run(case):
    cls = StableDiffusionXLImg2ImgPipeline if case["strength"] else StableDiffusionXLPipeline
    pipe = cls.from_pretrained(common.folder("pipeline_xl"))
    pipe.set_progress_bar_config(disable=True)
    classes = {c.__name__: c for c in (EDMDPMSolverMultistepScheduler, EDMEulerScheduler)}
    config = {k: v for k, v in case["scheduler"].items() if k != "_class_name"}
    pipe.scheduler = classes[case["scheduler"]["_class_name"]](**config)
    pipe.vae.register_to_config(**case["vae"])
    extra = {"height": HEIGHT, "width": WIDTH}
    if case["strength"]:
        extra = {"image": Image.fromarray(edits.picture()), "strength": case["strength"]}

    def make(kind):
        return pipe(PROMPT, negative_prompt=NEGATIVE, num_inference_steps=STEPS, guidance_scale=case["guidance"],
                    generator=common.generator(SEED), output_type=kind, **extra).images

    return make("latent"), make("pt")


def main():
    tensors = {}
    for case in CASES:
        latents, picture = run(case)
        assert torch.isfinite(latents).all()
        spread = ((picture > 0.02) & (picture < 0.98)).float().mean()
        print(case["name"], f"{latents.std():.3f}, {spread:.2f} of the values are no limits")
        assert spread > 0.3
        tensors |= {f"{case['name']}.latents": latents, f"{case['name']}.picture": 2 * picture - 1}
    common.save_tensors(common.folder() / "edm.safetensors", tensors)
    common.save_json(common.folder() / "edm.json", {"prompt": PROMPT, "negative": NEGATIVE, "seed": SEED, "steps": STEPS,
                                                    "width": WIDTH, "height": HEIGHT, "cases": CASES})


if __name__ == "__main__":
    common.check_versions()
    main()
