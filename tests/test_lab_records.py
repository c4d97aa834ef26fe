# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Records: what comes back, what is refused, and what kills, full disks and neighbours leave."""

import errno
import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from modules import ROOT

from examples.lab.kit.records import FORMAT, Record, Store
from lmr_guard.errors import ConfigError, InputError, StageError

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=6,
)
FIELDS = st.text().filter(lambda key: key not in ("context", "format", "name"))
# Few settings, so that some records share theirs; some have none at all.
SHARED = st.fixed_dictionaries(
    {},
    optional={
        "environment": st.sampled_from([{"torch": "2"}, {"torch": "3", "gpu": None}]),
        "settings": st.sampled_from([{}, {"lr": 0.1}]),
    },
)
RECORDS = st.builds(
    lambda name, shared, own: {"name": name, **shared, **own},
    st.text(),
    SHARED,
    st.dictionaries(FIELDS, VALUES, max_size=3),
)
NETWORK = {"environment": {"torch": "2"}, "settings": {"lr": 0.1}}


def record(name: str, **own: Any) -> dict[str, Any]:  # noqa: ANN401 - what JSON holds
    return {"name": name, **NETWORK, **own}


def filled(folder: Path, *records: Mapping[str, Any]) -> Store:
    store = Store(folder / "table.jsonl")
    for each in records:
        assert store.add(each)
    return store


def as_read(*records: Mapping[str, Any]) -> list[Record]:
    return [{**each, "format": FORMAT} for each in records]


@given(st.lists(RECORDS, max_size=5, unique_by=lambda each: str(each["name"])))
def test_records_come_back_as_they_were_by_name(records: list[dict[str, Any]]) -> None:
    with TemporaryDirectory() as folder:
        store = filled(Path(folder), *records)
        assert store.read() == as_read(*sorted(records, key=lambda each: each["name"]))
        assert store.names() == {each["name"] for each in records}
        assert not store.cut_off()


def test_what_records_share_is_written_once(tmp_path: Path) -> None:
    other = {**record("c"), "settings": {"lr": 0.2}}
    store = filled(tmp_path, record("a"), record("b"), other, record("d"))
    lines = [json.loads(line) for line in store.path.read_text("utf-8").splitlines()]
    assert [line.get("name") for line in lines] == [None, "a", "b", None, "c", "d"]
    assert [line["settings"] for line in lines if "name" not in line] == [{"lr": 0.1}, {"lr": 0.2}]


def test_a_table_without_a_file_is_empty(tmp_path: Path) -> None:
    store = Store(tmp_path / "nowhere" / "table.jsonl")
    assert (store.read(), store.names(), store.cut_off()) == ([], frozenset(), False)
    assert not store.path.parent.exists()


def test_a_record_that_is_there_is_not_written_again(tmp_path: Path) -> None:
    store = filled(tmp_path, record("a", hits=1))
    before = store.path.read_bytes()
    assert not store.add(record("a", hits=2))
    assert store.path.read_bytes() == before


# --- what is cut off ----------------------------------------------------------------------------


@given(st.data())
def test_wherever_a_file_is_cut_its_whole_lines_count_and_the_rest_is_done_again(
    data: st.DataObject,
) -> None:
    wanted = [record("a", hits=[1, 2]), {**record("b"), "settings": {"lr": 0.2}}, record("c")]
    with TemporaryDirectory() as folder:
        store = filled(Path(folder), *wanted)
        content = store.path.read_bytes()
        cut = data.draw(st.integers(0, len(content)))
        store.path.write_bytes(content[:cut])
        there = store.read()
        assert there == as_read(*wanted)[: len(there)]
        # Of a line that counts its end alone may be missing.
        at_an_end = cut == 0 or b"\n" in content[cut - 1 : cut + 1]
        assert store.cut_off() is not at_an_end
        done = [store.add(each) for each in wanted]
        assert done == [each["name"] not in {t["name"] for t in there} for each in wanted]
        assert store.read() == as_read(*wanted)
        assert not store.cut_off()


def test_a_line_without_its_end_is_no_cut_off_one(tmp_path: Path) -> None:
    store = filled(tmp_path, record("a"))
    store.path.write_bytes(store.path.read_bytes().removesuffix(b"\n"))
    assert not store.cut_off()
    assert store.add(record("b"))
    assert store.read() == as_read(record("a"), record("b"))


