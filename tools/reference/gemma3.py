"""Write what transformers + PEFT compute for the real Gemma 3 270M: a text's perplexity, greedy continuations, ten steps.

The base is read from its GGUF file (Q4_K_M), dequantised to float32. Its tokenizer is SentencePiece's kind and begins
every text with <bos>. The rows are the first of `smollm2/rows.jsonl`. The keys are listed in README.md next to this file.

    python gemma3.py --gguf gemma-3-270m-q4_k_m.gguf [--out DIR]
"""

import argparse
import json
import shutil
from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import smollm2
from smollm2 import FIXTURES, read_rows, start_adapter, write_json

STEPS, BATCH = 10, 4
TEXTS = [
    "The kettle was made of copper, and it sang when the water boiled. My grandmother kept it on the back of the "
    "stove all winter, so that there was always tea for whoever came in from the snow.",
    "To build the program you need a compiler and about two gigabytes of free disk space. First fetch the sources, "
    "then run the build script, and at last copy the binary to a folder on your path.",
]
PROMPTS = ["The capital of France is", "Once upon a time there was"]
CHAT = "<start_of_turn>user\nName three fruits.<end_of_turn>\n<start_of_turn>model\n"


def generate(model, tokenizer, text, new):
    ids = tokenizer(text, return_tensors="pt")
    result = model.generate(
        **ids, max_new_tokens=new, do_sample=False, output_logits=True, return_dict_in_generate=True
    )
    pairs = torch.stack([step[0].topk(2).values for step in result.logits])
    return {
        "text": text,
        "prompt_ids": ids.input_ids[0].tolist(),
        "ids": result.sequences[0, ids.input_ids.shape[1] :].tolist(),
        "smallest_margin": round((pairs[:, 0] - pairs[:, 1]).min().item(), 4),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gguf", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=FIXTURES / "gemma3")
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(args.out / "start_adapter", ignore_errors=True)
    where = {"gguf_file": args.gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(args.gguf.parent, **where)
    model = AutoModelForCausalLM.from_pretrained(
        args.gguf.parent, dtype=torch.float32, attn_implementation="eager", **where
    ).eval()

    texts = []
    with torch.no_grad():
        for text in TEXTS:
            ids = tokenizer(text, return_tensors="pt").input_ids
            ended = torch.cat([ids, torch.tensor([[tokenizer.eos_token_id]])], dim=1)
            losses = [model(input_ids=i, labels=i).loss.item() for i in (ids, ended)]
            texts.append({"text": text, "ids": ids[0].tolist(), "loss": losses[0], "loss_with_eos": losses[1]})
    write_json(args.out / "texts.json", texts)
    generations = [generate(model, tokenizer, text, 20) for text in [*PROMPTS, CHAT]]
    write_json(args.out / "generations.json", generations)

    # As TRL does: prompt and completion encoded as one text, begun by the tokenizer, ended with its end token.
    rows = []
    for prompt, completion in read_rows(FIXTURES / "smollm2/rows.jsonl", 200)[: STEPS * BATCH]:
        whole = tokenizer(prompt + completion).input_ids + [tokenizer.eos_token_id]
        head = tokenizer(prompt).input_ids
        assert whole[: len(head)] == head
        rows.append((whole, len(head)))
    model = start_adapter(args.out / "start_adapter", model, base="google/gemma-3-270m")
    model = PeftModel.from_pretrained(model, args.out / "start_adapter", is_trainable=True).eval()
    out = {
        "row_lengths": torch.tensor([len(ids) for ids, _ in rows]),
        "prompt_lengths": torch.tensor([prompt for _, prompt in rows]),
        "row_checksums": torch.tensor([sum((i + 1) * t for i, t in enumerate(ids)) for ids, _ in rows]),
    }
    smollm2.STEPS, smollm2.BATCH = STEPS, BATCH
    smollm2.train(model, rows, out)
    save_file({k: v.contiguous() for k, v in out.items()}, args.out / "expected.safetensors")
    print(json.dumps(texts, indent=1))


if __name__ == "__main__":
    main()
