"""blocks/: one file a kind of block, with its weights (float16, names of the module's state_dict), inputs and outputs."""
import torch
from diffusers.models.downsampling import Downsample2D
from diffusers.models.embeddings import TimestepEmbedding, get_timestep_embedding
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.unets import unet_2d_blocks as blocks
from diffusers.models.upsampling import Upsample2D
from safetensors.torch import save_file

import common
import unet_models

TEMB, EHS, HEADS, GROUPS = 64, 32, 2, 8
cases = []


def save(name, module, inputs, outputs, params):
    tensors = {k: v.half() for k, v in module.state_dict().items()}
    assert not set(tensors) & {*inputs, *outputs}
    tensors.update({k: torch.as_tensor(v).float() for k, v in {**inputs, **outputs}.items()})
    save_file({k: v.contiguous().clone() for k, v in tensors.items()}, str(common.folder("blocks") / f"{name}.safetensors"))
    cases.append({"file": f"{name}.safetensors", "class": type(module).__name__, "inputs": sorted(inputs),
                  "outputs": sorted(outputs), "params": params})
    print(name, sum(v.numel() for v in module.parameters()),
          {k: f"{tuple(v.shape)} {v.float().std():.2f}" for k, v in outputs.items()})


def ready(module, seed):
    return unet_models.round_to_half(common.randomise(module, seed))


def states(channels, h, w, seed):
    """x, temb and ehs of a batch of two."""
    return (common.randn((2, channels, h, w), seed), common.randn((2, TEMB), seed + 1),
            common.randn((2, 21, EHS), seed + 2))


def resnets():
    for name, cin, cout, eps in (("resnet", 16, 16, 1e-5), ("resnet_shortcut", 24, 16, 1e-6)):
        p = {"in_channels": cin, "out_channels": cout, "temb_channels": TEMB, "groups": GROUPS, "eps": eps}
        m = ready(ResnetBlock2D(**p), 401)
        x, temb, _ = states(cin, 7, 5, 410)
        save(name, m, {"x": x, "temb": temb}, {"out": m(x, temb)}, p)
    p = {"in_channels": 8, "out_channels": 16, "temb_channels": None, "groups": 4, "eps": 1e-6}
    m = ready(ResnetBlock2D(**p), 402)
    x = states(8, 6, 9, 411)[0]
    save("resnet_no_temb", m, {"x": x}, {"out": m(x, None)}, p)
    # As wide and as deep as a layer must be to be computed by Winograd's algorithm.
    p = {"in_channels": 64, "out_channels": 64, "temb_channels": None, "groups": 16, "eps": 1e-6}
    m = ready(ResnetBlock2D(**p), 404)
    x = states(64, 5, 34, 412)[0]
    save("resnet_wide", m, {"x": x}, {"out": m(x, None)}, p)


def transformers():
    for name, linear, layers in (("transformer_conv", False, 1), ("transformer_linear", True, 1),
                                 ("transformer_linear_2", True, 2), ("transformer_conv_2", False, 2)):
        p = {"num_attention_heads": HEADS, "attention_head_dim": 8, "in_channels": 16, "num_layers": layers,
             "cross_attention_dim": EHS, "norm_num_groups": GROUPS, "use_linear_projection": linear}
        m = ready(Transformer2DModel(**p), 403)
        x, _, ehs = states(16, 7, 5, 420)
        save(name, m, {"x": x, "ehs": ehs}, {"out": m(x, encoder_hidden_states=ehs).sample}, p)


def samplers():
    for name, padding in (("downsample", 1), ("downsample_vae", 0)):
        p = {"channels": 16, "use_conv": True, "padding": padding, "name": "op"}
        m = ready(Downsample2D(**p), 404)
        even, odd = states(16, 8, 6, 430)[0], states(16, 7, 5, 431)[0]
        save(name, m, {"x": even, "x_odd": odd}, {"out": m(even), "out_odd": m(odd)}, p)
    p = {"channels": 16, "use_conv": True}
    m = ready(Upsample2D(**p), 405)
    x = states(16, 4, 3, 432)[0]
    save("upsample", m, {"x": x}, {"out": m(x), "out_7x5": m(x, output_size=(7, 5)), "out_7x6": m(x, output_size=(7, 6)),
                                   "out_8x5": m(x, output_size=(8, 5))}, p)


