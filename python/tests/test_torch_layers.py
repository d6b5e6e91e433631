"""loralib's layers: the same behaviour and numbers, gradients, shared memory, and how PyTorch handles modules."""

import copy
import io
import pickle
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402

import lowrank.torch as lora  # noqa: E402
from lowrank.torch import _function  # noqa: E402

# (kind, arguments): the dense layers in their variants, with sizes that fit no tile.
DENSE = {
    "linear": (lora.Linear, (37, 53), {"r": 5, "lora_alpha": 9}),
    "no bias": (lora.Linear, (37, 53), {"r": 5, "lora_alpha": 9, "bias": False}),
    "fan in": (lora.Linear, (37, 53), {"r": 3, "lora_alpha": 9, "fan_in_fan_out": True}),
    "dropout": (lora.Linear, (37, 53), {"r": 5, "lora_alpha": 9, "lora_dropout": 0.4}),
    "merged all": (lora.MergedLinear, (40, 60), {"r": 3, "lora_alpha": 6, "enable_lora": [True] * 3}),
    "merged qv": (lora.MergedLinear, (40, 60), {"r": 3, "lora_alpha": 6, "enable_lora": [True, False, True]}),
    "merged fan in": (
        lora.MergedLinear, (40, 60),
        {"r": 3, "lora_alpha": 6, "enable_lora": [False, True, True], "fan_in_fan_out": True, "lora_dropout": 0.3},
    ),
    "r=0": (lora.Linear, (37, 53), {}),
    "merged r=0": (lora.MergedLinear, (40, 60), {"enable_lora": [True, False]}),
}
OTHERS = {
    "embedding": (lora.Embedding, (31, 20), {"r": 4, "lora_alpha": 8}),
    "embedding r=0": (lora.Embedding, (31, 20), {}),
    "conv2d": (lora.Conv2d, (4, 6, 3), {"r": 2, "lora_alpha": 4, "padding": 1}),
    "conv1d": (lora.Conv1d, (4, 6, 3), {"r": 2, "lora_alpha": 4}),
    "conv3d": (lora.Conv3d, (4, 6, 3), {"r": 2, "lora_alpha": 4}),
}
ALL = DENSE | OTHERS


def make(name, seed=0, **more):
    torch.manual_seed(seed)
    kind, args, kwargs = ALL[name]
    layer = kind(*args, **kwargs | more)
    fill(layer)
    return layer


def fill(layer):
    """Adapters that are not nothing."""
    with torch.no_grad():
        for parameter_name, parameter in layer.named_parameters():
            if "lora_" in parameter_name:
                parameter.normal_(0, 0.3)


def inputs(name, n=29):
    torch.manual_seed(1)
    kind, args, _ = ALL[name]
    if kind is lora.Embedding:
        return torch.randint(0, args[0], (2, n))
    if issubclass(kind, lora.ConvLoRA):
        return torch.randn(2, args[0], *[5] * {lora.Conv1d: 1, lora.Conv2d: 2, lora.Conv3d: 3}[kind])
    return torch.randn(3, n, args[0])


def close(a, b, tolerance=1e-5):
    scale = max(1.0, b.abs().max().item())
    assert a.shape == b.shape
    assert (a - b).abs().max().item() <= tolerance * scale, (a - b).abs().max().item() / scale


def gradients(layer, x, seed=2):
    """The output and all gradients of a fixed random functional of it."""
    x = x.clone().requires_grad_(x.is_floating_point())
    layer.zero_grad(set_to_none=True)
    torch.manual_seed(seed)
    y = layer(x)
    torch.manual_seed(3)
    y.backward(torch.randn_like(y))
    found = {n: p.grad for n, p in layer.named_parameters() if p.grad is not None}
    return y.detach(), found | ({"x": x.grad} if x.requires_grad else {})


@pytest.fixture()
def fused(monkeypatch):
    """Counts the calls of the kernels."""
    calls = []
    run = _function._Lora.apply
    monkeypatch.setattr(_function._Lora, "apply", lambda *args: calls.append(1) or run(*args))
    return calls


