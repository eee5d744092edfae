"""single_file.json: how the small pipelines are put together as single files in the LDM/SGM layout.

The names are written out here from the modules of CompVis/latent-diffusion and Stability-AI/generative-models, and
then held against diffusers' own conversion: read back by it, every file must give the weights that it was made of.

    python single_file.py            makes the fixture
    python single_file.py --make PIPELINE FILE  makes such a file of a small pipeline (sd1, xl, sd2, lcm, ssd, tiny)
    python single_file.py --shapes KIND FILE    a file with the shapes of a published model (sd15, sd21, xl) and zeros
                                     that take no room, to try what the shapes alone decide
"""
import json
import struct
import sys

import torch
from safetensors.torch import load_file

import common

# What was distilled from a pipeline's model: the pipeline, and the U-Net in its place. diffusers' conversion does not
# read a middle without attention; ComfyUI does.
DISTILLED = {"lcm": ("sd1", "unet_lcm"), "ssd": ("xl", "unet_ssd"), "tiny": ("sd1", "unet_tiny")}
RESNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1",
          "norm2": "out_layers.0", "conv2": "out_layers.3", "conv_shortcut": "skip_connection"}


def unet_names(config):
    """diffusers' prefix -> LDM's, for the modules in the order in which openaimodel.py makes them."""
    names = {"time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
             "time_embedding.cond_proj": "time_embedding.cond_proj",  # as convert_diffusers_to_original passes it on
             "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
             "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2"}
    levels, layers = len(config["block_out_channels"]), config["layers_per_block"]

    def resnet(ours, theirs):
        names.update({f"{ours}.{a}": f"{theirs}.{b}" for a, b in RESNET.items()})

    number = 1
    for level in range(levels):
        for layer in range(layers):
            resnet(f"down_blocks.{level}.resnets.{layer}", f"input_blocks.{number}.0")
            names[f"down_blocks.{level}.attentions.{layer}"] = f"input_blocks.{number}.1"
            number += 1
        if level + 1 < levels:
            names[f"down_blocks.{level}.downsamplers.0.conv"] = f"input_blocks.{number}.0.op"
            number += 1
    resnet("mid_block.resnets.0", "middle_block.0")
    names["mid_block.attentions.0"] = "middle_block.1"
    resnet("mid_block.resnets.1", "middle_block.2")
    number = 0
    for level, kind in enumerate(config["up_block_types"]):
        for layer in range(layers + 1):
            resnet(f"up_blocks.{level}.resnets.{layer}", f"output_blocks.{number}.0")
            attends = kind.startswith("CrossAttn")
            if attends:
                names[f"up_blocks.{level}.attentions.{layer}"] = f"output_blocks.{number}.1"
            if layer == layers and level + 1 < levels:
                names[f"up_blocks.{level}.upsamplers.0.conv"] = f"output_blocks.{number}.{1 + attends}.conv"
            number += 1
    return names


def vae_names(config):
    levels, layers = len(config["block_out_channels"]), config["layers_per_block"]
    names = {"quant_conv": "quant_conv", "post_quant_conv": "post_quant_conv"}
    for half in "encoder", "decoder":
        names |= {f"{half}.conv_in": f"{half}.conv_in", f"{half}.conv_out": f"{half}.conv_out",
                  f"{half}.conv_norm_out": f"{half}.norm_out",
                  f"{half}.mid_block.resnets.0": f"{half}.mid.block_1",
                  f"{half}.mid_block.resnets.1": f"{half}.mid.block_2"}
        for ours, theirs in {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v",
                             "to_out.0": "proj_out"}.items():
            names[f"{half}.mid_block.attentions.0.{ours}"] = f"{half}.mid.attn_1.{theirs}"
    for level in range(levels):
        for half, ours, theirs, place, count in (("encoder", "down", "down", level, layers),
                                                 ("decoder", "up", "up", levels - 1 - level, layers + 1)):
            stem, ldm = f"{half}.{ours}_blocks.{level}", f"{half}.{theirs}.{place}"
            for layer in range(count):
                for part in "norm1", "conv1", "norm2", "conv2":
                    names[f"{stem}.resnets.{layer}.{part}"] = f"{ldm}.block.{layer}.{part}"
                names[f"{stem}.resnets.{layer}.conv_shortcut"] = f"{ldm}.block.{layer}.nin_shortcut"
            names[f"{stem}.{ours}samplers.0.conv"] = f"{ldm}.{theirs}sample.conv"
    return names


