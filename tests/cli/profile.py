#!/usr/bin/env python3
"""`tesserad generate --profile` of a whole model names no scalar kernel for what takes the time; it would make the same
picture, thirty times slower. Usage: profile.py TESSERAD MODEL. TAP on stdout."""
import pathlib
import subprocess
import sys
import tempfile

program, model = sys.argv[1:3]
heavy = {"conv2d", "linear", "attention", "group_norm", "layer_norm", "geglu"}
with tempfile.TemporaryDirectory() as folder:
    done = subprocess.run([program, "generate", "--model", model, "--prompt", "a lake", "--size", "256x256", "--steps", "2",
                           "--dtype", "f32", "--devices", "cpu:2", "--profile", "-o", str(pathlib.Path(folder) / "p.png")],
                          capture_output=True, text=True, timeout=120)
lines = [line.split() for line in (done.stdout + done.stderr).splitlines() if " GFLOP/s " in line]
rows = [(words[3], words[4]) for words in lines]  # milliseconds, "ms", share, kind, kernel
print("1..3")
print("ok 1 - a profile" if done.returncode == 0 and len(rows) > 100 else f"not ok 1 - a profile\n# {done.stderr[-500:]}")
print(f"{'ok' if heavy <= {kind for kind, _ in rows} else 'not ok'} 2 - of every kind of op")
slow = sorted({kind for kind, kernel in rows if kind in heavy and kernel == "ref"})
print(f"{'not ok' if slow else 'ok'} 3 - none of them by the reference {' '.join(slow)}")
