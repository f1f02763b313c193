"""`vqtool distill`: a student beside its log and state, and what is refused in one line."""

from support.commands import error_lines
from support.exact import random_prior

from vqtool.priors import load_prior

SHORT = ("--calls", 2, "-n", 4, "--latent-size", 3, "-b", 2, "--steps", 2, "--teacher-calls", 2)


def test_a_student_is_written_and_goes_on_where_it_was_stopped(tmp_path, monkeypatch, vqtool):
    monkeypatch.chdir(tmp_path)
    random_prior().save("prior.safetensors")
    result = vqtool("distill", *SHORT)
    assert result.code == 0, result.err
    assert {path.name for path in tmp_path.iterdir()} == {
        "prior.safetensors", "student.log.jsonl", "student.safetensors", "student.state.safetensors",
    }  # fmt: skip
    assert "for 2 calls or fewer" in result.err
    assert load_prior("student.safetensors").summary["calls"] == 2
    more = vqtool("distill", *SHORT[:-4], "--teacher-calls", 2, "--steps", 3, "--resume")
    assert more.code == 0, more.err
    refused = vqtool("sample", "student.safetensors", "-n", 1, "--steps", 4, "-o", "x.h5")
    assert (refused.code, len(error_lines(refused.err))) == (1, 1)
    assert "made for 2 network calls a grid, not for 4: give --steps 2 or fewer" in error_lines(refused.err)[0]
    refused = vqtool("distill", "--calls", 99, "-o", "y.safetensors")
    assert error_lines(refused.err) == ["error: --calls 99: the teacher's kernel has 20 steps"]


def test_the_teacher_is_not_written_over(tmp_path, monkeypatch, vqtool):
    monkeypatch.chdir(tmp_path)
    random_prior().save("prior.safetensors")
    before = (tmp_path / "prior.safetensors").read_bytes()
    refused = vqtool("distill", *SHORT, "-f", "-o", "./prior.safetensors")
    assert error_lines(refused.err) == [
        "error: --output prior.safetensors: is the teacher, which the student would replace: name another file"
    ]
    assert (tmp_path / "prior.safetensors").read_bytes() == before
