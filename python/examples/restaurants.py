"""Teach a model to write sentences about restaurants: open, look, train, compare, merge.

    python restaurants.py --model SmolLM2-135M-Instruct.Q4_1.gguf

Written to be read top to bottom or pasted into a notebook cell by cell (`# %%` marks the cells); the rows are made
up, so nothing has to be downloaded but the model.
"""

# %% What to run on.
import argparse
import itertools

import lowrank

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", required=True, help="GGUF file, Hugging Face folder or hub id")
parser.add_argument("--out", default="restaurants-adapter", help="folder for the adapter")
parser.add_argument("--steps", type=int, default=40)
args = parser.parse_args()

# %% The data: what is known of a place, and a sentence that says it.
names = ["The Anchor", "Blue Door", "Casa Luna", "Dockside", "Elm House", "Fig Tree"]
foods = ["Italian", "Indian", "French", "Japanese"]
areas = ["riverside", "city centre"]
rows = [
    {
        "prompt": f"name[{name}], food[{food}], area[{area}]\n",
        "completion": f"{name} serves {food} food in the {area}.",
    }
    for name, food, area in itertools.product(names, foods, areas)
]
held_out, train = rows[::8], [row for i, row in enumerate(rows) if i % 8]

# %% The model, and what training it will need.
model = lowrank.Model.from_pretrained(args.model)
options = {"r": 8, "batch_size": 8, "learning_rate": 1e-3, "max_steps": args.steps}
plan = model.plan(train, options)
print(f"{plan['trainable_parameters']:,} numbers to train, {plan['peak_bytes'] / 1e6:.0f} MB at most")

prompt = "name[Harbour View], food[Spanish], area[riverside]\n"
before = model.generate(prompt, max_new_tokens=24, stop="\n")

# %% Training; `curve` is ready to plot.
curve = []
result = model.train(
    train, options, out=args.out, eval_dataset=held_out, force=True,
    callback=lambda record: curve.append((record["step"], record.get("loss"))),
)
print(f"{result.steps} steps, loss {result.first_loss:.3f} to {result.last_loss:.3f}, "
      f"held-out loss {result.eval_loss:.3f}")

# %% Before and after.
print("before:", before)
print("after: ", model.generate(prompt, max_new_tokens=24, stop="\n"))

# %% The numbers, without a copy: how sure the model is of its next token.
logits = model.logits(prompt)
print("logits:", logits.shape, "at", hex(logits.data_ptr()))
print("largest adapters:", ", ".join(sorted(model.adapter_weights())[:2]), "...")
