"""`vqtool zoo`, and models by their names: found on the hub or in its cache, imported once, said before they are."""

import json
import shutil
from pathlib import Path

import pytest
from huggingface_hub import constants

from vqtool import interop
from vqtool.errors import VqtoolError
from vqtool.interop import _hub, zoo

GOLDEN = Path(__file__).parents[1] / "golden"
COMMIT = "0" * 40


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """hub(repository, folder): puts a folder into the cache of a hub that cannot be reached."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def put(repository, folder, revision="main"):
        root = tmp_path / "hub" / f"models--{repository.replace('/', '--')}"
        shutil.copytree(folder, root / "snapshots" / COMMIT)
        (root / "refs").mkdir()
        (root / "refs" / revision).write_text(COMMIT)

    return put


def test_the_table_says_of_every_model_what_it_is_and_what_to_type(vqtool):
    result = vqtool("zoo", "--json")
    assert result.code == 0
    table = json.loads(result.out)
    assert [row["name"] for row in table] == list(zoo.MODELS)
    for row in table:
        assert row["licence"]
        assert row["protocol"]
        assert row["kind"] in ("prior", "tokenizer")
        assert row["parameters"] > 0
        assert f"zoo:{row['name']}" in row["command"]
        assert not row["tokenizer"] or zoo.MODELS[row["tokenizer"]].kind == "tokenizer"
        _hub.Place.parse(row["source"])
    text = vqtool("zoo").out
    assert all(row["name"] in text and row["licence"] in text for row in table)
    document = (Path(__file__).parents[2] / "docs" / "zoo.md").read_text()
    owners = {row["source"].removeprefix("hub:").split("/")[0] for row in table}
    assert all(f"{owner}/" in document for owner in owners)
    assert all(row["format"] in ("", *interop.FORMATS) for row in table)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hub:a/b", ("a/b", "", None)),
        ("hub:a/b/c.pth", ("a/b", "c.pth", None)),
        ("hub:a-1/b.2/d/c.pth@v1.0", ("a-1/b.2", "d/c.pth", "v1.0")),
        ("hub:a/b@refs/pr/1", ("a/b", "", "refs/pr/1")),
    ],
)
def test_places_on_the_hub_are_written_so(text, expected):
    place = _hub.Place.parse(text)
    assert (place.repository, place.part, place.revision) == expected


@pytest.mark.parametrize(
    "text", ["hub:", "hub:a", "hub:a/../b", "hub:a/b/../../c", "hub:/etc/passwd", "hub:a/b@", "hub:a/b//c"]
)
def test_other_places_are_refused(text):
    with pytest.raises(VqtoolError, match="hub:OWNER/NAME/FILE@REVISION is expected"):
        interop.find_source(text)


def test_a_file_in_a_repository_is_found_with_the_settings_of_its_name(hub):
    hub("me/ibq", GOLDEN / "ibq-tokenizer", revision="v1")
    found = interop.find_source("hub:me/ibq/imagenet256_64.ckpt@v1")
    assert found.read_bytes() == (GOLDEN / "ibq-tokenizer" / "imagenet256_64.ckpt").read_bytes()
    assert interop.recognise(interop.read_source(found)) == "ibq"
    with pytest.raises(VqtoolError, match=r"me/ibq/none\.ckpt: no such file or folder, and it cannot be downloaded"):
        interop.find_source("hub:me/ibq/none.ckpt@v1")


def test_a_folder_in_a_repository_is_a_source(hub, tmp_path):
    shutil.copytree(GOLDEN / "df-pipeline", tmp_path / "repository" / "inside")
    hub("me/models", tmp_path / "repository")
    assert interop.recognise(interop.read_source(interop.find_source("hub:me/models/inside"))) == "diffusers"
    found = interop.find_source("hub:me/models/inside/vqvae")
    assert interop.recognise(interop.read_source(found)) == "diffusers-vqmodel"


@pytest.fixture
def models(hub, monkeypatch):
    """A zoo of one pipeline and one tokenizer, both in the cache."""
    hub("me/pipeline", GOLDEN / "df-pipeline")
    hub("me/ibq", GOLDEN / "ibq-tokenizer")
    monkeypatch.setattr(
        zoo,
        "MODELS",
        {
            "fox": zoo.Model("captions, 8 px", "prior", "hub:me/pipeline", "MIT", 1.0, "FID 1", "none"),
            "ibq": zoo.Model(
                "tokenizer", "tokenizer", "hub:me/ibq/imagenet256_64.ckpt", "Apache-2.0", 2.0, "-", "-", format="ibq"
            ),
        },
    )


def test_a_model_is_imported_when_it_is_first_used_after_its_licence_has_been_said(models, tmp_path, vqtool):
    sample = ("sample", "zoo:fox", "--caption", "a cat", "-n", "1", "--steps", "2", "--cfg-scale", "1")
    first = vqtool(*sample, "-o", tmp_path / "a.h5")
    assert first.code == 0, first.err
    assert first.err.splitlines()[0].startswith("zoo:fox: captions, 8 px; licence MIT; 1 M weights, about 4 MB")
    assert (tmp_path / "cache" / "vqtool" / "zoo" / "fox.safetensors").is_file()
    again = vqtool(*sample, "-o", tmp_path / "b.h5")
    assert again.code == 0
    assert "licence" not in again.err
    assert vqtool("decode", tmp_path / "b.h5", "-o", tmp_path / "out").code == 0


def test_a_model_can_be_imported_by_its_name_without_its_settings_beside_it(models, tmp_path, vqtool):
    (settings,) = (tmp_path / "hub").rglob("imagenet256_64.yaml")
    settings.unlink()
    result = vqtool("import", "zoo:ibq", "-o", tmp_path / "t.safetensors")
    assert result.code == 0, result.err
    assert "licence Apache-2.0" in result.err
    assert vqtool("info", tmp_path / "t.safetensors").code == 0


def test_a_model_whose_tokenizer_is_another_source_is_imported_with_it(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(
        interop, "convert", lambda source, output, **how: iter([asked.append((source, output, how)) or ""])
    )
    list(zoo.convert("zoo:halton-tiny", tmp_path / "h.safetensors", force=True))
    (first, second) = asked
    assert first[:2] == ("hub:FoundationVision/LlamaGen/vq_ds16_c2i.pt", tmp_path / "h.tokenizer.safetensors")
    assert second[:2] == ("hub:llvictorll/Halton-MaskGIT/ImageNet_256_tiny.pth", tmp_path / "h.safetensors")
    assert second[2]["tokenizer"] == first[1]


def test_an_unknown_model_lists_the_known(vqtool, tmp_path):
    for arguments in (("sample", "zoo:none"), ("import", "zoo:none")):
        result = vqtool(*arguments, "-o", tmp_path / "x")
        assert result.code == 1
        assert "unknown model 'none': known are halton-tiny" in result.err