@pytest.mark.parametrize("name", [n for n in ALL if n not in ("conv1d", "conv3d")])
def test_numbers_gradients_and_merging_are_loralibs(name):
    loralib = pytest.importorskip("loralib", reason="loralib is not installed")
    kind, args, kwargs = ALL[name]
    ours = make(name)
    theirs = getattr(loralib, kind.__name__)(*args, **kwargs)
    theirs.load_state_dict(ours.state_dict())
    assert list(theirs.state_dict()) == list(ours.state_dict())
    if name == "merged r=0":
        assert ours(inputs(name)).shape[-1] == 60  # loralib's own fails here.
        return
    x = inputs(name)
    (y, mine), (want, others) = gradients(ours, x), gradients(theirs, x)
    close(y, want)
    assert mine.keys() == others.keys()
    for key in mine:
        close(mine[key], others[key])
    for mode in (False, True, True, False, False, True):
        ours.train(mode), theirs.train(mode)
        assert ours.merged == theirs.merged == (not mode)
        for key, value in theirs.state_dict().items():
            close(ours.state_dict()[key], value)
        torch.manual_seed(5)
        y = ours(x)
        torch.manual_seed(5)
        close(y, theirs(x))


@pytest.mark.parametrize("name", ALL)
def test_eval_merges_and_train_unmerges(name):
    layer, x = make(name), inputs(name)
    layer.lora_dropout = nn.Identity()
    weight = (layer.conv if hasattr(layer, "conv") else layer).weight
    before, y = weight.detach().clone(), layer(x)
    layer.eval()
    assert layer.merged and (layer.r == 0 or not torch.equal(weight, before))
    close(layer(x), y)
    assert layer.train() is layer and not layer.merged
    close(weight.detach(), before)
    apart = make(name, merge_weights=False).eval()
    assert not apart.merged
    close(apart(x), y)


# r=0 trains its weight: that is PyTorch's own.
DENSE_FROZEN = [n for n in DENSE if "r=0" not in n]


@pytest.mark.parametrize("name", DENSE_FROZEN)
def test_kernels_give_what_pytorch_gives(name, fused, monkeypatch):
    layer, x = make(name), inputs(name)
    y, mine = gradients(layer, x)
    assert fused, "the kernels ran"
    assert "weight" not in mine and "lora_A" in mine
    monkeypatch.setattr(_function, "kernels_fit", lambda *tensors: False)
    count = len(fused)
    want, plain = gradients(layer, x)
    assert len(fused) == count
    close(y, want)
    assert mine.keys() == plain.keys()
    for key in mine:
        close(mine[key], plain[key])


@pytest.mark.parametrize("name", DENSE_FROZEN)
def test_gradients_are_those_of_float64(name):
    layer = make(name)
    layer.lora_dropout = nn.Identity()
    exact = copy.deepcopy(layer).double()
    x = inputs(name)
    (y, mine), (want, exactly) = gradients(layer, x), gradients_in_double(exact, x)
    close(y.double(), want, 2e-6)
    for key in exactly:
        close(mine[key].double(), exactly[key], 2e-6)


def gradients_in_double(layer, x):
    x = x.double().requires_grad_()
    y = layer(x)
    torch.manual_seed(3)
    y.backward(torch.randn(y.shape).double())
    return y.detach(), {n: p.grad for n, p in layer.named_parameters() if p.grad is not None} | {"x": x.grad}


@pytest.mark.filterwarnings("ignore:Input #")
@pytest.mark.parametrize("name", ["linear", "merged qv", "fan in"])
def test_gradcheck(name):
    """Finite differences of the kernels themselves, with steps and tolerances that float32 allows."""
    layer = make(name)
    layer.bias.requires_grad_()
    x = inputs(name, n=2).requires_grad_()
    names = ["lora_A", "lora_B", "bias"]

    def run(x, *values):
        return torch.func.functional_call(layer, dict(zip(names, values)), (x,)).sum(dim=0)

    values = [getattr(layer, n).detach().clone().requires_grad_() for n in names]
    # The layer is linear in each argument, so a long step is exact but for rounding.
    assert torch.autograd.gradcheck(run, (x, *values), eps=0.5, atol=2e-3, rtol=1e-3, fast_mode=True)


