# Everything a person runs. `make` alone lists it.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:

PYTHON ?= python3
BIN := .venv/bin
LAB := $(BIN)/python -m lab
LAB_FILE ?= default
NAME ?= default
SCENARIO ?= default
SCENARIOS ?= ufw iptables_forward default
MOLECULE := $(BIN)/molecule test
export ANSIBLE_CONFIG := $(CURDIR)/ansible.cfg
export PATH := $(CURDIR)/$(BIN):$(PATH)

TABLE := reports/faults.json
ODD_LABS := single ipvs nftables
FAULT_LABS := default ha calico calico-bird swap swap-ha edge $(ODD_LABS)
DISTURB := --disturb
FAULTS_default := --thorough $(DISTURB)
FAULTS_ha := -k "(without or etcd or servers) and not two_faults"
FAULTS_calico-bird := $(FAULTS_default) -k "test_faults and not two_faults"
FAULTS_calico := $(FAULTS_calico-bird)
FAULTS_edge := $(FAULTS_calico-bird)
FAULTS_swap := $(FAULTS_calico-bird)
FAULTS_swap-ha := --thorough $(DISTURB) -k "servers and not two_faults"
$(foreach lab,$(ODD_LABS),$(eval FAULTS_$(lab) := -k without_faults))

APT := DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=120
SHELL_SCRIPTS = $(shell git grep -lE '^\#!.*[/ ](ba)?sh( |$$)')
START := $(shell date +%s)
say = @printf '\n== %s (after %s s)\n' $(1) $$(( $$(date +%s) - $(START) ))

swap_on = $(LAB) with $(1) --name test -- $(LAB) load --patience 30 -- $(MAKE) --no-print-directory scenarios SCENARIOS=cni_swap

.PHONY: help
help: ## List what there is
	@awk -F ':.*## ' '/^[a-z.-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "LAB_FILE=, NAME=, NODE= and SCENARIO= choose a lab's file, a lab, one of its nodes and a Molecule scenario."

.PHONY: demo
demo: .venv ## Break a small cluster as the operators' was, find the cause, mend it, prove it
	$(LAB) demo

.PHONY: test
test: lint unit lab-test ## Run all tests: lint, unit, roles and faults on the lab's machines

.PHONY: lint
lint: .venv ## Check style, types, playbooks, YAML and shell scripts
	$(call say,"lint")
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/yamllint --strict .
	$(BIN)/ansible-lint --offline
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows docs/examples/github-actions.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.gitlab-ci docs/examples/gitlab-ci.yml
	$(BIN)/shellcheck $(SHELL_SCRIPTS)

.PHONY: unit
unit: .venv ## Run the tests that need no lab
	$(call say,"unit tests")
	$(LAB) prepare
	$(BIN)/pytest -q -n auto tests/unit

.PHONY: lab-test
lab-test: .venv ## Run the tests of the lab, the Molecule scenarios and the fault suite
	$(call say,"the lab itself")
	$(BIN)/pytest -v tests/lab
	$(call say,"roles and faults on a lab")
	$(LAB) with default --name test -- $(MAKE) --no-print-directory scenarios faults
	$(call say,"the edge on a lab")
	$(LAB) with edge --name test -- $(MAKE) --no-print-directory scenarios SCENARIOS=edge
	$(call say,"a swap and the way back under load")
	$(MAKE) --no-print-directory test-swap

.PHONY: test-swap test-swap-ha
test-swap: .venv ## Swap Flannel for Calico and back on a lab while clients ask
	$(call swap_on,swap)

test-swap-ha: .venv ## Do the same with three servers, beside UFW
	$(call swap_on,swap-ha)

.PHONY: test-faults $(FAULT_LABS:%=test-faults-%)
test-faults: .venv ## Put each fault into a lab, find it, mend it, and disturb what was mended in every way, unless DISTURB=
	rm -f $(TABLE)
	$(MAKE) --no-print-directory --keep-going $(FAULT_LABS:%=test-faults-%)

