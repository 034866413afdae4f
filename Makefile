# What a newcomer and CI run. Every target builds the virtual environment first where it is missing
# or older than pyproject.toml or constraints.txt.
#
#   make quickstart            all three phases, a baseline and the comparison, on data made here
#   make test                  lint, types and all tests
#   make test-fast             only the tests that start no processes and take no time
#   make test-gpu              only the tests that need a GPU: bf16, NCCL, offload
#   make PYTHON=python3.12 install

PYTHON ?= python3
PROCESSES ?= 2

VENV := .venv
STAMP := $(VENV)/.installed
BIN := $(VENV)/bin
DEEPSPEED := $(BIN)/deepspeed --log_level error --num_gpus $(PROCESSES)

# deepspeed starts `python` from PATH.
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: install quickstart test test-fast test-gpu lint

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "PYTHON=$(PYTHON) is not a Python 3.11 or newer:" \
	        "name one with make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	@echo "installing into $(VENV) (several GB the first time)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

quickstart: $(STAMP)
	@echo "1/8 data: drawing small scenes with captions, writing them as shards"
	@$(BIN)/python stages/prepare.py
	@echo "2/8 pretraining: a small CLIP and a small language model from scratch"
	@$(DEEPSPEED) stages/pretrain.py
	@echo "3/8 encoder adaptation: the image encoder learns the task's own pairs"
	@$(DEEPSPEED) stages/encoder_adapt.py
	@echo "4/8 ST alignment: the ST learns to speak the frozen language model's language"
	@$(DEEPSPEED) stages/st_align.py
	@echo "5/8 LLM tuning: the language model and the ST learn the task"
	@$(DEEPSPEED) stages/llm_tune.py
	@echo "6/8 scores of the EIM model on the test split"
	@$(DEEPSPEED) stages/evaluate.py
	@echo "7/8 baseline: the same model without the EIM measures, trained and scored"
	@$(DEEPSPEED) stages/evaluate.py baseline=true
	@echo "8/8 report: both side by side"
	@$(BIN)/python stages/report.py

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest --durations=40 --durations-min=10

test-fast: $(STAMP)
	$(BIN)/python -m pytest -m "not slow and not dist and not slurm"

test-gpu: $(STAMP)
	$(BIN)/python -m pytest -m gpu
