"""The example that makes preferences of E2E rows."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "examples/e2e_preferences.py"


def test_rejected_says_something_else(tmp_path):
    data = tmp_path / "e2e.csv"
    rows = [("The Eagle", "Thai"), ("The Punter", "Italian"), ("Aromi", "Chinese")]
    text = "".join(f'"name[{name}], food[{food}]","{name} serves {food} food."\n' for name, food in rows)
    data.write_text("mr,ref\n" + text)
    out = subprocess.run([sys.executable, SCRIPT, data, "2"], check=True, capture_output=True, text=True).stdout
    made = [json.loads(line) for line in out.splitlines()]
    assert len(made) == 2
    for row in made:
        assert row["chosen"] != row["rejected"] and row["prompt"].endswith("\n")
        assert any(row["rejected"] == f"{name} serves {food} food." for name, _ in rows for _, food in rows)
