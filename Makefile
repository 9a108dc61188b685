# make report: the whole chain on real digits, then the site      make test: every notebook with tiny settings, then the command-line tests
# make lab: JupyterLab on the notebooks                           make clean: remove what was made, but not the environment
PROFILE ?= digits
PYTHON  ?= $(shell for p in python3.13 python3.12 python3.11 python3 python; do "$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$p" && break; done)
BIN     := .venv/bin
STAMP   := .venv/.fmnb-installed
# compared with in tests/test_peers.py; what else it wants (a training framework) is not used there
PEERS   := --no-deps torchcfm==1.0.7

.PHONY: report test lab clean readme python peers
report: $(STAMP)
	$(BIN)/fmnb_run --profile $(PROFILE)
	$(BIN)/fmnb_site

test: $(STAMP)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python tests/all.py

lab: $(STAMP)
	$(BIN)/jupyter lab nbs

readme: $(STAMP)
	$(BIN)/fmnb_site --readme write

python:
	@echo $(PYTHON)

peers:
	@echo $(PEERS)

clean:
	rm -rf runs _site .quarto index.ipynb .pytest_cache build dist *.egg-info

# The environment is made anew when its description changes.
$(STAMP): settings.ini setup.py
	@test -n "$(PYTHON)" || { echo "fmnb needs Python 3.11 or newer: install it, or name one with make PYTHON=..." >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -q -e '.[dev]'
	$(BIN)/python -m pip install --disable-pip-version-check -q $(PEERS)
	touch $@
