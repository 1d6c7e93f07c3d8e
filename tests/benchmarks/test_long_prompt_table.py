"""What the page says of a long run."""

from speeds import RUN, sample

from benchmarks.long_prompt_store import Answer, Decode, LongPrompt, Reload, Save, Stretch
from benchmarks.long_prompt_table import long_prompt_section, reference, shown
from benchmarks.report import write_docs
from benchmarks.store import write

TOKENS = 1 << 20
STRETCH = 16384


def long_prompt(**fields) -> LongPrompt:
    """A token at position p costs 1 + p / TOKENS ms."""
    stretches = [
        Stretch(
            begin=b, end=b + STRETCH, run=0, sample=sample(STRETCH * (1 + (b + STRETCH) / TOKENS) / 1000), attended=0.25
        )
        for b in range(0, TOKENS, STRETCH)
    ]
    common = {"key": "k", "token_ids": [5, 6], "question_tokens": 30, "first_token_seconds": 1, "decode_seconds": 1}
    answers = [
        Answer(number="7", distance=900_000, text="no\n|idea", hit=False, **common),
        Answer(number="8", distance=1000, text="it is 8", hit=True, **common),
    ]
    values = {
        "model": "M",
        "identity": "i",
        "settings": "",
        "text": "a book",
        "copies": 1.25,
        "tokens": TOKENS,
        "trained": 32768,
        "rope": "null",
        "policy": "entropy prefill",
        "kv_bytes_per_token": 1000,
        "runs": [RUN],
        "stretches": stretches,
        "saves": [Save(tokens=TOKENS, seconds=3.0, file_bytes=2 * 10**9)],
        "answers": answers,
        "decode": [
            Decode(entries=TOKENS, tokens=10, sample=sample(5.0, memory=9 * 10**9)),
            Decode(entries=2048, tokens=20, sample=sample(1.0)),
            Decode(entries=1100, tokens=20, sample=sample(0.9)),
            Decode(entries=2048, tokens=20, sample=sample(1.2)),
            Decode(entries=1100, tokens=20, sample=sample(0.8)),
            Decode(entries=2048, tokens=20, sample=sample(0.5)),
            Decode(entries=1100, tokens=20, sample=sample(7.0)),
        ],
        "reload": Reload(seconds=4.0, resident_before_bytes=1, token_ids=[5, 6]),
    }
    return LongPrompt(**values | fields)


def test_costs_are_relative_to_token_100_000():
    record = long_prompt()
    assert reference(record).end == 114_688
    text = long_prompt_section(record, None)
    last = (1 + 1) / (1 + 114_688 / TOKENS)
    assert f"| 1,032,192 to 1,048,576 | {last:.2f} | 25.0% | 1.00 |" in text
    assert "| 98,304 to 114,688 | 1.00 |" in text
    assert [s.end for s in shown(record)] == [
        16384, 32768, 65536, 114_688, 131_072, 262_144, 524_288, 786_432, 1_048_576
    ]  # fmt: skip


def test_memory_needles_and_the_saved_cache():
    text = long_prompt_section(long_prompt(), "plot.svg")
    for part in (
        "a book, 1.25 copies",
        "Peak memory of the process 9.00 GB; KV cache with block representatives 1.05 GB",
        "2.00 GB in a file",
        "the same, token for token",
        "10.0 times as fast as from all 1,048,576, and 0.90 times as fast as from the 1,100 of a short prompt "
        "(medians of 3 turns).",
        "| 1,000 | within | yes | `it is 8` |\n| 900,000 | beyond | no | `no \\|idea` |",
        "(plot.svg)",
    ):
        assert part in text
    other = Reload(seconds=1, resident_before_bytes=1, token_ids=[5, 7])
    assert "**another one**" in long_prompt_section(long_prompt(reload=other), None)


def test_an_unfinished_run_has_what_there_is():
    record = long_prompt(answers=[], decode=[], reload=None, saves=[])
    record.stretches = record.stretches[:20]
    text = long_prompt_section(record, None)
    assert "needle" not in text and "in a file" not in text and "| 98,304 to 114,688 | 1.00 |" in text


def test_the_page_gets_table_and_plot(tmp_path):
    markers = [f"<!-- begin {name} -->\n<!-- end {name} -->\n" for name in ("speed", "compile", "long-prompt")]
    (tmp_path / "performance.md").write_text("".join(markers))
    (tmp_path / "entropy-inference.md").write_text("<!-- begin policies -->\n<!-- end policies -->\n")
    write(long_prompt(), tmp_path / "long_prompt_M.json")
    write_docs(tmp_path, tmp_path)
    page = (tmp_path / "performance.md").read_text()
    assert "### M, 1,048,576 tokens" in page and "(performance_long_prompt_M.svg)" in page
    svg = (tmp_path / "performance_long_prompt_M.svg").read_text()
    assert svg.count("<svg") == 1
    write_docs(tmp_path, tmp_path)
    assert (tmp_path / "performance_long_prompt_M.svg").read_text() == svg


def test_settings_stand_beside_the_policy():
    assert "; entropy prefill with base_budget=64; RoPE" in long_prompt_section(
        long_prompt(settings="base_budget=64"), None
    )
