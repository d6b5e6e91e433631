"""GRPO on the E2E data: texts that say every slot of their prompt and nothing else.

    python examples/e2e_rewards.py prompts devset.csv 300 > prompts.jsonl
    lowrank train --task grpo --model MODEL --data prompts.jsonl --out out \\
        --reward-funcs "command:python3 examples/e2e_rewards.py reward"

As a reward it reads a row with its completion a line, and answers each with the share of the slots that are said, less the share of the
named things that the prompt does not have.
"""

import csv
import json
import re
import sys

INSTRUCTION = "Write one sentence about the restaurant. Say all of this and nothing else: "

# What says a slot, where that is not its value.
SAID = {
    "eatType": {"pub": ["pub"], "coffee shop": ["coffee shop", "coffee"], "restaurant": ["restaurant"]},
    "food": {"English": ["english", "british"], "Fast food": ["fast food"]},
    "area": {"city centre": ["city centre", "city center", "centre of the city"], "riverside": ["riverside", "river"]},
    "familyFriendly": {
        "yes": ["family-friendly", "family friendly", "kid", "child", "families"],
        "no": ["not family", "not kid", "not child", "isn't family", "adult", "non-family", "no children", "no kids", "no families",
               "not a family", "not for families", "not suitable"],
    },
    "priceRange": {
        "cheap": ["cheap", "inexpensive", "low-price", "low price", "affordable", "budget"],
        "moderate": ["moderate", "average price", "mid-price", "mid price"],
        "high": ["high", "expensive", "pric"],
        "less than £20": ["less than £20", "under £20", "below £20"],
        "£20-25": ["£20-25", "£20 - £25", "£20 to £25", "20-25"],
        "more than £30": ["more than £30", "over £30", "above £30"],
    },
    "customer rating": {
        "low": ["low"], "average": ["average"], "high": ["high"],
        "1 out of 5": ["1 out of 5", "one out of five", "1/5", "1 star", "one star"],
        "3 out of 5": ["3 out of 5", "three out of five", "3/5", "3 star", "three star"],
        "5 out of 5": ["5 out of 5", "five out of five", "5/5", "5 star", "five star"],
    },
}
# Things that a text may name and the prompt may not have.
FOODS = ["Chinese", "English", "French", "Indian", "Italian", "Japanese", "Fast food"]
AREAS = ["city centre", "riverside"]


def slots(meaning):
    return re.findall(r"([\w ]+)\[([^\]]*)\]", meaning)


def says(text, slot, value):
    if (slot, value) == ("familyFriendly", "yes") and says(text, slot, "no"):
        return False
    return any(words in text for words in SAID.get(slot, {}).get(value, [value.lower()]))


def reward(row):
    text, have = row["completion"].lower(), slots(row["mr"])
    said = sum(says(text, slot.strip(), value) for slot, value in have) / len(have)
    known = {value for _, value in have}
    others = [("food", food) for food in FOODS if food not in known] + [("area", area) for area in AREAS if area not in known]
    wrong = sum(says(text, slot, value) for slot, value in others)
    return said - 0.25 * wrong


def prompts(path, most):
    seen = {}
    for row in csv.DictReader(open(path, encoding="utf-8")):
        seen.setdefault(row["mr"], row["ref"])
    for mr in list(seen)[:: max(1, len(seen) // most)][:most]:
        print(json.dumps({"prompt": [{"role": "user", "content": INSTRUCTION + mr}], "mr": mr}, ensure_ascii=False))


def main():
    if sys.argv[1:2] == ["prompts"]:
        return prompts(sys.argv[2], int(sys.argv[3]))
    for line in sys.stdin:
        print(reward(json.loads(line)), flush=True)


if __name__ == "__main__":
    main()
