"""The two UNets of VQ-DDM: what a fresh one says, what it sees, and grids of any size. Their numbers: test_interop."""

import json
from dataclasses import asdict

import pytest
import torch
from support.matrices import build_kernel

from vqtool import denoisers
from vqtool.denoisers import guided_unet, unet
from vqtool.diffusion.losses import variational_bound
from vqtool.diffusion.parameterisations import log_probabilities
from vqtool.registry import count_parameters

K = 13
NAMES = ("unet", "guided-unet")
MULTS = {"dim_mults": (1, 2, 3)}


def config(name, **changes):
    fields = {"codebook_size": K, "grid_size": (3, 5), "num_steps": 20, "dim": 32, "dim_mults": (1, 2)}
    if name == "guided-unet":
        fields |= {"num_blocks": 1, "num_heads": 2, "attention_levels": (1,)}
    return denoisers.module(name).Config(**{**fields, **changes})


def shaken(name, **changes):
    """A network whose gains and head are open."""
    torch.manual_seed(0)
    network = denoisers.module(name).Network(config(name, **changes)).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network.requires_grad_(False)


def inputs(num=3, size=(3, 5)):
    generator = torch.Generator().manual_seed(2)
    return torch.randint(0, K + 1, (num, *size), generator=generator), torch.tensor([1, 7, 20][:num])


def test_the_published_network_has_117_6_million_weights():
    published = unet.Config(1024, (16, 16), 4000, **unet.SIZES["large"], num_inputs=1024, bounded_attention=False)
    assert count_parameters(unet.Network, published) == 117_586_568


@pytest.mark.parametrize("name", NAMES)
def test_sizes_are_counted_without_being_made(name):
    module = denoisers.module(name)
    made = module.Network(config(name))
    assert count_parameters(module.Network, config(name)) == sum(parameter.numel() for parameter in made.parameters())
    counts = [
        count_parameters(module.Network, module.Config(512, (8, 8), 100, **size)) for size in module.SIZES.values()
    ]
    assert counts == sorted(counts)
    assert module.SIZES.keys() == module.LEARNING_RATES.keys()


@pytest.mark.parametrize("name", NAMES)
def test_a_fresh_network_predicts_the_shares_it_is_given_or_all_tokens_alike(name):
    network = denoisers.module(name).Network(config(name))
    x_t, t = inputs()
    rms = {"unet": 0.5, "guided-unet": 1e-6}[name]  # the head of the first starts with noise
    assert float(network(x_t, t).detach().square().mean().sqrt()) < rms
    shares = torch.arange(1.0, K + 1) / (K * (K + 1) / 2)
    network.set_frequencies(shares)
    error = network(x_t, t).detach().log_softmax(-1) - shares.log()
    assert float(error.square().mean().sqrt()) < rms


@pytest.mark.parametrize("name", NAMES)
def test_every_cell_the_mask_and_the_time_change_the_prediction_everywhere(name):
    network = shaken(name)
    x_t, t = inputs()
    logits = network(x_t, t)
    for changed in ((x_t.index_fill(2, torch.tensor([4]), K), t), (x_t, t - 0.5)):
        difference = (network(*changed) - logits).abs().amax(-1)
        assert float(difference.min()) > 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_the_mask_is_unlike_every_token(name):
    network = shaken(name)
    states = torch.arange(K + 1).view(-1, 1, 1).expand(-1, 3, 5)
    logits = network(states, torch.full((K + 1,), 5)).flatten(1)
    assert float((logits[:-1] - logits[-1]).abs().amax(-1).min()) > 1e-2


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("changes", [{}, {"num_classes": 3}])
def test_samples_of_a_batch_do_not_see_each_other(name, changes):
    network = shaken(name, **changes)
    x_t, t = inputs()
    condition = torch.tensor([0, 1, 3]) if changes else None
    logits = network(x_t, t, condition)
    for row in range(3):
        alone = network(x_t[row : row + 1], t[row : row + 1], None if condition is None else condition[row : row + 1])
        torch.testing.assert_close(alone[0], logits[row], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_classes_differ_from_each_other_and_from_none_and_are_encoded_once(name):
    network = shaken(name, num_classes=3)
    x_t, t = inputs(2)
    first, null = torch.tensor([0, 0]), torch.tensor([3, 3])
    logits = [network(x_t, t, condition) for condition in (first, first + 1, null)]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert float((logits[one] - logits[other]).abs().amax(-1).min()) > 1e-4
    encoded = network.encode_condition(torch.tensor([0, 3]))
    mixed = network(x_t, t, encoded)
    torch.testing.assert_close(mixed, torch.stack([logits[0][0], logits[2][1]]), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(3, 5), (4, 4), (1, 1)])
