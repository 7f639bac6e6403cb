# The commands of this project. Each makes the environment it needs first; nothing is installed outside .venv.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# Tests run one process per core, at most 4, so every process gets one thread.
JOBS ?= auto
ARGS ?=

export OMP_NUM_THREADS ?= 1
export HF_HUB_OFFLINE ?= 1

.PHONY: help demo tiny test notebooks slow lint format types docs conformance bench wheel

help:
	@echo "make demo         the bundled model answers a dozen questions about pictures and clips"
	@echo "make tiny         trains that model from nothing: data, text, vision, alignment, fine-tuning"
	@echo "make test         the tests (ARGS='-k text' for some of them)"
	@echo "make notebooks    runs the notebooks of the docs"
	@echo "make slow         the tests that take minutes"
	@echo "make lint         ruff and the type checker"
	@echo "make docs         the documentation, into site/"
	@echo "make conformance  Transformers' own test mixins against Arlow"
	@echo "make bench        the benchmarks"
	@echo "make wheel        the wheel, into dist/"

# The stamp is newer than what was installed from; an existing environment is brought up to date, never deleted.
$(VENV)/.stamp-dev: pyproject.toml constraints.txt arlow.pth
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@

# DeepSpeed compiles nothing when it is installed: on a CPU it needs none of its operators.
$(VENV)/.stamp-slow: $(VENV)/.stamp-dev
	DS_BUILD_OPS=0 $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation -c constraints.txt deepspeed
	@touch $@

$(VENV)/.stamp-docs: $(VENV)/.stamp-dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[docs]"
	@touch $@

demo: $(VENV)/.stamp-dev
	@mkdir -p build
	$(BIN)/arlow demo --page build/demo.html $(ARGS)

tiny: $(VENV)/.stamp-dev
	BIN=$(BIN) bash recipes/tiny/run.sh

test: $(VENV)/.stamp-dev
	$(BIN)/python -m pytest -q -n $(JOBS) --maxprocesses 4 $(ARGS)

notebooks: $(VENV)/.stamp-dev
	$(BIN)/python -m pytest -q --nbmake docs/notebooks $(ARGS)

slow: $(VENV)/.stamp-slow
	$(BIN)/python -m pytest -q -m slow $(ARGS)

lint: $(VENV)/.stamp-dev types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.stamp-dev
	$(BIN)/mypy

format: $(VENV)/.stamp-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.stamp-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

conformance: $(VENV)/.stamp-dev
	PATH="$(CURDIR)/$(BIN):$$PATH" bash tests/conformance/run.sh $(ARGS)

bench: $(VENV)/.stamp-dev
	$(BIN)/python -m benchmarks $(ARGS)

wheel: $(VENV)/.stamp-dev
	$(BIN)/python -m pip wheel --quiet --no-deps -w dist .
