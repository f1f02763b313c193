"""Downloads over HTTP, from a hub on this machine: what is fetched, kept, and said where it is not there."""

import shutil
from pathlib import Path

import pytest
from huggingface_hub import constants
from support.local_hub import COMMIT, serve

from vqtool import interop
from vqtool.errors import VqtoolError
from vqtool.interop import _hub

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """hub(repositories): a hub with an empty cache; gives the list of files that are asked for."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    servers = []

    def start(**repositories):
        server = serve({name.replace("__", "/"): folder for name, folder in repositories.items()})
        address, asked = server.__enter__()
        servers.append(server)
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
        )
        return asked

    yield start
    for server in servers:
        server.__exit__(None, None, None)


def test_a_file_is_downloaded_with_the_settings_of_its_name_and_once(hub):
    asked = hub(me__ibq=GOLDEN / "ibq-tokenizer")
    found = interop.find_source("hub:me/ibq/imagenet256_64.ckpt")
    assert found.read_bytes() == (GOLDEN / "ibq-tokenizer" / "imagenet256_64.ckpt").read_bytes()
    assert COMMIT in str(found)
    assert sorted(asked) == ["imagenet256_64.ckpt", "imagenet256_64.yaml"]
    assert interop.recognise(interop.read_source(found)) == "ibq"
    interop.find_source("hub:me/ibq/imagenet256_64.ckpt")
    assert len(asked) == 2  # from the cache


def test_a_pipeline_is_downloaded_without_what_is_not_needed(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(GOLDEN / "amused-pipeline", "repository")
    for name in ("transformer/diffusion_pytorch_model.fp16.safetensors", "assets.png", "training.bin"):
        (Path("repository") / name).write_bytes(b"not needed")
    asked = hub(me__amused=tmp_path / "repository")
    lines = list(interop.convert("me/amused", "a.safetensors"))
    assert lines[0] == "me/amused: amused"
    assert Path("a.tokenizer.safetensors").is_file()
    assert "transformer/diffusion_pytorch_model.safetensors" in asked
    assert not {"transformer/diffusion_pytorch_model.fp16.safetensors", "assets.png", "training.bin"} & {*asked}


def test_weights_in_pickles_alone_are_downloaded_from_the_folders_of_models(hub, tmp_path):
    folder = tmp_path / "repository" / "inside"
    shutil.copytree(GOLDEN / "om-maskgit-vqgan", folder, ignore=shutil.ignore_patterns("io.safetensors"))
    (tmp_path / "repository" / "optimizer.bin").write_bytes(b"not needed")
    asked = hub(me__muse=tmp_path / "repository")
    found = _hub.download(_hub.Place("me/muse", "inside"))
    assert interop.recognise(interop.read_source(found)) == "open-muse"
    assert "inside/pytorch_model.bin" in asked
    assert "optimizer.bin" not in asked


def test_what_is_not_there_is_one_clear_error(hub):
    hub(me__ibq=GOLDEN / "ibq-tokenizer")
    for name in ("hub:me/ibq/none.ckpt", "hub:me/none/imagenet256_64.ckpt", "me/none"):
        with pytest.raises(VqtoolError, match="no such file or folder, and it cannot be downloaded"):
            interop.find_source(name)
