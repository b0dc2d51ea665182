# make demo | test | lint | format | wheel | bench | mutate | budget | gpu-check | clean
#
#   VENV=.venv        where the environment lives; VENV=none uses the active one (it needs torch >= 2.13)
#   PYTHON=python3    the interpreter that makes the environment (3.11 or newer)
#   TORCH_INDEX=URL   package index for torch alone, for example https://download.pytorch.org/whl/cpu
#   PYTEST_ARGS=...   passed on to pytest
#   TEST_JOBS=N       processes that run the tests; 0: in pytest's own
#   CUDA_ARCHS=LIST   CUDA architectures of this environment's build (default: of the GPUs here, 90 where
#                     there is none; a wheel has those of CMakeLists.txt)
# pip's own variables (PIP_INDEX_URL, PIP_FIND_LINKS, ...) are honoured.

VENV ?= .venv
PYTHON ?= python3
TORCH_INDEX ?=
PYTEST_ARGS ?=
TEST_JOBS ?= $(shell n=$$(nproc); echo $$((n < 8 ? n : 8)))
DEMO_OUT ?= demo_study
CUDA_ARCHS ?= $(shell nvidia-smi -L >/dev/null 2>&1 && echo native || echo 90)

ifeq ($(VENV),none)
  BIN :=
  PY := $(PYTHON)
  STAMPS := build/.stamps
else
  BIN := $(VENV)/bin/
  PY := $(VENV)/bin/python
  STAMPS := $(VENV)/.stamps
endif

SOURCES := CMakeLists.txt pyproject.toml $(shell find csrc -type f)
FORMATTED := $(shell find csrc csrc_tests -type f \( -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' \) 2>/dev/null)

.PHONY: demo test lint format wheel bench mutate budget gpu-check clean setup
.DELETE_ON_ERROR:

setup: $(STAMPS)/built

demo: $(STAMPS)/built
	$(BIN)rtrl-ext study run --demo --out $(DEMO_OUT)
	$(BIN)rtrl-ext study report $(DEMO_OUT)

test: $(STAMPS)/built
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(PY) -m pytest -n $(TEST_JOBS) --dist worksteal --benchmark-disable $(PYTEST_ARGS)

lint: $(STAMPS)/built
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(BIN)clang-format --dry-run --Werror $(FORMATTED)
	$(PY) -m mypy

format: $(STAMPS)/built
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .
	$(BIN)clang-format -i $(FORMATTED)

wheel: $(STAMPS)/requirements
	$(PY) -m pip wheel --no-build-isolation --no-deps -w dist .

bench: $(STAMPS)/built
	$(PY) -m benchmarks.run

# Each barrier and bound check of the CUDA kernels taken out in turn; 10 minutes on 2 cores.
mutate: $(STAMPS)/built
	$(PY) python_tests/mutations.py csrc_tests/MUTATIONS.md

# On a machine with a GPU: tests, compute-sanitizer, throughput; written to $(GPU_OUT).
GPU_OUT ?= gpu_check.json
gpu-check: $(STAMPS)/built
	$(PY) python_tests/gpu_check.py $(GPU_OUT)

# Machine code of the CUDA kernels, for csrc_tests/budget.json and docs/cuda_bounds.md.
budget: $(STAMPS)/built
	$(PY) python_tests/resources.py

clean:
	rm -rf build dist $(STAMPS)

# The environment: torch first, by itself, because it is large and may come from an index of its own.
$(STAMPS)/requirements: requirements-dev.txt
ifeq ($(VENV),none)
	@$(PYTHON) -c "import re, sys, importlib.metadata as m; v = next((d.version for d in m.distributions(name='torch')), 'none'); sys.exit(tuple(map(int, re.findall(r'\d+', v)[:2])) < (2, 13) and f'VENV=none needs torch >= 2.13 in the active environment, found {v}')"
	@mkdir -p $(STAMPS)
	$(PYTHON) -c "import importlib.metadata as m; print('torch==' + m.version('torch'))" > $(STAMPS)/torch.txt
	$(PYTHON) -m pip install --quiet --upgrade-strategy only-if-needed -c $(STAMPS)/torch.txt $$(grep -v '^torch==' requirements-dev.txt | grep -v '^#' | sed 's/==.*//')
else
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and f'Python 3.11 or newer is needed, found {sys.version.split()[0]}')"
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@echo "Installing $$(grep '^torch==' requirements-dev.txt). From PyPI on Linux that is the CUDA build: about 3 GB to download, 6 GB on disk."
	@echo "For the CPU build (about 200 MB): make $(MAKECMDGOALS) TORCH_INDEX=https://download.pytorch.org/whl/cpu; for an environment you have: VENV=none."
	$(PY) -m pip install --quiet $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $$(grep '^torch==' requirements-dev.txt)
	$(PY) -m pip install --quiet -r requirements-dev.txt
endif
	@mkdir -p $(STAMPS) && touch $@

# Editable: Python changes need nothing, a change in csrc/ recompiles what it touches. Apart from the wheel, which is for all
# architectures.
$(STAMPS)/built: $(STAMPS)/requirements $(SOURCES)
	CMAKE_ARGS="-DRTRL_EXT_CUDA_ARCHITECTURES=$(CUDA_ARCHS) $$CMAKE_ARGS" $(PY) -m pip install --quiet --no-build-isolation --no-deps -C build-dir=build/dev -e .
	@mkdir -p $(STAMPS) && touch $@
