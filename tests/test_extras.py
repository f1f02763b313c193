"""The command that a message proposes installs from where this copy came from."""

import json
from importlib import metadata
from pathlib import Path

import pytest

import vqtool
from vqtool.extras import install_command


class Installed:
    """What pip wrote down of an installed package."""

    def __init__(self, origin):
        self._origin = origin

    def read_text(self, name):
        assert name == "direct_url.json"
        return json.dumps(self._origin) if self._origin else None


@pytest.mark.parametrize(
    ("origin", "command"),
    [
        (None, "pip install 'vqtool[eval]'"),
        ({"url": "file:///home/me/vqtool", "dir_info": {"editable": True}}, "pip install -e '/home/me/vqtool[eval]'"),
        ({"url": "file:///home/my%20code", "dir_info": {}}, "pip install '/home/my code[eval]'"),
        ({"url": "file:///d/vqtool-1-py3-none-any.whl", "archive_info": {}},
         "pip install 'vqtool[eval] @ file:///d/vqtool-1-py3-none-any.whl'"),
        ({"url": "https://x.org/v.git", "vcs_info": {"vcs": "git", "commit_id": "abc"}},
         "pip install 'vqtool[eval] @ git+https://x.org/v.git@abc'"),
    ],
)  # fmt: skip
def test_the_command_names_what_pip_installed(monkeypatch, origin, command):
    monkeypatch.setattr(metadata, "distribution", lambda name: Installed(origin))
    assert install_command("eval") == command


def test_a_copy_that_pip_does_not_know_is_named_by_its_folder(monkeypatch):
    def find(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", find)
    assert install_command("eval") == f"pip install '{Path(vqtool.__file__).parents[1]}[eval]'"
