# Everything runs in .venv; nothing is installed outside this folder.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: help install demo test docs dist fuzz test-features test-extractors check-features test-onnx test-browser test-serve lint bench bench-quick full-size clean faults soak gpu-check triton-shapes lives mutants
.DEFAULT_GOAL := help

help: ## Show the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 22

install: $(INSTALLED) ## Make .venv with trarctl and its pinned dependencies

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "error: trarctl needs Python 3.11 or newer" >&2; \
		     echo "hint:  make install PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# The stamp is older than the pins after an update: only then is anything installed again.
$(INSTALLED): pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[demo,report,tensorboard,dev]'
	@touch $@

demo: $(INSTALLED) ## Train TRAR on easy-VQA, score it and write its answers
	$(BIN)/trarctl prepare easy-vqa
	$(BIN)/trarctl train easy-vqa
	$(BIN)/trarctl eval
	$(BIN)/trarctl submit

lint: $(INSTALLED) ## Style, types and the import contract
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

test: lint ## Lint, then every test
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2

faults: $(INSTALLED) ## Kill, fill up, interrupt and resume runs in every way that counts, one table (about 20 minutes)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.faults

LIVES ?= 2000

lives: $(INSTALLED) ## Live random lives of a run, 2,000 or LIVES=N, each compared with a model of it (about 20 minutes)
	OMP_NUM_THREADS=1 LIVES=$(LIVES) LIFE_SEED=$${LIFE_SEED:-$$(date +%s)} $(BIN)/pytest -q -s tests/engine/test_life.py

mutants: $(INSTALLED) ## Change the code that numbers and checkpoints depend on, and see that a test fails (about 30 minutes)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[mutants]'
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.mutants

fuzz: $(INSTALLED) ## Damaged, odd and hostile input to every command that reads some, one table (10 minutes)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz --minutes 10

soak: $(INSTALLED) ## Train, score and predict over and over: memory, files, threads must stay level (30 minutes)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.soak

triton-shapes: $(INSTALLED) ## 200 random attentions by Triton's interpreter, and the registers of every kernel (30 minutes)
	OMP_NUM_THREADS=1 TRITON_INTERPRET=1 TRITON_SHAPES=200 $(BIN)/pytest -n 2 tests/model/interpreted_triton.py
	$(BIN)/python -m tests.model.compiled_triton 80
	$(BIN)/python -m tests.model.compiled_triton 90

gpu-check: $(INSTALLED) ## Parity, a resumed run, kernels, times on the available GPUs; a small version on the CPU
	$(BIN)/python -m benchmarks.gpu_check

# Folders may be named as goals; they are there, so that there is nothing to make of them.
FOLDERS = $(filter-out check-features,$(MAKECMDGOALS))
PUBLISHED ?= $(or $(DIR),$(lastword $(FOLDERS)))
OURS ?= $(if $(word 2,$(FOLDERS)),$(firstword $(FOLDERS)),feats)

check-features: $(INSTALLED) ## Compare features in feats with published ones, file by file: make check-features DIR
	@test -n "$(PUBLISHED)" || { echo "hint:  make check-features PUBLISHED, or make check-features OURS PUBLISHED" >&2; exit 2; }
	$(BIN)/python -m benchmarks.check_features "$(OURS)" "$(PUBLISHED)"

FEATURES_VENV := .venv-features

# torchvision has no build for every torch: this venv takes the pair that the package index gives, CUDA included.
test-features: ## Features from images, against torchvision and timm themselves (downloads some GB into a second venv)
	test -x $(FEATURES_VENV)/bin/python || $(PYTHON) -m venv $(FEATURES_VENV)
	$(FEATURES_VENV)/bin/python -m pip install --quiet --disable-pip-version-check \
		-e '.[demo,features,timm,report,dev]' 'torchvision>=0.21'
	OMP_NUM_THREADS=1 $(FEATURES_VENV)/bin/pytest tests/data/features/test_resnet.py \
		tests/data/features/test_bottlenecks.py tests/data/features/test_extract.py \
		tests/data/features/test_clip.py tests/data/features/test_timm_models.py

test-extractors: $(INSTALLED) ## Whole pictures through whole networks, against the original's numbers (some minutes)
	$(BIN)/pytest -s tests/data/features/check_extractors.py tests/data/features/check_clip.py \
		tests/data/features/check_by_command.py

test-onnx: $(INSTALLED) ## Exported ONNX and PT2 files against the model and the original's scores (some minutes)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[onnx]'
	OMP_NUM_THREADS=1 $(BIN)/pytest tests/engine/check_export.py

bench: $(INSTALLED) ## Speed and memory against the floor, one table, benchmarks/latest.json (about 20 minutes)
	$(BIN)/python -m benchmarks.bench

bench-quick: $(INSTALLED) ## The same at small sizes, at most 5 minutes
	$(BIN)/python -m benchmarks.bench --quick

full-size: $(INSTALLED) ## Prepare, score and submit generated data of the real size, one table
	$(BIN)/python -m benchmarks.full_size

dist: $(INSTALLED) ## Wheel and sdist, and the tour from the wheel with the oldest and newest packages (downloads some GB)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dist]'
	$(BIN)/python -m benchmarks.dist

docs: $(INSTALLED) ## The documentation as a site, build/site/index.html; a link that leads nowhere is an error
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

CHROMIUM := command -v chromium >/dev/null && command -v chromedriver >/dev/null \
	|| { apt-get update -qq && apt-get install -y --no-install-recommends chromium chromium-driver; } \
	|| { echo "error: no chromium and chromedriver" >&2; \
	     echo "hint:  install both, as root: apt-get install chromium chromium-driver" >&2; exit 1; }

test-browser: $(INSTALLED) ## Open the report in headless Chromium, which is installed if need be
	@$(CHROMIUM)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[browser]'
	OMP_NUM_THREADS=1 $(BIN)/pytest tests/browser/check_report.py

SERVE_VENV := .venv-serve

# Gradio takes no Pillow as new as the pinned one.
test-serve: ## Ask through the page and its JSON, also in headless Chromium (in a second venv)
	@$(CHROMIUM)
	test -x $(SERVE_VENV)/bin/python || $(PYTHON) -m venv $(SERVE_VENV)
	grep -v '^pillow=' constraints.txt > $(SERVE_VENV)/constraints.txt
	$(SERVE_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c $(SERVE_VENV)/constraints.txt \
		-e '.[demo,report,dev,browser,serve]'
	OMP_NUM_THREADS=1 $(SERVE_VENV)/bin/pytest tests/commands/test_serve.py tests/browser/check_serve.py

clean: ## Remove caches and build products; data/, runs/ and .venv stay
	rm -rf build dist *.egg-info .mutants .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find trarctl tests -name __pycache__ -type d -prune -exec rm -rf {} +
