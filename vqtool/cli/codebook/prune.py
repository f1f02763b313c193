"""`vqtool codebook prune`: a tokenizer with the codes that are in use."""

from pathlib import Path
from typing import Annotated

import typer

from vqtool.cli.help import METHOD
from vqtool.cli.main import command
from vqtool.cli.options import Force, TokenizerOption


@command
def prune(
    grids: Annotated[list[Path], typer.Argument(help="Token grids that show which codes are in use; - is stdin.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Tokenizer to write.")] = Path("pruned.safetensors"),
    code_map: Annotated[
        Path | None, typer.Option("--map", help="Map to write. Default: beside the tokenizer, x.map.safetensors.")
    ] = None,
    tokenizer: TokenizerOption = None,
    min_uses: Annotated[
        int, typer.Option("--min-uses", min=1, help="Drop codes that occur less often.", rich_help_panel=METHOD)
    ] = 1,
    force: Force = False,
) -> None:
    """Drop the codes of a tokenizer that token grids do not use, and write the map from old tokens to new ones.

    Images stay what they were to the last bit where all codes in use are kept; with --min-uses a dropped code becomes
    the nearest that is kept. A prior of fewer codes is smaller and quicker; it has to be trained on converted grids.

    Examples:

        vqtool codebook prune tok.h5 -o pruned.safetensors

        vqtool codebook prune tok.h5 more.h5 --min-uses 10 --map kept.safetensors
    """
    from dataclasses import replace

    from vqtool.artifacts import history_record, refuse_existing
    from vqtool.cli.console import echo, progress
    from vqtool.codebooks.maps import kept_codes, pruning_map, save_map
    from vqtool.codebooks.rebuilt import with_codes
    from vqtool.codebooks.usage import count_grids
    from vqtool.tokenizers import save_tokenizer, tokenizer_of

    map_path = code_map or output.with_suffix(".map.safetensors")
    for path in (output, map_path):
        refuse_existing(path, force=force)
    found = count_grids(grids, progress=progress)
    old = tokenizer_of(found.header, grids[0], given=tokenizer)
    kept = kept_codes(found.counts, min_uses)
    record = history_record("codebook prune", inputs={"tokenizer": old.fingerprint}, min_uses=min_uses)
    new = save_tokenizer(
        output,
        with_codes(old, kept),
        parents={"tokenizer": old.fingerprint},
        history=[*old.history, record],
        summary={"num_codes_before": old.codebook_size, "num_codes": len(kept)},
        force=force,
    )
    codes = replace(pruning_map(old, kept), target=new.fingerprint, target_location=str(output))
    save_map(map_path, codes, history=[record], force=force)
    share = found.counts[kept].sum() / found.counts.sum()
    echo(f"{old.codebook_size} -> {len(kept)} codes, which {share:.2%} of the tokens have")
    echo(f"wrote {output}: tokenizer {new.fingerprint}")
    echo(f"wrote {map_path}")
    echo(f"to convert grids: vqtool codebook apply-map tok.h5 --map {map_path} -o pruned.h5")
