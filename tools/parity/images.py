"""images.safetensors and images/*.png: PNG of every kind as PIL reads it, and PIL's resampling."""
import numpy as np
from PIL import Image

import common

SIZES = [((13, 9), (8, 16)), ((64, 48), (24, 16)), ((5, 4), (40, 8)), ((2, 3), (1, 1)), ((31, 17), (31, 40)), ((33, 71), (32, 64)), ((40, 97), (36, 88))]


def noise(height, width, channels, seed):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


def kinds():
    rgb, grey = Image.fromarray(noise(7, 11, 3, 1)), Image.fromarray(noise(7, 11, 1, 2)[..., 0])
    yield "rgb", rgb, {}
    yield "rgba", Image.fromarray(noise(7, 11, 4, 3)), {}
    yield "grey", grey, {}
    yield "grey_alpha", Image.fromarray(noise(7, 11, 2, 4)), {}
    yield "bits", grey.convert("1"), {}
    yield "palette", rgb.quantize(5), {}
    yield "palette_transparent", rgb.quantize(5), {"transparency": 2}
    yield "colour_transparent", rgb, {"transparency": tuple(int(v) for v in np.asarray(rgb)[2, 3])}


def main():
    tensors, folder = {}, common.folder("images")
    for name, image, extra in kinds():
        path = folder / f"{name}.png"
        image.save(path, **extra)
        tensors[f"png.{name}"] = np.asarray(Image.open(path).convert("RGBA")).astype(np.float32)
    for i, ((w, h), size) in enumerate(SIZES):
        picture = noise(h, w, 3, 10 + i)
        resized = Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS)
        tensors[f"resize.{i}.from"] = picture.astype(np.float32)
        tensors[f"resize.{i}.to"] = np.asarray(resized).astype(np.float32)
    rgb = Image.fromarray(noise(6, 5, 3, 20))
    tensors["luma.from"] = np.asarray(rgb).astype(np.float32)
    tensors["luma.to"] = np.asarray(rgb.convert("L")).astype(np.float32)
    common.save_tensors(common.folder() / "images.safetensors", tensors)
    print(f"images: {len(tensors)} tensors")


if __name__ == "__main__":
    common.check_versions()
    main()
