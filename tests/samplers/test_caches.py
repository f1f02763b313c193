"""`cache`: cells that have not changed lend keys and values of an earlier call, sample by sample."""

from dataclasses import replace

import pytest
import torch
from support.exact import random_prior
from support.shaken import shaken
from support.walks import draw, kernel_for, some_known
from typer.testing import CliRunner

from vqtool import denoisers, samplers
from vqtool.cli.main import app
from vqtool.errors import VqtoolError
from vqtool.grids import read_grids
from vqtool.samplers import Method, Settings, build_tiling, estimates
from vqtool.samplers._caches import _Cached, choose_runtime, kept_bytes
from vqtool.samplers._machine import MachineOptions
from vqtool.samplers.drawing import sample_to_file

TOKENS, SIZE, STEPS = 11, (4, 6), 20
KINDS = ("transformer", "vq-diffusion", "halton-maskgit", "muse", "titok")


def network(kind, num_layers=2):
    """Of random weights, which are told no time where they can be: it changes keys and values of all cells."""
    more = {"time": "none"} if kind == "vq-diffusion" else {"skips": num_layers > 1} if kind == "titok" else {}
    return shaken(kind, codebook_size=TOKENS, grid_size=SIZE, num_layers=num_layers, **more)


def grids(num=3):
    noise = torch.Generator().manual_seed(4)
    x_t = torch.randint(TOKENS + 1, (num, *SIZE), generator=noise)
    cells = torch.rand(num, SIZE[0] * SIZE[1], generator=noise).argsort(1)[:, :5]
    return x_t, torch.full((num,), 7), cells


def cached(denoiser, due, asked=None, changes=3):
    made = _Cached(denoiser, 1)
    made.due, made.asked, made.changes = torch.tensor(due), torch.tensor(asked or [True] * len(due)), changes
    return made


