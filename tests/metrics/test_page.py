"""The report page: whole without a network, harmless whatever names it shows, and drawn by a real browser."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from support.browser import browse
from support.sets import SixNumbers, write_noise

import vqtool
from vqtool.images import find_images
from vqtool.metrics import Report, Score, compare_images
from vqtool.metrics.exhibits import Curve, Picture, Sheet
from vqtool.metrics.page import draw_page, write_page
from vqtool.metrics.report import ClassScores

EVIL = "<script>document.title='hacked'</script>\"'><img src=x onerror=alert(1)>&amp;\x1b[31m"
RED = np.zeros((3, 8, 8), np.uint8)
RED[0] = 255


def report(**parts):
    exhibits = [
        Sheet(EVIL, EVIL, [[Picture(RED, EVIL), Picture(np.empty((3, 0, 0), np.uint8), "gone")]]),
        Curve(EVIL, EVIL, [1, 2, 3], [0.5, float("nan"), 2.5], [0.1, 0.1, 0.2], EVIL, EVIL),
        Curve("bars", "", list(range(1000)), [float(i) for i in range(1000)], bars=True),
        Curve("nothing", "", [], []),
    ]
    scores = [Score(EVIL, 1.25, "lower", standard_error=0.5), Score("inf", np.inf)]
    about = {"inputs": [EVIL], "kind": "images"}
    return Report(
        EVIL, scores, about, [EVIL], per_class={EVIL: ClassScores(3, scores)}, unreadable={"images": [EVIL]},
        exhibits=exhibits, **parts,
    )  # fmt: skip


class Elements(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found, self.text = [], ""

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def parse(text):
    parser = Elements()
    parser.feed(text)
    return parser


def test_whatever_a_name_holds_is_text():
    page = parse(draw_page(report()))
    tags = [tag for tag, _ in page.found]
    assert "script" not in tags
    assert page.text.count("<script>document.title='hacked'</script>") >= 10
    assert not any(name.startswith("on") for _, attributes in page.found for name in attributes)
    assert "\x1b" not in draw_page(report())
    assert "\\x1b[31m" in page.text


def test_a_page_needs_nothing_from_elsewhere():
    text = draw_page(report())
    assert not re.findall(r"""(?:src|href)=["']?(?!data:)[^"'\s>]""", text.replace("&lt;img src=x", ""))
    assert "url(" not in text
    assert "@import" not in text
    assert "default-src 'none'" in text


def test_a_browser_shows_names_as_text_and_pictures_as_pictures(tmp_path):
    write_page(report(), tmp_path / "r.html")
    drawn = browse(tmp_path / "r.html", "--dump-dom", "--window-size=900,1600", f"--screenshot={tmp_path / 'r.png'}")
    page = parse(drawn)
    assert "script" not in [tag for tag, _ in page.found]
    assert "hacked'</script>" in page.text
    pixels = np.asarray(Image.open(tmp_path / "r.png").convert("RGB")).astype(int)
    assert pixels.shape == (1600, 900, 3)
    assert ((pixels == [255, 0, 0]).all(-1)).sum() == 64 * 64  # the picture of 8x8, eightfold
    assert ((pixels == [125, 167, 207]).all(-1)).sum() > 5000  # bars


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Folders a and b of pictures; the first of b is one of a."""
    from vqtool.metrics import features

    monkeypatch.setattr(features, "load_features", lambda *_, **__: SixNumbers())
    for seed, name in enumerate("ab"):
        write_noise(tmp_path / name, 12, seed=seed)
    (tmp_path / "b" / "000.png").write_bytes((tmp_path / "a" / "007.png").read_bytes())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_samples_stand_beside_their_neighbours_and_a_copy_beside_what_it_copies(folders):
    found = compare_images(*(find_images([folders / name]) for name in "ab"), SixNumbers(), exhibits=True)
    sheets = {exhibit.title: exhibit for exhibit in found.exhibits}
    samples = sheets["Samples and their nearest reference pictures"].rows
    assert [row[0].text for row in samples] == [f"{i:03d}" for i in range(12)]
    assert samples[7][1].text == "000\n0"
    memorised = sheets["Nearest to a reference picture by pixels"].rows
    assert [picture.text for picture in memorised[0]] == ["007", "000\n0.0 of 255"]
    np.testing.assert_array_equal(memorised[0][0].pixels, memorised[0][1].pixels)
    with Image.open(folders / "a" / "007.png") as image:
        np.testing.assert_array_equal(memorised[0][0].pixels, np.asarray(image).transpose(2, 0, 1))
    assert found.card.copies == 1


def test_the_report_of_an_evaluation_holds_its_scores_card_and_pictures(folders):
    found = vqtool.evaluate("a", ref="b", report="r.html")
    page = parse((folders / "r.html").read_text())
    for score in found.scores:
        assert score.name in page.text
    assert found.card.reference.id in page.text
    assert len([tag for tag, _ in page.found if tag == "img"]) > 12 * 4
    with pytest.raises(vqtool.VqtoolError, match="`force`"):
        vqtool.evaluate("a", ref="b", report="r.html")
    with pytest.raises(vqtool.VqtoolError, match=r"r\.json: a page would be written there; name it r\.html"):
        vqtool.evaluate("a", ref="b", report="r.json")


def test_pairs_and_reconstructions_show_the_worst_first(folders, tokenizer_path):
    vqtool.evaluate("a", ref="b", paired=True, report="p.html")
    assert "Farthest from their originals" in (folders / "p.html").read_text()
    found = vqtool.evaluate("a", tokenizer=tokenizer_path, size="16", report="t.html")
    sheet, usage = found.exhibits
    errors = [float(row[1].text.split()[1]) for row in sheet.rows]
    assert errors == sorted(errors, reverse=True)
    assert sum(usage.y) == found.about["num_tokens"]
