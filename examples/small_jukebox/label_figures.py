"""Whether songs that a small Jukebox draws follow the instrument and the key that were asked for."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from material import Excerpts, Material, batches, cut_excerpts
from probe_figures import accuracy, fit_probe, scored
from rich.console import Console
from rich.progress import Progress, track
from sound_features import chroma, estimate_keys, key_scores, mel_spectra, parse_key
from transformers import BatchFeature

from jukebox_hf.generation_jukebox import JukeboxGenerationOutput, JukeboxProgress

# Songs that are drawn at a time.
BATCH_SIZE = 24


@dataclass
class DrawnSongs:
    """Songs that were drawn, and what was asked for.

    Args:
        level: the lowest that was drawn.
        audio: `(songs, samples)`, decoded from that level.
        codes: `(songs, codes)` of the top level.
        artists, genres: names.
        conditions: the processor's, for all levels.
    """

    level: int
    audio: np.ndarray
    codes: torch.Tensor
    artists: list[str]
    genres: list[str]
    conditions: BatchFeature


def draw_songs(material: Material, console: Console, per_artist: int, seed: int = 0) -> DrawnSongs:
    """Draws the first context of songs at the top level, for each instrument as many, and all keys in turn."""
    config, rng = material.model.priors[material.top].config, np.random.default_rng(seed)
    artists = [name for name in sorted(set(material.train["artist"])) for _ in range(per_artist)]
    keys = rng.permutation(sorted(set(material.train["genre"]))).tolist()
    genres = [keys[index % len(keys)] for index in range(len(artists))]
    longest = config.max_duration - 1 / material.sampling_rate
    usual = np.median(material.train["num_samples"]) / material.sampling_rate
    seconds = float(np.clip(usual, config.min_duration, longest))
    conditions = material.processor(artist=artists, genre=genres, total_seconds=seconds)
    output = _draw(material, [material.top], conditions, console, seed, max_length=config.context_length)
    return DrawnSongs(
        material.top, output.audio[:, 0].numpy(), output.audio_codes[material.top], artists, genres, conditions
    )


def draw_lower_levels(
    material: Material, songs: DrawnSongs, console: Console, per_artist: int, seed: int = 0
) -> DrawnSongs:
    """Draws all levels below of the beginnings of some songs, of half a context or as much as an upsampler needs."""
    chosen: dict[str, list[int]] = {}
    for row, name in enumerate(songs.artists):
        chosen.setdefault(name, []).append(row)
    rows = [row for own in chosen.values() for row in own[:per_artist]]
    lower = list(range(material.top))
    needed = max(material.model.priors[level].config.sample_length for level in lower)
    codes = songs.codes[rows, : max(songs.codes.shape[1] // 2, math.ceil(needed / material.hop_lengths[-1]))]
    conditions = BatchFeature({name: values[rows] for name, values in songs.conditions.items()})
    output = _draw(material, lower, conditions, console, seed, audio_codes=[*[None] * material.top, codes])
    artists, genres = ([names[row] for row in rows] for names in (songs.artists, songs.genres))
    return DrawnSongs(0, output.audio[:, 0].numpy(), codes, artists, genres, conditions)


def _draw(
    material: Material, levels: list[int], conditions: BatchFeature, console: Console, seed: int, **how
) -> JukeboxGenerationOutput:
    with Progress(console=console, transient=True) as progress:
        tasks = {level: progress.add_task(f"Drawing level {level}", total=None) for level in reversed(levels)}

        def show(now: JukeboxProgress):
            progress.update(tasks[now.level], completed=now.position, total=now.total)

        return material.model.generate(
            **conditions,
            **how,
            levels=levels,
            batch_size=BATCH_SIZE,
            generator=torch.Generator().manual_seed(seed),
            callback=show,
        )


def decode_excerpts(material: Material, level: int, excerpts: Excerpts, console: Console) -> np.ndarray:
    """Decodes excerpts to `(excerpts, samples)`."""
    rows = track(batches(len(excerpts), 8), f"Decoding level {level}", console=console, transient=True)
    decoded = [material.model.vqvae.decode(excerpts.codes[row], level=level).audio_values[:, 0] for row in rows]
    return torch.cat(decoded).numpy()


def measure_labels(material: Material, drawn: DrawnSongs, console: Console, train: int, test: int) -> dict:
    """Has a classifier name the instrument, and templates the key, of drawn songs.

    The classifier learns from training music that went through the same level of the VQ-VAE: one that learned from
    recordings might hear the codec where it should hear the instrument. How it does on held-out music that did, too, is
    the most that drawn songs can reach.
    """
    level, rate = drawn.level, material.sampling_rate
    length = drawn.audio.shape[1] // material.hop_lengths[level]
    known = cut_excerpts(material.train, level, length, train)
    held_out = cut_excerpts(material.test, level, length, test)
    sounds = {
        "train": decode_excerpts(material, level, known, console),
        "test": decode_excerpts(material, level, held_out, console),
        "drawn": drawn.audio,
    }
    return {
        "level": level,
        "seconds": drawn.audio.shape[1] / rate,
        "train": len(known),
        "test": len(held_out),
        "drawn": len(drawn.audio),
        "instrument": instrument_figures(
            {name: mel_spectra(audio, rate) for name, audio in sounds.items()}, known, held_out, drawn
        ),
        "key": {
            "held_out": key_figures(held_out.genres, chroma(sounds["test"], rate), held_out.songs),
            "drawn": key_figures(drawn.genres, chroma(sounds["drawn"], rate), np.arange(len(drawn.genres))),
        },
    }


def instrument_figures(features: dict[str, np.ndarray], known: Excerpts, held_out: Excerpts, drawn: DrawnSongs) -> dict:
    """Compares the instruments that a classifier hears with those that songs have, or were asked for."""
    probe = fit_probe(features["train"], np.array(known.artists), known.songs)
    names, asked, heard = sorted(set(known.artists)), np.array(drawn.artists), probe.predict(features["drawn"])
    return {
        "held_out": scored(np.array(held_out.artists), probe.predict(features["test"]), held_out.songs),
        "drawn": scored(asked, heard, np.arange(len(asked))),
        "names": names,
        "confusion": [[int(((asked == own) & (heard == other)).sum()) for other in names] for own in names],
    }


def key_figures(genres: list[str], chromas: np.ndarray, songs: np.ndarray) -> dict:
    """Compares the keys that chroma suggests with those that songs have, or were asked for, and with chance."""
    references, estimates = np.array([parse_key(name) for name in genres]), estimate_keys(chromas)
    scores = {
        "key": accuracy,
        "weighted": key_scores,
        "tonic": lambda own, other: accuracy(own % 12, other % 12),
        "mode": lambda own, other: accuracy(own // 12, other // 12),
    }
    return {name: scored(references, estimates, songs, score) for name, score in scores.items()}
