"""The published transformers: sizes, every variant against a dense formulation, conditions, times and places."""

import json
from dataclasses import asdict

import pytest
import torch
from torch.nn import functional as F

from vqtool import denoisers
from vqtool.denoisers import vq_diffusion
from vqtool.registry import count_parameters

K, T = 13, 20
TEXT = {"text_width": 24, "text_length": 5}
CLASS = {"num_classes": 3}
VARIANTS = {
    "none": {},
    "text": TEXT,
    "text without a null": {**TEXT, "learned_null": False},
    "class": CLASS,
    "class without a null": {**CLASS, "learned_null": False},
    "convolutional": {"mlp": "conv", "mlp_ratio": 2, **CLASS},
    "convolutional, exact GELU": {"mlp": "conv", "activation": "gelu"},
    "sinusoidal, large tables": {"time": "sinusoidal", "table_size": (8, 9), "activation": "gelu"},
    "time-free": {"time": "none", "positions": "flat", "activation": "gelu", "head_bias": False},
}


def config(**changes):
    fields = {"codebook_size": K, "grid_size": (3, 5), "num_steps": T, "num_layers": 2, "width": 32, "num_heads": 4}
    return vq_diffusion.Config(**{**fields, **changes})


def shaken(dtype=torch.float32, **changes):
    """A network all of whose weights matter."""
    torch.manual_seed(0)
    network = vq_diffusion.Network(config(**changes)).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network.requires_grad_(False).to(dtype)


def inputs(num=3, size=(3, 5)):
    generator = torch.Generator().manual_seed(2)
    return torch.randint(0, K + 1, (num, *size), generator=generator), torch.tensor([1, 7, T][:num])


def condition_for(network, num=3):
    if network.config.num_classes:
        return torch.tensor([0, 2, 3])[:num]  # the last is the null class
    if not network.config.text_width:
        return None
    features = torch.randn(num, 5, 24, generator=torch.Generator().manual_seed(3))
    if network.config.learned_null:
        features[-1] = 0
    return features


