# make demo | make test | make lint | make screenshots: each sets up .venv first, once
PYTHON ?= python3
READY := .venv/ready

.PHONY: demo test lint screenshots

demo: $(READY)
	.venv/bin/python -m pipelines.demo

test: $(READY)
	.venv/bin/python -m pytest

lint: $(READY)
	.venv/bin/python -m ruff check .
	.venv/bin/python -m ruff format --check .

# the viewer's pictures in docs/; needs Chromium: apt install chromium
screenshots: demo
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --editable ".[demo,test,view]"
	.venv/bin/python -m benchmarks.screenshots --run runs/demo

$(READY): setup.cfg pyproject.toml
	@echo "installing into .venv: about 6 GB, a minute or two"
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --editable ".[demo,test]"
	@touch $(READY)
