# make train: set up .venv and run the main job on the embedded digits; make test: set up .venv and test.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# CPU kernels are compiled on first use, by the ninja of .venv.
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: train test test-newest drills lint format setup lock clean

train: $(READY)
	deepspeed launch/train.py --ds_config ds_configs/zero2.json

# Three tests at a time on two cores: servers that stall, workers that end and ranks that meet sleep for a minute in
# all, while each further process costs 20 seconds of imports. One thread each: the networks are so small that a second
# one only waits. worksteal: a few tests take a hundred times as long as the others.
PYTEST := OMP_NUM_THREADS=1 python -m pytest
QUICK_TESTS := $(PYTEST) -n 3 --dist worksteal -m "not drill"

test: $(READY)
	$(QUICK_TESTS)

# The tests with the newest of everything that pyproject.toml allows: shows what upstream breaks before the lock has it.
test-newest:
	$(PYTHON) -m venv --clear $(VENV)-newest
	$(VENV)-newest/bin/python -m pip install --quiet --disable-pip-version-check -e '.[test,lint]'
	PATH="$(CURDIR)/$(VENV)-newest/bin:$$PATH" $(QUICK_TESTS)

# Fault-injection tests (docs/reliability.md) and what is slow by nature, one after another; those that mount disks or
# make nodes need root.
drills: $(READY)
	$(PYTEST) -m drill

lint: $(READY)
	ruff check .
	ruff format --check .
	mypy

format: $(READY)
	ruff check --fix .
	ruff format .

setup: $(READY)

# What was tested is what gets installed: exact versions with hashes, build tools included, from whatever registry pip
# is set to use. DeepSpeed and fvcore are built from source, hence the build tools first.
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check

$(READY): pyproject.toml requirements/build.txt requirements/lock.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' \
		|| { echo "Python 3.10 to 3.13 is needed; choose one: make PYTHON=python3.12 ..." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) --require-hashes -r requirements/build.txt
	$(INSTALL) --require-hashes --no-build-isolation --use-pep517 -r requirements/lock.txt
	$(INSTALL) --no-deps --no-build-isolation -e .
	touch $(READY)

# After a change of dependencies; versions that still fit stay. Newer ones: make lock UPGRADE=--upgrade
COMPILE := uv pip compile --quiet --universal --python-version 3.10 --generate-hashes --custom-compile-command "make lock"
lock: $(READY)
	$(COMPILE) $(UPGRADE) --extra test --extra lint pyproject.toml -o requirements/lock.txt
	printf 'setuptools>=77\nwheel\n' | $(COMPILE) --constraint requirements/lock.txt - -o requirements/build.txt

clean:
	rm -rf $(VENV) $(VENV)-newest .pytest_cache .mypy_cache .ruff_cache
