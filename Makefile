# make train: set up .venv and run the main job on the embedded digits; make test: set up .venv and test.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# DeepSpeed compiles a small C++ operation on first use and looks for ninja on the PATH.
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: train test drills lint format setup clean

train: $(READY)
	deepspeed launch/train.py --ds_config ds_configs/zero2.json

# Three tests at a time, each on one thread (those with several ranks: one a rank): two cores are kept busy while some wait.
test: $(READY)
	OMP_NUM_THREADS=1 python -m pytest -n 3 --dist worksteal -m "not drill"

# Everything that can befall a run, one drill after another (docs/reliability.md); those that mount disks or make nodes need root.
drills: $(READY)
	OMP_NUM_THREADS=1 python -m pytest tests/drills

lint: $(READY)
	ruff check .
	ruff format --check .
	mypy

format: $(READY)
	ruff check --fix .
	ruff format .

setup: $(READY)

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' \
		|| { echo "Python 3.10 to 3.13 is needed; choose one: make PYTHON=python3.12 ..." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test,lint]'
	touch $(READY)

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
