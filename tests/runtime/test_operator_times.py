from runtime.operator_times import OperatorTime, OperatorTimes, operator_table


class FakeLibrary:
    def instrument(self, callback):
        self.call = callback


def test_variants_of_a_kernel_count_together():
    library = FakeLibrary()
    times = OperatorTimes(library)
    for name in ("observe", "observe1", "linear"):
        library.call(name, True)
        library.call(name, False)
    taken = times.take()
    assert {name: time.calls for name, time in taken.items()} == {"observe": 2, "linear": 1}
    assert times.take() == {}


def test_an_operator_within_another_is_counted_in_both():
    library = FakeLibrary()
    times = OperatorTimes(library)
    for name, before in (("outer", True), ("inner", True), ("inner", False), ("outer", False)):
        library.call(name, before)
    taken = times.take()
    assert list(taken) == ["outer", "inner"] and taken["outer"].seconds > taken["inner"].seconds


def test_table_adds_up_what_is_small():
    times = {"linear": OperatorTime(10, 1.5, 3.0), "norm": OperatorTime(4, 0.4999, 0.5)}
    times |= {"a": OperatorTime(1, 0.00005, 0.0), "b": OperatorTime(2, 0.00005, 0.0)}
    title, *lines = operator_table("prefill", times).splitlines()
    assert title.split() == ["prefill", "calls", "ms", "share", "cores"]
    assert [line.split() for line in lines] == [
        ["linear", "10", "1500.00", "75.0%", "2.00"],
        ["norm", "4", "499.90", "25.0%", "1.00"],
        ["(2", "others)", "3", "0.10", "0.0%"],
        ["all", "operators", "17", "2000.00", "100.0%"],
    ]


def test_no_operators_at_all():
    assert operator_table("decode", {}).splitlines()[-1].split() == ["all", "operators", "0", "0.00", "0.0%"]