# What a fault needs decides the lab that it is put into; the last of them prints the table of all.
$(FAULT_LABS:%=test-faults-%): test-faults-%: .venv
	$(LAB) with $* --name test -- $(MAKE) --no-print-directory faults FAULTS='--table=$(TABLE) $(FAULTS_$*)'

.PHONY: test-calico
test-calico: .venv ## Hold Calico's stand-in against what real Calico does, on a lab
	$(LAB) with calico --name test -- $(BIN)/pytest -v tests/calico

.PHONY: test-edge
test-edge: .venv ## Test the way from the internet to the application, on a lab with an ingress controller and balancers
	$(LAB) with edge --name test -- $(MAKE) --no-print-directory edge

.PHONY: molecule
molecule: .venv ## Run one Molecule scenario on a lab, SCENARIO=ufw
	$(LAB) with default --name test -- $(MOLECULE) --scenario-name $(SCENARIO)

# These run inside a lab's network, or with NETMEND_INVENTORY set (scenarios alone) on machines of your own.
.PHONY: scenarios faults edge
scenarios:
	for scenario in $(SCENARIOS); do $(MOLECULE) --scenario-name "$$scenario"; done

edge: SCENARIOS := edge
edge: scenarios
	$(BIN)/pytest -v tests/edge

faults:
	$(BIN)/pytest -v --durations=0 --durations-min=1 $(FAULTS) tests/faults

.PHONY: lab-build
lab-build: .venv ## Build what labs are made of, once
	$(LAB) build

.PHONY: lab-up
lab-up: .venv ## Start a lab and wait until its nodes are Ready, LAB_FILE=ha
	$(LAB) up $(LAB_FILE)

.PHONY: lab-down
lab-down: .venv ## End a lab, NAME=default
	$(LAB) down $(NAME)

.PHONY: lab-status
lab-status: .venv ## Show a lab's machines, nodes and faults
	$(LAB) status $(NAME)

.PHONY: lab-ssh
lab-ssh: .venv ## Open a shell on a node, NODE=k3s-worker-01
	$(LAB) ssh $(or $(NODE),k3s-master-01) --lab $(NAME)

.PHONY: lab-bench
lab-bench: .venv ## Measure a lab's start and its machines' memory
	$(LAB) bench $(LAB_FILE)

.PHONY: requirements
requirements: .venv ## Pin requirements.in anew, with hashes
	CUSTOM_COMPILE_COMMAND='make requirements' $(BIN)/pip-compile --upgrade --generate-hashes --allow-unsafe \
		--strip-extras --no-emit-index-url --no-emit-find-links --no-emit-trusted-host \
		--output-file requirements.txt requirements.in

.PHONY: clean
clean: ## Remove the virtual environment, reports and the tools' caches; built artifacts stay
	rm -rf .venv reports .pytest_cache .mypy_cache .ruff_cache .ansible .cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: clean-lab
clean-lab: .venv ## End the lab and remove everything built for it
	$(LAB) down $(NAME)
	rm -rf "$${NETMEND_CACHE:-$$HOME/.cache/netmend}"

# A stamp, as the directory is there from the first second on and the packages only at the end.
.PHONY: .venv
.venv: .venv/complete

.venv/complete: requirements.txt collections/requirements.yml collections/wheel.txt
	$(call say,"virtual environment (once; some minutes where downloads are slow)")
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is older than 3.11: say which to take by PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo "installing python3-venv"; $(APT) update >/dev/null; $(APT) install -y --no-install-recommends python3-venv; }
	@$(PYTHON) -m venv --clear .venv
	@$(BIN)/pip install --disable-pip-version-check --require-hashes --requirement requirements.txt | \
		awk -v all="$$(grep -c == requirements.txt)" \
			'/^Collecting/ && ++n % 10 == 0 {print "   " n " of " all " packages"} /^Installing/ {print "   installing"} {fflush()}'
	@$(BIN)/pip download --quiet --disable-pip-version-check --require-hashes --no-deps --only-binary :all: \
		--python-version 3.13 --dest .venv/wheel --requirement collections/wheel.txt
	@$(BIN)/python collections/unpack.py .venv/wheel/*.whl
	@rm -r .venv/wheel
	@touch $@
