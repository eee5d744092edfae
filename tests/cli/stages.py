#!/usr/bin/env python3
"""`tesserad generate --dump`, stage by stage against diffusers' pipelines. Usage: stages.py TESSERAD FIXTURES. TAP on
stdout."""
import json
import math
import pathlib
import struct
import subprocess
import sys
import tempfile

program, fixtures = sys.argv[1], pathlib.Path(sys.argv[2])
folder = tempfile.TemporaryDirectory()
number = 0


def claim(name, holds):
    global number
    number += 1
    print(f"{'ok' if holds else 'not ok'} {number} - {name}")


def close(name, have, want, bound):
    """Relative L2."""
    error = math.inf
    if len(have) == len(want) and all(map(math.isfinite, have)):
        error = math.sqrt(sum((a - b) ** 2 for a, b in zip(have, want)) / sum(b * b for b in want))
    claim(f"{name}: {bound:g}", error <= bound)
    if error > bound:
        print(f"# {error:g}")


class Tensors:
    """float32 tensors of a safetensors file."""

    def __init__(self, path):
        self.data = pathlib.Path(path).read_bytes()
        size, = struct.unpack_from("<Q", self.data)
        self.header, self.begin = json.loads(self.data[8:8 + size]), 8 + size

    def shape(self, name):
        return self.header[name]["shape"]

    def __getitem__(self, name):
        begin, end = self.header[name]["data_offsets"]
        return struct.unpack_from(f"<{(end - begin) // 4}f", self.data, self.begin + begin)


def generate(model, *options):
    return subprocess.run([program, "generate", "--model", str(fixtures / model), "--dtype", "f32", "-o",
                           f"{folder.name}/p.png", *options], capture_output=True, text=True, timeout=200)


def dump(model, case, *options):
    path = f"{folder.name}/dump.safetensors"
    if case["negative"] is not None:
        options += "--negative", case["negative"]
    done = generate(model, "--prompt", case["prompt"], "--seed", str(case["seed"]), "--steps", str(case["steps"]),
                    "--size", f"{case['width']}x{case['height']}", "--guidance", str(case["guidance"]), "--dump", path,
                    "--latents-out", f"{folder.name}/latents", *options)
    if done.returncode:
        print("#", done.stderr)
    return Tensors(path)


def first_ddim_step(scheduler, steps, noise, prediction):
    """(Song et al. 2021, arXiv 2010.02502, 12; timesteps as diffusers' "leading" spacing places them.)"""
    n, low, high = scheduler["num_train_timesteps"], scheduler["beta_start"] ** 0.5, scheduler["beta_end"] ** 0.5
    alphas = [1.0]
    for i in range(n):
        alphas.append(alphas[-1] * (1 - (low + (high - low) * i / (n - 1)) ** 2))
    t = (steps - 1) * (n // steps) + scheduler["steps_offset"]
    now, then = alphas[t + 1], alphas[t + 1 - n // steps]
    return [math.sqrt(then) * (x - math.sqrt(1 - now) * e) / math.sqrt(now) + math.sqrt(1 - then) * e
            for x, e in zip(noise, prediction)]


def check(model, name, how, *options):
    case = next(c for c in json.loads((fixtures / f"{model}.json").read_text())["cases"] if c["name"] == name)
    want, have = Tensors(fixtures / f"{model}.safetensors"), dump(model, case, *options)
    label = f"{model}, {how}"
    guided = case["guidance"] > 1
    close(f"{label}: noise", have["noise"], want[f"{name}.noise"], 1e-6)
    text = want[f"{name}.negative_embeds"] + want[f"{name}.prompt_embeds"] if guided else want[f"{name}.prompt_embeds"]
    close(f"{label}: embeddings", have["text"], text, 1e-4)
    if "pooled" in have.header:
        close(f"{label}: pooled", have["pooled"], want[f"{name}.negative_pooled"] + want[f"{name}.pooled"], 1e-4)
    latents, expected = have["latents"], want[f"{name}.latents"]
    claim(f"{label}: shapes", have.shape("latents") == want.shape(f"{name}.latents") and
          have.shape("prediction") == [2 if guided else 1, *have.shape("noise")[1:]])
    size = len(have["noise"])
    for i in range(case["steps"]):
        at = slice(i * size, (i + 1) * size)
        close(f"{label}: latent {i + 1}", latents[at], expected[at], 1e-4)
    claim(f"{label}: the last one is that of --latents-out",
          Tensors(f"{folder.name}/latents")["latents"] == latents[-size:])
    scheduler = json.loads((fixtures / model / "scheduler" / "scheduler_config.json").read_text())
    if scheduler["_class_name"] == "DDIMScheduler":
        p, g = have["prediction"], case["guidance"]
        mixed = [u + g * (c - u) for u, c in zip(p[:size], p[size:])] if guided else p
        close(f"{label}: the prediction leads to the first latent",
              first_ddim_step(scheduler, case["steps"], have["noise"], mixed), expected[:size], 1e-4)


check("pipeline_sd1", "ddim", "one device", "--devices", "cpu:1")
check("pipeline_sd1", "ddim", "two devices", "--devices", "cpu:2", "--mode", "sync")
check("pipeline_sd1", "ddim", "two branches", "--devices", "cpu:2", "--mode", "sync", "--cfg-split", "on")
check("pipeline_sd1", "ddim_no_guidance", "no guidance", "--devices", "cpu:1")
check("pipeline_xl", "negative", "one device", "--devices", "cpu:1")
def check_long(name):
    """Text of more chunks than one: all of it is there, of both branches."""
    case = next(c for c in json.loads((fixtures / "prompts.json").read_text())["cases"] if c["name"] == name)
    have = dump(case["folder"], {**case, "seed": 1, "steps": 1, "width": 64, "height": 64, "guidance": 5})
    want = Tensors(fixtures / "prompts.safetensors")
    claim(f"{name}: shape of the embeddings", have.shape("text")[1] == 77 * case["chunks"])
    close(f"{name}: embeddings", have["text"], want[f"{name}.negative_embeds"] + want[f"{name}.prompt_embeds"], 1e-4)


check_long("sd1_long")
check_long("xl_long_negative")
done = generate("pipeline_sd1", "--prompt", "a", "--batch", "2", "--dump", f"{folder.name}/two")
claim("of one picture only", done.returncode == 2 and "--dump" in done.stderr)
print(f"1..{number}")
