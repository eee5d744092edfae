"""Holds tesserad against diffusers, stage by stage: compare.py [KIND ...] [options]

For each kind (sd15, sd21, sdxl; all by default) makes a model with random weights (random_models.py), lets diffusers'
pipeline and `tesserad generate --dump` draw the same picture, each in a process of its own, and prints a table: tokens,
embeddings, noise, the U-Net's first prediction, the latent after each step, the decoded picture; then seconds and memory.
Ends with 1 when a figure is beyond its bound.

    compare.py                                                       # small ones, a minute
    compare.py --full-size sd15 --size 512x512                       # 20 steps
    compare.py --full-size sdxl --size 1024x1024 --steps 1           # the forward alone
    compare.py --full-size sdxl --size 1024x1024 --steps 1 --dtype bf16

The reference is always float32. With bf16 it is run in PyTorch's bf16 too, whose own error is the last column. Full-size
models are made once in --folder and need 2 GB (sd15), 3 GB (sd21) or 7 GB (sdxl) there; the reference needs the float32
weights in memory (4, 5 and 11 GB) and what it computes.
"""
import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import common
import random_models
from processes import Failed, run

ROOT = Path(__file__).resolve().parents[2]
PROMPT, NEGATIVE, SEED, GUIDANCE = "a lake at dawn, three sailboats", "blurry, low quality", 42, 7.5
# Relative L2; of the picture, the share of its values that may be further than 1/255 away.
BOUNDS = {"f32": {"embeddings": 1e-4, "pooled": 1e-4, "noise": 1e-6, "prediction": 1e-4, "latent": 1e-3, "picture": 1e-3},
          "bf16": {"noise": 1e-6, "prediction": 3e-2}}


# ---- the reference, in a process of its own ----