def rename(state, names):
    out = {}
    for key, value in state.items():
        stem = key
        while stem not in names:
            stem = stem.rpartition(".")[0]
            if not stem:
                raise SystemExit(f"no name for {key}")
        out[names[stem] + key[len(stem):]] = value
    return out


def ldm_unet(state, config):
    return {f"model.diffusion_model.{k}": v for k, v in rename(state, unet_names(config)).items()}


def ldm_vae(state, config):
    out = rename(state, vae_names(config))
    # The attention of the LDM autoencoder is made of 1x1 convolutions.
    return {f"first_stage_model.{k}": v[:, :, None, None] if ".attn_1." in k and v.dim() == 2 else v
            for k, v in out.items()}


def ldm_clip(state, prefix):
    return {prefix + (k if k.startswith("text_model.") else f"text_model.{k}"): v for k, v in state.items()}


def open_clip(state, prefix, projection=None):
    """transformers' CLIP to open_clip's: the three projections are one tensor, the last one is transposed."""
    state = {k.removeprefix("text_model."): v for k, v in state.items()}
    out = {"positional_embedding": state["embeddings.position_embedding.weight"],
           "token_embedding.weight": state["embeddings.token_embedding.weight"]}
    for end in "weight", "bias":
        out[f"ln_final.{end}"] = state[f"final_layer_norm.{end}"]
    layer = 0
    while f"encoder.layers.{layer}.layer_norm1.weight" in state:
        ours, theirs = f"encoder.layers.{layer}", f"transformer.resblocks.{layer}"
        for end in "weight", "bias":
            for a, b in (("layer_norm1", "ln_1"), ("layer_norm2", "ln_2"), ("mlp.fc1", "mlp.c_fc"),
                         ("mlp.fc2", "mlp.c_proj"), ("self_attn.out_proj", "attn.out_proj")):
                out[f"{theirs}.{b}.{end}"] = state[f"{ours}.{a}.{end}"]
            out[f"{theirs}.attn.in_proj_{end}"] = torch.cat(
                [state[f"{ours}.self_attn.{p}_proj.{end}"] for p in "qkv"])
        layer += 1
    if projection is None:
        projection = state.get("text_projection.weight")
    if projection is not None:
        out["text_projection"] = projection.T
    return {prefix + k: v.contiguous() for k, v in out.items()}


def read(pipeline, component):
    folder = common.OUT / pipeline / component
    config = json.loads((folder / "config.json").read_text())
    (path,) = folder.glob("*.safetensors")
    state = load_file(path)
    return {k: v for k, v in state.items() if "position_ids" not in k}, config


def pipeline_of(kind):
    return "pipeline_xl" if kind == "xl" else "pipeline_sd1"


def single(kind, get):
    """get(folder) gives a component's state and config."""
    kind, unet = DISTILLED.get(kind, (kind, None))
    pipeline = pipeline_of(kind)
    state = ldm_unet(*get(unet or f"{pipeline}/unet")) | ldm_vae(*get(f"{pipeline}/vae"))
    if kind == "xl":
        state |= ldm_clip(get(f"{pipeline}/text_encoder")[0], "conditioner.embedders.0.transformer.")
        state |= open_clip(get(f"{pipeline}/text_encoder_2")[0], "conditioner.embedders.1.model.")
    elif kind == "sd1":
        state |= ldm_clip(get(f"{pipeline}/text_encoder")[0], "cond_stage_model.transformer.")
    else:
        state |= sd2(*get("text_encoders/sd2"))
    return {k: v.contiguous() for k, v in state.items()}