def attend(queries, keys, values, num_heads):
    """Head by head, with the matrix of weights."""
    parts = [tensor.chunk(num_heads, dim=-1) for tensor in (queries, keys, values)]
    return torch.cat([(q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v for q, k, v in zip(*parts, strict=True)], -1)


def dense(network, x_t, t, condition):
    """The network by its formulas: no fused products, nothing kept between calls."""
    c, w = network.config, dict(network.named_parameters())
    act = F.gelu if c.activation == "gelu" else (lambda x: x * torch.sigmoid(1.702 * x))

    def linear(x, name):
        return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0)

    def norm(x, name, row=None):
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt()
        if row is None:
            return x * w[f"{name}.weight"] + w[f"{name}.bias"]
        scale, shift = linear(row * torch.sigmoid(row), f"{name}.linear").chunk(2, -1)
        return x * (1 + scale[:, None]) + shift[:, None]

    def row_of_time(name):
        if c.time == "none":
            return None
        if c.time == "learned":
            return w[f"{name}.table.weight"][t - 1]
        waves = [(t.double() - 1) / T * 4000 * 1e4 ** (-i / (c.width // 2 - 1)) for i in range(c.width // 2)]
        return torch.stack([f(wave) for f in (torch.sin, torch.cos) for wave in waves], -1).to(x_t_embedded)

    def row_of_class(name):
        table = w[f"{name}.table.weight"]
        return torch.stack([table[i] if i < len(table) else table.mean(0) for i in condition])

    height, width = x_t.shape[1:]
    x_t_embedded = w["tokens.weight"][x_t.flatten(1)]
    if c.positions == "flat":
        x = x_t_embedded + w["positions"]
    else:
        columns = len(w["columns"])
        x = x_t_embedded + torch.stack(
            [w["rows"][i // columns] + w["columns"][i % columns] for i in range(height * width)]
        )
    for n in range(c.num_layers):
        b = f"blocks.{n}"
        h = norm(x, f"{b}.attention_norm", row_of_time(f"{b}.attention_norm"))
        x = x + linear(attend(*linear(h, f"{b}.attention.qkv").chunk(3, -1), c.num_heads), f"{b}.attention.out")
        if c.text_width:
            text = torch.stack([w["null_text"] if c.learned_null and not row.any() else row for row in condition])
            h = linear(norm(x, f"{b}.cross_norm", row_of_time(f"{b}.cross_norm")), f"{b}.cross.q")
            x = x + linear(attend(h, *linear(text, f"{b}.cross.kv").chunk(2, -1), c.num_heads), f"{b}.cross.out")
        h = norm(x, f"{b}.mlp_norm", row_of_class(f"{b}.mlp_norm") if c.num_classes else None)
        if c.mlp == "linear":
            x = x + linear(act(linear(h, f"{b}.mlp.first")), f"{b}.mlp.second")
            continue
        h = h.reshape(len(x), height, width, -1).movedim(-1, 1)
        h = act(F.conv2d(h, w[f"{b}.mlp.first.weight"], w[f"{b}.mlp.first.bias"], padding=1))
        h = F.conv2d(h, w[f"{b}.mlp.second.weight"], w[f"{b}.mlp.second.bias"], padding=1)
        x = x + h.movedim(1, -1).flatten(1, 2)
    return linear(norm(x, "norm"), "head").reshape(*x_t.shape, K)


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_every_variant_computes_its_formulas(changes):
    network = shaken(torch.float64, **changes)
    x_t, t = inputs()
    condition = condition_for(network)
    condition = condition.double() if changes.keys() & {"text_width"} else condition
    expected = dense(network, x_t, t, condition)
    torch.testing.assert_close(network(x_t, t, condition), expected, atol=1e-10, rtol=0)
    with torch.no_grad():  # where activations are computed in place
        torch.testing.assert_close(network.float()(x_t, t, condition).double(), expected, atol=2e-4, rtol=0)


@pytest.mark.parametrize(
    ("size", "changes", "millions"),
    [
        ("b", {"codebook_size": 2887, "grid_size": (32, 32), "text_width": 512, "learned_null": False}, 388.8),
        ("imagenet", {"codebook_size": 974, "num_classes": 1000, "table_size": (32, 32)}, 518.0),
        ("ffhq", {"codebook_size": 1024, "table_size": (32, 32)}, 411.2),
        ("unleashing", {"codebook_size": 1024, "num_steps": 256}, 76.84),
    ],
)
def test_networks_have_the_published_number_of_parameters(size, changes, millions):
    fields = {"grid_size": (16, 16), "num_steps": 100, **vq_diffusion.SIZES[size], **changes}
    assert count_parameters(vq_diffusion.Network, vq_diffusion.Config(**fields)) / 1e6 == pytest.approx(
        millions, abs=0.05
    )


def test_every_size_has_a_learning_rate_and_a_valid_config():
    assert vq_diffusion.LEARNING_RATES.keys() == vq_diffusion.SIZES.keys()
    for fields in vq_diffusion.SIZES.values():
        vq_diffusion.Config(codebook_size=8, grid_size=(4, 4), num_steps=10, **fields)


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_logits_at_wanted_cells_are_those_of_the_whole_grid(changes):
    network = shaken(**changes)
    x_t, t = inputs()
    cells = torch.tensor([[0, 14], [3, 3], [7, 2]])
    condition = condition_for(network)
    wanted = network(x_t, t, condition).flatten(1, 2).gather(1, cells[..., None].expand(-1, -1, K))
    torch.testing.assert_close(network(x_t, t, condition, cells=cells), wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["text", "class", "class without a null"])
def test_a_condition_encoded_once_gives_what_the_condition_itself_gives(name):
    network = shaken(**VARIANTS[name])
    x_t, t = inputs()
    rows = condition_for(network)
    encoded = network.encode_condition(rows)
    torch.testing.assert_close(network(x_t, t, encoded), network(x_t, t, rows), atol=1e-5, rtol=1e-4)


def test_the_null_text_is_a_weight_and_the_null_class_a_row_or_the_mean_of_all():
    network = shaken(**TEXT)
    x_t, t = inputs(1)
    torch.testing.assert_close(network(x_t, t, torch.zeros(1, 5, 24)), network(x_t, t, network.null_text[None]))
    network = shaken(**CLASS, learned_null=False)
    before = network(x_t, t, torch.tensor([3]))
    for block in network.blocks:
        table = block.mlp_norm.table.weight
        table.copy_(table.mean(0, keepdim=True))
    torch.testing.assert_close(network(x_t, t, torch.tensor([1])), before, atol=1e-5, rtol=1e-4)
    assert [shaken(**changes).has_learned_null for changes in (TEXT, CLASS, {**TEXT, "learned_null": False})] == [
        True,
        False,
        False,
    ]


def test_times_between_steps_round_up_in_tables_and_are_taken_as_they_are_by_sinusoids():
    x_t, _ = inputs(2)
    learned, waves = shaken(), shaken(time="sinusoidal")
    t = torch.tensor([0.3, 7.5], dtype=torch.float64)
    assert torch.equal(learned(x_t, t), learned(x_t, torch.tensor([1, 8])))
    below, between, above = (waves(x_t, torch.tensor([a, a], dtype=torch.float64)) for a in (7, 7.0001, 7.5))
    assert 0 < float((between - below).abs().max()) < float((above - below).abs().max())
    free = shaken(**VARIANTS["time-free"])
    assert torch.equal(free(x_t, torch.tensor([1, 1])), free(x_t, torch.tensor([20, 3])))


def test_large_tables_are_numbered_along_their_rows_as_in_the_published_models():
    network = shaken(grid_size=(4, 4), table_size=(8, 8))
    places = network._places((4, 4))
    torch.testing.assert_close(places[9], network.rows[1] + network.columns[1])
    torch.testing.assert_close(places[15], network.rows[1] + network.columns[7])


@pytest.mark.parametrize("changes", [{}, {"table_size": (8, 8)}, {"positions": "flat"}])
def test_other_grid_sizes_interpolate_the_map_of_places(changes):
    network = shaken(**changes)
    places = network._places((3, 5)).view(3, 5, -1)
    finer = network._places((5, 9)).view(5, 9, -1)
    torch.testing.assert_close(finer[::2, ::2], places)
    torch.testing.assert_close(finer[1, 2], (places[0, 1] + places[1, 1]) / 2)
    x_t, t = inputs(size=(2, 7))
    assert network(x_t, t).shape == (3, 2, 7, K)


def test_fresh_weights_are_those_of_the_published_code_and_the_head_starts_near_the_frequencies():
    torch.manual_seed(0)
    network = vq_diffusion.Network(config(width=256, num_heads=8))
    weights = [p for name, p in network.named_parameters() if p.ndim == 2 and p.numel() > 5000]
    assert len(weights) > 10
    for weight in weights:
        assert float(weight.detach().std()) == pytest.approx(0.02, rel=0.05)
    assert all(not p.any() for name, p in network.named_parameters() if name.endswith("bias"))
    shares = torch.linspace(1, 3, K).softmax(0)
    network.set_frequencies(shares)
    found = network(*inputs()).detach().softmax(-1).mean((0, 1, 2))
    assert float((found - shares).abs().sum()) < 0.5 * float((1 / K - shares).abs().sum())
    headless = vq_diffusion.Network(config(**VARIANTS["time-free"]))
    before = headless.head.weight.clone()
    headless.set_frequencies(shares)
    assert torch.equal(headless.head.weight, before)


@pytest.mark.parametrize("name", ["text", "class", "convolutional", "time-free"])
def test_the_gradient_of_a_single_cell_reaches_every_weight(name):
    network = shaken(**VARIANTS[name]).requires_grad_(True)
    x_t, t = inputs()
    network(x_t, t, condition_for(network)).square().sum().backward()
    assert [name for name, parameter in network.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_a_network_is_rebuilt_from_its_config_as_json_has_it(changes):
    network = denoisers.build("vq-diffusion", json.loads(json.dumps(asdict(config(**changes)))))
    assert network.config == config(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mlp": "cnn"}, "mlp must be one of linear, conv, is 'cnn'"),
        ({"num_heads": 5}, "a width of 32 cannot be shared by 5 heads"),
        ({"table_size": (2, 7)}, "tables for 2x7 positions are too small"),
        ({**TEXT, **CLASS}, "a class or a text, not both"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        config(**changes)


def test_a_condition_that_is_missing_or_of_another_kind_is_refused():
    network = shaken(**TEXT)
    x_t, t = inputs()
    with pytest.raises(ValueError, match="made for a condition"):
        network(x_t, t)
    with pytest.raises(ValueError, match=r"features \(B, L, 24\) are needed, not \(3, 5\)"):
        network(x_t, t, torch.zeros(3, 5, dtype=torch.int64))


def test_texts_that_are_filled_up_for_the_cpu_say_what_they_said(monkeypatch):
    network, (x_t, t) = shaken(**TEXT), inputs()
    condition = condition_for(network)
    encoded = network.encode_condition(condition)
    assert encoded.keys_values.shape[-2] == vq_diffusion.FULL_LENGTH
    assert encoded.mask.tolist() == [[True] * 5 + [False] * 11] * 3
    monkeypatch.setattr(vq_diffusion, "FULL_LENGTH", 5)
    assert network.encode_condition(condition).mask is None
    torch.testing.assert_close(network(x_t, t, encoded), network(x_t, t, condition), rtol=0, atol=1e-5)
