"""Token ids, decoded texts and rendered chat templates for the tests of lowrank-models.

The real tokenizers (SmolLM2 out of its GGUF file, GPT-2 out of tokenizer.json) give ids for many kinds of text. Small
tokenizers of every kind that GGUF names are trained here, written as GGUF without weights, and read by their own
libraries: the `tokenizers` package for byte-level BPE, `sentencepiece` for SentencePiece.
"""

import argparse
import io
import json
import tempfile
from pathlib import Path

import gguf
import sentencepiece
from tokenizers import BertWordPieceTokenizer, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer

OUT = Path(__file__).resolve().parents[2] / "crates/lowrank-models/tests/fixtures"

TEXTS = [
    "",
    " ",
    "a",
    "Hello world",
    "Hello  world   again    ",
    "  two leading spaces",
    "trailing newline\n",
    "\n\n\nthree newlines",
    "tabs\tand\t\ttabs",
    "windows\r\nlines\r\n\r\n",
    "mixed \n \t \r\n white space ",
    "name[The Vaults], eatType[pub], priceRange[more than £30], customer rating[5 out of 5]",
    "The Vaults pub near Café Adriatic has a 5 star rating. Prices start at £30.",
    "I'm you're he'll they'd we've it's SHE'S I'LL",
    "don’t “curly” quotes — dashes – and … dots",
    "1",
    "12",
    "123",
    "1234567890",
    "3.14159 1,000,000 -42 +7 1e-5 0xFF",
    "in 2024, 12/31/1999 at 23:59:59",
    "²³¼½ ①② Ⅷ",
    "٣٤٥ ४५६ ๑๒๓",
    "naïve café résumé Ångström",
    "cafe\u0301 e\u0301 combining",
    "ﬁ ligature ﬀ",
    "Привет, мир! Как дела?",
    "Γειά σου Κόσμε",
    "你好，世界！今天天气很好。",
    "こんにちは世界カタカナ",
    "안녕하세요 세계",
    "مرحبا بالعالم",
    "שלום עולם",
    "नमस्ते दुनिया",
    "สวัสดีชาวโลก",
    "🙂",
    "🙂🙃 😀👍🏽 👩‍👩‍👧‍👦 🇩🇪",
    "emoji🙂in🙂words",
    "zero\u200bwidth\u200dspace\u00a0nbsp\u3000ideographic",
    "\ufeffbyte order mark",
    "\u0000nul\u0007bell\u001bescape",
    "\ufffd replacement",
    "def f(x):\n    return x ** 2  # square\n",
    "fn main() {\n\tprintln!(\"{}\", 1 << 3);\n}",
    "<html><body class=\"a b\">&nbsp;</body></html>",
    "{\"key\": [1, 2.5, null, true], \"s\": \"a\\\"b\"}",
    "SELECT * FROM t WHERE a != 'b' AND c >= 10;",
    "https://example.com/path?query=1&b=2#frag user@example.org",
    "C:\\Users\\name\\file.txt ~/.config/x",
    "snake_case camelCase PascalCase SCREAMING_CASE kebab-case",
    "!!! ??? ... ,,, --- === ### $$$ %%% &&& *** ((( ))) [[[ ]]]",
    "a.b.c.d/e\\f|g`h~i^j",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "antidisestablishmentarianism supercalifragilisticexpialidocious",
    "x" * 3 + " " * 20 + "y",
    "x" * 300,
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    "<|endoftext|>",
    "text<|endoftext|>text <|im_end|> text",
    "<|im_start|><|im_end|><|im_start|>",
    "not special: <|im_star|> <im_end> <|IM_END|>",
    "<repo_name>a/b<file_sep>main.py<empty_output>",
    "<s>bos</s>",
    "  ▁ lower one eighth block ▁▁",
]

# What the small tokenizers are trained on: enough variety to have merges across kinds of characters.
CORPUS = [t for t in TEXTS if "<|" not in t] * 2 + [
    "The quick brown fox jumps over the lazy dog. The dog sleeps, the fox runs away and the day goes on.",
    "A low cost pub near the river serves English food; it is family friendly and has a high customer rating.",
    "There is a place by the riverside that serves Chinese food for less than £20. It is not family-friendly.",
] * 8

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def split(pattern):
    return pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(pattern), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )


def digits():
    return pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )


# `tokenizer.ggml.pre`: pre-tokenizer, normaliser, whether whole words beat merges, whether texts begin with bos.
BYTE_LEVEL = {
    "gpt-2": (lambda: pre_tokenizers.ByteLevel(add_prefix_space=False), None, False, False),
    "smollm": (digits, None, False, False),
    "llama-bpe": (lambda: split(LLAMA3), None, True, True),
    "qwen2": (lambda: split(LLAMA3.replace("{1,3}", "")), normalizers.NFC, False, False),
    "tekken": (lambda: split(TEKKEN), None, True, True),
}


