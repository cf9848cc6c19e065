# The checks, one word each. `make help` lists them; CONTRIBUTING.md says what each needs.
PYTHON ?= python
PYTEST = $(PYTHON) -m pytest

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

test:  ## every test that needs nothing but '.[dev]': the README's test command
	$(PYTEST) -rs $(ARGS)

test-fast:  ## the same but for what takes more than some seconds
	$(PYTEST) -rs -m 'not slow and not parity and not aot and not integrations' $(ARGS)

test-versions:  ## what another version of jax or Python may break
	JAXKV_BRIEF=1 $(PYTEST) -rs -m 'not slow and not parity and not aot' $(ARGS) $(VERSIONS)

laws-packed:  ## every law over caches of int8 and of int4
	JAXKV_LAWS_FORM=int8 $(PYTEST) -rs $(ARGS) tests/test_laws.py
	JAXKV_LAWS_FORM=int4 $(PYTEST) -rs $(ARGS) tests/test_laws.py

meshes:  ## every policy in every layout over meshes of eight devices
	JAXKV_MESHES=1 $(PYTEST) -rs $(ARGS) tests/test_mesh.py
	JAXKV_MESHES=1 $(PYTEST) -rs -m aot $(ARGS) tests/aot/test_tpu_meshes.py

lint:  ## ruff: what is wrong, and what is not formatted
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .

types:  ## pyright
	$(PYTHON) -m pyright

parity:  ## transformers on torch and lm_eval; needs torch==2.13.0 accelerate '.[lm-eval]'
	$(PYTEST) -rs -m parity $(ARGS) tests/parity

integrations:  ## tunix and gemma with our caches; needs `make packages`
	$(PYTHON) tests/integrations/packages.py
	$(PYTEST) -rs -m integrations $(ARGS) tests/integrations

aot:  ## kernels and models compiled for TPUs and GPUs that are not here; needs `make compilers`
	$(PYTEST) -rs -m aot $(ARGS) tests/aot

aot-brief:  ## of those, one program of each kernel on each chip
	$(PYTEST) -rs -m 'aot and brief' $(ARGS) tests/aot

notebooks:  ## every notebook, top to bottom
	$(PYTHON) tests/notebooks.py

mutations:  ## plants faults one by one; the test of each must turn red
	$(PYTHON) tests/mutations.py

packages:  ## installs tunix and gemma as pinned, with what their models and samplers import
	$(PYTHON) -m pip install --quiet --no-deps -r tests/integrations/requirements.txt

compilers:  ## installs the compilers for TPUs and NVIDIA GPUs, without their drivers
	$(PYTHON) -m pip install --quiet '.[tpu]'
	$(PYTHON) -m pip install --quiet --no-deps nvidia-cuda-nvcc nvidia-nvvm \
	  $$($(PYTHON) -c 'import jax; print(*(f"jax-cuda13-{x}=={jax.__version__}" for x in ("plugin", "pjrt")))')

ci:  ## everything, in fresh environments
	.ci/run

# The laws of each kind of layer, generation, the kernels and the command lines, and what reads files
# by libraries, and flax nnx. What each policy keeps is the same arithmetic in every version.
VERSIONS = tests/test_laws.py tests/test_generate.py tests/test_global.py tests/kernels \
  tests/test_decode_command.py tests/test_convert_command.py tests/test_orbax.py \
  tests/test_tokenizer.py tests/test_chat.py tests/integrations/test_nnx.py

.PHONY: help test test-fast test-versions laws-packed meshes lint types parity integrations packages \
  aot aot-brief notebooks mutations compilers ci
