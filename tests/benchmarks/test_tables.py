from speeds import CONFIG, RUN, measurement, sample, speed, table

from benchmarks.kernels import kernel_table
from benchmarks.limits import decode_bytes, kv_bytes_per_token, limits_table, prefill_flops
from benchmarks.operator_table import operator_table
from benchmarks.store import Gap, KernelFigure, Kernels, Operators
from benchmarks.tables import DECODE, END_TO_END, MEMORY, PREFILL, answers, gaps, speed_table
from benchmarks.timing import median_and_spread
from relax_models.config import ModelConfig


def test_median_and_spread():
    assert median_and_spread([5.0, 1.0, 4.0]) == (4.0, 1.0)
    assert median_and_spread([2.0]) == (2.0, 0.0)


def test_speeds_are_medians_beside_the_best_of_ours():
    measured = speed(
        measurement("llama.cpp Q4_0", 512, 2.0),
        measurement("ours-dense q4", 512, 1.0),
        measurement("ours-dense q4", 512, 0.5),
        measurement("ours-dense q4", 512, 0.25),
        measurement("ours-entropy q4", 512, 0.25),
        measurement("openvino Q8_0", 512, 4.0, prefill=sample(4.0, share=0.8)),
        gaps=[Gap(variant="vllm bf16", tokens=512, reason="it is not installed")],
    )
    rows = table(speed_table(measured, PREFILL))
    assert rows[0] == ["Prefill, tokens a second", "prefill 512", "CPU share"]
    assert rows[2:] == [
        # Speeds 512, 1024 and 2048: half their range is 75 % of the median.
        ["ours-dense q4", "1,024 ±75 %", "1.00"],
        ["ours-entropy q4", "2,048 ±0 %", "1.00"],
        ["llama.cpp Q4_0", "256 ±0 % (8.00x)", "1.00"],
        ["openvino Q8_0", "128 ±0 % (16.00x)", "0.80"],
        ["vllm bf16", "gap", ""],
        ["**ours-entropy q4 / ours-dense q4**", "**2.00x**", ""],
        ["**ours / best of llama.cpp**", "**8.00x**", ""],
        ["**ours / best of openvino**", "**16.00x**", ""],
    ]
    assert gaps(measured) == ["vllm bf16 at 512 tokens: it is not installed"]


def test_less_is_better_end_to_end_and_predicted_times_are_marked():
    def whole(variant: str, tokens: int, seconds: float):
        fields = {"generated": 100, "end_to_end_seconds": seconds, "decode": sample(1.0), "decode_tokens": 75}
        return measurement(variant, tokens, 1.0, **fields)

    gap = {
        "variant": "llama.cpp Q4_0",
        "tokens": 4000,
        "reason": "not run, it would take 499 s",
        "measured": [1000, 2000],
    }
    measured = speed(
        whole("ours-dense q4", 1000, 10.0),
        whole("ours-dense q4", 4000, 50.0),
        whole("llama.cpp Q4_0", 1000, 20.0),
        gaps=[Gap(**gap, prefill_seconds=400.0, decode_seconds_per_token=1.0)],
    )
    rows = table(speed_table(measured, END_TO_END))
    assert rows[2:] == [
        ["ours-dense q4", "10.0 ±0 %", "50.0 ±0 %", "1.00"],
        ["llama.cpp Q4_0", "20.0 ±0 % (2.00x)", "≈499.0 (9.98x)", "1.00"],
        ["**ours / best of llama.cpp**", "**2.00x**", "**9.98x**", ""],
    ]
    assert "a n + b n²" in gaps(measured)[0] and "1,000, 2,000" in gaps(measured)[0]
    assert table(speed_table(measured, DECODE))[3][2] == "≈1.0 (75.00x)"
    assert table(speed_table(measured, MEMORY))[3][1:3] == ["3 ±0 % (1.00x)", "gap"]


def test_no_figures_give_no_table():
    assert speed_table(speed(measurement("ours-dense q4", 512, 1.0)), DECODE) == ""


def test_answers_stay_in_their_column():
    shown = answers(speed(measurement("ours-dense q4", 8, 1.0, answer="a|b\n`c`")))
    assert shown.splitlines()[2] == "| 8 | ours-dense q4 | `\"a\\|b\\n'c'\"` |"


def test_attention_of_both_kinds_is_compared_with_dense_attention():
    dense = {"attention_prefill": 6.0, "linear": 4.0}
    entropy = {"attention_prefill": 0.5, "attention_gated": 1.0, "observe": 0.25, "select_blocks": 0.25, "linear": 3}
    cells = [("ours-entropy q4", 100, entropy), ("ours-entropy q4", 200, entropy), ("ours-dense q4", 100, dense)]
    measured = speed(operators=[Operators(variant=v, tokens=n, seconds=s) for v, n, s in cells])
    rows = table(operator_table(measured))
    assert rows[2] == ["ours-dense q4", "100", "60.0%", "0.0%", "40.0%", "1.00x"]
    assert rows[3] == ["ours-entropy q4", "100", "30.0%", "10.0%", "60.0%", "4.00x"]
    assert rows[4] == ["ours-entropy q4", "200", "30.0%", "10.0%", "60.0%", ""]


def test_work_is_counted_from_the_shape():
    config = ModelConfig(**CONFIG)
    # A layer: q 8x8, k and v 4x8, o 8x8, gate and up 16x8, down 8x16.
    layer = 64 + 2 * 32 + 64 + 3 * 128
    products, attention = prefill_flops(config, 3)
    assert products == 2 * 3 * (3 * layer) + 2 * 100 * 8
    # 6 pairs of a query and a key that it sees; scores and values of 2 heads of 4 dims in 3 layers.
    assert attention == 6 * (2 * 2 * 4 * 2) * 3
    assert kv_bytes_per_token(config) == 3 * 2 * 4 * 2
    assert decode_bytes(config, 10, "q0bf16") == (2 * (3 * layer + 800), 10 * kv_bytes_per_token(config))


def test_limits_are_of_the_measured_peak():
    config = ModelConfig(**CONFIG)
    seconds = 2 * sum(prefill_flops(config, 64)) / 200e9
    # Ten tokens a second; the memory would be read for a hundred of them.
    read_gbps = 100 * sum(decode_bytes(config, 64, "q4bf16_1")) / 1e9
    decode = {"decode": sample(1.0), "decode_tokens": 10, "generated": 40, "read_gbps": read_gbps}
    ours = [measurement(f"ours-{policy} q4bf16_1", 64, seconds, **decode) for policy in ("dense", "entropy")]
    head, _, row = table(limits_table(speed(*ours)))
    assert dict(zip(head[2:], row[2:])) == {
        "prefill, ours-dense q4bf16_1": "50%",
        "prefill, ours-entropy q4bf16_1": "50%",
        "MB read a token: weights + cache": "0 + 0",
        "decode, ours-dense q4bf16_1": "10%",
    }
    assert limits_table(speed(measurement("llama.cpp Q4_0", 64, seconds))) == ""


def test_kernel_table():
    figure = KernelFigure(kernel="linear", shape="M 1", unit="read bandwidth", share=0.934, sample=sample(1e-3, 0.98))
    row = table(kernel_table(Kernels(run=RUN, figures=[figure])))[2]
    assert row == ["linear", "M 1", "93%", "read bandwidth", "0.98"]
