# `make demo` shows the whole road on a real model; `make test` is what CI runs. Needs Python 3.11, pip and make.
# Stamp files make repeated calls fast; an environment is brought up to date when what defines it changes.

PYTHON ?= python3
MODEL := .cache/models/SmolLM2-135M-Instruct.Q4_1.gguf
PROMPT ?= The three things that make a bridge safe are
PYTEST_ARGS ?=

BIN := .venv/bin
OFFLINE := HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
# A file's tests stay in one process, which is one of as many as there are cores: so each takes one core's worth.
ONE_CORE := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1
PYTEST := $(OFFLINE) $(ONE_CORE) $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile

.PHONY: venv model clients node demo docs test test-all test-lowest check clean distclean

venv: .venv/.stamp
clients: .venv-optimum/.stamp
node: .node/.stamp

# --group needs pip 25.1; older Pythons bring an older pip into a new environment.
.venv/.stamp: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[convert,cluster,cpu]' --group test --group check --group docs
	touch $@

# Checks the hash each time and downloads only when it differs.
model: venv
	$(BIN)/python tools/fetch_model.py

# optimum-onnx pins an older transformers than the converter needs, so these clients have an environment of their own.
.venv-optimum/.stamp: Makefile
	$(PYTHON) -m venv .venv-optimum
	.venv-optimum/bin/python -m pip install --quiet \
		torch==2.13.0 optimum-onnx==0.1.0 'transformers<4.58' onnxruntime==1.32.0 -e .
	touch $@

# What docs/guides/serve-from-node.md installs; needs Node 18 and npm. Its test is skipped without these packages.
.node/.stamp: Makefile
	ONNXRUNTIME_NODE_INSTALL=skip npm install --silent --prefix .node \
		onnxruntime-node@1.30.0 @huggingface/tokenizers@0.2.0 @huggingface/transformers@4.3.2
	touch $@

demo: venv model
	$(BIN)/curconvert $(MODEL) -o out/ --rank 128 --overwrite
	$(BIN)/curconvert verify out/
	$(BIN)/curconvert generate out/ --prompt "$(PROMPT)"

# MkDocs itself stays at 1.6: the notice about its successor is not about this site.
docs: venv
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

check: venv docs
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/python tools/rooms.py check
	$(BIN)/python tools/rooms.py width
	MYPYPATH=. $(BIN)/mypy -p benchmarks
	$(BIN)/python tools/words.py
	$(BIN)/python tools/readability.py --check

test: venv model clients check
	$(PYTEST) -m "not slow" $(PYTEST_ARGS)

test-all: venv model clients check
	$(PYTEST) $(PYTEST_ARGS)

# The oldest versions that pyproject.toml promises: uv resolves each direct dependency to its lower bound.
.venv-lowest/.stamp: pyproject.toml
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python -m pip install --quiet uv
	.venv-lowest/bin/uv pip install --quiet --python .venv-lowest/bin/python --resolution lowest-direct \
		-e '.[convert,cpu]' 'pytest>=8.3' 'hypothesis>=6.100' 'psutil>=6'
	touch $@

# The runtime's tests, and conversions by every method and of every family.
test-lowest: .venv-lowest/.stamp
	$(OFFLINE) $(ONE_CORE) .venv-lowest/bin/python -m pytest -q tests/runtime tests/converter/jobs/test_pipeline.py $(PYTEST_ARGS)

clean:
	rm -rf out dist build site .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find converter runtime schemas tests tools benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean
	rm -rf .venv .venv-optimum .venv-lowest .node .cache
