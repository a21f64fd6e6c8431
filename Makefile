# `make test` and `make demo` do all their own set-up, in ./.venv. CONTRIBUTING.md explains the rest.
VENV := .venv
BIN := $(VENV)/bin
SETUP := tools/make_venv.sh pyproject.toml
UV ?= uv

.NOTPARALLEL:
.PHONY: help test lint types unit demo docs bench lock clean

help:
	@echo "make test   set up, then lint, types and tests"
	@echo "make demo   set up, then run examples/demo.py"
	@echo "make docs   set up, then build the site in build/docs"
	@echo "make bench  set up, then measure speed (hours, on a quiet machine)"
	@echo "make lock   choose new versions for requirements/*.lock (needs uv)"
	@echo "make clean  remove the environment and all caches"

test: lint types unit

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(VENV)/dev.stamp
	$(BIN)/mypy

# Two workers on two cores: BLAS threads of their own would only fight over them.
unit: export OMP_NUM_THREADS = 1
unit: export OPENBLAS_NUM_THREADS = 1
unit: export MKL_NUM_THREADS = 1
unit: $(VENV)/dev.stamp
	$(BIN)/python -m pytest -n 2 --dist loadfile

demo: $(VENV)/demo.stamp
	$(BIN)/python examples/demo.py

# Nothing is run: notebooks are shown with the outputs in their files, which the tests keep true.
# Pages of names that are gone would stay.
docs: $(VENV)/docs.stamp
	rm -rf docs/api
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --fresh-env -c docs . build/docs
	@echo "open build/docs/index.html"

# One after the other, each to benchmarks/results: make bench BENCH=speed OPTIONS='--workloads W1'
BENCH := speed first_step compile_time scaling loop
bench: $(VENV)/bench.stamp
	for name in $(BENCH); do $(BIN)/python -m benchmarks.$$name $(OPTIONS) || exit; done

# dev.lock contains demo.lock, so a development environment is ready for the demo too.
$(VENV)/dev.stamp: requirements/dev.lock $(SETUP)
	@tools/make_venv.sh $(VENV) $<
	@touch $@ $(VENV)/demo.stamp

$(VENV)/demo.stamp: requirements/demo.lock $(SETUP)
	@tools/make_venv.sh $(VENV) $<
	@touch $@

# docs.lock contains demo.lock, too.
$(VENV)/docs.stamp: requirements/docs.lock $(SETUP)
	@tools/make_venv.sh $(VENV) $<
	@touch $@ $(VENV)/demo.stamp

# What the benchmarks compare with, in versions that fit those of dev.lock.
$(VENV)/bench.stamp: requirements/bench.lock $(SETUP)
	@tools/make_venv.sh $(VENV) $<
	@touch $@ $(VENV)/demo.stamp

COMPILE := $(UV) pip compile --quiet --no-config --upgrade --universal --python-version 3.12 \
	--generate-hashes --custom-compile-command "make lock" pyproject.toml --group build \
	--extra plots --extra jax --extra files

lock:
	$(COMPILE) --group dev --output-file requirements/dev.lock
	$(COMPILE) --constraints requirements/dev.lock --output-file requirements/demo.lock
	$(COMPILE) --constraints requirements/dev.lock --extra bench --output-file requirements/bench.lock
	$(COMPILE) --constraints requirements/dev.lock --group docs --output-file requirements/docs.lock

clean:
	rm -rf $(VENV) build dist docs/api .mypy_cache .pytest_cache .ruff_cache .hypothesis
