"""Token ids of every `tokenizer.ggml.pre` that llama.cpp knows, over one small vocabulary.

Writes crates/lowrank-models/tests/fixtures/tok-pre.gguf (a byte-level BPE whose merges know no words, so that every cut
shows) and tok-pre.json: for each text the different lists of ids, and for each name which of them it gives. LIB is
llama.cpp's library, such as that of the Python package xllamacpp. Patterns that llama.cpp rewrites for its own engine, with
other words for combining marks and for capitals within a word, are those of the models' own files, read by `tokenizers`.

Usage: pre_tokenizers.py LIB
"""

import ctypes
import json
import sys
import tempfile
import unicodedata
from pathlib import Path

import gguf
from tokenizer import CORPUS, OUT, TEKKEN, TEXTS, close, header
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

NAMES = (
    "gpt-2 phi-2 olmo mpt jais jina-es jina-de gigachat jina-v2-es jina-v2-de a.x-4.0 mellum modern-bert exaone4 trillion "
    "granite-docling roberta-bpe jina-v1-en jina-v2-code smollm starcoder refact command-r codeshell exaone minerva-7b mellum2 "
    "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano dbrx smaug-bpe glm4 chatglm-bpe qwen2 "
    "deepseek-r1-qwen stablelm2 hunyuan f2llmv2 megrez kormo solar-open grok-2 qwen35 tekken gpt-4o llama4 kanana2 talkie "
    "minimax-m2 granite-embed-multi-97m tiny_aya cohere2moe jais-2 minicpm5 deepseek-llm deepseek-coder deepseek-v3 "
    "hunyuan-dense hy_v4 joyai-llm spark2_5 youtu falcon poro-chat bloom gpt3-finnish viking chameleon kimi-k2 superbpe "
    "bailingmoe bailingmoe2 llada-moe seed-coder ufakzeka afmoe laguna exaone-moe default"
).split()
# Whose own tokenizers normalise, which llama.cpp does not.
NFC = "qwen2 deepseek-r1-qwen stablelm2 hunyuan f2llmv2 qwen35".split()
UPPER, LOWER, SHORT = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}", "(?i:'s|'t|'re|'ve|'m|'ll|'d)?"


def words(end, rest):
    upper, lower, first = UPPER + end, LOWER + end, r"[^\r\n\p{L}\p{N}]?"
    return f"{first}{upper}*{lower}+{SHORT}|{first}{upper}+{lower}*{SHORT}|{rest}" + r"\s*[\r\n]+|\s+(?!\S)|\s+"


O200K = words("]", r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|")
KIMI = r"[\p{Han}]+|" + words(r"&&[^\p{Han}]]", r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|")
YOUTU = ["[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-〿︰-﹏]+|[ㄅ-ㄯ]+|[一-龥\u3040-ゟ゠-ヿ]+", words("]", r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|")]
# Names, patterns, and whether a word that is a token is taken whole.
REWRITTEN = [
    ("tekken", [TEKKEN], True),
    ("gpt-4o llama4 kanana2 talkie minimax-m2", [O200K], False),
    ("granite-embed-multi-97m", [O200K], True),
    ("tiny_aya cohere2moe", [r"\d{1,3}(?=(?:\d{3})*\b)", O200K], False),
    ("youtu", YOUTU, True),
    ("kimi-k2", [KIMI], False),
]
MORE = ["1234567 and 12,345,678.90", "x\n\n\ny \n z\t\n", "HTTPServer's ISN'T myVar2Go", "ДА ИЛИ Нет", "İstanbul'da 3'te"]


class Params(ctypes.Structure):
    """llama_model_params, with room for later fields; `vocab_only` is byte 72 (version 11549)."""

    _fields_ = [("bytes", ctypes.c_uint8 * 256)]


class Llama:
    def __init__(self, path):
        self.lib = lib = ctypes.CDLL(path)
        lib.llama_model_default_params.restype = Params
        lib.llama_model_load_from_file.argtypes = [ctypes.c_char_p, Params]
        lib.llama_model_load_from_file.restype = ctypes.c_void_p
        lib.llama_model_get_vocab.argtypes = [ctypes.c_void_p]
        lib.llama_model_get_vocab.restype = ctypes.c_void_p
        lib.llama_model_free.argtypes = [ctypes.c_void_p]
        lib.llama_tokenize.argtypes = [
            ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int32, ctypes.c_void_p, ctypes.c_int32, ctypes.c_bool, ctypes.c_bool,
        ]
        self.quiet = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda *_: None)
        lib.llama_log_set(self.quiet, None)
        lib.llama_backend_init()

    def ids(self, path, texts):
        params = self.lib.llama_model_default_params()
        assert list(params.bytes[72:77]) == [0, 0, 1, 0, 0], "llama_model_params has another layout"
        params.bytes[72] = 1
        model = self.lib.llama_model_load_from_file(str(path).encode(), params)
        assert model, path
        vocab = self.lib.llama_model_get_vocab(model)
        out = []
        for text in texts:
            raw = text.encode()
            ids = (ctypes.c_int32 * (len(raw) + 16))()
            count = self.lib.llama_tokenize(vocab, raw, len(raw), ids, len(ids), False, True)
            assert count >= 0
            out.append(list(ids[:count]))
        self.lib.llama_model_free(model)
        return out


def vocabulary():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = trainers.BpeTrainer(
        vocab_size=900, special_tokens=["<|endoftext|>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), max_token_length=12,
    )
    tokenizer.train_from_iterator(CORPUS + MORE * 8, trainer)
    state = json.loads(tokenizer.to_str())["model"]
    return sorted(state["vocab"], key=state["vocab"].get), [" ".join(m) for m in state["merges"]]


def by_library(vocab, merges, patterns, whole_words, texts):
    model = models.BPE(
        vocab={t: i for i, t in enumerate(vocab)}, merges=[tuple(m.split(" ")) for m in merges], ignore_merges=whole_words
    )
    tokenizer = Tokenizer(model)
    tokenizer.add_special_tokens(vocab[:1])
    cuts = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*cuts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    return [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]


def write(path, vocab, merges, pre=None):
    writer = header(path, "gpt2", vocab, [3] + [1] * (len(vocab) - 1), bos=0, eos=0)
    if pre:
        writer.add_tokenizer_pre(pre)
    writer.add_token_merges(merges)
    close(writer)


def main():
    llama = Llama(sys.argv[1])
    vocab, merges = vocabulary()
    write(OUT / "tok-pre.gguf", vocab, merges)
    texts = [text for text in TEXTS + MORE if "\0" not in text and len(text) < 200]
    lists = [[] for _ in texts]
    by_name = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.gguf"
        for name in NAMES:
            write(path, vocab, merges, name)
            own = next(((cuts, whole) for names, cuts, whole in REWRITTEN if name in names.split()), None)
            given = [unicodedata.normalize("NFC", text) for text in texts] if name in NFC else texts
            which = []
            all_ids = by_library(vocab, merges, *own, texts) if own else llama.ids(path, given)
            for known, ids in zip(lists, all_ids, strict=True):
                if ids not in known:
                    known.append(ids)
                which.append(known.index(ids))
            by_name[name] = which
    fixture = {"texts": texts, "ids": lists, "names": by_name}
    (OUT / "tok-pre.json").write_text(json.dumps(fixture, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
