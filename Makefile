# `make run` and `make test` are the two commands; `make help` lists the others.
# HEED_PYTHON names the Python (3.11 to 3.14) that .venv is made from.

.DEFAULT_GOAL := help
VENV := .venv
BIN := $(VENV)/bin
INSTALL := bash requirements/install.sh

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 22

install:  ## make .venv and install the lock of this machine's device into it
	@$(INSTALL)

run: install  ## install, make the model, start the whole stack, print the addresses
	@exec $(BIN)/heed up

secrets:  ## random keys for compose.yaml in secrets/; those that are there stay
	@mkdir -p -m 700 secrets
	@for name in heed_operator_key heed_client_keys grafana_password; do \
		[ -e secrets/$$name ] || od -An -N24 -tx1 /dev/urandom | tr -d ' \n' > secrets/$$name; \
		chmod 644 secrets/$$name; done  # the containers' users are others than yours; the folder is closed instead

test:  ## install what tests need, then lint, types, contracts and every test
	@$(INSTALL) --dev
	@bash requirements/browser.sh
	@$(MAKE) --no-print-directory lint types
	@$(BIN)/python -m pytest -n 2 --no-loadscope-reorder

lint:  ## ruff and the import contracts
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports --no-cache

types:  ## mypy --strict
	@$(BIN)/mypy

# Each lock is held to the one before it, so that a machine with [dev] and a container without run the same versions.
LOCK := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --no-emit-index-url --no-header \
	--annotation-style line --override requirements/overrides.txt pyproject.toml

bench:  ## measure what a vote and the way through the gateway cost (a quarter of an hour; nothing else should be running)
	@$(BIN)/python -m tests.load.bench_votes
	@$(BIN)/python -m tests.load.bench_hop

SEED := 0
KILLS := 20

faults:  ## kill, stop and cut off every part under chat, votes and a job (half an hour; `make faults SEED=1`)
	@$(BIN)/python -m tests.faults --seed $(SEED)

kills:  ## kill -9 ledger, gateway and archiver under 32 voting clients (half an hour; `make kills SEED=1 KILLS=3`)
	@$(BIN)/python -m tests.faults.kills --times $(KILLS) --seed $(SEED)

swaps:  ## ten swaps, two rollbacks, a canary and a killed engine under 16 streams on two real vLLM (five minutes)
	@$(BIN)/python -m tests.load.swaps

scaling:  ## how many gateways, engines and trainers; the simulation is held to a real run (ten minutes)
	@$(BIN)/python -m tests.load.scaling

bench-train:  ## measure what training costs against TRL, and that its losses are TRL's (half an hour)
	@$(BIN)/python -m tests.load.bench_train

reproduce:  ## DPO's claim where everything can be counted: writes docs/dpo.md and its figure (ten minutes)
	@$(BIN)/python -m tests.toy.reproduce

gate:  ## what the gate lets out and what it keeps: a catalogue of real jobs (long)
	@$(BIN)/python -m trainer pocket --out var/pocket
	@$(BIN)/python -m trainer pocket --seed 1 --out var/other
	@$(BIN)/python -m tests.load.gate_catalogue

docs:  ## build the site of docs/ into var/site; a dead link fails it
	@$(INSTALL) --dev
	@$(BIN)/python -m mkdocs build --strict

screenshots:  ## pictures of the console's pages: writes docs/images/console-*.png (five minutes)
	@$(BIN)/python -m trainer pocket --out var/pocket
	@$(BIN)/python -m tests.browser.screenshots

lock:  ## resolve the locks again after a change in pyproject.toml (needs PyPI only; `make lock UPGRADE=--upgrade` for newer versions)
	@$(INSTALL) --uv-only
	@$(LOCK) $(UPGRADE) -o requirements/gateway.txt
	@$(LOCK) $(UPGRADE) --extra dev -c requirements/gateway.txt -o requirements/dev.txt
	@$(LOCK) $(UPGRADE) --extra redact -c requirements/dev.txt -o requirements/redact.txt
	@$(LOCK) $(UPGRADE) --extra gpu --extra console -c requirements/dev.txt -o requirements/gpu.txt
	@$(LOCK) $(UPGRADE) --extra console -c requirements/gpu.txt -o requirements/console.txt
	@sed -i 's/^torch==\([0-9.]*\)+cpu/torch==\1/' requirements/cpu.txt 2>/dev/null || true
	@sed -n 's/^ *"\(torch==[0-9.]*\)".*/\1/p' pyproject.toml > requirements/.torch
	@$(LOCK) $(UPGRADE) --extra cpu --extra console -c requirements/dev.txt --config-file requirements/torch-cpu.toml \
		--override requirements/.torch -o requirements/cpu.txt
	@sed -i 's/^torch==[0-9.]*/&+cpu/' requirements/cpu.txt
	@rm requirements/.torch

clean:  ## remove .venv (var/, with the votes in it, stays)
	rm -rf $(VENV)

.PHONY: help install run secrets test lint types bench faults kills swaps scaling bench-train reproduce gate docs screenshots lock clean
