"""Make preferences of the E2E data: the reference text is chosen, and rejected is the same text with a wrong name or a wrong value.

    python examples/e2e_preferences.py devset.csv 2000 > preferences.jsonl
"""

import csv
import json
import random
import re
import sys


def slots(meaning):
    return dict(re.findall(r"(\w+)\[([^\]]*)\]", meaning))


def main():
    path, most = sys.argv[1], int(sys.argv[2])
    rows = list(csv.DictReader(open(path, encoding="utf-8")))
    known = {}
    for row in rows:
        for slot, value in slots(row["mr"]).items():
            known.setdefault(slot, set()).add(value)
    known = {slot: sorted(values) for slot, values in known.items()}
    rng = random.Random(1)
    rng.shuffle(rows)
    made = 0
    for row in rows:
        chosen = row["ref"].strip()
        # Slots whose value stands in the text as it is, and has others to be mistaken for.
        said = [(slot, value) for slot, value in slots(row["mr"]).items() if value in chosen and len(known[slot]) > 1]
        if not said or made == most:
            continue
        slot, value = rng.choice(said)
        other = rng.choice([known_value for known_value in known[slot] if known_value != value])
        rejected = chosen.replace(value, other)
        print(json.dumps({"prompt": row["mr"] + "\n", "chosen": chosen, "rejected": rejected}, ensure_ascii=False))
        made += 1


if __name__ == "__main__":
    main()
