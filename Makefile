# Every target makes the virtual environment first, if it is not there or if settings.ini has changed.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/finetune_nb.installed
NOTEBOOKS ?=
PORT   ?= 8000

.DEFAULT_GOAL := help
.PHONY: help install run test lab bench tools lessons export docs preview clean

help:     ## list what `make` can do
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' Makefile
	@echo "  with PYTHON=python3.12 for another Python, VENV=path for an environment that you have already"

install: $(STAMP) ## make .venv and install everything in it

run: $(STAMP) ## fine-tune networks on real text, handwriting and photographs, and say how well they do
	@$(BIN)/finetune-nb run

test: $(STAMP) ## test the notebooks, the package and the tree
	@$(BIN)/python -m pytest

lab: $(STAMP) ## open the book in JupyterLab
	@PYTHONPATH="$(CURDIR)/tools$${PYTHONPATH:+:$$PYTHONPATH}" $(BIN)/python -m jupyterlab nbs/index.ipynb $(if $(filter 0,$(shell id -u)),--allow-root)

bench:    ## run finetune_nb beside its peers and write a table; QUICK=1 for 5 minutes, MINUTES=0 for every run
	@$(PYTHON) benchmarks/bench.py $(if $(QUICK),--quick) $(if $(MINUTES),--minutes $(MINUTES))

tools:    ## run the five steps in PyTorch, Keras, Trainer, Lightning and here, for the lesson on tools; MINUTES=20
	@$(PYTHON) benchmarks/tools/run.py $(if $(MINUTES),--minutes $(MINUTES))

lessons: $(STAMP) ## run the lessons and store their outputs; NOTEBOOKS="nbs/04_frozen_layers.ipynb" for some
	@$(BIN)/python tools/lessons.py $(NOTEBOOKS)

export: $(STAMP) ## write the module and README.md from the notebooks, and clean these
	@$(BIN)/nbdev_export
	@$(BIN)/nbdev_clean
	@$(BIN)/python tools/readme.py

docs: $(STAMP) ## build the site in _docs, with Quarto where it is installed
	@$(BIN)/python tools/pages.py

preview: docs ## build the site and serve it on this machine; PORT=8001 for another port
	@$(BIN)/python -m http.server --bind 127.0.0.1 --directory _docs $(PORT)

clean:    ## remove what was built; .venv stays
	@rm -rf _proc _docs build dist *.egg-info .pytest_cache install.log finetune_nb_run
	@find finetune_nb nbs tests tools -name __pycache__ -prune -exec rm -rf {} + -o -name .ipynb_checkpoints -prune -exec rm -rf {} +

# A change in one of these installs again; an environment that fits already is reused.
$(STAMP): settings.ini setup.py pyproject.toml install.py
	@command -v $(PYTHON) >/dev/null || { echo "finetune_nb: no Python is called '$(PYTHON)' here: install Python 3.10 or newer, or name yours, as in \`make PYTHON=python3.12 run\`."; exit 1; }
	@$(PYTHON) install.py $(VENV)
