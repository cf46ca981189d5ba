"""A reader sees the old file or the new one, whatever is killed when."""

import json
import multiprocessing
import os
import random
import signal
import time

import pytest

from pipeline.runtime.errors import Incomplete
from pipeline.runtime.files import (
    append_line,
    atomic_path,
    content_hash,
    lines_backwards,
    read_json,
    read_lines,
    sweep_partial,
    write_json,
)


def _write_for_ever(path):
    number = 0
    while True:
        number += 1
        write_json(path, {"number": number, "padding": [number] * 2000})


def test_a_killed_writer_leaves_the_old_file_or_the_new_one(tmp_path):
    rng, path = random.Random(0), tmp_path / "value.json"
    context = multiprocessing.get_context("fork")
    write_json(path, {"number": 0, "padding": [0] * 2000})
    for _ in range(20):
        writer = context.Process(target=_write_for_ever, args=(path,))
        writer.start()
        time.sleep(rng.uniform(0.02, 0.06))
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
        value = read_json(path)
        assert value["padding"] == [value["number"]] * 2000
    sweep_partial(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["value.json"]


def test_a_finished_directory_is_never_overwritten(tmp_path):
    (tmp_path / "done").mkdir()
    with pytest.raises(Incomplete, match="never overwritten"), atomic_path(tmp_path / "done") as partial:
        partial.mkdir()
    assert list(tmp_path.iterdir()) == [tmp_path / "done"]


def test_a_line_cut_by_a_kill_is_passed_over(tmp_path):
    path = tmp_path / "rows.jsonl"
    append_line(path, {"a": 1})
    with path.open("a") as file:
        file.write('{"a": ')
    assert read_lines(path) == [{"a": 1}]


def test_a_line_after_one_cut_by_a_kill_is_kept(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n{"a": ')
    append_line(path, {"a": 3})
    assert read_lines(path) == [{"a": 1}, {"a": 3}]


def test_what_is_no_json_names_the_file(tmp_path):
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(Incomplete, match=r"x\.json is not readable JSON"):
        read_json(tmp_path / "x.json")
    with pytest.raises(Incomplete, match=r"y\.json does not exist"):
        read_json(tmp_path / "y.json")


def test_equal_settings_have_equal_hashes():
    assert content_hash({"a": 1, "b": [2]}) == content_hash(json.loads('{"b": [2], "a": 1}'))
    assert content_hash({"a": 1}) != content_hash({"a": 2})


@pytest.mark.parametrize(
    "text", ["", "one", "one\n", "one\ntwo", "one\n\ntwo\n", "a\n" * 7 + "longer than a block\nü\n"]
)
def test_lines_are_read_from_the_end_in_pieces_of_any_size(tmp_path, text):
    path = tmp_path / "lines"
    path.write_text(text)
    whole = path.read_bytes()
    for block in (1, 3, 8, 1000):
        found = list(lines_backwards(path, block=block))
        assert [line.decode() for _, line in reversed(found)] == text.splitlines()
        assert all(whole[start:].startswith(line) and whole[start - 1 : start] in (b"", b"\n") for start, line in found)
    assert list(lines_backwards(tmp_path / "absent")) == []
