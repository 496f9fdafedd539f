# Each target does all the set-up it needs: it makes a virtual environment, or finishes it, at the versions of a lock file.
.PHONY: demo test test-fast test-oldest test-newest test-consumers test-transformers4 test-lmms-eval lint types docs checks all-tests bench train dev lock clean

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# On Linux without an NVIDIA GPU, torch is pinned to its CPU build: the CUDA build takes several gigabytes more.
ifndef LOCK
LOCK := $(shell if [ "$$(uname)" = Linux ] && ! nvidia-smi -L >/dev/null 2>&1; then echo lock-cpu.txt; else echo lock-cuda.txt; fi)
endif
SETUP := $(PYTHON) tools/environment/setup_venv.py
ALL_EXTRAS := dev,eval,language,qlora,ray,remote,serve,train,video,view
# The first import of a module writes its bytecode, which pip did not.
unexport PYTHONDONTWRITEBYTECODE
# Twice as many as a small machine's cores: many tests wait for a process that they started.
WORKERS := -n 4 --dist worksteal

demo: train
	rm -rf build/demo build/run build/exported
	$(BIN)/dsvl-prep build --blend examples/blend.yaml --out build/demo
	$(BIN)/dsvl-prep verify --build build/demo
	$(BIN)/dsvl-prep stats --build build/demo
	$(BIN)/dsvl-prep inspect --build build/demo --limit 3
	$(BIN)/dsvl-train run --config examples/train.yaml
	$(BIN)/dsvl-train run --config examples/train.yaml --set schedule.steps=30
	$(BIN)/dsvl-train export --model build/run --out build/exported
	$(BIN)/dsvl-train chat --model build/exported --max-new-tokens 40 < examples/questions.txt

test: dev
	$(MAKE) --no-print-directory -j2 checks all-tests

checks: lint types docs

all-tests: dev
	$(BIN)/python -c "import trainer.training.run"  # once, before every worker of pytest would compile it
	$(BIN)/python -m pytest $(WORKERS)

test-fast: dev
	$(BIN)/python -m pytest $(WORKERS) -m "not slow"

test-oldest:
	$(SETUP) --venv .venv-oldest --lock lock-oldest.txt --extras $(ALL_EXTRAS)
	.venv-oldest/bin/python -m pytest $(WORKERS)

test-newest:
	$(PYTHON) tools/lock.py --only $(LOCK) --out build/lock-newest.txt
	$(SETUP) --venv .venv-newest --lock build/lock-newest.txt --extras $(ALL_EXTRAS)
	.venv-newest/bin/python -m pytest $(WORKERS)

test-consumers: dev
	$(BIN)/python -m tools.check_consumers

test-transformers4: dev
	$(BIN)/python -m tools.check_transformers4

test-lmms-eval: dev
	$(BIN)/python -m tools.check_lmms_eval

lint: dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell

types: dev
	$(BIN)/mypy

docs: dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

bench: dev
	$(BIN)/python -m tools.bench.answers
	$(BIN)/python -m tools.bench.cluster
	$(BIN)/python -m tools.bench.compile
	$(BIN)/python -m tools.bench.open
	$(BIN)/python -m tools.bench.ingest
	$(BIN)/python -m tools.bench.plan
	$(BIN)/python -m tools.bench.planning.floor
	$(BIN)/python -m tools.bench.remote_inputs
	$(BIN)/python -m tools.bench.remote
	$(BIN)/python -m tools.bench.serve
	$(BIN)/python -m tools.bench.serve_soak
	$(BIN)/python -m tools.bench.share
	$(BIN)/python -m tools.bench.small_cache
	$(BIN)/python -m tools.bench.start
	$(BIN)/python -m tools.bench.tiles
	$(BIN)/python -m tools.bench.view
	$(BIN)/python -m tools.bench.loader --scratch build/bench
	$(BIN)/python -m tools.bench.train

train:
	@$(SETUP) --venv $(VENV) --lock $(LOCK) --extras train

dev:
	@$(SETUP) --venv $(VENV) --lock $(LOCK) --extras $(ALL_EXTRAS)

lock:
	$(PYTHON) tools/lock.py

clean:
	rm -rf .venv .venv-oldest .venv-newest .venv-consumers .venv-transformers4 .venv-lmms-eval build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