@pytest.mark.parametrize("fault", [OSError(errno.ENOSPC, "No space left"), KeyboardInterrupt()])
def test_what_stops_halfway_leaves_the_file_as_it_was(
    fault: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = filled(tmp_path, record("a"))
    before, write = store.path.read_bytes(), os.write
    calls = []

    def part(file: int, content: memoryview) -> int:
        calls.append(len(content))
        if len(calls) > 1:
            raise fault
        return write(file, content[: len(content) // 2])

    monkeypatch.setattr(os, "write", part)
    complaint = "expected to write .*table.jsonl, got No space left; choose a folder"
    raised, match = (StageError, complaint) if isinstance(fault, OSError) else (type(fault), "^$")
    with pytest.raises(raised, match=match):
        store.add(record("b"))
    assert store.path.read_bytes() == before
    assert calls[1] == calls[0] - calls[0] // 2


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StageError, match=r"expected to write .*, got "):
        Store(tmp_path / "file" / "table.jsonl").add(record("a"))


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong", [{}, {"name": 3}, record("a", context="x"), record("a", format=1)]
)
def test_a_record_needs_its_name_and_leaves_two_fields_free(
    wrong: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="expected a record with a name and without a context"):
        Store(tmp_path / "table.jsonl").add(wrong)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("no JSON", "expected a context or a record of one, got something else in line 3"),
        ("", "expected a context or a record of one, got something else in line 3"),
        ("[1]", "expected a context or a record of one, got something else in line 3"),
        ('{"name": "b"}', "expected a context or a record of one, got something else in line 3"),
        ('{"context": "x", "format": 2}', "expected version 1 of records, got 2 in line 3"),
        ('{"context": "x", "name": "b"}', "a context that was told, got 'x' in line 3"),
        ("SECOND", "expected one record per name, got another of a in line 3"),
        ("NAMELESS", "expected a record with a name"),
    ],
)
def test_a_line_that_cannot_be_meant_is_named_and_nothing_is_added(
    line: str, complaint: str, tmp_path: Path
) -> None:
    store = filled(tmp_path, record("a"))
    second = store.path.read_text("utf-8").splitlines()[1]
    context = json.loads(second)["context"]
    told = {"SECOND": second, "NAMELESS": json.dumps({"context": context})}.get(line, line)
    with store.path.open("a", encoding="utf-8") as file:
        file.write(f"{told}\n")
    before = store.path.read_bytes()
    for use in (store.read, store.names, store.cut_off, lambda: store.add(record("b"))):
        with pytest.raises(InputError, match=complaint) as raised:
            use()
        assert f"{store.path}; delete that line" in str(raised.value)
    assert store.path.read_bytes() == before


# --- several processes --------------------------------------------------------------------------

WRITER = """
import sys
from pathlib import Path
from examples.lab.kit.records import Store
store = Store(Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
for number in map(int, sys.argv[3:]):
    settings = {"lr": number % 3}
    store.add({"name": f"{number:03}", "settings": settings, "by": sys.argv[2], "long": "x" * 9000})
"""


READER = """
import sys
from pathlib import Path
from examples.lab.kit.records import Store
print("ready", flush=True)
print(Store(Path(sys.argv[1])).cut_off())
"""


def start(store: Store, name: str, numbers: Sequence[int]) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", WRITER, f"{store.path}", name, *map(str, numbers)]
    return subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def test_two_processes_that_write_one_file_lose_and_repeat_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path / "table.jsonl")
    # Both do 20 to 39: whoever is first has written it.
    writers = [start(store, "one", range(40)), start(store, "two", range(59, 19, -1))]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        writer.communicate("\n", timeout=60)
        assert writer.returncode == 0
    found = store.read()
    assert [each["name"] for each in found] == [f"{number:03}" for number in range(60)]
    assert {each["by"] for each in found[:20]} == {"one"}
    assert {each["by"] for each in found[40:]} == {"two"}
    assert all(each["settings"] == {"lr": int(each["name"]) % 3} for each in found)
    assert all(each["long"] == "x" * 9000 for each in found)


def test_a_reader_waits_for_the_line_that_is_being_written(tmp_path: Path) -> None:
    store = filled(tmp_path, record("a"))
    whole = store.path.read_bytes()
    with store.path.open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(len(whole))
        file.write(b'{"name": "b", ')
        file.flush()
        command = [sys.executable, "-c", READER, f"{store.path}"]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as reader:
            assert reader.stdout is not None
            assert reader.stdout.readline() == "ready\n"
            with pytest.raises(subprocess.TimeoutExpired, match="timed out"):
                reader.wait(0.3)
            file.truncate(len(whole))
            fcntl.flock(file, fcntl.LOCK_UN)
            assert reader.communicate(timeout=60)[0] == "False\n"
