# Needs Python 3.11, a C++ compiler, git and make; everything else goes into .venv.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
SMOLLM2 := models/SmolLM2-135M-Instruct.gguf
DEMO := dist/SmolLM2-135M-Instruct-q4bf16_1-MLC

.PHONY: demo test clean

demo: $(DEMO)/tensor-cache.json
	$(BIN)/python -m runtime.generate $(DEMO) --prompt-file docs/how-it-works.md \
	    --question "In two sentences: what does the KV cache do?" --temperature 0 --max-tokens 120

test: $(VENV)/test.done $(SMOLLM2)
	$(BIN)/python -m pytest

$(DEMO)/tensor-cache.json: $(VENV)/base.done $(SMOLLM2)
	$(BIN)/python compile.py --model $(SMOLLM2) --weights $(SMOLLM2) --target llvm

$(SMOLLM2): | $(VENV)/base.done
	$(BIN)/python -m relax_models.fetch smollm2-135m -o models

# The stamps make an install step run once, and again when the pinned dependencies change.
$(VENV)/base.done: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -e .
	touch $@

$(VENV)/test.done: $(VENV)/base.done
	$(BIN)/pip install --quiet -e ".[test]"
	touch $@

clean:
	rm -rf $(VENV) dist models build *.egg-info
