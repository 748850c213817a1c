# make demo: the whole pipeline on a synthetic corpus.   make test: the tests.   Both set up .venv from the lock first.
SHELL := /bin/bash
PYTHON ?= python3
PORT ?= 3000
MLFLOW_PORT ?= 5000
BIN := .venv/bin
export UV_COMPILE_BYTECODE ?= 1
# Idle OpenMP threads that spin steal the cores from their neighbours.
export OMP_WAIT_POLICY ?= passive
# Demo and tests start hundreds of processes: where bytecode is not written, each compiles our sources anew.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: setup demo test test-slow ui mlflow check format bench lock clean

setup: .venv/.ready

.venv/.ready: requirements.lock requirements-dvc.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v < (3, 13) else f"Python 3.11 or 3.12 is needed, this is {v[0]}.{v[1]}: make PYTHON=python3.11 ...")'
	@test -x .venv-uv/bin/uv || { $(PYTHON) -m venv .venv-uv && .venv-uv/bin/python -m pip install --quiet uv; }
	.venv-uv/bin/uv venv --quiet --allow-existing --python "$$($(PYTHON) -c 'import sys; print(sys.executable)')" .venv
	.venv-uv/bin/uv pip sync --quiet --python $(BIN)/python requirements.lock
	.venv-uv/bin/uv pip install --quiet --python $(BIN)/python --no-deps -e .
	# DVC has an environment of its own: hydra, which it pulls, needs another antlr than Dagster.
	.venv-uv/bin/uv venv --quiet --allow-existing --python "$$($(PYTHON) -c 'import sys; print(sys.executable)')" .venv-dvc
	.venv-uv/bin/uv pip sync --quiet --python .venv-dvc/bin/python requirements-dvc.lock
	@ln -sfn ../../.venv-dvc/bin/dvc $(BIN)/dvc
	@touch $@

demo: setup
	$(BIN)/rsprune demo $(DEMO)

test: setup
	$(BIN)/python -m pytest -m "not slow and not gpu"

# Two workers for each core: half of the time of these tests is waiting for servers.
test-slow: setup
	$(BIN)/python -m pytest -m "slow" -n 4 --dist loadfile --no-loadscope-reorder

ui: setup
	@mkdir -p .state/dagster && ln -sfn ../../dagster.yaml .state/dagster/dagster.yaml
	VIRTUAL_ENV="$(CURDIR)/.venv" DAGSTER_HOME="$(CURDIR)/.state/dagster" $(BIN)/dg dev --port $(PORT)

mlflow: setup
	@mkdir -p .state/mlflow
	MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false $(BIN)/mlflow server --host 127.0.0.1 --port $(MLFLOW_PORT) -w 1 --backend-store-uri sqlite:///$(CURDIR)/.state/mlflow/mlflow.db

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup
	$(BIN)/python -m benchmarks

lock:
	.venv-uv/bin/uv pip compile --quiet --universal --generate-hashes pyproject.toml --group dev -o requirements.lock
	.venv-uv/bin/uv pip compile --quiet --universal --generate-hashes pyproject.toml --group image -c requirements.lock -o requirements-image.lock
	.venv-uv/bin/uv pip compile --quiet --universal --generate-hashes --group dvc --python-version 3.11 -o requirements-dvc.lock

clean:
	rm -rf .venv .venv-dvc .venv-uv .state .pytest_cache .mypy_cache .ruff_cache
