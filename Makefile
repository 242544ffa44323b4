# Everything a fresh machine needs, in one command each: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
AUDIO ?=
PIP := $(BIN)/pip install --quiet --constraint constraints.txt

.PHONY: demo test lint parity benchmark clean

demo: $(VENV)/installed
	$(BIN)/python examples/demo.py $(if $(AUDIO),--audio "$(AUDIO)")

test: $(VENV)/tested ffmpeg browser
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto $(TESTS)

parity: $(VENV)/peer
	$(BIN)/python tests/parity.py

benchmark: $(VENV)/peer
	$(BIN)/python -m benchmarks.vqvae
	$(BIN)/python -m benchmarks.prior
	$(BIN)/python -m benchmarks.conversion_1b
	$(BIN)/python -m benchmarks.songs
	$(BIN)/python -m benchmarks.embeddings
	$(BIN)/python -m benchmarks.training
	$(BIN)/python -m benchmarks.h100_on_paper

lint: $(VENV)/tested
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) demo_output

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) --editable '.[pictures]'
	touch $@

$(VENV)/tested: $(VENV)/installed
	$(PIP) --editable '.[test]'
	touch $@

$(VENV)/peer: $(VENV)/tested
	$(PIP) --editable '.[peer]'
	touch $@

# torchcodec, which decodes datasets' Audio columns in the tests, loads the libraries of FFmpeg 4 to 8.
.PHONY: ffmpeg
ffmpeg:
	@command -v ffmpeg >/dev/null || { \
	  test "$$(id -u)" = 0 && command -v apt-get >/dev/null && apt-get update -q && apt-get install -q -y ffmpeg; \
	} || { echo "The tests need FFmpeg: install it (apt install ffmpeg, brew install ffmpeg)."; exit 1; }

# The tests of the song page play it in a headless Chromium; without one they skip.
.PHONY: browser
browser:
	@command -v chromedriver >/dev/null || { \
	  test "$$(id -u)" = 0 && command -v apt-get >/dev/null && apt-get update -q && apt-get install -q -y chromium chromium-driver; \
	} || echo "Without Chromium and chromedriver the tests that play the song page are skipped."
