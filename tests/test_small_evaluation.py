"""The figures of a small Jukebox: counts against hand-computed values, and the whole program on a tiny model."""

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from jukebox_hf import (
    JukeboxFeatureExtractor,
    JukeboxModel,
    JukeboxPriorConfig,
    JukeboxPriorModel,
    JukeboxProcessor,
    JukeboxTokenizer,
    JukeboxVQVAEConfig,
    JukeboxVQVAEModel,
)
from jukebox_hf.losses_jukebox import spectral_convergence

EXAMPLES = Path(__file__).parents[1] / "examples"
sys.path[:0] = [str(EXAMPLES), str(EXAMPLES / "small_jukebox")]

import evaluate
import jukemir_probe
from baselines import Conditional, Unigram, bigram, bigram_bits
from codec_figures import codebook_use
from label_figures import key_figures
from material import cut_excerpts, load_material, original_audio, song_codes, spread
from prior_figures import bits_per_code, held_out_windows, other_song, wrong_labels
from probe_figures import accuracy, fit_probe, interval, mean_states, shuffled_score
from sound_features import chroma, estimate_keys, key_scores, mel_spectra, parse_key

RATE = 16000
INSTRUMENTS = ("flute", "reed")
KEYS = ("c major", "f# minor", "bb major", "e minor")


def chain(length: int, seed: int) -> np.ndarray:
    """A Markov chain of three codes: each is followed by itself (0.8), the next (0.15) or the one before it (0.05)."""
    rng = np.random.default_rng(seed)
    codes = [0]
    for stays, step in zip(rng.random(length - 1) < 0.8, 1 + (rng.random(length - 1) < 0.25)):
        codes.append(codes[-1] if stays else (codes[-1] + int(step)) % 3)
    return np.array(codes)


def test_unigrams_are_smoothed_counts():
    songs = [np.array([0, 0, 1]), np.array([0])]
    counted = Unigram(songs, 3, alpha=1.0)
    np.testing.assert_allclose(counted.probabilities, [4 / 7, 2 / 7, 1 / 7])
    np.testing.assert_allclose(counted.bits([np.array([2, 0])]), [np.log2(7), np.log2(7 / 4)])


def test_unigram_bits_of_the_counted_codes_are_their_entropy():
    songs = [chain(1000, seed) % 2 for seed in range(4)]
    figures = codebook_use(np.concatenate(songs), 3)
    assert Unigram(songs, 3, alpha=1e-9).bits(songs).mean() == pytest.approx(figures["entropy_bits"], abs=1e-6)
    assert figures["used_share"] == pytest.approx(2 / 3) and figures["codes"] == 4000


def test_counts_beside_another_code_back_off_to_the_unigram():
    songs = [np.array([1, 1, 0])]
    unigram = Unigram(songs, 3, alpha=1.0)
    counted = Conditional([np.array([0, 0, 1])], songs, unigram, strength=2.0)
    bits = counted.bits([np.array([0, 1, 2])], [np.array([1, 1, 2])])
    expected = [(2 + 2 * 3 / 6) / (2 + 2), (0 + 2 * 3 / 6) / (1 + 2), 1 / 6]
    np.testing.assert_allclose(bits, -np.log2(expected))


def test_bigrams_approach_the_entropy_of_a_markov_chain():
    songs = [chain(2000, seed) for seed in range(20)]
    held_out = [chain(2000, seed) for seed in range(100, 110)]
    counted = bigram(songs, 3)
    rate = -(0.8 * np.log2(0.8) + 0.15 * np.log2(0.15) + 0.05 * np.log2(0.05))
    bits = bigram_bits(counted, held_out)
    assert len(bits) == 20000 and bits.mean() == pytest.approx(rate, abs=0.02)
    assert counted.unigram.bits(held_out).mean() == pytest.approx(np.log2(3), abs=0.01)
    # The first code of a window has nothing before it.
    assert bits[0] == counted.unigram.bits([held_out[0][:1]])[0]


def test_smoothing_is_chosen_on_songs_that_are_not_counted():
    # With few counts of many codes a strong prior does best, with many of few codes a weak one.
    rng = np.random.default_rng(0)
    noise = [rng.integers(64, size=40) for _ in range(20)]
    steady = [np.arange(start, start + 400) % 8 for start in range(20)]
    assert bigram(noise, 64).strength >= 256 and bigram(steady, 64).strength == 1
    with pytest.raises(ValueError, match="1 training songs"):
        Unigram(noise[:1], 64)


