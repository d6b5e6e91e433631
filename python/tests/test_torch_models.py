"""Whole models: injection, PEFT's live models, transformers' Trainer, and adapters that go from one to the other."""

import copy
import pickle

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")
peft = pytest.importorskip("peft", reason="PEFT is not installed")

import lowrank  # noqa: E402
import lowrank.torch as lora  # noqa: E402
from lowrank.torch import _accelerated, _function  # noqa: E402

GPT2 = {"n_layer": 2, "n_head": 4, "n_embd": 48, "n_positions": 64, "vocab_size": 101, "bos_token_id": 1,
        "eos_token_id": 2}
LLAMA = {"num_hidden_layers": 2, "hidden_size": 48, "intermediate_size": 80, "num_attention_heads": 4,
         "num_key_value_heads": 2, "vocab_size": 101, "max_position_embeddings": 64}
TARGETS = {"gpt2": ["c_attn", "c_proj"], "llama": ["q_proj", "v_proj", "down_proj"]}


def base(kind, **more):
    torch.manual_seed(0)
    if kind == "gpt2":
        return transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2 | more))
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA | more))


def peft_model(kind, dropout=0.0, **more):
    config = peft.LoraConfig(
        task_type="CAUSAL_LM", r=4, lora_alpha=8, lora_dropout=dropout, target_modules=TARGETS[kind],
        fan_in_fan_out=kind == "gpt2", **more)
    model = peft.get_peft_model(base(kind), config)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.1)
    return model


def batch():
    torch.manual_seed(2)
    ids = torch.randint(3, 101, (3, 17))
    labels = ids.clone()
    labels[0, :5] = labels[2, 9:] = -100
    return {"input_ids": ids, "labels": labels}


