# make demo   draw a corpus, scan it, and write a report        (everything it needs goes into .venv)
# make test   the tests that are neither slow nor kill processes nor are drills, in eight to twelve minutes on two cores
# make test-all   every test; CI adds those of PYTEST_ARGS='-m "(slow or chaos) and not drill"', -m drill takes the drills
# make lint   ruff, the type checker, the import contracts and the first words of docstrings
# make lock   resolve the dependencies anew, into requirements.lock and requirements.runtime.lock
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin
UV := $(RUN)/uv
DEMO := out/demo

.PHONY: setup demo test test-all lint lock clean

setup: $(VENV)/.ready

# uv resolves and unpacks in a minute what takes pip many; it lives in the virtual environment as everything does.
# Compiled once here: Ray starts many processes, and where PYTHONDONTWRITEBYTECODE is set each would compile its imports.
$(VENV)/.ready: requirements.lock pyproject.toml
	@test -x $(RUN)/python || $(PYTHON) -m venv $(VENV)
	@test -x $(UV) || $(RUN)/python -m pip install --quiet --disable-pip-version-check uv
	@echo "Installing the locked dependencies into $(VENV) …"
	@$(UV) pip install --quiet --compile-bytecode --python $(RUN)/python --require-hashes -r requirements.lock
	@$(UV) pip install --quiet --python $(RUN)/python --no-deps --editable .
	@touch $@

demo: setup
	@rm -rf $(DEMO)
	@$(RUN)/asap newsroom $(DEMO)/corpus --pairs 300 --seed 2026 --splits 0 0 1
	@$(RUN)/python tests/support/bucket.py $(DEMO)/corpus newsroom \
	  $(RUN)/asap scan s3://newsroom/metadata/test.json --out $(DEMO)/jobs --job demo --captioner demo --captions flagged

# Two processes, a file of tests at a time: one waits for Ray while the other computes.
PYTEST := $(RUN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test: setup
	@$(PYTEST) -m "not slow and not chaos and not drill" $(PYTEST_ARGS)
	@echo "The slow tests, the drills and those that kill processes were left out. make test-all runs every test."

test-all: setup
	@$(PYTEST) $(PYTEST_ARGS)

lint: setup
	@$(RUN)/ruff check .
	@$(RUN)/ruff format --check .
	@$(RUN)/mypy
	@$(RUN)/lint-imports > $(VENV)/imports.log || { cat $(VENV)/imports.log; exit 1; }
	@$(RUN)/python -m pytest tests/test_docstrings.py

# The runtime lock has the same versions without those that only the tests and linters need; the image is made of it.
LOCK := pip compile --quiet --universal --python-version 3.11 --no-emit-index-url --generate-hashes \
  --custom-compile-command "make lock" pyproject.toml

lock: setup
	@$(UV) $(LOCK) --group dev --output-file requirements.lock
	@$(UV) $(LOCK) --constraint requirements.lock --output-file requirements.runtime.lock

clean:
	rm -rf out
