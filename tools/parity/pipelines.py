"""pipeline_sd1/ and pipeline_xl/: complete folders, and what their pipelines make of a few requests in 4 steps."""
import shutil

import torch
from diffusers import (DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler, StableDiffusionPipeline,
                       StableDiffusionXLPipeline)

import common
import samplers

CLASSES = {c.__name__: c for c in (DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler)}
HEIGHT, WIDTH, STEPS = 64, 96, 4
BASE = {"prompt": "a yellow sun over purple mountains, a lake at dawn", "negative": "blurry, low quality", "seed": 42,
        "guidance": 7.5, "guidance_rescale": 0.0, "steps": STEPS, "width": WIDTH, "height": HEIGHT, "scheduler": None}


def variant(sampler, *args, **extra):
    config = samplers.make_config(sampler, *args, **extra)
    return {"_class_name": samplers.CLASSES[sampler].__name__, **config}


SD1 = [
    {"name": "ddim"},
    {"name": "ddim_no_negative", "negative": None, "seed": 7},
    {"name": "ddim_no_guidance", "guidance": 1.0},
    {"name": "euler_trailing", "scheduler": variant("euler", "scaled_linear", "trailing", "epsilon", False)},
    {"name": "euler_leading", "scheduler": variant("euler", "scaled_linear", "leading", "epsilon", False)},
    {"name": "dpmpp_2m_karras", "scheduler": variant("dpmpp_2m", "scaled_linear", "leading", "epsilon", False,
                                                     use_karras_sigmas=True)},
    {"name": "dpmpp_2m_v", "scheduler": variant("dpmpp_2m", "scaled_linear", "linspace", "v_prediction", False)},
    {"name": "ddim_v_zero_snr", "scheduler": variant("ddim", "scaled_linear", "trailing", "v_prediction", True)},
    {"name": "ddim_v_zero_snr_rescale", "guidance_rescale": 0.7,
     "scheduler": variant("ddim", "scaled_linear", "trailing", "v_prediction", True)},
]
XL = [
    {"name": "negative"},
    {"name": "negative_absent", "negative": None},
    {"name": "negative_empty", "negative": ""},
    {"name": "negative_absent_no_zeros", "negative": None, "force_zeros_for_empty_prompt": False},
    {"name": "no_guidance", "guidance": 1.0, "negative": None},
]
WITH_PICTURE = {"ddim", "ddim_v_zero_snr", "negative_absent"}


