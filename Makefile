# Two commands: `make demo` and `make test`; for long runs `make chaos` and `make soak`. Each sets itself up; nothing is installed outside this folder.

# the first Python from 3.10 to 3.12; override with PYTHON=…
PYTHON ?= $(shell for p in python3 python3.12 python3.11 python3.10; do \
	$$p -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 13))' 2>/dev/null && echo $$p && break; done)

IMAGES ?=
RECIPE ?= panel
LIST ?=
ARGS ?=
FRAMES ?= 1000000
FAULTS ?= 1000
SEED ?= 0
OUT ?= bench/results

.PHONY: demo test chaos soak clean

demo: .venv/.ready  ## the whole line once: make demo [IMAGES=folder] [RECIPE=name or file] [LIST=file] [ARGS='--frames 1000']
	@.venv/bin/aoi demo --recipe '$(RECIPE)' $(if $(IMAGES),--images '$(IMAGES)') $(if $(LIST),--list '$(LIST)') $(ARGS)

test: .venv-test/.ready  ## everything that is checked: make test [ARGS='-k stream']
	@.venv-test/bin/python -m pytest $(ARGS)

chaos: .venv/.ready  ## break a line for about half an hour: make chaos [FRAMES=1000000] [FAULTS=1000] [SEED=0] [MINUTES=60]
	@.venv/bin/bench chaos --frames $(FRAMES) --faults $(FAULTS) --seed $(SEED) --minutes $(or $(MINUTES),60) \
		--json '$(OUT)/chaos-$(FRAMES)-$(FAULTS)-$(SEED).json' $(ARGS)

soak: .venv/.ready  ## does memory grow, does work slow down: make soak [MINUTES=60] [ARGS='--load 90']
	@.venv/bin/bench soak --minutes $(or $(MINUTES),60) --out '$(OUT)' --recipe '$(RECIPE)' $(ARGS)

.venv/.ready: setup.cfg pyproject.toml
	@$(MAKE) --no-print-directory _venv INTO=.venv EXTRAS=cpu,embedded,plots

.venv-test/.ready: setup.cfg pyproject.toml constraints.txt
	@$(MAKE) --no-print-directory _venv INTO=.venv-test EXTRAS=cpu,embedded,int8,plots,train,test

.PHONY: _venv
_venv:
	@test -n '$(PYTHON)' || { echo 'Error: no Python 3.10, 3.11 or 3.12 found; install one, or name it: make PYTHON=/path/to/python'; exit 2; }
	@echo 'setting up $(INTO) with $(PYTHON) (once) …'
	@$(PYTHON) -m venv $(INTO) || { echo 'Error: python3-venv is missing; on Debian and Ubuntu: apt install python3-venv'; exit 2; }
	@$(INTO)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[$(EXTRAS)]'
	@touch $(INTO)/.ready

clean:  ## remove both environments and what demo and bench wrote
	rm -rf .venv .venv-test runs build *.egg-info