def cases(ids_of, text_of):
    return [{"text": text, "ids": (ids := ids_of(text)), "decoded": text_of(ids)} for text in TEXTS]


def save(name, value):
    (OUT / name).write_text(json.dumps(value, ensure_ascii=True, separators=(",", ":")) + "\n")


def read_by(tokenizer, **more):
    ids_of = lambda text: tokenizer.encode(text, add_special_tokens=False).ids
    return {**more, "cases": cases(ids_of, lambda ids: tokenizer.decode(ids, skip_special_tokens=False))}


def header(path, model, tokens, types, **special):
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model(model)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    for name, value in special.items():
        getattr(writer, f"add_{name}_token_id")(value)
    return writer


def close(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def byte_level(pre):
    make, normalise, whole_words, begins = BYTE_LEVEL[pre]
    tokenizer = Tokenizer(models.BPE(ignore_merges=whole_words))
    tokenizer.pre_tokenizer = make()
    tokenizer.decoder = decoders.ByteLevel()
    if normalise:
        tokenizer.normalizer = normalise()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=560, special_tokens=special, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    state = json.loads(tokenizer.to_str())["model"]
    vocab = sorted(state["vocab"], key=state["vocab"].get)
    writer = header(OUT / f"tok-{pre}.gguf", "gpt2", vocab, [3] * 3 + [1] * (len(vocab) - 3), bos=1, eos=2)
    writer.add_tokenizer_pre(pre)
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in state["merges"]])
    close(writer)
    return read_by(tokenizer, begins=begins)


def sentence_piece():
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(line for text in CORPUS for line in text.split("\n") if "\0" not in line), model_writer=model,
        model_type="bpe", vocab_size=640, byte_fallback=True, character_coverage=0.98, normalization_rule_name="identity",
        remove_extra_whitespaces=False, split_digits=True, allow_whitespace_only_pieces=True, minloglevel=2,
    )
    sp = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    count = range(sp.vocab_size())
    kind = lambda i: 2 if sp.is_unknown(i) else 3 if sp.is_control(i) else 6 if sp.is_byte(i) else 1
    writer = header(
        OUT / "tok-spm.gguf", "llama", [sp.id_to_piece(i) for i in count], [kind(i) for i in count], unk=0, bos=1, eos=2
    )
    writer.add_token_scores([sp.get_score(i) for i in count])
    writer.add_add_space_prefix(True)
    close(writer)
    # The library does not read special tokens in a text, and ids of one have no text of their own.
    plain = [t for t in TEXTS if "<s>" not in t]
    return {
        "begins": True,
        "cases": [{"text": t, "ids": (ids := sp.encode(t)), "decoded": sp.decode(ids)} for t in plain],
    }


# Of what NFKC does: a ligature, a digit in a circle, an accent of its own, a wide space.
RULES = "FB01\t66 69\n2460\t31\n65 301\tE9\n3000\t20\nA0\t20\n9\t20\nA\t20\nD\t20\n"


def unigram():
    from sentencepiece import sentencepiece_model_pb2

    with tempfile.NamedTemporaryFile("w", suffix=".tsv") as rules:
        rules.write(RULES)
        rules.flush()
        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(line for text in CORPUS for line in text.split("\n") if "\0" not in line), model_writer=model,
            model_type="unigram", vocab_size=330, character_coverage=0.98, normalization_rule_tsv=rules.name, pad_id=0, eos_id=1,
            unk_id=2, bos_id=-1, minloglevel=2,
        )
    sp = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    spec = sentencepiece_model_pb2.ModelProto.FromString(model.getvalue()).normalizer_spec
    count = range(sp.vocab_size())
    kind = lambda i: 2 if sp.is_unknown(i) else 3 if sp.is_control(i) else 1
    writer = header(
        OUT / "tok-t5.gguf", "t5", [sp.id_to_piece(i) for i in count], [kind(i) for i in count], unk=2, eos=1, pad=0
    )
    writer.add_token_scores([sp.get_score(i) for i in count])
    writer.add_add_space_prefix(spec.add_dummy_prefix)
    writer.add_remove_extra_whitespaces(spec.remove_extra_whitespaces)
    writer.add_precompiled_charsmap(spec.precompiled_charsmap)
    close(writer)
    out = []
    for text in TEXTS:
        ids = sp.encode(text)
        # A visible space of the text itself is a space to SentencePiece, and to Hugging Face's library not always.
        if "</s>" not in text and "\0" not in text and "▁" not in text:
            out.append({"text": text, "ids": ids} | ({} if 2 in ids else {"decoded": sp.decode(ids)}))
    return {"cases": out}