def test_nothing_is_copied(monkeypatch):
    layer, x = make("merged qv"), inputs("merged qv").requires_grad_()
    seen = {}
    real = _function._layer(40, 60, 3, "f32", False, (0, 40), 20)

    class Spy:
        def forward(self, n, x, weight, bias, y, dropped, a, b, u, *rest):
            seen.update(x=x, weight=weight, bias=bias, y=y, dropped=dropped, a=a, b=b, n=n)
            real.forward(n, x, weight, bias, y, dropped, a, b, u, *rest)

        def backward(self, n, dy, weight, dropped, a, b, u, dx, *rest):
            seen.update(back_weight=weight, kept=dropped, dx=dx, dy=dy)
            real.backward(n, dy, weight, dropped, a, b, u, dx, *rest)

    monkeypatch.setattr(_function, "_layer", lambda *args: Spy())
    y = layer(x)
    grad = torch.randn_like(y)
    y.backward(grad)
    assert seen["n"] == 3 * 29
    assert seen["x"] == seen["dropped"] == seen["kept"] == x.data_ptr()
    assert seen["weight"] == seen["back_weight"] == layer.weight.data_ptr()
    assert (seen["bias"], seen["a"], seen["b"]) == (
        layer.bias.data_ptr(), layer.lora_A.data_ptr(), layer.lora_B.data_ptr())
    assert seen["y"] == y.data_ptr() and seen["dy"] == grad.data_ptr() and seen["dx"] == x.grad.data_ptr()


def test_the_frozen_weight_gets_no_gradient_and_the_input_only_if_asked():
    layer, x = make("linear"), inputs("linear")
    layer(x).sum().backward()
    assert x.grad is None and layer.weight.grad is None and layer.lora_A.grad is not None
    layer.lora_A.requires_grad = False
    layer.zero_grad(set_to_none=True)
    layer(x).sum().backward()
    assert layer.lora_A.grad is None and layer.lora_B.grad is not None and layer.bias.grad is not None


@pytest.mark.parametrize("weight_format", ["bf16", "q8_0", "nf4"])
@pytest.mark.parametrize("kind", ["linear", "merged", "fan in"])
def test_packed_weights_are_read_as_they_are(kind, weight_format, fused):
    torch.manual_seed(0)
    kwargs = {"merged": {"enable_lora": [True, False]}, "fan in": {"fan_in_fan_out": True}}.get(kind, {})
    layer = (lora.MergedLinear if kind == "merged" else lora.Linear)(128, 96, r=4, **kwargs)
    fill(layer)
    dense = layer.weight.detach().clone()
    assert layer.pack(weight_format) is layer
    bits = {"bf16": 16, "q8_0": 8.5, "nf4": 4.2}[weight_format]
    held = layer.weight if weight_format == "bf16" else layer.weight_packed
    assert held.numel() * held.element_size() * 8 <= bits * 96 * 128
    weight = layer.dequantized()
    error = {"bf16": 0.004, "q8_0": 0.005, "nf4": 0.16}[weight_format] * dense.abs().max()
    assert (weight - (dense.t() if kind == "fan in" else dense)).abs().max() < error
    x = torch.randn(2, 19, 128)
    y, mine = gradients(layer, x)
    assert fused
    a, b = layer.lora_A.detach().requires_grad_(), layer.lora_B.detach().requires_grad_()
    bias, leaf = layer.bias.detach().requires_grad_(), x.clone().requires_grad_()
    want = _function.plain_lora_linear(leaf, leaf, weight, bias, a, b, layer.scaling, layer._starts)
    torch.manual_seed(3)
    want.backward(torch.randn_like(want))
    close(y, want.detach())
    for key, value in {"x": leaf, "lora_A": a, "lora_B": b, "bias": bias}.items():
        close(mine[key], value.grad)
    # Not merged, and the same before and after pickling, copying and loading.
    layer.eval()
    assert not layer.merged
    close(layer(x), y)
    state = io.BytesIO()
    torch.save(layer.state_dict(), state)
    state.seek(0)
    other = copy.deepcopy(layer)
    fill(other)
    other.load_state_dict(torch.load(state))
    torch.testing.assert_close(other(x), layer(x), rtol=0, atol=0)
    with pytest.raises(ValueError):
        layer.pack("q9")


