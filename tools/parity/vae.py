"""vae.safetensors: decoder and encoder of pipeline_sd1/vae and of pipeline_xl/vae, odd sizes too."""
import torch
from diffusers import AutoencoderKL

import common
import unet_models
import vae_models

MODELS = [("sd1", "pipeline_sd1/vae", 301, {"scaling_factor": 0.18215}),
          ("xl", "pipeline_xl/vae", 302, {"scaling_factor": 0.13025, "layers_per_block": 2,
                                          "block_out_channels": (8, 8, 16, 16)})]
SIZES = [(8, 8), (12, 8), (7, 5), (1, 3)]


def main():
    tensors, cases = {}, []
    for name, where, seed, extra in MODELS:
        model = vae_models.make(seed, **extra)
        path = common.folder(where)
        unet_models.save(model, path)
        again = AutoencoderKL.from_pretrained(path)
        low = AutoencoderKL.from_pretrained(path).to(torch.bfloat16)
        for i, (h, w) in enumerate(SIZES if name == "sd1" else SIZES[2:3]):
            case = f"{name}_{h}x{w}"
            latent = common.randn((2 if h * w < 40 else 1, 4, h, w), seed * 10 + i, 1.5)
            image = torch.tanh(common.randn((1, 3, 8 * h, 8 * w), seed * 10 + 5 + i))
            out = model.decode(latent).sample
            assert torch.equal(out, again.decode(latent).sample)
            out_bf16 = low.decode(latent.bfloat16()).sample
            tensors.update({f"{case}.latent": latent, f"{case}.image": out})
            if (h, w) == (7, 5):
                tensors[f"{case}.image_bf16"] = out_bf16
                moments = model.encode(image).latent_dist.parameters
                tensors.update({f"{case}.encode_in": image, f"{case}.moments": moments})
            cases.append({"name": case, "model": where})
            print(case, f"std {out.std():.2f} bf16 error {common.rel_l2(out_bf16, out):.2e}")
        print(unet_models.parameters(model))
    common.save_tensors(common.folder() / "vae.safetensors", tensors)
    common.save_json(common.folder() / "vae.json", cases)


if __name__ == "__main__":
    common.check_versions()
    main()
