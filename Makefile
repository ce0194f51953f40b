# The same few commands serve people and CI. Each does its own set-up.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
EXTRA ?= cpu
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed-$(EXTRA)

.PHONY: install demo test test-fast mutants docs portable peers speed gpu-wheels gpu-check audit lint types format clean

install: $(STAMP)

# onnxruntime and onnxruntime-gpu overwrite each other's files, so changing the extra removes the other one first.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "make: PYTHON=$(PYTHON) is older than 3.11; say make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@if ls $(VENV)/.installed-* >/dev/null 2>&1; then $(BIN)/pip uninstall --quiet --yes onnxruntime onnxruntime-gpu; rm -f $(VENV)/.installed-*; fi
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[$(EXTRA),demo,dev]'
	@touch $@

demo: install
	$(BIN)/compress run --out out/demo

# Several files of tests at once, each file in one process: half of the time on two cores. In their order: few tests are
# often long ones, and must not be the last to begin.
PARALLEL := -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

test: install
	$(BIN)/python -m pytest $(PARALLEL)

test-fast: install
	$(BIN)/python -m pytest $(PARALLEL) -m "not slow"

# The site, in docs/_build/html: offline, and a warning is an error.
docs: $(VENV)/.docs
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

$(VENV)/.docs: $(STAMP)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[docs]'
	@touch $@

# Would the fast tests notice a fault in the arithmetic? mutmut makes some (tests/mutation/run.py); hours, one process.
MUTANTS ?=
mutants: install
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[$(EXTRA),demo,dev,mutation]'
	nice $(BIN)/python tests/mutation/run.py --out out/mutants.json $(MUTANTS)

# optimum, for `compress export --target portable`, in an environment of its own: it needs transformers 4.
PORTABLE ?= .venv-portable
portable: $(PORTABLE)/.installed

$(PORTABLE)/.installed: pyproject.toml constraints-portable.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || { echo "make: optimum runs on Python 3.11 to 3.13, which PYTHON=$(PYTHON) is not; say make portable PYTHON=python3.13"; exit 2; }
	test -x $(PORTABLE)/bin/python || $(PYTHON) -m venv $(PORTABLE)
	$(PORTABLE)/bin/pip install --quiet --constraint constraints-portable.txt --editable '.[portable]'
	@touch $@

# The tools that the benchmark compares with, in an environment of their own; llama-cpp-python is compiled (minutes).
PEERS ?= .venv-peers
peers: $(PEERS)/.installed

$(PEERS)/.installed: pyproject.toml constraints.txt
	test -x $(PEERS)/bin/python || $(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/pip install --quiet --constraint constraints.txt --editable '.[peers]'
	@touch $@

speed: install peers portable
	$(BIN)/python -m bench.run.speed --peers-python $(PEERS)/bin/python --portable-python $(PORTABLE)/bin/python

# For a machine with a GPU, torch and no package registry: what it lacks, cut into folders of at most 60 MB, and the check.
gpu-wheels: install
	$(BIN)/python -m bench.gpu.wheels

GPU_PYTHON ?= python3
gpu-check:
	$(GPU_PYTHON) -m bench.gpu.check $(GPU_CHECK)

# Known security advisories on the tested versions: the list in .ci, and pip-audit's service where it can be reached.
AUDIT ?= .venv-audit
audit: install
	@test -x $(AUDIT)/bin/pip-audit || { $(PYTHON) -m venv $(AUDIT) && $(AUDIT)/bin/pip install --quiet pip-audit; } || true
	$(BIN)/python .ci/audit.py --pip-audit $(AUDIT)/bin/pip-audit

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf out build docs/_build *.egg-info .mypy_cache .ruff_cache .pytest_cache
