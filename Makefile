# Targets call `install` first; it does nothing where the environment is newer than what it is made from.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# What jobs need, and what checks and tests need beside: each version with the hashes of its files.
LOCKS := requirements.lock requirements-test.lock

# A real Slurm with four hosts on this machine, to rehearse on (as root on Debian, with the packages that .ci/run names).
REHEARSAL := /tmp/deeplense-rehearsal

.PHONY: install lock docs dist demo test test-cluster test-slow test-lowest mutants check cluster cluster-stop image clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml $(LOCKS) Makefile
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "deeplense needs Python 3.11 or newer; say which: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --require-hashes --no-deps --only-binary :all: --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --require-hashes --no-deps --no-build-isolation --requirement requirements-test.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	# torch-fidelity brings its own tests, under the name of ours.
	rm -rf $(VENV)/lib/python3*/site-packages/tests
	touch $@

# Writes both locks anew: make lock keeps versions where it can, make lock RENEW=all takes the newest, or RENEW="torch timm".
lock:
	.ci/lock $(RENEW)

demo: install
	$(BIN)/deeplense demo --output demo

# Two processes, each with whole files, the longest first. Files are written in memory where it has 8 GB of room: a disk
# takes milliseconds for each that is synced, of which there are many thousands.
MACHINE := tests/cluster tests/containers
ROOM := $(shell test "$$(df --output=avail /dev/shm 2> /dev/null | tail -n 1)" -gt 8000000 2> /dev/null && echo /dev/shm)

test: install
	PYTEST_DEBUG_TEMPROOT=$(ROOM) $(BIN)/python -m pytest -m 'not slow' $(MACHINE:%=--ignore=%) \
		--numprocesses 2 --dist loadfile --no-loadscope-reorder -o tmp_path_retention_policy=failed

# What needs a real Slurm, in three versions, or an image: two of these processes train, and the others mostly wait.
test-cluster: install
	$(BIN)/python -m pytest $(MACHINE) --numprocesses 7

# What takes a quarter of an hour more: every architecture at 150 pixels.
test-slow: install
	$(BIN)/python -m pytest -m slow

# The tests of the jobs with the lowest version that pyproject.toml allows of each package; a quarter of an hour, 8 GB.
test-lowest:
	.ci/lowest

# Small changes of the code that decides numbers and safety, each before its tests; an hour, and the same command continues.
mutants: install
	$(BIN)/python -m tests.mutants --number 160

cluster: install
	$(BIN)/python -m tests.cluster.private_slurm start $(REHEARSAL)

cluster-stop: install
	$(BIN)/python -m tests.cluster.private_slurm stop $(REHEARSAL)

# The documentation as a site, build/site/index.html; a link that leads nowhere is an error.
docs: install
	$(BIN)/sphinx-build -W --keep-going -q -c docs -b html . build/site

# A wheel and a source distribution.
dist: install
	$(BIN)/python -c 'from setuptools import build_meta as b; b.build_sdist("dist"); b.build_wheel("dist")'

# Apptainer; where no container registry can be reached: make image BASE=debootstrap
BASE := registry
image:
	containers/build.sh --base $(BASE)

check: install
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/python -m pytest -q tests/test_layers.py

clean:
	rm -rf build dist demo .pytest_cache .ruff_cache .hypothesis
