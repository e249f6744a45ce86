# Needs make and Python 3.10 or later; everything else is installed into .venv.
#   make setup   the environment          make demo    two experiments with their pictures
#   make test    the tests                make lint    style, types, who imports whom
#   make fuzz    thousands of random cases, in minutes
#   make coverage   the lines of ash that the tests run     make mutants   the mistakes that they notice
#   make kills   runs that are killed and resumed, in minutes: they end as if nobody had killed them
#   make soak    an hour of training: its memory and speed
#   make bench   time and memory, as a table     make docs    the documentation, and its notebooks run
# Another interpreter: make setup PYTHON=python3.12    Another build of torch: make setup TORCH_INDEX=URL

PYTHON = python3
VENV = .venv
PY = $(VENV)/bin/python
INSTALL = $(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: setup demo test fuzz coverage mutants kills soak lint bench docs

setup: $(VENV)/.installed

$(VENV)/.installed: setup.py pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "$(PYTHON) is older than Python 3.10 or missing; give another: make setup PYTHON=..." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(if $(TORCH_INDEX),$(INSTALL) torch --index-url $(TORCH_INDEX))
	$(INSTALL) -e '.[dev]'
	@touch $@

$(VENV)/.docs: $(VENV)/.installed
	$(INSTALL) -e '.[docs]'
	@touch $@

$(VENV)/.bench: $(VENV)/.installed
	$(INSTALL) -e '.[bench]'
	@touch $@

# For Triton's interpreter; torch's CUDA build brings its own version.
$(VENV)/.triton: $(VENV)/.installed
	$(PY) -c 'import triton' 2>/dev/null || $(INSTALL) triton==3.6.0
	@touch $@

$(VENV)/.mutants: $(VENV)/.installed
	$(INSTALL) -e '.[mutants]'
	@touch $@

demo: setup
	$(PY) -m experiments identity
	$(PY) -m experiments mnist
	@echo; echo 'Pictures:'; ls runs/identity/*.png runs/identity/*.gif runs/mnist/*.png
	@echo; echo 'Pages to open in a browser:'; ls runs/identity/index.html runs/mnist/index.html

test: setup
	$(PY) -m pytest -q -n auto --maxprocesses 8 --dist worksteal

fuzz: setup
	ASH_FUZZ=10000 $(PY) -m pytest -q -n auto --maxprocesses 8 --dist worksteal tests/fuzz

kills: setup
	OMP_NUM_THREADS=1 $(PY) -m tests.kills

soak: setup
	OMP_NUM_THREADS=1 $(PY) -m tests.soak

# What is compiled runs once more as Python, that it can be traced; what only the compiler calls, with nothing cached.
COVER = $(PY) -m coverage run -m pytest -q
NUMBA = cells contexts contract drawn drawn_matrix frozen growth kernels means pattern sampling top_k
coverage: $(VENV)/.triton
	$(PY) -m coverage erase
	$(COVER) -n auto --maxprocesses 8 --dist worksteal
	TRITON_INTERPRET=1 $(COVER) -m triton tests/test_triton.py
	NUMBA_DISABLE_JIT=1 $(COVER) -n auto --maxprocesses 8 --dist worksteal -W ignore::RuntimeWarning $(NUMBA:%=tests/test_%.py)
	NUMBA_CACHE_DIR=$$(mktemp -d) $(COVER) tests/test_compiled.py
	$(PY) -m coverage combine -q
	$(PY) -m coverage report

mutants: $(VENV)/.mutants
	$(PY) tests/mutants.py

lint: setup
	$(PY) -m ruff check .
	$(PY) -m mypy ash experiments
	$(VENV)/bin/lint-imports

bench: $(VENV)/.bench
	$(PY) -m experiments benchmark --suite cpu

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict
	$(PY) -m docs.tools.notebooks --run
