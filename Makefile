# Needs Python 3.11, a C++ compiler, git and make; everything else goes into .venv.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
SMOLLM2 := models/SmolLM2-135M-Instruct.gguf
DEMO := dist/SmolLM2-135M-Instruct-q4bf16_1-MLC

QWEN := models/Qwen2.5-Coder-0.5B-Instruct.gguf
QWEN_DEMO := dist/Qwen2.5-Coder-0.5B-Instruct-q4bf16_1-MLC

.PHONY: demo test bench clean

demo: $(DEMO)/tensor-cache.json
	$(BIN)/python -m runtime.generate $(DEMO) --prompt-file docs/how-it-works.md \
	    --question "Summarize this document in a few sentences." --temperature 0 --max-tokens 100 \
	    --set "repetition_penalty=1.15"

test: $(VENV)/test.done $(SMOLLM2)
	$(BIN)/python -m pytest

# About 70 minutes on 2 cores, and 8 before that to build llama.cpp for this CPU.
bench: $(VENV)/bench.done $(DEMO)/tensor-cache.json $(QWEN_DEMO)/tensor-cache.json
	$(BIN)/python -m benchmarks.kernels
	$(BIN)/python -m benchmarks.decode_prefill --gguf $(SMOLLM2) --model-dir $(DEMO)
	$(BIN)/python -m benchmarks.decode_prefill --gguf $(QWEN) --model-dir $(QWEN_DEMO)
	$(BIN)/python compile.py --model $(QWEN) --prefill dense --decode full -o dist/dense
	$(BIN)/python -m benchmarks.policies $(QWEN_DEMO) --dense-lib dist/dense/libs/$(notdir $(QWEN_DEMO:-MLC=))-cpu.so
	$(BIN)/python -m benchmarks.report

$(DEMO)/tensor-cache.json: $(VENV)/base.done $(SMOLLM2)
	$(BIN)/python compile.py --model $(SMOLLM2) --weights $(SMOLLM2) --target llvm

$(QWEN_DEMO)/tensor-cache.json: $(VENV)/base.done $(QWEN)
	$(BIN)/python compile.py --model $(QWEN) --weights $(QWEN) --target llvm

$(QWEN): | $(VENV)/base.done
	$(BIN)/python -m relax_models.fetch qwen2.5-coder-0.5b -o models

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

$(VENV)/bench.done: $(VENV)/base.done
	CMAKE_ARGS=-DGGML_NATIVE=ON $(BIN)/pip install --quiet -e ".[bench]"
	touch $@

clean:
	rm -rf $(VENV) dist models build *.egg-info
