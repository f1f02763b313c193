"""What is said of the pictures of the built-in prior: several captions each, in lower case and plain English."""

import json
import re
import tarfile
from collections import Counter
from pathlib import Path

PLAIN_SHARE = {"fluent": 2, "noto": 2}  # captions that name no style; so what names none is drawn mostly so
STYLES = {  # ways to say the style: after the name, and before it
    "openmoji": (("outline", "outline style", "openmoji"), ("an outline drawing of", "an outlined")),
    "noto": (("noto style", "shaded", "glossy"), ("a shaded drawing of", "a glossy")),
    "fluent": (("3d", "3d style", "3d render"), ("a 3d picture of", "a 3d")),
    "flat": (("flat", "flat style", "flat design"), ("a flat drawing of", "a flat")),
    "twemoji": (("twemoji style", "simple style", "twitter style"), ("a simple drawing of", "a simple")),
}
RAREST, ALONE = 12, 3  # a keyword of more emoji than this says too little, and too little to stand alone
# fmt: off
UNCOUNTED = {  # at the end of a name: no article
    "rice", "bread", "cheese", "fire", "water", "money", "luggage", "fog", "rain", "snow", "wind", "hair",
    "honey", "ice", "sushi", "bacon", "butter", "salt", "food", "spaghetti", "milk", "tea", "sake", "people",
    "women", "men", "laughing", "wrestling", "lightning", "pong", "tennis", "hockey", "golf", "corn", "garlic",
    "children",
}
BARE = {  # at the beginning
    "the", "a", "an", "no", "thumbs", "on", "not", "new", "up", "down", "ok", "see", "hear", "speak", "o",
    "men", "women", "people", "family", "kiss",
}
# fmt: on
EVERYDAY = {  # what people say for a name of Unicode's
    "automobile": "car",
    "oncoming automobile": "car from the front",
    "sport utility vehicle": "blue car",
    "high voltage": "lightning",
    "airplane": "plane",
    "bicycle": "bike",
    "television": "tv",
    "mobile phone": "phone",
    "telephone": "old phone",
    "locomotive": "steam train",
    "sailboat": "sailing boat",
    "red heart": "heart",
    "beer mug": "beer",
    "hot beverage": "cup of coffee",
    "shortcake": "piece of cake",
    "soccer ball": "football",
    "crescent moon": "moon",
    "glowing star": "shining star",
    "lady beetle": "ladybird",
    "tropical fish": "colourful fish",
    "spouting whale": "blue whale",
    "front-facing baby chick": "chick",
    "evergreen tree": "fir tree",
    "deciduous tree": "green tree",
    "rosette": "badge",
    "wrapped gift": "present",
    "light bulb": "lamp",
    "smiling face": "smiley",
    "grinning face": "smiley",
    "slightly smiling face": "smiley",
    "pistol": "water gun",
    "poultry leg": "chicken leg",
    "cooked rice": "bowl of rice",
    "spaghetti": "pasta",
    "bouquet": "bunch of flowers",
}
WORD = re.compile(r"(?!asian|gay|lesbian|race)[a-z][a-z ]{2,20}(?<!ing)(?<!ous)(?<!ful)(?<!ed)")
NO_TITLE = re.compile(
    r"clip ?arts?( by)?|various|submission|sibmission|untitled|^r\d+|road signs|etiquette icons|padella", re.IGNORECASE
)
TOO_WIDE = {
    "people",
    "office",
    "food",
    "animal",
    "animals",
    "tool",
    "tools",
    "symbol",
    "plant",
    "recreation",
    "transport",
}
TOO_WIDE |= {"education", "transportation", "geography", "electronics", "decoration", "mammal", "menu", "holiday"}
NO_WORD = {"hash", "unsorted", "clip art", "clipart", "appicon", "weathersym", "misc", "usholiday", "africanamerican"}


def article(name: str) -> str:
    """The name with "a" or "an" where English wants one: red apple -> a red apple, grapes -> grapes."""
    words = name.split()
    last = words[-1]
    plural = last.endswith("s") and not last.endswith(("ss", "us", "is"))
    if name.startswith("flag of "):
        return f"the {name}"
    if words[0] in BARE or plural or last in UNCOUNTED or not name[0].isalpha():
        return name
    vowel = name[0] in "aeio" or (name[0] == "u" and not name.startswith(("uni", "use", "uk", "un ")))
    return f"{'an' if vowel and not name.startswith(('one ', 'euro')) else 'a'} {name}"


def clean(text: str) -> str:
    """Lower-case words without numbers, signs and doubled blanks."""
    text = text.lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'").replace("_", " ")
    text = re.sub(r"\(b(lack)? ?(and|&) ?w(hite)?\)|\bb ?& ?w\b|\bbw\b|-md\b|\bsvg\b", " ", text)
    text = re.sub(r"[^\w' -]|(?<![\w])-|-(?![\w])", " ", text)
    return " ".join(text.split())