@pytest.mark.parametrize("kind", KINDS)
def test_a_call_that_computes_all_is_the_network_itself(kind):
    denoiser = network(kind)
    x_t, t, cells = grids()
    other = cached(denoiser, [True] * 3)
    for _ in range(2):
        for wanted in (cells, None):
            assert torch.equal(other(x_t, t, None, wanted), denoiser(x_t, t, None, wanted))
        x_t = x_t.roll(1, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_cells_computed_alone_have_the_logits_that_they_have_among_all_where_nothing_else_has_changed(kind):
    """Oracle: the network. With one layer a cell's keys and values depend on nothing but its token."""
    x_t, t, cells = grids()
    for num_layers, num_changed in ((2, 0), (1, 3)):
        denoiser = network(kind, num_layers)
        other = cached(denoiser, [True] * 3)
        other(x_t, t, None, cells)
        other.due = torch.tensor([False] * 3)
        x_s = x_t.flatten(1).scatter(1, cells.flip(1)[:, :num_changed], 2).view_as(x_t)
        assert num_changed == 0 or not torch.equal(x_s, x_t)
        for wanted in (cells, cells.roll(1, 0)):
            found, expected = other(x_s, t, None, wanted), denoiser(x_s, t, None, wanted)
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
            assert num_changed == 0 or float((expected - denoiser(x_t, t, None, wanted)).abs().max()) > 1e-3


def test_cells_that_changed_and_found_no_room_are_computed_in_the_next_call():
    denoiser = network("transformer", 1)
    x_t, t, cells = grids()
    other = cached(denoiser, [True] * 3, changes=2)
    other(x_t, t, None, cells)
    other.due = torch.tensor([False] * 3)
    x_s = x_t.index_fill(2, torch.tensor([0]), 2)  # four cells
    expected = denoiser(x_s, t, None, cells)
    differences = [float((other(x_s, t, None, cells) - expected).abs().max()) for _ in range(3)]
    assert differences[0] > 1e-3
    assert differences[2] < 1e-5


def test_a_sample_that_goes_on_or_rests_is_not_touched_by_one_that_is_computed_whole():
    denoiser = network("transformer")
    x_t, t, cells = grids()
    x_s = x_t.roll(1, 1)

    def run(others):
        """The logits of the first sample, which goes on in the third call, and rests in the second."""
        walk = cached(denoiser, [True] * 3)
        walk(x_t, t, None, cells)
        walk.due, walk.asked = torch.tensor([False, others, not others]), torch.tensor([False, True, others])
        walk(x_s, t - 1, None, cells)
        walk.due, walk.asked = torch.tensor([False, others, False]), torch.tensor([True, True, others])
        return walk(x_s, t - 2, None, cells)[0]

    assert torch.equal(run(True), run(False))


@pytest.mark.parametrize("sampler", samplers.NAMES)
def test_kept_for_no_call_it_is_sampling_without(sampler):
    prior = random_prior(kernel_for(sampler), kind="class", scale=2.0)
    expected, found = (draw(prior, 5, steps=6, sampler=sampler, cfg_scale=3.0, **own) for own in ({}, {"cache": 1}))
    assert torch.equal(found, expected)


@pytest.mark.parametrize("sampler", ["ancestral", "first-hitting", "purity", "entropy", "remask", "gibbs"])
@pytest.mark.parametrize("known", [False, True])
def test_a_sample_is_the_same_in_every_batch(sampler, known):
    prior = random_prior(kernel_for(sampler), kind="class", scale=2.0)
    how = {"sampler": sampler, "cfg_scale": 3.0, "cache": 3}
    known = some_known(5)(prior) if known else None
    whole = draw(prior, 5, steps=8, known=known, **how)
    single = draw(prior, 5, steps=8, known=known, batch_size=1, **how)
    assert torch.equal(whole, single)
    if known is not None and sampler != "gibbs":
        assert torch.equal(whole[known < TOKENS], known[known < TOKENS])


@pytest.mark.parametrize(
    ("network", "how"),
    [
        ({}, {"cfg_refresh": 2, "cfg_scale": 3.0}),
        ({"num_parts": 2}, {"sampler": "purity"}),
        ({}, {"cfg_scale": 2.0, "guide_with": lambda prior: random_prior("absorbing", "class", scale=1.0)}),
        ({}, {"grid_size": (6, 9), "grid_mode": "stretch"}),
        ({}, {"exact": False, "batch_size": 3}),
    ],
)
def test_it_goes_with_all_else(network, how):
    prior = random_prior("absorbing", kind="class", scale=2.0, **network)
    tokens = draw(prior, 6, steps=8, cache=4, **how)
    assert int(tokens.min()) >= 0
    assert int(tokens.max()) < prior.codebook_size
    assert not torch.equal(tokens, draw(prior, 6, steps=8, **how))


def test_fewer_cells_pass_the_network():
    prior, rows = random_prior("absorbing", grid_size=(8, 8)), []
    prior.denoiser.blocks[0].register_forward_hook(lambda block, inputs, made: rows.append(made.shape[1]))
    draw(prior, 2, steps=8, sampler="fewer", cache=4)
    assert rows == [64, 16, 16, 16] * 2  # 8 that are asked for, and 8 that the call before has changed


def test_the_history_says_how_long_and_memory_what_is_kept(tmp_path):
    for cache in (1, 3):
        path = tmp_path / f"{cache}.h5"
        sample_to_file(random_prior(), path, 3, steps=4, **({} if cache == 1 else {"cache": cache}))
        header, _ = read_grids(path)
        assert header.history[-1].get("cache") == (None if cache == 1 else cache)
    prior = random_prior()
    tiling = build_tiling(prior, SIZE)
    assert kept_bytes(prior, Settings(), tiling) == 0
    kept = kept_bytes(prior, Settings(cache=2), tiling)
    assert kept == 2 * 2 * 64 * 24 * 4  # layers, keys and values, width, cells, bytes
    plain, more = (estimates.estimate_memory(prior, tiling, 10, each) for each in (0, kept))
    assert more - plain == 10 * kept


@pytest.mark.parametrize(
    ("prior", "how", "message"),
    [
        (lambda: random_prior("uniform"), {}, "`cache` 2: the kernel uniform may change every cell in every call"),
        (lambda: random_prior(latent_size=4), {}, "`cache` 2: a student draws another latent"),
        (random_prior, {"runtime": "onnx"}, "`cache` 2 is for `runtime` torch"),
        (random_prior, {"grid_size": (6, 9)}, "`cache` 2 is for grids that pass the network whole"),
        (random_prior, {"cache": 0}, "`cache` 0: must be 1 or more"),
        (random_prior, {"cache": -1}, "`cache` -1: must be 1 or more"),
    ],
)
def test_what_is_not_possible_is_refused_before_any_work(prior, how, message):
    with pytest.raises(VqtoolError, match=message):
        Method.build(prior(), has_condition=False, **{"cache": 2, **how})


def test_a_network_that_is_compiled_keeps_nothing():
    tiling = build_tiling(random_prior(), SIZE)
    assert choose_runtime(1, MachineOptions(compile=True), tiling) == "torch"
    with pytest.raises(VqtoolError, match="`cache` 2 is for networks that are not compiled"):
        choose_runtime(2, MachineOptions(compile=True), tiling)


@pytest.mark.parametrize("second", [False, True])
def test_a_denoiser_of_convolutions_is_refused(second):
    fields = {"codebook_size": TOKENS, "grid_size": (8, 8), "num_steps": STEPS, "width": 32, "mlp": "conv"}
    denoiser = denoisers.build("vq-diffusion", fields | {"num_layers": 1, "num_heads": 2})
    prior = random_prior(grid_size=(8, 8))
    odd = replace(prior, denoiser=denoiser, denoiser_name="vq-diffusion")
    how = {"guide_with": odd, "cfg_scale": 2.0} if second else {}
    with pytest.raises(VqtoolError, match="`cache` 2: the denoiser vq-diffusion has no keys and values"):
        Method.build(prior if second else odd, has_condition=False, cache=2, **how)


def test_the_command_says_in_one_line_what_is_wrong(tmp_path):
    found = CliRunner().invoke(app, ["sample", "-n", "1", "--cache", "0", "-o", str(tmp_path / "x.h5")])
    assert found.exit_code == 1
    assert "--cache 0: must be 1 or more" in found.output
