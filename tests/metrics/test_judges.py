"""Judges: exact log-likelihoods where they can be enumerated, realism by brute force, CLIP by transformers itself."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from support.exact import exact_prior, random_prior
from support.laws import ONE_CELL, build

from vqtool.errors import VqtoolError
from vqtool.metrics import judges, text
from vqtool.metrics.features import Features
from vqtool.metrics.judges import JudgeOptions, LikelihoodJudge, RealismJudge, TextJudge

GOLDEN = Path(__file__).parents[1] / "golden"


class Decoder:
    """Makes pictures of one pixel, as bright as the token says."""

    device = torch.device("cpu")

    def decode(self, grids):
        return grids.view(-1, 1, 1, 1).expand(-1, 3, -1, -1) / 127.5 - 1


class Brightness:
    """The features of a picture: its brightness and that squared."""

    name, feature_dim = "brightness", 2

    def __call__(self, images):
        value = images[:, 0, 0, 0].astype(np.float64)
        return Features(self.name, np.stack([value, value**2 / 100], 1))


def test_without_a_condition_the_likelihood_of_one_step_is_the_law_itself():
    prior = exact_prior(ONE_CELL, (1, 1), build("absorbing", "linear", 4, 1))
    judge = LikelihoodJudge(prior, times=2, seed=0)
    grids = torch.tensor([0, 1, 2]).view(3, 1, 1)
    assert judge.calls == 2
    assert torch.allclose(judge(grids, [0, 0, 7], [None] * 3), ONE_CELL[:3].log())


def test_with_a_condition_it_is_the_likelihood_given_that():
    prior = random_prior("absorbing", "class", (1, 1), 5, num_steps=1)
    judge = LikelihoodJudge(prior, times=3, seed=0)
    grids, texts = torch.tensor([4, 2]).view(2, 1, 1), ["bee", "cat"]
    masked, t = torch.full((2, 1, 1), 5), torch.ones(2, dtype=torch.int64)
    wanted = prior.log_x0(masked, t, prior.conditioner.encode(texts)).gather(-1, grids[..., None]).flatten().double()
    assert judge.calls == 3
    assert torch.allclose(judge(grids, [0, 1], texts), wanted, atol=1e-5)


def test_candidates_of_one_sample_see_the_same_masks():
    prior = random_prior("absorbing", "class")
    judge = LikelihoodJudge(prior, times=2, seed=3)
    grid = torch.randint(0, 11, (1, 4, 6), generator=torch.Generator().manual_seed(0))
    alike = judge(grid.expand(3, -1, -1), [5, 5, 5], ["bee"] * 3)
    assert torch.allclose(alike, alike[:1])
    assert not torch.allclose(judge(grid, [6], ["bee"]), alike[:1])


def test_realism_is_the_largest_ratio_of_a_real_ones_radius_to_its_distance():
    real = np.array([0.0, 10, 20, 40, 200, 90])
    reference = Brightness()(np.repeat(real.astype(np.uint8)[:, None, None, None], 3, 1)).pooled
    judge = RealismJudge(Decoder(), Brightness(), reference)
    tokens = torch.tensor([5, 11, 100, 255])
    found = judge(tokens.view(4, 1, 1), [0] * 4, [None] * 4)
    points = [np.array([value, value**2 / 100]) for value in (5.0, 11.0, 100.0, 255.0)]
    distances = np.linalg.norm(reference[:, None] - reference[None], axis=-1)
    radii = np.sort(distances, axis=1)[:, 3]
    small = radii <= np.sort(radii)[2]  # the lower median of six
    wanted = [
        max(r / np.linalg.norm(p - x) for r, x in zip(radii[small], reference[small], strict=True)) for p in points
    ]
    assert found.tolist() == pytest.approx(wanted)
    with pytest.raises(VqtoolError, match="`judge_with`: 3 images; at least 4 are needed"):
        RealismJudge(Decoder(), Brightness(), reference[:3])


def test_a_text_judge_takes_the_cosine_of_picture_and_caption():
    vectors = {"dark": [1.0, 0.0], "bright": [0.6, 0.8]}
    clip = SimpleNamespace(
        pictures=lambda images: torch.nn.functional.normalize(
            torch.tensor([[1.0 - float(each.mean()) / 255, float(each.mean()) / 255] for each in images]).double()
        ),
        texts=lambda texts: torch.tensor([vectors[text] for text in texts]).double(),
    )
    found = TextJudge(Decoder(), clip)(torch.tensor([0, 255]).view(2, 1, 1), [0, 0], ["dark", "bright"])
    assert found.tolist() == pytest.approx([1.0, 0.8])


def test_clip_is_read_from_a_folder_and_gives_what_transformers_gives(tmp_path):
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(GOLDEN / "df-pipeline" / "tokenizer")
    tokenizer.model_max_length = 9
    tokenizer.save_pretrained(tmp_path)
    words = {"vocab_size": len(tokenizer), "max_position_embeddings": 9}
    words |= {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    torch.manual_seed(0)
    tower = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.CLIPConfig(
        text_config={**tower, **words},
        vision_config={**tower, "image_size": 8, "patch_size": 4},
        projection_dim=6,
    )
    model = transformers.CLIPModel(config).eval()
    model.save_pretrained(tmp_path)
    clip = text.Clip(tmp_path, torch.device("cpu"))
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 8, 8), dtype=np.uint8)
    processor = transformers.CLIPImageProcessorPil(size={"height": 8, "width": 8}, do_center_crop=False)
    pixels = processor(list(images.transpose(0, 2, 3, 1)), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        outputs = model(**tokenizer(["a", "b"], padding=True, return_tensors="pt"), pixel_values=pixels)
    assert torch.allclose(clip.pictures(images).float(), outputs.image_embeds, atol=1e-5)
    assert torch.allclose(clip.texts(["a", "b"]).float(), outputs.text_embeds, atol=1e-5)
    with pytest.raises(VqtoolError, match="a CLIP model needs a folder of transformers"):
        text.Clip(GOLDEN, torch.device("cpu"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"best": 1, "judge": "text"}, "`judge` is about candidates to choose from: give `best` 2 or more"),
        ({"best": 4, "judge": "features"}, "`judge` features judges with real images: name them with `judge_with`"),
        ({"best": 4, "judge": "text"}, "`judge` text judges with the folder of a CLIP model: name them with"),
        ({"best": 4, "judge_with": Path("x")}, "`judge_with` is for `judge` features or text: leave it out"),
        ({"best": 4, "judge": "nobody"}, "`judge` nobody: unknown; known are likelihood, features, text"),
        ({"best": 0}, "`best` 0: must be 1 or more"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options, words):
    with pytest.raises(VqtoolError, match=words):
        JudgeOptions(**options)


def test_captions_are_judged_only_where_the_prior_takes_them(tmp_path):
    options = JudgeOptions(best=2, judge="text", judge_with=tmp_path)
    with pytest.raises(
        VqtoolError, match="`judge` text compares pictures with captions or labels, and this prior takes"
    ):
        judges.build(random_prior("absorbing"), options, seed=0)
    assert judges.build(random_prior("absorbing"), JudgeOptions(), seed=0) is None