def word_piece():
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = BertWordPieceTokenizer()
    tokenizer.train_from_iterator(CORPUS, vocab_size=500, special_tokens=special, show_progress=False)
    vocab = tokenizer.get_vocab()
    tokens = sorted(vocab, key=vocab.get)
    # As llama.cpp's converter marks them.
    marked = [t if t in special else t[2:] if t.startswith("##") else "▁" + t for t in tokens]
    writer = header(OUT / "tok-bert.gguf", "bert", marked, [3] * 5 + [1] * (len(tokens) - 5), bos=2, sep=3, unk=1, pad=0, mask=4)
    close(writer)
    ids_of = lambda text: tokenizer.encode(text, add_special_tokens=False).ids
    return {"cases": [{"text": text, "ids": ids_of(text)} for text in TEXTS]}


CHAT = {
    "chatml": "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "llama2": "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = "
    "messages[0]['content'] %}{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}"
    "{% for message in loop_messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}{% if loop.index0 == 0 and system_message != false %}"
    "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}{% else %}"
    "{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
    "{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}",
    "llama3": "{{- bos_token }}\n{%- if not tools is defined %}\n    {%- set tools = none %}\n{%- endif %}\n"
    "{%- for message in messages %}\n    {%- if message.role == 'assistant' %}\n"
    "        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}\n"
    "        {% generation %}{{- message['content'] | trim + '<|eot_id|>' }}{% endgeneration %}\n"
    "    {%- else %}\n"
    "        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}\n"
    "    {%- endif %}\n{%- endfor %}\n{%- if add_generation_prompt %}\n"
    "    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}\n{%- endif %}\n",
    "macros": "{%- macro head(role) -%}\n  [{{ role | upper }}]\n{%- endmacro -%}\n{% set ns = namespace(seen=0) %}\n"
    "{% for m in messages %}\n  {% if m.role == 'user' %}\n    {% set ns.seen = ns.seen + 1 %}\n  {% endif %}\n"
    "{{ head(m.role) }} {{ ns.seen }}: {{ m.content | replace('\n', ' ') | title }}{{ ', '.join(m.content.split()[:2]) }}\n"
    "{% endfor %}\n{{ messages | map(attribute='role') | unique | list | tojson }}\n"
    "{{ {'a': 1, 'b': [true, none, 'é<&']} | tojson }}\n{{ messages[-1].content.startswith('4') }} {{ 7 // 2 }} {{ 'x' ~ 1.5 }}",
}

TALKS = [
    [{"role": "user", "content": "Hi"}],
    [{"role": "system", "content": " Be brief. "}, {"role": "user", "content": "What is 2+2?\nPlease."}],
    [
        {"role": "user", "content": " Hello there "},
        {"role": "assistant", "content": "Hello. How can I help?"},
        {"role": "user", "content": "2+2?"},
        {"role": "assistant", "content": "4 <é>"},
    ],
    [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}],
]


def chats():
    """Rendered by jinja2 with what transformers adds to it."""
    from transformers.utils import chat_template_utils as hf

    out = []
    for name, source in CHAT.items():
        rendered = []
        for talk in TALKS:
            for prompt in (False, True):
                try:
                    text, spans = hf.render_jinja_template(
                        conversations=[talk], chat_template=source, add_generation_prompt=prompt, bos_token="<s>",
                        eos_token="</s>", return_assistant_tokens_mask="endgeneration" in source,
                    )
                    entry = {"text": text[0]}
                    if "endgeneration" in source:
                        entry["assistant"] = [list(span) for span in spans[0]]
                except Exception as error:  # the template's own refusal
                    entry = {"error": str(error)}
                rendered.append({"messages": talk, "add_generation_prompt": prompt, **entry})
        out.append({"name": name, "template": source, "rendered": rendered})
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gguf", type=Path, help="SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("--gpt2", type=Path, help="folder of GPT-2's tokenizer.json")
    args = parser.parse_args()
    OUT.mkdir(parents=True, exist_ok=True)
    if args.gguf:
        smol = AutoTokenizer.from_pretrained(args.gguf.parent, gguf_file=args.gguf.name)
        smol.backend_tokenizer.pre_tokenizer = digits()  # transformers' GGUF reader forgets it
        save("tok-smollm2.json", read_by(smol.backend_tokenizer))
    if args.gpt2:
        gpt2 = Tokenizer.from_file(str(args.gpt2 / "tokenizer.json"))
        save("tok-gpt2.json", read_by(gpt2))
    for pre in BYTE_LEVEL:
        save(f"tok-{pre}.json", byte_level(pre))
    save("tok-spm.json", sentence_piece())
    save("tok-t5.json", unigram())
    save("tok-bert.json", word_piece())
    save("chat.json", chats())


if __name__ == "__main__":
    main()
