# make demo        images routed to the better student, with the weights in checkpoints/
# make test        lint, then the test suite
# make test-long   all tests, the slow ones and 50,000 mutated files too
# make reproduce   train everything: EPOCHS=1 and SUBSET=2000 make it quick, RESUME=1 goes on

PYTHON ?= python3
FLAGS = $(if $(EPOCHS),--epochs $(EPOCHS)) $(if $(SUBSET),--subset $(SUBSET)) $(if $(RESUME),--resume)

.PHONY: demo test test-long reproduce

demo: .venv/runtime
	.venv/bin/python inference.py

test: .venv/dev
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/python -m pytest

test-long: .venv/dev
	FUZZ=50000 .venv/bin/python -m pytest -m "slow or not slow"

reproduce: .venv/runtime
	.venv/bin/python teacherTrain.py $(FLAGS)
	.venv/bin/python StudentTrain.py --model 1 $(FLAGS)
	.venv/bin/python StudentTrain.py --model 2 $(FLAGS)
	.venv/bin/python trainSelector.py $(FLAGS)
	.venv/bin/python inference.py $(if $(SUBSET),--subset $(SUBSET))

.venv/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "Python 3.10 or newer is needed: make PYTHON=/path/to/python3.12 demo" >&2; exit 2; }
	@$(PYTHON) -m venv .venv || \
		{ rm -rf .venv; echo "no virtual environment: apt-get install python3-venv" >&2; exit 2; }

.venv/runtime: requirements.txt .venv/bin/pip
	.venv/bin/pip install -r requirements.txt
	@touch $@

.venv/dev: requirements-dev.txt .venv/runtime
	.venv/bin/pip install -r requirements-dev.txt
	@touch $@
