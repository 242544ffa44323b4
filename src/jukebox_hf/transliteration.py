"""Writes text in ASCII, as Unidecode 1.1.1 does, with which the original cleaned its lyrics.

Unidecode is under the GPL. text-unidecode is another port of the same Perl tables under the Artistic License, and
agrees with it for nearly all letters and punctuation; the exceptions that lyrics may hold are listed here.
"""

import unicodedata
from itertools import chain

from text_unidecode import unidecode

# fmt: off
_EXCEPTIONS = {
    "¼": " 1/4 ", "½": " 1/2 ", "¾": " 3/4 ", "№": "No. ", "™": "(tm)", "\u2212": "-", "\u2060": "",
    "Є": "Ie", "Ъ": "'", "ъ": "'",
    "א": "A", "ח": "KH", "ץ": "TS", "צ": "TS", "ש": "SH", "ױ": "OY", "־": "-",
    "し": "shi", "ち": "chi", "っ": "tsu", "つ": "tsu", "シ": "shi", "チ": "chi", "ッ": "tsu", "ツ": "tsu",
}
# fmt: on
# Where Unidecode has nothing and text-unidecode writes "[?]": mostly rare scripts, but also "⭐".
_BLANK_BLOCKS = ((0x0800, 0x08FF), (0x1900, 0x1DFF), (0x2900, 0x2DFF), (0x3400, 0x4CFF), (0xA500, 0xABFF))
_STYLED_LETTERS = range(0x1D400, 0x1D800)

_TABLE = (
    dict.fromkeys(chain.from_iterable(range(first, last + 1) for first, last in _BLANK_BLOCKS), "")
    | {code: unicodedata.normalize("NFKC", chr(code)) for code in _STYLED_LETTERS}
    | str.maketrans(_EXCEPTIONS)
)


def transliterate(text: str) -> str:
    """Writes `text` in ASCII: "café" becomes "cafe", "…" becomes "..."; what has no equivalent disappears."""
    return unidecode(text.translate(_TABLE))