def reference(job, out):
    """Writes what the pipeline computes, as `tesserad generate --dump` names it, and its figures as JSON."""
    import diffusers
    import torch

    torch.set_num_threads(job["threads"])
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[job["dtype"]]
    folder, xl = job["model"], job["kind"] == "sdxl"
    cls = diffusers.StableDiffusionXLPipeline if xl else diffusers.StableDiffusionPipeline
    # First the text alone, then the rest, so that they are not in memory together.
    pipe = cls.from_pretrained(folder, dtype=dtype, unet=None, vae=None)
    encoded = pipe.encode_prompt(PROMPT, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=True,
                                 negative_prompt=NEGATIVE)
    tokens = {}
    for name in ("tokenizer", "tokenizer_2") if xl else ("tokenizer",):
        tokens[name] = [getattr(pipe, name)(text)["input_ids"] for text in (PROMPT, NEGATIVE)]
    found = {"text": torch.cat([encoded[1], encoded[0]])}
    texts = {"prompt_embeds": encoded[0], "negative_prompt_embeds": encoded[1]}
    if xl:
        found["pooled"] = torch.cat([encoded[3], encoded[2]])
        texts |= {"pooled_prompt_embeds": encoded[2], "negative_pooled_prompt_embeds": encoded[3]}
    del pipe
    without = ["text_encoder", "tokenizer"] + (["text_encoder_2", "tokenizer_2"] if xl else [])
    pipe = cls.from_pretrained(folder, dtype=dtype, **{name: None for name in without})
    width, height = job["size"]
    found["noise"] = torch.randn(1, 4, height // 8, width // 8, generator=common.generator(SEED))
    seconds, latents = [], []

    def before(_module, _args):
        seconds.append(-time.perf_counter())

    def after(_module, _args, output):
        seconds[-1] += time.perf_counter()
        found.setdefault("prediction", output[0])

    def record(_pipe, _i, _t, tensors):
        latents.append(tensors["latents"])
        return tensors

    pipe.unet.register_forward_pre_hook(before)
    pipe.unet.register_forward_hook(after)
    pipe.set_progress_bar_config(disable=True)
    final = pipe(**texts, num_inference_steps=job["steps"], guidance_scale=GUIDANCE, height=height, width=width,
                 latents=found["noise"].to(dtype), output_type="latent", callback_on_step_end=record).images
    found["latents"] = torch.cat(latents)
    assert torch.equal(found["latents"][-1:], final)
    begin = time.perf_counter()
    image = pipe.vae.decode(final / pipe.vae.config.scaling_factor).sample
    decode_s = time.perf_counter() - begin
    found["picture"] = ((image / 2 + 0.5).clamp(0, 1) * 255).round()[0].permute(1, 2, 0)
    common.save_tensors(out, found)
    Path(out + ".json").write_text(json.dumps({"tokens": tokens, "forward_s": min(seconds), "decode_s": decode_s}))


# ---- processes ----

def run_reference(args, kind, model, dtype, folder):
    out = f"{folder}/reference-{dtype}.safetensors"
    job = {"kind": kind, "model": str(model), "dtype": dtype, "size": args.size, "steps": args.steps, "threads": args.threads}
    _, seconds, memory = run([sys.executable, __file__, "--reference", json.dumps(job), out])
    return out, json.loads(Path(out + ".json").read_text()) | {"seconds": seconds, "memory": memory}


def run_ours(args, model, folder):
    width, height = args.size
    out = f"{folder}/ours.safetensors"
    printed, seconds, memory = run([
        args.tesserad, "generate", "--model", model, "--prompt", PROMPT, "--negative", NEGATIVE, "--seed", SEED, "--steps",
        args.steps, "--guidance", GUIDANCE, "--size", f"{width}x{height}", "--dtype", args.dtype, "--devices",
        f"cpu:1x{args.threads}", "--mode", "single", "--json", "--dump", out, "-o", f"{folder}/ours.png"])
    lines = "".join(json.dumps(text) + "\n" for text in (PROMPT, NEGATIVE))
    tokens, _, _ = run([args.tesserad, "tokenize", "--model", model], lines)
    found = [json.loads(line) for line in tokens.splitlines()]
    figures = json.loads(printed)
    return out, {"tokens": {name: [f[name] for f in found] for name in found[0]},
                 "forward_s": figures["seconds_per_evaluation"], "decode_s": figures["decode_s"], "seconds": seconds,
                 "memory": memory}


# ---- the table ----

def distances(have, want):
    """(stage, kind of bound, figure) of two files of tensors."""
    for name, stage in (("text", "embeddings"), ("pooled", "pooled"), ("noise", "noise"), ("prediction", "prediction")):
        if name in want:
            yield stage, stage, common.rel_l2(have[name], want[name])
    for i, (a, b) in enumerate(zip(have["latents"], want["latents"], strict=True)):
        yield f"latent {i + 1}", "latent", common.rel_l2(a, b)
    apart = (have["picture"] - want["picture"]).abs() > 1
    yield "picture: values beyond 1/255", "picture", float(apart.double().mean())


def psnr(have, want):
    error = ((have["picture"] - want["picture"]).double() ** 2).mean()
    return float(10 * (255**2 / error).log10()) if error else float("inf")


def compare(args, kind, model, folder):
    import torch
    from PIL import Image
    from safetensors.torch import load_file

    want_path, theirs = run_reference(args, kind, model, "f32", folder)
    have_path, ours = run_ours(args, model, folder)
    want, have = load_file(want_path), load_file(have_path)
    have["picture"] = torch.tensor(list(Image.open(f"{folder}/ours.png").tobytes())).view(want["picture"].shape).float()
    width, height = args.size
    print(f"\n## {kind}, {'full size' if args.full_size else 'small'}, {width}x{height}, {args.steps} steps, {args.dtype}\n")
    also = {}
    if args.dtype == "bf16":
        path, also_figures = run_reference(args, kind, model, "bf16", folder)
        also = {stage: figure for stage, _, figure in distances(load_file(path), want)}
    print("| stage | relative L2 | bound |" + (" PyTorch's bf16 |" if also else ""))
    print("|---|---|---|" + ("---|" if also else ""))
    same = ours["tokens"] == theirs["tokens"]
    print(f"| tokens | {'equal' if same else 'DIFFERENT'} | equal |" + (" |" if also else ""))
    good = same
    for stage, bound, figure in distances(have, want):
        most = BOUNDS[args.dtype].get(bound)
        within = most is None or figure <= most
        good = good and within
        print(f"| {stage} | {figure:.2e}{'' if within else ' BEYOND'} | {'' if most is None else f'{most:g}'} |"
              + (f" {also[stage]:.2e} |" if also else ""))
    print(f"\nThe picture's PSNR is {psnr(have, want):.1f} dB, its standard deviation {float(want['picture'].std()):.0f} of 255.\n")
    print("| program | s a forward | s a decode | s in all | GB at the peak |\n|---|---|---|---|---|")
    rows = [(f"tesserad, {args.dtype}", ours), ("PyTorch, f32", theirs)] + ([("PyTorch, bf16", also_figures)] if also else [])
    for name, f in rows:
        print(f"| {name} | {f['forward_s']:.3f} | {f['decode_s']:.3f} | {f['seconds']:.1f} | {f['memory']:.2f} |")
    return good


def size(text):
    width, height = map(int, text.split("x"))
    return width, height


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("kinds", nargs="*", metavar="KIND", help=", ".join(random_models.KINDS) + " (default: all)")
    ap.add_argument("--full-size", action="store_true", help="the published shapes, instead of small ones")
    ap.add_argument("--folder", type=Path, default=Path("/tmp/tessera-parity"), help="where full-size models are kept "
                    "(default: %(default)s)")
    ap.add_argument("--tesserad", type=Path, default=ROOT / "build" / "tesserad", help="(default: build/tesserad)")
    ap.add_argument("--dtype", choices=BOUNDS, default="f32", help="of tesserad (default: %(default)s)")
    ap.add_argument("--steps", type=int, default=20, help="(default: %(default)s)")
    ap.add_argument("--size", type=size, help="WxH (default: 96x64; full size: 512x512)")
    ap.add_argument("--threads", type=int, default=os.cpu_count(), help="of each program (default: %(default)s)")
    ap.add_argument("--reference", nargs=2, help=argparse.SUPPRESS)
    args = ap.parse_args()
    common.check_versions()
    if args.reference:
        return reference(json.loads(args.reference[0]), args.reference[1])
    unknown = set(args.kinds) - set(random_models.KINDS)
    if unknown:
        ap.error(f"no such kind: {', '.join(unknown)}")
    args.size = args.size or ((512, 512) if args.full_size else (96, 64))
    good = True
    with tempfile.TemporaryDirectory() as scratch:
        for kind in args.kinds or random_models.KINDS:
            model = (args.folder if args.full_size else Path(scratch)) / kind
            if not (model / "model_index.json").exists():
                random_models.make(kind, model, not args.full_size, lambda text: print(text, file=sys.stderr))
            good = compare(args, kind, model, scratch) and good
    return 0 if good else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Failed as e:
        sys.exit(f"compare.py: {e}")
