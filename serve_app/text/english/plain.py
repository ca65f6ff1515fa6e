"""English text in plain words, for a voice that has seen little else.

A large model reads figures, abbreviations, capitals and signs by itself; a small one was made on
sentences, and goes astray at what stood in none of them.
"""

import re
import unicodedata
from collections.abc import Mapping
from typing import Final

from serve_app.text.english.amounts import amounts_in_words
from serve_app.text.english.capitals import capitals_in_words
from serve_app.text.normalise import addresses_in_words

_TYPED: Final = str.maketrans(
    {
        **dict.fromkeys("‘’‚‛′´", "'"),
        **dict.fromkeys("“”„‟«»″", '"'),
        **dict.fromkeys("–—―", " - "),
        "…": "...", "−": "-", "⁄": "/", "•": ",", "·": ",", "×": " times ", "÷": " divided by ",
        "½": " 1/2", "¼": " 1/4", "¾": " 3/4", "→": " to ", "≈": " about ", "≤": " <= ",
        "≥": " >= ", "™": "", "®": "", "©": "",
        # Of other languages' Latin letters, those that are no letter with an accent.
        "ß": "ss", "ẞ": "Ss", "æ": "ae", "Æ": "Ae", "œ": "oe", "Œ": "Oe", "ø": "o", "Ø": "O",
        "ł": "l", "Ł": "L", "đ": "d", "Đ": "D", "ð": "th", "Ð": "Th", "þ": "th", "Þ": "Th",
        "ı": "i",
    }
)  # fmt: skip
# One by itself is a sign and not Greek.
_GREEK: Final = re.compile("(?<![\u0370-\u03ff])[Α-ΡΣ-Ωα-ω](?![\u0370-\u03ffA-Za-z])")
_ABBREVIATIONS: Final[Mapping[str, str]] = {
    "Dr.": "Doctor", "Mr.": "Mister", "Mrs.": "Missus", "Ms.": "Miz", "Prof.": "Professor",
    "Jr.": "Junior", "Sr.": "Senior", "vs.": "versus", "approx.": "approximately",
    "dept.": "department", "est.": "established", "Inc.": "Incorporated", "Ltd.": "Limited",
    "Corp.": "Corporation", "e.g.": "for example", "i.e.": "that is", "E.g.": "For example",
    "I.e.": "That is", "a.k.a.": "also known as", "w/": "with", "w/o": "without",
    "Ave.": "Avenue", "Rd.": "Road", "Blvd.": "Boulevard", "Mt.": "Mount", "Gen.": "General",
    "Capt.": "Captain", "Sgt.": "Sergeant", "Gov.": "Governor", "Sen.": "Senator",
}  # fmt: skip
_ABBREVIATION: Final = re.compile(
    r"(?<![\w.])(?:"
    + "|".join(sorted(map(re.escape, _ABBREVIATIONS), key=len, reverse=True))
    + r")(?!\w)"
)
_RULES: Final = tuple(
    (re.compile(pattern), new)
    for pattern, new in (
        (r"!?\[([^\[\]\n]{1,500})\]\([^()\s]{0,500}\)", r"\1"),
        (r"\betc\.(?=\s*(?:$|[A-Z\"]))", "et cetera."),
        (r"\betc\.", "et cetera"),
        (r"\b([A-Z]\w+) St\.(?=\s+[A-Z]|\s*$)", r"\1 Street."),
        (r"\b([A-Z]\w+) St\.", r"\1 Street"),
        (r"\bSt\. (?=[A-Z][a-z]+)", "Saint "),
        (r"\bNo\. (?=\d)", "number "),
        (r"#(?=\d)", "number "),
        (r"\bv(?=\d)", "version "),
        (r"(?<=\d)~(?=\d)", " to "),
        (r"(?<![\w.])\.(?=\d)", "0."),
        (r"(?<=\w)\.(?=[a-z][a-z\d])", " dot "),
        (r"(?<![\w.'-])i(?![\w.-])", "I"),
        (r"(?<=\d)-(?=[$€£¥])|(?<=[AaPp]\.[Mm]\.)-(?=\d)|(?<=\d[AaPp][Mm])-(?=\d)", " to "),
        (r"(?<=\d)[x*](?=\d)", " times "),
        (r"\b([A-Za-z])\+\+", r"\1 plus plus "),
        (r"#(?=\w)", "hashtag "),
        (r"(?<=\w)_(?=\w)", " "),
        (r"(?<=[a-z])(?=[A-Z][a-z])", " "),
    )
)
_SIGNS: Final = tuple(
    (re.compile(pattern), new)
    for pattern, new in (
        (r"\s*>=\s*", " is at least "),
        (r"\s*<=\s*", " is at most "),
        (r"\s*(?:==?|:=)\s*", " equals "),
        (r"\s*(?:=>|->)\s*", " to "),
        (r"(?<=\w)\s+<\s+(?=\w)", " is less than "),
        (r"(?<=\w)\s+>\s+(?=\w)", " is more than "),
        (r"\s*&\s*", " and "),
        (r"(?<=\w)\s*\+\s*(?=\w)", " plus "),
        (r"(?<=\w)\s*\^\s*(?=\w)", " to the power of "),
        (r"(?<=\w)\s*\*\s*(?=\w)", " times "),
        (r"\+", " plus "),
        (r"~(?=\s*\w)", "about "),
        (r"@", " at "),
        (r"%", " percent"),
        (r"(?<=\w)/(?=\w)", " slash "),
        (r"(?<=\w):(?=\w)", " "),
        (r"\s+-+\s+|-{2,}", ", "),
        (r"\.{2,}(?=\s*$|\s+[A-Z])", "."),
        (r"\.{2,}", ", "),
        (r"[`*_~^|\\<>{}\[\]#=/]+", " "),
        (r"([,;:!?])(?:\s*[,;:])+", r"\1"),
        (r"(?:!+\?|\?+!)[!?]*|\?{2,}", "?"),
        (r"!{2,}", "!"),
        (r"\s+(?=[,;:.!?](?:\s|$))", ""),
        (r"\"\s*\"|\(\s*\)", " "),
        (r"^[\s,;:.!?'-]+(?=[\w\"(])", ""),
    )
)
_ENDED: Final = re.compile(r"[.!?:;,][\"')\]]*$")


def plain_english(text: str) -> str:
    """`text` in words and the signs between them; lines become sentences.

    Nothing is read out of what has no letter and no figure: it stays as it is.
    """
    if not any(map(str.isalnum, text)):
        return text
    text = _latin(text.translate(_TYPED)).translate(_TYPED)
    text = _GREEK.sub(lambda found: f" {unicodedata.name(found[0]).split()[-1].lower()} ", text)
    text = addresses_in_words(text, "en")
    text = _ABBREVIATION.sub(lambda found: _ABBREVIATIONS[found[0]], text)
    for pattern, new in _RULES:
        text = pattern.sub(new, text)
    text = capitals_in_words(amounts_in_words(text))
    lines = [_line(line) for line in text.split("\n")]
    return "\n".join(line for line in lines if line)


def _latin(text: str) -> str:
    """`text` without accents, and with what stands for other letters as those."""
    if text.isascii():
        return text
    return "".join(
        char for char in unicodedata.normalize("NFKD", text) if not unicodedata.combining(char)
    )


def _line(line: str) -> str:
    for pattern, new in _SIGNS:
        line = pattern.sub(new, line)
    line = " ".join(line.split())
    if not any(map(str.isalnum, line)):
        return ""
    return line if _ENDED.search(line) else f"{line}."
