"""What transformers makes of configurations: crates/lowrank/tests/fixtures/configs/*.json."""

import sys

from configs import FAMILIES, Cases

# The weight of the output layer, and that of the embedding.
OUTPUTS = {
    "gpt2": ("lm_head.weight", "transformer.wte.weight"),
    "bert": ("cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"),
    "roberta": ("lm_head.decoder.weight", "roberta.embeddings.word_embeddings.weight"),
    "xlm-roberta": ("lm_head.decoder.weight", "roberta.embeddings.word_embeddings.weight"),
    "distilbert": ("vocab_projector.weight", "distilbert.embeddings.word_embeddings.weight"),
    "deberta-v2": ("cls.predictions.decoder.weight", "deberta.embeddings.word_embeddings.weight"),
}
DECODER = ("lm_head.weight", "model.embed_tokens.weight")


def tied():
    """`tie_word_embeddings`, against what the files hold."""
    cases = Cases()
    for family in FAMILIES:
        output, table = OUTPUTS.get(family, DECODER)
        for tie in (True, False, None):
            files = {
                "both": {},
                "equal": {"same": {output: table}},
                "output": {"without": [table]},
                "table": {"without": [output]},
                "neither": {"without": [output, table]},
            }
            for name, changes in files.items():
                field = {} if tie is None else {"tie_word_embeddings": tie}
                cases.add(family, f"{family}: {tie}, {name}", **changes, **field)
        cases.add(family, f"{family}: null", **{"tie_word_embeddings": None})
    for family, bias, shared in (
        ("bert", "cls.predictions.decoder.bias", "cls.predictions.bias"),
        ("roberta", "lm_head.decoder.bias", "lm_head.bias"),
        ("deberta-v2", "cls.predictions.decoder.bias", "cls.predictions.bias"),
    ):
        output = OUTPUTS[family][0]
        for name, without in (("own bias", [shared]), ("shared bias", [bias]), ("neither bias", [bias, shared])):
            cases.add(family, f"{family}: tied, {name}", without=[output, *without])
            cases.add(family, f"{family}: untied, {name}", without=without)
            # What is untied has no use for a shared bias, though transformers misses it.
            if bias in without:
                cases.add(family, f"{family}: false, {name}", without=without, tie_word_embeddings=False)
    cases.write("tied")


ALL = {"tied": tied}

if __name__ == "__main__":
    for name in sys.argv[1:] or ALL:
        ALL[name]()