def test_packing_names_what_does_not_fit():
    with pytest.raises(ValueError, match="whole number"):
        lora.Linear(37, 53, r=2).pack("q8_0")
    with pytest.raises(ValueError, match="choose bf16"):
        lora.Linear(64, 64, r=2).pack("int3")
    with pytest.raises(ValueError, match="train"):
        lora.Linear(64, 64, r=2).eval().pack("q8_0")


@pytest.mark.parametrize("name", ALL)
def test_state_dict_deepcopy_and_pickle(name):
    layer, x = make(name), inputs(name)
    layer.eval() if "dropout" in name or "fan" in name else None
    y = layer(x)
    for copied in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        torch.testing.assert_close(copied(x), y, rtol=0, atol=0)
        assert copied.state_dict().keys() == layer.state_dict().keys()
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    torch.testing.assert_close(torch.load(file, weights_only=False)(x), y, rtol=0, atol=0)


def test_only_lora_is_trainable_and_saved():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = lora.Linear(8, 8, r=2)
            self.norm = nn.LayerNorm(8)
            self.last = nn.Linear(8, 4)

    def trainable(bias):
        net = Net()
        lora.mark_only_lora_as_trainable(net, bias=bias)
        return net, {n for n, p in net.named_parameters() if p.requires_grad}

    pair = {"first.lora_A", "first.lora_B"}
    biases = {"none": set(), "lora_only": {"first.bias"}, "all": {"first.bias", "norm.bias", "last.bias"}}
    for bias, more in biases.items():
        net, found = trainable(bias)
        assert found == pair | more
        assert set(lora.lora_state_dict(net, bias=bias)) == pair | more
    with pytest.raises(NotImplementedError):
        lora.mark_only_lora_as_trainable(net, bias="some")
    with pytest.raises(NotImplementedError):
        lora.lora_state_dict(net, bias="some")


def test_no_grad_and_inference_mode(fused):
    layer, x = make("linear"), inputs("linear")
    y = layer(x).detach()
    with torch.no_grad():
        assert not layer(x).requires_grad
        close(layer(x), y)
    with torch.inference_mode():
        close(layer(x), y)
    assert len(fused) == 4


def test_autocast_is_pytorchs(fused):
    layer, x = make("linear"), inputs("linear")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
        want = F.linear(x, layer.weight, layer.bias) + F.linear(
            F.linear(x, layer.lora_A), layer.lora_B) * layer.scaling
    assert not fused and y.dtype == torch.bfloat16
    torch.testing.assert_close(y, want)
    y.float().sum().backward()
    assert layer.lora_A.grad is not None


def test_other_number_types_are_pytorchs(fused):
    x = inputs("linear")
    for dtype in (torch.float64, torch.bfloat16):
        layer = make("linear").to(dtype)
        y = layer(x.to(dtype))
        assert y.dtype == dtype
        close(y.float(), make("linear")(x), 1e-5 if dtype == torch.float64 else 3e-2)
    assert len(fused) == 2  # Those of the comparison.


def test_strided_and_empty_inputs():
    layer, x = make("linear"), inputs("linear")
    spread = torch.randn(3, 37, 29).transpose(1, 2)
    close(layer(spread), layer(spread.contiguous()))
    with torch.no_grad():
        close(layer(x[0, 0]), layer(x)[0, 0])
    assert layer(torch.zeros(0, 37)).shape == (0, 53)
    with pytest.raises(RuntimeError):
        layer(torch.randn(2, 36))


