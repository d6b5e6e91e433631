"""Write what transformers' generate gives on the tiny models: crates/lowrank/tests/fixtures/beam.json.

The prompts are the sequences of each model's expected.safetensors, the adapter is attached.

    python beam.py [--fixtures DIR]
"""

import argparse
import json
from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

FIXTURES = Path(__file__).resolve().parents[2] / "crates/lowrank/tests/fixtures"
MODELS = ["gpt2_c_attn", "llama_gqa_tied", "mistral_window", "phi3_longrope"]
CASES = [
    {"num_beams": 1, "no_repeat_ngram_size": 2},
    {"num_beams": 3},
    {"num_beams": 10, "length_penalty": 0.8, "no_repeat_ngram_size": 4},
    {"num_beams": 4, "length_penalty": 2.0, "no_repeat_ngram_size": 2},
    {"num_beams": 4, "length_penalty": 0.0, "early_stopping": True},
    {"num_beams": 4, "length_penalty": 1.5, "early_stopping": "never"},
    {"num_beams": 2, "length_penalty": -1.0, "early_stopping": "never"},
]
# Random models rarely end a text: these words do, besides the one that is meant to.
ENDS = [2, 7, 40]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--fixtures", type=Path, default=FIXTURES)
    folder = parser.parse_args().fixtures
    out = []
    for name in MODELS:
        base = AutoModelForCausalLM.from_pretrained(folder / name, dtype=torch.float32, attn_implementation="eager")
        model = PeftModel.from_pretrained(base, folder / name / "adapter").eval()
        ids = load_file(folder / name / "expected.safetensors")
        for case in CASES:
            for i in range(3):
                prompt = ids[f"ids_{i}"]
                given = model.generate(
                    input_ids=prompt[None],
                    attention_mask=torch.ones_like(prompt[None]),
                    max_new_tokens=16,
                    do_sample=False,
                    eos_token_id=ENDS,
                    pad_token_id=2,
                    return_dict_in_generate=True,
                    output_scores=True,
                    **case,
                )
                tokens = given.sequences[0, len(prompt) :].tolist()
                entry = {"model": name, "prompt": i, "options": case, "tokens": tokens}
                if case["num_beams"] > 1:
                    entry["score"] = given.sequences_scores[0].item()
                out.append(entry)
    with open(folder / "beam.json", "w") as file:
        file.write("[\n" + ",\n".join(json.dumps(entry) for entry in out) + "\n]\n")


if __name__ == "__main__":
    main()
