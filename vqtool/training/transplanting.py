"""A prior carried over to other codes: what `codebook refit`, `prune` and `remap` leave, or any codes that are linked.

Only the tables with a row a code depend on the codes. With n_jk cells that had code j and have code k now, of N_k cells
with k and n_j with j, r_kj = n_jk / N_k is the share of k's cells that had j. Rows of the token embedding become

    e'_k = sum_j r_kj e_j .

Of the head one wants p'(k) = sum_j p(j) n_jk / n_j: where codes merge, a sum of probabilities, whose logarithm is not
linear in the rows w_j. Rows and biases become

    w'_k = sum_j r_kj w_j        b'_k = sum_j r_kj (b_j - log n_j) + log N_k

so that logit'_k = sum_j r_kj (logit_j + log(n_jk / n_j) - log r_kj). That is at most log sum_j exp(logit_j) n_jk / n_j
(Jensen), and equal to it wherever the codes that merge are as probable among each other as they are frequent. So it is
exact for codes that are renamed, that are split in fixed proportions, or whose rows were alike; elsewhere it is too low
the farther the probabilities are from the frequencies, and a short training does the rest.
Source: own; nobody else's that we know of.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vqtool import denoisers
from vqtool.artifacts import history_record
from vqtool.codebooks.conversion import nearest_codes
from vqtool.codebooks.links import Links, count_links, nearest_links
from vqtool.codebooks.rebuilt import same_latents
from vqtool.codebooks.usage import count_tokens
from vqtool.denoisers import Denoiser
from vqtool.errors import MismatchError, VqtoolError
from vqtool.grids import GridBatch, GridHeader, join_batches, read_grids
from vqtool.grids.found import find_grids
from vqtool.grids.listing import tell_empty
from vqtool.outputs import refuse_existing, side_file
from vqtool.priors import Prior, load_prior
from vqtool.tokenizers import Tokenizer, load_tokenizer, tokenizer_of


@dataclass(frozen=True)
class Transplant:
    """A prior that was carried over, as it was written, and what it was carried by."""

    prior: Prior
    links: Links
    how: str  # in words


def transplant(
    prior: str | Path,
    output: str | Path,
    *,
    tokenizer: str | Path,
    grids: str | Path | Sequence[str | Path] = (),
    old: str | Path | None = None,
    force: bool = False,
) -> Transplant:
    """Carry a prior over to the codes of another tokenizer, and write it.

    Args:
        prior: file or "builtin".
        output: file to write.
        tokenizer: whose codes the new prior is of.
        grids: token grids that say how often codes occur: of the prior's tokenizer, of the new one, or one file of
            each of the same images, whose cells then say which codes stand for which, also of another encoder.
        old: the tokenizer of the prior; None: the one that it names.
        force: overwrite what is there.

    Raises:
        MismatchError: the encoders differ and no grids in both codes are given, or grids are of other tokenizers.
        VqtoolError: files are missing or in the way, or the denoiser reads tokens as numbers.
    """
    refuse_existing(output, force=force, kind="an artifact")
    before = load_prior(prior)
    new = load_tokenizer(tokenizer)
    if new.identity == before.grid_spec.tokenizer_fingerprint:
        raise VqtoolError(f"{prior} is in the codes of {tokenizer} already")
    sources = [grids] if isinstance(grids, str | Path) else list(grids)
    counted = _read(sources, before, new)
    if len(counted) == 2:
        links, how = _link_pairs(before, new, counted, old)
    else:
        links, how = _link_nearest(tokenizer_of(before.grid_spec, prior, given=old, parameter="from"), new, counted)
    saved = carry_over(before, links, new.identity, str(tokenizer), output, force=force)
    return Transplant(saved, links, how)


@dataclass(frozen=True)
class Carrier:
    """A prior that is to be carried over to codes that are yet to be made, and the file that it will be in."""

    prior: Prior
    output: Path

    @classmethod
    def open(cls, prior: str | Path, tokenizer: str | Path, *, force: bool = False) -> "Carrier":
        """Load a prior before the tokenizer is made, to be written beside that one.

        Raises:
            VqtoolError: there is no such prior, it cannot be carried over, or the output exists.
        """
        output = beside(tokenizer, force=force)
        found = load_prior(prior)
        _check_tables(found.denoiser, found.denoiser_name)
        return cls(found, output)

    def carry(self, links: Links, parent: str, made: str, location: str | Path) -> Prior:
        """Write the prior in the codes of a tokenizer.

        Args:
            links: from the codes that it was made of.
            parent: identity of the tokenizer that it was made of.
            made: its own.
            location: of its file.

        Raises:
            MismatchError: the prior is of another tokenizer.
        """
        mine = self.prior.grid_spec.tokenizer_fingerprint
        if self.prior.num_parts > 1:
            raise VqtoolError(f"{self.prior.location} sees tokens in parts, which other codes do not have: train anew")
        if (mine or parent) != parent or links.num_old != self.prior.kernel.codebook_size:
            raise MismatchError(
                f"{self.prior.location} is of tokenizer {mine}, not of {parent}, whose codes were rebuilt: "
                f"{location} is written, the prior is not"
            )
        return carry_over(self.prior, links, made, str(location), self.output, force=True)


def beside(output: str | Path, *, force: bool = False) -> Path:
    """Where a prior goes that is carried over together with another output: x.prior.safetensors beside x.safetensors.

    Raises:
        VqtoolError: that exists and `force` is off, or the output is no file.
    """
    if str(output) == "-":
        raise VqtoolError("`prior` is written beside `output`, which is standard output: name a file")
    path = side_file(output, ".prior.safetensors")
    refuse_existing(path, force=force)
    return path


def carry_over(
    prior: Prior, links: Links, fingerprint: str, location: str, output: str | Path, *, force: bool = False
) -> Prior:
    """Write a prior in other codes.

    Args:
        prior: to be carried over.
        links: from its codes to the new ones.
        fingerprint: that the new codes' tokenizer is known by.
        location: where that is.
        output: file to write.
        force: overwrite what is there.

    Raises:
        VqtoolError: the file exists, or the denoiser reads tokens as numbers.
    """
    spec = replace(prior.grid_spec, tokenizer_fingerprint=fingerprint, tokenizer_location=location)
    record = history_record("codebook transplant", inputs={"prior": prior.fingerprint, "tokenizer": fingerprint})
    made = replace(
        prior,
        kernel=replace(prior.kernel, codebook_size=links.num_new),
        denoiser=transplant_denoiser(prior.denoiser, prior.denoiser_name, links),
        grid_spec=spec,
        parent=prior.fingerprint,
        location=str(output),
        history=(*prior.history, record),
        summary={},
    )
    return made.save(output, force=force)


@torch.no_grad()
def transplant_denoiser(denoiser: Denoiser, name: str, links: Links) -> Denoiser:
    """A denoiser, one of denoisers.NAMES, in other codes: see the formulas above.

    Raises:
        VqtoolError: it reads tokens as numbers.
    """
    _check_tables(denoiser, name)
    config: dict[str, Any] = vars(denoiser.config) | {"codebook_size": links.num_new}
    if config.get("num_inputs"):
        config["num_inputs"] += links.num_new - links.num_old
    if "head_bias" in config:
        config["head_bias"] = True  # frequencies of codes that merge go there
    with torch.random.fork_rng(devices=[]):
        made = denoisers.build(name, config)
    theirs = denoiser.state_dict()
    log_old, log_new = links.log_frequencies()
    for own, tensor in made.state_dict().items():
        rows = theirs.get(own)
        if own in ("head.bias", "head_bias"):
            bias = torch.zeros(links.num_old) if rows is None else rows.cpu()
            tokens = links.mean_rows(bias[: links.num_old].double() - log_old) + log_new
            tensor.copy_(torch.cat([tokens, bias[links.num_old :]]))
        elif rows is not None and own in denoiser.code_tables:
            tensor.copy_(torch.cat([links.mean_rows(rows[: links.num_old]), rows[links.num_old :]]))
        elif rows is not None:
            tensor.copy_(rows)
    return made.eval().requires_grad_(False)


def _check_tables(denoiser: Denoiser, name: str) -> None:
    if not denoiser.code_tables:
        raise VqtoolError(
            f"a prior of the denoiser {name} reads tokens as numbers and cannot be carried over to others"
        )


@dataclass(frozen=True)
class _Counted:
    """Grids of one of the two tokenizers."""

    name: str
    header: GridHeader
    batch: GridBatch


def _read(sources: Sequence[str | Path], prior: Prior, new: Tokenizer) -> dict[bool, _Counted]:
    """The grids by whether they are in the new codes."""
    found: dict[bool, _Counted] = {}
    parts: dict[bool, list[GridBatch]] = {True: [], False: []}
    sources, empty = find_grids(sources, once=True), []
    for source in sources:
        header, batch = read_grids(source)
        is_new = header.tokenizer_fingerprint == new.identity
        if not is_new and header.tokenizer_fingerprint != prior.grid_spec.tokenizer_fingerprint:
            raise MismatchError(
                f"{source} has tokens of tokenizer {header.tokenizer_fingerprint}, neither of the prior's "
                f"{prior.grid_spec.tokenizer_fingerprint} nor of {new.location}, {new.identity}"
            )
        if not len(batch):
            empty.append(source)
            continue
        first = found.setdefault(is_new, _Counted(str(source), header, batch))
        first.header.check_same(header, first.name, str(source))
        parts[is_new].append(batch)
    tell_empty(empty, len(sources))
    return {which: replace(each, batch=join_batches(each.header, parts[which])) for which, each in found.items()}


def _link_pairs(
    prior: Prior, new: Tokenizer, counted: dict[bool, _Counted], old: str | Path | None
) -> tuple[Links, str]:
    """The links of grids in both codes, cell by cell."""
    first, second = counted[False], counted[True]
    if first.header.grid_size != second.header.grid_size:
        raise MismatchError(f"{first.name} and {second.name} have grids of two sizes: encode the images at one")
    places = {name: place for place, name in enumerate(second.batch.ids)}
    rows = [(place, places[name]) for place, name in enumerate(first.batch.ids) if name in places]
    if not rows:
        raise MismatchError(f"{first.name} and {second.name} have no image in common: encode the same ones with both")
    mine, theirs = np.array(rows).T
    backward = None
    try:
        known = tokenizer_of(prior.grid_spec, prior.location, given=old, parameter="from")
        if same_latents(known, new):
            backward = nearest_codes(new, known)
    except VqtoolError:
        if old is not None:
            raise
    links = count_links(
        first.batch.tokens[mine], second.batch.tokens[theirs], backward, prior.kernel.codebook_size, new.codebook_size
    )
    return links, f"by the cells of {len(rows)} images in both codes"


def _link_nearest(old: Tokenizer, new: Tokenizer, counted: dict[bool, _Counted]) -> tuple[Links, str]:
    """The links of nearest codes, weighted by grids where there are any."""
    forward, backward = nearest_codes(old, new), nearest_codes(new, old)
    if not counted:
        return nearest_links(forward, backward), "by the nearest codes, all old ones counted alike"
    (is_new, grids), *_ = counted.items()
    tokens, how = grids.batch.tokens, f"by the nearest codes, counted in {grids.name}"
    if is_new:
        return count_links(backward[tokens], tokens, backward, old.codebook_size, new.codebook_size), how
    return nearest_links(forward, backward, count_tokens([tokens], old.codebook_size)), how