def sd2(text, config):
    """The text encoder of 2.x, and a last layer that is not used: 2.x takes the one before."""
    last = config["num_hidden_layers"] - 1
    extra = {k.replace(f"layers.{last}.", f"layers.{last + 1}."): v for k, v in text.items() if f".{last}." in k}
    return open_clip(text | extra, "cond_stage_model.model.")


def folder_state(folder):
    return read(*folder.rsplit("/", 1)) if "/" in folder else read("", folder)


def differ(have, want, what):
    have = {k: v for k, v in have.items() if "position_ids" not in k}
    want = {k: v for k, v in want.items() if "position_ids" not in k}
    if have.keys() != want.keys():
        raise SystemExit(f"{what}: {sorted(have.keys() ^ want.keys())[:8]}")
    for key, value in want.items():
        if not torch.equal(have[key].reshape(value.shape).to(value.dtype), value):
            raise SystemExit(f"{what}: {key} differs")


def check(state, pipeline):
    """diffusers' conversion of the file gives the weights that it was made of."""
    from types import SimpleNamespace

    from diffusers.loaders import single_file_utils as theirs

    unet, unet_config = read(pipeline, "unet")
    vae, vae_config = read(pipeline, "vae")
    differ(theirs.convert_ldm_unet_checkpoint(dict(state), config=unet_config), unet, "unet")
    differ(theirs.convert_ldm_vae_checkpoint(dict(state), config=vae_config), vae, "vae")
    text, _ = read(pipeline, "text_encoder")
    bare = lambda s: {k.removeprefix("text_model."): v for k, v in s.items()}
    prefix = "conditioner.embedders.0.transformer." if pipeline.endswith("xl") else "cond_stage_model.transformer."
    differ(bare(theirs.convert_ldm_clip_checkpoint(dict(state), prefix)), bare(text), "text_encoder")
    if pipeline.endswith("xl"):
        second, config = read(pipeline, "text_encoder_2")
        # Their split takes the projection's width for the model's: only its shape is looked at, so give it that.
        prefix = "conditioner.embedders.1.model."
        cut = {k: v for k, v in state.items() if k != prefix + "text_projection"}
        have = theirs.convert_open_clip_checkpoint(
            SimpleNamespace(config=SimpleNamespace(hidden_size=config["hidden_size"])), cut, prefix)
        differ(have, {k: v for k, v in second.items() if k != "text_projection.weight"}, "text_encoder_2")


