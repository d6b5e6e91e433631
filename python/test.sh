#!/usr/bin/env bash
# Builds the wheel, installs it into a virtual environment and tests it there. PyTorch is large: where it cannot be
# installed within TORCH_SECONDS (600), the tests that need it are skipped, with that reason.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=python/.venv
python=$venv/bin/python

[ -x $python ] || python3 -m venv $venv
$python -m pip install --quiet --requirement python/requirements-test.txt

# The target folder is the workspace's: what both need is compiled once.
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$PWD/target}"
rm -rf "$CARGO_TARGET_DIR/wheels"
$venv/bin/maturin build --release --manifest-path python/Cargo.toml --out "$CARGO_TARGET_DIR/wheels" --quiet
$python -m pip install --quiet --force-reinstall --no-deps "$CARGO_TARGET_DIR"/wheels/*.whl

limit=${TORCH_SECONDS:-600}
if ! timeout "$limit" $python -m pip install --quiet --requirement python/requirements-torch.txt; then
    echo "PyTorch could not be installed within $limit seconds: its tests are skipped" >&2
fi
# The archives of releases are tested with any program that was built.
[ -x "$CARGO_TARGET_DIR/release/lowrank" ] || cargo build --release --quiet --package lowrank --bin lowrank
exec $python -m pytest python/tests tools/release -q -rs "$@"
