"""The format of a saved cache: what is written comes back, and nothing else is taken for it."""

import resource
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime import cache_file
from runtime.cache_file import CacheFileReader, CacheHeader, new_cache_file
from runtime.errors import UserError

SAVE = """
import sys, time
from pathlib import Path
from runtime.cache_file import CacheHeader, new_cache_file
with new_cache_file(Path(sys.argv[1]), CacheHeader({}, 1, 1, 1, 1)):
    print("saving", flush=True)
    time.sleep(600)
"""
TOKENS = np.arange(100, 130, dtype=np.int32)
STATE = bytes(range(200))
ORIGIN = {"model": {"rope": None}, "policy": {"alpha": 0.1}, "compressed": False}


def contents(num_pages, page_bytes):
    return np.random.default_rng(num_pages).integers(0, 256, (num_pages, page_bytes), np.uint8)


def write(path, pages, tokens=TOKENS, state=STATE):
    header = CacheHeader(ORIGIN, len(tokens), len(state), *pages.shape)
    with new_cache_file(path, header) as file:
        file.write(tokens.view(np.uint8))
        file.write(state)
        for first in range(0, len(pages), header.pages_per_chunk):
            file.write(pages[first : first + header.pages_per_chunk].reshape(-1))
    return header


def read(path):
    with CacheFileReader(path) as file:
        state = file.read()
        pages = np.full((file.header.num_pages, file.header.page_bytes), 77, np.uint8)
        for first, chunk in file.page_chunks():
            chunk = chunk.reshape(-1, file.header.page_bytes)
            pages[first : first + len(chunk)] = chunk
        return file.header, file.token_ids.copy(), state, pages


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(cache_file, "_CHUNK_BYTES", 1000)


@pytest.mark.parametrize("num_pages, page_bytes", [(0, 64), (1, 64), (15, 64), (16, 64), (31, 64), (3, 5000)])
def test_round_trip(tmp_path, small_chunks, num_pages, page_bytes):
    pages = contents(num_pages, page_bytes)
    header = write(tmp_path / "x", pages)
    got, tokens, state, back = read(tmp_path / "x")
    assert got == header and state == STATE
    np.testing.assert_array_equal(tokens, TOKENS)
    np.testing.assert_array_equal(back, pages)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_any_changed_byte_is_found(tmp_path_factory):
    path = tmp_path_factory.mktemp("damaged") / "x"
    write(path, contents(10, 64))
    whole = path.read_bytes()

    @given(st.integers(0, len(whole) - 1), st.integers(1, 255))
    def check(place, change):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ change]) + whole[place + 1 :])
        with pytest.raises(UserError, match="is damaged|is no cache file"):
            read(path)

    check()
    for length in range(0, len(whole), 11):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match="is damaged|is no cache file"):
            CacheFileReader(path)
    path.write_bytes(whole + b"x")
    with pytest.raises(UserError, match="it was cut short or has grown"):
        CacheFileReader(path)


def test_other_files(tmp_path, monkeypatch):
    path = tmp_path / "x"
    with pytest.raises(UserError, match=f"the cache file {path} cannot be read: No such file"):
        CacheFileReader(path)
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        CacheFileReader(tmp_path)
    path.write_text("a book, perhaps")
    with pytest.raises(UserError, match=f"{path} is no cache file of this program: name another file"):
        CacheFileReader(path)
    with monkeypatch.context() as patch:
        patch.setattr(CacheHeader.__init__, "__defaults__", (2,))
        write(path, contents(1, 64))
    with pytest.raises(UserError, match="is of another version of this program: delete it"):
        CacheFileReader(path)


@pytest.mark.parametrize("reserves", [True, False])
def test_a_file_that_cannot_be_finished_leaves_the_old_one(tmp_path, monkeypatch, reserves):
    if not reserves:
        monkeypatch.setattr(cache_file.os, "posix_fallocate", lambda *_: None)
    path = tmp_path / "x"
    write(path, contents(3, 64))
    old = path.read_bytes()
    with pytest.raises(KeyboardInterrupt), new_cache_file(path, CacheHeader(ORIGIN, 1, 1, 1, 1)):
        raise KeyboardInterrupt
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(UserError, match=rf"cannot be saved to {path} \(File too large\): choose another place"):
            write(path, contents(2, 60_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == old and [file.name for file in tmp_path.iterdir()] == ["x"]
    with pytest.raises(UserError, match=r"cannot be saved to .*none/x \(No such file or directory\)"):
        write(tmp_path / "none" / "x", contents(1, 64))


@pytest.mark.parametrize("next_use", ["save", "load"])
def test_parts_of_killed_processes_go_with_the_next_save_or_load(tmp_path, next_use):
    """One process is killed while it saves; another still does."""
    path = tmp_path / "book[1].kv"
    write(path, contents(1, 64))
    processes = [subprocess.Popen([sys.executable, "-c", SAVE, path], stdout=subprocess.PIPE) for _ in range(2)]
    try:
        for process in processes:
            assert process.stdout.readline() == b"saving\n"
        (tmp_path / "other.kv.1.part").touch()
        processes[0].kill()
        processes[0].wait()
        assert len(list(tmp_path.iterdir())) == 4
        write(path, contents(2, 64)) if next_use == "save" else read(path)
        alive = f"{path.name}.{processes[1].pid}.part"
        assert {file.name for file in tmp_path.iterdir()} == {path.name, alive, "other.kv.1.part"}
    finally:
        for process in processes:
            process.kill()
            process.communicate()
