# make demo   train on the phantom and end in a table and an HTML report
# make test   the whole test suite
# make lint   style, formatting, types
# The first of them makes .venv; later ones find it ready.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test lint install

demo: $(READY)
	$(BIN)/counterscan tag demo --out runs/demo

# Two processes, each with whole files of tests and one thread: small networks on a busy machine are several times slower
# with more.
test: $(READY)
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -rs -n 2 --dist loadfile

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

install: $(READY)

# torch first and by its own version, so that a CPU or CUDA build chosen by the machine's index stays.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("counterscan needs Python 3.11 or later; say which: make PYTHON=python3.12") if sys.version_info < (3, 11) else None'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[all,dev]'
	touch $@
