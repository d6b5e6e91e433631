"""Write the reference scores of generated texts: crates/lowrank-train/tests/fixtures/nlg_metrics.json.

BLEU is sacreBLEU's; the E2E challenge's BLEU and NIST come from `metrics/pymteval.py` of a checkout of
tuetschek/e2e-metrics; ROUGE-L and CIDEr from pycocoevalcap, METEOR from its jar with exact matches only, all three
over the words of Stanford's PTB tokenizer in the same package (needs java).

    python nlg_metrics.py --e2e-metrics DIR [--out FILE]
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pycocoevalcap.eval
import sacrebleu
from pycocoevalcap.cider.cider_scorer import CiderScorer
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

HERE = Path(__file__).resolve().parent
OUT = HERE.parents[1] / "crates/lowrank-train/tests/fixtures/nlg_metrics.json"
JAR = Path(pycocoevalcap.eval.__file__).parent / "meteor/meteor-1.5.jar"

PUBS = [
    (
        "The Brass Pear is a cheap, family-friendly wine bar by the river.",
        [
            "The Brass Pear is a family-friendly wine bar near the river. It's cheap.",
            "By the river there is a cheap wine bar called The Brass Pear; families are welcome.",
            "Cheap and family friendly, The Brass Pear serves wine by the river.",
        ],
    ),
    (
        "Wild Thyme serves Greek food between £20-25 and isn't family-friendly.",
        [
            "Wild Thyme, with prices of £20-25, serves Greek food. It is not family-friendly.",
            "If you don't bring children, Wild Thyme has Greek food for £20-25.",
        ],
    ),
    ("Nine Barrels, a diner", ["Nine Barrels is a diner in the old town with a rating of 3.5 out of 5."]),
    (
        "the river the river the river the Old Mill Table is by the river the the",
        ["Old Mill Table is by the river, on the river, at the river.", "The Old Mill Table is near the river."],
    ),
    (
        'Marigold ("the golden one") has 1,200 seats & a 5-star rating.',
        ["Marigold (\"the golden one\") has 1,200 seats & a 5-star rating.", "Marigold has 1,200 seats."],
    ),
    ("Café Belén is rated 5", ["Café Belén is rated 5 out of 5.", "Café Belén"]),
]

CASES = {
    "pubs": PUBS,
    # One reference each, and no run of four words in common.
    "loose": [
        ("a dog runs over there", ["the dog runs"]),
        ("people walk in the green park", ["some people walk through the park"]),
    ],
    # The E2E script takes an empty text for one word.
    "empty": [*PUBS[:2], ("", ["it is raining today"])],
    "equal": [(refs[0], refs) for _, refs in PUBS],
    "shifted": [(hypothesis, PUBS[i - 1][1]) for i, (hypothesis, _) in enumerate(PUBS)],
}


def ptb(texts):
    captions = {i: [{"caption": text}] for i, text in enumerate(texts)}
    return [tokens[0] for _, tokens in sorted(PTBTokenizer().tokenize(captions).items())]


def meteor(hypotheses, references):
    most = max(len(refs) for refs in references)
    with tempfile.TemporaryDirectory() as folder:
        hyp, ref = Path(folder, "hyp"), Path(folder, "ref")
        hyp.write_text("".join(f"{h}\n" for h in hypotheses))
        ref.write_text("".join(f"{(r + r[:1] * most)[i]}\n" for r in references for i in range(most)))
        command = ["java", "-Xmx1G", "-jar", JAR, hyp, ref, "-l", "en", "-m", "exact", "-r", str(most)]
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return float(re.search(r"Final score:\s+(\S+)", out)[1])


def scores(case, pymteval):
    hypotheses = [h for h, _ in case]
    references = [r for _, r in case]
    most = max(len(refs) for refs in references)
    streams = [[(refs + [None] * most)[i] for refs in references] for i in range(most)]
    bleu, nist = pymteval.BLEUScore(), pymteval.NISTScore()
    for hypothesis, refs in case:
        bleu.append(hypothesis, refs)
        nist.append(hypothesis, refs)

    # The tokenizer drops an empty last line; none of the texts it gets is empty.
    flat = [h for h in hypotheses if h] + [r for refs in references for r in refs]
    words = dict(zip(flat, ptb(flat)), **{"": ""})
    hyp_words = [words[h] for h in hypotheses]
    ref_words = [[words[r] for r in refs] for refs in references]
    cider = CiderScorer()
    for hypothesis, refs in zip(hyp_words, ref_words):
        cider += (hypothesis, refs)
    keys = range(len(case))
    rouge, _ = Rouge().compute_score(dict(zip(keys, ref_words)), {k: [h] for k, h in zip(keys, hyp_words)})
    result = {
        "bleu": sacrebleu.corpus_bleu(hypotheses, streams).score,
        "bleu-e2e": bleu.score(),
        "nist": nist.score(),
        "meteor": meteor(hyp_words, ref_words),
        "rouge-l": float(rouge),
        "cider": float(cider.compute_score()[0]),
    }
    return result if all(hypotheses) else {k: v for k, v in result.items() if k not in ("bleu-e2e", "nist")}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--e2e-metrics", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    sys.path.insert(0, str(args.e2e_metrics / "metrics"))
    import pymteval

    result = {
        name: {
            "segments": [{"hypothesis": h, "references": r} for h, r in case],
            "scores": scores(case, pymteval),
        }
        for name, case in CASES.items()
    }
    args.out.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