def test_keys_are_scored_as_jukemir_scores_them():
    names = [f"{tonic} {mode}" for mode in ("major", "minor") for tonic in jukemir_probe.TONICS]
    assert [parse_key(name) for name in names] == list(range(24))
    assert parse_key("cb major") == 11 and parse_key("f# minor") == 18
    expected = [
        [jukemir_probe.weighted_key_score(*map(jukemir_probe.parse_key, (own, other))) for other in names]
        for own in names
    ]
    references, estimates = np.divmod(np.arange(24 * 24), 24)
    np.testing.assert_array_equal(key_scores(references, estimates).reshape(24, 24), expected)
    with pytest.raises(ValueError, match="'techno': this is no key"):
        parse_key("techno")


def cadence(key: str, instrument: str, rng: np.random.Generator) -> np.ndarray:
    """Two seconds: tonic, subdominant, dominant, tonic; a reed has strong overtones."""
    number, parts = parse_key(key), []
    third = 3 if number >= 12 else 4
    time = np.arange(RATE // 2) / RATE
    for root in (0, 5, 7, 0):
        pitches = 262 * 2 ** ((number % 12 + root + np.array([0, 4 if root == 7 else third, 7])) / 12)
        overtones = 6 if instrument == "reed" else 1
        parts.append(sum(np.sin(2 * np.pi * k * pitches[:, None] * time).sum(0) / k for k in range(1, overtones + 1)))
    return (0.1 * np.concatenate(parts) + rng.normal(0, 0.002, 2 * RATE)).astype(np.float32)


def write_music(folder: Path, copies: int, rng: np.random.Generator):
    folder.mkdir()
    rows = []
    for key in KEYS:
        for instrument in INSTRUMENTS:
            for copy in range(copies):
                name = f"{len(rows)}.flac"
                soundfile.write(folder / name, cadence(key, instrument, rng), RATE)
                rows.append({"file_name": name, "artist": instrument, "genre": key, "chorale": f"song{copy}"})
    with (folder / "metadata.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def tiny_model(audio: np.ndarray) -> tuple[JukeboxModel, JukeboxProcessor]:
    torch.manual_seed(0)
    vqvae = JukeboxVQVAEModel(
        JukeboxVQVAEConfig(
            sampling_rate=RATE, num_downsamples=[2, 1, 1], strides=[4, 4, 4], level_multipliers=None, hidden_size=4,
            num_residual_layers=1, codebook_size=32, codebook_dim=8, linf_k=64,
        )
    )  # fmt: skip
    # In training mode the first latents become the codebooks.
    vqvae.train()(torch.from_numpy(audio)[None, None])
    priors, processors = [], []
    for level, context in enumerate((32, 16, 40)):
        top = level == 2
        conditioner = None if top else {"strides": [4], "hidden_size": 4, "num_residual_layers": 1}
        config = JukeboxPriorConfig(
            level=level, vocab_size=32, context_length=context, hop_length=vqvae.config.hop_lengths[level],
            sampling_rate=RATE, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
            head_dim=4, num_blocks=4, attention_pattern="rc", init_scale=5.0, num_artists=3, num_genres=5, max_genres=1,
            num_time_bins=4 if top else 0, min_duration=0.64, max_duration=10.0, conditioner_config=conditioner,
            add_conditioning_after_stack=True,
        )  # fmt: skip
        priors.append(JukeboxPriorModel(config))
        tokenizer = JukeboxTokenizer.from_labels(INSTRUMENTS, sorted(KEYS), versions=["v3"], max_genres=1)
        extractor = JukeboxFeatureExtractor(sampling_rate=RATE, hop_length=256)
        processors.append(JukeboxProcessor(extractor, tokenizer, config.sample_length))
    return JukeboxModel.from_parts(vqvae, priors), JukeboxProcessor.from_parts(processors)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The folders music and model."""
    folder, rng = tmp_path_factory.mktemp("small"), np.random.default_rng(0)
    (folder / "music").mkdir()
    write_music(folder / "music" / "train", 2, rng)
    write_music(folder / "music" / "test", 1, rng)
    for part in tiny_model(cadence("c major", "reed", rng)):
        part.save_pretrained(folder / "model")
    return folder


@pytest.fixture(scope="module")
def material(folder):
    return load_material(folder / "model", folder / "music", 100, None, None)


@pytest.fixture(scope="module")
def figures(folder):
    """What the whole program writes."""
    output = folder / "out"
    sizes = "--clips 4 --seconds 0.5 --windows 12 --songs 3 --full-songs 1 --excerpts 48 --held-out-excerpts 24"
    command = ["evaluate.py", str(folder / "model"), str(folder / "music"), "--output", str(output), *sizes.split()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", command)
        evaluate.main()
    return json.loads((output / "figures.json").read_text())


def test_reconstruction_is_that_of_codes(figures, material):
    levels = figures["reconstruction"]["levels"]
    assert figures["reconstruction"]["clips"] == 4 and [level["hop_length"] for level in levels] == [16, 64, 256]
    length = round(0.5 * RATE) // 256 * 256
    songs = np.concatenate([soundfile.read(path, dtype="float32")[0] for path in material.test["audio"]])
    crops = len(songs) // length
    # 31 crops of 7936 samples; those asked for start inside a song of 32000 samples or are moved into one.
    chosen = spread(crops, 4)
    clips = []
    for index in chosen:
        start, middle = index * length, index * length + length // 2
        first = middle // 32000 * 32000
        if start < first:
            start += length // 2
        elif start + length > first + 32000:
            start -= length // 2
        clips.append(torch.from_numpy(songs[start : start + length])[None])
    vqvae = material.model.vqvae
    for level, row in enumerate(levels):
        codes = [vqvae.encode(clip[None], levels=[level]).audio_codes[0] for clip in clips]
        sounds = [vqvae.decode(code, level=level).audio_values[0] for code in codes]
        mean = np.mean([spectral_convergence(sound, clip).item() for sound, clip in zip(sounds, clips)])
        assert row["decibels"] == pytest.approx(20 * np.log10(mean), abs=1e-3)


def test_every_row_of_a_prior_is_of_the_same_codes(figures, material):
    top, *upsamplers = figures["priors"]
    assert [row["level"] for row in figures["priors"]] == [2, 1, 0]
    assert list(top["bits"]) == ["right", "wrong instrument", "wrong key", "both wrong", "no labels"]
    assert all(list(row["bits"]) == ["right", "upper codes of another song"] for row in upsamplers)
    # Random weights: every condition makes a difference, or it did not reach the model.
    assert all(len(set(row["bits"].values())) == len(row["bits"]) for row in figures["priors"])
    windows, _ = held_out_windows(material, 1, 12)
    row = figures["priors"][1]
    assert row["codes"] == windows["labels"].numel() == 12 * 16
    loss = material.model.prior_1(**windows).music_loss.item()
    assert row["bits"]["right"] == pytest.approx(loss, abs=1e-5)
    counted = Unigram(song_codes(material.train, 1), 32, row["counts"]["unigram_alpha"])
    assert row["counts"]["unigram"] == pytest.approx(counted.bits(list(windows["labels"].numpy())).mean())
    # The four codes under one code of the level above follow from nearly the same sound.
    assert row["counts"]["code_above"] < row["counts"]["unigram"] - 0.1


def test_windows_of_a_rest_count_as_much_as_others(material):
    windows, _ = held_out_windows(material, 2, 11)
    assert bits_per_code(material.model.prior_2, windows) == pytest.approx(
        material.model.prior_2(**windows).music_loss.item(), abs=1e-5
    )


def test_wrong_conditions_are_wrong_everywhere(material):
    windows, songs = held_out_windows(material, 2, 12)
    wrong = wrong_labels(material, windows, np.random.default_rng(0))
    assert (wrong["both wrong"]["artist_ids"] != windows["artist_ids"]).all()
    assert (wrong["both wrong"]["genre_ids"] != windows["genre_ids"]).all()
    assert all((wrong["both wrong"][name] > 0).all() for name in ("artist_ids", "genre_ids"))
    assert not any(wrong["no labels"][name].any() for name in ("artist_ids", "genre_ids"))
    assert (songs[other_song(songs)] != songs).all()
    with pytest.raises(ValueError, match="4 windows of 2 songs"):
        other_song(np.array([0, 0, 0, 1]))


def test_drawn_songs_are_counted_by_what_was_asked(figures, folder):
    top, full = figures["labels"]
    assert (top["level"], full["level"]) == (2, 0)
    assert top["seconds"] == pytest.approx(0.64) and full["seconds"] == pytest.approx(0.32)
    assert [sum(row) for row in top["instrument"]["confusion"]] == [3, 3]
    assert [sum(row) for row in full["instrument"]["confusion"]] == [1, 1]
    drawn = top["instrument"]["drawn"]["score"]
    assert drawn == pytest.approx(np.trace(top["instrument"]["confusion"]) / 6)
    songs = sorted((folder / "out" / "songs").iterdir())
    assert [song.name.split("_")[1] for song in songs] == ["flute", "reed"]
    assert soundfile.info(songs[0]).frames == 0.32 * RATE


def test_probes_hear_what_is_there(figures, material):
    rows = figures["embeddings"]["features"]
    assert list(rows)[:2] == ["prior, layer 1", "untrained prior, layer 1"]
    assert rows["mel spectra, mean and deviation"]["instrument"]["score"] == 1
    assert rows["chroma, mean"]["key"]["score"] > 0.6
    assert rows["chroma, mean"]["key"]["chance"] == pytest.approx(0.25, abs=0.05)
    excerpts = cut_excerpts(material.test, 2, 40, 5)
    states = mean_states(material.model.prior_2, 1, excerpts, console=None)
    outputs = material.model.prior_2(excerpts.codes, output_hidden_states=True)
    np.testing.assert_allclose(states, outputs.hidden_states[1].mean(1).detach(), atol=1e-5)


def test_excerpts_are_the_sound_of_their_codes(material):
    excerpts = cut_excerpts(material.test, 2, 40, 7)
    audio = original_audio(material.test, excerpts, 256, RATE)
    later = int(np.flatnonzero(excerpts.starts)[0])
    song, start = excerpts.songs[later], excerpts.starts[later]
    samples, _ = soundfile.read(material.test["audio"][song], dtype="float32")
    np.testing.assert_array_equal(audio[later], samples[start * 256 : start * 256 + 40 * 256])
    assert excerpts.artists[later] == material.test["artist"][song]
    codes = material.model.vqvae.encode(torch.from_numpy(samples)[None, None], levels=[2]).audio_codes[0][0]
    assert torch.equal(excerpts.codes[later], codes[start : start + 40])
    with pytest.raises(ValueError, match="None of the 8 songs has 999 codes"):
        cut_excerpts(material.test, 2, 999, 7)


def test_templates_find_keys_and_bands_find_instruments():
    rng = np.random.default_rng(3)
    keys = [f"{tonic} {mode}" for mode in ("major", "minor") for tonic in jukemir_probe.TONICS]
    audio = np.stack([cadence(key, "flute", rng) for key in keys])
    figures = key_figures(keys, chroma(audio, RATE), np.arange(24))
    assert figures["key"]["score"] == figures["weighted"]["score"] == 1
    assert figures["key"]["chance"] == pytest.approx(1 / 24) and figures["mode"]["chance"] == pytest.approx(1 / 2)
    transposed = estimate_keys(np.roll(chroma(audio[:12], RATE), 2, axis=1))
    np.testing.assert_array_equal(transposed, (np.arange(12) + 2) % 12)
    reeds = np.stack([cadence(key, "reed", rng) for key in keys])
    features = np.concatenate([mel_spectra(audio, RATE), mel_spectra(reeds, RATE)])
    targets, groups = np.repeat([0, 1], 24), np.tile(np.arange(24), 2)
    assert fit_probe(features[::2], targets[::2], groups[::2]).score(features[1::2], targets[1::2]) == 1


def test_intervals_draw_songs_and_not_excerpts():
    scores = np.repeat([0.0, 1.0], 50)
    songs, apart = np.repeat([0, 1], 50), np.arange(100)
    assert interval(scores, songs) == (0, 1)
    low, high = interval(scores, apart)
    assert 0.35 < low < 0.45 and 0.55 < high < 0.65
    assert shuffled_score(np.array([0, 0, 1, 2]), np.array([0, 0, 0, 1]), accuracy) == pytest.approx(
        0.5 * 0.75 + 0.25 * 0.25
    )


def test_the_tables_hold_every_part(figures, folder):
    text = (folder / "out" / "figures.md").read_text()
    for heading in ("## Measured", "### Reconstruction", "### Priors", "### Labels", "### Embeddings"):
        assert heading in text
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert f"| prior, right | {figures['priors'][0]['bits']['right']:.3f} |" in text
    assert "| silence |  | 0.0 dB |  |  |" in tables
