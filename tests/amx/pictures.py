#!/usr/bin/env python3
"""Latents in bf16 on a processor that pretends to have AMX, beside those of this one and of float32. Usage:
pictures.py LIBRARY TESSERAD FIXTURES. TAP on stdout."""
import math
import os
import pathlib
import struct
import subprocess
import sys
import tempfile

import pretend

library, program, fixtures = sys.argv[1], sys.argv[2], pathlib.Path(sys.argv[3])
number = 0


def claim(name, holds, why=""):
    global number
    number += 1
    print(f"{'ok' if holds else 'not ok'} {number} - {name}")
    if not holds:
        print("# " + why.replace("\n", "\n# "))


def make(model, dtype, devices, folder, pretended=None):
    """The final latents, and the program's words."""
    file = pathlib.Path(folder) / "latents.safetensors"
    arguments = ["generate", "--model", str(fixtures / model), "--prompt", "a lake at dawn", "--size", "64x96", "--steps", "4",
                 "--dtype", dtype, "--devices", devices, "--profile", "--latents-out", str(file), "-o", folder + "/p.png"]
    options = {"capture_output": True, "text": True, "timeout": 200}
    done = pretended.run(arguments, **options) if pretended else subprocess.run([program, *arguments], **options)
    words = done.stdout + done.stderr
    if done.returncode:
        return [], f"exit status {done.returncode}\n{words[-500:]}"
    data = file.read_bytes()
    size, = struct.unpack_from("<Q", data)
    return [x for x, in struct.iter_unpack("<f", data[8 + size:])], words


def error(have, want):
    if len(have) != len(want) or not want or not all(map(math.isfinite, have)):
        return math.inf
    return math.sqrt(sum((a - b) ** 2 for a, b in zip(have, want)) / sum(b * b for b in want))


def kernels(words):
    """By kind of op, what computed them; and the products that were counted."""
    found, products = {}, 0
    for line in map(str.split, words.splitlines()):
        if "GFLOP/s" in line:
            found.setdefault(line[3], set()).add(line[4])
        if line[:1] == ["amx:"]:
            products = int(line[1])
    return found, products


def main():
    reason = pretend.why_not()
    if reason:
        print(f"1..1\nok 1 - pictures with AMX # SKIP {reason}")
        return
    os.environ["AMX_COUNTS"] = "1"
    with tempfile.TemporaryDirectory() as folder, pretend.Pretended(library, program) as pretended:
        for model in "pipeline_sd1", "pipeline_xl":
            exact, _ = make(model, "f32", "cpu:1x1", folder)
            plain, _ = make(model, "bf16", "cpu:1x1", folder)
            bound = 1.5 * error(plain, exact) + 1e-3
            claim(f"{model} is made without AMX", bound < 0.1, f"{bound}")
            for devices in "cpu:1x1", "cpu:2x1", "cpu:1x2":
                have, words = make(model, "bf16", devices, folder, pretended)
                by_kind, products = kernels(words)
                used = (products > 10000 and by_kind.get("attention") == {"amx"} and
                        all(any("amx_bf16" in k for k in by_kind.get(kind, ())) for kind in ("conv2d", "linear")))
                claim(f"{model} on {devices}: attention and oneDNN's products use AMX", used,
                      f"{products} products, {by_kind}\n{words[-500:]}")
                claim(f"{model} on {devices}: as near to float32 as without AMX", error(have, exact) <= bound < 0.1,
                      f"{error(have, exact):.2e}, over {bound:.2e}\n{words[-500:]}")
    print(f"1..{number}")


main()
