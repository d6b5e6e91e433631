"""Check Lowrank's Stable Diffusion files with diffusers as the reader.

    python diffusers_exchange.py --lowrank target/release/lowrank

Makes an adapter for every linear and convolution layer of a tiny UNet and of tiny text encoders (one as in Stable
Diffusion 1.5, two as in SDXL), each layer with an alpha of its own, and has Lowrank write it as a kohya file and as a
diffusers file. diffusers' own converter must turn the kohya file into the keys and numbers of the other, and its UNet must
load that and compute with `alpha / r * B A`. Needs `pip install diffusers==0.42.1` beside requirements.txt.
"""

import argparse
import subprocess
import tempfile
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders.lora_conversion_utils import (
    _convert_non_diffusers_lora_to_diffusers,
    _maybe_map_sgm_blocks_to_diffusers,
)
from diffusers.utils import (
    convert_state_dict_to_diffusers,
    convert_state_dict_to_kohya,
    convert_state_dict_to_peft,
    convert_unet_state_dict_to_peft,
)
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel

RANK = 2


def sdxl():
    """Levels and layers as SDXL's, whose kohya files have Stability's names."""
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64, 64),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=8,
        norm_num_groups=8,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=64,
    )


def unet():
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=8,
        norm_num_groups=8,
    )


def text_encoder():
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2}
    return CLIPTextModel(CLIPTextConfig(vocab_size=32, **shape))


def layers(model):
    """Paths and shapes of what kohya's trainer adapts."""
    for path, module in model.named_modules():
        if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)):
            yield path, module.weight.shape


def adapter(models, generator):
    """Pairs by path with the model's name in front, and alphas."""
    pairs, alphas = {}, {}
    for name, model in models.items():
        for path, shape in layers(model):
            if name != "unet" and not path.startswith("text_model."):
                path = f"text_model.{path}"
            a = torch.randn((RANK, *shape[1:]), generator=generator)
            b = torch.randn((shape[0], RANK, *(1 for _ in shape[2:])), generator=generator)
            pairs[f"{name}.{path}"] = a, b
            alphas[f"{name}.{path}"] = 1.0 + 0.25 * len(alphas)
    return pairs, alphas


def stability(path):
    """SDXL's path in the words of Stability's code."""
    inner = {"conv1": "in_layers.2", "conv2": "out_layers.3", "time_emb_proj": "emb_layers.1", "conv_shortcut": "skip_connection"}
    outer = {
        "conv_in": "input_blocks.0.0",
        "conv_out": "out.2",
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "add_embedding.linear_1": "label_emb.0.0",
        "add_embedding.linear_2": "label_emb.0.2",
    }
    if path in outer:
        return outer[path]
    side, *rest = path.split(".")
    if side == "mid_block":
        kind, number, *rest = rest
        block = f"middle_block.{1 if kind == 'attentions' else 2 * int(number)}"
    else:
        level, kind, number, *rest = rest
        level, number = int(level), int(number)
        if kind == "downsamplers":
            return f"input_blocks.{3 * level + 3}.0.op"
        if kind == "upsamplers":
            return f"output_blocks.{3 * level + 2}.2.conv"
        at = 3 * level + number + (side == "down_blocks")
        block = f"{'input' if side == 'down_blocks' else 'output'}_blocks.{at}.{int(kind == 'attentions')}"
    rest = ".".join(rest)
    return f"{block}.{inner.get(rest, rest)}"


def kohya(pairs, alphas):
    """The file as kohya's trainer names it: one text encoder is `te`, two are numbered, and the UNet is Stability's."""
    two, out = any(path.startswith("text_encoder_2.") for path in pairs), {}
    for path, (a, b) in pairs.items():
        model, rest = path.split(".", 1)
        prefix = {"unet": "lora_unet", "text_encoder_2": "lora_te2"}.get(model, "lora_te1" if two else "lora_te")
        if model == "unet" and two:
            rest = stability(rest)
        name = f"{prefix}_{rest.replace('.', '_')}"
        out |= {f"{name}.lora_down.weight": a, f"{name}.lora_up.weight": b}
        out[f"{name}.alpha"] = torch.tensor(alphas[path])
    return out


