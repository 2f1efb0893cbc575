# Every target sets up what it needs by itself (.ci/setup does nothing when it is up to date).
BIN := .venv/bin
# One thread a process: simulation and torch use the second core as a second process (see docs/results).
export OMP_NUM_THREADS ?= 1

.PHONY: help setup quickstart test test-ros check format bench docs clean

help:  ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

setup:  ## Python 3.12, .venv, pinned packages, OpenGL libraries, Chromium for the tests
	@bash .ci/setup

quickstart: setup  ## demos -> diffusion policy -> evaluation -> report, about 10 minutes on 2 cores
	@$(BIN)/robolearn quickstart

test: setup  ## the test run: first over ROS 2, one test at a time, for those are real-time; then all others
	@$(BIN)/pytest -m ros tests/ros
	@$(BIN)/pytest -n 2 --dist worksteal -m "not ros"

test-ros: setup  ## only the tests over ROS 2 in real processes
	@$(BIN)/pytest -m ros tests/ros

check: setup  ## format, lint, types, layers: what CI and pre-commit run
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: setup  ## rewrite files in the house style
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

bench: setup  ## every benchmark, one after the other
	@$(BIN)/robolearn bench all

docs: setup  ## build the documentation site into build/docs
	@$(BIN)/mkdocs build --strict --site-dir build/docs

clean:  ## remove the virtual environment and caches (never runs/ or data/)
	rm -rf .venv build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
