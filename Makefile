# Every target sets up its own environment first: nothing but Python >= 3.11 and make is needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# What takes longest comes first, so that all processes end at about the same time. While the one starts the
# Prefect server of them all, the others do without it.
TESTS ?= tests/end_to_end/test_agent.py tests/chaos tests/simulation tests/adapters tests/end_to_end tests/sandbox tests/unit
STAMP := $(VENV)/.ready
# The tests start many Pythons, and each would compile all that it imports.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: bench slow proof fuzz simulate mutants chaos soak blocks demo test lint lock clean
.DEFAULT_GOAL := test

$(STAMP): requirements/dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0] + "; set PYTHON=python3.12, say") if sys.version_info < (3, 11) else None'
	@echo "Setting up $(VENV) (once; about a minute)"
	@$(PYTHON) -m venv --clear $(VENV)
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps --require-hashes --requirement requirements/dev.txt
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

demo: $(STAMP)  ## eight runs from a W&B queue through Vertex AI and back, on local servers
	@$(BIN)/vertex-launch demo $(DEMO_ARGS)

test: $(STAMP)  ## the test suite; three processes keep two cores busy, as many tests wait for others
	@$(BIN)/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder $(TESTS) $(PYTEST_ARGS)

slow: $(STAMP)  ## the tests with real programs: the demo, workers, wandb, agents that are killed; some minutes
	@$(BIN)/python -m pytest -m slow tests/chaos tests/end_to_end tests/simulation tests/sandbox tests/adapters tests/unit --numprocesses 3 --dist loadfile $(PYTEST_ARGS)

proof: $(STAMP)  ## more of what the tests prove: 20 kills of agents, and the simulation's gaps; some minutes
	@$(BIN)/python -m pytest -m proof tests/chaos tests/simulation --numprocesses 3 --dist load $(PYTEST_ARGS)

fuzz: $(STAMP)  ## whatever is sent to the sandbox, and whatever comes from W&B and Vertex AI; a few minutes
	@FUZZ_EXAMPLES=$(or $(FUZZ_EXAMPLES),2000) $(BIN)/python -m pytest -m '' tests/sandbox/test_sandbox_fuzz.py tests/adapters/test_adapters_fuzz.py tests/end_to_end/test_fuzzed_answers.py --numprocesses 2 --dist load --timeout 1800 $(PYTEST_ARGS)

simulate: $(STAMP)  ## the agent in virtual time: every death in every script, 2,000 seeds of 20 items; minutes
	@$(BIN)/python -m tests.simulation $(SIMULATE_ARGS)

mutants: $(STAMP)  ## the simulation notices every deliberate breakage of the agent's code; a minute
	@$(BIN)/python -m pytest -m mutants tests/simulation --numprocesses 2 --dist load $(PYTEST_ARGS)

chaos: $(STAMP)  ## 200 kills of agents, sandbox and Prefect server; about a quarter of an hour
	@$(BIN)/python -m tests.chaos.chaos $(CHAOS_ARGS)

soak: $(STAMP)  ## 2,000 items while a twentieth of all calls goes wrong; about half an hour
	@$(BIN)/python -m tests.chaos.soak $(SOAK_ARGS)

bench: $(STAMP)  ## what it costs: latency, CPU, memory and calls on the sandbox; a quarter of an hour
	@$(BIN)/python -m benchmarks $(BENCH_ARGS)

lint: $(STAMP)  ## format, lint, types, import contracts and the length of modules and functions
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/pyright
	@$(BIN)/lint-imports
	@$(BIN)/python -m tests.lint.size $(wildcard prefect_vertex_launch flows blocks benchmarks)

blocks: $(STAMP)  ## register the block types with the Prefect server in use
	@$(BIN)/prefect block register --file blocks/wandb_credentials.py
	@$(BIN)/prefect block register --file blocks/vertex_queue.py

lock: $(STAMP)  ## pin again what pyproject.toml asks for
	@$(BIN)/python -m pip install --quiet uv
	@$(BIN)/uv pip compile pyproject.toml --universal --no-strip-extras --python-version 3.11 --extra sandbox --generate-hashes --no-emit-index-url --quiet --output-file requirements/runtime.txt
	@$(BIN)/uv pip compile pyproject.toml --universal --no-strip-extras --python-version 3.11 --extra sandbox --group dev --generate-hashes --no-emit-index-url --quiet --output-file requirements/dev.txt

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .import_linter_cache .hypothesis
