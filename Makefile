# make demo       restore four degraded photographs with `codi run superres`; writes a before/after sheet
# make test       everything a change has to pass: lint, types, import contracts, tests in two processes
# make check      the same as `make test`
# make test-fast  the tests that are not marked `slow`, in about a minute
# make docs       build the documentation site into build/site; a warning is an error
# make soak       end commands with SIGKILL and SIGTERM at 200 random moments each and check the state that each leaves
# make load       measure the server with 1,000 requests of 8 clients, and send it 10,000 mutated bodies
# make bench      measure speed and memory against the usual alternatives; writes docs/performance.md
# Every target creates the environment .venv first; it needs Python 3.11 or newer.

VENV := .venv
PY := $(VENV)/bin/python
PYTEST = OMP_NUM_THREADS=1 PYTHONHASHSEED=0 $(PY) -m pytest -n 2 --dist worksteal
PIP_INSTALL = $(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test test-fast check lint format types contracts typing docs docs-serve soak load bench clean
.DELETE_ON_ERROR:

demo: $(VENV)/.demo
	$(PY) -m recipes.demo

test: lint types contracts $(VENV)/.dev
	$(PYTEST)

check: test

test-fast: $(VENV)/.dev
	$(PYTEST) -m "not slow"

docs: $(VENV)/.dev typing
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict --site-dir build/site

docs-serve: $(VENV)/.dev typing
	$(PY) -m mkdocs serve

soak: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(PY) tests/soak.py 200

load: $(VENV)/.dev
	$(PY) -m benchmarks.serving
	CODI_TEST_BODIES=10000 $(PY) -m pytest tests/serve -k mutated

bench: $(VENV)/.dev
	$(PY) -m benchmarks
	$(PY) -m benchmarks.curves
	$(PY) -m benchmarks.fit

lint: $(VENV)/.dev
	$(PY) -m ruff check
	$(PY) -m ruff format --check

format: $(VENV)/.dev
	$(PY) -m ruff check --fix
	$(PY) -m ruff format

types: $(VENV)/.dev typing
	cd build/typing && ../../$(PY) -m mypy --config-file ../../pyproject.toml

contracts: $(VENV)/.dev typing
	cd build/typing && ../../$(VENV)/bin/lint-imports --no-cache --no-logo ../../pyproject.toml

# Type checkers, editors and the import linter need codi_hub in one folder: link cli, registry and tasks into it.
typing:
	rm -rf build/typing/codi_hub
	mkdir -p build/typing/codi_hub
	cd build/typing/codi_hub && ln -s ../../../codi_hub/* ../../../cli ../../../registry ../../../tasks .

$(VENV)/.demo: $(PY) pyproject.toml constraints.txt
	$(PIP_INSTALL) -e .
	touch $@

$(VENV)/.dev: $(PY) pyproject.toml constraints.txt
	$(PIP_INSTALL) -e '.[dev]'
	touch $@ $(VENV)/.demo

$(PY):
	@for python in $(PYTHON) python3.11 python3.12 python3.13 python3; do \
		if $$python -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
			echo "Creating $(VENV) with $$($$python --version)"; exec $$python -m venv --clear $(VENV); \
		fi; \
	done; \
	echo "Error: no Python 3.11 or newer with venv found; install one, or set it: make PYTHON=/path/to/python3" >&2; exit 1

clean:
	rm -rf build dist $(VENV) .pytest_cache .mypy_cache .ruff_cache