def modern(converted):
    """What diffusers makes of its converter's result before it loads it."""
    out = {}
    for name in ("unet", "text_encoder", "text_encoder_2"):
        part = {k.removeprefix(f"{name}."): v for k, v in converted.items() if k.startswith(f"{name}.")}
        if name == "unet":
            part = convert_unet_state_dict_to_peft(part)
        elif part:
            part = convert_state_dict_to_peft(convert_state_dict_to_diffusers(part))
        out |= {f"{name}.{k}": v for k, v in part.items()}
    return out


def same(what, ours, theirs):
    if ours.keys() != theirs.keys():
        raise SystemExit(f"{what}: names on one side only: {sorted(ours.keys() ^ theirs.keys())}")
    for name, tensor in ours.items():
        if not torch.equal(tensor, theirs[name]):
            raise SystemExit(f"{what}: {name} differs")
    print(f"{what}: {len(ours)} tensors are the same")


def computes(what, model, pairs, alphas):
    """The loaded model adds `alpha / r * B A` to every layer."""
    count = 0
    for path, module in model.named_modules():
        if not hasattr(module, "get_delta_weight"):
            continue
        (name,) = module.lora_A
        a, b = pairs[f"unet.{path}"]
        want = alphas[f"unet.{path}"] / RANK * (b.flatten(1) @ a.flatten(1))
        got = module.get_delta_weight(name).detach().flatten(1)
        if (got - want).abs().max() > 1e-5 * want.abs().max():
            raise SystemExit(f"{what}: {path} adds something else")
        count += 1
    if count != sum(path.startswith("unet.") for path in pairs):
        raise SystemExit(f"{what}: {count} layers are adapted")
    print(f"{what}: {count} layers compute with alpha / r * B A")


def check(lowrank, models, work):
    pairs, alphas = adapter(models, torch.Generator().manual_seed(len(models)))
    source = work / "source.safetensors"
    save_file({k: v.contiguous() for k, v in kohya(pairs, alphas).items()}, source)

    def convert(path, to, out):
        subprocess.run([lowrank, "convert", path, "--to", to, "--out", work / out, "--force"], check=True, stdout=subprocess.DEVNULL)
        return work / out

    folder = convert(source, "diffusers", "style")
    again = convert(folder, "kohya", "again.safetensors")
    file = folder / "pytorch_lora_weights.safetensors"
    ours = load_file(file)
    two = "text_encoder_2" in models
    if two:
        # diffusers' own way from Stability's names.
        mapped = _maybe_map_sgm_blocks_to_diffusers(load_file(source), models["unet"].config)
        same("diffusers on Stability's names", ours, modern(_convert_non_diffusers_lora_to_diffusers(mapped)[0]))
    else:
        same("kohya and back", load_file(again), load_file(source))
    converted, network_alphas = _convert_non_diffusers_lora_to_diffusers(load_file(again))
    # Of SDXL's embeddings of size and crop it knows Stability's names only.
    kept = lambda tensors: {k: v for k, v in tensors.items() if "add_embedding" not in k and "add.embedding" not in k}
    same("diffusers' converter", kept(ours), kept(modern(converted)))
    if not two and sorted(network_alphas.values()) != sorted(alphas.values()):
        raise SystemExit("alphas differ")
    if two:
        # Its writer always numbers the text encoders, and knows no alpha but the rank.
        theirs = {k: v for k, v in convert_state_dict_to_kohya(ours).items() if not k.endswith(".alpha")}
        same("diffusers' writer", {k: v for k, v in load_file(again).items() if not k.endswith(".alpha")}, theirs)
    # diffusers 0.42 loses the alphas of attention layers on its way from a kohya file to PEFT (its names for them match no
    # module), so only its own format shows what a model computes.
    model = (sdxl if two else unet)()
    model.load_lora_adapter(str(file), prefix="unet", use_safetensors=True)
    computes("our diffusers file, loaded", model, pairs, alphas)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lowrank", type=Path, required=True)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        for encoders in (("text_encoder",), ("text_encoder", "text_encoder_2")):
            make = unet if len(encoders) == 1 else sdxl
            check(args.lowrank.absolute(), {"unet": make()} | {name: text_encoder() for name in encoders}, Path(work))


if __name__ == "__main__":
    main()
