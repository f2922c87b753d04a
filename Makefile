# `make help` lists the targets.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# The folder under results/ that the verdict comes from; the tests read it here.
ANSWER := results/real-224px-by-group

PYTEST := $(BIN)/pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help install study report docs test test-all lint ui up lock vulnerabilities clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1|/' | awk -F'|' '{printf "make %-15s %s\n", $$1, $$2}'

install: $(INSTALLED) ## Install the locked packages into .venv

$(INSTALLED): requirements/lock.txt pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if (3, 11) <= v < (3, 14) else f"medtransfer needs Python 3.11 to 3.13, found {v.major}.{v.minor}: make PYTHON=python3.12 ...")'
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "Python has no venv module: apt install python3-venv"; exit 2; }
	@echo "Installing into $(VENV): about 2 minutes, without output; more on a slow network"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements/lock.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

study: install ## Run the whole study: data, every model, the comparison with the talk
	$(BIN)/medtransfer study

report: install ## Write reports/index.html, one page with all results, from the runs under results/
	$(BIN)/medtransfer report $(or $(FROM),$(ANSWER) $(filter-out $(ANSWER),$(patsubst %/runs,%,$(sort $(wildcard results/*/runs)))))

docs: install ## Build the docs as a site, in site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict
	@echo "the docs: site/index.html (their search needs a server: python3 -m http.server --directory site)"

test: install lint ## Run all checks and all but the slow tests
	$(PYTEST) -m "not slow"

test-all: install lint ## Run all checks and all tests
	$(PYTEST)

lint: install ## Check style, types, the order of imports and the Dockerfile
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/hadolint Dockerfile

ui: install ## Open the MLflow UI on http://127.0.0.1:5000, and print the address of each experiment's charts
	@test -f mlruns/mlflow.db || { echo "mlruns/mlflow.db: not found; run make study first"; exit 2; }
	@$(BIN)/python -c 'import socket, sys; s = socket.socket(); sys.exit(s.connect_ex(("127.0.0.1", $(or $(PORT),5000))) == 0)' \
		|| { echo "port $(or $(PORT),5000) is taken: make ui PORT=5001"; exit 2; }
	@$(BIN)/python tools/charts.py $(or $(PORT),5000)
	MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false $(BIN)/mlflow ui --backend-store-uri sqlite:///mlruns/mlflow.db --host 127.0.0.1 --port $(or $(PORT),5000)

up: .env ## Start the tracking server in containers (Docker), with new passwords in .env
	docker compose up --detach --build --wait

.env:
	@umask 077; for name in POSTGRES_PASSWORD MLFLOW_AUTH_ADMIN_PASSWORD MLFLOW_FLASK_SERVER_SECRET_KEY; do \
		secret=$$($(PYTHON) -c 'import secrets; print(secrets.token_hex(24))') && echo "$$name=$$secret" || exit; \
		done > .env.partial && mv .env.partial .env
	@echo "passwords: .env"

LOCK := uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate --no-header

lock: ## Update the locked versions in requirements/*.txt (needs uv)
	$(LOCK) --extra tensorflow --extra jax --extra cluster --extra server --extra s3 --extra ssh --extra dev pyproject.toml --output-file requirements/lock.txt
	$(LOCK) --extra tensorflow --extra cluster --extra server --extra s3 --extra ssh --constraint requirements/lock.txt pyproject.toml --output-file requirements/cpu.txt
	$(LOCK) --extra gpu --extra cluster --extra server --extra s3 --extra ssh --constraint requirements/lock.txt pyproject.toml --output-file requirements/gpu.txt

vulnerabilities: ## Check the locked versions for known vulnerabilities (needs uv and the internet)
	for file in lock cpu gpu; do \
		uv tool run pip-audit --strict --disable-pip --require-hashes --requirement requirements/$$file.txt || exit; done

clean: ## Remove outputs of stages and tests, but not data, sweeps, what tune wrote, DVC's cache or mlruns
	rm -rf $(addprefix artifacts/,prepared runs checkpoints activations layers gradcam) reports/figures reports/plots/confusion reports/plots/training_accuracy .pytest_cache .mypy_cache .ruff_cache
