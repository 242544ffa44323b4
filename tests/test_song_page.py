"""Which characters are sung when, their picture, and the page that shows them, in a real browser."""

import json
import os
import shutil
import time
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from jukebox_hf import song_page
from jukebox_hf.song_page import LyricHighlights, save_alignment_picture, sung_characters, write_song_page

SECONDS_PER_CODE = 128 / 44100
SECONDS = 8
NASTY = (
    "</script><script>window.hacked = 1</script>\n<b>\"bold\" & 'sharp'</b>\n<!-- &amp; äöü ß 🎵 e\u0301 \u2028 $title"
)
PIECES = (
    "</script>",
    "</title>",
    "<!--",
    "<script>",
    "<b>",
    "&amp;",
    "$",
    "${title}",
    '"',
    "'",
    "\\",
    "\u2028",
    "é\n🎵",
)
TEXTS = st.one_of(st.text(), st.lists(st.sampled_from(PIECES)).map("".join))
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
CHROMEDRIVER = shutil.which("chromedriver")


def _diagonal(codes: int, characters: int, sharpness: float = 0.6) -> np.ndarray:
    """The attention of a song that is sung evenly: most of it at one character, the rest spread around it."""
    sung = np.arange(codes) * characters / codes
    weights = np.exp(-sharpness * np.abs(np.arange(characters) + 0.5 - sung[:, None]))
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def wav(tmp_path_factory):
    path = tmp_path_factory.mktemp("audio") / "song.wav"
    soundfile.write(path, 0.1 * np.sin(2 * np.pi * 220 * np.arange(SECONDS * 8000) / 8000), 8000)
    return path


class _Page(HTMLParser):
    """A page's texts by the ids or the names of their elements, and its attributes."""

    def __init__(self, path: Path):
        super().__init__()
        self.texts, self.attributes, self.stack = {}, [], []
        self.feed(path.read_bytes().decode())
        self.data = json.loads(self.texts["data"])

    def handle_starttag(self, tag, attributes):
        self.attributes += [(tag, *attribute) for attribute in attributes]
        if tag not in ("meta", "link", "img"):
            self.stack.append(dict(attributes).get("id", tag))
            self.texts.setdefault(self.stack[-1], "")

    def handle_endtag(self, tag):
        self.stack.pop()

    def handle_data(self, data):
        if self.stack:
            self.texts[self.stack[-1]] += data


def _unpack(steps: list[list[int]]) -> list[dict[int, int]]:
    return [dict(zip(np.cumsum(step[::2]).tolist(), step[1::2])) for step in steps]


