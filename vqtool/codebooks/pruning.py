"""`prune`: a tokenizer without the codes that token grids do not use, and the map from old tokens to new ones."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from vqtool.artifacts import history_record
from vqtool.codebooks.links import Links, nearest_links
from vqtool.codebooks.maps import CodeMap, Row, save_map
from vqtool.codebooks.rebuilt import with_codes
from vqtool.codebooks.usage import count_grids
from vqtool.errors import VqtoolError
from vqtool.outputs import refuse_existing, side_file
from vqtool.progress import Progress, silent
from vqtool.tokenizers import Tokenizer, save_tokenizer, tokenizer_of
from vqtool.tokenizers.quantizers import nearest


@dataclass(frozen=True)
class Pruning:
    """What was written, and how much of the tokens it keeps."""

    code_map: CodeMap
    map_path: Path
    fingerprint: str  # of the pruned tokenizer
    num_codes_before: int
    num_codes: int
    share: float  # of the tokens that are codes that were kept
    parent: str  # identity of the tokenizer that was pruned
    links: Links  # of its codes with those that were kept, counted in the grids


def prune(
    grids: str | Path | Sequence[str | Path],
    output: str | Path = "pruned.safetensors",
    *,
    code_map: str | Path | None = None,
    tokenizer: str | Path | None = None,
    min_uses: int = 1,
    force: bool = False,
    progress: Progress = silent,
) -> Pruning:
    """Drop the codes that token grids do not use.

    Images stay what they were to the last bit where all codes in use are kept; otherwise a dropped code becomes the
    nearest that is kept.

    Args:
        grids: files of token grids of one tokenizer; "-" is standard input.
        output: the tokenizer file to write.
        code_map: the file of the map to write; None: x.map.safetensors beside the tokenizer x.safetensors.
        tokenizer: of the grids; None: the one that they name.
        min_uses: drop codes that occur less often, at least 1.
        force: overwrite what is there.
        progress: shows how far it is.

    Raises:
        VqtoolError: there is nothing to drop, fewer than two codes are left, or an output exists.
    """
    output = Path(output)
    map_path = side_file(output, ".map.safetensors") if code_map is None else Path(code_map)
    for path in (output, map_path):
        refuse_existing(path, force=force, kind="an artifact")
    sources = [grids] if isinstance(grids, str | Path) else grids
    found = count_grids(sources, progress=progress)
    old = tokenizer_of(found.header, sources[0], given=tokenizer)
    kept = kept_codes(found.counts, min_uses)
    record = history_record("codebook prune", inputs={"tokenizer": old.fingerprint}, min_uses=min_uses)
    header = save_tokenizer(
        output,
        with_codes(old, kept),
        parent=old,
        history=[*old.history, record],
        summary={"num_codes_before": old.codebook_size, "num_codes": len(kept)},
        force=force,
    )
    made = replace(pruning_map(old, kept), target=header.fingerprint, target_location=str(output), name=str(map_path))
    save_map(map_path, made, history=[record], force=force)
    share = float(found.counts[kept].sum() / found.counts.sum())
    links = nearest_links(made.forward, made.backward, found.counts)
    return Pruning(made, map_path, header.fingerprint, old.codebook_size, len(kept), share, old.identity, links)


def kept_codes(counts: Row, min_uses: int) -> Row:
    """The codes (K',) that a token histogram (K,) has at least `min_uses` times.

    Raises:
        VqtoolError: all of them, or fewer than two.
    """
    if min_uses < 1:
        raise VqtoolError(f"`min_uses` {min_uses}: must be 1 or more")
    kept = np.flatnonzero(counts >= min_uses)
    if len(kept) == len(counts):
        raise VqtoolError(f"all {len(counts)} codes occur at least {min_uses} times: there is nothing to prune")
    if len(kept) < 2:
        raise VqtoolError(
            f"{len(kept)} of {len(counts)} codes occur at least {min_uses} times, but a codebook needs two: "
            "lower `min_uses` or give more grids"
        )
    return kept


def pruning_map(old: Tokenizer, kept: Row) -> CodeMap:
    """From all codes of a tokenizer to those that are kept: each to itself, the others to the nearest.

    Args:
        old: K codes.
        kept: (K',) tokens.
    """
    forward = nearest(old.codebook, old.codebook[torch.from_numpy(kept).to(old.device)]).cpu().numpy()
    forward[kept] = np.arange(len(kept))  # also where two codes are equal
    return CodeMap(forward, kept, source=old.identity, source_location=old.location)
