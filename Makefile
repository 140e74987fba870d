# make demo [DATA=DIR] [EPOCHS=N]   set up, explore and train the seed's final CNN
# make test                         set up, lint, types, tests
# make quick                        the tests without the slow ones
# make long                         the tests that take minutes, or a server: faults, Slurm, PostgreSQL, simulations
# make bench [DATA=DIR] [FILMS=DIR]  every figure on speed, alternately, in ten minutes on a quiet machine
PYTHON ?= python3
BIN := .venv/bin
DATA ?= $(patsubst %/train,%,$(wildcard data/chest_xray/train))
SOURCE := $(if $(DATA),data.root=$(DATA),data=synthetic)
EPOCHS ?= 10

PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist worksteal

.PHONY: setup demo test types tests quick long bench lock

setup: .venv/.ready

.venv/.ready: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; (3, 11) <= sys.version_info < (3, 14) or sys.exit("Python 3.11, 3.12 or 3.13 is needed: make PYTHON=python3.13")'
	@echo "Setting up .venv from requirements.lock: about 6 GB and three minutes, once."
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --require-hashes --requirement requirements.lock
	@$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

demo: setup
	@echo "X-rays: $(if $(DATA),$(DATA),generated ones; DATA=DIR takes real ones)"
	$(BIN)/xray explore $(SOURCE)
	$(BIN)/xray train experiment=notebook_final $(SOURCE) trainer.max_epochs=$(EPOCHS)

test: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	@$(MAKE) --no-print-directory --jobs 2 types tests

types:  # runs on one core, while the tests start
	$(BIN)/mypy

tests:
	$(PYTEST) -m "not long"

quick: setup
	$(PYTEST) -m "not slow and not long"

long: setup
	$(BIN)/python -m pytest -m long

bench: setup
	$(BIN)/python scripts/benchmarks/bench.py $(or $(DATA),$(error DATA=DIR must name the X-rays)) $(if $(FILMS),--originals $(FILMS))

lock:  # needs uv; names no index; without the extra s3, whose botocore wants an older python-dateutil
	uv pip compile --universal --generate-hashes --no-emit-index-url --python-version 3.11 \
		$(addprefix --extra ,dev dicom onnx joblib slurm postgresql) pyproject.toml --output-file requirements.lock
