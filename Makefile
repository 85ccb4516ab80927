# make demo | make test | make slow | make lint | make docs | make screenshots: the first one sets up .venv
PYTHON ?= python3
READY := .venv/ready
EVERYTHING := .venv/everything
BUILT := build/tree
INSTALL := .venv/bin/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test slow lint docs screenshots

demo: $(READY)
	.venv/bin/codegrid demo

# loadgroup: tests that start two processes run one at a time; the variable: none of the processes compiles what is so
test: $(READY)
	PYTHONDONTWRITEBYTECODE= .venv/bin/python -m pytest -n 2 --dist loadgroup

# the tests marked slow: every benchmark at toy size, and tests that need all extras
slow: $(EVERYTHING)
	.venv/bin/python -m pytest -m slow

# the type checker needs a regular installation: it cannot follow an editable one
lint: $(READY)
	.venv/bin/python -m ruff check .
	.venv/bin/python -m ruff format --check .
	rm -rf build
	$(INSTALL) --no-deps --target $(BUILT) .
	.venv/bin/python -m mypy $(BUILT)/codegrid

# the pages of docs/ as a site, in build/site; `.venv/bin/mkdocs serve` shows them while you write
docs: $(EVERYTHING)
	NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict

# the viewer's screenshots in docs/, and a check of its accessibility; needs Chromium and npm: apt install chromium npm
screenshots: demo
	npm install --silent --no-save --prefix build/axe axe-core@4
	.venv/bin/python -m benchmarks.screenshots --run runs/demo

$(READY): setup.cfg pyproject.toml
	@echo "installing into .venv: about 6 GB, a minute or two"
	$(PYTHON) -m venv .venv
	$(INSTALL) --editable ".[demo,test,lint]"
	@touch $(READY)

$(EVERYTHING): $(READY)
	$(INSTALL) --editable ".[bench,compress,demo,diffusion,docs,fid,hub,lite0,log,notebook,onnx,sound,text,umap,video,view,test,lint]"
	@touch $(EVERYTHING)