def step(model, seed=3):
    """Loss, logits and gradients."""
    model.zero_grad(set_to_none=True)
    torch.manual_seed(seed)
    out = model(**batch())
    out.loss.backward()
    return out.loss.detach(), out.logits.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def same(a, b, tolerance=1e-5):
    (loss, logits, grads), (want_loss, want_logits, want) = a, b
    assert abs(loss - want_loss) <= tolerance * want_loss
    assert (logits - want_logits).abs().max() <= tolerance * want_logits.abs().max()
    assert grads.keys() == want.keys()
    for name in want:
        assert (grads[name] - want[name]).abs().max() <= tolerance * max(want[name].abs().max(), 1e-3), name


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("dropout", [0.0, 0.25])
@pytest.mark.parametrize("layers", [("lora",), ("lora", "frozen", "activation", "attention", "loss")])
def test_an_accelerated_model_is_the_same_model(kind, dropout, layers, monkeypatch):
    model = peft_model(kind, dropout).train()
    want = step(model)
    classes = [type(m) for m in model.modules()]
    addresses = {n: p.data_ptr() for n, p in model.named_parameters()}
    names = list(model.state_dict())

    calls = []
    run = _function._Lora.apply
    monkeypatch.setattr(_function._Lora, "apply", lambda *args: calls.append(1) or run(*args))
    assert lora.accelerate_peft(model, layers=layers) is model
    same(step(model), want)
    assert len(calls) >= sum(isinstance(m, _accelerated.LoraLinear) for m in model.modules()) > 0
    assert {n: p.data_ptr() for n, p in model.named_parameters()} == addresses
    assert list(model.state_dict()) == names
    # In eval mode, merged, unmerged, switched off.
    model.eval()
    with torch.no_grad():
        fast = model(**batch()).logits
        model.merge_adapter()
        merged = model(**batch()).logits
        model.unmerge_adapter()
        with model.disable_adapter():
            bare = model(**batch()).logits
    assert lora.restore(model.train()) is model
    assert [type(m) for m in model.modules()] == classes
    assert "_lowrank_loss" not in str([list(vars(m)) for m in model.modules()])
    same(step(model), want)
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(fast, model(**batch()).logits, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(merged, fast, rtol=1e-4, atol=1e-4)
        with model.disable_adapter():
            torch.testing.assert_close(bare, model(**batch()).logits, rtol=1e-4, atol=1e-4)


def test_what_the_kernels_do_not_know_stays_pefts():
    for more in ({"use_dora": True}, {"use_rslora": True}, {"lora_bias": True}):
        model = peft_model("llama", **more).train()
        want = step(model)
        same(step(lora.accelerate_peft(model)), want)
    model = peft_model("llama")
    model.add_adapter("other", peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    model.base_model.set_adapter(["default", "other"])
    want = step(model)
    same(step(lora.accelerate_peft(model)), want)
    model.base_model.set_adapter("other")
    assert step(model)[2].keys() != want[2].keys()
    model.eval()
    with torch.no_grad():
        mixed = model(input_ids=batch()["input_ids"], adapter_names=["other", "__base__", "default"]).logits
        lora.restore(model)
        want = model(input_ids=batch()["input_ids"], adapter_names=["other", "__base__", "default"]).logits
    torch.testing.assert_close(mixed, want, rtol=1e-4, atol=1e-4)


def test_a_model_in_bfloat16_stays_pefts():
    model = peft_model("llama").to(torch.bfloat16)
    want = step(model)
    same(step(lora.accelerate_peft(model)), want, 2e-2)


def test_wrong_calls_say_so():
    with pytest.raises(ValueError, match="get_peft_model"):
        lora.accelerate_peft(base("gpt2"))
    with pytest.raises(ValueError, match="choose from lora"):
        lora.accelerate_peft(peft_model("gpt2"), layers=["everything"])


def test_accelerated_models_copy_pickle_and_checkpoint():
    model = lora.accelerate_peft(peft_model("gpt2")).train()
    want = step(model)
    same(step(copy.deepcopy(model)), want)
    same(step(pickle.loads(pickle.dumps(model))), want)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.enable_input_require_grads()
    got = step(model)
    same(got, want)


class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 24

    def __getitem__(self, i):
        ids = (torch.arange(12) * 7 + i % 2) % 90 + 3
        return {"input_ids": ids, "labels": ids.clone()}


def train(model, folder, **more):
    arguments = transformers.TrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=4, max_steps=5, learning_rate=1e-2, logging_steps=1,
        report_to=[], save_strategy="no", use_cpu=True, seed=4, disable_tqdm=True, **more)
    trainer = transformers.Trainer(model=model, args=arguments, train_dataset=Rows())
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("more", [{}, {"gradient_accumulation_steps": 2}, {"gradient_checkpointing": True}])
def test_trainer_trains_through_it_and_saves_pefts_adapter(kind, more, tmp_path):
    plain, fast = peft_model(kind, 0.1), peft_model(kind, 0.1)
    want = train(plain, tmp_path / "plain", **more)
    got = train(lora.accelerate_peft(fast), tmp_path / "fast", **more)
    assert len(got) == 5 and got[-1] < got[0]
    assert max(abs(a - b) for a, b in zip(got, want)) <= 2e-4 * max(want)
    fast.save_pretrained(tmp_path / "adapter")
    loaded = peft.PeftModel.from_pretrained(base(kind), tmp_path / "adapter").eval()
    with torch.no_grad():
        logits, again = fast.eval()(**batch()).logits, loaded(**batch()).logits
    torch.testing.assert_close(logits, again, rtol=1e-4, atol=1e-4)
    weights = {n: p for n, p in plain.state_dict().items() if "lora_" in n}
    for name, value in fast.state_dict().items():
        if "lora_" in name:
            assert (value - weights[name]).abs().max() < 5e-3, name


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("targets", ["list", "regex", "all-linear"])
def test_inject_is_pefts_get_peft_model(kind, targets, tmp_path):
    chosen = {
        "list": TARGETS[kind],
        "regex": r".*\.1\..*(c_attn|q_proj)",
        "all-linear": "all-linear",
    }[targets]
    words = {"r": 4, "lora_alpha": 8, "target_modules": chosen, "task_type": "CAUSAL_LM",
             "rank_pattern": {r"1\..*(c_attn|q_proj)": 2}, "alpha_pattern": {r"0\..*": 3}, "use_rslora": True}
    theirs = peft.get_peft_model(base(kind), peft.LoraConfig(fan_in_fan_out=kind == "gpt2", **words))
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.1)
    theirs.save_pretrained(tmp_path / "theirs")
    config = lora.LoraConfig(**words)
    model = base(kind)
    weights = {n: p.data_ptr() for n, p in model.named_parameters()}
    assert lora.inject(model, config) is model
    assert all(p.data_ptr() == weights[n] for n, p in model.named_parameters() if "lora_" not in n)
    lora.load_adapter(model, tmp_path / "theirs")
    a, b = step(model.train()), step(theirs.train())
    rename = lambda n: n.replace("base_model.model.", "").replace(".default.weight", "").replace("base_layer.", "")
    same(a, (b[0], b[1], {rename(n): g for n, g in b[2].items()}))

    lora.save_adapter(model, tmp_path / "ours", config)
    loaded = peft.PeftModel.from_pretrained(base(kind), tmp_path / "ours").eval()
    theirs.eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(**batch()).logits, theirs(**batch()).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("weight_format", [None, "bf16", "q8_0", "nf4"])
