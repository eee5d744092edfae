"""unet_KIND.safetensors: whole U-Nets at three sizes, in float32 and in PyTorch's bfloat16.

The models of sd1 and xl are those of the pipelines' folders."""
import torch
from safetensors.torch import load_file
from diffusers import UNet2DConditionModel

import common
import unet_models

CASES = [("16x16", 16, 16, 501.0), ("24x16", 24, 16, 958.25), ("17x13", 17, 13, 1.0)]


def main():
    cases = []
    for kind, seed in (("sd1", 201), ("sd2", 202), ("xl", 203), ("lcm", 204), ("ssd", 205), ("tiny", 206)):
        path = common.folder(unet_models.FOLDERS[kind])
        model = unet_models.make(kind, seed)
        unet_models.save(model, path, bare=kind == "sd1")
        again = UNet2DConditionModel.from_pretrained(path)
        low = UNet2DConditionModel.from_pretrained(path).to(torch.bfloat16)
        tensors, report = {}, []
        for i, (name, h, w, t) in enumerate(CASES):
            cond = unet_models.condition(kind, 2, seed * 10 + i)
            sample = common.randn((2, 4, h, w), seed * 10 + 5 + i)
            step = torch.tensor(t)
            out = unet_models.call(model, sample, step, cond)
            assert torch.equal(out, unet_models.call(again, sample, step, cond))
            half = {k: v if k in ("time_ids", "guidance") else v.bfloat16() for k, v in cond.items()}
            out_bf16 = unet_models.call(low, sample.bfloat16(), step, half)
            tensors.update({f"{name}.{k}": v for k, v in cond.items()})
            tensors.update({f"{name}.sample": sample, f"{name}.timestep": step.reshape(1), f"{name}.out": out,
                            f"{name}.out_bf16": out_bf16})
            report.append(f"{name} std {out.std():.2f} bf16 error {common.rel_l2(out_bf16, out):.2e}")
        common.save_tensors(common.folder() / f"unet_{kind}.safetensors", tensors)
        cases.append({"kind": kind, "model": unet_models.FOLDERS[kind], "io": f"unet_{kind}.safetensors",
                      "sizes": [c[0] for c in CASES]})
        print(kind, unet_models.parameters(model), report)
    common.save_json(common.folder() / "unets.json", cases)


if __name__ == "__main__":
    common.check_versions()
    main()