def test_sung_characters_follow_the_attention():
    lyrics, codes = "abcdefghij" * 20, int(20 / SECONDS_PER_CODE)
    highlights = sung_characters(_diagonal(codes, 200), SECONDS_PER_CODE, lyrics)
    assert highlights.seconds_per_step == 16 * SECONDS_PER_CODE
    assert len(highlights.steps) == -(-codes // 16)
    for seconds in np.arange(0.5, 19.5, 0.1):
        characters = highlights.at(seconds)
        # The middle of the step that holds the moment.
        sung = 10 * (seconds // highlights.seconds_per_step + 0.5) * highlights.seconds_per_step
        assert abs(np.average(list(characters), weights=list(characters.values())) - sung) < 0.7
        assert list(characters) == list(range(min(characters), max(characters) + 1)) and len(characters) < 20
    assert highlights.at(-0.01) == highlights.at(20.1) == {}


def test_one_weight_becomes_a_bell_over_time_and_characters():
    weights = np.zeros((20 * 16, 21))
    weights[10 * 16 : 11 * 16, 10] = 1
    steps = sung_characters(weights, SECONDS_PER_CODE, "x" * 21).steps
    # The peak of a two-dimensional bell of sigma 1.5, cut off beyond three of it; 23 / 255 is a strength of 255.
    peak = 255 * (255 / 23) * (1 / np.exp(-(np.arange(-4, 5) ** 2) / 4.5).sum()) ** 2
    for step, character in np.ndindex(20, 21):
        distance = (step - 10) ** 2 + (character - 10) ** 2
        expected = peak * np.exp(-distance / 4.5)
        if expected < 62:
            assert character not in steps[step]
        elif expected > 65:
            assert abs(steps[step][character] - min(255, expected)) < 1


def test_steps_have_one_length_whatever_the_hop():
    coarse, fine = (
        sung_characters(np.full((codes, 4), 0.07), seconds, "song") for codes, seconds in ((30, 0.1), (4741, 1 / 1600))
    )
    assert (coarse.seconds_per_step, len(coarse.steps)) == (0.1, 30)
    # 64 whole steps, and one of 5 codes that is worth no less.
    assert (fine.seconds_per_step, len(fine.steps)) == (74 / 1600, 65)
    for steps in (coarse.steps, fine.steps):
        assert steps[0] == steps[-1] and set(steps[0]) == {0, 1, 2, 3} and max(steps[0].values()) < 255


@pytest.mark.parametrize("show", [sung_characters, lambda *a: save_alignment_picture("never.png", *a)])
@pytest.mark.parametrize(
    ("weights", "seconds", "message"),
    [
        (np.zeros(4), 0.1, r"weights \(4,\): give \(codes, characters\)"),
        (np.zeros((0, 4)), 0.1, r"weights \(0, 4\): give .* at least one of each"),
        (np.zeros((3, 5)), 0.1, r"weights \(3, 5\) are for 5 characters, the lyrics have 4: give the text"),
        (np.array([[0, 0, 0, 0], [0, 0, np.nan, 0]]), 0.1, r"weights\[1, 2\] is nan: give finite"),
        (np.array([[0, -np.inf, 0, np.inf]]), 0.1, r"weights\[0, 1\] is -inf: give finite"),
        (np.zeros((3, 4)), 0, "seconds_per_code=0: give hop length / sampling rate"),
        (np.zeros((3, 4)), float("nan"), "seconds_per_code=nan: give"),
    ],
)
def test_bad_weights_say_what_is_wrong(monkeypatch, tmp_path, show, weights, seconds, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        show(weights, seconds, "song")
    assert not os.listdir()


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_attention_gives_few_characters_within_the_lyrics(tmp_path_factory, wav, data):
    shape = data.draw(st.tuples(st.integers(1, 60), st.integers(1, 90)))
    weights = data.draw(st_numpy.arrays(np.float32, shape, elements=st.floats(0, 1, width=32)))
    weights /= np.maximum(1, weights.sum(axis=1, keepdims=True))
    seconds = data.draw(st.sampled_from([0.5, SECONDS_PER_CODE, 1e-4]))
    lyrics = data.draw(st.text(min_size=shape[1], max_size=shape[1]))
    highlights = sung_characters(weights, seconds, lyrics)
    assert len(highlights.steps) * highlights.seconds_per_step >= len(weights) * seconds * 0.999
    for step in highlights.steps:
        assert len(step) <= 44 and list(step) == sorted(step)
        assert all(0 <= character < len(lyrics) for character in step)
        assert all(64 <= strength <= 255 for strength in step.values())
    page = wav.parent / "any.html"
    write_song_page(page, wav, "Any", {}, lyrics, highlights)
    data = _Page(page).data
    assert _unpack(data["steps"]) == highlights.steps
    assert (data["lyrics"], data["secondsPerStep"]) == (lyrics, highlights.seconds_per_step)


@settings(max_examples=60, deadline=None)
@given(texts=st.lists(TEXTS, min_size=4, max_size=4))
def test_any_text_comes_back_as_it_was(wav, texts):
    title, name, fact, lyrics = texts
    page = wav.parent / "texts.html"
    write_song_page(page, wav, title, {name: fact}, lyrics, pictures={name: wav})
    parsed = _Page(page)
    assert (parsed.texts["title"], parsed.texts["h1"]) == (title, title)
    assert (parsed.texts["dt"], parsed.texts["dd"], parsed.texts["figcaption"]) == (name, fact, name)
    assert parsed.texts["lyrics"] == parsed.data["lyrics"] == lyrics
    assert ("audio", "aria-label", title) in parsed.attributes


@pytest.mark.parametrize("spread", [2, 44])
def test_a_long_song_gives_a_small_page(wav, spread):
    codes, lyrics = int(180 / SECONDS_PER_CODE), "la la <la> " * 182
    weights = np.zeros((codes, len(lyrics)), np.float32)
    for offset in range(spread):
        weights[np.arange(codes), np.arange(codes) * 1950 // codes + offset] = 1 / spread
    highlights = sung_characters(weights, SECONDS_PER_CODE, lyrics)
    assert np.mean([len(step) for step in highlights.steps]) > 0.8 * spread
    page = wav.parent / "long.html"
    write_song_page(page, wav, "Long", {}, lyrics, highlights)
    assert page.stat().st_size < 1e6


def test_the_picture_shows_seconds_and_the_lines_that_have_room(monkeypatch, tmp_path):
    figure_class = pytest.importorskip("matplotlib.figure").Figure
    figures, savefig = [], figure_class.savefig
    monkeypatch.setattr(figure_class, "savefig", lambda self, *a, **k: figures.append(self) or savefig(self, *a, **k))
    lines = [f"Line {line} of $a_b$ song" for line in range(30)]
    lyrics = "\n".join([*lines, "", "oh", "no room for this", "x" * 99, "not sung " * 9, "nor this"])
    num_sung = lyrics.index("xxx") + 9
    weights = np.zeros((1000, len(lyrics)))
    weights[:, :num_sung] = _diagonal(1000, num_sung)
    save_alignment_picture(tmp_path / "align.png", weights, 0.01, lyrics)
    panel = figures[0].axes[0]
    labels = {int(tick): label.get_text() for tick, label in zip(panel.get_yticks(), panel.get_yticklabels())}
    assert list(labels.values()) == [*lines, "oh", "x" * 47 + "…"]
    assert all(lyrics[start:].startswith(label.rstrip("…")) for start, label in labels.items())
    assert not panel.get_yticklabels()[0].get_parse_math()
    image = panel.images[0]
    assert image.get_extent() == [0, 10, num_sung, 0]
    sung = image.get_array().argmax(axis=0) / image.get_array().shape[0]
    np.testing.assert_allclose(sung, np.linspace(0, 1, len(sung)), atol=0.01)
    assert os.listdir(tmp_path) == ["align.png"]


def test_the_picture_is_a_png_even_of_silence(tmp_path):
    pytest.importorskip("matplotlib")
    for codes in (1, 5000):
        save_alignment_picture(tmp_path / "align.png", np.zeros((codes, 3)), 0.01, "a\nb")
        assert (tmp_path / "align.png").read_bytes()[:4] == b"\x89PNG"


def test_a_picture_needs_matplotlib_and_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr("jukebox_hf.pictures.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'jukebox-hf\[pictures\]'"):
        save_alignment_picture(tmp_path / "align.png", np.zeros((1, 1)), 0.01, "a")


def test_files_appear_whole_or_not_at_all(monkeypatch, wav):
    page, picture = wav.parent / "whole.html", wav.parent / "whole.png"
    for path in (page, picture):
        path.write_text("old")
    before = sorted(os.listdir(wav.parent))
    # No UTF-8 can hold half a surrogate pair.
    with pytest.raises(UnicodeEncodeError):
        write_song_page(page, wav, "\ud800", {})
    monkeypatch.setattr(song_page.os, "replace", _fail)
    with pytest.raises(OSError, match="disk is full"):
        write_song_page(page, wav, "Song", {})
    with pytest.raises(OSError, match="disk is full"):
        save_alignment_picture(picture, np.zeros((1, 1)), 0.01, "a")
    assert (page.read_text(), picture.read_text()) == ("old", "old")
    assert sorted(os.listdir(wav.parent)) == before


def _fail(*_):
    raise OSError("the disk is full")


def test_bad_files_say_what_is_wrong(tmp_path, wav):
    page, here, there = tmp_path / "page.html", tmp_path / "song.wav", tmp_path / "else" / "song.wav"
    shutil.copy(wav, here)
    there.parent.mkdir()
    shutil.copy(wav, there)
    missing = tmp_path / "no.wav"
    for message, change in {
        r"no\.wav is no file: write it before": dict(audio_file=missing),
        r"song\.wav is not in the page's folder .*: put it there": dict(audio_file=there),
        r"no\.wav is no file: write": dict(pictures={"Spectrogram": missing}),
        r"song\.wav is not in the page's folder": dict(downloads=[there]),
        r"highlights reach character 4 of 4: give the lyrics": dict(
            highlights=LyricHighlights(1.0, [{}, {2: 90, 4: 99}])
        ),
    }.items():
        arguments = dict(path=page, audio_file=here, title="Song", facts={}, lyrics="song") | change
        with pytest.raises(ValueError, match=message):
            write_song_page(**arguments)
    with pytest.raises(ValueError, match="gone is no folder: create it first"):
        save_alignment_picture(tmp_path / "gone" / "align.png", np.zeros((1, 1)), 0.01, "a")
    assert sorted(os.listdir(tmp_path)) == ["else", "song.wav"]


# From here on, the browser.


@pytest.fixture(scope="module")
def browser():
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    if not CHROMIUM or not CHROMEDRIVER:
        pytest.skip("chromium and chromedriver are not installed (apt install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--autoplay-policy=no-user-gesture-required"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(CHROMEDRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def open_page(browser, wav, tmp_path):
    """Writes a page of `arguments`, opens it and gives the browser; no page may log anything."""

    def open_page(name: str = "song.wav", **arguments):
        shutil.copy(wav, tmp_path / name)
        write_song_page(tmp_path / "page.html", tmp_path / name, **{"title": "Song", "facts": {}} | arguments)
        browser.get((tmp_path / "page.html").as_uri())
        return browser

    _emulate(browser)
    yield open_page
    assert browser.get_log("browser") == []
    browser.get("about:blank")


def _emulate(browser, width: int = 1000, **media: str):
    screen = {"width": width, "height": 700, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    features = [{"name": f"prefers-{name.replace('_', '-')}", "value": value} for name, value in media.items()]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def _until(browser, condition: str, *arguments, seconds: float = 20):
    """Waits until an expression of JavaScript, of `audio` and `arguments`, is true, and returns it."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        value = browser.execute_script(f"const audio = document.querySelector('audio'); return {condition}", *arguments)
        if value:
            return value
        time.sleep(0.02)
    raise AssertionError(f"{condition} did not come true in {seconds} s")


LIT = """[
  audio.currentTime,
  [...document.querySelectorAll("#lyrics span")].flatMap((span, character) => {
    const strength = span.style.getPropertyValue("--strength");
    return strength ? [[character, Math.round(255 * strength)]] : [];
  }),
]"""


def _lit(browser) -> tuple[float, dict[int, int]]:
    seconds, lit = _until(browser, LIT)
    return seconds, dict(lit)


def _pause(browser):
    browser.execute_async_script(
        "const [done] = arguments, audio = document.querySelector('audio');"
        "audio.addEventListener('timeupdate', () => setTimeout(done), { once: true }); audio.pause();"
    )


def _seek(browser, seconds: float):
    browser.execute_async_script(
        "const [seconds, done] = arguments, audio = document.querySelector('audio');"
        "audio.addEventListener('seeked', () => setTimeout(done), { once: true }); audio.currentTime = seconds;",
        seconds,
    )


@pytest.fixture(scope="module")
def sung():
    """Lyrics of 30 lines and their highlights, evenly over the song."""
    lyrics = "\n".join(f"line {line:2} is sung <b>now</b> 🎵" for line in range(30))
    codes = int(SECONDS / SECONDS_PER_CODE)
    return lyrics, sung_characters(_diagonal(codes, len(lyrics)), SECONDS_PER_CODE, lyrics)


def test_the_highlight_moves_with_the_music(open_page, sung):
    lyrics, highlights = sung
    browser = open_page(lyrics=lyrics, highlights=highlights)
    assert _lit(browser) == (0, {})
    # Counted within the page, where no slow driver comes in between.
    browser.execute_script("""
        window.seen = new Set();
        setInterval(() => {
          const span = document.querySelector("#lyrics span[style*=strength]");
          if (span) seen.add(span);
        }, 10);
        document.querySelector("audio").play();
    """)
    moments = []
    for start in (0.3, 3.0):
        browser.execute_script("document.querySelector('audio').play()")
        _until(browser, "audio.currentTime > arguments[0]", start)
        _pause(browser)
        seconds, lit = _lit(browser)
        assert lit and lit == highlights.at(seconds)
        moments.append(lit)
    assert max(moments[0]) < min(moments[1])
    # Four times a second at most is all that `timeupdate` would give in these 2.7 seconds.
    assert browser.execute_script("return seen.size") > 24


def test_seeking_moves_the_highlight(open_page, sung):
    lyrics, highlights = sung
    browser = open_page(lyrics=lyrics, highlights=highlights)
    for seconds in (6.01, 1.02, 3.03):
        _seek(browser, seconds)
        now, lit = _lit(browser)
        assert now == pytest.approx(seconds) and lit == highlights.at(seconds) != {}
    strongest = max(lit, key=lit.get)
    colours = """Array.from(arguments, (index) => {
      return getComputedStyle(document.querySelectorAll("#lyrics span")[index]).backgroundColor;
    })"""
    _until(browser, f"new Set({colours}).size === 3", strongest, min(lit), 0)
    _seek(browser, SECONDS)
    assert _lit(browser)[1] == highlights.at(SECONDS)


def test_the_line_that_is_sung_comes_into_view_unless_someone_scrolls(open_page, sung):
    lyrics, highlights = sung
    browser = open_page(lyrics=lyrics, highlights=highlights)
    _emulate(browser, reduced_motion="reduce")
    _seek(browser, 0.5)
    assert browser.execute_script("return scrollY") == 0
    place = 'document.querySelector("#lyrics span[style*=strength]").getBoundingClientRect()'
    for seconds in (6.5, 1.5):
        _seek(browser, seconds)
        top, bottom, player = browser.execute_script(
            f"return [{place}.top, {place}.bottom, document.querySelector('#player').getBoundingClientRect().bottom]"
        )
        assert 0 < player < 120 < top < bottom < 0.7 * 700
    # As if someone scrolled to the end; there the player's own keys must not stop the page from following.
    browser.execute_script(
        "document.querySelector('audio').dispatchEvent(new KeyboardEvent('keydown', { bubbles: true }))"
    )
    browser.execute_script("scrollTo(0, document.body.scrollHeight)")
    end = browser.execute_script("return scrollY")
    _seek(browser, 0.5)
    assert browser.execute_script("return scrollY") < end / 2
    browser.execute_script("document.body.dispatchEvent(new WheelEvent('wheel', { bubbles: true }))")
    browser.execute_script("scrollTo(0, document.body.scrollHeight)")
    _seek(browser, 1.0)
    assert browser.execute_script("return scrollY") == end


@pytest.mark.parametrize("has_highlights", [True, False])
def test_texts_show_verbatim(open_page, has_highlights):
    highlights = LyricHighlights(1.0, [{len(NASTY) - 1: 255}]) if has_highlights else None
    browser = open_page(title=NASTY, facts={NASTY: NASTY}, lyrics=NASTY, highlights=highlights)
    for selector in ("#lyrics", "h1", "dt", "dd"):
        text = browser.execute_script("return document.querySelector(arguments[0]).textContent", selector)
        assert text == NASTY, selector
    assert browser.execute_script("return [window.hacked ?? 0, document.querySelectorAll('b').length]") == [0, 0]
    assert browser.execute_script("return getComputedStyle(document.querySelector('#lyrics')).whiteSpace") == "pre-wrap"
    _seek(browser, 0.5)
    lit = _lit(browser)[1]
    if has_highlights:
        # Also behind an emoji, which is two characters in JavaScript.
        assert lit == {len(NASTY) - 1: 255}
        assert _until(browser, "document.querySelectorAll('#lyrics span')[arguments[0]].textContent", *lit) == NASTY[-1]


@pytest.mark.parametrize("name", ["my song #1 100% ?.wav", "\"a\" & 'b' <c>.wav", "für:%20 é🎵.wav", "a\\b;+=.wav"])
def test_files_of_any_name_are_found(open_page, tmp_path, name):
    picture = tmp_path / name.replace("wav", "svg")
    picture.write_text('<svg xmlns="http://www.w3.org/2000/svg" width="40" height="30"/>')
    browser = open_page(name, pictures={"Spectrogram": picture}, downloads=[picture])
    assert _until(browser, "audio.duration") == SECONDS
    _until(browser, "document.querySelector('img').naturalWidth === 40")
    link = "return [decodeURIComponent(document.querySelector('nav a').href), document.querySelector('nav').innerText]"
    href, text = browser.execute_script(link)
    assert href.endswith(f"/{picture.name}") and text == picture.name


def test_a_name_that_is_no_unicode_is_found(open_page, tmp_path):
    name = os.fsdecode(b"caf\xe9.wav")
    try:
        (tmp_path / name).touch()
    except OSError:
        pytest.skip("this file system has no such names")
    browser = open_page(name, downloads=[tmp_path / name])
    assert _until(browser, "audio.duration") == SECONDS


def test_without_lyrics_it_is_a_player(open_page):
    browser = open_page(facts={"Artist": "Nobody", "Seed": "7"})
    browser.execute_script("document.querySelector('audio').play()")
    _until(browser, "audio.currentTime > 0.3")
    facts = browser.execute_script("return document.querySelector('dl').innerText")
    assert facts.split() == ["Artist", "Nobody", "Seed", "7"]
    assert browser.execute_script("return document.querySelectorAll('#lyrics span, figure, nav a').length") == 0


def test_it_fits_a_phone_and_the_night(open_page):
    long = "w" * 200
    browser = open_page(title=long, facts={"Artist": long}, lyrics=long, highlights=LyricHighlights(1.0, [{0: 255}]))
    brightness = {}
    for scheme in ("light", "dark"):
        _emulate(browser, width=360, color_scheme=scheme)
        _until(browser, "innerWidth === 360")
        assert browser.execute_script("return document.documentElement.scrollWidth") <= 360
        colour = browser.execute_script("return getComputedStyle(document.body).backgroundColor.match(/\\d+/g)")
        brightness[scheme] = sum(map(int, colour))
    assert brightness["dark"] < 100 < 700 < brightness["light"]


def test_it_asks_the_network_for_nothing(open_page, sung, tmp_path):
    browser = open_page(lyrics=sung[0], highlights=sung[1])
    assert "http" not in (tmp_path / "page.html").read_text()
    names = browser.execute_script("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert all(name.startswith(("file:", "data:")) for name in names)
