"""scripts/draw_prompts.py: what is on the sheet, and that its rows are what they are called."""

import importlib
import io
import json
import sys
import tarfile

import numpy as np
import pytest
from PIL import Image
from support.editing_run import save_prior

import vqtool

draw_prompts = importlib.import_module("draw_prompts")
PROMPTS = ["a red apple", "a penguin"]


@pytest.fixture
def run(monkeypatch, tmp_path, tokenizer_path):
    monkeypatch.setattr(draw_prompts, "TRAINED", tuple(PROMPTS[:1]))
    monkeypatch.setattr(draw_prompts, "NEVER_SEEN", tuple(PROMPTS[1:]))
    prior = save_prior(tmp_path / "p.safetensors", tokenizer_path, kind="caption")

    def main(*arguments):
        command = ["draw_prompts.py", "--prior", tmp_path / "p.safetensors", "-o", tmp_path / "x.png", *arguments]
        monkeypatch.setattr(sys, "argv", [str(each) for each in command])
        return draw_prompts.main()

    main.prior = prior
    return main


def write_captions(folder, emoji, clipart):
    for name, captions in (("emoji", emoji), ("clipart", clipart)):
        data = "\n".join(json.dumps({"file_name": "a.avif", "text": [caption]}) for caption in captions).encode()
        entry = tarfile.TarInfo("metadata.jsonl")
        entry.size = len(data)
        with tarfile.open(folder / f"{name}.tar.gz", "w:gz") as tar:
            tar.addfile(entry, io.BytesIO(data))


def test_prompt_i_is_drawn_with_seed_i(run, tmp_path):
    assert run() == 0
    drawn = draw_prompts.draw(run.prior, PROMPTS).numpy()
    for seed, prompt in enumerate(PROMPTS):
        condition = vqtool.condition(run.prior, captions=[prompt])
        alone = vqtool.sample(run.prior, 1, seed=seed, sampler="purity", cfg_scale=3.0, condition=condition)
        assert np.array_equal(drawn[seed], alone[0].numpy())
    with Image.open(tmp_path / "x.png") as sheet:
        assert sheet.width > 2 * 48


@pytest.mark.parametrize(
    ("emoji", "code"), [(["a red apple", "a pear"], 0), (["a red apple", "a penguin"], 1), (["a pear"], 1)]
)
def test_rows_that_are_not_what_they_are_called_are_refused(run, tmp_path, capsys, emoji, code):
    write_captions(tmp_path, emoji, ["clip art of a pear"])
    assert run("--pictures", tmp_path) == code
    assert ("these prompts stand in the wrong rows" in capsys.readouterr().err) == bool(code)
    assert (tmp_path / "x.png").exists() == (not code)


def test_there_are_32_prompts_half_of_them_never_seen():
    assert len({*draw_prompts.TRAINED}) == len({*draw_prompts.NEVER_SEEN}) == 16
    assert not {*draw_prompts.TRAINED} & {*draw_prompts.NEVER_SEEN}