def test_logits_at_wanted_cells_are_those_of_the_whole_grid(name, size):
    network = shaken(name)
    x_t, t = inputs(size=size)
    cells = torch.randint(size[0] * size[1], (3, 4), generator=torch.Generator().manual_seed(0))
    wanted = network(x_t, t).flatten(1, 2).gather(1, cells[..., None].expand(-1, -1, K))
    torch.testing.assert_close(network(x_t, t, cells=cells), wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(1, 2), (1, 7), (2, 9), (5, 6), (8, 8), (11, 3)])
def test_grids_of_any_size_pass_and_their_last_cell_is_seen(name, size):
    network = shaken(name, **MULTS)
    x_t, t = inputs(size=size)
    logits = network(x_t, t)
    assert logits.shape == (3, *size, K)
    changed = x_t.clone()
    changed[:, -1, -1] = (changed[:, -1, -1] + 1) % K
    assert float((network(changed, t) - logits).abs().amax((-1, 1, 2)).min()) > 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_of_a_single_cell_reaches_every_weight_when_all_is_open(name):
    network = shaken(name, num_classes=2, **MULTS).requires_grad_(True)
    x_t, t = inputs(size=(8, 8))
    network(x_t, t, torch.tensor([0, 1, 2]))[0, 0, 0, 3].backward()
    assert [key for key, parameter in network.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("name", NAMES)
def test_a_network_is_rebuilt_from_its_config_as_json_has_it(name):
    wanted = config(name, num_classes=2)
    assert denoisers.build(name, json.loads(json.dumps(asdict(wanted)))).config == wanted


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kernel", ["absorbing", "mask-replace", "uniform"])
def test_a_fresh_network_learns_a_chessboard_with_every_kernel(name, kernel):
    # One of two boards, so that a cell needs its neighbours: knowing the boards' tokens alone leaves log 2 a cell.
    forward = build_kernel(kernel, codebook_size=K, num_steps=20)
    torch.manual_seed(0)
    network = denoisers.module(name).Network(config(name))
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    board = (torch.arange(4)[:, None] + torch.arange(4)) % 2
    losses = []
    for _ in range(40):
        x_0 = (torch.randint(2, (12, 1, 1)) + board) % 2 * 7
        t = torch.randint(1, 11, (12,))
        x_t = forward.sample(x_0, t, torch.rand(x_0.shape, dtype=torch.float64))
        log_x0 = log_probabilities(network(x_t, t), x_t, t, forward, "direct")
        loss = -log_x0.gather(-1, x_0[..., None]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[0] > 2.4  # nearly log 13
    assert sum(losses[-10:]) / 10 < 0.35  # half of log 2
    bound = variational_bound(log_x0.detach(), x_0, x_t, t, forward, "plug-in")
    assert torch.isfinite(bound).all()


def test_a_token_enters_the_guided_network_as_a_number_and_the_mask_beside_it():
    network = guided_unet.Network(config("guided-unet"))
    numbers = network._inputs(torch.tensor([[[0, 6, 12, K]]]))
    assert numbers.tolist() == [[[[0.0, 0.5, 1.0, 0.0]], [[0.0, 0.0, 0.0, 1.0]]]]
