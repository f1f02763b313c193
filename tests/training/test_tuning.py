"""Priors that go on learning: what is predicted at first, what learns and what stays, and what is refused."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from support.exact import FINGERPRINT, grid_spec
from support.matrices import build_kernel
from support.text_priors import text_prior

from vqtool import conditions, denoisers
from vqtool.errors import MismatchError, VqtoolError
from vqtool.grids import GridBatch, GridHeader
from vqtool.priors import load_prior
from vqtool.training import building, tuning
from vqtool.training._run import Run
from vqtool.training.adapters import TuningOptions, merged
from vqtool.training.building import ConditionOptions, DenoiserOptions, DiffusionOptions, build_prior
from vqtool.training.clock import LoopConfig
from vqtool.training.objectives import PriorLoss, validate
from vqtool.training.presets import NO_PRESET, Preset
from vqtool.training.prior import fit

SIZE = (2, 3)
KINDS = [(name, kind) for name in denoisers.NAMES for kind in denoisers.module(name).CONDITIONS]
LABELS = {"none": None, "class": ["bee", "ant"] * 4}
CAPTIONS = ["a red bee", "an ant in a green field"] * 4


def header(size=SIZE, fingerprint=FINGERPRINT, codebook_size=7):
    return GridHeader(
        codebook_size, size, (8 * size[0], 8 * size[1]), fingerprint, "new.safetensors", "crop", ({"step": "encode"},)
    )


def batch(labels=None, captions=None, size=SIZE, num=8):
    tokens = np.random.default_rng(0).integers(0, 7, (num, *size))
    return GridBatch(tokens, [str(i) for i in range(num)], labels, captions)


def random_prior(name="transformer", kind="none", kernel="mask-replace", **changes):
    """A prior over 2x3 grids whose denoiser is all noise: everything in it counts."""
    conditioner = conditions.build(kind, LABELS["class"], CAPTIONS)
    num_codes = 7
    if name == "maskbit":  # its codes are bits
        num_codes, changes = 8, {"num_parts": 1, **changes}
    forward = build_kernel(kernel, codebook_size=num_codes, num_steps=20)
    prior = build_prior(
        forward, conditioner, grid_spec(SIZE), "tiny", seed=0, tokens=batch().tokens, denoiser=name, **changes
    )
    shake(prior.denoiser)
    return replace(prior, fingerprint="feed" * 4, location="old.safetensors", history=({"step": "train-prior"},))


def shake(network):
    noise = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=noise))
    network.eval().requires_grad_(False)


def go_on(old, grids=None, head=None, **given):
    names = ("condition", "vocabulary")
    condition = ConditionOptions(**{name: given[name] for name in names if name in given})
    tuned = TuningOptions(**{name: given[name] for name in vars(TuningOptions()) if name in given})
    return tuning.go_on(
        old, head or header(codebook_size=old.codebook_size), grids or batch(), condition, tuned, given=given, seed=0
    )


def predict(prior, texts, *, size=SIZE):
    """Logits of some noisy grids under conditions; `prior` stays what it is."""
    noise = torch.Generator().manual_seed(5)
    x_t = torch.randint(0, 8, (len(texts), *size), generator=noise)
    t = 1 + torch.arange(len(texts)) % prior.kernel.num_steps
    network = merged(prior.denoiser, prior.denoiser_name)
    condition = prior.read_texts(prior.conditioner.encode(texts))
    return network(x_t, t, condition)


def texts_of(kind):
    return {"none": [None] * 3, "class": ["ant", "bee", None], "caption": [CAPTIONS[0], CAPTIONS[1], None]}[kind]


def train(beginning, folder, *, num_steps=6, rate=1e-3, loss=None, report=None, resume=False, **changes):
    torch.set_num_threads(1)
    trained = fit(
        beginning.prior, beginning.data, loss=loss or PriorLoss(), run=LoopConfig(num_steps, 8, rate, **changes),
        state_path=folder / "state.safetensors", log_path=folder / "log.jsonl", settings=beginning.settings,
        report=report, resume=resume,
    )  # fmt: skip
    return replace(trained, denoiser=merged(trained.denoiser, trained.denoiser_name))


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_a_prior_that_begins_to_go_on_predicts_what_it_did(name, kind):
    old = random_prior(name, kind)
    begun = go_on(old, batch(LABELS["class"], CAPTIONS))
    kinds = denoisers.module(name).CONDITIONS
    gained = {"none": "caption" if "caption" in kinds else "class"}.get(kind, kind)
    assert begun.prior.conditioner.kind == gained
    assert begun.prior.parent == "feed" * 4
    before = predict(old, texts_of(kind))
    torch.testing.assert_close(predict(begun.prior, texts_of(gained)), before, rtol=1e-5, atol=1e-5)
    assert not torch.equal(before[0], before[1])


@pytest.mark.parametrize("name", [name for name, kind in KINDS if kind == "class"])
def test_labels_that_are_new_go_after_the_others_and_begin_as_the_null_condition(name):
    old = random_prior(name, "class")
    begun = go_on(old, batch(["Bee", "wasp", "cow", "ant"] * 2))
    assert begun.prior.conditioner.examples == ("ant", "bee", "cow", "wasp")
    assert begun.data.conditions.tolist() == [1, 3, 2, 0] * 2
    known = predict(begun.prior, ["ant", "bee", None])
    torch.testing.assert_close(known, predict(old, ["ant", "bee", None]), rtol=1e-5, atol=1e-5)
    new = predict(begun.prior, ["wasp", "cow", None])
    torch.testing.assert_close(new, predict(old, [None, None, None]), rtol=1e-5, atol=1e-5)
    assert any("2 new classes beside the 2 that it knows" in note for note in begun.notes)


def test_a_null_condition_that_is_the_mean_of_the_classes_stays_it():
    old = random_prior("vq-diffusion", "class")
    network = denoisers.build("vq-diffusion", vars(old.denoiser.config) | {"learned_null": False})
    shake(network)
    old = replace(old, denoiser=network)
    begun = go_on(old, batch(["ant", "wasp"] * 4))
    after = predict(begun.prior, ["ant", "bee", None, "wasp"])
    torch.testing.assert_close(after, predict(old, ["ant", "bee", None, None]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("vocabulary", conditions.VOCABULARIES)
def test_longer_captions_in_other_words_keep_the_vocabulary_and_what_is_known(vocabulary):
    old = random_prior("transformer", "none")
    old = go_on(old, batch(None, CAPTIONS), vocabulary=vocabulary).prior
    shake(old.denoiser)
    long = "a striped zebra 🦓 under an umbrella"
    begun = go_on(old, batch(None, [long, CAPTIONS[0]] * 4))
    new, was = begun.prior.conditioner, old.conditioner
    assert new.vocabulary.data == was.vocabulary.data
    assert new.max_length > was.max_length
    assert new.find_truncated([long]) == []
    assert set(new.examples) == {long, CAPTIONS[0]}
    texts = texts_of("caption")
    torch.testing.assert_close(predict(begun.prior, texts), predict(old, texts), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "name", [name for name, kind in KINDS if kind == "class" and denoisers.module(name).Network.stretches]
)
def test_on_a_larger_grid_a_denoiser_stretches_its_positions_as_sampling_does(name):
    old = random_prior(name, "class")
    begun = go_on(old, batch(LABELS["class"], size=(4, 5)), header((4, 5)))
    assert begun.prior.grid_spec.grid_size == begun.prior.denoiser.config.grid_size == (4, 5)
    assert begun.notes == [f"grids of 4x5: it knows those of {old.grid_spec.grid_size[0]}x{old.grid_spec.grid_size[1]}"]
    assert go_on(old, batch(LABELS["class"])).notes == []
    found = predict(begun.prior, texts_of("class"), size=(4, 5))
    expected = predict(old, texts_of("class"), size=(4, 5))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)  # positions are interpolated in float32


@pytest.mark.parametrize("name", ["unet", "guided-unet"])
def test_a_denoiser_without_positions_takes_grids_of_any_size(name):
    old = random_prior(name)
    begun = go_on(old, batch(size=(4, 5)), header((4, 5)))
    assert torch.equal(predict(begun.prior, [None] * 3, size=(4, 5)), predict(old, [None] * 3, size=(4, 5)))


@pytest.mark.parametrize(("name", "kind"), [*KINDS, ("text", "caption")])
def test_the_null_condition_alone_is_trained(tmp_path, name, kind):
    if kind == "none":
        with pytest.raises(VqtoolError, match="`train` null is for priors of classes or captions"):
            go_on(random_prior(name, kind), train="null")
        return
    old = random_prior(name, kind) if name != "text" else known_text_prior()
    texts = texts_of(kind)
    trained = train(go_on(old, batch(LABELS["class"], CAPTIONS), train="null"), tmp_path, rate=0.3)
    before, after = predict(old, texts), predict(trained, texts)
    torch.testing.assert_close(after[:2], before[:2], rtol=1e-6, atol=1e-6)
    assert float((after[2] - before[2]).abs().max()) > 1e-4
    same = [torch.equal(old.denoiser.state_dict()[n], tensor) for n, tensor in trained.denoiser.state_dict().items()]
    assert same.count(False) == len(trained.denoiser.null_weights)


def known_text_prior(*, learned_null=True):
    old = text_prior(learned_null=learned_null)
    kernel = build_kernel("mask-replace", codebook_size=7, num_steps=6)
    network = denoisers.build("vq-diffusion", vars(old.denoiser.config) | {"codebook_size": 7})
    shake(network)
    return replace(old, kernel=kernel, denoiser=network, fingerprint="feed" * 4, location="old.safetensors")


def test_a_null_text_that_is_not_learned_becomes_one_that_says_the_same():
    old = known_text_prior(learned_null=False)
    begun = go_on(old, train="null")
    assert not old.denoiser.has_learned_null
    assert begun.prior.denoiser.has_learned_null
    texts = texts_of("caption")
    torch.testing.assert_close(predict(begun.prior, texts), predict(old, texts), rtol=1e-6, atol=1e-6)


def test_an_imported_prior_that_reads_captions_by_a_text_encoder_goes_on_learning(tmp_path):
    old = known_text_prior()
    captions = ["a bee", "an ant"] * 4
    begun = go_on(old, batch(None, captions))
    assert torch.equal(begun.data.conditions, old.conditioner.encode(captions))
    before = float(validate(begun.prior.denoiser, begun.prior, begun.data, 0))
    trained = train(begun, tmp_path, num_steps=60, rate=1e-2)
    assert float(validate(trained.denoiser, trained, begun.data, 0)) < 0.9 * before
    assert trained.text_encoder is old.text_encoder


@pytest.mark.parametrize(
    ("part", "learned"),
    [("blocks", ("tokens", "rows", "columns", "time", "classes", "modulation", "head")), ("embedding,head", ())],
)
def test_parts_can_be_frozen(tmp_path, part, learned):
    old = random_prior("transformer", "class")
    trained = train(go_on(old, batch(LABELS["class"]), freeze=part), tmp_path)
    changed = [
        name
        for name, tensor in trained.denoiser.state_dict().items()
        if not torch.equal(tensor, old.denoiser.state_dict()[name])
    ]
    if learned:
        assert {name.split(".")[0] for name in changed} == set(learned)
    else:
        assert {name.split(".")[0] for name in changed} == {"time", "classes", "blocks"}


def test_adapters_begin_as_nothing_and_end_as_part_of_their_weights(tmp_path):
    old = random_prior("transformer", "caption")
    begun = go_on(old, batch(None, CAPTIONS), lora=3, lora_alpha=6.0, lora_targets="attention")
    texts = texts_of("caption")
    assert torch.equal(predict(begun.prior, texts), predict(old, texts))
    trained = train(begun, tmp_path)
    assert trained.denoiser.state_dict().keys() == old.denoiser.state_dict().keys()
    for name, tensor in trained.denoiser.state_dict().items():
        before = old.denoiser.state_dict()[name]
        adapted = name.endswith(".weight") and (".attention." in name or ".cross." in name) and "norm" not in name
        assert torch.equal(tensor, before) != adapted, name
        if adapted:
            assert int(torch.linalg.matrix_rank((tensor - before).double(), rtol=1e-4)) == 3


def test_adapters_compute_w_plus_alpha_over_rank_times_up_times_down():
    for name in ("transformer", "vq-diffusion", "unet"):
        begun = go_on(random_prior(name), lora=2, lora_alpha=5.0, lora_targets="attention")
        adapted = [part for part in begun.prior.denoiser.modules() if hasattr(part, "parametrizations")]
        assert adapted
        for part in adapted:
            stack = part.parametrizations.weight
            torch.nn.init.normal_(stack[0].up)
            expected = stack.original + 2.5 * (stack[0].up @ stack[0].down).view_as(stack.original)
            torch.testing.assert_close(part.weight, expected)


def test_new_classes_learn_whole_beside_adapters(tmp_path):
    old = random_prior("transformer", "class")
    trained = train(go_on(old, batch(["ant", "wasp"] * 4), lora=2), tmp_path)
    rows = trained.denoiser.classes.weight
    assert not torch.equal(rows[2], old.denoiser.classes.weight[2])  # the wasp began as null
    assert torch.equal(trained.denoiser.head.weight, old.denoiser.head.weight)


@pytest.mark.parametrize("options", [{}, {"lora": 2}, {"train": "null"}, {"freeze": "blocks"}], ids=str)
def test_a_run_that_is_stopped_and_resumed_leaves_what_one_that_was_not_leaves(tmp_path, options):
    old, grids = random_prior("transformer", "class"), batch(LABELS["class"])

    def stop(step, metrics):
        if step == 3:
            raise RuntimeError

    for name in ("whole", "stopped"):
        (tmp_path / name).mkdir()
    whole = train(go_on(old, grids, **options), tmp_path / "whole", save_seconds=0.0)
    with pytest.raises(RuntimeError):
        train(go_on(old, grids, **options), tmp_path / "stopped", save_seconds=0.0, report=stop)
    resumed = train(go_on(old, grids, **options), tmp_path / "stopped", resume=True)
    for name, tensor in whole.denoiser.state_dict().items():
        assert torch.equal(resumed.denoiser.state_dict()[name], tensor)
    with pytest.raises(MismatchError, match="`from_` was feedfeedfeedfeed when the run began, now it is beefbeefbeef"):
        train(go_on(replace(old, fingerprint="beef" * 4), grids, **options), tmp_path / "stopped", resume=True)


def test_the_average_of_the_weights_begins_with_those_that_were_given():
    model = torch.nn.Linear(1, 1, bias=False)
    for rises, kept in ((True, 0.1), (False, 0.75)):
        run = Run(model, LoopConfig(9, 1, ema_decay=0.75, ema_rises=rises))
        before = run.ema.weight.clone()
        run.take_step(lambda network, *rest: (network(torch.ones(1, 1)).sum(), {}), 1)
        torch.testing.assert_close(run.ema.weight, kept * before + (1 - kept) * run.bare.weight)


def test_another_kernel_is_taken_where_it_is_named_and_said():
    begun = go_on(random_prior(), kernel="absorbing")
    assert (begun.prior.kernel.name, begun.prior.kernel.num_steps) == ("absorbing", 20)
    assert any(note.startswith("kernel absorbing with schedule ") for note in begun.notes)
    old = random_prior()
    assert go_on(old).prior.kernel is old.kernel
    assert go_on(old, kernel="mask-replace").prior.kernel is old.kernel
    old = replace(old, sampling={"sampler": "purity"})  # settings of sampling suit the kernel that they were found for
    assert go_on(old).prior.sampling == old.sampling
    assert go_on(old, kernel="uniform").prior.sampling == {}


def test_dropout_may_be_another_where_the_denoiser_has_any():
    begun = go_on(random_prior(), dropout=0.25)
    assert begun.prior.denoiser.config.dropout == 0.25
    assert go_on(begun.prior).prior.denoiser.config.dropout == 0.25
    with pytest.raises(VqtoolError, match=r"`dropout` 0\.25: the denoiser unet has none"):
        go_on(random_prior("unet"), dropout=0.25)


def test_the_parent_is_kept_in_the_file(tmp_path):
    prior = replace(random_prior(), parent="feed" * 4)
    prior.save(tmp_path / "p.safetensors")
    assert load_prior(tmp_path / "p.safetensors").parent == "feed" * 4


def test_grids_without_captions_are_learned_as_what_a_text_prior_draws_where_none_is_given():
    old = random_prior(kind="caption")
    begun = go_on(old)
    told = ["the grids have no captions: the prior learns to draw such pictures where none is given"]
    assert begun.notes == told
    classes = "classes are left out, which a new prior can learn: old.safetensors takes captions"
    assert go_on(random_prior(kind="caption"), batch(["bee", ""] * 4)).notes == [*told, classes]
    assert begun.prior.conditioner.examples == ()  # so that sampling gives none
    assert torch.equal(begun.data.conditions, old.conditioner.null(len(begun.data)))
    assert torch.equal(predict(begun.prior, CAPTIONS[:2]), predict(old, CAPTIONS[:2]))


@pytest.mark.parametrize(
    ("kind", "options", "grids", "head", "message"),
    [
        ("none", {}, {}, {"fingerprint": "0" * 16}, "`vqtool codebook transplant old.safetensors -t new.safetensors`"),
        ("none", {}, {}, {"codebook_size": 9}, r"\(9 codes\), but old.safetensors models those of"),
        ("class", {"condition": "caption"}, {}, {}, "`condition` caption: old.safetensors is asked for by class: "),
        ("caption", {"condition": "class"}, {}, {}, "`condition` class: old.safetensors is asked for by caption: "),
        ("caption", {"condition": "caption"}, {}, {}, "is asked for by captions, but the grids have none"),
        ("class", {}, {"captions": CAPTIONS}, {}, "is asked for by classes, but the grids have no labels"),
        ("caption", {"vocabulary": "bpe"}, {"captions": CAPTIONS}, {}, "`vocabulary` is that of the prior to begin"),
        ("none", {"freeze": "text"}, {}, {}, "`freeze` text: this prior's denoiser has no such part"),
        ("none", {"freeze": "hat"}, {}, {}, "`freeze` hat: unknown; known are embedding, time, text, blocks, head"),
        ("none", {"freeze": "embedding,time,blocks,head"}, {}, {}, "nothing is left to learn"),
        ("none", {"lora": 0}, {}, {}, "`lora` 0: must be 1 or more"),
        ("none", {"lora": 200}, {}, {}, r"`lora` 200: above the width of blocks.0.attention.qkv, 128: a rank well"),
        ("none", {"lora": 2, "lora_targets": "head"}, {}, {}, "`lora_targets` head: unknown; known are attention, mlp"),
        ("none", {"lora": 2, "train": "null"}, {}, {}, "`train` and `lora` say different things"),
        ("none", {"lora_alpha": 2.0}, {}, {}, "`lora_alpha` is about adapters: give their rank with `lora`"),
    ],
)
def test_what_cannot_go_on_is_refused(kind, options, grids, head, message):
    with pytest.raises(VqtoolError, match=message):
        go_on(random_prior(kind=kind), batch(**grids), header(**head), **options)


@pytest.mark.parametrize("name", tuning.FIXED)
def test_what_the_prior_fixes_cannot_be_chosen(name):
    with pytest.raises(VqtoolError, match=f"`{name}` is that of the prior to begin with, old.safetensors: leave it"):
        go_on(random_prior(), **{name: "other"})


def test_positions_that_cannot_be_stretched_and_masks_never_seen_are_refused():
    with pytest.raises(MismatchError, match="the grids are 4x5, but this prior's denoiser, vq-diffusion, knows"):
        go_on(random_prior("vq-diffusion"), batch(size=(4, 5)), header((4, 5)))
    old = random_prior("unet", kernel="uniform")
    network = denoisers.build("unet", vars(old.denoiser.config) | {"num_inputs": 7})
    with pytest.raises(VqtoolError, match=r"`kernel` absorbing: the denoiser of old.safetensors has never seen a mask"):
        go_on(replace(old, denoiser=network), kernel="absorbing")


def test_learning_rates_are_those_of_the_nearest_size_and_lower_where_all_learns():
    network = random_prior().denoiser
    assert tuning.choose_tuning_rate("transformer", network, small=True) == 1.5e-3
    assert tuning.choose_tuning_rate("transformer", network, small=False) == pytest.approx(4.5e-4)


@pytest.fixture
def known(builtin):
    """A built-in prior of captions, and grids of its tokenizer and size."""
    random_prior("transformer", "caption").save(builtin / "prior.safetensors")
    return header()


def test_few_grids_that_the_built_in_prior_knows_go_on_with_it(known, monkeypatch):
    told = []
    begins = partial(tuning.begins_with_builtin, known, given={}, notify=told.append)
    assert all(map(begins, (batch(), batch(captions=CAPTIONS), batch(["a"] * 8), batch(list("abcdefgh")))))
    assert all("goes on learning" in line and "`from_` none begins a new one" in line for line in told)
    for given in ({"condition": "caption"}, {"dropout": 0.1, "lora": 2}, {"condition": "auto", "kernel": None}):
        assert begins(batch(captions=CAPTIONS), given=given)
    told.clear()
    for given in ({"size": "tiny"}, {"kernel": "absorbing"}, {"condition": "none"}, {"vocabulary_size": 300}):
        assert not begins(batch(captions=CAPTIONS), given=given)
    monkeypatch.setattr(tuning, "FEW", 8)
    assert not begins(batch())
    assert told == ["the built-in prior knows these tokens: `from_` builtin would be quicker"] * 5


def test_classes_that_the_built_in_prior_does_not_know_make_a_new_one(known):
    told = []
    begins = partial(tuning.begins_with_builtin, known, given={}, notify=told.append)
    assert not begins(batch(["a", "b"] * 4))
    assert not begins(batch(list("abcdefgh")), given={"condition": "class"})
    assert begins(batch(["a", "b"] * 4, CAPTIONS))
    assert (
        told[:2] == ["the built-in prior knows these tokens, but no classes: `from_` builtin learns without them"] * 2
    )


def test_other_grids_do_not_begin_with_the_built_in_prior(known):
    told = []
    begins = partial(tuning.begins_with_builtin, batch=batch(), given={}, notify=told.append)
    assert not begins(header(fingerprint="beef" * 4))
    assert told == []
    assert not begins(header(size=(3, 4)))
    assert "would be quicker" in told[0]


def test_a_run_goes_on_with_what_it_began_with(known, monkeypatch):
    begins = partial(tuning.begins_with_builtin, batch=batch(), given={})
    assert not begins(known, begun={"kernel": "absorbing"})
    monkeypatch.setattr(tuning, "FEW", 8)
    assert begins(known, begun={"from_": "feed" * 4})
    assert not begins(header(fingerprint="beef" * 4), begun={"from_": "feed" * 4})


def begin(grids, *, denoiser="transformer", preset=NO_PRESET, begun=None, **given):
    network = DenoiserOptions(denoiser=denoiser, size="tiny", **given).as_begun(begun)
    return building.begin(header(), grids, DiffusionOptions(), network, ConditionOptions(), seed=0, preset=preset)


def test_a_new_prior_of_few_grids_has_dropout_unless_it_is_said_or_the_run_had_none(monkeypatch):
    few = begin(batch())
    assert few.prior.denoiser.config.dropout == 0.2
    assert few.notes == ["dropout 0.2, since fewer than 2,000 grids are learned by heart soon (`dropout` 0: none)"]
    for how in ({"dropout": 0.0}, {"begun": {"size": {"width": 3}}}, {"preset": Preset("published")}):
        plain = begin(batch(), **how)
        assert (plain.prior.denoiser.config.dropout, plain.notes) == (0.0, [])
    assert begin(batch(), begun={"size": {"dropout": 0.2}}).prior.denoiser.config.dropout == 0.2
    assert begin(batch(), dropout=0.4, begun={"size": {}}).prior.denoiser.config.dropout == 0.4
    assert not hasattr(begin(batch(), denoiser="unet").prior.denoiser.config, "dropout")
    monkeypatch.setattr(building, "FEW", 8)
    assert begin(batch()).prior.denoiser.config.dropout == 0
