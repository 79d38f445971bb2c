# Everything a developer types. Needs Python >= 3.11, make and g++; the rest is installed into .venv once.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed

.PHONY: demo test lint types bench install clean

demo: $(INSTALLED)
	$(PY) examples/quickstart.py

# Two at a time: most tests wait for one compiler or another.
test: $(INSTALLED)
	$(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: $(INSTALLED)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

types: $(INSTALLED)
	$(PY) -m mypy

bench: $(INSTALLED)
	$(PY) -m benchmarks.longtail

install: $(INSTALLED)

# torch comes first and by exact version, so that no requirement below can pull in another build. A torch built for
# CUDA brings its own triton by exact version; the version pinned here is for the builds that bring none.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	@command -v g++ >/dev/null || { echo 'g++ is needed to compile kernels for the CPU' >&2; exit 1; }
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet torch==2.13.0
	if $(PY) -c 'import triton' 2>/dev/null; then grep -v '^triton==' constraints.txt; else cat constraints.txt; fi > $(VENV)/constraints.txt
	$(PY) -m pip install --quiet -c $(VENV)/constraints.txt -e '.[test,dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
