"""edits.safetensors and edits.json: image to image and inpainting by diffusers' pipelines, on the small folders.

The picture and the mask are formulas, so that a test can make them again. The U-Net that is told of the mask is
pipeline_sd1's with five more input channels, whose weights are in the file."""
import numpy as np
import torch
from diffusers import (StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline, StableDiffusionXLImg2ImgPipeline,
                       StableDiffusionXLInpaintPipeline, UNet2DConditionModel)
from PIL import Image

import common
import pipelines
import samplers
from pipelines import HEIGHT, WIDTH

PIPES = {("pipeline_sd1", "image"): StableDiffusionImg2ImgPipeline,
         ("pipeline_sd1", "inpaint"): StableDiffusionInpaintPipeline,
         ("pipeline_xl", "image"): StableDiffusionXLImg2ImgPipeline,
         ("pipeline_xl", "inpaint"): StableDiffusionXLInpaintPipeline}
BASE = {"folder": "pipeline_sd1", "prompt": "a house by a lake", "negative": "blurry", "seed": 11, "guidance": 5.0,
        "steps": 5, "width": WIDTH, "height": HEIGHT, "told": False, "scheduler": None}


def scheduler(name, **extra):
    cls, own, _ = samplers.MORE[name] if name in samplers.MORE else (samplers.CLASSES[name], {}, False)
    return {"_class_name": cls.__name__, "num_train_timesteps": 1000, "beta_start": .00085, "beta_end": .012,
            "beta_schedule": "scaled_linear", "prediction_type": "epsilon", "timestep_spacing": "leading",
            "steps_offset": 1, **own, **extra}


CASES = [
    {"name": "image_ddim", "task": "image", "strength": 0.6},
    {"name": "image_ddim_all", "task": "image", "strength": 1.0, "guidance": 1.0},
    {"name": "image_euler", "task": "image", "strength": 0.5, "scheduler": scheduler("euler")},
    {"name": "image_euler_a", "task": "image", "strength": 0.8, "scheduler": scheduler("euler_a")},
    {"name": "image_dpmpp_2m", "task": "image", "strength": 0.75, "scheduler": scheduler("dpmpp_2m")},
    {"name": "image_heun", "task": "image", "strength": 0.75, "scheduler": scheduler("heun")},
    {"name": "image_pndm", "task": "image", "strength": 0.8, "scheduler": scheduler("pndm")},
    {"name": "image_xl", "task": "image", "strength": 0.6, "folder": "pipeline_xl"},
    {"name": "inpaint_ddim", "task": "inpaint", "strength": 0.6},
    {"name": "inpaint_ddim_all", "task": "inpaint", "strength": 1.0},
    {"name": "inpaint_ddim_nearly_all", "task": "inpaint", "strength": 0.999, "steps": 1000 // 250},
    {"name": "inpaint_euler_a", "task": "inpaint", "strength": 0.8, "scheduler": scheduler("euler_a")},
    {"name": "inpaint_euler_all", "task": "inpaint", "strength": 1.0, "scheduler": scheduler("euler")},
    {"name": "inpaint_heun", "task": "inpaint", "strength": 0.75, "scheduler": scheduler("heun")},
    {"name": "inpaint_unipc", "task": "inpaint", "strength": 0.8, "scheduler": scheduler("unipc")},
    {"name": "inpaint_xl", "task": "inpaint", "strength": 0.6, "folder": "pipeline_xl"},
    {"name": "told_ddim", "task": "inpaint", "strength": 0.6, "told": True},
    {"name": "told_ddim_all", "task": "inpaint", "strength": 1.0, "told": True},
    {"name": "told_euler_a_all", "task": "inpaint", "strength": 1.0, "told": True, "scheduler": scheduler("euler_a")},
]


def picture():
    y, x, c = np.meshgrid(np.arange(HEIGHT), np.arange(WIDTH), np.arange(3), indexing="ij")
    return ((3 * x + 5 * y + 40 * c + x * y // 7) % 256).astype(np.uint8)


def mask():
    """Painted inside, kept outside, with an edge on either side of one half."""
    m = np.zeros((HEIGHT, WIDTH), np.uint8)
    m[7:41, 15:65] = 127
    m[8:40, 16:64] = 255
    m[16:24, 16:64] = 128
    return m


def told_unet():
    model = UNet2DConditionModel.from_pretrained(common.folder("pipeline_sd1") / "unet")
    old = model.conv_in
    model.conv_in = torch.nn.Conv2d(9, old.out_channels, 3, padding=1)
    model.conv_in.bias.copy_(old.bias)
    more = common.randn((old.out_channels, 5, 3, 3), 4711, 0.1).half().float()
    model.conv_in.weight.copy_(torch.cat([old.weight, more], 1))
    model.register_to_config(in_channels=9)
    return model


def run(case):
    pipe = PIPES[case["folder"], case["task"]].from_pretrained(common.folder(case["folder"]))
    pipe.set_progress_bar_config(disable=True)
    if case["scheduler"]:
        cls = {c.__name__: c for c in [*samplers.CLASSES.values(), *(m[0] for m in samplers.MORE.values())]}
        pipe.scheduler = cls[case["scheduler"]["_class_name"]].from_config(case["scheduler"])
    if case["told"]:
        pipe.unet = told_unet()
    extra = {"mask_image": Image.fromarray(mask())} if case["task"] == "inpaint" else {}
    if case["task"] == "inpaint":
        extra.update(height=case["height"], width=case["width"])
    final = pipe(prompt=case["prompt"], negative_prompt=case["negative"], image=Image.fromarray(picture()),
                 strength=case["strength"], num_inference_steps=case["steps"], guidance_scale=case["guidance"],
                 generator=common.generator(case["seed"]), output_type="latent", **extra).images
    assert torch.isfinite(final).all()
    return final


def main():
    tensors, cases = {"told.conv_in.weight": told_unet().conv_in.weight}, []
    for case in CASES:
        case = {**BASE, **case}
        tensors[case["name"]] = final = run(case)
        print(case["name"], f"{final.std():.3f}")
        cases.append(case)
    common.save_tensors(common.folder() / "edits.safetensors", tensors)
    common.save_json(common.folder() / "edits.json", cases)


if __name__ == "__main__":
    common.check_versions()
    main()
