#!/usr/bin/env bash
# From a base model and a data file to a merged model, every command shown before it runs.
# Usage: examples/demo.sh MODEL.gguf   (make demo builds and calls it)
set -euo pipefail

model=$1
root=$(cd "$(dirname "$0")/.." && pwd)
bin=${CARGO_TARGET_DIR:-$root/target}/release
work=$root/.demo/run
rm -rf "$work"
mkdir -p "$work"

run() {
    printf '\n$ lowrank %s\n' "$*" >&2
    "$bin/lowrank" "$@"
}

number() { # FILE KEY: a number out of a flat JSON object
    sed -E "s/.*\"$2\":([-0-9.e]+).*/\1/" "$1"
}

"$bin/examples/restaurants" --out "$work" --train 480 --eval 60 --seed 1
prompt="name[The Lantern], eatType[pub], food[Thai], priceRange[moderate], area[riverside], near[Harbour Hall]
"

run generate --model "$model" --prompt "$prompt" --max-new-tokens 60 | tee "$work/before.txt"
run eval --model "$model" --data "$work/eval.jsonl" --json | tee "$work/before.json"

run plan --model "$model" --data "$work/train.jsonl" --epochs 1
run train --model "$model" --data "$work/train.jsonl" --eval-data "$work/eval.jsonl" --out "$work/adapter" --epochs 1

run generate --model "$model" --adapter "$work/adapter" --prompt "$prompt" --max-new-tokens 60 | tee "$work/after.txt"
run eval --model "$model" --adapter "$work/adapter" --data "$work/eval.jsonl" --json | tee "$work/after.json"

run merge --model "$model" --adapter "$work/adapter" --out "$work/merged" --dtype f32 --tolerance 1e-2
run generate --model "$work/merged" --prompt "$prompt" --max-new-tokens 60 | tee "$work/merged.txt"
run eval --model "$work/merged" --data "$work/eval.jsonl" --json > "$work/merged.json"

before=$(number "$work/before.json" loss)
after=$(number "$work/after.json" loss)
merged=$(number "$work/merged.json" loss)
printf '\nheld-out loss: %s before, %s after, %s merged\n' "$before" "$after" "$merged"
printf 'before: %s\nafter:  %s\n' "$(tr '\n' ' ' < "$work/before.txt")" "$(cat "$work/after.txt")"
awk -v b="$before" -v a="$after" -v m="$merged" 'BEGIN {
    if (a > 0.7 * b) { print "FAILED: the adapter did not learn"; exit 1 }
    if (m - a > 1e-3 || a - m > 1e-3) { print "FAILED: the merged model differs from base + adapter"; exit 1 }
}'
cmp "$work/after.txt" "$work/merged.txt" || { echo "FAILED: merged text differs"; exit 1; }
echo "The merged model in $work/merged says the same as base + adapter."
