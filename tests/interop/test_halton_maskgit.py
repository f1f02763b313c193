"""Halton-MaskGIT's priors: the numbers, walks and schedules of its own code, and what its files do not say."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from vqtool import interop
from vqtool.diffusion.guidance import guide, temper
from vqtool.errors import FormatError
from vqtool.interop import Options, Source
from vqtool.priors import load_prior
from vqtool.samplers import Settings, Walk, halton, sample
from vqtool.samplers._settings import interpolate
from vqtool.samplers._unmask import find_largest, one_first

GOLDEN = Path(__file__).parents[1] / "golden"
FILE = GOLDEN / "hm-prior" / "ImageNet_96_tiny.pth"
TABLES = load_file(GOLDEN / "hm-schedules" / "io.safetensors")


@pytest.fixture(scope="module")
def imported():
    return interop.load(interop.read_source(FILE), Options(num_heads=3))


@pytest.fixture(scope="module")
def io():
    return load_file(GOLDEN / "hm-prior" / "io.safetensors")


def outputs(imported, io, labels):
    """All K + 1 logits, (B, L, K + 1)."""
    return imported.prior.denoiser.predict_all(io["tokens"], labels).flatten(1, 2)


def assert_close(found, expected, tolerance):
    assert float((found - expected).abs().max()) <= tolerance


def test_the_network_gives_the_numbers_of_the_original(imported, io):
    assert interop.recognise(interop.read_source(FILE)) == "halton-maskgit"
    null = torch.full_like(io["labels"], 1000)
    conditional, unconditional = outputs(imported, io, io["labels"]), outputs(imported, io, null)
    assert_close(conditional, io["logits"], 1e-4)
    assert_close(unconditional, io["logits_null"], 5e-5)
    assert_close(outputs(imported, io, torch.where(io["drop"].bool(), 1000, io["labels"])), io["logits_drop"], 1e-4)
    loss = F.cross_entropy(io["logits_drop"].mT, io["x0"].flatten(1), reduction="none")
    assert_close(loss, io["loss_per_token"].flatten(1), 1e-4)


def test_laws_of_tokens_are_those_of_the_original_but_for_the_mask(imported, io):
    prior, t = imported.prior, torch.tensor([1, 5, 9, 20, 36])
    condition = prior.conditioner.encode([str(int(label)) for label in io["labels"]])
    assert torch.equal(condition, io["labels"])
    expected = io["logits"][..., :-1].log_softmax(-1)
    assert_close(prior.log_x0(io["tokens"], t, condition).flatten(1, 2), expected, 2e-4)
    guided = guide(expected, io["logits_null"][..., :-1].log_softmax(-1), 2.5)
    assert_close(guided, io["logits_cfg"][..., :-1].log_softmax(-1), 2e-4)
    cells = torch.tensor([[0, 35], [7, 7], [3, 2], [1, 30], [5, 6]])
    at_cells = prior.log_x0(io["tokens"], t, condition, cells)
    assert_close(at_cells, expected.gather(1, cells[..., None].expand(-1, -1, 48)), 2e-4)


@pytest.mark.parametrize(
    "mutate",
    [
        lambda state: state.update({"registers": torch.zeros_like(state["registers"])}),
        lambda state: state.update({"classes.weight": state["classes.weight"].roll(1, 0)}),
        lambda state: state.update(
            {"positions": state["positions"].view(6, 6, -1).mT.transpose(1, 2).flip(0).reshape(36, -1)}
        ),
        lambda state: [
            state.update(
                {
                    f"blocks.{n}.mlp.{a}.weight": state[f"blocks.{n}.mlp.{b}.weight"]
                    for a, b in (("w1", "w3"), ("w3", "w1"))
                }
            )
            for n in (0, 1)
        ],
        lambda state: state.update(
            {"modulation.weight": state["modulation.weight"].view(2, 48, 48).flip(0).reshape(96, 48)}
        ),
    ],
    ids=["no register", "labels + 1", "other positions", "w1 and w3", "shift and scale"],
)
def test_networks_that_differ_a_little_are_told_from_the_original(imported, io, mutate):
    network = type(imported.prior.denoiser)(imported.prior.denoiser.config).eval().requires_grad_(False)
    state = dict(imported.prior.denoiser.state_dict())
    mutate(state)
    network.load_state_dict(state)
    logits = network.predict_all(io["tokens"], io["labels"]).flatten(1, 2)
    assert float((logits - io["logits"]).abs().max()) > 1e-3


@pytest.mark.parametrize("heads", [1, 2, 4, 6])
def test_another_number_of_heads_gives_other_numbers(io, heads):
    other = interop.load(interop.read_source(FILE), Options(num_heads=heads))
    assert float((outputs(other, io, io["labels"]) - io["logits"]).abs().max()) > 1e-3


@pytest.mark.parametrize("epsilon", [1e-6, 1e-8])
def test_another_epsilon_gives_other_numbers(imported, io, epsilon, monkeypatch):
    rms = F.rms_norm
    monkeypatch.setattr(F, "rms_norm", lambda x, shape, weight=None, eps=None: rms(x, shape, weight, epsilon))
    assert float((outputs(imported, io, io["labels"]) - io["logits"]).abs().max()) > 1e-4


class Replayed(Walk):
    """A batch whose tokens are drawn with the noise of a golden walk; it also draws the mask, as the original does."""

    def start_replay(self, noise):
        self.replay, self.seen, self.drawn = noise, [], []
        return self

    def draw_x0(self, x_t, t, noise, cells=None, *, active=None):
        step = len(self.seen)
        self.seen.append(x_t)
        settings, prior = self._settings, self._prior
        null = torch.full((len(x_t),), 1000)
        logits = prior.denoiser.predict_all(x_t, self.labels).flatten(1, 2)
        if settings.guided:
            logits = guide(
                logits.log_softmax(-1),
                prior.denoiser.predict_all(x_t, null).flatten(1, 2).log_softmax(-1),
                settings.cfg_scale,
            )
        temperature = self._temperature(t)
        row = float(temperature if isinstance(temperature, float) else temperature[0])
        log_p = temper(logits.log_softmax(-1), row)
        tokens = log_p.argmax(-1) if self.replay is None else (log_p + self.replay[step]).argmax(-1)
        self.drawn.append(tokens.view_as(x_t))
        return tokens.gather(1, cells)


def replay(prior, io, noise, settings, steps):
    labels = io["sample_labels"]
    walk = Replayed(prior, range(2), labels, seed=0, grid_size=(6, 6), settings=settings)
    walk.labels = labels
    walk.start_replay(noise)
    return halton.sample(walk, halton.Options(steps=steps)), walk


def test_a_greedy_walk_is_that_of_the_original_token_for_token(imported, io):
    final, walk = replay(imported.prior, io, None, Settings(), 5)
    assert torch.equal(torch.stack(walk.seen), io["greedy_seen"])
    assert torch.equal(final, io["greedy_final"])
    condition = io["sample_labels"]
    chosen = {"sampler": "halton", "steps": 5, "cfg_scale": 1.0, "temperature": 1.0, "top_k": 1}
    assert torch.equal(sample(imported.prior, 2, condition=condition, **chosen), io["greedy_final"])


def test_a_guided_walk_with_rising_temperatures_is_that_of_the_original_token_for_token(imported, io):
    temperatures = tuple((1 / io["sample_temperature"]).tolist())
    final, walk = replay(imported.prior, io, io["sample_gumbel"], Settings(cfg_scale=3.0, temperature=temperatures), 7)
    for row in range(2):
        drew_mask = _drew_mask(io, row)
        last = 7 if drew_mask is None else drew_mask + 1
        for step in range(last):
            assert torch.equal(walk.seen[step][row], io["sample_seen"][step, row])
            assert torch.equal(walk.drawn[step][row], io["sample_drawn"][step, row])
        if drew_mask is None:
            assert torch.equal(final[row], io["sample_final"][row])
    assert [_drew_mask(io, row) for row in range(2)].count(None) == 1


def _drew_mask(io, row):
    """The step in which a revealed cell of the golden walk got the mask; None if there is none."""
    order, known = halton.find_order(6, 6), 0
    for step, count in enumerate(io["sample_revealed"].tolist()):
        cells = order[known : known + count]
        if (io["sample_drawn"][step, row].flatten()[cells] == 48).any():
            return step
        known += count
    return None


@pytest.mark.parametrize("side", [6, 12, 24])
def test_orders_are_those_of_the_original(side):
    expected = TABLES[f"order_{side}"]
    assert torch.equal(halton.find_order(side, side), expected[:, 0] * side + expected[:, 1])


@pytest.mark.parametrize(("side", "steps"), [(24, 32), (16, 16), (12, 64), (6, 6), (4, 20)])
def test_as_many_cells_are_revealed_in_each_step_as_in_the_original(side, steps):
    left = torch.stack([table[-1] for table in halton.arccos(side * side, steps)])
    found = -torch.diff(left, prepend=torch.tensor([side * side]))
    gap = (found.cumsum(0) - TABLES[f"revealed_{side}x{side}_S{steps}"].cumsum(0)).abs()
    half = torch.arange(1, steps + 1) * 2 == steps
    assert bool((gap[~half] == 0).all())
    assert bool((gap[half] <= 1).all())  # where the share is a whole number but for rounding


@pytest.mark.parametrize(
    ("name", "ends", "power", "warm"),
    [
        ("1_1.2_pow1_S32_warm0", (1, 1.2), 1, 0),
        ("1_1_pow1_S32_warm1", (1, 1), 1, 1),
        ("0.8_1.4_pow2_S12_warm3", (0.8, 1.4), 2, 3),
    ],
)
def test_a_list_of_temperatures_says_every_ramp_of_the_original(name, ends, power, warm):
    expected = TABLES[f"temperature_{name}"].double()
    steps = len(expected)
    ramp = torch.linspace(*ends, steps, dtype=torch.float64) ** power
    ramp[:warm] /= 2
    shares = torch.arange(steps, dtype=torch.float64) / (steps - 1)
    assert_close(1 / interpolate((1 / ramp).tolist(), shares), expected, 1e-6)


@pytest.mark.parametrize(("side", "steps"), [(16, 12), (24, 32)])
def test_the_confidence_sampler_unmasks_as_many_cells_as_the_original(side, steps):
    left = torch.stack([table[-1] for table in one_first(side * side, steps)])
    expected = torch.maximum(TABLES[f"confidence_arccos_{side}x{side}_S{steps}"], torch.arange(1, steps + 1))
    assert torch.equal(side * side - left, expected)


def test_the_confidence_sampler_chooses_the_cells_of_the_original_with_its_noise(imported, io):
    """Step by step from what the original saw: guidance, token draws, ranks and counts; known cells are kept here."""
    prior, labels, steps = imported.prior, io["sample_labels"], len(io["conf_seen"])
    plan = [table[-1] for table in one_first(36, steps)]
    for step in range(steps - 1):
        seen = io["conf_seen"][step]
        parts = [prior.denoiser.predict_all(seen, each).flatten(1, 2) for each in (labels, torch.full((2,), 1000))]
        scale = 1 + 3.0 * step / (steps - 1)
        log_p = guide(*(part.log_softmax(-1) for part in parts), scale)
        tokens = (log_p + io["conf_gumbel"][step]).argmax(-1)
        assert torch.equal(tokens.view(2, 6, 6), io["conf_drawn"][step])
        confidence = log_p.gather(-1, tokens[..., None])[..., 0].double()
        noise = 4.5 * (1 - step / (steps - 1)) * io["conf_rank_gumbel"][step].double()
        masked = (seen == 48).flatten(1)
        for row in range(2):
            count = int(masked[row].sum() - plan[step])
            chosen = find_largest((confidence + noise)[row : row + 1], masked[row : row + 1], count)[0]
            after = io["conf_seen"][step + 1][row].flatten()
            assert torch.equal(after[chosen], tokens[row, chosen])
            left = masked[row].clone()
            left[chosen] = False
            assert bool((after[left] == 48).all())


# Settings, names, and files that are not what they should be


def test_the_published_way_of_sampling_travels_with_the_prior(imported, tmp_path):
    published = {"sampler": "halton", "steps": 32, "cfg_scale": 2.0, "temperature": [2.0, *[1.0] * 31]}
    assert imported.prior.sampling == published
    imported.prior.save(tmp_path / "p.safetensors")
    prior = load_prior(tmp_path / "p.safetensors")
    assert prior.sampling == published
    condition = prior.conditioner.encode(["goldfish", "daisy"])
    assert condition.tolist() == [1, 985]
    said = {**published, "temperature": (2.0, *[1.0] * 31)}
    assert torch.equal(sample(prior, 2, condition=condition), sample(prior, 2, condition=condition, **said))
    assert torch.equal(
        sample(prior, 2, condition=condition, cfg_scale=1.0, steps=4, temperature=1.0),
        sample(prior, 2, condition=condition, cfg_scale=1.0, sampler="halton", steps=4, temperature=1.0),
    )


def test_a_prior_saved_and_loaded_is_the_same(imported, io, tmp_path):
    imported.prior.save(tmp_path / "p.safetensors")
    again = load_prior(tmp_path / "p.safetensors")
    t = torch.full((5,), 3)
    assert torch.equal(
        again.log_x0(io["tokens"], t, io["labels"]), imported.prior.log_x0(io["tokens"], t, io["labels"])
    )


def changed(change, config=None):
    content = interop.read_source(FILE).content
    state = dict(content["model_state_dict"])
    change(state)
    return Source(FILE, {**content, "model_state_dict": state}, config)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_names_of_several_gpus_and_of_compiled_networks_are_read(prefix, imported, io):
    def rename(state):
        for name in list(state):
            state[prefix + name] = state.pop(name)

    found = interop.load(changed(rename), Options(num_heads=3))
    assert torch.equal(outputs(found, io, io["labels"]), outputs(imported, io, io["labels"]))


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda state: None, {}, r"48 is not the width of a published model \(384, 512.*`num_heads`"),
        (lambda state: None, {"num_heads": 49}, "cannot be shared by 49 heads"),
        (lambda state: None, {"num_heads": 3, "grid_size": (5, 7)}, "has 36 positions, a grid of 5x7 cells"),
        (lambda state: state.pop("head.bias"), {"num_heads": 3}, r"1 tensors are missing: head\.bias"),
        (
            lambda state: state.pop("transformer.layers.1.attn.wk.weight"),
            {"num_heads": 3},
            r"missing: transformer\.layers\.1\.attn\.wk\.weight",
        ),
        (lambda state: state.update({"in_proj.weight": torch.zeros(1)}), {"num_heads": 3}, "on patches of cells"),
        (
            lambda state: state.update({"more.weight": torch.zeros(1)}),
            {"num_heads": 3},
            r"not understood: more\.weight",
        ),
        (lambda state: state.update({"head.weight": torch.zeros(49, 48)}), {"num_heads": 3}, "is not tok_emb.weight"),
        (
            lambda state: state.update({"last_norm.mlp.1.bias": torch.full((96,), torch.nan)}),
            {"num_heads": 3},
            r"last_norm\.mlp\.1\.bias holds numbers that are not finite",
        ),
    ],
)
def test_what_the_file_lacks_or_does_not_say_is_one_clear_error(change, options, message):
    with pytest.raises(FormatError, match=message):
        interop.load(changed(change), Options(**options))


def test_settings_of_another_model_are_refused():
    for name, value, own in (("codebook_size", 16384, 48), ("register", 4, 1), ("nb_class", 10, 1000)):
        with pytest.raises(FormatError, match=f"{name} is {value} in its settings but {own} by its weights"):
            interop.load(changed(lambda state: None, {name: value}), Options(num_heads=3))
    with pytest.raises(FormatError, match="img_size / f_factor is 16 in its settings but 6"):
        interop.load(changed(lambda state: None, {"img_size": 256, "f_factor": 16}), Options(num_heads=3))


def test_editing_keeps_the_tokens_that_are_given(imported):
    generator = torch.Generator().manual_seed(0)
    tokens, known = torch.randint(48, (3, 6, 6), generator=generator), torch.rand(3, 6, 6, generator=generator) < 0.6
    condition = imported.prior.conditioner.encode(["tench", None, "daisy"])
    for sampler in (None, "confidence", "ancestral"):
        chosen = {} if sampler is None else {"sampler": sampler}
        grids = sample(imported.prior, 3, known=torch.where(known, tokens, 48), condition=condition, **chosen)
        assert torch.equal(grids[known], tokens[known])
        assert 0 <= int(grids.min()) <= int(grids.max()) < 48