def shapes(kind, path):
    """A sparse file with the names and shapes of a published model."""
    import diffusers
    import transformers

    xl = kind == "xl"
    unet_config = {
        "sd15": dict(cross_attention_dim=768, attention_head_dim=8),
        "sd21": dict(cross_attention_dim=1024, attention_head_dim=[5, 10, 20, 20], use_linear_projection=True),
        "xl": dict(cross_attention_dim=2048, attention_head_dim=[5, 10, 20], use_linear_projection=True,
                   block_out_channels=(320, 640, 1280), transformer_layers_per_block=[1, 2, 10],
                   down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
                   up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
                   addition_embed_type="text_time", addition_time_embed_dim=256,
                   projection_class_embeddings_input_dim=2816)}[kind]
    large = dict(vocab_size=49408, hidden_act="gelu", hidden_size=1280 if xl else 1024,
                 intermediate_size=5120 if xl else 4096, num_hidden_layers=32 if xl else 24,
                 num_attention_heads=20 if xl else 16, projection_dim=1280 if xl else 1024)
    small = dict(vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12,
                 num_attention_heads=12)
    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel(**unet_config)
        vae = diffusers.AutoencoderKL(block_out_channels=(128, 256, 512, 512), layers_per_block=2,
                                      down_block_types=("DownEncoderBlock2D",) * 4,
                                      up_block_types=("UpDecoderBlock2D",) * 4)
        first = transformers.CLIPTextModel(transformers.CLIPTextConfig(**small))
        second = transformers.CLIPTextModelWithProjection(transformers.CLIPTextConfig(**large))
        state = ldm_unet(unet.state_dict(), unet.config) | ldm_vae(vae.state_dict(), vae.config)
        if xl:
            state |= ldm_clip(first.state_dict(), "conditioner.embedders.0.transformer.")
            state |= open_clip(second.state_dict(), "conditioner.embedders.1.model.")
        elif kind == "sd21":
            state |= open_clip(second.state_dict(), "cond_stage_model.model.")
        else:
            state |= ldm_clip(first.state_dict(), "cond_stage_model.transformer.")
    header, at = {}, 0
    for key, value in state.items():
        size = 2 * value.numel()
        header[key] = {"dtype": "BF16", "shape": list(value.shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + at)


def beside(kind):
    """What the shapes do not tell, for models as small as these, and the small tokenizer."""
    kind, unet = DISTILLED.get(kind, (kind, None))
    pipeline = pipeline_of(kind)

    def config(folder, *keys):
        values = json.loads((common.OUT / folder / "config.json").read_text())
        return {k: values[k] for k in keys}

    scheduler = json.loads((common.OUT / pipeline / "scheduler" / "scheduler_config.json").read_text())
    first = "text_encoders/sd2" if kind == "sd2" else f"{pipeline}/text_encoder"
    out = {"unet": config(unet or f"{pipeline}/unet", "attention_head_dim", "norm_num_groups", "sample_size"),
           "vae": config(f"{pipeline}/vae", "norm_num_groups"), "scheduler": scheduler,
           "text_encoder": config(first, "num_attention_heads", "eos_token_id"), "tokenizer": "tokenizer"}
    if kind == "xl":
        out["text_encoder_2"] = config(f"{pipeline}/text_encoder_2", "num_attention_heads", "eos_token_id")
        out["tokenizer_2"] = "tokenizer_2"
    return out


def recipe(kind):
    """Each tensor of the file: what it is made of, found by following numbers that stand for the tensors."""
    names, seen = [], {}

    def get(folder):
        if folder not in seen:
            state, config = folder_state(folder)
            marked = {}
            for key, value in state.items():
                names.append((folder, key))
                marked[key] = torch.full(value.shape, len(names) - 1, dtype=torch.int32)
            seen[folder] = marked, config
        return seen[folder]

    out = []
    own = "model.diffusion_model." if kind in DISTILLED else "cond_stage_model." if kind == "sd2" else ""
    base, unet = DISTILLED.get(kind, (kind, None))
    pipeline = pipeline_of(base)
    for key, value in single(kind, get).items():
        if not key.startswith(own):
            continue  # as in the kind of `rest`
        marks = list(dict.fromkeys(value.flatten().tolist()))
        (folder,) = {names[m][0] for m in marks}
        entry = {"key": key, "folder": folder, "of": [names[m][1] for m in marks], "shape": list(value.shape)}
        if key.endswith("text_projection"):
            entry["transposed"] = True
        out.append(entry)
    rest = {"rest": "sd1" if kind == "sd2" else base, "own": own} if own else {}
    text = "text_encoders/sd2" if kind == "sd2" else f"{pipeline}/text_encoder"
    return {"kind": kind, "pipeline": pipeline, "unet": unet or f"{pipeline}/unet", "text_encoder": text, **rest,
            "beside": beside(kind), "tensors": out}


def main():
    for kind in "sd1", "xl":
        check(single(kind, folder_state), "pipeline_" + kind)
    (common.OUT / "single_file.json").write_text(compact([recipe(kind) for kind in ("sd1", "sd2", "xl", *DISTILLED)]))


def compact(cases):
    """A tensor a line."""
    lines = []
    for case in cases:
        tensors = ",\n".join(json.dumps(t) for t in case.pop("tensors"))
        lines.append(json.dumps(case)[:-1] + ', "tensors": [\n' + tensors + "]}")
    return "[" + ",\n".join(lines) + "]\n"


def make(kind, path):
    from safetensors.torch import save_file

    save_file({k: v.clone() for k, v in single(kind, folder_state).items()}, path)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--shapes"]:
        shapes(*sys.argv[2:4])
    elif sys.argv[1:2] == ["--make"]:
        make(*sys.argv[2:4])
    else:
        main()
