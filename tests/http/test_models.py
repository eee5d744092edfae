"""What the configuration makes of the models that it loads."""
import json
import pathlib
import struct
import subprocess

from daemon import PROGRAM, model
from test_images import picture

VAE = pathlib.Path(model()) / "vae" / "diffusion_pytorch_model.safetensors"


def grey_vae(path):
    """The model's own autoencoder, whose last convolution adds nothing: every picture is of one colour."""
    data = bytearray(VAE.read_bytes())
    size = struct.unpack("<Q", data[:8])[0]
    begin, end = json.loads(data[8:8 + size])["decoder.conv_out.weight"]["data_offsets"]
    data[8 + size + begin:8 + size + end] = bytes(end - begin)
    path.write_bytes(data)
    return path


def colours(made):
    return {made.pixels[i:i + 3] for i in range(0, len(made.pixels), 3)}


def test_another_autoencoder_takes_the_place_of_the_first_models(start, tmp_path):
    assert len(colours(picture(start().pictures(seed=1)))) > 10
    assert len(colours(picture(start({"models": {"vae": grey_vae(tmp_path / "grey.safetensors")}}).pictures(seed=1)))) == 1


def test_what_is_no_autoencoder_ends_the_start(tmp_path):
    file = pathlib.Path(model()) / "unet" / "diffusion_pytorch_model.safetensors"
    run = subprocess.run([PROGRAM, "--model", model(), "--vae", str(file), "--listen", "127.0.0.1:0"],
                         capture_output=True, text=True, timeout=60)
    assert run.returncode == 1 and "holds no autoencoder" in run.stderr
