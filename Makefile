# make serve   start the server: HOST, PORT, TTS_MODEL and CONFIG may be set
# make test    run the tests
# make check   formatting, lint, types, import rules
# Each target makes or repairs .venv first; once that is done it is a matter of milliseconds.

PYTHON ?= python3
CONFIG ?= configs/serve.yaml

VENV := .venv/bin
# One thread per process: the stages are processes of their own, and on a small machine more threads only take turns.
TEST_ENV := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false RAY_AUTH_MODE=disabled \
	RAY_USAGE_STATS_ENABLED=0 VLLM_NO_USAGE_STATS=1

# Python starts from byte code that an earlier start has left; compiling it anew triples the time to ready.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: serve test check format

serve:
	@PYTHON="$(PYTHON)" scripts/setup-venv.sh
	@exec $(VENV)/python -m serve_app $(CONFIG)

# Most tests take one core, so they run side by side: on two workers, and those that wait for clusters on a third
# (tests/turns.py). Real servers take all cores there are, one after the other; and a port that one is to have may be
# taken by another that starts beside it.
test:
	@PYTHON="$(PYTHON)" scripts/setup-venv.sh dev
ifdef PYTEST_ARGS
	@$(TEST_ENV) $(VENV)/python -m pytest $(PYTEST_ARGS)
else
	@$(TEST_ENV) $(VENV)/python -m pytest -n 3 --dist loadfile tests/unit tests/integration tests/parity tests/gpu
	@$(TEST_ENV) $(VENV)/python -m pytest tests/e2e
endif

check:
	@PYTHON="$(PYTHON)" scripts/setup-venv.sh dev
	$(VENV)/ruff format --check .
	$(VENV)/ruff check .
	$(VENV)/pyright
	$(VENV)/python -m pytest -q -p no:cacheprovider tests/unit/test_imports.py

format:
	@PYTHON="$(PYTHON)" scripts/setup-venv.sh dev
	$(VENV)/ruff format .
	$(VENV)/ruff check --fix .
