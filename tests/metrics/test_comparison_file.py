"""The JSON of a comparison: what is written is read again, and anything else is one clear error."""

import json
import os
from dataclasses import asdict, replace

import pytest

from vqtool.errors import FormatError, VqtoolError
from vqtool.metrics.compare.file import Comparison, Row, Trial

VALUES = {"calls": 2.0, "seconds": 0.1, "network_seconds": 0.05, "usage": 0.5, "perplexity": 3.0, "FD-x": 7.0}
ROW = Row("fewer", 2, {"temperature": 0.5}, VALUES, {"FD-x": 0.1}, {"FD-x": "lower"}, {"0": VALUES})


def test_rows_are_kept_and_read_again(tmp_path):
    path = tmp_path / "c.json"
    first = Comparison(path, {"prior": "p"})
    first.add(ROW)
    again = Comparison(path, {"prior": "p"}, resume=True)
    assert again.rows == [ROW]
    assert again.has(Trial("fewer", 2, {"temperature": 0.5}))
    assert not again.has(Trial("fewer", 3, {"temperature": 0.5}))
    assert again.scores == {"FD-x": "lower"}
    head, rows = again.table()
    assert head == ["sampler", "steps", "runtime", "calls", "s a picture", "network s", "FD", "usage", "perplexity"]
    assert list(rows) == [["fewer temperature=0.5", "2", "torch", "2", "0.1", "0.05", "7 ± 0.1", "0.5", "3"]]
    with_cpu = replace(ROW, values={**VALUES, "cpu_seconds": 0.2}, runtime="onnx")
    again.add(with_cpu)
    head, rows = again.table()
    assert head[5:7] == ["network s", "CPU s"]
    assert [line[2:7] for line in rows] == [["torch", "2", "0.1", "0.05", ""], ["onnx", "2", "0.1", "0.05", "0.2"]]


def broken(**changes):
    return json.dumps({"kind": "comparison of samplers", "rows": [{**asdict(ROW), **changes}]})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"rows": {}}',
        '{"rows": [1]}',
        '{"rows": [{"sampler": "fewer"}]}',
        '{"rows": ' + "[" * 100_000 + "]" * 100_000 + "}",
        '{"rows": ' + "9" * 5000 + "}",
        broken(sampler=1),
        broken(steps="2"),
        broken(options=[]),
        broken(values={}),
        broken(values={**VALUES, "calls": "2"}),
        broken(values={**VALUES, "calls": True}),
        broken(standard_errors=None),
        broken(better={"FD-x": 1}),
        broken(better={"KID-x": "lower"}),
        broken(by_seed=[]),
        broken(by_seed={"0": []}),
        broken(more=1),
        broken(values={**VALUES, "calls": float("nan")}),
        broken(standard_errors={"FD-x": 10**400}),
        b"\xff\xfe",
    ],
)
def test_a_file_that_holds_something_else_is_refused(tmp_path, text):
    path = tmp_path / "c.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(FormatError, match=r"c\.json: "):
        Comparison(path, {}, resume=True)


def test_a_file_of_holes_is_not_read(tmp_path):
    path = tmp_path / "c.json"
    path.touch()
    os.truncate(path, 1 << 40)
    with pytest.raises(FormatError, match=r"c\.json: claims 1,099,511,627,776 bytes"):
        Comparison(path, {}, resume=True)


def test_there_has_to_be_a_file_to_resume(tmp_path):
    with pytest.raises(VqtoolError, match="no earlier comparison"):
        Comparison(tmp_path / "c.json", {}, resume=True)
    with pytest.raises(VqtoolError, match="name it with `output`"):
        Comparison(None, {}, resume=True)