def emoji_names(sequence: str, entry: dict) -> list[str]:
    """What an emoji is called: its CLDR name, tidied, then short names that people use."""
    name = entry["en"].strip(":").replace("_", " ").replace("\N{RIGHT SINGLE QUOTATION MARK}", "'").lower()
    if 0x1F1E6 <= ord(sequence[0]) <= 0x1F1FF or "\U000e007f" in sequence:
        return [f"flag of {name}", f"{name} flag"]
    names = [name]
    if name.endswith(" face") and (0x1F400 <= ord(sequence[0]) <= 0x1F43F or 0x1F980 <= ord(sequence[0]) <= 0x1F9AE):
        names.append(name.removesuffix(" face"))
    names += [EVERYDAY[name]] if name in EVERYDAY else []
    for alias in (each.strip(":").replace("_", " ").replace("-", " ").lower() for each in entry.get("alias", [])):
        if re.fullmatch(r"[a-z][a-z ]{2,}", alias) and alias not in names and alias + "s" not in names:
            names.append(alias)
    return names[:2]


class Keywords:
    """Keywords of emoji, from npm's emojilib."""

    def __init__(self, archive: Path | None) -> None:
        self.of: dict[str, list[str]] = {}
        if archive is not None:
            with tarfile.open(archive) as tar:
                table = json.load(tar.extractfile("package/dist/emoji-en-US.json"))
            for sequence, words in table.items():
                plain = [word.replace("_", " ").replace("-", " ").lower() for word in words[1:]]
                self.of[sequence.replace("\ufe0f", "")] = [w for w in plain if WORD.fullmatch(w)]
        self.counts = Counter(word for words in self.of.values() for word in set(words))

    def find(self, sequence: str, names: list[str]) -> list[str]:
        """The keywords that its names do not hold yet, the rarest first."""
        said = set(" ".join(names).split())
        words = [word for word in self.of.get(sequence.replace("\ufe0f", ""), []) if not said & set(word.split())]
        return sorted(dict.fromkeys(words), key=lambda word: self.counts[word])


def emoji_captions(sequence: str, entry: dict, style: str, keywords: Keywords) -> list[str]:
    """About eight captions of one emoji in one style; the first is its name with the style."""
    names = emoji_names(sequence, entry)
    after, before = STYLES[style]
    name, short = names[0], names[-1]
    of, adjective = before
    named = article(name)
    bare = re.sub("^(an?|the) ", "", named)
    captions = [
        f"{name}, {after[1]}",
        f"{named}, {after[0]}",
        f"{of} {named}",
        f"{adjective} {bare}" if named != name else f"{name}, {after[0]} drawing",
        f"{short} {after[0]}",
        f"{article(short)}, {after[2]}",
    ]
    captions += [named, article(short)][: PLAIN_SHARE.get(style, 1)]
    captions += [name] if style in PLAIN_SHARE else []
    rare = [word for word in keywords.find(sequence, names) if keywords.counts[word] <= RAREST]
    if rare:
        captions.append(f"{name}, {', '.join(rare[:2])}, {after[0]}")
    if rare and keywords.counts[rare[0]] <= ALONE:
        captions.append(f"{rare[0]}, {after[1]}")
    return list(dict.fromkeys(caption.lower() for caption in captions))


def clipart_captions(svg: str, stem: str, folder: str, kind: str = "clip art") -> list[str]:
    """Captions of a piece of clip art out of the metadata of its SVG, its file's name and its folder; none if unknown.

    Args:
        svg: the text of the SVG.
        stem: of the file's name.
        folder: the last one that the file lies in.
        kind: how the captions call it: "clip art", "black and white clip art".
    """
    head = svg[:20_000]
    titles = re.findall(r"<dc:title[^>]*>([^<]*)</dc:title>", head)
    creator = re.search(r"<dc:creator>.*?<dc:title[^>]*>([^<]*)<", head, re.DOTALL)
    author = set(re.findall(r"[a-z]{3,}", (creator[1] if creator else "").lower()))
    italian = "rollandin" in author
    subjects = [clean(word) for word in re.findall(r"<rdf:li>([^<]*)</rdf:li>", head)]
    subjects = [s for s in subjects if s and not (set(s.split()) & (NO_WORD | author)) and not re.search(r"\d", s)]
    title = "" if italian or not titles or NO_TITLE.search(titles[0]) else clean(titles[0])
    if not title and not italian:
        title = clean(stem)
        starts = {each[:5] for each in author}
        title = " ".join(word for word in title.split() if word[:5] not in starts)
    title = " ".join(word for word in re.sub(r"\b\w*\d\w*\b", " ", title).split() if word not in author)
    title = re.sub(r"^(a|an|the|simple|stylized) ", "", title)
    subjects = list(dict.fromkeys(s for s in subjects if s != title and len(s) < 24))[:4]
    if len(re.sub(r"[^a-z]", "", title)) < 3 or len(title) > 60:
        title = ""
    name = title or next((subject for subject in subjects if subject not in TOO_WIDE), "")
    if not name:
        return []
    named = article(name)
    captions = [named] if kind == "clip art" else []
    captions += [f"{name}, {kind}", f"{kind} of {named}", f"{named}, {kind} style"]
    captions += (
        [f"{name}, {', '.join(s for s in subjects if s != name)}, {kind}"] if len(subjects) > (not title) else []
    )
    captions += [f"{kind} of {named}, {folder}"] if folder not in (name, "unsorted") else []
    return list(dict.fromkeys(captions))
