# Everything starts here: `make help`. STACK names the stack everywhere, PYTHON the Python to begin with (3.11 or newer).
# What is given is a text: make expands nothing in it, and no shell reads it as a part of a command.

STACK ?= sandbox
PYTHON ?= python3
# OFFICIAL=1 tries again to download what could not be downloaded. PLUGINS=built then builds the official providers of
# Docker and OpenStack instead of taking stand-ins. YES=1 changes a real cloud without asking.
OFFICIAL ?=
PLUGINS ?= stand-ins
YES ?=
# POLICY=1 asks the policy pack, in up, preview and preview-comment.
POLICY ?=
# For new-stack: whose stack, where, its first runner's project (an id), `pulumi stack init --secrets-provider`; DRY_RUN=1.
TEAM ?=
ENV ?=
PROJECT ?=
SECRETS_PROVIDER ?= passphrase
DRY_RUN ?=
# For orphans: the stack's name once more, to remove what is found.
REMOVE ?=
# For bench: few runs of small stacks.
SMALL ?=

# `$(value …)` is what was given, as it is; recipes take it from their environment.
override TEXTS := STACK REMOVE PYTHON PLUGINS TEAM ENV PROJECT SECRETS_PROVIDER
override FLAGS := OFFICIAL YES POLICY DRY_RUN SMALL
$(foreach name,$(TEXTS) $(FLAGS),$(eval override $(name) := $$(value $(name))))
export $(TEXTS)

override VENV := .venv/bin
# More workers than cores: each waits for most of its time, for machines, managers and jobs.
override ON_ALL_CORES := -n $(shell expr $$(nproc) \* 2 + 1) --dist loadgroup
override ON_STACK := --stack="$$STACK" $(if $(YES),--yes)
override POLICIES := $(if $(POLICY),--policies)

.DEFAULT_GOAL := help
.PHONY: help setup up preview preview-comment refresh down config orphans new-stack test load bench lint acceptance sandbox-up sandbox-down clean

help: ## Show the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)$$/\1|\2/p' Makefile \
		| while IFS='|' read -r target text; do printf '  make %-15s %s\n' "$$target" "$$text"; done
	@echo 'STACK=name chooses the stack (default: sandbox), YES=1 answers Pulumi, OFFICIAL=1 tries downloads again,'
	@echo 'PLUGINS=built builds the official docker and openstack providers where they cannot be downloaded.'

setup: ## Bring the Python environment, the Pulumi CLI and the provider plugins
	@"$$PYTHON" -m scripts.bootstrap $(if $(OFFICIAL),--official) --plugins="$$PLUGINS"

up: setup ## Bring the stack up; in the sandbox, run a first job too
	@$(VENV)/python -m scripts.stack up $(ON_STACK) $(POLICIES)

preview: setup ## Show what `make up` would change
	@$(VENV)/python -m scripts.stack preview $(ON_STACK) $(POLICIES)

preview-comment: setup ## Make the preview comment of the example teams' stacks, and post it to the sandbox's GitLab
	@$(VENV)/python -m scripts.preview_comment $(POLICIES)

refresh: setup ## Take what is really there into the stack's state
	@$(VENV)/python -m scripts.stack refresh $(ON_STACK)

down: setup ## Remove everything that the stack declared; in the sandbox, the sandbox too
	@$(VENV)/python -m scripts.stack down $(ON_STACK)

config: setup ## Show what a stack's layers make of it, and which says what
	@$(VENV)/python -m scripts.config "$$STACK"

orphans: setup ## List what is in STACK=x's clouds and not in its state; REMOVE=x removes it, after its jobs
	@$(VENV)/python -m scripts.orphans

new-stack: setup ## Make a stack for TEAM=x in ENV=y; DRY_RUN=1 only shows it
	@$(VENV)/python -m scripts.new_stack --team="$$TEAM" --environment="$$ENV" $(if $(PROJECT),--project="$$PROJECT") \
		--secrets-provider="$$SECRETS_PROVIDER" $(if $(DRY_RUN),--dry-run)

test: setup ## Run the tests
	@$(VENV)/python -m pytest $(ON_ALL_CORES) -m "not acceptance and not ground"

load: setup ## Take a stack through every change while jobs run, and print what became of them
	@$(VENV)/python -m pytest tests/engine/test_load.py -m acceptance --capture=no --quiet

bench: setup ## Measure the program against a bare one; SMALL=1 checks the results alone
	@$(VENV)/python -m bench $(if $(SMALL),--small)

lint: setup ## Check style and types
	@$(VENV)/ruff check .
	@$(VENV)/ruff format --check .
	@$(VENV)/mypy .

acceptance: ## Run the long tests with the official providers: a fault at every call, all of it on a real OpenStack
	@$(MAKE) --no-print-directory setup PLUGINS=built
	@$(VENV)/python -m pytest $(ON_ALL_CORES) -m "acceptance or plans"
	@$(VENV)/python -m tests.acceptance.ground -- $(VENV)/python -m pytest tests/acceptance -m ground --exitfirst --capture=no -v
	@$(MAKE) --no-print-directory setup

sandbox-up: setup ## Start the sandbox's clouds alone
	@$(VENV)/python -m scripts.stack sandbox-up

sandbox-down: setup ## End the sandbox, whatever state its stack is in
	@$(VENV)/python -m scripts.stack sandbox-down

clean: ## Remove what make brought into this folder; the shared cache stays
	@if [ -d .sandbox ]; then echo 'error: the sandbox is still there; run `make down` first' >&2; exit 1; fi
	@rm -rf .venv .mypy_cache .pytest_cache .ruff_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
