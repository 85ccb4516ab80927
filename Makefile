# make demo | make test | make slow | make lint | make docs | make screenshots: each sets up .venv first, once
PYTHON ?= python3
READY := .venv/ready
EVERYTHING := .venv/everything
BUILT := build/tree
INSTALL := .venv/bin/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test slow lint docs screenshots

demo: $(READY)
	.venv/bin/codegrid demo

test: $(READY)
	.venv/bin/python -m pytest -n 2 --dist loadgroup  # tests of two processes share a pair of them

# the tests marked slow: every benchmark at toy size, and what needs all extras
slow: $(EVERYTHING)
	.venv/bin/python -m pytest -m slow

# the type checker reads what is installed, for it cannot follow an editable installation
lint: $(READY)
	.venv/bin/python -m ruff check .
	.venv/bin/python -m ruff format --check .
	rm -rf build
	$(INSTALL) --no-deps --target $(BUILT) .
	.venv/bin/python -m mypy $(BUILT)/codegrid

# the pages of docs/ as a site, in build/site; `.venv/bin/mkdocs serve` shows it while it is written
docs: $(EVERYTHING)
	NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict

# the viewer's pictures in docs/, and a check of its accessibility; needs Chromium and npm: apt install chromium npm
screenshots: demo
	npm install --silent --no-save --prefix build/axe axe-core@4
	.venv/bin/python -m benchmarks.screenshots --run runs/demo

$(READY): setup.cfg pyproject.toml
	@echo "installing into .venv: about 6 GB, a minute or two"
	$(PYTHON) -m venv .venv
	$(INSTALL) --editable ".[demo,test,lint]"
	@touch $(READY)

$(EVERYTHING): $(READY)
	$(INSTALL) --editable ".[demo,docs,fid,hub,log,notebook,umap,view,test,lint]"
	@touch $(EVERYTHING)
