import pytest

from runtime.whole_file import replace_file


def test_a_file_is_there_whole_or_as_it_was(tmp_path):
    path = tmp_path / "new" / "a.json"
    replace_file(path, lambda part: part.write_text("first"))
    assert path.read_text() == "first"

    def half(part):
        assert part.suffix == ".json" and part.parent == path.parent and path.read_text() == "first"
        part.write_text("sec")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        replace_file(path, half)
    assert path.read_text() == "first" and list(path.parent.iterdir()) == [path]
