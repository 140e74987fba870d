# make demo [DATA=DIR] [EPOCHS=N]   set up; sweep, compare, reproduce and predict: on DIR, else data/chest_xray, else generated X-rays
# make test                         set up, lint, types, tests
# make quick                        the tests without the slow ones
# make long                         the tests that take minutes, or a server: faults, Slurm, PostgreSQL, simulations
# make bench [DATA=DIR] [FILMS=DIR]  every figure on speed, alternately, in ten minutes on a quiet machine
PYTHON ?= python3
BIN := .venv/bin
DATA ?= $(patsubst %/train,%,$(wildcard data/chest_xray/train))
FILMS := $(if $(DATA),$(firstword $(wildcard $(DATA)/val $(DATA)/.) $(dir $(DATA))),mlruns/synthetic/200/val)
SOURCE := $(if $(DATA),data.root=$(DATA),data=synthetic)
SWEEP := demo$(if $(DATA)$(EPOCHS),-$(firstword $(shell echo $(DATA) $(EPOCHS) | cksum)))

COMMA := ,

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
	@echo "X-rays: $(if $(DATA),$(DATA),generated ones$(COMMA) on which figures mean nothing; DATA=DIR takes real ones)"
	@echo "\n1. Four trainings: two learning rates, with and without augmentation"
	$(BIN)/xray train -m experiment=demo $(SOURCE) sweep.name=$(SWEEP) $(if $(EPOCHS),trainer.max_epochs=$(EPOCHS))
	@echo "\n2. The four side by side, each at its own operating point"
	$(BIN)/xray compare experiment_name=demo sweep_name=$(SWEEP)
	@echo "\n3. The best of them once more, from its stored config: are all numbers the same?"
	$(BIN)/xray reproduce run_id=best tracking.experiment_name=demo
	@echo "\n4. The shipped model reads films$(if $(DATA),,. It learned from real ones$(COMMA) so it should decline these drawings)"
	$(BIN)/xray predict input=$(FILMS) output=mlruns/$(SWEEP)
	@echo "\nOpen mlruns/$(SWEEP)/contact_sheet.html in a browser. Next, after \`. .venv/bin/activate\`:"
	@echo "  xray ui                    the four trainings in MLflow, with their curves"
	@echo "  xray serve                 a page that answers the films you drop on it"
	@echo "  xray train data.root=DIR   your own films: DIR/train|val|test/NORMAL|PNEUMONIA, or a CSV"
	@echo "  xray train --help          all that can be set"

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
	$(BIN)/python scripts/benchmarks/bench.py $(or $(DATA),$(error DATA=DIR must name the X-rays)) $(if $(findstring command,$(origin FILMS)),--originals $(FILMS))

lock:  # needs uv; names no index; without the extra s3, whose botocore wants an older python-dateutil
	uv pip compile --universal --generate-hashes --no-emit-index-url --python-version 3.11 \
		$(addprefix --extra ,dev dicom onnx joblib slurm postgresql serve pacs) pyproject.toml --output-file requirements.lock
