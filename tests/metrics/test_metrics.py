"""What every registered metric keeps to, and that a new one is one file and one name."""

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import vqtool
from vqtool.errors import VqtoolError
from vqtool.metrics import NAMES, Features, measure_features
from vqtool.metrics.score import find_metric, needs
from vqtool.options import options_of, read_registered

TOY = '''"""How far the means are apart: a toy."""

from dataclasses import dataclass

import numpy as np

from vqtool.metrics.score import Score, check_features
from vqtool.options import Checked, option


@dataclass(frozen=True, kw_only=True)
class Options(Checked):
    toy_power: float = option(2.0, "The exponent.", above=0)


def measure(reference, generated, options, *, seed):
    apart = np.abs(check_features(reference).mean(0) - check_features(generated).mean(0))
    return [Score("toy", float((apart**options.toy_power).sum()), better="lower")]
'''

RUN = """
import sys
import numpy as np
from support.commands import build_tokenizer, write_pictures
from support.exact import random_prior
from support.features import MeanColour
from dataclasses import replace
from pathlib import Path
from vqtool import metrics
from vqtool.cli.main import main
from vqtool.priors import GridSpec
from vqtool.tokenizers import save_tokenizer

metrics.features.load_features = lambda name="", device="cpu", **_: MeanColour()
tokenizer = build_tokenizer()
fingerprint = save_tokenizer("tokenizer.safetensors", tokenizer).fingerprint
spec = GridSpec(fingerprint, "tokenizer.safetensors", (4, 6), (32, 48), "crop")
replace(random_prior(codebook_size=16), grid_spec=spec).save("prior.safetensors")
for name in ("a", "b"):
    write_pictures(Path(name), 4, size=(32, 48))
sampling = ["-n", "3", "--seeds", "0", "--steps", "2", "--sampler", "ancestral", "--toy-power", "3"]
for line in (["eval", "a", "--ref", "b", "--toy-power", "1"], ["compare", *sampling, "--ref", "a"], ["eval", "-h"]):
    sys.argv = ["vqtool", *line]
    try:
        main()
    except SystemExit as stop:
        assert stop.code == 0, line
"""


def features(seed, shift=0.0, num=60):
    return np.random.default_rng(seed).normal(size=(num, 4)) + shift


def arrays(name, *arguments):
    """What a metric measures: features, or probabilities that favour the first of four classes by a shift."""
    rows = features(*arguments)
    if needs(find_metric(name)) != "probabilities":
        return rows
    rows[:, 1:] = features(*arguments[:1])[:, 1:]  # without the shift
    return np.exp(2 * rows) / np.exp(2 * rows).sum(axis=1, keepdims=True)


@pytest.mark.parametrize("name", NAMES)
def test_a_metric_is_documented_and_its_options_are_those_of_its_source(name):
    file = find_metric(name)
    assert {each.name for each in options_of(file.Options)} == {each.name for each in read_registered("metrics")[name]}
    for part in ("What it does", "When to use", "Cost", "Source"):
        assert part in file.__doc__


