"""prompts.json, prompts.safetensors: what pipelines hand to the U-Net for prompts that ask for more than their words."""
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

import common

SD1, XL = "pipeline_sd1", "pipeline_xl"
BASE = {"prompt": "a yellow sun over purple mountains, a lake at dawn", "negative": "blurry, low quality",
        "clip_skip": 0}
CASES = [
    {"name": "sd1_skip_1", "folder": SD1, "clip_skip": 1},
    {"name": "sd1_skip_2", "folder": SD1, "clip_skip": 2},
    {"name": "xl_skip_0", "folder": XL},
    {"name": "xl_skip_1", "folder": XL, "clip_skip": 1},
]


# XL's size conditions: (height, width) in diffusers, "WxH" and [left, top] here.
PICTURE = {"prompt": "a yellow sun over purple mountains, a lake at dawn", "negative": "blurry, low quality",
           "folder": XL, "seed": 42, "guidance": 5.0, "steps": 4, "width": 96, "height": 64}
PICTURES = [
    {"name": "xl_sizes", "original_size": [512, 320], "crop": [24, 8], "target_size": [1024, 768]},
    {"name": "xl_original", "original_size": [256, 384]},
    {"name": "xl_crop", "crop": [0, 200]},
]


def load(folder):
    cls = StableDiffusionPipeline if folder == SD1 else StableDiffusionXLPipeline
    pipe = cls.from_pretrained(common.folder(folder))
    if not hasattr(pipe.text_encoder, "text_model"):
        # Since transformers 5 there is no such layer, but diffusers still looks for the norm in it.
        object.__setattr__(pipe.text_encoder, "text_model", pipe.text_encoder)
    return pipe


def embed(pipe, case):
    found = pipe.encode_prompt(case["prompt"], device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=True,
                               negative_prompt=case["negative"], clip_skip=case["clip_skip"])
    return dict(zip(("prompt_embeds", "negative_embeds", "pooled", "negative_pooled"), found))


def paint(pipe, case):
    """The pipeline's last latents, of noise that the CPU's generator makes of the seed."""
    swapped = {name: tuple(reversed(case[name])) if name in case else None
               for name in ("original_size", "crop", "target_size")}
    pipe.set_progress_bar_config(disable=True)
    return pipe(prompt=case["prompt"], negative_prompt=case["negative"], num_inference_steps=case["steps"],
                guidance_scale=case["guidance"], height=case["height"], width=case["width"],
                original_size=swapped["original_size"], target_size=swapped["target_size"],
                crops_coords_top_left=swapped["crop"] or (0, 0), generator=common.generator(case["seed"]),
                output_type="latent").images


def main():
    pipes, tensors, cases = {f: load(f) for f in (SD1, XL)}, {}, []
    for case in CASES:
        case = {**BASE, **case}
        found = embed(pipes[case["folder"]], case)
        print(case["name"], {k: f"{tuple(v.shape)} {v.std():.2f}" for k, v in found.items()})
        tensors.update({f"{case['name']}.{k}": v for k, v in found.items()})
        cases.append(case)
    pictures = [{**PICTURE, **p} for p in PICTURES]
    for picture in pictures:
        tensors[f"{picture['name']}.latents"] = paint(pipes[picture["folder"]], picture)
    common.save_tensors(common.folder() / "prompts.safetensors", tensors)
    common.save_json(common.folder() / "prompts.json", {"cases": cases, "pictures": pictures})


if __name__ == "__main__":
    common.check_versions()
    main()
