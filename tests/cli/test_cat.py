"""`vqtool cat`: several files and streams as one."""

from dataclasses import replace

from support.commands import shell
from support.grids import HEADER, assert_same, make_batch, write_file, write_stream

from vqtool.grids import join_batches, read_grids


def test_files_and_streams_follow_each_other_with_the_history_of_all(tmp_path):
    parts = [make_batch(3), make_batch(300, first=3), make_batch(5, first=303, known=False)]
    other = replace(HEADER, history=({"step": "sample"},))
    write_file(tmp_path / "a.h5", parts[0])
    write_stream(tmp_path / "b.h5", parts[1], header=other)
    write_file(tmp_path / "c.h5", parts[2])
    result = shell("$vqtool cat a.h5 - c.h5 -o all.h5 < b.h5", tmp_path)
    assert result.code == 0, result.err
    header, found = read_grids(tmp_path / "all.h5")
    assert_same(found, join_batches(HEADER, parts))
    assert [record["step"] for record in header.history] == ["encode", "sample", "cat"]
    assert set(header.history[-1]["inputs"]) == {"a.h5", "c.h5"}


def test_a_shell_redirection_gets_one_file_and_appending_a_stream(tmp_path):
    write_file(tmp_path / "a.h5", make_batch(3))
    result = shell("$vqtool cat a.h5 > one.h5 && cp one.h5 more.h5 && $vqtool cat < a.h5 >> more.h5", tmp_path)
    assert result.code == 0, result.err
    assert_same(read_grids(tmp_path / "one.h5")[1], make_batch(3))
    assert len(read_grids(tmp_path / "more.h5")[1]) == 6


def test_a_closed_pipe_ends_it_quietly_with_141(tmp_path):
    write_file(tmp_path / "a.h5", make_batch(3000))
    result = shell("$vqtool cat a.h5 a.h5 a.h5 a.h5 | head -c 1000 | wc -c; echo ${PIPESTATUS[0]}", tmp_path)
    assert result.out.split() == ["1000", "141"]
    assert result.err == ""


def test_inputs_of_two_tokenizers_are_refused_before_anything_is_written(tmp_path, vqtool):
    a = write_file(tmp_path / "a.h5", make_batch(3))
    b = write_file(tmp_path / "b.h5", make_batch(3), header=replace(HEADER, tokenizer_fingerprint="fedcba9876543210"))
    result = vqtool("cat", a, b, "-o", tmp_path / "c.h5")
    assert result.code == 1
    assert all(word in result.err for word in (str(a), str(b), "0123456789abcdef", "fedcba9876543210"))
    assert not (tmp_path / "c.h5").exists()


def test_a_dead_producer_is_passed_on_to_the_consumer_with_what_arrived(tmp_path):
    write_stream(tmp_path / "s.h5", make_batch(8), finish=False)
    result = shell("cat s.h5 | $vqtool cat | cat > passed.h5", tmp_path)
    assert result.code == 1
    assert "the producer stopped early: 8 grids arrived" in result.err
    checked = shell("$vqtool check passed.h5", tmp_path)
    assert checked.code == 1
    assert "8 grids arrived" in checked.out


def test_standard_input_can_be_named_once_only(tmp_path, vqtool):
    result = vqtool("cat", "-", "-", "-o", tmp_path / "c.h5")
    assert result.code == 1
    assert "only once" in result.err


def test_files_without_grids_are_passed_over_and_told(tmp_path, vqtool):
    write_file(tmp_path / "a.h5", make_batch(3))
    write_file(tmp_path / "none.h5")
    result = vqtool("cat", tmp_path / "none.h5", tmp_path / "a.h5", "-o", tmp_path / "all.h5")
    assert result.code == 0
    assert "none.h5: no token grids in it: passed over" in result.err
    assert_same(read_grids(tmp_path / "all.h5")[1], make_batch(3))
