"""Denoisers: what a fresh network says, what steers it, and that nothing leaks between samples."""

from dataclasses import replace

import pytest
import torch

from vqtool import conditions, denoisers
from vqtool.denoisers import transformer
from vqtool.errors import VqtoolError
from vqtool.registry import count_parameters


def config(**changes):
    fields = {
        "codebook_size": 13,
        "grid_size": (3, 5),
        "num_steps": 20,
        "num_layers": 2,
        "width": 64,
        "num_heads": 4,
    }
    return transformer.Config(**{**fields, **changes})


def shaken(**changes):
    """A network whose gates and head are open."""
    torch.manual_seed(0)
    network = transformer.Network(config(**changes)).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network.requires_grad_(False)


def inputs(num=3, size=(3, 5)):
    generator = torch.Generator().manual_seed(2)
    return torch.randint(0, 14, (num, *size), generator=generator), torch.tensor([1, 7, 20][:num])


CAPTIONS = {"vocabulary_size": 30, "max_length": 6}
LIGHT = {"token_width": 24, "caption_width": 32, "shared_modulation": True}


@pytest.mark.parametrize("changes", [{}, LIGHT])
def test_a_fresh_network_says_that_all_tokens_are_equally_likely(changes):
    x_t, t = inputs()
    assert torch.equal(transformer.Network(config(**changes))(x_t, t), torch.zeros(3, 3, 5, 13))


@pytest.mark.parametrize("changes", [{}, LIGHT])
def test_every_cell_the_mask_and_the_time_change_the_prediction_everywhere(changes):
    network = shaken(**changes)
    x_t, t = inputs()
    logits = network(x_t, t)
    for changed in ((x_t.index_fill(2, torch.tensor([4]), 13), t), (x_t, t - 1)):
        difference = (network(*changed) - logits).abs().amax(-1)
        assert float(difference.min()) > 1e-5


def test_positions_are_told_apart_by_row_and_column():
    logits = shaken()(torch.full((1, 3, 5), 13), torch.tensor([20]))[0].flatten(0, 1)
    assert float(torch.cdist(logits, logits).fill_diagonal_(1).min()) > 1e-3


@pytest.mark.parametrize("changes", [{}, {"num_classes": 3}, CAPTIONS, {**CAPTIONS, **LIGHT}])
def test_samples_of_a_batch_do_not_see_each_other(changes):
    network = shaken(**changes)
    x_t, t = inputs()
    condition = None
    if changes:
        condition = torch.tensor([0, 1, 3]) if "num_classes" in changes else torch.tensor([[5, 2, 0]] * 2 + [[1, 0, 0]])
    logits = network(x_t, t, condition)
    for row in range(3):
        alone = network(x_t[row : row + 1], t[row : row + 1], None if condition is None else condition[row : row + 1])
        torch.testing.assert_close(alone[0], logits[row], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("changes", "first", "second"),
    [
        ({"num_classes": 3}, torch.tensor([0, 0, 0]), torch.tensor([3, 3, 3])),
        (CAPTIONS, torch.tensor([[9, 8, 2, 0]] * 3), torch.tensor([[conditions.NULL, 0, 0, 0]] * 3)),
        (CAPTIONS, torch.tensor([[9, 8, 2, 0]] * 3), torch.tensor([[8, 9, 2, 0]] * 3)),
        ({**CAPTIONS, **LIGHT}, torch.tensor([[9, 8, 2, 0]] * 3), torch.tensor([[8, 9, 2, 0]] * 3)),
    ],
)
def test_conditions_the_null_condition_and_the_order_of_words_make_a_difference(changes, first, second):
    network = shaken(**changes)
    x_t, t = inputs()
    assert float((network(x_t, t, first) - network(x_t, t, second)).abs().amax(-1).min()) > 1e-4


