"""Maps between codes, from a file of ours or as VQ-Diffusion publishes them (taming_vqvae_2887.pt)."""

from pathlib import Path

from vqtool.codebooks.maps import CodeMap, from_vector, load_map
from vqtool.errors import VqtoolError
from vqtool.interop import read_code_map


def load_code_map(path: str | Path) -> CodeMap:
    """A map of either kind; the content says which it is.

    Raises:
        FormatError: neither, or damaged.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            start = file.read(10)
    except OSError as error:
        raise VqtoolError(f"{path}: cannot be read: {error.strerror}") from error
    if start[8:] == b'{"':
        return load_map(path)
    return from_vector(read_code_map(path).numpy(), str(path))
