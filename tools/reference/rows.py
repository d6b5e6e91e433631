"""What a row of training data becomes: token ids and the mask of the loss, for crates/lowrank/tests/rows.rs.

Small tokenizers of several kinds are trained here (`TOKENIZERS`). Rows are encoded as TRL's SFTTrainer does it with
transformers' tokenizer: the end token is added to a text or completion that does not end with it, prompt and completion are
encoded as one text, a conversation is rendered by `apply_chat_template` and its assistant mask comes from the
`{% generation %}` blocks. Two things differ from the tokenizer alone: a begin token that the text itself starts with is
not doubled, and an end token that the tokenizer adds takes the place of the one TRL adds.

    python3 tools/reference/rows.py
"""

import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

OUT = Path(__file__).resolve().parents[2] / "crates/lowrank/tests/fixtures/rows.json"

CORPUS = [
    "The Vaults is a pub near Café Adriatic. Prices start at £30.",
    "name[The Vaults], eatType[pub] is a low cost pub near the river that serves English food.",
    "What is the weather in Paris today? It is sunny, and the temperature is 21 degrees.",
    "user assistant system tool get_weather city Paris {\"city\": \"Paris\"}",
] * 4
SPECIAL = ["<s>", "</s>", "<unk>", "<pad>", "<|im_start|>", "<|im_end|>"]

TURNS = (
    "{% if tools %}{{ '<|im_start|>tools\n' }}{% for tool in tools %}{{ tool | tojson }}{% endfor %}{{ '<|im_end|>\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.role == 'assistant' %}{% generation %}"
    "{% if m.content %}{{ m.content }}{% endif %}"
    "{% for call in m.tool_calls or [] %}{{ '<tool_call>' + (call.function | tojson) + '</tool_call>' }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endgeneration %}"
    "{% else %}{{ m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Llama 2's way: no special token stands between the prompt and the answer.
INLINE = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ ' ' + m.content + ' ' + eos_token }}{% endgeneration %}"
    "{% else %}{{ '[INST] ' + m.content + ' [/INST]' }}{% endif %}{% endfor %}"
)


def byte_level(bos, eos, prefix_space=False):
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    t.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    t.train_from_iterator(CORPUS, trainer)
    return around(t, bos, eos)


def sentencepiece(bos, eos, prepend):
    """As Llama 2's (`prepend`: a space before every text) and Gemma's files have it."""
    t = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=False, fuse_unk=True))
    steps = [normalizers.Prepend("▁")] if prepend else []
    t.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    t.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=SPECIAL, show_progress=False)
    # Merges cross no word border in training, as in the real ones.
    t.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="never")
    t.train_from_iterator(CORPUS, trainer)
    t.pre_tokenizer = None
    return around(t, bos, eos)


def around(t, bos, eos):
    single = ("<s> " if bos else "") + "$A" + (" </s>" if eos else "")
    special = [(s, t.token_to_id(s)) for s in ("<s>", "</s>")]
    if bos or eos:
        t.post_processor = processors.TemplateProcessing(single=single, pair=single + " $B:1", special_tokens=special)
    return t


TOKENIZERS = {
    "byte_level": byte_level(False, False),
    "byte_level_bos": byte_level(True, False),
    "byte_level_bos_eos": byte_level(True, True),
    "byte_level_prefix_space": byte_level(True, False, prefix_space=True),
    "sentencepiece_llama": sentencepiece(True, False, True),
    "sentencepiece_gemma": sentencepiece(True, False, False),
}
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
ROWS = [
    {"text": "The Vaults is a pub."},
    {"text": "<s>The Vaults is a pub.</s>"},
    {"text": " two  spaces\n"},
    {"prompt": "name[The Vaults]\n", "completion": "It is a pub."},
    {"prompt": "name[The Vaults]", "completion": " It is a pub."},
    {"prompt": "The ", "completion": "Vaults"},
    {"prompt": "Pri", "completion": "ces start at £30.</s>"},
    {"prompt": "<s>The", "completion": " Vaults"},
    {"prompt": "", "completion": "The Vaults"},
]
TALKS = [
    {"messages": [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "It is a pub."}]},
    {
        "messages": [
            {"role": "user", "content": "What is it?"},
            {"role": "assistant", "content": "It is a pub."},
            {"role": "user", "content": " near the river "},
            {"role": "assistant", "content": "Prices start at £30."},
        ]
    },
]
TOOL_TALK = {
    "messages": [
        {"role": "user", "content": "What is the weather in Paris?"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Paris"}}}],
        },
        {"role": "tool", "name": "get_weather", "content": "21 degrees"},
        {"role": "assistant", "content": "It is 21 degrees."},
    ],
    "tools": [WEATHER],
}


def begin_once(tokenizer, text):
    """`text` without a begin token that the tokenizer adds anyway."""
    adds = tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
    return text.removeprefix(tokenizer.bos_token) if adds else text


def encode(tokenizer, text):
    """The ids without an end token that the tokenizer adds."""
    ids = tokenizer(begin_once(tokenizer, text))["input_ids"]
    adds = tokenizer("a")["input_ids"][-1] == tokenizer.eos_token_id
    return ids[:-1] if adds else ids


def sft(tokenizer, row):
    eos = tokenizer.eos_token
    end = lambda text: text if text.endswith(eos) else text + eos
    if "text" in row:
        ids = encode(tokenizer, end(row["text"]))
        return ids, [0] + [1] * (len(ids) - 1)
    prompt = encode(tokenizer, row["prompt"])
    ids = encode(tokenizer, row["prompt"] + end(row["completion"]))
    mask = [0] * len(prompt) + [1] * (len(ids) - len(prompt))
    mask[0] = 0  # nothing predicts the first token
    return ids, mask


def chat(tokenizer, template, row):
    tokenizer.chat_template = template
    out = tokenizer.apply_chat_template(
        row["messages"], tools=row.get("tools"), tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    return out["input_ids"], out["assistant_masks"]


def main():
    cases = []
    for name, inner in TOKENIZERS.items():
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>"
        )
        rows = []
        for row in ROWS:
            ids, mask = sft(tokenizer, row)
            rows.append({"row": row, "ids": ids, "mask": mask})
        for template in (TURNS, INLINE):
            for talk in [*TALKS, *([TOOL_TALK] if template == TURNS else [])]:
                ids, mask = chat(tokenizer, template, talk)
                rows.append({"row": talk, "template": template, "ids": ids, "mask": mask})
        cases.append({"name": name, "tokenizer": json.loads(inner.to_str()), "rows": rows})
    OUT.write_text(json.dumps(cases, ensure_ascii=False, separators=(",", ":")) + "\n")
    print(OUT, OUT.stat().st_size)


if __name__ == "__main__":
    main()
