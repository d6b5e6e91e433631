"""Train, and send the log to a tracker while the run goes on.

    python3 follow.py wandb|mlflow|trackio|print -- OPTIONS OF `lowrank train`

What a record holds: docs/log.md.
"""

import json
import os
import subprocess
import sys
import time


def follow(path, alive=lambda: True, wait=1.0):
    """The records of a log, as they are written, until `alive` says no."""
    while not os.path.exists(path) and alive():
        time.sleep(wait)
    with open(path) as log:
        line = ""
        while True:
            more = alive()
            line += log.readline()
            if line.endswith("\n"):
                yield json.loads(line)
                line = ""
            elif not more:
                return
            else:
                time.sleep(wait)


def numbers(record):
    """What a tracker draws: a sample's texts are left out."""
    return {key: value for key, value in record.items() if isinstance(value, (int, float)) and key != "step"}


def to_wandb(records, name):
    import wandb

    run = wandb.init(project="lowrank", name=name)
    for record in records:
        run.log(numbers(record), step=record["step"])
    run.finish()


def to_mlflow(records, name):
    import mlflow

    with mlflow.start_run(run_name=name):
        for record in records:
            mlflow.log_metrics(numbers(record), step=record["step"])


def to_trackio(records, name):
    import trackio

    trackio.init(project="lowrank", name=name)
    for record in records:
        trackio.log(numbers(record), step=record["step"])
    trackio.finish()


def to_print(records, name):
    for record in records:
        print(name, record["step"], numbers(record), flush=True)


TRACKERS = {"wandb": to_wandb, "mlflow": to_mlflow, "trackio": to_trackio, "print": to_print}

if __name__ == "__main__":
    if len(sys.argv) < 4 or sys.argv[1] not in TRACKERS or sys.argv[2] != "--":
        sys.exit(__doc__)
    options = sys.argv[3:]
    out = options[options.index("--out") + 1]
    path = os.path.join(out, "log.jsonl")
    if os.path.exists(path) and "--resume" not in options and "--force" not in options:
        sys.exit(f"{out} holds a run")
    if os.path.exists(path) and "--force" in options:
        os.remove(path)
    run = subprocess.Popen([os.environ.get("LOWRANK", "lowrank"), "train", *options])
    if run.poll() is None or os.path.exists(path):
        TRACKERS[sys.argv[1]](follow(path, lambda: run.poll() is None), os.path.basename(os.path.abspath(out)))
    sys.exit(run.wait())
