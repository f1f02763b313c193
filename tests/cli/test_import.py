"""`vqtool import`: checkpoints of other projects become artifacts; what cannot be read is said in one line."""

import torch


def test_a_source_that_is_not_there_or_of_no_known_format_is_one_line(tmp_path, vqtool):
    result = vqtool("import", tmp_path / "none.pth")
    assert (result.code, result.out) == (1, "")
    assert result.err.startswith("error: ")
    assert "no such file or folder" in result.err
    torch.save({"apple": torch.ones(1)}, tmp_path / "m.pt")
    result = vqtool("import", tmp_path / "m.pt", "-o", tmp_path / "out.safetensors")
    assert result.code == 1
    assert "of no format that is known" in result.err
    assert "apple" in result.err
    assert not (tmp_path / "out.safetensors").exists()


def test_an_unknown_format_or_choice_of_weights_lists_the_known(tmp_path, vqtool):
    result = vqtool("import", tmp_path / "m.pt", "--format", "nothing")
    assert result.code == 1
    assert "unknown format 'nothing': known are" in result.err
    assert "known are ema, raw" in vqtool("import", tmp_path / "m.pt", "--weights", "best").err
