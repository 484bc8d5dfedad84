# `make demo` and `make test` are all that is needed: both install first, once.

PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
INSTALLED := $(VENV)/.installed
STORAGE := $(or $(KINEMA_STORAGE),$(HOME)/.kinema)
MLFLOW_PORT ?= 5000
# Three processes, as tests with a cluster often wait, each with one thread for sums; the tests of a file
# share what it makes.
TEST := OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

export RAY_AUTH_MODE := token
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

.DEFAULT_GOAL := help
.PHONY: help install demo test test-fast check cluster-up cluster-down mlflow-ui clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 24

install: $(INSTALLED)  ## virtual environment in .venv with the tested versions

# Pre-building DeepSpeed's one CPU operator here keeps the compiler out of every run that follows.
$(INSTALLED): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11"; exit 2; }
	@command -v g++ >/dev/null || { echo "A C++ compiler is needed (g++): DeepSpeed builds an operator with it"; exit 2; }
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	DS_ACCELERATOR=cpu $(VENV)/bin/python -m kinema.training.engine --prebuild
	@touch $@

demo: install  ## a whole study in miniature on this machine: extract, pretrain, finetune, sweep
	$(VENV)/bin/python jobs/demo.py

test: install  ## every test but those that need a GPU
	$(TEST) -m "not gpu"

test-fast: install  ## the tests that start no cluster
	$(TEST) -m "not gpu and not ray and not slow"

check: install  ## style, types and import rules, as before each commit
	$(VENV)/bin/pre-commit run --all-files

cluster-up: install  ## a Ray head on this machine, loopback only; says how to reach it
	$(VENV)/bin/python clusters/local_head.py up

cluster-down: install  ## end the head that cluster-up started
	$(VENV)/bin/python clusters/local_head.py down

mlflow-ui: install  ## MLflow's pages for the runs in $KINEMA_STORAGE (~/.kinema)
	@test -f "$(STORAGE)/mlflow.db" || { echo "No runs yet: $(STORAGE)/mlflow.db is missing"; exit 2; }
	$(VENV)/bin/mlflow server --host 127.0.0.1 --port $(MLFLOW_PORT) --workers 1 \
		--backend-store-uri "sqlite:///$(STORAGE)/mlflow.db" \
		--artifacts-destination "$(STORAGE)/mlartifacts"

clean:  ## caches of tools; results, .venv and running clusters stay
	rm -rf .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis build dist
	find platform jobs tests benchmarks -type d -name __pycache__ -prune -exec rm -rf {} +