@pytest.mark.parametrize("name", ["linear", "dropout", "merged qv"])
@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing(name, reentrant):
    layer, x = make(name), inputs(name)
    y, want = gradients(layer, x)
    layer.zero_grad(set_to_none=True)
    leaf = x.clone().requires_grad_()
    torch.manual_seed(2)
    again = checkpoint(layer, leaf, use_reentrant=reentrant)
    torch.testing.assert_close(again.detach(), y)
    torch.manual_seed(3)
    again.backward(torch.randn_like(again))
    torch.testing.assert_close(leaf.grad, want["x"])
    torch.testing.assert_close(layer.lora_A.grad, want["lora_A"])


def test_torch_compile_sees_plain_operations(fused):
    layer, x = make("linear"), inputs("linear")
    want, _ = gradients(layer, x)
    count = len(fused)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    y, mine = gradients(compiled, x)
    assert len(fused) == count
    close(y, want)
    assert any("lora_A" in name for name in mine)
    packed = lora.Linear(64, 32, r=2).pack("q8_0")
    x = torch.randn(3, 64)
    close(torch.compile(packed, backend="eager")(x), packed(x))


def test_torch_func_sees_plain_operations():
    layer, x = make("linear"), inputs("linear")
    parameters = {n: p.detach() for n, p in layer.named_parameters()}

    def loss(parameters, row):
        return torch.func.functional_call(layer, parameters, (row,)).square().sum()

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x[0])
    assert each["lora_A"].shape == (29, 5, 37)


def test_threads_follow_pytorch_and_change_no_bit():
    layer, x = make("linear"), torch.randn(400, 37)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = gradients(layer, x)
        torch.set_num_threads(2)
        two = gradients(layer, x)
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(one, two, rtol=0, atol=0)


def test_the_gil_is_free_in_the_kernels():
    import threading
    import time

    layer, x = lora.Linear(512, 512, r=4), torch.randn(8192, 512)
    ticks, done = [], threading.Event()

    def tick():
        while not done.is_set():
            ticks.append(time.monotonic())
            time.sleep(0.0005)

    thread = threading.Thread(target=tick)
    thread.start()
    try:
        started = time.monotonic()
        with torch.no_grad():
            for _ in range(5):
                layer(x)
        ended = time.monotonic()
    finally:
        done.set()
        thread.join()
    assert sum(started < t < ended for t in ticks) > 5


def test_processes():
    code = """
import torch, torch.multiprocessing as mp
import lowrank.torch as lora

def work(layer, x, queue):
    torch.set_num_threads(1)
    layer.zero_grad()
    y = layer(x)
    y.sum().backward()
    queue.put((y.detach().sum().item(), layer.lora_B.grad.abs().sum().item()))

if __name__ == "__main__":
    torch.manual_seed(0)
    layer, x = lora.Linear(64, 64, r=4), torch.randn(33, 64)
    layer.share_memory()
    layer(x)  # The parent has threads already.
    for method, count in (("fork", 2), ("spawn", 1)):
        context = mp.get_context(method)
        queue = context.Queue()
        children = [context.Process(target=work, args=(layer, x, queue)) for _ in range(count)]
        [c.start() for c in children]
        results = [queue.get(timeout=60) for _ in children]
        [c.join(60) for c in children]
        want = work(layer, x, queue) or queue.get(timeout=60)
        assert all(r == want for r in results), (results, want)
    print("same")
"""
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "processes.py"
        script.write_text(code)
        out = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=150)
    assert out.stdout.strip() == "same", out.stderr


def test_wrong_arguments_are_errors():
    with pytest.raises(ValueError, match="divide"):
        lora.MergedLinear(8, 10, r=2, enable_lora=[True, False, True])
    with pytest.raises(ValueError, match="kernel_size"):
        lora.Conv2d(2, 2, (3, 3), r=1)
