"""Whole songs against the original's: every code of every level, and the audio."""

import pytest
import torch
from conftest import golden
from song_models import SONG_CASES, song_inputs, song_model


@pytest.fixture(scope="module", params=SONG_CASES)
def song(request, converted):
    case = request.param
    settings = dict(
        seconds=golden(case).settings["length"] / 44100, hop_fractions=golden(case).settings["hop_fraction"]
    )
    return song_model(case, converted), golden(case).tensors, song_inputs(case) | settings


def assert_same_song(output, tensors, run):
    for level in range(3):
        assert torch.equal(output.audio_codes[level], tensors[f"{run}.codes.{level}"]), level
    expected = tensors[f"{run}.audio"].transpose(1, 2)
    torch.testing.assert_close(output.audio, expected, rtol=0, atol=1e-5 * max(1.0, expected.abs().max()))


def test_greedy_songs_are_the_originals(song):
    model, tensors, inputs = song
    assert_same_song(model.generate(**inputs, do_sample=False), tensors, "ancestral")


def test_seeded_songs_are_the_originals(song):
    model, tensors, inputs = song
    torch.manual_seed(4321)
    assert_same_song(model.generate(**inputs), tensors, "seeded")


def test_one_generator_draws_as_pytorchs_own(song):
    model, tensors, inputs = song
    generator = torch.Generator().manual_seed(4321)
    assert_same_song(model.generate(**inputs, generator=generator), tensors, "seeded")


def test_continued_songs_are_the_originals(song):
    model, tensors, inputs = song
    samples = tensors["primed.prompt"].shape[1]
    hops = model.config.vqvae_config.hop_lengths
    beginning = [tensors[f"primed.codes.{level}"][:, : samples // hop] for level, hop in enumerate(hops)]
    assert_same_song(model.generate(**inputs, audio_codes=beginning, do_sample=False), tensors, "primed")


def test_songs_go_on_from_audio_as_from_its_codes(song):
    """The prompt's codes are the original's but for ties that fp32 cannot decide; the audio leads to the same song."""
    model, tensors, inputs = song
    prompt = tensors["primed.prompt"].transpose(1, 2)
    codes = model.vqvae.encode(prompt).audio_codes
    output = model.generate(**inputs, input_values=prompt, do_sample=False)
    from_codes = model.generate(**inputs, audio_codes=codes, do_sample=False)
    for level, ours in enumerate(output.audio_codes):
        assert torch.equal(ours, from_codes.audio_codes[level])
        assert torch.equal(ours[:, : codes[level].shape[1]], codes[level])
        assert (ours != tensors[f"primed.codes.{level}"]).sum() <= 1
