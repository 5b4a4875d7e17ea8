"""The pairs that parity with the reference is held to, and the settings they are scored under.

Everything is made here: the sentences are the project's own (reference_sentences.py), the long texts follow from a
seed, so a golden file need not store them. A case's name is unique within its group; `groups(model)` lists them all.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from reference_sentences import LANGUAGES, THEMES, passage, question

# Single pieces in both tokenizers, so that n words are n tokens (make_golden.py checks it).
ONE_TOKEN_WORDS = ("de", "la", "en", "a", "que", "el")
FLAG, CROSS_ENCODER = "FlagReranker", "CrossEncoder"


@dataclass(frozen=True)
class Case:
    """One pair to score."""

    name: str
    query: str
    passage: str


@dataclass(frozen=True)
class Group:
    """Cases under one setting. `reference` decides the truncation rule; None as query_max_length: its default."""

    name: str
    reference: str
    max_length: int
    query_max_length: int | None
    cases: list[Case] = field(repr=False)

    @property
    def truncation(self) -> str:
        return "only_second" if self.reference == FLAG else "longest_first"


def groups(model: str) -> list[Group]:
    """Every group that `model` ("tiny-xlmr", "tiny-bert", "mini") is held to."""
    if model == "mini":
        return [Group("sentences", FLAG, 512, None, [*theme_pairs(), *cross_language_pairs()])]
    specials = 4 if model == "tiny-xlmr" else 3
    found = [
        Group("sentences", FLAG, 512, None, [*theme_pairs(), *other_theme_pairs(), *cross_language_pairs()]),
        Group("sentences_cut", FLAG, 32, None, list(theme_pairs())),
        Group("sentences_longest_first", CROSS_ENCODER, 32, None, list(theme_pairs())),
        Group("hostile", FLAG, 128, None, list(hostile_pairs())),
        Group("hostile_longest_first", CROSS_ENCODER, 128, None, list(hostile_pairs())),
        Group("long", FLAG, 512, None, list(long_pairs())),
        Group("long_cut", FLAG, 32, None, list(long_pairs())),
        Group("long_longest_first", CROSS_ENCODER, 32, None, list(long_pairs())),
    ]
    found += _border_groups(specials)
    if model == "tiny-xlmr":
        found.append(Group("long_1024", FLAG, 1024, None, list(long_pairs())[:2]))
        found.append(Group("long_1024_longest_first", CROSS_ENCODER, 1024, None, list(long_pairs())[:2]))
    return found


def _border_groups(specials: int) -> list[Group]:
    found = [
        Group(f"border_{limit}", FLAG, limit, None, list(only_second_borders(limit, specials)))
        for limit in (32, 33, 128, 512)
    ]
    found += [
        Group(
            f"border_{limit}_query_{most}",
            FLAG,
            limit,
            most,
            list(only_second_borders(limit, specials, most)),
        )
        for limit, most in ((32, 8), (33, 27), (128, 9))
    ]
    found += [
        Group(
            f"border_{limit}_longest_first",
            CROSS_ENCODER,
            limit,
            None,
            list(longest_first_borders(limit, specials)),
        )
        for limit in (32, 33, 127, 128)
    ]
    return found


def theme_pairs() -> Iterator[Case]:
    """Each question with the passage that answers it: 48 pairs."""
    for language in LANGUAGES:
        for theme in THEMES:
            yield Case(f"{language}/{theme}", question(language, theme), passage(language, theme))


def other_theme_pairs() -> Iterator[Case]:
    """Each question with a passage on something else: 48 pairs."""
    for language in LANGUAGES:
        for theme, other in zip(THEMES, THEMES[1:] + THEMES[:1], strict=True):
            yield Case(f"{language}/{theme}/{other}", question(language, theme), passage(language, other))


def cross_language_pairs() -> Iterator[Case]:
    """A question with its answer in the next language: 12 pairs."""
    for number, language in enumerate(LANGUAGES):
        other, theme = LANGUAGES[(number + 1) % 12], THEMES[number % 4]
        yield Case(f"{language}-{other}/{theme}", question(language, theme), passage(other, theme))


def hostile_pairs() -> Iterator[Case]:
    """Each hostile text as the query, as the passage, and every fourth one as both."""
    plain_query, plain_passage = question("en", "tea"), "Two minutes at 75 °C."
    for number, (name, text) in enumerate(HOSTILE_TEXTS.items()):
        yield Case(f"query: {name}", text, plain_passage)
        yield Case(f"passage: {name}", plain_query, text)
        if number % 4 == 0:
            yield Case(f"both: {name}", text, text)


def only_second_borders(
    max_length: int, specials: int, query_max_length: int | None = None
) -> Iterator[Case]:
    """Pairs one below, at and one above each limit of "only_second", with queries of odd and even length."""
    query_limit = query_max_length or max_length * 3 // 4
    for query_tokens in (1, 5, 6, query_limit - 1, query_limit, query_limit + 1, query_limit + 20):
        room = max_length - specials - min(query_tokens, query_limit)
        for passage_tokens in sorted({0, 1, room - 1, room, room + 1, max_length, max_length + 1}):
            yield _words_case(query_tokens, passage_tokens)


def longest_first_borders(max_length: int, specials: int) -> Iterator[Case]:
    """Pairs around the half and around the whole of what "longest_first" leaves for two texts."""
    room = max_length - specials
    half = room // 2
    sides = (half - 1, half, half + 1, half + 2, room + 7)
    lengths = [(first, second) for first in sides for second in sides]
    lengths += [(room - 3, few) for few in (2, 3, 4)] + [(few, room - 3) for few in (2, 3, 4)]
    lengths += [(0, room), (0, room + 1), (room, 0), (room + 1, 0), (1, 3 * room), (3 * room, 1)]
    for query_tokens, passage_tokens in lengths:
        yield _words_case(query_tokens, passage_tokens)


def _words_case(query_tokens: int, passage_tokens: int) -> Case:
    return Case(f"{query_tokens}+{passage_tokens}", words(query_tokens), words(passage_tokens, start=1))


def words(count: int, start: int = 0) -> str:
    """`count` words of one token each."""
    return " ".join(ONE_TOKEN_WORDS[(start + step) % len(ONE_TOKEN_WORDS)] for step in range(count))


def long_pairs() -> Iterator[Case]:
    """Texts far over the limit, and texts that a tokenizer of prefixes could cut at the wrong place."""
    ask, answer = question("de", "tides"), passage("de", "tides")
    yield Case("1 MB passage", ask, seeded_text(1_000_000))
    yield Case("20 KB query, 20 KB passage", seeded_text(20_000, seed=1), seeded_text(20_000, seed=2))
    yield Case("20 KB query, short passage", seeded_text(20_000, seed=1), answer)
    for name, text in {
        "one word of 20,000 letters": "ab" * 10_000,
        "one word of 5,000 Chinese characters": "水图书馆月球日" * 700,
        "4,000 spaces, then a word": " " * 4_000 + "word",
        "words between runs of spaces": ("word" + " " * 37) * 400,
        "words between tabs and newlines": "tea\t\nwater \n " * 700,
        "words that end before a mask": "tea <mask>" * 700,
        "masks between spaces": " <mask> " * 700,
        "pads between words": "a <pad> b<pad>c " * 500,
        "marks after a space": "tea ́ water  ̈sea " * 400,
        "joiners after a space": "tea \u200dwater \u200c\u200d sea " * 400,
        "U+2581 between words": "tea ▁water▁ ▁▁ sea " * 400,
        "control characters": "tea\x00 \x01water\x7f \x85sea " * 400,
        "Devanagari": (passage("hi", "tyre") + " ") * 12,
        "Thai": passage("th", "tides") * 12,
        "emoji families": "👩‍👩‍👧‍👦 👍🏽 🏳️‍🌈 " * 300,
    }.items():
        yield Case(f"passage: {name}", ask, text)
        yield Case(f"query: {name}", text, answer)


def seeded_text(size: int, seed: int = 0) -> str:
    """About `size` bytes of words from all twelve languages, drawn by a frozen stream."""
    vocabulary = [word for lang in LANGUAGES for theme in THEMES for word in passage(lang, theme).split()]
    mean = sum(len(word.encode()) + 1 for word in vocabulary) / len(vocabulary)
    drawn = np.random.RandomState(seed).random_sample(int(size / mean)) * len(vocabulary)
    return " ".join(vocabulary[int(number)] for number in drawn)


_VIETNAMESE = "Thư viện đóng cửa lúc trưa"
HOSTILE_TEXTS: dict[str, str] = {
    # Nothing, or nearly nothing.
    "empty": "",
    "a space": " ",
    "three spaces": "   ",
    "a tab": "\t",
    "newlines": "\n\n\r\n",
    "no-break space": "\u00a0",
    "ideographic space": "\u3000",
    "zero-width space": "\u200b",
    "byte order mark": "\ufeff",
    "soft hyphen": "\u00ad",
    "full stop": ".",
    # White space in and around words.
    "leading space": " green tea",
    "trailing space": "green tea ",
    "spaces all round": "   green   tea   ",
    "run of spaces": "green          tea",
    "space before full stop": "green tea .",
    "tabs and newlines": "green\ttea\nwater\r\nsea\vopen\fend",
    "spaces of many widths": "a\u00a0b\u2002c\u2003d\u2009e\u202ff\u205fg\u3000h",
    "line and paragraph separators": "tea\u2028water\u2029sea\x85open",
    "zero-width characters": "tea\u200bwater\u200csea\u200dopen\u2060end\ufeffstop",
    # Emoji.
    "emoji": "I like tea 🍵 and the sea 🌊🌊",
    "emoji family": "👩‍👩‍👧‍👦",
    "emoji skin tones": "👍👍🏻👍🏽👍🏿 👩🏾‍🚀",
    "flags": "🇩🇪🇯🇵 🏴󠁧󠁢󠁳󠁣󠁴󠁿 🏳️‍🌈",
    "keycaps and selectors": "1️⃣ 2⃣ ☕︎ ☕️ ©️",
    # Right to left.
    "Hebrew in English": "the word שלום means peace",
    "bidirectional marks": "\u200fمكتبة\u200e (library) \u202bالمدينة\u202c \u2067abc\u2069 \u202ecba\u202c",
    "Arabic with vowel signs": "الشَّايُ الأَخْضَرُ مُرٌّ",
    "Arabic presentation forms": "ﷺ ﻻ ﺷﺎﻱ",
    "tatweel": "مكتبـــــة",
    # Marks and normal forms.
    "Vietnamese NFC": unicodedata.normalize("NFC", _VIETNAMESE),
    "Vietnamese NFD": unicodedata.normalize("NFD", _VIETNAMESE),
    "Hangul NFD": unicodedata.normalize("NFD", "도서관은 일요일에 닫습니다"),
    "kana with sound marks": unicodedata.normalize("NFD", "がぎぐ パピプ") + " ｶﾞｷﾞ ﾊﾟﾋﾟ",
    "stacked marks": "Z̷͎̈́a̶̢͝l̴̡̛g̵̱̈́o̶͓͐ tea",
    "mark without a base": "́ and  ̈ and tea",
    "Devanagari joiners": "क्‍ष क्‌ष क्ष श्री",
    "Thai sara am": "น้ำ ทำ นํ้า",
    "Turkish i": "İstanbul ıslak IŞIK iğne",
    "German capital sharp s": "STRAẞE Straße ﬀ",
    # Compatibility characters.
    "full-width": "Ｇｒｅｅｎ　ｔｅａ，７５℃！",
    "ligatures": "ﬁne ﬂow eﬀect oﬃce ﬆone ŉ ĳ ǆ",
    "mathematical letters": "𝐆𝐫𝐞𝐞𝐧 𝓽𝓮𝓪 𝟟𝟝",
    "circled, squared, super, sub": "①②⑳ ㎏ ㍿ x² H₂O ™ ½ Ⅻ",
    "CJK compatibility": "豈 更 車 ⼀ ㈠ 〇",
    # What text should not hold, and does.
    "NUL": "\x00",
    "NUL in a word": "gre\x00en tea\x00",
    "control characters": "\x01\x02gr\x07een \x08tea\x1b[31m\x1f",
    "delete and C1": "green\x7f tea\x80\x81\x9f",
    "replacement character": "gr\ufffden \ufffd tea",
    "noncharacters": "tea\ufffe\uffff\U0001ffff water",
    "private use": "tea \ue000\uf8ff \U000f0000 water",
    "unassigned": "tea \u0378\U0003fffd water",
    "tags": "tea\U000e0061\U000e007f water",
    "surrogate neighbours": "\ud7ff\ue000\ufb00",
    # Text that looks like the tokenizers' own signs.
    "literal pad": "<pad>",
    "literal pads": "<pad><pad> green <pad>tea<pad> <pad>",
    "literal end": "</s>",
    "literal end in text": "green</s>tea </s> </s>water",
    "literal start": "<s> green <s>tea",
    "literal mask": "<mask>",
    "literal mask after a space": "green <mask> tea",
    "literal mask after spaces": "green   <mask>   tea  <mask>",
    "literal mask in a word": "gre<mask>en",
    "literal unknown": "<unk> green<unk>tea",
    "literal template": "<s> green tea </s></s> water </s><pad>",
    "not quite literals": "< pad > <PAD> <pad/> </ s> ＜ｐａｄ＞ <mask >",
    "BERT's literals": "[CLS] green [SEP] tea[MASK][PAD] [UNK] [sep]",
    "lower one eighth block": "▁",
    "lower one eighth blocks": "▁green ▁ tea▁▁ water▁",
    "word-piece signs": "##green ##s tea##ing",
    "byte-fallback look-alike": "<0x0A> <0xE2><0x96><0x81>",
    # Shapes of text.
    "very long word": "Donaudampfschifffahrtsgesellschaftskapitän" * 12,
    "letters over 100 in a word": "e" * 101 + " " + "e" * 100 + " " + "e" * 99,
    "digits": "3.14159265358979323846264338327950288419716939937510" * 3,
    "punctuation": "!?!?... --- *** ((())) \"'`´‘’“”„«»",
    "address": "https://example.org/a%20b?q=tea&lang=de#top",
    "markup": '<p class="x">green &amp; tea<br/></p>',
    "JSON": '{"tea": [1, 2.5e-3, null], "path": "C:\\\\temp\\n"}',
    "code": "def f(x):\n\treturn x**2  # тест\n",
    "mixed scripts": "Tea чай τσάι شاي चाय ชา 茶 お茶 차 çay trà ceai té",
    "no spaces, many scripts": "teaчайτσάιشايचायชา茶お茶차çaytràceaité",
    "rare scripts": "ᚠᚢᚦ 𐍈 ꦗꦮ ᠮᠣᠩ ⠃⠗ ጤና ᐃᓄᒃ",
    "astral ideographs": "𠮷野家 𡈽 𪚥",
}
