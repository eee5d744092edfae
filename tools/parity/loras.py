"""loras/ and loras.json: LoRA files in each layout, and what the small pipelines make of them once diffusers (or, of its
own kinds, LyCORIS) has fused them. Needs peft (0.21.2) and lycoris-lora (4.1.3)."""
import json

import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from lycoris.modules.full import FullModule
from lycoris.modules.locon import LoConModule
from lycoris.modules.loha import LohaModule
from lycoris.modules.lokr import LokrModule
from lycoris.modules.norms import NormModule
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file

import common
import pipelines
import single_file
import unet_models

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
TEXT = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
CLASSES = {"sd1": StableDiffusionPipeline, "xl": StableDiffusionXLPipeline}
CASE = {**pipelines.BASE, "seed": 11}


def open_pipeline(kind):
    pipe = CLASSES[kind].from_pretrained(common.folder(f"pipeline_{kind}"), torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def layers(module, ends):
    return {n: m for n, m in module.named_modules()
            if isinstance(m, (torch.nn.Linear, torch.nn.Conv2d)) and n.endswith(tuple(ends))}


def matrices(m, rank, seed):
    """down and up of a size that changes the layer by a third or so."""
    w = m.weight
    down = common.randn((rank, *w.shape[1:]), seed, w[0].numel() ** -0.5)
    up = common.randn((w.shape[0], rank, *(1 for _ in w.shape[2:])), seed + 1, 0.25)
    return down.half(), up.half()


def kohya(choices, name=lambda n: n):
    """choices: by prefix, the module, the layers' endings, the rank and the alpha.

    diffusers passes over a text encoder's attention where out_proj is not among the layers, and gives a layer without
    an alpha that of the others: neither is in the files here."""
    out, seed = {}, 1000
    for prefix, module, ends, rank, alpha in choices:
        for n, m in layers(module, ends).items():
            theirs = "text_model." + n.removeprefix("text_model.") if prefix.startswith("lora_te") else name(n)
            key = prefix + theirs.replace(".", "_")
            seed += 2
            down, up = matrices(m, rank, seed)
            out[f"{key}.lora_down.weight"], out[f"{key}.lora_up.weight"] = down, up
            out[f"{key}.alpha"] = torch.tensor(alpha)
    return out


def kohya_sd1(pipe):
    unet, text = pipe.unet, pipe.text_encoder
    return kohya([
        ("lora_unet_", unet, ("attn1.to_q", "attn1.to_k", "attn2.to_v", "to_out.0"), 4, 2.0),
        ("lora_unet_", unet, ("ff.net.0.proj", "ff.net.2", "proj_in", "proj_out"), 3, 3),  # alpha is I64
        ("lora_te_", text, ("q_proj", "out_proj", "fc1"), 2, 1.0)]), None


def locon_sd1(pipe):
    """LyCORIS' LoCon: convolutions too, of every place."""
    return kohya([
        ("lora_unet_", pipe.unet, ("resnets.0.conv1", "resnets.1.conv2", "conv_shortcut", "downsamplers.0.conv",
                                   "upsamplers.0.conv", "time_emb_proj", "attn2.to_k"), 2, 1.5),
        ("lora_unet_", pipe.unet, ("conv_in", "conv_out"), 2, 2.0)]), None


def sgm_xl(pipe):
    """As sd-scripts writes XL: the U-Net in the LDM layout's names, both text encoders."""
    names = single_file.unet_names(pipe.unet.config)

    def ldm(n):
        stem = n
        while stem not in names:
            stem = stem.rpartition(".")[0]
        return names[stem] + n[len(stem):]

    return kohya([
        ("lora_unet_", pipe.unet, ("attn1.to_k", "attn2.to_v", "to_out.0", "ff.net.0.proj", "proj_in"), 2, 1.0),
        ("lora_unet_", pipe.unet, ("resnets.0.conv1", "resnets.1.conv2", "time_emb_proj", "downsamplers.0.conv"), 1, 0.5),
        ("lora_te1_", pipe.text_encoder, ("q_proj", "out_proj", "fc2"), 2, 1.0),
        ("lora_te2_", pipe.text_encoder_2, ("k_proj", "out_proj", "fc1"), 2, 2.0)], ldm), None


def peft_adapters(pipe, parts, dtype):
    """Adapters as peft makes them, saved as diffusers' training scripts do, alpha in the metadata."""
    found, metadata = {}, {}
    for part, config in parts.items():
        module = getattr(pipe, part)
        module.add_adapter(LoraConfig(**config))
        seed = 2000
        for n, p in module.named_parameters():
            if ".lora_" in n:
                seed += 1
                p.copy_(common.randn(p.shape, seed, 0.25 if "lora_B" in n else p[0].numel() ** -0.5).to(dtype))
        found |= {f"{part}.{k}": v.to(dtype) for k, v in get_peft_model_state_dict(module).items()}
        config = module.peft_config["default"].to_dict() | {"base_model_name_or_path": part}
        config = {k: sorted(v) if isinstance(v, set) else v for k, v in config.items()}
        metadata |= {f"{part}.{k}": v for k, v in config.items()}
    return found, metadata


def peft_sd1(pipe):
    return peft_adapters(pipe, {
        "unet": dict(r=2, lora_alpha=3, target_modules=list(ATTENTION) + ["conv1"],
                     alpha_pattern={"down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q": 1},
                     rank_pattern={"mid_block.attentions.0.transformer_blocks.0.attn2.to_k": 1}),
        "text_encoder": dict(r=2, lora_alpha=4, target_modules=["q_proj", "k_proj", "out_proj"])}, torch.float32)


def peft_xl(pipe):
    return peft_adapters(pipe, {
        "unet": dict(r=2, lora_alpha=2, use_rslora=True, target_modules=list(ATTENTION)),
        "text_encoder_2": dict(r=2, lora_alpha=1, target_modules=["v_proj", "fc2"])}, torch.bfloat16)


def old_sd1(pipe):
    """diffusers before peft: processors of the U-Net's attention, linear layers of the text encoder; no alphas."""
    out, seed = {}, 3000
    for n, m in layers(pipe.unet, ATTENTION).items():
        stem, _, leaf = n.rpartition(".to_")
        down, up = matrices(m, 2, seed := seed + 2)
        key = f"unet.{stem}.processor.to_{leaf.removesuffix('.0')}_lora"
        out[f"{key}.down.weight"], out[f"{key}.up.weight"] = down, up
    for n, m in layers(pipe.text_encoder, TEXT).items():
        down, up = matrices(m, 2, seed := seed + 2)
        key = "text_encoder.text_model." + n.removeprefix("text_model.")
        out[f"{key}.lora_linear_layer.down.weight"], out[f"{key}.lora_linear_layer.up.weight"] = down, up
    return out, None


# Of the U-Net and, below, the text encoder: what ends so gets such a module. dim 4 in a layer this small is what LyCORIS
# decomposes at, so factors are small too.
LYCO = [
    ("attn1.to_q", LohaModule, dict(lora_dim=2, alpha=1.0)),
    ("resnets.0.conv1", LohaModule, dict(lora_dim=2, alpha=2.0)),
    ("resnets.0.conv2", LohaModule, dict(lora_dim=3, alpha=2.0, use_tucker=True)),
    ("attn1.to_k", LokrModule, dict(lora_dim=100, alpha=1.0, factor=4)),
    ("attn1.to_v", LokrModule, dict(lora_dim=2, alpha=1.5, factor=2)),
    ("ff.net.0.proj", LokrModule, dict(lora_dim=1, alpha=0.5, factor=4, decompose_both=True)),
    ("resnets.1.conv1", LokrModule, dict(lora_dim=1, alpha=2.0, factor=2)),
    ("resnets.1.conv2", LokrModule, dict(lora_dim=2, alpha=2.0, factor=2, use_tucker=True)),
    ("upsamplers.0.conv", LokrModule, dict(lora_dim=100, factor=2)),
    ("downsamplers.0.conv", LoConModule, dict(lora_dim=3, alpha=1.0, use_tucker=True)),
    ("time_emb_proj", FullModule, {}), ("conv_shortcut", FullModule, {}), ("conv_in", FullModule, {}),
    ("norm1", NormModule, {}), ("conv_norm_out", NormModule, {})]
LYCO_TEXT = [("fc1", LokrModule, dict(lora_dim=1, alpha=1.0, factor=2)), ("layer_norm1", NormModule, {}),
             ("fc2", FullModule, {})]
DORA = [
    ("attn1.to_q", LoConModule, dict(lora_dim=2, alpha=1.0, weight_decompose=True)),
    ("attn2.to_k", LoConModule, dict(lora_dim=2, alpha=1.0, weight_decompose=True, wd_on_out=False)),
    ("resnets.0.conv1", LoConModule, dict(lora_dim=2, alpha=2.0, weight_decompose=True)),
    ("resnets.1.conv2", LoConModule, dict(lora_dim=2, alpha=2.0, weight_decompose=True, wd_on_out=False)),
    ("ff.net.2", LohaModule, dict(lora_dim=2, alpha=1.0, weight_decompose=True, wd_on_out=False)),
    ("attn2.to_v", LokrModule, dict(lora_dim=2, alpha=1.0, factor=2, weight_decompose=True))]


def randomise_lycoris(m, seed):
    """Half-precision values of a size that changes the layer noticeably, and the latents by less than float32 can stand."""
    for n, p in m.named_parameters():
        noise, (first, *_) = common.randn(p.shape, seed := seed + 1), p.shape
        if n == "dora_scale":
            p.data = (p * (1 + 0.2 * noise)).half().float()
        elif isinstance(m, (FullModule, NormModule)):
            p.data = p + (0.02 * noise).half().float()
        else:
            size = 0.5 if n.endswith(("_a", "lora_up.weight", "w1")) else 0.3 * p[0].numel() ** -0.5
            p.data = (noise * size).half().float()


def changed_by(m, layer):
    """The weight and the bias that LyCORIS makes of the layer's at a multiplier of one. (Its get_merged_weight applies
    the scale twice; this is what its forward does.)"""
    if isinstance(m, NormModule):
        return layer.weight + m.w_norm, layer.bias + m.b_norm
    if isinstance(m, FullModule):
        return m.weight, m.bias
    change = m.make_weight() * m.scale if isinstance(m, LoConModule) else m.get_weight(m.shape)
    weight = layer.weight + change.reshape(layer.weight.shape)
    return m.apply_weight_decompose(weight, 1) if m.wd else weight, layer.bias


def lycoris(pipe, name):
    """What `name` changes: the key that it has in the file, the module and its layer."""
    parts = [("lora_unet_", pipe.unet, DORA if name == "dora_sd1" else LYCO)]
    if name == "lyco_sd1":
        parts.append(("lora_te_", pipe.text_encoder, LYCO_TEXT))
    found, seed = [], 5000
    for prefix, part, kinds in parts:
        for end, cls, options in kinds:
            for n, layer in part.named_modules():
                if not n.endswith(end) or not hasattr(layer, "weight"):
                    continue
                theirs = "text_model." + n.removeprefix("text_model.") if prefix == "lora_te_" else n
                m = cls(prefix + theirs.replace(".", "_"), layer, 1.0, **options)
                randomise_lycoris(m, seed := seed + 100)
                found.append((prefix + theirs.replace(".", "_"), m, layer))
    return found


def lyco_state(pipe, name):
    state = {}
    for key, m, layer in lycoris(pipe, name):
        if isinstance(m, NormModule):
            state |= {f"{key}.w_norm": m.w_norm, f"{key}.b_norm": m.b_norm}
            continue
        for k, v in m.custom_state_dict().items():
            whole = isinstance(m, FullModule) or k == "alpha"
            state[f"{key}.{k}"] = v.float() if whole else v.bfloat16() if torch.equal(v.bfloat16().float(), v) else v.half()
    return state, None


def lyco_sd1(pipe):
    return lyco_state(pipe, "lyco_sd1")


def dora_sd1(pipe):
    return lyco_state(pipe, "dora_sd1")


def peft_dora_sd1(pipe):
    """PEFT's DoRA, of convolutions too."""
    return peft_adapters(pipe, {"unet": dict(r=2, lora_alpha=3, use_dora=True, target_modules=[
        "to_q", "to_v", "resnets.0.conv1", "conv_shortcut"])}, torch.float32)


def with_lycoris(kind, files):
    """Scale s of what a file changes: W + s (W' - W)."""
    pipe = open_pipeline(kind)
    for name, scale in files.items():
        for _, m, layer in lycoris(pipe, name):
            weight, bias = changed_by(m, layer)
            layer.weight.data = torch.lerp(layer.weight, weight, scale)
            if bias is not None:
                layer.bias.data = torch.lerp(layer.bias, bias, scale)
    return pipe


def save_adapter(module, path, seed, **config):
    """A folder as peft's own save_pretrained writes it."""
    adapted = get_peft_model(module, LoraConfig(**config))
    for n, p in adapted.named_parameters():
        if ".lora_" in n:
            seed += 1
            p.data.copy_(common.randn(p.shape, seed, 0.25 if "lora_B" in n else p[0].numel() ** -0.5).half())
    adapted.half().save_pretrained(path)
    (path / "README.md").unlink()
    (path / "adapter_model.safetensors").chmod(0o644)
    # What depends on the run: where the model lay, the order of a set.
    config = path / "adapter_config.json"
    told = json.loads(config.read_text())
    told |= {"base_model_name_or_path": None, "target_modules": sorted(told["target_modules"])}
    common.save_json(config, told)


ADAPTERS = {
    "adapter_unet": ("unet", dict(r=2, lora_alpha=3, target_modules=[*ATTENTION, "conv1"], use_rslora=True,
                                  alpha_pattern={"down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q": 1})),
    "adapter_text": ("text_encoder", dict(r=3, lora_alpha=4, target_modules=["q_proj", "out_proj", "fc1"])),
}

FILES = {"kohya_sd1": kohya_sd1, "locon_sd1": locon_sd1, "sgm_xl": sgm_xl, "peft_sd1": peft_sd1, "peft_xl": peft_xl,
         "old_sd1": old_sd1, "peft_dora_sd1": peft_dora_sd1, "lyco_sd1": lyco_sd1, "dora_sd1": dora_sd1}
# name, pipeline, files with their scales
CASES = [("kohya", "sd1", {"kohya_sd1": 1.0}), ("kohya at -0.5", "sd1", {"kohya_sd1": -0.5}),
         ("locon", "sd1", {"locon_sd1": 0.75}), ("peft", "sd1", {"peft_sd1": 1.0}), ("old", "sd1", {"old_sd1": 0.8}),
         ("two files", "sd1", {"kohya_sd1": 0.6, "old_sd1": -0.3}), ("sgm", "xl", {"sgm_xl": 0.9}),
         ("peft of xl", "xl", {"peft_xl": 1.0}), ("peft's dora", "sd1", {"peft_dora_sd1": 0.7}),
         ("lycoris", "sd1", {"lyco_sd1": 1.0}), ("lycoris at 0.6", "sd1", {"lyco_sd1": 0.6}),
         ("lycoris' dora", "sd1", {"dora_sd1": 1.0}), ("lycoris' dora at 0.5", "sd1", {"dora_sd1": 0.5})]
ADAPTED = ("peft's own", "sd1", {"adapter_unet": 0.7, "adapter_text": 1.0})


def fused(kind, files):
    pipe = open_pipeline(kind)
    for name in files:
        pipe.load_lora_weights(str(common.folder("loras")), weight_name=f"{name}.safetensors", adapter_name=name)
    pipe.set_adapters(list(files), list(files.values()))
    parts = [p for p in ("unet", "text_encoder", "text_encoder_2") if hasattr(pipe, p)]
    pipe.fuse_lora(components=parts, adapter_names=list(files))
    pipe.unload_lora_weights()
    return pipe


def adapted(kind, folders):
    """With the adapters merged by peft, whose scale is that of its layers."""
    pipe = open_pipeline(kind)
    for name, scale in folders.items():
        part = ADAPTERS[name][0]
        module = PeftModel.from_pretrained(getattr(pipe, part), common.folder("loras") / name)
        for m in module.modules():
            if isinstance(m, LoraLayer):
                m.scale_layer(scale)
        setattr(pipe, part, module.merge_and_unload())
    return pipe


def main():
    cases, tensors, path = [], {}, common.folder("loras")
    for name, make in FILES.items():
        pipe = open_pipeline(name.rpartition("_")[2])
        state, metadata = make(pipe)
        metadata = {"lora_adapter_metadata": json.dumps(metadata, sort_keys=True)} if metadata else {}
        save_file({k: v.contiguous().clone() for k, v in state.items()}, path / f"{name}.safetensors",
                  metadata={"format": "pt", **metadata})
        (path / f"{name}.safetensors").chmod(0o644)
    for name, (part, config) in ADAPTERS.items():
        save_adapter(getattr(open_pipeline("sd1"), part), path / name, 4000, **config)
    for name, kind, files in [*CASES, ADAPTED]:
        make = adapted if name == ADAPTED[0] else with_lycoris if name.startswith("lycoris") else fused
        pipe = make(kind, files)
        plain = open_pipeline(kind)
        found = pipelines.run(pipe, CASE, kind == "xl")
        before = pipelines.run(plain, CASE, kind == "xl")
        io = load_file(common.folder() / f"unet_{kind}.safetensors")
        cond = {k: io[f"16x16.{k}"] for k in ("encoder_hidden_states", "text_embeds", "time_ids") if f"16x16.{k}" in io}
        out = unet_models.call(pipe.unet, io["16x16.sample"], io["16x16.timestep"][0], cond)
        tensors[f"{name}.latents"], tensors[f"{name}.out"] = found["latents"][-1:], out
        changed = common.rel_l2(before["latents"][-1:], found["latents"][-1:])
        print(name, f"latents {found['latents'][-1].std():.2f}, changed by {changed:.2f}")
        cases.append({"name": name, "folder": f"pipeline_{kind}", "io": f"unet_{kind}.safetensors",
                      "files": [{"file": f"loras/{f}" if f in ADAPTERS else f"loras/{f}.safetensors", "scale": s}
                                for f, s in files.items()],
                      "request": CASE, "changed": changed})
    common.save_tensors(common.folder() / "loras.safetensors", tensors)
    common.save_json(common.folder() / "loras.json", cases)


if __name__ == "__main__":
    common.check_versions()
    main()
