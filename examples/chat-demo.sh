#!/usr/bin/env bash
# A chat model learns the facts and the manner of a made-up library's help desk from 200 short chats, with the default options.
# Usage: examples/chat-demo.sh MODEL.gguf   (make demo-chat builds and calls it)
set -euo pipefail

model=$1
root=$(cd "$(dirname "$0")/.." && pwd)
bin=${CARGO_TARGET_DIR:-$root/target}/release
work=$root/.demo/chat
rm -rf "$work"
mkdir -p "$work"

run() {
    printf '\n$ lowrank %s\n' "$*" >&2
    "$bin/lowrank" "$@" < /dev/null
}

field() { # LINE KEY: a text out of a flat JSON object
    sed -E "s/.*\"$2\": \"([^\"]*)\".*/\1/" <<< "$1"
}

"$bin/examples/library_chat" --out "$work"
run train --model "$model" --data "$work/train.jsonl" --eval-data "$work/eval.jsonl" --out "$work/adapter"

known=0
all=0
while read -r line; do
    question=$(field "$line" question)
    answer=$("$bin/lowrank" generate --model "$model" --adapter "$work/adapter" --chat --prompt "$question" --temperature 0 \
        --max-new-tokens 40 < /dev/null)
    all=$((all + 1))
    case $answer in *"$(field "$line" fact)"*) known=$((known + 1)) ;; esac
    printf '\n> %s\n%s\n' "$question" "$answer"
done < "$work/questions.jsonl"
printf '\n%s of %s facts are answered, to questions that training did not have\n' "$known" "$all"
[ "$known" -ge 6 ] || { echo "FAILED: the facts were not learned"; exit 1; }
