"""Scores the demo model: does the checker find each attribute of the prompt in the picture?

    python score.py --prompts 200 --steps 20 --sheet ../../docs/demo-sheet.png     # with diffusers
    python score.py --write-prompts PROMPTS.txt                                    # one prompt a line, 200 lines
    python score.py --pictures FOLDER                                              # 000.png ... made by tesserad

Picture k of the folder answers line k (from 0), with seed 1000 + k. All prompts are of held-out combinations.
"""
import argparse
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

import checker
import common
import scenes

SHEET_CELL = 160                                             # a picture's short side there: less than a megabyte


def generate(args, prompts):
    from diffusers import StableDiffusionPipeline
    pipe = StableDiffusionPipeline.from_pretrained(args.model, torch_dtype=torch.bfloat16)
    pipe.set_progress_bar_config(disable=True)
    width, height = (int(v) for v in args.size.split("x"))
    pipe.unet.to(memory_format=torch.channels_last)
    pipe.vae.to(memory_format=torch.channels_last)
    for i in range(0, len(prompts), args.batch):
        part = prompts[i:i + args.batch]
        seeds = [torch.Generator().manual_seed(1000 + i + k) for k in range(len(part))]
        for picture in pipe(part, width=width, height=height, num_inference_steps=args.steps,
                            guidance_scale=args.guidance, generator=seeds).images:
            yield np.asarray(picture)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--dir", type=Path, default=common.DEFAULT_DIR, help="where checker.pt is")
    p.add_argument("--model", type=Path, default=common.MODEL_DIR)
    p.add_argument("--prompts", type=int, default=200)
    p.add_argument("--steps", type=int, default=20)
    p.add_argument("--guidance", type=float, default=4.0)
    p.add_argument("--size", default="256x256")
    p.add_argument("--batch", type=int, default=8)
    p.add_argument("--threads", type=int, default=0)
    p.add_argument("--pictures", type=Path, help="score these instead of generating")
    p.add_argument("--keep", type=Path, help="keep the pictures in this folder")
    p.add_argument("--sheet", type=Path, help="write a contact sheet")
    p.add_argument("--columns", type=int, default=8)
    p.add_argument("--sheet-count", type=int, default=32)
    p.add_argument("--write-prompts", type=Path)
    args = p.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    tests = scenes.test_prompts()[:args.prompts]
    prompts = [t for _, t in tests]
    if args.write_prompts:
        args.write_prompts.write_text("".join(t + "\n" for t in prompts))
        return
    if args.pictures:
        pictures = [np.asarray(Image.open(args.pictures / f"{i:03d}.png").convert("RGB")) for i in range(len(tests))]
    else:
        pictures = list(generate(args, prompts))
    if args.keep:
        args.keep.mkdir(parents=True, exist_ok=True)
        for i, picture in enumerate(pictures):
            Image.fromarray(picture).save(args.keep / f"{i:03d}.png")
    if args.sheet:
        small = [np.asarray(ImageOps.scale(Image.fromarray(picture), SHEET_CELL / min(picture.shape[:2])))
                 for picture in pictures[:args.sheet_count]]
        Image.fromarray(scenes.sheet(small, args.columns)).save(args.sheet, optimize=True)
    model, own = checker.load(args.dir)
    want = torch.tensor([s.labels() for s, _ in tests])
    with torch.no_grad():
        got = torch.stack([torch.cat([l.argmax(-1) for l in model(checker.prepare([picture]))])
                           for picture in pictures])
    hits = (got == want).float()
    print(json.dumps({"pictures": len(tests), "right": dict(zip(checker.NAMES, hits.mean(0).round(decimals=3).tolist())),
                      "all six": round(float(hits.prod(1).mean()), 3), "checker on held-out renders": own}, indent=2))


if __name__ == "__main__":
    main()