@pytest.mark.parametrize("name", NAMES)
def test_a_set_of_the_same_law_scores_better_than_one_far_off(name):
    measure = find_metric(name).measure
    near, far = (measure(arrays(name, 0), arrays(name, 1, shift)) for shift in (0.0, 3.0))
    assert [score.name for score in near] == [score.name for score in far]
    for one, other in zip(near, far, strict=True):
        assert one.better in ("lower", "higher")
        assert (one.value < other.value) == (one.better == "lower")


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_gives_the_same_scores_in_any_precision(name):
    measure = find_metric(name).measure
    first, again = (measure(arrays(name, 0), arrays(name, 1), seed=3) for _ in range(2))
    assert first == again
    single = measure(arrays(name, 0).astype(np.float32), arrays(name, 1).astype(np.float32), seed=3)
    assert [score.value for score in single] == pytest.approx([score.value for score in first], rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_pictures_does_not_matter_where_all_of_them_count(name):
    metric = find_metric(name)
    whole = {"kernel": {"num_subsets": 1, "subset_size": 60}, "inception-score": {"num_splits": 1}}
    options = metric.Options(**whole.get(name, {}))
    a, b, order = arrays(name, 0), arrays(name, 1, 0.5), np.random.default_rng(5).permutation(60)
    first, other = (metric.measure(*sides, options, seed=0) for sides in ((a, b), (a[order], b[order[::-1]])))
    assert [score.value for score in other] == pytest.approx([score.value for score in first], rel=1e-9)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("wrong", [np.full((8, 4), np.nan), np.zeros((1, 4)), np.zeros((8, 3)), np.zeros(8)])
def test_features_that_cannot_be_measured_are_refused(name, wrong):
    with pytest.raises(ValueError, match=r"features|dimensions"):
        find_metric(name).measure(arrays(name, 0), wrong)


def test_scores_of_all_metrics_have_names_of_their_own_and_bear_that_of_the_network():
    ours, theirs = (
        Features("Net", features(seed), spatial=features(seed), probabilities=arrays("inception-score", seed))
        for seed in (0, 1)
    )
    names = [score.name for score in measure_features(theirs, ours)]
    assert len(set(names)) == len(names) >= len(NAMES)
    kept = [score.name for score in measure_features(theirs, replace(ours, spatial=None, probabilities=None))]
    assert kept == [name for name in names if name not in ("IS-Net", "sFD-Net")]
    assert all(name.endswith("-Net") for name in names)


def test_options_go_to_the_metrics_that_have_them():
    default, other = (
        {
            score.name: score
            for score in measure_features(Features("Net", features(0)), Features("Net", features(1)), **options)
        }
        for options in ({}, {"subset_size": 7, "nearest_k": 2})
    )
    assert other["FD-Net"] == default["FD-Net"]
    assert other["KID-Net"].settings["subset_size"] == 7
    assert other["density-Net"].settings == {"nearest_k": 2}
    assert other["density-Net"].value != default["density-Net"].value


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"subset_size": 61}, "`subset_size` 61: there are 60 images on a side"),
        ({"nearest_k": 60}, "`nearest_k` 60: there are 60 images on a side, so 59 at most"),
        ({"num_subsets": 0}, "`num_subsets` 0: must be 1 or more"),
    ],
)
def test_options_that_are_not_possible_are_refused(options, message):
    with pytest.raises(VqtoolError, match=message):
        measure_features(Features("Net", features(0)), Features("Net", features(1)), **options)


def test_an_option_that_no_metric_has_is_refused():
    known = "extrapolate, giqa_kernels, nearest_k, num_directions, num_splits, num_subsets, subset_size"
    with pytest.raises(TypeError, match=f"called magic; there are {known}"):
        measure_features(Features("Net", features(0)), Features("Net", features(1)), magic=1)


def test_a_metric_of_ones_own_is_one_file_and_one_name(tmp_path):
    package, tests = Path(vqtool.__file__).parent, Path(__file__).resolve().parents[1]
    shutil.copytree(package, tmp_path / "vqtool", ignore=shutil.ignore_patterns("__pycache__", "*.safetensors"))
    (tmp_path / "vqtool/metrics/toy.py").write_text(TOY)
    listed = tmp_path / "vqtool/metrics/__init__.py"
    listed.write_text(listed.read_text().replace('NAMES = ("frechet", ', 'NAMES = ("toy", "frechet", '))
    done = subprocess.run(
        [sys.executable, "-c", RUN],
        cwd=tmp_path,
        env={"PYTHONPATH": f"{tmp_path}:{tests}", "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    # Of eval the score; of compare the mean, whether less is better, and the value of the seed.
    assert done.stdout.count('"toy-MeanColour"') == 4
    assert "--toy-power" in done.stdout
