# From a fresh clone: `make check` trains, folds, exports and checks; `make test` runs the tests.
# Each target first builds its missing prerequisites.

comma := ,
space := $(subst ,, )

# Your own model: make check MODEL=path/to/any.keras [INPUTS=data.npz]
# or with a folder of images: INPUTS=photos/ MEAN=127.5 SCALE=0.00784314
MODEL      ?=
MEAN       ?=
SCALE      ?=
NAME       := $(if $(MODEL),$(basename $(notdir $(MODEL))),digits)
FORMATS    ?= tflite,onnx
PRECISION  ?= float32
CALIBRATION ?= $(INPUTS)
TARGETS    ?= $(subst $(space),$(comma),$(strip \
	$(if $(findstring tflite,$(FORMATS)),litert tf-lite) $(if $(findstring onnx,$(FORMATS)),onnxruntime)))
PYTHON     ?= python3
TFLITE_PYTHON ?= $(PYTHON)
PARTS      ?=

OUT        := build/$(NAME)
TRAINED    := $(if $(MODEL),$(MODEL),$(OUT)/$(NAME).keras)
INPUTS     ?= $(if $(MODEL),,$(OUT)/$(NAME).samples.npz)
VENV       := .venv
BIN        := $(VENV)/bin
INSTALLED  := $(VENV)/.installed
OPTIONS    := $(OUT)/.options
EXPORT_OPTIONS := --to $(FORMATS) --precision $(PRECISION) \
	$(if $(INPUTS),--inputs $(INPUTS)) $(if $(CALIBRATION),--calibration $(CALIBRATION)) \
	$(if $(MEAN),--mean $(MEAN)) $(if $(SCALE),--scale $(SCALE))

TFLITE_RUNTIME := build/envs/tflite-runtime
TORCH          := build/torch
TRAIN_SOURCES  := $(wildcard models/*.py toolkit/*.py)
EXPORT_SOURCES := $(shell find export artifacts reference -name '*.py')

export TF_CPP_MIN_LOG_LEVEL ?= 3

.DELETE_ON_ERROR:
.PHONY: help install train export check envs test test-torch test-devices lint typecheck bench latency \
	constraints clean docs FORCE

help: ## Explain every target
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "  Variables: MODEL=path/to/any.keras  INPUTS=data.npz  FORMATS=tflite,onnx"
	@echo "             PRECISION=float32,int8  CALIBRATION=data.npz  TARGETS=litert,onnxruntime"
	@echo "             MEAN=127.5  SCALE=0.00784314 (of pixels, where INPUTS is a folder of images)"

install: $(INSTALLED) ## Create .venv with everything pinned in constraints.txt

train: $(TRAINED) ## Train the digits network on real data (build/digits/digits.keras)

export: $(OUT)/manifest.json ## Fold and export to TFLite and ONNX (build/NAME/)

check: $(OUT)/manifest.json ## Check that the exported files compute what the trained model computes
	$(BIN)/renormlite check $(OUT) --on $(TARGETS)

envs: $(TFLITE_RUNTIME)/.installed ## Create the environments of runtimes that cannot be installed in .venv

test: $(INSTALLED) $(TFLITE_RUNTIME)/.installed ## Run the tests that need only Python
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not devices"

test-torch: $(INSTALLED) $(TORCH)/.installed ## Test training on PyTorch, in a separate environment
	RENORMLITE_TORCH_PYTHON=$(abspath $(TORCH))/bin/python $(BIN)/pytest \
		tests/toolkit/test_backends.py tests/toolkit/quantize_aware/test_backends.py

test-devices: $(INSTALLED) ## Test on emulated ARM, in a browser, over ssh and adb; installs the programs needed
	scripts/test-devices.sh $(BIN)/python

lint: $(INSTALLED) ## Ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

typecheck: $(INSTALLED) ## mypy over the package, independent of the folder's name
	@mkdir -p build/typecheck && ln -sfn ../.. build/typecheck/renormlite
	cd build/typecheck && ../../$(BIN)/mypy --config-file ../../pyproject.toml -p renormlite

docs: $(INSTALLED) ## Write the documentation as a site to build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: $(INSTALLED) ## Run the benchmarks (PARTS="purpose layer" for some) and write docs/benchmarks.md
	$(BIN)/python benchmarks/run.py $(PARTS)

latency: $(OUT)/manifest.json ## Time one inference of every exported file on every runtime
	$(BIN)/renormlite bench $(OUT) --on $(TARGETS)

constraints: $(INSTALLED) ## Rewrite constraints.txt with the installed versions
	{ sed -n '/^#/p' constraints.txt; $(BIN)/pip freeze --exclude-editable; } > constraints.tmp
	mv constraints.tmp constraints.txt

# tflite-runtime's last release needs Python 3.11 or older and NumPy 1.
$(TFLITE_RUNTIME)/.installed:
	@if $(TFLITE_PYTHON) -c 'import sys; sys.exit(sys.version_info >= (3, 12))'; then \
		$(TFLITE_PYTHON) -m venv $(TFLITE_RUNTIME) && $(TFLITE_RUNTIME)/bin/python -m pip install \
			--quiet --disable-pip-version-check tflite-runtime==2.14.0 'numpy<2' && touch $@; \
	else \
		echo "tflite-runtime needs Python 3.11 or older: its tests are skipped." \
			"To run them: make envs TFLITE_PYTHON=python3.11"; \
	fi

# PyTorch has a separate environment: its packages are much larger than all others together.
$(TORCH)/.installed: constraints.txt
	$(PYTHON) -m venv $(TORCH)
	$(TORCH)/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 \
		--constraint constraints.txt keras numpy
	$(TORCH)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

clean: ## Remove build results (keeps .venv)
	rm -rf build dist *.egg-info

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "renormlite needs Python 3.11 or newer; name one: make PYTHON=python3.12 install"; exit 2; }
	$(PYTHON) -m venv $(VENV) || \
		{ echo "Python's venv module is missing; on Debian and Ubuntu: apt-get install python3-venv"; exit 2; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@
	@echo "installed: the command is $(BIN)/renormlite; put it on your PATH with: . $(BIN)/activate"

$(OUT)/manifest.json: $(TRAINED) $(OPTIONS) $(EXPORT_SOURCES) | $(INSTALLED)
	$(BIN)/renormlite export $(TRAINED) --output $(OUT) $(EXPORT_OPTIONS)

ifeq ($(MODEL),)
$(TRAINED): $(TRAIN_SOURCES) | $(INSTALLED)
	$(BIN)/renormlite train $(NAME) --output $@
else
$(MODEL):
	@echo "MODEL=$(MODEL): there is no such file; name a model saved by model.save('NAME.keras')"; exit 2
endif

# Holds the options of the export. It is rewritten, and so newer than the artifacts, only if they change.
$(OPTIONS): FORCE
	@mkdir -p $(@D)
	@echo '$(EXPORT_OPTIONS)' | cmp -s - $@ || echo '$(EXPORT_OPTIONS)' > $@