def unet_blocks():
    attention = {"num_attention_heads": HEADS, "cross_attention_dim": EHS}
    base = {"temb_channels": TEMB, "resnet_groups": GROUPS, "resnet_eps": 1e-5}
    for name, cls, extra in (("down", blocks.DownBlock2D, {"downsample_padding": 1}),
                             ("down_last", blocks.DownBlock2D, {"add_downsample": False}),
                             ("cross_attn_down", blocks.CrossAttnDownBlock2D, {**attention, "downsample_padding": 1}),
                             ("cross_attn_down_linear", blocks.CrossAttnDownBlock2D, {
                                 **attention, "downsample_padding": 1, "use_linear_projection": True,
                                 "transformer_layers_per_block": 2, "num_layers": 1}),
                             ("cross_attn_down_last", blocks.CrossAttnDownBlock2D,
                              {**attention, "add_downsample": False, "num_layers": 1})):
        p = {"in_channels": 8, "out_channels": 16, "num_layers": 2, **base, **extra}
        m = ready(cls(**p), 406)
        x, temb, ehs = states(8, 7, 6, 440)
        inputs = {"x": x, "temb": temb}
        if "cross_attn" in name:
            inputs["ehs"] = ehs
            out, res = m(x, temb, encoder_hidden_states=ehs)
        else:
            out, res = m(x, temb)
        save(name, m, inputs, {"out": out, **{f"res{i}": r for i, r in enumerate(res)}}, p)

    p = {"in_channels": 16, **base, **attention}
    m = ready(blocks.UNetMidBlock2DCrossAttn(**p), 407)
    x, temb, ehs = states(16, 5, 4, 450)
    save("mid_cross_attn", m, {"x": x, "temb": temb, "ehs": ehs}, {"out": m(x, temb, encoder_hidden_states=ehs)}, p)

    for name, cls, extra in (("up", blocks.UpBlock2D, {}), ("up_last", blocks.UpBlock2D, {"add_upsample": False}),
                             ("cross_attn_up", blocks.CrossAttnUpBlock2D, attention),
                             ("cross_attn_up_last", blocks.CrossAttnUpBlock2D,
                              {**attention, "add_upsample": False, "use_linear_projection": True})):
        p = {"in_channels": 8, "prev_output_channel": 24, "out_channels": 16, "num_layers": 2, **base, **extra}
        m = ready(cls(**p), 408)
        x, temb, ehs = states(24, 4, 3, 460)
        # the states that the way down left: the last is taken first, and the block's first was the level's input
        res = [common.randn((2, c, 4, 3), 470 + i) for i, c in enumerate((8, 16))]
        inputs = {"x": x, "temb": temb, **{f"res{i}": r for i, r in enumerate(res)}}
        extra_args = {}
        if "cross_attn" in name:
            inputs["ehs"] = extra_args["encoder_hidden_states"] = ehs
        outputs = {"out": m(x, tuple(res), temb, **extra_args)}
        if "last" not in name:
            outputs["out_7x5"] = m(x, tuple(res), temb, upsample_size=(7, 5), **extra_args)
        save(name, m, inputs, outputs, p)


def vae_blocks():
    p = {"in_channels": 16, "temb_channels": None, "resnet_groups": 4, "resnet_eps": 1e-6, "attention_head_dim": 16,
         "add_attention": True}
    m = ready(blocks.UNetMidBlock2D(**p), 409)
    x = states(16, 7, 5, 480)[0]
    save("vae_mid", m, {"x": x}, {"out": m(x)}, p)
    p = {"in_channels": 16, "out_channels": 8, "num_layers": 2, "resnet_groups": 4, "resnet_eps": 1e-6}
    m = ready(blocks.UpDecoderBlock2D(**p), 410)
    save("vae_up", m, {"x": x}, {"out": m(x)}, p)
    p = {"in_channels": 16, "out_channels": 8, "num_layers": 1, "resnet_groups": 4, "resnet_eps": 1e-6,
         "downsample_padding": 0}
    m = ready(blocks.DownEncoderBlock2D(**p), 411)
    save("vae_down", m, {"x": x}, {"out": m(x)}, p)


def time():
    p = {"in_channels": 16, "time_embed_dim": TEMB, "flip_sin_to_cos": True, "freq_shift": 0}
    m = ready(TimestepEmbedding(16, TEMB), 412)
    t = torch.tensor([0.0, 1.0, 501.0, 958.25, 999.0])
    sinusoid = get_timestep_embedding(t, 16, flip_sin_to_cos=True, downscale_freq_shift=0)
    other = get_timestep_embedding(t, 16, flip_sin_to_cos=False, downscale_freq_shift=1)
    wide = get_timestep_embedding(t, 320, flip_sin_to_cos=True, downscale_freq_shift=0)
    save("time", m, {"t": t}, {"sinusoid": sinusoid, "sinusoid_unflipped_shift1": other, "sinusoid_320": wide,
                               "out": m(sinusoid)}, p)


def main():
    resnets(), transformers(), samplers(), unet_blocks(), vae_blocks(), time()
    common.save_json(common.folder("blocks") / "blocks.json", cases)


if __name__ == "__main__":
    common.check_versions()
    main()