def finish_folders():
    """The models are there already; what is left are tokenizers, schedulers and the index."""
    fixtures = common.folder()
    for where, part, source in (("pipeline_sd1", "tokenizer", "files"), ("pipeline_xl", "tokenizer", "files"),
                                ("pipeline_xl", "tokenizer_2", "files_pad0")):
        shutil.copytree(fixtures / "tokenizer" / source, fixtures / where / part, dirs_exist_ok=True)
    ddim = samplers.make_config("ddim", "scaled_linear", "leading", "epsilon", False, skip_prk_steps=True)
    euler = samplers.make_config("euler", "scaled_linear", "leading", "epsilon", False, interpolation_type="linear")
    for where, name, config in (("pipeline_sd1", "DDIMScheduler", ddim), ("pipeline_xl", "EulerDiscreteScheduler", euler)):
        common.save_json(common.folder(where, "scheduler") / "scheduler_config.json",
                         {"_class_name": name, "_diffusers_version": "0.42.1", **config})
    both = {"_diffusers_version": "0.42.1", "text_encoder": ["transformers", "CLIPTextModel"],
            "tokenizer": ["transformers", "CLIPTokenizer"], "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"]}
    common.save_json(fixtures / "pipeline_sd1" / "model_index.json", {
        "_class_name": "StableDiffusionPipeline", **both, "scheduler": ["diffusers", "DDIMScheduler"],
        "feature_extractor": [None, None], "safety_checker": [None, None], "requires_safety_checker": False})
    common.save_json(fixtures / "pipeline_xl" / "model_index.json", {
        "_class_name": "StableDiffusionXLPipeline", **both, "scheduler": ["diffusers", "EulerDiscreteScheduler"],
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"], "force_zeros_for_empty_prompt": True})


def run(pipe, case, xl):
    """What the pipeline's own call makes of the case, with the latents after each step."""
    after, dtype = [], pipe.unet.dtype
    noise = torch.randn(1, 4, case["height"] // 8, case["width"] // 8, generator=common.generator(case["seed"]))

    def record(_pipe, _i, _t, tensors):
        after.append(tensors["latents"].clone())
        return tensors

    final = pipe(prompt=case["prompt"], negative_prompt=case["negative"], num_inference_steps=case["steps"],
                 guidance_scale=case["guidance"], guidance_rescale=case["guidance_rescale"], height=case["height"],
                 width=case["width"], latents=noise.to(dtype), output_type="latent", callback_on_step_end=record).images
    latents = torch.cat(after)
    assert torch.equal(latents[-1:], final)
    found = {"noise": noise, "latents": latents, "timesteps": pipe.scheduler.timesteps}
    found["image"] = pipe.vae.decode(final / pipe.vae.config.scaling_factor).sample
    if dtype == torch.float32 and not xl:
        again = pipe(prompt=case["prompt"], negative_prompt=case["negative"], num_inference_steps=case["steps"],
                     guidance_scale=case["guidance"], guidance_rescale=case["guidance_rescale"],
                     height=case["height"], width=case["width"], generator=common.generator(case["seed"]),
                     output_type="latent").images
        assert torch.equal(again, final)
    return found


def embeddings(pipe, case, xl):
    guided = case["guidance"] > 1
    if not xl:
        text, negative = pipe.encode_prompt(case["prompt"], "cpu", 1, guided, negative_prompt=case["negative"])
        found = {"prompt_embeds": text, "negative_embeds": negative}
    else:
        text, negative, pooled, negative_pooled = pipe.encode_prompt(
            case["prompt"], device="cpu", do_classifier_free_guidance=guided, negative_prompt=case["negative"])
        found = {"prompt_embeds": text, "negative_embeds": negative, "pooled": pooled,
                 "negative_pooled": negative_pooled}
    return {k: v for k, v in found.items() if v is not None}


def one_pipeline(where, cls, wanted, xl):
    tensors, cases, path = {}, [], common.folder(where)
    for case in wanted:
        case = {**BASE, **case}
        if xl:
            case.setdefault("force_zeros_for_empty_prompt", True)
        pipes = []
        for dtype in (torch.float32, torch.float64):
            pipe = cls.from_pretrained(path, torch_dtype=dtype)
            pipe.set_progress_bar_config(disable=True)
            if case["scheduler"]:
                pipe.scheduler = CLASSES[case["scheduler"]["_class_name"]].from_config(case["scheduler"])
            if xl:
                pipe.register_to_config(force_zeros_for_empty_prompt=case["force_zeros_for_empty_prompt"])
            pipes.append(pipe)
        found, exact = run(pipes[0], case, xl), run(pipes[1], case, xl)
        case["float32_error"] = {k: common.rel_l2(found[k], exact[k]) for k in ("latents", "image")}
        found.update(embeddings(pipes[0], case, xl))
        ids = pipes[0].tokenizer([case["prompt"], case["negative"] or ""], padding="max_length", max_length=77,
                                 truncation=True, return_tensors="pt")["input_ids"]
        found["input_ids"] = ids
        print(case["name"], f"latents {[f'{v.std():.2f}' for v in found['latents']]} image {found['image'].std():.2f}",
              case["float32_error"])
        if case["name"] not in WITH_PICTURE:
            del found["image"]
        tensors.update({f"{case['name']}.{k}": v for k, v in found.items()})
        cases.append(case)
    common.save_tensors(common.folder() / f"{where}.safetensors", tensors)
    common.save_json(common.folder() / f"{where}.json", {"folder": where, "cases": cases})


def main():
    finish_folders()
    one_pipeline("pipeline_sd1", StableDiffusionPipeline, SD1, False)
    one_pipeline("pipeline_xl", StableDiffusionXLPipeline, XL, True)


if __name__ == "__main__":
    common.check_versions()
    main()
