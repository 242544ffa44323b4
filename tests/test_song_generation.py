"""`generate` for whole songs: every window by hand, batches, beginnings, levels, callbacks, placement, alignment."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import assert_matches, golden
from test_composite_model import (
    RATE,
    generators,
    random_song_model,
    shared_song_model,
    song_conditions,
)
from test_composite_model import one_thread as one_thread
from torch import Tensor
from transformers import AutoModel, GenerationConfig

from jukebox_hf import JukeboxCache, JukeboxModel, JukeboxPriorConfig, placement
from jukebox_hf.placement import lent_to, plan_batches, song_bytes, songs_that_fit
from jukebox_hf.song_plan import SongConditions

STYLES = ["labelled", "shared lyrics", "separate lyrics", "unlabelled"]
CONTEXT = 8
HOPS = {0: 2, 1: 4, 2: 8}
# 12, 24 and 48 codes; windows start every 2 codes on top, every 4 below.
SAMPLES = 96
SECONDS = SAMPLES / RATE
FRACTIONS = [0.5, 0.5, 0.25]
GREEDY = {"do_sample": False}


def song_by_hand(
    model: JukeboxModel,
    conditions: dict[str, Tensor],
    row: int,
    samples: int = SAMPLES,
    prompts: dict[int, Tensor] | None = None,
    fractions: list[float] = FRACTIONS,
    **settings,
) -> dict[int, Tensor]:
    """One song window by window, as the original walks; nothing but the priors' own `generate` is ours."""
    codes = {}
    for level in (2, 1, 0):
        prior, total = model.priors[level], samples // HOPS[level]
        hop = int(fractions[level] * CONTEXT)
        last = max(0, total - CONTEXT)
        starts = [start for start in range(0, total, hop) if start < last] + [last]
        drawn = (prompts or {}).get(level, torch.zeros(1, 0, dtype=torch.long))
        for start in starts:
            prefix, stop = drawn[:, start : start + CONTEXT], min(start + CONTEXT, total)
            num_new = stop - start - prefix.shape[1]
            if num_new:
                inputs = inputs_by_hand(prior, conditions, row, start)
                if level < 2:
                    inputs["upper_codes"] = codes[level + 1][:, start // 2 : (start + CONTEXT) // 2]
                window = prior.generate(prefix, max_new_tokens=num_new, **settings, **inputs)
                drawn = torch.cat([drawn[:, :start], window], dim=1)
        codes[level] = drawn
    return codes


def inputs_by_hand(prior, conditions: dict[str, Tensor], row: int, start: int) -> dict[str, Tensor]:
    level, own = prior.config.level, {name: values[row : row + 1] for name, values in conditions.items()}
    inputs = {name: own[name][:, level] for name in ("artist_ids", "genre_ids") if name in own}
    if level == 2 and "total_length" in own:
        inputs |= {"total_length": own["total_length"], "offset": own["offset"] + start * HOPS[2]}
        if "lyric_ids" in own:
            characters = [number for number in own["lyric_ids"][0].tolist() if number >= 0]
            window = lyrics_by_hand(characters, inputs["offset"].item(), inputs["total_length"].item())
            inputs["lyric_ids"] = torch.tensor([window])
    return inputs


def lyrics_by_hand(characters: list[int], offset: int, total: int, window: int = CONTEXT * 8, n: int = 8) -> list[int]:
    """The characters around the window's middle, in single precision."""
    if len(characters) < n:
        return [0] * (n - len(characters)) + characters
    number, offset, total = np.float32(len(characters)), np.float32(offset), np.float32(total)
    middle = int(number * (offset + np.float32(window / 2)) / total)
    middle = min(max(middle, n // 2), len(characters) - n // 2)
    return characters[middle - n // 2 : middle + n // 2]


def assert_same_codes(song, expected: dict[int, Tensor], row: int | slice = slice(None)):
    for level, codes in expected.items():
        assert torch.equal(song.audio_codes[level][row], codes), f"level {level}"


def some_codes(num_songs: int, seed: int = 9) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 24, (num_songs, SAMPLES // HOPS[level]), generator=generator) for level in range(3)]


# Windows


@pytest.mark.parametrize("style", STYLES)
def test_songs_in_a_batch_are_each_song_by_hand(style):
    """Labels, total lengths, offsets and lyrics differ, and all of them move with the windows."""
    model, conditions = shared_song_model(style), song_conditions(style, 3)
    song = model.generate(seconds=SECONDS, hop_fractions=FRACTIONS, **GREEDY, **conditions)
    for row in range(3):
        assert_same_codes(song, song_by_hand(model, conditions, row, **GREEDY), slice(row, row + 1))
    assert song.is_complete and song.audio_level == 0 and song.alignment is None
    assert torch.equal(song.audio, model.vqvae.decode(song.audio_codes[0]).audio_values)


PROMPTS = {
    "the top's": (0, 0, 3),
    "the middle's": (0, 5, 0),
    "the lowest's": (7, 0, 0),
    "of equal length": (20, 10, 5),
    "longer below": (30, 3, 1),
    "longer above": (1, 13, 11),
    "longer than a context": (41, 17, 9),
    "to where a window ends": (16, 12, 10),
    "all but one code": (47, 23, 11),
    "a whole level": (0, 24, 0),
    "the whole top and middle": (9, 24, 12),
    "everything": (48, 24, 12),
}


@pytest.mark.parametrize("lengths", PROMPTS.values(), ids=PROMPTS)
def test_any_beginning_goes_on_as_by_hand(lengths):
    model, conditions = shared_song_model("separate lyrics"), song_conditions("separate lyrics", 2)
    prompts = [codes[:, :length] if length else None for codes, length in zip(some_codes(2), lengths)]
    song = model.generate(
        seconds=SECONDS, audio_codes=prompts, hop_fractions=FRACTIONS, batch_size=1, **GREEDY, **conditions
    )
    for row in range(2):
        given = {level: codes[row : row + 1] for level, codes in enumerate(prompts) if codes is not None}
        expected = song_by_hand(model, conditions, row, prompts=given, **GREEDY)
        assert_same_codes(song, expected, slice(row, row + 1))
    for codes, prompt in zip(song.audio_codes, prompts):
        assert prompt is None or torch.equal(codes[:, : prompt.shape[1]], prompt)


@pytest.mark.parametrize("style", ["labelled", "shared lyrics"])
@pytest.mark.parametrize("num_codes", [3, 8, 9])
def test_songs_around_the_tops_context_are_as_by_hand(num_codes, style):
    model, conditions = shared_song_model(style), song_conditions(style, 2)
    song = model.generate(max_length=num_codes, levels=[2], generator=generators(4, 5), **conditions)
    prior = model.prior_2
    for row in range(2):
        expected = torch.zeros(1, 0, dtype=torch.long)
        (generator,) = generators(4 + row)
        for start in range(max(1, num_codes - CONTEXT + 1)):
            window = prior.generate(
                expected[:, start:], max_new_tokens=min(num_codes, start + CONTEXT) - expected.shape[1],
                generator=generator, do_sample=True, temperature=0.99, top_k=0,
                **inputs_by_hand(prior, conditions, row, start),
            )  # fmt: skip
            expected = torch.cat([expected[:, :start], window], dim=1)
        assert torch.equal(song.audio_codes[2][row : row + 1], expected)
    assert song.audio.shape == (2, 1, num_codes * 8)


def test_windows_of_an_upsampler_start_with_a_code_of_the_level_above():
    """0.4 of a context of 8 codes would be 3 codes, one and a half of the codes above."""
    model, conditions = shared_song_model(), song_conditions("labelled", 1)
    song = model.generate(seconds=SECONDS, hop_fractions=[0.4, 0.9, 0.4], **GREEDY, **conditions)
    expected = song_by_hand(model, conditions, 0, fractions=[2 / 8, 6 / 8, 3 / 8], **GREEDY)
    assert_same_codes(song, expected)


def test_lyrics_and_timing_reach_the_top_prior_window_by_window(monkeypatch):
    model, conditions = shared_song_model("shared lyrics"), song_conditions("shared lyrics", 3)
    calls = []
    condition = model.prior_2.condition
    monkeypatch.setattr(model.prior_2, "condition", lambda **inputs: calls.append(inputs) or condition(**inputs))
    model.generate(seconds=SECONDS, levels=[2], hop_fractions=FRACTIONS, **conditions)
    assert len(calls) == 3
    for start, inputs in zip((0, 2, 4), calls):
        for row in range(3):
            expected = inputs_by_hand(model.prior_2, conditions, row, start)
            for name, value in expected.items():
                assert torch.equal(inputs[name][row : row + 1], value), (name, start, row)
    shown = torch.stack([inputs["lyric_ids"] for inputs in calls])
    assert not torch.equal(shown[0], shown[2]) and not shown[:, 2, :3].any()


def test_lyric_windows_are_found_in_single_precision():
    """A released model's window, where the fifth digit behind the point decides."""
    prior = JukeboxPriorConfig(num_lyric_tokens=512, lyric_vocab_size=80)
    characters, total, offset, start = list(range(2361)), 3974395, 1332231, 462
    conditions = SongConditions(
        None, None, torch.tensor([total]), torch.tensor([offset]), torch.tensor([characters + [-1] * 9])
    )
    shown = conditions.window(SimpleNamespace(priors={2: prior}), 2, start)["lyric_ids"][0].tolist()
    offset += start * 128
    assert shown == lyrics_by_hand(characters, offset, total, window=8192 * 128, n=512)
    assert shown[256] == 1138 != int(len(characters) * (offset + 8192 * 128 / 2) / total)


# Batches and generators


@pytest.fixture(scope="module")
def alone():
    """Four songs, each drawn alone."""
    model, conditions = shared_song_model("separate lyrics"), song_conditions("separate lyrics", 4)
    rows = [{name: values[row : row + 1] for name, values in conditions.items()} for row in range(4)]
    return [model.generate(seconds=SECONDS, generator=generators(row), **one) for row, one in enumerate(rows)]


@pytest.mark.parametrize("batch_size", [None, 1, 3, [1, 4, 2]])
def test_with_a_generator_each_a_song_is_what_it_is_alone(batch_size, alone):
    model, conditions = shared_song_model("separate lyrics"), song_conditions("separate lyrics", 4)
    songs = model.generate(seconds=SECONDS, generator=generators(0, 1, 2, 3), batch_size=batch_size, **conditions)
    for row, song in enumerate(alone):
        assert_same_codes(songs, dict(enumerate(song.audio_codes)), slice(row, row + 1))
        assert torch.allclose(songs.audio[row : row + 1], song.audio, atol=1e-6)


def test_several_songs_of_each_row_are_its_repetitions():
    model, conditions = shared_song_model("shared lyrics"), song_conditions("shared lyrics", 2)
    prompt = [None, None, some_codes(2)[2][:, :3]]
    settings = {"seconds": SECONDS, "batch_size": 3}
    songs = model.generate(
        **settings, audio_codes=prompt, num_return_sequences=2, generator=generators(1, 2, 3, 4), **conditions
    )
    twice = {name: values.repeat_interleave(2, dim=0) for name, values in conditions.items()}
    prompt[2] = prompt[2].repeat_interleave(2, dim=0)
    expected = model.generate(**settings, audio_codes=prompt, generator=generators(1, 2, 3, 4), **twice)
    assert_same_codes(songs, dict(enumerate(expected.audio_codes)))
    assert not torch.equal(songs.audio_codes[2][0], songs.audio_codes[2][1])


def test_one_generator_draws_as_pytorchs_own_does():
    model = shared_song_model()
    conditions = song_conditions("labelled", 3)
    torch.manual_seed(11)
    expected = model.generate(seconds=SECONDS, batch_size=2, **conditions)
    state = torch.get_rng_state()
    songs = model.generate(seconds=SECONDS, batch_size=2, generator=generators(11)[0], **conditions)
    assert_same_codes(songs, dict(enumerate(expected.audio_codes)))
    assert torch.equal(torch.get_rng_state(), state), "a given generator leaves PyTorch's own alone"


@pytest.mark.parametrize("batch_size", [1, [3, 2, 1]])
def test_greedy_songs_do_not_depend_on_the_batches(batch_size):
    model, conditions = shared_song_model(), song_conditions("labelled", 3)
    together, apart = (
        model.generate(seconds=SECONDS, batch_size=size, **GREEDY, **conditions) for size in (3, batch_size)
    )
    assert_same_codes(apart, dict(enumerate(together.audio_codes)))


def test_inputs_of_one_row_are_for_all_songs():
    model, conditions = shared_song_model("separate lyrics"), song_conditions("separate lyrics", 3)
    conditions |= {"artist_ids": conditions["artist_ids"][:1], "total_length": conditions["total_length"][:1]}
    prompt = some_codes(1)[2][:, :2]
    settings = {"levels": [2], "seconds": SECONDS} | GREEDY
    songs = model.generate(audio_codes=[None, None, prompt], **settings, **conditions)
    everyone = {name: values.expand(3, *values.shape[1:]) for name, values in conditions.items()}
    expected = model.generate(audio_codes=[None, None, prompt.expand(3, -1)], **settings, **everyone)
    assert torch.equal(songs.audio_codes[2], expected.audio_codes[2])


# Beginnings, levels and lengths


def test_a_song_goes_on_where_it_ended():
    model, conditions = shared_song_model("shared lyrics"), song_conditions("shared lyrics", 2)
    first = model.generate(seconds=0.6, generator=generators(1, 2), **conditions)
    longer = model.generate(seconds=SECONDS, audio_codes=first.audio_codes, **GREEDY, **conditions)
    for codes, beginning in zip(longer.audio_codes, first.audio_codes):
        assert torch.equal(codes[:, : beginning.shape[1]], beginning)
    given = dict(enumerate(first.audio_codes))
    for row in range(2):
        own = {level: codes[row : row + 1] for level, codes in given.items()}
        expected = song_by_hand(model, conditions, row, prompts=own, fractions=[0.5, 0.5, 0.125], **GREEDY)
        assert_same_codes(longer, expected, slice(row, row + 1))


@pytest.mark.parametrize("draw", ["greedy", "a generator each", "one generator"])
@pytest.mark.parametrize("first", [[2], [1, 2]])
def test_stopping_and_upsampling_later_is_the_song_at_once(first, draw):
    model, conditions = shared_song_model("separate lyrics"), song_conditions("separate lyrics", 2)

    def settings() -> dict:
        kinds = {"greedy": GREEDY, "a generator each": {"generator": generators(1, 2)}}
        return kinds.get(draw, {"generator": generators(1)[0]})

    whole = model.generate(seconds=SECONDS, **settings(), **conditions)
    drawn_with = settings()
    upper = model.generate(seconds=SECONDS, levels=first, **drawn_with, **conditions)
    assert upper.audio_level == first[0] and upper.is_complete
    assert [codes is None for codes in upper.audio_codes] == [level not in first for level in range(3)]
    # Window by window it is the one pass to rounding: products of other shapes sum in another order on some processors.
    assert_matches(upper.audio, model.vqvae.decode(upper.audio_codes[first[0]], first[0]).audio_values)
    rest = [level for level in range(3) if level not in first]
    lower = model.generate(levels=rest, audio_codes=upper.audio_codes, **drawn_with, **conditions)
    assert_same_codes(lower, {level: whole.audio_codes[level] for level in (*rest, first[0])})
    assert torch.equal(lower.audio, whole.audio)


def test_an_upsampling_goes_on_from_a_beginning():
    model, codes = shared_song_model(), some_codes(1)
    song = model.generate(levels=[0, 1], audio_codes=[codes[0][:, :5], None, codes[2]], **GREEDY)
    expected = song_by_hand(model, {}, 0, prompts={0: codes[0][:, :5], 2: codes[2]}, **GREEDY)
    assert_same_codes(song, expected)


def test_a_stopped_songs_codes_are_a_beginning():
    model = shared_song_model()
    stopped = model.generate(seconds=SECONDS, **GREEDY, callback=lambda progress: progress.level == 1)
    assert [codes is None for codes in stopped.audio_codes] == [True, True, False]
    song = model.generate(seconds=SECONDS, audio_codes=stopped.audio_codes, **GREEDY)
    assert_same_codes(song, dict(enumerate(model.generate(seconds=SECONDS, **GREEDY).audio_codes)))


def test_audio_is_a_beginning_as_its_codes_are():
    model, audio = shared_song_model(), torch.randn(2, 1, 37) * 0.3
    codes = model.vqvae.encode(audio[..., :32]).audio_codes
    assert len(codes[0].unique()) > 1
    expected = model.generate(seconds=SECONDS, audio_codes=codes, **GREEDY)
    mask = torch.ones(2, 37, dtype=torch.long)
    song = model.generate(seconds=SECONDS, input_values=audio, padding_mask=mask, **GREEDY)
    assert_same_codes(song, dict(enumerate(expected.audio_codes)))
    above = model.generate(seconds=SECONDS, input_values=audio, levels=[1, 2], **GREEDY)
    assert_same_codes(above, {level: expected.audio_codes[level] for level in (1, 2)})


@pytest.mark.parametrize("length", [{"seconds": 0.48}, {"max_length": 6}, {"max_new_tokens": 4}])
def test_lengths_hold_the_beginning_or_not(length):
    song = shared_song_model().generate(levels=[2], audio_codes=[None, None, some_codes(1)[2][:, :2]], **length)
    assert song.audio_codes[2].shape == (1, 6)


def test_the_seconds_of_a_number_of_codes_are_that_many():
    """Most such numbers are no binary fractions: 0.29 * 100 is less than 29."""
    seconds = next(n * 8 / RATE for n in range(1, 99) if int(n * 8 / RATE * RATE) < n * 8)
    song = shared_song_model().generate(seconds=seconds, levels=[2], hop_fractions=[0.5, 0.5, 1.0])
    assert song.audio_codes[2].shape[1] * 8 / RATE == seconds


def test_a_generation_config_says_how_long_and_takes_the_models_hops():
    model = shared_song_model()
    assert model.generate(levels=[2]).audio_codes[2].shape == (1, 8)
    settings = GenerationConfig(do_sample=False, max_new_tokens=12)
    song = model.generate(generation_config=settings)
    assert_same_codes(song, dict(enumerate(model.generate(seconds=SECONDS, **GREEDY).audio_codes)))
    assert settings == GenerationConfig(do_sample=False, max_new_tokens=12)


def test_short_songs_are_refused_with_the_length_that_is_enough():
    model = shared_song_model()
    with pytest.raises(ValueError, match=r"0\.08 s is too short for the upsampler of level 1.*seconds=0\.32 or more"):
        model.generate(seconds=0.08)
    with pytest.raises(ValueError, match=r"levels=\[2\], or set extend_short=True"):
        model.generate(seconds=0.31)
    assert model.generate(seconds=0.32).audio.shape == (1, 1, 32)
    assert model.generate(seconds=0.08, levels=[2]).audio.shape == (1, 1, 8)
    assert model.generate(seconds=0.08, extend_short=True).audio.shape == (1, 1, 32)


def test_short_upper_codes_are_refused_with_the_number_that_is_enough():
    model, codes = shared_song_model(), some_codes(1)
    with pytest.raises(ValueError, match=r"upsampler of level 1.*give 4 codes of level 2 or more\."):
        model.generate(levels=[0, 1], audio_codes=[None, None, codes[2][:, :3]])
    # Level 1 is not drawn here, so its context need not be full.
    with pytest.raises(ValueError, match=r"upsampler of level 0.*give 4 codes of level 1 or more\."):
        model.generate(levels=[0], audio_codes=[None, codes[1][:, :3], None])
    assert model.generate(levels=[0], audio_codes=[None, codes[1][:, :4], None]).audio.shape == (1, 1, 16)


def test_upper_codes_may_be_longer_than_the_songs_that_their_prior_was_trained_on():
    audio_codes = [None, torch.zeros(1, 759, dtype=torch.long), torch.zeros(1, 380, dtype=torch.long)]
    song = shared_song_model().generate(levels=[1], audio_codes=audio_codes)
    assert song.audio_codes[1].shape == (1, 760)


# Settings


def test_lists_of_settings_reach_their_levels():
    model, settings = shared_song_model(), {}
    for level, prior in model.priors.items():
        generate = type(prior).generate

        def spy(*args, prior=prior, level=level, generate=generate, **kwargs):
            settings[level] = kwargs["generation_config"]
            return generate(prior, *args, **kwargs)

        prior.generate = spy
    try:
        model.generate(
            seconds=0.4, temperature=[0.5, 0.6, 0.7], top_k=[3, 0, 5], top_p=0.9, do_sample=[True, False, True]
        )
    finally:
        for prior in model.priors.values():
            del prior.generate
    assert {level: own.temperature for level, own in settings.items()} == {0: 0.5, 1: 1.0, 2: 0.7}
    assert {level: own.top_k for level, own in settings.items()} == {0: 3, 1: 50, 2: 5}
    assert {level: own.top_p for level, own in settings.items()} == {0: 0.9, 1: 1.0, 2: 0.9}
    assert [settings[level].do_sample for level in range(3)] == [True, False, True]


def test_levels_may_be_drawn_and_not_drawn_in_one_song():
    model = shared_song_model()
    greedy = model.generate(seconds=SECONDS, **GREEDY)
    mixed = model.generate(seconds=SECONDS, do_sample=[True, True, False], generator=generators(1))
    assert torch.equal(mixed.audio_codes[2], greedy.audio_codes[2])
    assert not torch.equal(mixed.audio_codes[1], greedy.audio_codes[1])
    # top_k=1 is greedy, too.
    cold = model.generate(seconds=SECONDS, do_sample=True, top_k=1, generator=generators(1))
    assert_same_codes(cold, dict(enumerate(greedy.audio_codes)))


@pytest.mark.parametrize("settings", [{"use_cache": False}, {"prefill_chunk_size": 3}])
def test_how_the_cache_is_used_changes_nothing(settings):
    model, conditions = shared_song_model("shared lyrics"), song_conditions("shared lyrics", 2)
    song = model.generate(seconds=0.4, **settings, **GREEDY, **conditions)
    assert_same_codes(song, dict(enumerate(model.generate(seconds=0.4, **GREEDY, **conditions).audio_codes)))


def test_no_warning_is_given(recwarn, caplog):
    shared_song_model().generate(seconds=0.4, do_sample=[True, False, True])
    assert not recwarn.list and not caplog.records


LABELS = {"artist_ids": torch.zeros(1, 3, dtype=torch.long)}
REFUSED = {
    "two lengths": ({"seconds": 1, "max_length": 5}, r"one length, not \{'seconds': 1, 'max_length': 5\}"),
    "no seconds": ({"seconds": 0}, r"\{'seconds': 0\}: give a positive length, 0.08 s or more"),
    "less than one code": ({"seconds": 0.07}, "'seconds': 0.07.* 0.08 s or more"),
    "negative seconds": ({"seconds": -1}, "'seconds': -1.*positive length"),
    "no number": ({"seconds": float("nan")}, "nan.*positive length"),
    "forever": ({"seconds": float("inf")}, "inf.*positive length"),
    "no codes": ({"max_length": 0}, "'max_length': 0.*positive length"),
    "no new codes": ({"max_new_tokens": 0}, "'max_new_tokens': 0.*positive length"),
    "longer than trained": ({"seconds": 31}, "song of 30.96 s is longer than the 30 s that the prior of level 2"),
    "longer than it says": (
        {"total_length": torch.tensor([150]), "offset": torch.tensor([60])},
        "Song 0 is 1.50 s long and the part from 0.60 s on has 0.96 s: give a larger total_seconds",
    ),
    "a beginning longer than the song": (
        {"audio_codes": [None, None, torch.zeros(1, 13, dtype=torch.long)]},
        r"prompt has 13 codes of level 2 \(1.04 s\) and the song 12 \(0.96 s\)",
    ),
    "two beginnings": (
        {"audio_codes": [None] * 3, "input_values": torch.zeros(1, 1, 40)},
        "audio_codes or as input_values",
    ),
    "too short a beginning": ({"input_values": torch.zeros(1, 1, 7)}, "has 7 samples, .* stands for 8"),
    "beginnings of different lengths": (
        {"input_values": torch.zeros(1, 1, 40), "padding_mask": torch.tensor([[1] * 30 + [0] * 10])},
        "padding_mask marks shorter clips",
    ),
    "audio for upsampling": (
        {"input_values": torch.zeros(1, 1, 40), "levels": [0], "seconds": None},
        r"input_values with levels=\[0\]",
    ),
    "too few levels of codes": ({"audio_codes": [torch.zeros(1, 4, dtype=torch.long)]}, "audio_codes has 1 items"),
    "codes that are none": ({"audio_codes": [None, None, torch.tensor([[24]])]}, "audio_codes holds 24: .* 0 to 23"),
    "no codes to upsample": ({"levels": [0, 1], "seconds": None}, "drawn from level 2: give its codes in audio_codes"),
    "seconds of an upsampling": (
        {"levels": [1], "audio_codes": some_codes(1)},
        "'seconds': 0.96.* as long as the codes of level 2 given",
    ),
    "a level in between left out": ({"levels": [0, 2]}, r"levels=\[0, 2\].*leave no gap"),
    "an unknown level": ({"levels": [3]}, r"levels=\[3\]: this model has the levels 0, 1, 2"),
    "no level": ({"levels": []}, r"levels=\[\]"),
    "an empty batch": ({"artist_ids": torch.zeros(0, 3, dtype=torch.long)}, r"inputs are of \[0\] songs"),
    "batches of different sizes": (
        {"artist_ids": torch.zeros(2, 3, dtype=torch.long), "offset": torch.zeros(3, dtype=torch.long)},
        r"inputs are of \[2, 3\] songs",
    ),
    "lyrics for a model without": ({"lyric_ids": torch.ones(1, 4, dtype=torch.long)}, "trained without lyrics"),
    "artists of one level": ({"artist_ids": torch.tensor([1, 2, 3])}, r"artist_ids has the shape \(3,\).*3 priors"),
    "an unknown artist": ({"artist_ids": torch.tensor([[0, 9, 0]])}, "artist_ids holds 9.* 0 to 8"),
    "an unknown genre": ({"genre_ids": torch.tensor([[[0, -1], [7, -1], [0, -1]]])}, "genre_ids"),
    "too many genres": (
        {"genre_ids": torch.tensor([[[1, 2, -1], [1, 2, -1], [1, 2, 5]]])},
        "genre_ids holds 5 after the 2 slots that the prior of level 2 has",
    ),
    "alignment without lyrics": ({"return_alignment": True}, "return_alignment=True: give lyrics"),
    "too few generators": (LABELS | {"generator": generators(1, 2)}, "2 generators for 1 songs"),
    "a generator with nothing to draw": (GREEDY | {"generator": generators(1)}, "nothing is drawn: set do_sample"),
    "no song at a time": ({"batch_size": 0}, "batch_size=0: give a positive number"),
    "two batch sizes": ({"batch_size": [1, 2]}, r"batch_size=\[1, 2\].*each of 3 levels"),
    "two temperatures": ({"temperature": [1.0, 0.9]}, r"temperature=\[1.0, 0.9\].*each of the 3 levels"),
    "no temperature": ({"temperature": [0.9, 0.9, 0]}, "temperature=0: give a number above 0"),
    "fewer codes than none": ({"top_k": -1}, "top_k=-1: give a number of codes"),
    "no probability": ({"top_p": 0.0}, "top_p=0.0: give a probability"),
    "one hop": ({"hop_fractions": 0.5}, "hop_fractions=0.5: give one number for each of the 3 levels"),
    "two hops": ({"hop_fractions": [0.5, 0.5]}, r"hop_fractions=\[0.5, 0.5\]"),
    "no hop": ({"hop_fractions": [0.5, 0, 0.5]}, "hop_fractions has 0 for level 1"),
    "a hop over more than a context": ({"hop_fractions": [1.5, 0.5, 0.5]}, "hop_fractions has 1.5 for level 0"),
    "a misspelt setting": ({"temprature": 1.0}, "does not know temprature"),
    "an end of a window": ({"eos_token_id": 3}, "eos_token_id would end a window early"),
}


@pytest.mark.parametrize(("settings", "message"), REFUSED.values(), ids=REFUSED)
def test_bad_input_is_refused_before_anything_is_drawn(settings, message, tmp_path):
    calls, folder = [], tmp_path / "state"
    settings = {name: value for name, value in ({"seconds": SECONDS} | settings).items() if value is not None}
    if "max_length" in settings or "max_new_tokens" in settings:
        settings = {name: value for name, value in settings.items() if name != "seconds" or settings["seconds"] == 1}
    with pytest.raises(ValueError, match=message):
        shared_song_model().generate(**settings, callback=calls.append, state_dir=folder)
    assert not calls and not folder.exists()


@pytest.mark.parametrize("wrong", [12, -1])
def test_characters_that_only_a_window_in_the_middle_shows_are_checked_first(wrong):
    lyrics = torch.ones(1, 200, dtype=torch.long)
    lyrics[:, 100] = wrong
    calls = []
    with pytest.raises(ValueError, match=rf"lyric_ids holds {wrong} .* level 2 has 12: give 0 to 11"):
        shared_song_model("shared lyrics").generate(seconds=SECONDS, lyric_ids=lyrics, callback=calls.append)
    assert not calls


def test_lyrics_models_want_lyrics_and_unlabelled_models_no_labels():
    with pytest.raises(ValueError, match="This prior reads lyrics: give lyric_ids"):
        shared_song_model("separate lyrics").generate(seconds=SECONDS)
    with pytest.raises(ValueError, match="artist_ids was given, but this model was trained without labels"):
        shared_song_model("unlabelled").generate(seconds=SECONDS, **LABELS)


# Progress


def test_the_callback_sees_every_code_and_every_window():
    model, codes, seen = shared_song_model(), some_codes(1), []
    model.generate(
        seconds=SECONDS, levels=[1, 2], audio_codes=[None, codes[1][:, :8], codes[2][:, :5]], batch_size=[9, 2, 9],
        artist_ids=torch.zeros(3, 3, dtype=torch.long), hop_fractions=FRACTIONS, callback=seen.append, **GREEDY,
    )  # fmt: skip
    expected = []
    for level, windows, batches in (
        (2, [(5, 8), (8, 10), (10, 12)], [(0, 3)]),
        (1, [(8, 12), (12, 16), (16, 20), (20, 24)], [(0, 2), (2, 3)]),
    ):
        for window, (first, last) in enumerate(windows):
            for songs in batches:
                call = (level, window, len(windows), songs, 12 if level == 2 else 24)
                expected += [(*call, position, False) for position in range(first + 1, last + 1)]
                expected += [(*call, last, True)]
    calls = [
        (call.level, call.window, call.num_windows, call.songs, call.total, call.position, call.audio is not None)
        for call in seen
    ]
    assert calls == expected


@pytest.mark.parametrize("prompt", [None, 17])
def test_the_audio_of_the_windows_is_that_of_the_whole_level(prompt):
    model, pieces = shared_song_model(), {}

    def keep(progress):
        if progress.audio is not None:
            pieces.setdefault((progress.level, progress.songs), []).append(progress.audio)

    codes = None if prompt is None else [None, some_codes(3)[1][:, :prompt], None]
    song = model.generate(
        seconds=SECONDS, audio_codes=codes, batch_size=2, callback=keep, generator=generators(1, 2, 3),
        offset=torch.zeros(3, dtype=torch.long),
    )  # fmt: skip
    for level, drawn in enumerate(song.audio_codes):
        whole = model.vqvae.decode(drawn, level).audio_values
        for first, last in ((0, 2), (2, 3)):
            audio = torch.cat(pieces[level, (first, last)], dim=2)
            assert audio.shape == whole[first:last].shape
            assert (audio - whole[first:last]).abs().max() <= 1e-6
    assert len(pieces[2, (0, 2)]) == 5 and len(pieces[0, (2, 3)]) == 11
    assert song.audio.std() > 0.01


@pytest.mark.parametrize("num_calls", [1, 9, 19, 21, 27, 50, 75, 76, 120, 203])
def test_the_callback_stops_the_song(num_calls):
    """Two songs one after the other; a stop may come in either's window, at its end, and in any level."""
    model, calls = shared_song_model(), []
    settings = {"seconds": SECONDS, "artist_ids": torch.tensor([[1, 2, 3], [4, 5, 6]]), "batch_size": 1}

    def stop(progress):
        calls.append(progress)
        return len(calls) == num_calls

    song = model.generate(**settings, callback=stop, generator=generators(1, 2))
    whole = model.generate(**settings, generator=generators(1, 2))
    assert len(calls) == num_calls and not song.is_complete
    last = calls[-1]
    for level, codes in enumerate(song.audio_codes):
        # What was drawn when the last window ended, of which the second song may not have had any.
        ended = [call.position for call in calls if call.level == level and call.audio is not None and call.songs[0]]
        assert (codes is None) == (not ended)
        if ended:
            assert torch.equal(codes, whole.audio_codes[level][:, : ended[-1]])
    if song.audio_level is None:
        assert song.audio is None and last.level == 2 and last.window == 0
    else:
        assert song.audio_codes[song.audio_level] is not None
        expected = model.vqvae.decode(whole.audio_codes[song.audio_level], song.audio_level).audio_values
        assert song.audio.shape[2] <= song.audio_codes[song.audio_level].shape[1] * HOPS[song.audio_level]
        assert torch.allclose(song.audio, expected[..., : song.audio.shape[2]], atol=1e-6)


def test_a_stop_at_the_very_end_leaves_a_whole_song():
    model = shared_song_model()
    song = model.generate(seconds=0.4, levels=[2], callback=lambda progress: progress.audio is not None)
    assert song.is_complete and song.audio.shape == (1, 1, 40)


# Placement


def test_lent_weights_come_back_as_they_were():
    for module in (shared_song_model().prior_0, shared_song_model().vqvae):
        tensors = module.state_dict(keep_vars=True)
        pointers = {name: tensor.data_ptr() for name, tensor in tensors.items()}

        def assert_back(module=module, tensors=tensors, pointers=pointers):
            back = module.state_dict(keep_vars=True)
            assert all(back[name] is tensor for name, tensor in tensors.items())
            assert {name: tensor.data_ptr() for name, tensor in back.items()} == pointers

        with lent_to(module, "meta") as lent:
            assert lent is module
            assert all(tensor.is_meta for tensor in module.state_dict().values())
            assert all(isinstance(value, torch.nn.Parameter) for value in module.parameters())
        assert_back()
        with pytest.raises(KeyError), lent_to(module, "meta"):
            raise KeyError
        assert_back()


def test_tied_weights_are_lent_once():
    prior = shared_song_model().prior_0
    with lent_to(prior, "meta"):
        assert prior.lm_head.weight is prior.embed_tokens.weight


def test_each_level_is_drawn_on_the_device_that_it_is_lent_to():
    """`cpu:0` is the CPU, too, and PyTorch copies what is sent there."""
    model, moved = shared_song_model("separate lyrics"), []
    conditions = song_conditions("separate lyrics", 2)
    pointers = [tensor.data_ptr() for tensor in model.state_dict().values()]
    expected = model.generate(seconds=0.4, generator=generators(1, 2), return_alignment=True, **conditions)

    def look(progress):
        now = [tensor.data_ptr() for tensor in model.state_dict().values()]
        names = [name for name, one, other in zip(model.state_dict(), now, pointers) if one != other]
        moved.append((progress.level, {name.partition(".")[0] for name in names}))

    song = model.generate(
        seconds=0.4, generator=generators(1, 2), device="cpu:0", callback=look, return_alignment=True, **conditions
    )
    assert_same_codes(song, dict(enumerate(expected.audio_codes)))
    assert all(parts == {f"prior_{level}"} for level, parts in moved) and len(moved) > 30
    assert [tensor.data_ptr() for tensor in model.state_dict().values()] == pointers
    assert torch.equal(song.alignment[0].weights, expected.alignment[0].weights)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no second device")
def test_a_song_is_drawn_on_the_gpu_level_by_level():
    model, conditions = shared_song_model("separate lyrics"), song_conditions("separate lyrics", 2)
    on_gpu = model.generate(seconds=SECONDS, device="cuda", **GREEDY, **conditions)
    assert_same_codes(on_gpu, dict(enumerate(model.generate(seconds=SECONDS, **GREEDY, **conditions).audio_codes)))
    assert model.device.type == model.prior_2.device.type == "cpu"


def test_as_many_songs_are_drawn_as_the_memory_holds(monkeypatch):
    priors = shared_song_model().priors
    need, weights = song_bytes(priors[2]), priors[2].get_memory_footprint()
    memory = {0: 50 * need, 1: 20 * need, "cpu": 10 * need}
    monkeypatch.setattr(placement, "get_max_memory", lambda: memory)
    cpu, gpu = torch.device("cpu"), torch.device("cuda", 1)
    assert songs_that_fit(priors[2], cpu, 3) == 3
    assert songs_that_fit(priors[2], cpu, 99) == 8
    # On another device the weights take their place, too.
    assert songs_that_fit(priors[2], gpu, 99) == int(0.8 * (20 * need - weights) / need)
    memory["cpu"] = 0
    assert songs_that_fit(priors[2], cpu, 99) == 1
    # A Mac lists its shared memory under one name.
    memory = {"mps": 10 * need}
    assert songs_that_fit(priors[2], cpu, 99) == 8


def test_the_memory_that_a_song_needs_is_that_of_its_cache_and_more():
    prior = shared_song_model().prior_2
    cache = JukeboxCache(prior.config)
    prior.generate(past_key_values=cache, max_length=2)
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert held < song_bytes(prior) < 20 * held


def test_batches_are_planned_for_each_level(monkeypatch):
    priors = shared_song_model().priors
    need = {level: song_bytes(prior) for level, prior in priors.items()}
    monkeypatch.setattr(placement, "get_max_memory", lambda: {"cpu": 10 * need[2]})
    fitting = {level: min(50, int(8 * need[2] / need[level])) for level in priors}
    assert plan_batches(priors, [0, 1, 2], 50, None, None, None) == fitting
    assert plan_batches(priors, [1, 2], 50, 7, None, None) == {1: 7, 2: 7}
    assert plan_batches(priors, [1, 2], 50, [1, 2, 3], None, None) == {1: 2, 2: 3}
    # A song that goes on keeps its batches, whatever the memory is now.
    saved = {"batch_sizes": {"0": 4, "1": 5, "2": 6}}
    assert plan_batches(priors, [0, 1, 2], 50, None, saved, None) == {0: 4, 1: 5, 2: 6}
    assert plan_batches(priors, [0, 1, 2], 50, 2, saved, None) == {0: 2, 1: 2, 2: 2}


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    folder = tmp_path_factory.mktemp("songs")
    shared_song_model("separate lyrics").save_pretrained(folder)
    return folder


DEVICE_MAPS = {
    "auto": "auto",
    "cpu": "cpu",
    "priors on disk": {"vqvae": "cpu", "prior_0": "disk", "prior_1": "cpu", "prior_2": "disk"},
    "the VQ-VAE on disk": {"vqvae": "disk", "prior_0": "cpu", "prior_1": "cpu", "prior_2": "cpu"},
    "all on disk": {"": "disk"},
}


@pytest.mark.parametrize("device_map", DEVICE_MAPS.values(), ids=DEVICE_MAPS)
def test_a_device_map_changes_nothing(device_map, repository, tmp_path):
    conditions = song_conditions("separate lyrics", 2)
    settings = {"seconds": 0.4, "input_values": torch.randn(2, 1, 16, generator=generators(8)[0])} | conditions
    expected = shared_song_model("separate lyrics").generate(
        **settings, generator=generators(1, 2), return_alignment=True
    )
    model = AutoModel.from_pretrained(repository, device_map=device_map, offload_folder=tmp_path)
    song = model.generate(**settings, generator=generators(1, 2), return_alignment=True, state_dir=tmp_path / "state")
    assert_same_codes(song, dict(enumerate(expected.audio_codes)))
    assert torch.equal(song.audio, expected.audio)
    assert torch.equal(song.alignment[0].weights, expected.alignment[0].weights)


def test_weights_on_disk_are_not_lent(repository, tmp_path):
    model = AutoModel.from_pretrained(repository, device_map={"": "disk"}, offload_folder=tmp_path)
    with pytest.raises(ValueError, match="device=cpu: some weights are on disk; leave device out"):
        model.generate(seconds=0.4, device="cpu", **song_conditions("separate lyrics", 1))


# Alignment


@pytest.mark.parametrize(("case", "layer"), [("prior-1b-lyrics-style", 15), ("prior-5b-lyrics-style", 18)])
def test_the_alignment_is_the_originals_attention(case, layer, converted):
    """The original's column is the position whose input is the character before it; ours is the character's."""
    tensors = golden(case).tensors
    prior = AutoModel.from_pretrained(converted(case), dtype=torch.float32)
    prior.config.alignment_layer, prior.config.alignment_head = layer, 1
    model = JukeboxModel.from_parts(AutoModel.from_pretrained(converted("vqvae-three-level")), [prior])
    total_length, offset, _, artist_ids, *_ = tensors["labels.y"].T
    song = model.generate(
        max_length=64, levels=[2], audio_codes=[None, None, tensors["codes"]], return_alignment=True,
        total_length=total_length, offset=offset, lyric_ids=tensors["labels.full_lyric_tokens"],
        artist_ids=artist_ids, genre_ids=tensors["labels.y"][:, 4 : 4 + prior.config.max_genres],
    )  # fmt: skip
    for row, aligned in enumerate(song.alignment):
        indices = tensors["labels.lyric_indices"][row]
        expected = torch.zeros(64, 55)
        expected[:, indices[:-1]] = tensors[f"attention.{layer}"][row, 1, :, 1:]
        assert_matches(aligned.weights, expected, case)
        assert aligned.seconds_per_code == 128 / 44100


def test_of_overlapping_windows_the_earlier_one_is_aligned():
    model, conditions = shared_song_model("separate lyrics"), song_conditions("separate lyrics", 4)
    settings = {"levels": [2], "hop_fractions": FRACTIONS, "audio_codes": [None, None, some_codes(4)[2]]}
    song = model.generate(seconds=SECONDS, return_alignment=True, **settings, **conditions)
    codes, prior = song.audio_codes[2], model.prior_2
    for row, aligned in enumerate(song.alignment):
        lyrics = conditions["lyric_ids"][row]
        number = int((lyrics >= 0).sum())
        assert aligned.weights.shape == (12, number)
        done = 0
        for start in (0, 2, 4):
            inputs = inputs_by_hand(prior, conditions, row, start)
            attention = prior(codes[row : row + 1, start : start + CONTEXT], **inputs, output_attentions=[3])
            attention = attention.lyric_attentions[3][0, 1]
            characters = lyrics_by_hand(list(range(1, number + 1)), int(inputs["offset"]), int(inputs["total_length"]))
            for code in range(done, start + CONTEXT):
                expected = torch.zeros(number)
                for position, character in enumerate(characters[:-1], start=1):
                    if character:
                        expected[character - 1] = attention[code - start, position]
                assert torch.allclose(aligned.weights[code], expected, atol=1e-6)
            done = start + CONTEXT
        assert (aligned.weights.sum(dim=1) <= 1 + 1e-6).all()


def test_alignment_wants_a_layer_that_reads_lyrics():
    model = random_song_model("separate lyrics")
    settings = {"seconds": SECONDS, "return_alignment": True, **song_conditions("separate lyrics", 1)}
    with pytest.raises(ValueError, match="give lyrics, and draw the level whose prior reads them"):
        model.generate(**settings | {"levels": [1], "seconds": None}, audio_codes=some_codes(1))
    for layer, head in ((None, 1), (2, 1), (63, 0), (3, 2)):
        model.config.prior_2.alignment_layer, model.config.prior_2.alignment_head = layer, head
        with pytest.raises(ValueError, match=rf"alignment_layer={layer} .*head={head}, .*2 heads of the layers \[3\]"):
            model.generate(**settings)


def test_a_stopped_song_is_not_aligned():
    conditions = song_conditions("separate lyrics", 1)
    song = shared_song_model("separate lyrics").generate(
        seconds=SECONDS, return_alignment=True, callback=lambda progress: True, **conditions
    )
    assert song.alignment is None and not song.is_complete
