"""Conditions: labels and captions to tensors and back through a prior's file."""

import subprocess
import sys

import pytest
import torch

from vqtool import conditions
from vqtool.errors import FormatError, VqtoolError

CAPTIONS = ["a red apple", "a green apple", "two red cherries", "a blue whale under a blue sky", "a red apple"]


def test_labels_are_numbered_in_sorted_order_and_null_is_the_number_after_the_last():
    conditioner = conditions.build("class", ["dog", "cat", "dog", ""])
    assert conditioner.encode(["cat", "dog", None]).tolist() == [0, 1, 2]
    assert conditioner.null(2).tolist() == [2, 2]


def test_an_unknown_label_is_refused_with_the_closest_one_first():
    conditioner = conditions.build("class", ["ant", "zebra", "horse", "zebu"])
    with pytest.raises(VqtoolError, match=r"unknown label 'zebr': did you mean 'zebra'\? the prior knows zebra"):
        conditioner.encode(["zebr"])


def test_classes_that_have_names_are_found_by_number_too_and_numbered_ones_by_their_own_alone():
    named, numbered = conditions.ClassCondition(["cat", "dog"]), conditions.ClassCondition(["5", "7"])
    assert named.encode(["1", "cat", "0"]).tolist() == [1, 0, 0]
    assert numbered.encode(["7", "5"]).tolist() == [1, 0]
    for conditioner, label in ((named, "2"), (named, "-1"), (named, "9" * 5000), (numbered, "1")):
        with pytest.raises(VqtoolError, match="unknown label"):
            conditioner.encode([label])


def test_a_thousand_numbered_classes_have_the_names_of_imagenet():
    conditioner, note = conditions.numbered_classes(1000)
    assert conditioner.num_classes == len({label.lower() for label in conditioner.examples}) == 1000
    assert conditioner.encode(["tench", "goldfish", "Golden Retriever", "crane (machine)"]).tolist() == [0, 1, 207, 517]
    assert conditioner.encode(["daisy", "999", "tabby"]).tolist() == [985, 999, 281]
    assert "ImageNet" in note
    assert conditions.numbered_classes(10)[0].examples == tuple(map(str, range(10)))


def test_an_unknown_label_among_many_names_at_most_twenty():
    conditioner = conditions.build("class", [f"kind {n:03}" for n in range(100)])
    with pytest.raises(VqtoolError, match="and 80 more"):
        conditioner.encode(["QQQ"])


@pytest.mark.parametrize("vocabulary", conditions.VOCABULARIES)
def test_a_vocabulary_has_no_more_tokens_than_it_may(vocabulary):
    words = [
        f"{first}{second} of {second}{first}{third}" for first in "abcde" for second in "fghij" for third in "klmno"
    ]
    free, small = (
        conditions.build("caption", None, words * 2, vocabulary=vocabulary, vocabulary_size=size)
        for size in (None, 300)
    )
    assert 280 < small.vocabulary_size <= 300 + conditions.NUM_SPECIAL < free.vocabulary_size


@pytest.mark.parametrize("vocabulary", conditions.VOCABULARIES)
def test_caption_rows_are_tokens_end_and_padding(vocabulary):
    conditioner = conditions.build("caption", None, CAPTIONS, vocabulary=vocabulary)
    rows = conditioner.encode(["a red apple", None, ""])
    words = conditioner.vocabulary.encode("a red apple")
    assert rows[0].tolist()[: len(words) + 2] == [token + 3 for token in words] + [conditions.END, conditions.PAD]
    assert rows[1].tolist() == conditioner.null(1)[0].tolist()
    assert rows[1, 0] == conditions.NULL
    assert rows[2, 0] == conditions.END
    assert int(rows.max()) < conditioner.vocabulary_size


@pytest.mark.parametrize("vocabulary", conditions.VOCABULARIES)
def test_different_captions_and_unseen_scripts_stay_different(vocabulary):
    conditioner = conditions.build("caption", None, CAPTIONS, vocabulary=vocabulary)
    rows = conditioner.encode([*dict.fromkeys(CAPTIONS), "яблоко", "苹果"])
    assert len(torch.unique(rows, dim=0)) == len(rows)


@pytest.fixture(scope="module")
def digests():
    """Of each vocabulary, in two other processes and of the captions in another order."""
    script = (
        "import hashlib; from vqtool import conditions\n"
        "for name in conditions.VOCABULARIES:\n"
        f"    c = conditions.build('caption', None, {CAPTIONS[::-1]!r}, vocabulary=name)\n"
        "    print(name, hashlib.sha256(c.vocabulary.data).hexdigest())"
    )
    runs = [subprocess.run([sys.executable, "-c", script], capture_output=True, check=True) for _ in range(2)]
    return [dict(line.split() for line in done.stdout.decode().splitlines()) for done in runs]


