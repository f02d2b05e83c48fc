# make demo        install, then evaluate the weights in checkpoints/ on the test set
# make test        lint, then the test suite
# make test-long   all tests, including the slow ones and 50,000 mutated files
# make reproduce   train everything; EPOCHS=1 SUBSET=2000 for a quick test, RESUME=1 to continue;
#                  with SUBSET, writes to runs/quick/
# make reproduce-contexts   train the system and its baselines on several contexts, and compare them

PYTHON ?= python3
FLAGS = $(if $(EPOCHS),--epochs $(EPOCHS)) $(if $(SUBSET),--subset $(SUBSET)) $(if $(RESUME),--resume)

.PHONY: demo test test-long reproduce reproduce-contexts

demo: .venv/runtime
	.venv/bin/python inference.py

test: .venv/dev
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/python -m pytest

test-long: .venv/dev
	FUZZ=50000 .venv/bin/python -m pytest -m "slow or not slow"

TO_COME = .venv/bin/python -m benchmarks.reproduce $(FLAGS) --done
reproduce: .venv/runtime
	@$(TO_COME) 0
	.venv/bin/python teacherTrain.py $(FLAGS)
	@$(TO_COME) 1
	.venv/bin/python StudentTrain.py --model 1 $(FLAGS)
	@$(TO_COME) 2
	.venv/bin/python StudentTrain.py --model 2 $(FLAGS)
	@$(TO_COME) 3
	.venv/bin/python trainSelector.py $(FLAGS)
	.venv/bin/python inference.py $(if $(SUBSET),--subset $(SUBSET))

# Uses the teacher and GoogLeNet in checkpoints/. The baselines are trained on the mixed context for
# the same number of epochs as the students, and for twice as many.
SYSTEM = checkpoints/contexts
ONCE = $(or $(EPOCHS),$(shell sed -n 's/^EPOCHS = \([0-9]*\).*/\1/p' StudentTrain.py))
TWICE = $(shell expr 2 '*' $(ONCE))
STUDENT = .venv/bin/python StudentTrain.py --teacher checkpoints/teacher.pth $(FLAGS) --context
reproduce-contexts: .venv/runtime
	mkdir -p $(SYSTEM)
	cp checkpoints/googlenet.pth checkpoints/googlenet.csv $(SYSTEM)
	$(STUDENT) degraded --model 1 --checkpoint-dir $(SYSTEM)
	.venv/bin/python trainSelector.py --context mixed --label-weight difference \
		--checkpoint-dir $(SYSTEM) $(FLAGS)
	$(STUDENT) mixed --model 1 --checkpoint-dir runs/contexts/once
	$(STUDENT) mixed --model 2 --checkpoint-dir runs/contexts/once
	$(STUDENT) mixed --model 1 --checkpoint-dir runs/contexts/twice --epochs $(TWICE)
	$(STUDENT) mixed --model 2 --checkpoint-dir runs/contexts/twice --epochs $(TWICE)
	.venv/bin/python -m studies.contexts $(if $(SUBSET),--subset $(SUBSET) --out runs/contexts/study)
	.venv/bin/python inference.py --context mixed --checkpoint-dir $(SYSTEM) \
		--out runs/contexts/inference $(if $(SUBSET),--subset $(SUBSET))

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
