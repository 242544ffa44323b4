"""Shows which characters of its lyrics a song sings when: as data, as a picture and as a page that plays it."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from urllib.parse import quote, unquote

import numpy as np

from .pictures import require_matplotlib

# 16 codes of the released models' top level, as in the original's page.
STEP_SECONDS = 16 * 128 / 44100
# Over steps and over characters, as in the original's page.
BLUR_SIGMA = 1.5
# The attention, blurred, that counts as certain: the original's page shows it and all above in its full colour.
FULL_ATTENTION = 23 / 255
# Fainter characters are left out. Since the weights of a moment sum to at most 1, no more than 44 remain.
MIN_STRENGTH = 64
PICTURE_COLUMNS = 2400
MAX_LABEL_CHARACTERS = 48
# Matplotlib's labels need about so much height to stay apart.
LABEL_INCHES = 0.17


@dataclass(frozen=True)
class LyricHighlights:
    """Which characters of the lyrics are sung at each moment of a song.

    Args:
        seconds_per_step (`float`): how long a step is. Step s lasts from `s * seconds_per_step` to
            `(s + 1) * seconds_per_step` seconds after the start of the song.
        steps (`list[dict[int, int]]`): for each step, from its characters' indices in the lyrics, ascending, to how
            clearly they are sung, from `MIN_STRENGTH` to 255; empty where nobody sings.
    """

    seconds_per_step: float
    steps: list[dict[int, int]]

    def at(self, seconds: float) -> dict[int, int]:
        """Returns the characters at a moment of the song and their strengths; none before its start or after its end.

        Args:
            seconds (`float`): since the start of the song.
        """
        step = int(seconds // self.seconds_per_step)
        return self.steps[step] if 0 <= step < len(self.steps) else {}


def sung_characters(weights: np.ndarray, seconds_per_code: float, lyrics: str) -> LyricHighlights:
    """Finds the characters that are sung at each moment: the weights of about 46 ms at a time, blurred and thinned out.

    Args:
        weights (`np.ndarray` `(codes, characters)`): each top-level code's attention to each character.
        seconds_per_code (`float`): the codes' hop length divided by the sampling rate.
        lyrics (`str`): the text whose characters the columns are.

    Raises:
        ValueError: weights that are not `(codes, characters)`, not finite or not of these lyrics, or a
            seconds_per_code that is not positive.
    """
    weights = _checked(weights, seconds_per_code, lyrics)
    codes_per_step = max(1, round(STEP_SECONDS / seconds_per_code))
    blurred = _means(weights, codes_per_step)
    for axis in (0, 1):
        blurred = _blur(blurred, axis)
    strengths = np.clip(np.rint(blurred * (255 / FULL_ATTENTION)), 0, 255).astype(np.uint8)
    steps = []
    for row in strengths:
        characters = np.flatnonzero(row >= MIN_STRENGTH)
        steps.append(dict(zip(characters.tolist(), row[characters].tolist())))
    return LyricHighlights(codes_per_step * seconds_per_code, steps)


def save_alignment_picture(path: str | os.PathLike, weights: np.ndarray, seconds_per_code: float, lyrics: str):
    """Draws the weights as a PNG, time to the right and lyrics downwards to the last character with any weight.

    Args:
        path (`str` or `os.PathLike`): of the picture; it appears there only when it is whole.
        weights, seconds_per_code, lyrics: as for [`sung_characters`].

    Raises:
        ImportError: matplotlib is missing.
        ValueError: what [`sung_characters`] raises, or a missing folder.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    weights = _checked(weights, seconds_per_code, lyrics)
    columns = _means(weights, -(-len(weights) // PICTURE_COLUMNS))
    num_characters = 1 + max(np.flatnonzero(columns.any(axis=0)), default=0)
    height = min(10.0, 3 + LABEL_INCHES * lyrics.count("\n"))
    gap, labels, start = LABEL_INCHES * num_characters / (height - 1), {}, 0
    for line in lyrics.split("\n"):
        if line.strip() and start < num_characters and start - max(labels, default=-np.inf) >= gap:
            is_long = len(line) > MAX_LABEL_CHARACTERS
            labels[start] = f"{line[: MAX_LABEL_CHARACTERS - 1]}…" if is_long else line
        start += len(line) + 1

    figure = Figure(figsize=(12, height), layout="constrained")
    panel = figure.subplots()
    image = panel.imshow(
        columns[:, :num_characters].T,
        aspect="auto",
        extent=(0, len(weights) * seconds_per_code, num_characters, 0),
        vmin=0,
        vmax=FULL_ATTENTION,
        cmap="magma",
    )
    panel.set_yticks(list(labels), list(labels.values()), parse_math=False)
    panel.set_xlabel("seconds")
    figure.colorbar(image, ax=panel, label="attention", extend="max", pad=0.01, aspect=50)
    with _whole_file(Path(path)) as partial:
        figure.savefig(partial, format="png", dpi=110)


def write_song_page(
    path: str | os.PathLike,
    audio_file: str | os.PathLike,
    title: str,
    facts: Mapping[str, str],
    lyrics: str = "",
    highlights: LyricHighlights | None = None,
    pictures: Mapping[str, str | os.PathLike] | None = None,
    downloads: Iterable[str | os.PathLike] = (),
):
    """Writes an HTML page that plays a song and lights up its lyrics as they are sung, without network access.

    The page names the other files by their names, so they must lie in its folder; move the folder as a whole.

    Args:
        path (`str` or `os.PathLike`): of the page; it appears there only when it is whole.
        audio_file (`str` or `os.PathLike`): the song, in a format that browsers play.
        title (`str`): its heading.
        facts (`Mapping[str, str]`): what to say about it, such as `{"Artist": "…", "Seed": "7"}`.
        lyrics (`str`): the whole text; empty for none.
        highlights ([`LyricHighlights`], *optional*): of these lyrics.
        pictures (`Mapping[str, str | os.PathLike]`, *optional*): from captions to pictures to show below.
        downloads (`Iterable[str | os.PathLike]`): files to link to.

    Raises:
        ValueError: a file that is missing or not in the page's folder, or highlights beyond the end of the lyrics.
    """
    path = Path(path)
    steps = highlights.steps if highlights else []
    last = max((character for step in steps for character in step), default=-1)
    if last >= len(lyrics):
        raise ValueError(f"highlights reach character {last} of {len(lyrics)}: give the lyrics they were made from.")
    data = {
        "lyrics": lyrics,
        "secondsPerStep": highlights.seconds_per_step if highlights else 1,
        "steps": [_pack(step) for step in steps],
    }
    fact_rows = (f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts.items())
    figures = (
        f'<figure><figcaption>{escape(caption)}</figcaption><img src="{_url(path, file)}" alt=""></figure>'
        for caption, file in (pictures or {}).items()
    )
    links = (f'<a href="{url}" download>{escape(unquote(url))}</a>' for url in (_url(path, file) for file in downloads))
    page = Template(files(__package__).joinpath("song_page.html").read_text(encoding="utf-8")).substitute(
        title=escape(title),
        audio=_url(path, audio_file),
        facts="\n".join(fact_rows),
        lyrics=escape(lyrics),
        figures="\n".join(figures),
        downloads="\n".join(links),
        # HTML has no escapes within scripts; JSON has, and so no text can end the element.
        data=json.dumps(data, separators=(",", ":")).replace("<", "\\u003c"),
    )
    with _whole_file(path) as partial:
        partial.write_text(page, encoding="utf-8")


def _checked(weights: np.ndarray, seconds_per_code: float, lyrics: str) -> np.ndarray:
    weights = np.asarray(weights)
    if weights.ndim != 2 or not weights.size:
        raise ValueError(f"weights {weights.shape}: give (codes, characters), at least one of each.")
    if weights.shape[1] != len(lyrics):
        raise ValueError(
            f"weights {weights.shape} are for {weights.shape[1]} characters, the lyrics have {len(lyrics)}: give the "
            "text that the weights were computed for."
        )
    if not 0 < seconds_per_code < np.inf:
        raise ValueError(f"seconds_per_code={seconds_per_code}: give hop length / sampling rate, a positive number.")
    return weights


def _means(weights: np.ndarray, codes_per_step: int) -> np.ndarray:
    """Averages so many codes at a time, the last of them maybe fewer: `(steps, characters)`, float32."""
    starts = np.arange(0, len(weights), codes_per_step)
    counts = np.diff(starts, append=len(weights)).astype(np.float32)
    means = np.add.reduceat(weights, starts, axis=0, dtype=np.float32) / counts[:, None]
    # Looked for here, since the weights of a whole song fill half a gigabyte.
    if not np.isfinite(means).all():
        code, character = np.argwhere(~np.isfinite(weights))[0].tolist()
        raise ValueError(f"weights[{code}, {character}] is {weights[code, character]}: give finite weights.")
    return means


def _blur(values: np.ndarray, axis: int) -> np.ndarray:
    radius = int(3 * BLUR_SIGMA)
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / BLUR_SIGMA) ** 2).astype(np.float32)
    kernel /= kernel.sum()
    padding = [(0, 0), (0, 0)]
    padding[axis] = (radius, radius)
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(values, padding), len(kernel), axis=axis)
    return windows @ kernel


def _pack(step: Mapping[int, int]) -> list[int]:
    """Makes `[distance from the character before, strength, …]`, which takes fewer digits than indices."""
    packed, previous = [], 0
    for character, strength in step.items():
        packed += [character - previous, strength]
        previous = character
    return packed


def _url(page: Path, file: str | os.PathLike) -> str:
    file = Path(file)
    if not file.is_file():
        raise ValueError(f"{file} is no file: write it before the page that shows it.")
    if file.parent.resolve() != page.parent.resolve():
        raise ValueError(f"{file} is not in the page's folder {page.parent}: put it there.")
    # A name need not be valid Unicode, and its bytes always have a URL.
    return quote(os.fsencode(file.name))


@contextmanager
def _whole_file(path: Path) -> Iterator[Path]:
    if not path.parent.is_dir():
        raise ValueError(f"{path.parent} is no folder: create it first.")
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