@pytest.mark.parametrize("vocabulary", conditions.VOCABULARIES)
def test_a_vocabulary_is_the_same_in_every_process_and_order(vocabulary, digests):
    conditioner = conditions.build("caption", None, CAPTIONS, vocabulary=vocabulary)
    import hashlib

    assert {found[vocabulary] for found in digests} == {hashlib.sha256(conditioner.vocabulary.data).hexdigest()}
    assert len(digests) == 2


@pytest.mark.parametrize("vocabulary", conditions.VOCABULARIES)
def test_a_caption_condition_survives_saving_and_loading(vocabulary):
    conditioner = conditions.build("caption", None, CAPTIONS, vocabulary=vocabulary)
    loaded = conditions.load(conditioner.config(), conditioner.tensors())
    texts = ["a red apple", "a green sky", None]
    assert torch.equal(loaded.encode(texts), conditioner.encode(texts))
    assert set(loaded.examples) == {"a red apple", "a green apple", "two red cherries", "a blue whale under a blue sky"}


def test_a_class_condition_and_none_survive_saving_and_loading():
    for conditioner in (conditions.build("class", ["b", "a"]), conditions.build("none")):
        loaded = conditions.load(conditioner.config(), conditioner.tensors())
        assert loaded.kind == conditioner.kind
        assert loaded.examples == conditioner.examples
        assert torch.equal(loaded.null(3), conditioner.null(3))


def test_a_long_caption_keeps_its_beginning_and_is_reported():
    conditioner = conditions.build("caption", None, CAPTIONS)
    long = "a red apple " * 40
    row = conditioner.encode([long])[0]
    words = conditioner.vocabulary.encode(long)
    assert row.tolist() == [token + 3 for token in words[: conditioner.max_length - 1]] + [conditions.END]
    assert conditioner.find_truncated(["a red apple", long, None]) == [long]


def test_examples_are_at_most_256_distinct_captions():
    conditioner = conditions.build("caption", None, [f"picture {n % 700}" for n in range(1000)])
    assert len(conditioner.examples) == len(set(conditioner.examples))
    assert 200 < len(conditioner.examples) <= conditions.MAX_EXAMPLES


@pytest.mark.parametrize(
    ("labels", "captions", "kind"),
    [
        (None, None, "none"),
        (["a"] * 4, None, "none"),
        (["a", "b", "c", "d"], None, "none"),
        (["a", "a", "b", "b"], None, "class"),
        (["a", "a", "b", "b"], ["", "", "", ""], "class"),
        (["a", "a", "b", "b"], ["x", "", "", ""], "caption"),
    ],
)
def test_the_kind_follows_what_the_grids_offer(labels, captions, kind):
    assert conditions.choose_kind(labels, captions) == kind


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("class", None, None), "needs labels"),
        (("class", ["", ""], None), "needs labels"),
        (("caption", None, None), "needs captions"),
        (("poem", None, None), "known are none, class, caption"),
    ],
)
def test_a_condition_that_the_grids_cannot_give_is_refused(arguments, message):
    with pytest.raises(VqtoolError, match=message):
        conditions.build(*arguments)


def test_an_unknown_vocabulary_lists_the_known_ones():
    with pytest.raises(VqtoolError, match="known are bpe, sentencepiece"):
        conditions.build("caption", None, CAPTIONS, vocabulary="words")


def test_a_prior_without_condition_refuses_texts():
    with pytest.raises(VqtoolError, match="takes no labels"):
        conditions.build("none").encode(["cat"])
    assert conditions.build("none").encode([None, None]).shape == (2, 0)


def test_damaged_configs_are_format_errors():
    with pytest.raises(FormatError, match="upgrade"):
        conditions.load({"kind": "sound"}, {})
    config = conditions.build("caption", None, CAPTIONS).config()
    with pytest.raises(FormatError, match="vocabulary of the captions is missing"):
        conditions.load(config, {})


def test_classes_are_numbered_in_natural_order_and_named_by_name():
    condition = conditions.build("class", ["10", "2", "1", "b", "A"])
    assert condition.examples == ("1", "2", "10", "A", "b")
    assert condition.encode(["10", "2", None]).tolist() == [2, 1, 5]


def test_a_class_is_found_whatever_its_case_and_unicode_composition():
    composed, decomposed = "Caf\u00e9", "Cafe\u0301"
    condition = conditions.build("class", [composed, "Tea", "x", "X"])
    numbers = condition.encode([composed, "Tea"]).tolist()
    assert condition.encode([decomposed, "tea"]).tolist() == numbers
    assert condition.encode(["X"]).tolist() != condition.encode(["x"]).tolist()
    assert conditions.load(condition.config(), {}).encode(["CAFE\u0301"]).tolist() == numbers[:1]
