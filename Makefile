# make demo        install, then evaluate the weights in checkpoints/ on the test set
# make test        lint, then the test suite
# make test-long   all tests, including the slow ones
# make reproduce   train everything; EPOCHS=1 SUBSET=2000 for a quick test, RESUME=1 to continue;
#                  DATA=cifar100 or DATA=mine.npz for other images;
#                  STEM=cifar for networks without max-pool, in checkpoints/cifar/;
#                  with SUBSET, writes to runs/quick/
# make reproduce-contexts   train the system and its baselines on several contexts, and compare them
# make reproduce-distillation   train students with and without the teacher, and compare them

PYTHON ?= python3
FOLDER = $(if $(SUBSET),--checkpoint-dir runs/quick,$(if $(filter cifar,$(STEM)),--checkpoint-dir checkpoints/cifar))
FLAGS = $(if $(SUBSET),,$(FOLDER)) $(if $(DATA),--data $(DATA)) $(if $(EPOCHS),--epochs $(EPOCHS)) $(if $(SUBSET),--subset $(SUBSET)) $(if $(RESUME),--resume)

.PHONY: demo test test-long reproduce reproduce-contexts reproduce-distillation

demo: .venv/runtime
	.venv/bin/python inference.py

test: .venv/dev
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/python -m pytest

test-long: .venv/dev
	.venv/bin/python -m pytest -m "slow or not slow"

STEMMED = $(if $(STEM),--stem $(STEM)) $(FLAGS)
STUDENTS = .venv/bin/python -c 'import models; print(*models.STUDENTS)'
SELECTED = .venv/bin/python -c 'import models; print(*models.SELECTED)'
reproduce: .venv/runtime
	.venv/bin/python teacherTrain.py $(STEMMED)
	@set -ex; model=0; for name in $$($(STUDENTS)); do model=$$((model + 1)); \
		.venv/bin/python StudentTrain.py --model $$model $(STEMMED); \
	done
	.venv/bin/python trainSelector.py $(FLAGS)
	.venv/bin/python inference.py $(FOLDER) $(if $(DATA),--data $(DATA)) $(if $(SUBSET),--subset $(SUBSET))

# Starts from the networks of `make reproduce`, or from the shipped ones. The first of SELECTED becomes the
# specialist for degraded images, in 24 epochs, the others stay as they are. For comparison: specialists of
# 12 epochs, and generalists of 12 and 24.
FROM = $(if $(SUBSET),$(or $(patsubst %/selector.pth,%,$(wildcard runs/quick/selector.pth)),checkpoints),checkpoints)
SYSTEM = $(if $(SUBSET),runs/quick,checkpoints)/contexts
OTHERS = $(if $(SUBSET),runs/quick/others,runs/contexts)
IMAGES = $(if $(DATA),--data $(DATA)) $(if $(SUBSET),--subset $(SUBSET)) $(if $(RESUME),--resume)
FURTHER = .venv/bin/python StudentTrain.py --teacher $(FROM)/teacher.pth --lr 2.5e-3 $(IMAGES)
SELECT = .venv/bin/python trainSelector.py --context mixed $(IMAGES)
ONCE = $(or $(EPOCHS),12)
reproduce-contexts: .venv/runtime
	@set -ex; mkdir -p $(SYSTEM); model=0; selected=$$($(SELECTED)); \
	for name in $$($(STUDENTS)); do model=$$((model + 1)); \
		further="$(FURTHER) --model $$model --init $(FROM)/$$name.pth"; \
		if [ $$name = $${selected%% *} ]; then \
			$$further --context degraded --epochs $$((2 * $(ONCE))) --checkpoint-dir $(SYSTEM); \
		else cp $(FROM)/$$name.pth $(SYSTEM); fi; \
		case " $$selected " in *" $$name "*) ;; *) continue;; esac; \
		$$further --context degraded --epochs $(ONCE) --checkpoint-dir $(OTHERS)/degraded; \
		$$further --context mixed --epochs $(ONCE) --checkpoint-dir $(OTHERS)/once; \
		$$further --context mixed --epochs $$((2 * $(ONCE))) --checkpoint-dir $(OTHERS)/twice; \
	done
	$(SELECT) --label-rule context --checkpoint-dir $(SYSTEM)
	$(SELECT) --students $(SYSTEM) --checkpoint-dir $(OTHERS)/published
	.venv/bin/python -m studies.contexts $(filter-out --resume,$(IMAGES))

# The students in SELECTED, with three seeds.
DISTILLED = $(if $(SUBSET),runs/quick,runs)/distillation
reproduce-distillation: .venv/runtime
	@set -ex; for seed in 0 1 2; do for run in 1-none 1-mse 2-none 2-mse 2-kl; do loss=$${run#*-}; \
		teacher="--teacher $(FROM)/teacher.pth"; if [ $$loss = none ]; then teacher=; fi; \
		.venv/bin/python StudentTrain.py --model $${run%-*} --distill-loss $$loss $$teacher --seed $$seed \
			--epochs $(or $(EPOCHS),10) --checkpoint-dir $(DISTILLED)/$$loss-$$seed $(IMAGES); \
	done; done
	.venv/bin/python -m studies.distillation $(if $(SUBSET),--runs $(DISTILLED) --out runs/quick/results)

.venv/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "Python 3.10 or newer is needed: make PYTHON=/path/to/python3.12 demo" >&2; exit 2; }
	@$(PYTHON) -m venv .venv || \
		{ rm -rf .venv; echo "no virtual environment: apt-get install python3-venv" >&2; exit 2; }

.venv/runtime: requirements.txt .venv/bin/pip
	PIP_USER=0 .venv/bin/python -m pip install -r requirements.txt
	@touch $@

.venv/dev: requirements-dev.txt .venv/runtime
	PIP_USER=0 .venv/bin/python -m pip install -r requirements-dev.txt
	@touch $@
