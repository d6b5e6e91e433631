"""Write what loralib's Conv2d gives, and for one and three axes what PyTorch gives for the same change of the weight.

loralib's Conv1d and Conv3d cannot reshape `B A` to their weights when the kernel is larger than 1; the layer here has
`B: [out/groups k^(axes - 1), r k]`, with which it can.

    python conv.py [--out FILE]
"""

import argparse
from pathlib import Path

import loralib
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

OUT = Path(__file__).resolve().parents[2] / "crates/lowrank-adapters/tests/fixtures/conv.safetensors"
# axes, in, out, kernel, r, alpha, groups, stride, padding, dilation, bias
CASES = {
    "plain2": (2, 4, 6, 3, 2, 4, 1, 1, 0, 1, True),
    "strided2": (2, 4, 6, 3, 3, 1, 2, 2, 1, 1, False),
    "dilated2": (2, 2, 4, 2, 1, 2, 1, 1, 2, 2, True),
    "one": (1, 4, 6, 3, 2, 4, 2, 2, 1, 1, True),
    "three": (3, 2, 4, 2, 2, 3, 1, 1, 1, 1, True),
}
SIZES = {1: (9,), 2: (7, 6), 3: (3, 4, 5)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    torch.manual_seed(0)
    out = {}
    for name, (axes, c, o, k, r, alpha, groups, stride, padding, dilation, bias) in CASES.items():
        more = {"groups": groups, "stride": stride, "padding": padding, "dilation": dilation}
        weight = torch.randn(o, c // groups, *[k] * axes)
        b0 = torch.randn(o) if bias else None
        a = torch.randn(r * k, c * k, requires_grad=True)
        b = torch.randn(o // groups * k ** (axes - 1), r * k, requires_grad=True)
        x = torch.randn(2, c, *SIZES[axes], requires_grad=True)
        if axes == 2:
            layer = loralib.Conv2d(c, o, k, r=r, lora_alpha=alpha, bias=bias, **more)
            assert (layer.lora_A.shape, layer.lora_B.shape) == (a.shape, b.shape)
            with torch.no_grad():
                layer.conv.weight.copy_(weight)
                layer.lora_A.copy_(a)
                layer.lora_B.copy_(b)
                if bias:
                    layer.conv.bias.copy_(b0)
            a, b = layer.lora_A, layer.lora_B
            y = layer(x)
        else:
            change = (b @ a).view(weight.shape) * (alpha / r)
            y = (F.conv1d if axes == 1 else F.conv3d)(x, weight + change, b0, **more)
        dy = torch.randn(y.shape)
        y.backward(dy)
        case = {"weight": weight, "a": a, "b": b, "x": x, "y": y, "dy": dy}
        case |= {"dx": x.grad, "da": a.grad, "db": b.grad} | ({"bias": b0} if bias else {})
        sizes = [axes, c, o, k, r, alpha, groups, stride, padding, dilation]
        out |= {f"{name}.{key}": value.detach().contiguous() for key, value in case.items()}
        out[f"{name}.sizes"] = torch.tensor(sizes)
    save_file(out, args.out)
    print(f"{args.out}: {args.out.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
