"""Exact tokens or fast ones, how many are drawn at once, and what is done when memory runs out."""

import pytest
import torch
from support.exact import random_prior
from support.pretended_gpu import PretendedGpu

import vqtool
from vqtool import samplers
from vqtool.errors import VqtoolError, VqtoolWarning
from vqtool.samplers import Method, _machine, build_tiling
from vqtool.samplers._machine import Machine, MachineOptions, choose_threads


def watched(prior, *, most=10**9):
    """The prior, and how many grids each call of its denoiser had; more than `most` are too many for its memory."""
    sizes, forward = [], prior.denoiser.forward

    def watch(x_t, *rest):
        sizes.append(len(x_t))
        if len(x_t) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB.")
        return forward(x_t, *rest)

    prior.denoiser.forward = watch
    return prior, sizes


@pytest.mark.parametrize("sampler", samplers.NAMES)
def test_without_exactness_only_the_grids_that_are_drawn_pass_the_network(sampler):
    kernel = "absorbing" if sampler == "first-hitting" else "mask-replace"
    prior, sizes = watched(random_prior(kernel, "class"))
    condition = prior.conditioner.encode(["bee"])
    chosen = {"sampler": sampler, "condition": condition, "cfg_scale": 2.0, "seed": 1}
    expected = vqtool.sample(prior, 3, **chosen)
    assert set(sizes) == {256 // 24}
    sizes.clear()
    found = vqtool.sample(prior, 3, exact=False, **chosen)
    assert set(sizes) == {3}
    assert int((found != expected).flatten(1).any(1).sum()) <= 1  # rounding may turn a token


def test_without_exactness_a_batch_has_as_few_microbatches_as_fit():
    prior, sizes = watched(random_prior())
    vqtool.sample(prior, 45, exact=False, steps=2, batch_size=45)
    assert sizes == [10, 10, 10, 10, 5] * 2


def test_where_memory_runs_out_half_as_many_go_on_from_there():
    expected = vqtool.sample(random_prior(), 8, steps=3, exact=False, batch_size=8)
    prior, sizes = watched(random_prior(), most=3)
    with pytest.warns(VqtoolWarning, match="out of memory") as told:
        found = vqtool.sample(prior, 8, steps=3, exact=False, batch_size=8)
    assert [str(each.message).partition(": ")[2] for each in told] == ["going on with 4", "going on with 2"]
    assert sizes == [8, 4, *[2, 2, 2, 2] * 3]
    assert int((found != expected).flatten(1).any(1).sum()) <= 1


@pytest.mark.parametrize(("exact", "message"), [(True, "turn `exact` off"), (False, "make smaller grids")])
@pytest.mark.filterwarnings("ignore:out of memory")
def test_where_nothing_smaller_can_be_drawn_that_is_said(exact, message):
    prior, _ = watched(random_prior(), most=0)
    with pytest.raises(VqtoolError, match=f"out of memory with .* {message}"):
        vqtool.sample(prior, 2, exact=exact)


def test_other_errors_of_a_network_are_not_taken_for_a_lack_of_memory():
    prior = random_prior()
    prior.denoiser.head = torch.nn.Linear(3, 3)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        vqtool.sample(prior, 2, exact=False)


def test_what_a_machine_does_follows_from_what_is_asked_and_where():
    cpu, gpu = torch.device("cpu"), torch.device("cuda:0")

    def choose(device, **asked):
        machine = Machine.choose(MachineOptions(**asked), device)
        return machine.exact, machine.precision

    assert choose(cpu) == (True, "fp32")
    assert choose(cpu, exact=False) == (False, "fp32")
    assert choose(gpu) == (False, "bf16")
    assert choose(gpu, exact=True) == (True, "fp32")
    assert choose(gpu, exact=True, precision="bf16") == (True, "bf16")
    assert choose(gpu, precision="fp32") == (False, "fp32")
    assert Machine.choose(MachineOptions(precision="tf32"), gpu) == Machine(exact=False, precision="tf32")
    assert Machine.choose(MachineOptions(compile=True), gpu) == Machine(exact=False, precision="bf16", compile=True)
    for precision in ("bf16", "tf32"):
        with pytest.raises(VqtoolError, match=f"`precision` {precision} is for GPUs"):
            choose(cpu, precision=precision)
    with pytest.raises(VqtoolError, match="`compile` is for GPUs"):
        choose(cpu, compile=True)


@pytest.mark.filterwarnings("ignore:CUDA is not available")  # of autocast
def test_products_are_rounded_as_is_asked_where_the_network_computes_and_nowhere_else():
    def settings():
        return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32

    before, gpu = settings(), torch.device("cuda:0")
    for machine, expected in (
        (Machine(), ("highest", False)),
        (Machine(precision="tf32"), ("high", True)),
        (Machine(precision="bf16"), ("high", True)),
    ):
        with PretendedGpu(), machine.autocast(gpu):
            assert settings() == expected
        assert settings() == before
    with Machine().autocast(torch.device("cpu")):
        assert settings() == before


@pytest.mark.slow
def test_a_compiled_network_draws_the_same_and_the_prior_is_left_as_it_was(monkeypatch):
    compiled, real = [], torch.compile

    def trace(forward, *arguments, **more):
        compiled.append(forward)
        return real(forward, backend="eager")

    monkeypatch.setattr(torch, "compile", trace)
    prior = random_prior("mask-replace", "class")
    chosen = {"condition": prior.conditioner.encode(["bee"]), "cfg_scale": 2.0, "steps": 3}
    expected = vqtool.sample(prior, 3, **chosen)
    monkeypatch.setattr(Machine, "choose", lambda options, device: Machine(compile=True))
    assert torch.equal(vqtool.sample(prior, 3, **chosen), expected)
    assert len(compiled) == 1
    assert prior.denoiser._compiled_call_impl is None
    method = samplers.Method.build(prior, has_condition=True)
    assert method.record["compile"] is True


def test_codes_and_width_say_how_many_cells_a_gpu_takes_at_once(monkeypatch):
    monkeypatch.setattr(_machine, "find_free_memory", lambda device: 4_000_000)
    with PretendedGpu():
        small, large = (random_prior(codebook_size=size).to("cuda:0") for size in (11, 1011))
        assert Machine(exact=False).max_cells(small) == 1_000_000 // (11 * 24 + 64 * 96)
        assert Machine(exact=False).max_cells(large) == 1_000_000 // (1011 * 24 + 64 * 96)
        assert Machine(exact=True).max_cells(large) == _machine.GPU_CELLS
        monkeypatch.setattr(_machine, "find_free_memory", lambda device: 10**12)
        assert Machine(exact=False).max_cells(small) == _machine.MOST_GPU_CELLS


def test_a_history_says_if_tokens_depend_on_the_batch_size():
    def record(**asked):
        return samplers.Method.build(random_prior(), has_condition=False, **asked).record

    assert "exact" not in record()
    assert record(exact=False)["exact"] is False
    assert record(exact=False)["precision"] == "fp32"


@pytest.mark.parametrize(("second", "chosen"), [(0.5, 1), (2.0, 2)])
def test_one_thread_fewer_computes_where_that_is_faster(second, chosen):
    before, now, calls = torch.get_num_threads(), [0.0], []

    def clock():
        now[0] += second if torch.get_num_threads() == 1 else 1.0
        calls.append(torch.get_num_threads())
        return now[0]

    prior = random_prior()
    try:
        torch.set_num_threads(2)
        assert choose_threads(prior, build_tiling(prior, (4, 6)), clock) == chosen
        assert torch.get_num_threads() == chosen
    finally:
        torch.set_num_threads(before)
    assert calls == [2] * 4 + [1] * 4


def test_threads_that_were_chosen_stand_in_the_history():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert Method.build(random_prior(), has_condition=False, threads="auto").record["threads"] == 1
        assert "threads" not in Method.build(random_prior(), has_condition=False).record
    finally:
        torch.set_num_threads(before)
