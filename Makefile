# Every target does its own set-up, from a machine with Python 3.11 and a package registry.
# The virtual environment is made anew when pyproject.toml or constraints.txt changes.
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(abspath $(VENV))/bin
export LLMREC_HOME ?= $(abspath .llmrec)

.DEFAULT_GOAL := help
.PHONY: help audit bench browser demo docs hostile retrieval test test-engines test-oldest test-unit services lint fix clean

help:  ## Lists the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[cpu,export,minilm,ranker,dev]"
	touch $@

demo: $(VENV)/.installed  ## Export, apply, materialize, train and rank on the shipped sample: the main job
	PATH="$(BIN):$$PATH" examples/ranker/demo.sh

retrieval: $(VENV)/.installed  ## Finds packages by a text and ranks them; runs the demo first if it has not run
	PATH="$(BIN):$$PATH" examples/retrieval/demo.sh

test: lint  ## All tests, from unit tests to Feast in processes of its own
	@$(MAKE) --no-print-directory services || echo "Without Redis and PostgreSQL: their tests are skipped."
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

services:  ## Fetches Redis and PostgreSQL with pgvector for the tests, from Debian's packages, without installing them
	@tests/services/fetch.sh

browser:  ## Fetches Chromium for the tests that look at pages (120 MB, from Debian's packages, without installing it)
	@tests/services/fetch_chromium.sh

test-unit: $(VENV)/.installed  ## The tests that do not start Feast
	$(BIN)/python -m pytest tests/unit

test-engines: $(VENV)/.installed  ## The tests on Ray and Spark (needs Java 17): 600 MB of packages, then minutes
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[engines]"
	$(BIN)/python -m pytest -m engines --durations=0

test-oldest:  ## The tests with the lowest versions that are supported, in a virtual environment of its own
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet --constraint constraints-min.txt --editable ".[cpu,export,minilm,ranker,dev]"
	.venv-oldest/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder tests/unit tests/integration

docs: $(VENV)/.installed  ## The documentation site, in site/; a broken link fails
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[docs]"
	$(BIN)/mkdocs build --strict

hostile: $(VENV)/.installed  ## 100,000 hostile texts through everything that reads texts
	$(BIN)/python -m benchmarks.hostile

# For example: make bench BENCH="--engines llmrec onnxruntime --repeats 3". Every option: make bench BENCH=--help
BENCH ?= --long --busy 2
bench: $(VENV)/.installed  ## Encoders side by side, ours and peers: installs each (5 GB), measures, writes table and chart
	$(BIN)/python -m benchmarks.encoders --update README.md docs/benchmarks/encoders.md $(BENCH)

lint: $(VENV)/.installed  ## Formatting, lint, types and the direction of imports
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Apart from `lint`: what is not known today may be known tomorrow, and it needs pypi.org itself.
# The reason of each is in docs/security.md.
AUDIT_EXCEPTIONS = CVE-2026-5241 CVE-2026-4372 CVE-2026-9856 CVE-2026-1839 \
	CVE-2025-14920 CVE-2025-14921 CVE-2025-14926 CVE-2025-14927 PYSEC-2026-139 CVE-2026-18948

audit:  ## Known weaknesses in the pinned dependencies; fails, too, where it cannot ask
	$(PYTHON) -m venv .venv-audit
	.venv-audit/bin/python -m pip install --quiet pip-audit
	.venv-audit/bin/pip-audit --strict --requirement constraints.txt --no-deps --disable-pip \
		$(addprefix --ignore-vuln ,$(AUDIT_EXCEPTIONS))

fix: $(VENV)/.installed  ## Formats and mends what ruff can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:  ## Removes everything that was built, exported or computed
	rm -rf $(VENV) .venv-audit .bench .llmrec .services feature_repo/data
