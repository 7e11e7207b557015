import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from retain.tasks import files
from retain.tasks.files import read_file, show
from retain.types import InputError


def values(path: Path) -> list:
    return [row.value for row in read_file(path)]


def message(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        read_file(path)
    text = str(caught.value)
    assert "\n" not in text and str(path) in text
    return text.removeprefix(str(path))


ROWS = [{"instruction": "a", "output": "ü"}, {"instruction": "b", "output": "2"}]


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
def test_every_kind_reads_the_same_rows(tmp_path, bom):
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS)
    (tmp_path / "a.JSONL").write_bytes(bom + lines.encode())
    (tmp_path / "a.json").write_bytes(bom + json.dumps(ROWS).encode())
    (tmp_path / "b.json").write_bytes(bom + json.dumps({"data": ROWS}).encode())
    (tmp_path / "a.csv").write_bytes(bom + "instruction,output\r\na,ü\r\nb,2\r\n".encode())
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    for name in ("a.JSONL", "a.json", "b.json", "a.csv", "a.parquet"):
        assert values(tmp_path / name) == ROWS, name


def test_a_line_separator_inside_a_text_is_no_new_line(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"a": "x\u2028y\x85z"}\n\n{"a": "2"}\n', encoding="utf-8")
    rows = read_file(tmp_path / "a.jsonl")
    assert [(row.number, row.place) for row in rows] == [(0, "line 1"), (1, "line 3")]
    assert rows[0].value["a"] == "x\u2028y\x85z"


def test_csv_cells_hold_lists_as_json_and_lines(tmp_path):
    (tmp_path / "a.csv").write_text('prompt,completion,choices\n"a\nb",x,"[""x"", ""y""]"\nc,y,\n')
    rows = read_file(tmp_path / "a.csv")
    assert rows[0].value == {"prompt": "a\nb", "completion": "x", "choices": ["x", "y"]}
    assert rows[1].value["choices"] is None and rows[1].place == "line 4"


def test_csv_rows_that_do_not_fit_the_header_are_problems(tmp_path):
    (tmp_path / "a.csv").write_text("prompt,completion,choices\na,b\na,b,[x]\n")
    short, broken = read_file(tmp_path / "a.csv")
    assert short.problem == "2 cells under 3 columns; quote cells that hold a comma"
    assert broken.problem.startswith("broken JSON") and "a list in a cell is written as JSON" in broken.problem


@pytest.mark.parametrize(
    ("name", "data", "expected"),
    [
        ("a.jsonl", b"", ": the file is empty; it needs at least one row"),
        ("a.json", b" \n", ": the file is empty"),
        ("a.csv", b"", ": the file is empty"),
        ("a.csv", b"prompt,completion\n", ": the file has no rows"),
        ("a.json", b"[]", ": the file has no rows"),
        ("a.jsonl", b'{"a":\n\xff\xfe"x"}', ", line 2: byte 6 (0xff) is not UTF-8; save the file as UTF-8"),
        ("a.csv", b"a,b\nM\xfcller,1\n", ", line 2: byte 5 (0xfc) is not UTF-8"),
        ("a.jsonl", b"\xef\xbb\xbfab\xff", ", line 1: byte 5 (0xff) is not UTF-8"),
        ("a.jsonl", '{"a": 1}\n'.encode("utf-16-le"), ", line 1: a NUL byte at byte 1; the file is UTF-16"),
        ("a.csv", b"a,b\nx,\0\n", ", line 2: a NUL byte at byte 6"),
        ("a.json", b'{"rows": []}', ": found {'rows': []}; expected a list of objects or"),
        ("a.json", b'[{"a": 1},\n{"b" 2}]', ": broken JSON at line 2, column 6"),
        ("a.json", b'{"a": 1}\n{"a": 2}', "a file with one object a line is named .jsonl"),
        ("a.json", b"[" * 100_000, ": broken JSON (nested too deeply)"),
        ("a.json", b"9" * 5000, ": broken JSON (a number with too many digits)"),
        ("a.csv", b'a,b\n"x,1\n', ", line 2: broken CSV"),
        ("a.parquet", b"PAR1 nonsense", ": not a readable Parquet file"),
        ("a.parquet", b"", ": not a readable Parquet file"),
        ("a.txt", b"x", ": unknown extension '.txt'; use .jsonl, .json, .csv, .parquet"),
        ("a", b"x", ": unknown extension ''; use .jsonl"),
    ],
)
def test_broken_files(tmp_path, name, data, expected):
    (tmp_path / name).write_bytes(data)
    assert expected in message(tmp_path / name)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            b'{"a": 1',
            "broken JSON at column 8 (Expecting ',' delimiter): '{\"a\": 1'; write one JSON object a line",
        ),
        (b"{'a': 1}", "broken JSON at column 2"),
        (b'{"a": "\x07"}', '\'{"a": "\\x07"}\''),
        (b'{"a": ' + b"9" * 5000 + b"}", "broken JSON (a number with too many digits)"),
        (b"[" * 100_000, "broken JSON (nested too deeply)"),
    ],
)
def test_a_broken_line_is_a_problem_of_its_row(tmp_path, line, expected):
    (tmp_path / "a.jsonl").write_bytes(b'{"a": 1}\n' + line + b"\n")
    good, bad = read_file(tmp_path / "a.jsonl")
    assert good.value == {"a": 1} and bad.place == "line 2" and bad.value is None
    assert expected in bad.problem and len(bad.problem) < 200


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
def test_a_huge_line_is_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"prompt,completion\n" + b"x" * 100_000_000)
    assert message(tmp_path / name) == (
        ", line 2: 100,000,000 bytes in one line, at most 10,000,000 are allowed; write one sample a line"
    )


def test_a_long_csv_cell_is_fine_and_the_limit_is_put_back(tmp_path):
    before = files.csv.field_size_limit()
    (tmp_path / "a.csv").write_text("prompt,completion\n" + "x" * 500_000 + ",y\n")
    assert len(values(tmp_path / "a.csv")[0]["prompt"]) == 500_000
    assert files.csv.field_size_limit() == before


def test_missing_files_name_the_nearest(tmp_path):
    (tmp_path / "train.jsonl").write_text("{}")
    assert message(tmp_path / "trian.jsonl") == ": no such file; did you mean 'train.jsonl'?"
    assert message(tmp_path / "other.csv") == ": no such file"
    assert message(tmp_path / "no" / "a.csv") == f": no such file, and the folder {tmp_path / 'no'} does not exist"


def test_a_directory_is_no_file(tmp_path):
    assert "a directory; name a file ending in .jsonl" in message(tmp_path)
    (tmp_path / "train.jsonl").write_text("{}")
    assert message(tmp_path) == ": a directory; name a file in it: train.jsonl"


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    (tmp_path / "a.jsonl").write_text("{}")

    def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(files, "regular", refuse)
    assert message(tmp_path / "a.jsonl") == ": cannot be read (Permission denied)"


def test_show_is_short_and_printable():
    assert show("x" * 100) == repr("x" * 60) + "…"
    assert show("a\x00\n\x1b[31m\ud800") == r"'a\x00\n\x1b[31m\ud800'"
    assert show(list(range(1000)))[-1] == "…" and len(show(list(range(1000)))) == 61
    assert show(None) == "None"
