# The same targets by hand and in CI. Nothing but make and Python 3.11 or newer has to be there.
.DEFAULT_GOAL := help
.SUFFIXES:
SHELL := /bin/sh

VENV ?= .venv
BIN := $(VENV)/bin
RUNTIME := $(VENV)/.installed-runtime
DEV := $(VENV)/.installed-dev
PIP = $(BIN)/python -m pip --disable-pip-version-check --quiet --no-input
# LOCKFLAGS=--upgrade takes newer versions; without it only what pyproject.toml or requirements.in changed is resolved.
UV_COMPILE = $(BIN)/uv pip compile $(LOCKFLAGS) --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate
PYTEST = $(BIN)/python -m pytest
# Journeys that also run on a Valkey cluster and a loopback Qdrant each time; all of them do with the tests that take minutes.
ON_CLUSTER = $(patsubst %,tests/journeys/test_%.py,main_job sessions)
# A version that is tested comes first, then whatever is new enough. A name on PATH may still not run (version managers).
FIND_PYTHON = for p in "$(PYTHON)" python3 python3.13 python3.12 python3.11 python3.14 python; do \
	[ -n "$$p" ] && "$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo "$$p"; exit 0; }; \
	done; exit 1

.PHONY: help
help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(BIN)/python:
	@python=$$($(FIND_PYTHON)) || { \
		echo "MemoryOS needs Python 3.11 or newer; none was found. Install one, or name it: make run PYTHON=/path/to/python3" >&2; exit 1; }; \
	echo "making $(VENV) with $$python"; \
	"$$python" -m venv "$(VENV)" || { \
		rm -rf "$(VENV)"; echo "$$python cannot make a venv; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }

# The lock holds every package with its hash; --no-deps because one of them asks for far more than it needs (requirements.in).
$(RUNTIME): requirements.lock pyproject.toml | $(BIN)/python
	@[ -f $(DEV) ] || { echo "installing (about a minute, once)"; $(PIP) install --no-deps --require-hashes -r requirements.lock; }
	@[ -f $(DEV) ] || $(PIP) install --no-deps --no-build-isolation -e .
	@[ ! -f $(DEV) ] || $(MAKE) --no-print-directory $(DEV)
	@touch $@

$(DEV): requirements-dev.lock pyproject.toml | $(BIN)/python
	@echo "installing, tools included (about two minutes, once)"
	@$(PIP) install --no-deps --require-hashes -r requirements-dev.lock
	@$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@

.PHONY: run
run: $(RUNTIME) ## install what is needed, then run server and bridge until Ctrl-C
	@exec $(BIN)/memoryos up

.PHONY: test
test: $(DEV) lint types breaking ## everything CI runs: lint, types, protos, tests
	$(PYTEST) -m "not long and not live"
	$(PYTEST) -m "not long and not live" --stores live-cluster $(ON_CLUSTER)

.PHONY: gen
gen: $(DEV) ## generate the code of the protos into the client package
	$(BIN)/python scripts/generate.py

.PHONY: deps
deps: $(DEV)
	@$(BIN)/python scripts/generate.py --deps

.PHONY: format
format: $(DEV) ## format the code
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

.PHONY: lint
lint: deps ## style, layers and protos
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/lint-imports
	$(BIN)/buf lint

.PHONY: types
types: $(DEV) ## check types
	$(BIN)/mypy

.PHONY: breaking
breaking: deps ## compare the protos with those of the last release
	@if [ -f proto/released.binpb ]; then \
		image=$$(mktemp -d) && trap 'rm -rf "$$image"' EXIT && \
		$(BIN)/buf build -o "$$image/now.binpb" && \
		$(BIN)/buf breaking "$$image/now.binpb" --against proto/released.binpb --config buf.yaml; \
	else echo "breaking: there is no proto/released.binpb, so nothing was released that could break"; fi

.PHONY: released
released: deps ## keep the protos as those of the release; part of releasing
	$(BIN)/buf build -o proto/released.binpb

.PHONY: test-live
test-live: $(DEV) ## tests against real stores (MEMORYOS_TEST_QDRANT_URL)
	@$(PYTEST) -m live || { code=$$?; [ $$code -eq 5 ] && echo "there are no such tests yet"; exit $$(( code == 5 ? 0 : code )); }

.PHONY: test-long
test-long: $(DEV) ## tests that take minutes
	$(PYTEST) -m "not long and not live" --stores live-cluster tests/journeys
	@$(PYTEST) -m long || { code=$$?; [ $$code -eq 5 ] && echo "there are no such tests yet"; exit $$(( code == 5 ? 0 : code )); }

.PHONY: bench
bench: $(DEV) ## measure speed and, with EVAL=<directory of sets>, recall
	$(BIN)/python -m bench.load
	$(BIN)/python -m bench.recall $(EVAL)

.PHONY: audit
audit: $(DEV) ## look for known vulnerabilities in what is installed (asks the network)
	$(BIN)/pip-audit --disable-pip --require-hashes -r requirements.lock

.PHONY: sbom
sbom: $(DEV) ## write sbom.cdx.json: every locked runtime dependency, as CycloneDX
	@$(BIN)/python scripts/sbom.py sbom.cdx.json

.PHONY: lock
lock: $(DEV) ## bring both locks up to date; LOCKFLAGS=--upgrade for newer versions (asks the network)
	$(UV_COMPILE) --extra server --extra bridge --extra qdrant pyproject.toml requirements.in -o requirements.lock
	$(UV_COMPILE) --extra otel -c requirements.lock pyproject.toml -o requirements-otel.lock
	$(UV_COMPILE) --extra server --extra bridge --extra qdrant --group dev -c requirements.lock pyproject.toml requirements.in -o requirements-dev.lock
	for sdk in tests/gateway/sdk/*.in; do $(UV_COMPILE) $$sdk -o $${sdk%.in}.lock || exit 1; done
	! command -v npm >/dev/null || ( cd tests/gateway/sdk/openai-node && \
		npm install --package-lock-only --omit-lockfile-registry-resolved --no-audit --no-fund )