def test_an_injected_model_trains(weight_format):
    model = base("llama", hidden_size=64, intermediate_size=128, tie_word_embeddings=False)
    config = lora.LoraConfig(r=4, target_modules="all-linear", weight_format=weight_format)
    lora.inject(model, config)
    assert {n.rsplit(".", 1)[-1] for n, p in model.named_parameters() if p.requires_grad} == {"lora_A", "lora_B"}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(20):
        loss = model(**batch()).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


def test_inject_names_what_is_wrong():
    with pytest.raises(ValueError, match="this model has: .*q_proj"):
        lora.inject(base("llama"), lora.LoraConfig(target_modules=["c_attn"]))
    with pytest.raises(ValueError, match="LlamaMLP"):
        lora.inject(base("llama"), lora.LoraConfig(target_modules=["mlp"]))
    with pytest.raises(ValueError, match="use_dora"):
        lora.inject(base("llama"), peft.LoraConfig(target_modules=["q_proj"], use_dora=True))
    with pytest.raises(ValueError, match="target_modules"):
        lora.inject(base("llama"), lora.LoraConfig())


def test_embeddings_can_be_injected():
    words = {"r": 4, "lora_alpha": 8, "target_modules": ["wte"]}
    model = lora.inject(base("gpt2"), lora.LoraConfig(**words))
    layer = model.transformer.wte
    assert isinstance(layer, lora.Embedding)
    step(model)
    assert layer.lora_A.grad is not None or layer.lora_B.grad is not None


def test_an_adapter_of_pytorchs_runs_in_the_engine(model_folder, tmp_path):
    model = transformers.AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    config = lora.LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    lora.inject(model, config)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.2)
    lora.save_adapter(model, tmp_path / "a", config)
    engine = lowrank.Model.from_pretrained(model_folder, adapter=tmp_path / "a")
    tokens = engine.encode("red and blue")
    with torch.no_grad():
        want = model.eval()(torch.tensor([tokens])).logits[0]
    got = torch.from_dlpack(engine.logits(tokens))
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    hidden = torch.from_dlpack(engine.hidden_states(tokens))
    torch.testing.assert_close(torch.from_dlpack(engine.head(hidden)), got, rtol=1e-5, atol=1e-5)