def test_padding_of_a_caption_is_not_looked_at():
    network = shaken(**CAPTIONS)
    x_t, t = inputs(1)
    short = network(x_t, t, torch.tensor([[9, 8, 2]]))
    torch.testing.assert_close(network(x_t, t, torch.tensor([[9, 8, 2, 0, 0, 0]])), short, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("changes", [{"num_classes": 3}, CAPTIONS])
def test_a_condition_encoded_once_gives_what_the_condition_itself_gives(changes):
    network = shaken(**changes)
    x_t, t = inputs(2)
    rows = torch.tensor([1, 3]) if "num_classes" in changes else torch.tensor([[9, 8, 2], [1, 0, 0]])
    encoded = network.encode_condition(rows)
    torch.testing.assert_close(network(x_t, t, encoded), network(x_t, t, rows), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("changes", [{}, LIGHT])
def test_logits_at_wanted_cells_are_those_of_the_whole_grid(changes):
    network = shaken(**changes)
    x_t, t = inputs()
    cells = torch.tensor([[0, 14], [3, 3], [7, 2]])
    whole = network(x_t, t).flatten(1, 2)
    wanted = whole.gather(1, cells[..., None].expand(-1, -1, 13))
    torch.testing.assert_close(network(x_t, t, cells=cells), wanted, atol=1e-5, rtol=1e-4)


def test_other_grid_sizes_interpolate_the_position_tables_between_their_ends():
    network = shaken()
    table = transformer._resized(network.rows, 5)
    assert torch.equal(transformer._resized(network.rows, 3), network.rows)
    torch.testing.assert_close(table[[0, 2, 4]], network.rows)
    torch.testing.assert_close(table[1], (network.rows[0] + network.rows[1]) / 2)
    for size in ((1, 1), (2, 9), (8, 8)):
        x_t, t = inputs(size=size)
        assert torch.isfinite(network(x_t, t)).all()


@pytest.mark.parametrize("changes", [{}, LIGHT])
def test_the_gradient_of_a_single_cell_reaches_every_weight_when_the_gates_are_open(changes):
    network = shaken(**CAPTIONS, **changes).requires_grad_(True)
    x_t, t = inputs()
    network(x_t, t, torch.tensor([[9, 8, 2], [9, 8, 2], [1, 0, 0]]))[0, 0, 0, 3].backward()
    assert [name for name, parameter in network.named_parameters() if parameter.grad is None] == []


def test_a_shared_modulation_is_that_of_blocks_whose_own_maps_agree_but_for_their_biases():
    light, apart = shaken(shared_modulation=True), shaken()
    shared = light.shared_modulation
    weights = {name: value for name, value in light.state_dict().items() if not name.startswith("shared_modulation")}
    for name in ("blocks.0.modulation", "blocks.1.modulation", "modulation"):
        rows = len(weights[f"{name}.bias"])
        weights[f"{name}.weight"] = shared.weight[:rows]
        weights[f"{name}.bias"] = weights[f"{name}.bias"] + shared.bias[:rows]
    apart.load_state_dict(weights)
    torch.testing.assert_close(light(*inputs()), apart(*inputs()), atol=1e-5, rtol=1e-4)


def test_one_table_for_embedding_and_head_is_two_that_are_made_from_it():
    light, apart = shaken(token_width=24), shaken()
    table, own = light.tokens.weight, light.state_dict()
    own["tokens.weight"] = table @ own.pop("enter.weight").T + own.pop("enter.bias")
    own["head.weight"] = table[:-1] @ own.pop("leave.weight")
    own["head.bias"] = table[:-1] @ own.pop("leave.bias") + own["head.bias"]
    apart.load_state_dict(own)
    torch.testing.assert_close(light(*inputs()), apart(*inputs()), atol=1e-5, rtol=1e-4)


def test_a_light_network_keeps_a_file_small():
    wanted = config(**{**transformer.SIZES["light"], "codebook_size": 4096, "grid_size": (16, 16)})
    text = {"vocabulary_size": 2003, "max_length": 32}
    assert count_parameters(transformer.Network, replace(wanted, **text)) < 8_000_000


def test_dropout_is_drawn_in_training_alone_and_from_the_seed():
    network = shaken(dropout=0.3, **CAPTIONS)
    plain = shaken(**CAPTIONS)
    given = (*inputs(), torch.tensor([[9, 8, 2], [9, 8, 2], [1, 0, 0]]))
    assert torch.equal(network(*given), plain(*given))
    assert torch.equal(plain.train()(*given), plain.eval()(*given))
    network.train()
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(network(*given))
    assert torch.equal(drawn[0], drawn[1])
    assert float((drawn[0] - drawn[2]).abs().amax(-1).min()) > 1e-4


@pytest.mark.parametrize("changes", [{"num_heads": 0}, {"num_heads": 3}, {"caption_width": 30}])
def test_heads_that_cannot_share_a_width_are_refused(changes):
    with pytest.raises(ValueError, match=r"a width of \d+ cannot be shared by \d heads"):
        config(**changes)


def test_a_network_is_rebuilt_from_its_config_as_json_has_it():
    import json
    from dataclasses import asdict

    network = denoisers.build("transformer", json.loads(json.dumps(asdict(config(**CAPTIONS)))))
    assert network.config == config(**CAPTIONS)


def test_sizes_are_counted_without_being_made():
    counted = count_parameters(transformer.Network, config())
    assert counted == sum(parameter.numel() for parameter in transformer.Network(config()).parameters())
    for size in transformer.SIZES.values():
        assert size["width"] % 64 == 0
        assert size["width"] % size["num_heads"] == 0
    assert transformer.SIZES.keys() == transformer.LEARNING_RATES.keys()


def test_an_unknown_denoiser_lists_the_known_ones():
    with pytest.raises(VqtoolError, match="unknown denoiser 'cnn': known are transformer"):
        denoisers.module("cnn")
