# Two commands do all the set-up: `make demo` (the main job) and `make test`. Everything goes into .venv.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
TASKS := button-press-topdown-v3 drawer-open-v3 window-close-v3 door-open-v3
RUN ?= runs/first
DATA ?= data/demos
export MUJOCO_GL ?= osmesa

.PHONY: demo mt50 test setup setup-dev system lint bench docs interop clean

demo: setup
	$(BIN)/wamkit collect --env metaworld --tasks $(TASKS) --episodes 30 --out $(DATA)
	$(BIN)/wamkit train --recipe metaworld-unified --data $(DATA) --out $(RUN)
	$(BIN)/wamkit eval $(RUN) --episodes 20

# One model for the fifty tasks of MetaWorld: some hours on two cores. The same command continues.
MT50 ?= data/mt50
mt50: setup
	$(BIN)/wamkit collect --env metaworld --tasks $$($(BIN)/wamkit list --tasks metaworld) --episodes 50 --off-expert 4 \
	  --options goal_markers=true max_steps=500 height=96 width=96 supersample=2 'cameras=["corner2","gripperPOV"]' \
	  --out $(MT50)
	$(BIN)/wamkit compare mt50 --data $(MT50) --only unified bc --held-out 2

test: setup-dev
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

lint: setup-dev
	$(BIN)/ruff check . && $(BIN)/lint-imports && $(BIN)/mypy

bench: setup
	$(BIN)/python benchmarks/main_job.py

# The documentation as a site in site/; `python -m http.server -d site` shows it. The variable silences an announcement
# of the theme's authors, which is no finding about these pages.
docs: $(VENV)/.installed-docs
	$(BIN)/python tools/figures.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# What wamkit and lerobot make of each other's data, runs and environments, with the lerobot packages themselves: 0.4.4
# for data alone, and 0.6.1 complete in one environment with wamkit (several GB; no part of `make test`). torch and PyAV
# there are the newest that lerobot allows, and MuJoCo the one that MetaWorld is made for.
LEROBOT := .venv-lerobot/bin
LEROBOT06 := .venv-lerobot06/bin
# pyenv has a `python3.12` on PATH that only says that no such version is chosen.
PYTHON312 ?= $(firstword $(shell for p in python3.12 \
  $$(ls "$${PYENV_ROOT:-$$HOME/.pyenv}"/versions/3.12.*/bin/python3.12 2>/dev/null | sort -rV); do \
  $$p -c "" 2>/dev/null && echo $$p; done))
interop: setup
	@test -n "$(PYTHON312)" || { echo "make interop needs Python 3.12: set PYTHON312=/path/to/python3.12"; exit 1; }
	test -x $(LEROBOT)/python || $(PYTHON) -m venv .venv-lerobot
	echo torch==2.13.0 > .venv-lerobot/constraints.txt
	$(LEROBOT)/pip install --quiet -c .venv-lerobot/constraints.txt torch==2.13.0 numpy==2.2.6 'datasets>=4,<5' 'pandas<3' 'av>=15,<16' \
	  pillow draccus==0.10.0 einops deepdiff packaging jsonlines termcolor gymnasium accelerate
	$(LEROBOT)/pip install --quiet --no-deps lerobot==0.4.4
	test -x $(LEROBOT06)/python || $(PYTHON312) -m venv .venv-lerobot06
	$(LEROBOT06)/pip install --quiet -e client -e '.[dev]' -e plugins/lerobot_policy_wamkit 'lerobot[metaworld,training]==0.6.1' deepdiff \
	  'mujoco==3.3.0'
	$(LEROBOT06)/python -m pytest -n auto --maxprocesses 4 --dist loadfile tests/unit tests/data tests/contract
	$(LEROBOT06)/python -m pytest -c plugins/lerobot_policy_wamkit/pyproject.toml plugins/lerobot_policy_wamkit/tests
	$(LEROBOT06)/python benchmarks/lerobot_eval.py --folder build/lerobot_eval
	$(BIN)/python benchmarks/interop.py --python $(LEROBOT)/python $(LEROBOT06)/python

# Made from what the families declare; a test compares the page with them.
docs/taxonomy.md: FORCE setup
	$(BIN)/wamkit list --table > $@
FORCE:

setup: $(VENV)/.installed system
setup-dev: $(VENV)/.installed-dev system

$(BIN)/python:
	@$(PYTHON) -c "" 2>/dev/null || { echo "wamkit needs Python 3.11, 3.12 or 3.13: set PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)

# The marks name what they were made from, so a changed one of them installs again.
$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --no-compile -c constraints.txt -e '.[all]'
	touch $@

$(VENV)/.installed-dev: pyproject.toml client/pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --no-compile -c constraints.txt -e client -e '.[dev]'
	touch $(VENV)/.installed $@

$(VENV)/.installed-docs: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --no-compile -c constraints.txt -e '.[all,docs]'
	touch $(VENV)/.installed $@

# MuJoCo draws by software through OSMesa, a system library.
system:
	@sh tools/system.sh

clean:
	rm -rf $(VENV) build dist site