def test_counted_dropout_is_dropout():
    from torch.utils.checkpoint import checkpoint

    layer, x = _accelerated.CountedDropout(0.3), torch.randn(300, 201, requires_grad=True)
    y = layer(x)
    kept = y != 0
    assert abs(kept.float().mean() - 0.7) < 0.01
    torch.testing.assert_close(y[kept], x[kept] / 0.7)
    y.sum().backward()
    torch.testing.assert_close(x.grad, kept.float() / 0.7)
    assert not torch.equal(layer(x) != 0, kept)
    torch.manual_seed(1)
    first = layer(x)
    torch.manual_seed(1)
    again = checkpoint(layer, x, use_reentrant=False)
    torch.testing.assert_close(again, first, rtol=0, atol=0)
    x.grad = None
    again.sum().backward()
    torch.testing.assert_close(x.grad, (first != 0).float() / 0.7)
    assert layer.eval()(x) is x
    model = lora.accelerate_peft(peft_model("gpt2"), layers=["dropout"])
    assert any(isinstance(m, _accelerated.CountedDropout) for m in model.modules())
    step(model.train())
    assert not any(isinstance(m, _accelerated.CountedDropout) for m in lora.restore(model).modules())


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_attention_is_the_same(kind, tmp_path):
    more = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0} if kind == "gpt2" else {}
    model = peft.get_peft_model(base(kind, **more), peft.LoraConfig(r=2, target_modules=TARGETS[kind][:1],
                                init_lora_weights=False, fan_in_fan_out=kind == "gpt2")).train()
    want, ran = step(model), []
    lora.accelerate_peft(model, layers=["attention"])
    run = _accelerated._Attention.apply
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_accelerated._Attention, "apply", lambda *args: ran.append(1) or run(*args))
        same(step(model), want)
        assert len(ran) == 2
        # Rows of different lengths need a mask: PyTorch's attention.
        padded = batch() | {"attention_mask": torch.ones(3, 17, dtype=torch.long)}
        padded["attention_mask"][1, 11:] = 0
        loss = model(**padded).loss
        assert len(ran) == 2
    assert "lowrank" not in str(model.get_base_model().config.to_diff_dict())
    tokens = model.eval().generate(input_ids=batch()["input_ids"], max_new_tokens=4, do_sample=False)
    lora.restore(model.train())
    torch.testing.assert_close(loss, model(**padded).loss)
    assert model.config._attn_implementation == "sdpa"
    plain = model.eval().generate(input_ids=batch()["input_ids"], max_new_tokens=4, do_sample=False)
    assert torch.equal(tokens, plain)


def test_attention_drops_what_its_seed_says():
    """Next to PyTorch's operations with the mask that the values show."""
    b, h, t, d, p = 2, 4, 37, 16, 0.3
    torch.manual_seed(0)
    q, k = (torch.randn(b, n, t, d, dtype=torch.float32, requires_grad=True) for n in (h, 2))
    with torch.no_grad():
        # With the identity for values, the output is the probabilities, 37 of them in three pieces of 16.
        eye = torch.nn.functional.pad(torch.eye(t), (0, 48 - t)).view(t, 3, d)
        pieces = [_accelerated._Attention.apply(q, k, eye[:, i].expand(b, 2, t, d), 0.25, True, p, 5) for i in range(3)]
        dropped = torch.cat(pieces, -1)[..., :t].transpose(1, 2)
        bare = torch.softmax(
            (q @ k.repeat_interleave(2, 1).mT * 0.25).masked_fill(torch.ones(t, t).triu(1).bool(), -torch.inf), -1)
    seen = torch.ones(t, t).tril().bool().expand_as(bare)
    mask = (dropped != 0).float() / (1 - p)
    assert abs((dropped[seen] != 0).float().mean() - (1 - p)) < 0.03
    torch.testing.assert_close(dropped, bare * mask, rtol=1e-5, atol=1e-6)

    v = torch.randn(b, 2, t, d, requires_grad=True)
    out = _accelerated._Attention.apply(q, k, v, 0.25, True, p, 5)
    scores = (q @ k.repeat_interleave(2, 1).mT * 0.25).masked_fill(~seen, -torch.inf)
    want = (torch.softmax(scores, -1) * mask) @ v.repeat_interleave(2, 1)
    torch.testing.assert_close(out, want.transpose(1, 2), rtol=1e-5, atol=1e-5)
    weights = torch.randn_like(out)
    got = torch.autograd.grad((out * weights).sum(), (q, k, v))
    for mine, theirs in zip(got, torch.autograd.grad((want.transpose(1, 2) * weights).sum(), (q, k, v))):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_the_loss_is_transformers_own():
    from transformers.loss.loss_utils import ForCausalLMLoss

    torch.manual_seed(0)
    for labels in (batch()["labels"], torch.full((3, 17), -100)):
        for items in (None, 11, torch.tensor(7)):
            logits = torch.randn(3, 17, 101)
            mine, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
            loss = _accelerated.causal_lm_loss(mine, labels, 101, items)
            want = ForCausalLMLoss(theirs, labels, 101, items)
            torch.testing.assert_close(loss, want, equal_nan=True)
            if torch.isfinite(want):
                (loss * 3).backward(), (want * 3).backward()
                torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-7)
            torch.testing.assert_close(mine.detach(), logits, rtol=0, atol=0)
    with pytest.raises(ValueError, match="target 101"):
        _accelerated.causal_lm_loss(torch.randn(1, 3, 101), torch.tensor([[1, 101, 2]]), 101)
