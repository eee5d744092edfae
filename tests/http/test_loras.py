"""LoRA files: fused at the start, and by name in a request."""
import subprocess

from daemon import PROGRAM, ROOT, model
from png import Png
from test_images import picture

LORAS = ROOT / "tests" / "fixtures" / "loras"
REQUEST = {"prompt": "a lake at dawn", "seed": 7}


def generate(folder, *options):
    """The same picture without a server."""
    out = folder / "out.png"
    subprocess.run([PROGRAM, "generate", "--model", model(), "--prompt", REQUEST["prompt"], "--seed", "7", "--steps", "2",
                    "--size", "64x64", "--devices", "cpu:2", "--dtype", "f32", "-o", str(out), *options], check=True,
                   stderr=subprocess.DEVNULL)
    return Png(out.read_bytes())


def test_a_lora_of_the_configuration_is_in_every_picture(start, tmp_path):
    file = LORAS / "kohya_sd1.safetensors"
    fused = start({"models": {"lora": f"{file}:0.5"}})
    made = picture(fused.pictures(**REQUEST))
    assert made.pixels == generate(tmp_path, "--lora", f"{file}:0.5").pixels
    assert made.pixels != generate(tmp_path).pixels
    assert made.text["parameters"].startswith("a lake at dawn <lora:kohya_sd1:0.5>\n")


def test_a_lora_of_another_model_ends_the_start(tmp_path):
    run = subprocess.run([PROGRAM, "--model", model(), "--lora", str(LORAS / "sgm_xl.safetensors"), "--listen",
                          "127.0.0.1:0"], capture_output=True, text=True, timeout=60)
    assert run.returncode == 1
    assert "sgm_xl.safetensors" in run.stderr and "no such layer" in run.stderr


def test_a_scale_that_cannot_be_is_refused_with_its_line(tmp_path):
    file = tmp_path / "conf"
    file.write_text(f"[models]\npath = {model()}\nlora = a.safetensors:1e9\n")
    run = subprocess.run([PROGRAM, "--config", str(file), "--check-config"], capture_output=True, text=True, timeout=60)
    assert run.returncode == 2 and f"{file}:3" in run.stderr, run.stderr
