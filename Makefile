# Every target does its own set-up, in ./.venv or an environment of its own beside it; PYTHON names
# the Python of a new one. CONTRIBUTING.md explains the rest.
VENV := .venv
BIN := $(VENV)/bin
SETUP := tools/make_venv.sh pyproject.toml
UV ?= uv
export PYTHON

.NOTPARALLEL:
.PHONY: help test lint types unit quick coverage test-numba test-lowest test-newest install-check dist demo docs \
	bench lock clean

help:
	@echo "make test           set up, then lint, types and tests"
	@echo "make quick          run the tests that compile little, in a minute or two"
	@echo "make coverage       run all tests, and show what lines and branches they miss"
	@echo "make test-numba     run the tests that need no JAX where it is not installed"
	@echo "make test-lowest    run the tests with the oldest versions that pyproject.toml allows"
	@echo "make test-newest    run the tests with the newest versions; PRE=1: and PyMC's pre-releases"
	@echo "make install-check  install and fit beside pymc-extras, pymc-marketing, bambi and nutpie"
	@echo "make dist           build, check and try the wheel and the source distribution"
	@echo "make demo           set up, then run examples/demo.py"
	@echo "make docs           set up, then build the site in build/docs"
	@echo "make bench          set up, then measure speed (hours, on a quiet machine)"
	@echo "make lock           choose new versions for requirements/*.lock (needs uv)"
	@echo "make clean          remove the environments and all caches"

test: lint types unit

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(VENV)/dev.stamp
	$(BIN)/mypy

# Two workers on two cores: BLAS threads of their own would only fight over them.
unit quick coverage test-%: export OMP_NUM_THREADS = 1
unit quick coverage test-%: export OPENBLAS_NUM_THREADS = 1
unit quick coverage test-%: export MKL_NUM_THREADS = 1
# Some of the tests, say: make unit TESTS='tests/plots -k pairs'
TESTS :=
# Not the files with the most tests first: those with few take long, and one worker would wait.
IN_PARALLEL = -n 2 --dist loadfile --no-loadscope-reorder
PYTEST = python -m pytest $(IN_PARALLEL) $(TESTS)
unit: $(VENV)/dev.stamp
	$(BIN)/$(PYTEST)

# What is checked without a fit: formulas, the mathematics of flows, starts, and the project itself.
QUICK = tests/formula tests/flows/layers tests/flows/test_chain.py tests/flows/test_state.py \
	tests/start tests/approximation/test_log_prob.py tests/support/test_seeds.py \
	tests/support/test_tables.py tests/project/test_packages.py tests/project/test_public_api.py \
	tests/project/test_metadata.py tests/project/test_docs.py
quick: $(VENV)/dev.stamp
	$(BIN)/python -m pytest $(IN_PARALLEL) -m "not jax" $(QUICK)

coverage: $(VENV)/dev.stamp
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest $(IN_PARALLEL) $(TESTS)
	$(BIN)/coverage combine -q
	$(BIN)/coverage report

test-numba: .venv-numba/numba.stamp
	.venv-numba/bin/$(PYTEST) -m "not jax"

test-lowest: .venv-lowest/lowest.stamp
	.venv-lowest/bin/$(PYTEST)

# A new environment each time: what is newest changes.
test-newest:
	rm -rf .venv-newest
	@mkdir -p build
	python3 tools/newest.py $(if $(PRE),--pre) > build/newest.txt
	tools/make_venv.sh .venv-newest build/newest.txt
	.venv-newest/bin/$(PYTEST)

install-check:
	tools/install_check.sh

dist: .venv-dist/dist.stamp
	tools/check_dist.sh .venv-dist

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

# Environments of their own, so that trying other versions leaves ./.venv as it is.
.venv-numba/numba.stamp: requirements/numba.lock $(SETUP)
	@tools/make_venv.sh .venv-numba $<
	@touch $@

.venv-lowest/lowest.stamp: requirements/lowest.lock $(SETUP)
	@tools/make_venv.sh .venv-lowest $<
	@touch $@

.venv-dist/dist.stamp: requirements/dist.lock tools/make_venv.sh
	@tools/make_venv.sh .venv-dist $< --no-package
	@touch $@

UV_COMPILE := $(UV) pip compile --quiet --no-config --upgrade --universal --python-version 3.12 \
	--generate-hashes --custom-compile-command "make lock"
COMPILE := $(UV_COMPILE) pyproject.toml --group build --extra plots --extra files
AS_DEV := --constraints requirements/dev.lock

lock:
	$(COMPILE) --extra jax --group dev --output-file requirements/dev.lock
	$(COMPILE) --extra jax $(AS_DEV) --output-file requirements/demo.lock
	$(COMPILE) --extra jax $(AS_DEV) --extra bench --output-file requirements/bench.lock
	$(COMPILE) --extra jax $(AS_DEV) --group docs --output-file requirements/docs.lock
	$(COMPILE) $(AS_DEV) --group test --output-file requirements/numba.lock
	$(COMPILE) --extra jax --group test --group peers --resolution lowest-direct \
		--output-file requirements/lowest.lock
	$(UV_COMPILE) --group dist --output-file requirements/dist.lock

clean:
	rm -rf $(VENV) $(VENV)-* build dist docs/api .mypy_cache .pytest_cache .ruff_cache .hypothesis
