"""Whether songs that a small Jukebox draws follow the instrument and the key that were asked for."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from material import Material, batches, cut_excerpts
from probe_figures import accuracy, fit_probe, interval, shuffled_score
from rich.console import Console
from rich.progress import Progress, track
from sound_features import chroma, estimate_keys, key_scores, mel_spectra, parse_key
from transformers import BatchFeature

BATCH_SIZE = 24


@dataclass
class DrawnSongs:
    """Codes of songs that were drawn, and what was asked for.

    Args:
        codes: `(songs, codes)` of the top level.
        artists, genres: names.
        conditions: the processor's, for all levels.
    """

    codes: torch.Tensor
    artists: list[str]
    genres: list[str]
    conditions: BatchFeature


def draw_songs(material: Material, console: Console, per_artist: int, seed: int = 0) -> DrawnSongs:
    """Draws the first context of songs at the top level, for each instrument as many, and all keys in turn."""
    prior, rng = material.model.priors[material.top], np.random.default_rng(seed)
    artists = [name for name in sorted(set(material.train["artist"])) for _ in range(per_artist)]
    keys = rng.permutation(sorted(set(material.train["genre"]))).tolist()
    genres = [keys[index % len(keys)] for index in range(len(artists))]
    longest = prior.config.max_duration - 1 / material.sampling_rate
    seconds = np.clip(
        np.median(material.train["num_samples"]) / material.sampling_rate, prior.config.min_duration, longest
    )
    conditions = material.processor(artist=artists, genre=genres, total_seconds=float(seconds))
    labels = {name: conditions[name] for name in ("total_length", "offset")}
    labels |= {name: conditions[name][:, material.top] for name in ("artist_ids", "genre_ids")}
    generator, drawn = torch.Generator().manual_seed(seed), []
    for rows in track(batches(len(artists), BATCH_SIZE), "Drawing songs", console=console, transient=True):
        drawn.append(prior.generate(**{name: values[rows] for name, values in labels.items()}, generator=generator))
    return DrawnSongs(torch.cat(drawn), artists, genres, conditions)


def draw_lower_levels(material: Material, songs: DrawnSongs, console: Console, per_artist: int, seed: int = 0):
    """Draws all levels below of the beginnings of some songs, of half a context or as much as an upsampler needs.

    Returns:
        [`DrawnSongs`], whose codes are those of level 0.
    """
    rows = [
        index
        for name in dict.fromkeys(songs.artists)
        for index in [row for row, own in enumerate(songs.artists) if own == name][:per_artist]
    ]
    lower = list(range(material.top))
    needed = max(material.model.priors[level].config.sample_length for level in lower)
    length = max(songs.codes.shape[1] // 2, math.ceil(needed / material.hop_lengths[-1]))
    conditions = BatchFeature({name: values[rows] for name, values in songs.conditions.items()})
    with Progress(console=console, transient=True) as progress:
        tasks = {level: progress.add_task(f"Drawing level {level}", total=None) for level in reversed(lower)}
        output = material.model.generate(
            **conditions,
            audio_codes=[*[None] * material.top, songs.codes[rows, :length]],
            levels=lower,
            batch_size=len(rows),
            generator=torch.Generator().manual_seed(seed),
            callback=lambda now: progress.update(tasks[now.level], completed=now.position, total=now.total),
        )
    artists, genres = ([names[row] for row in rows] for names in (songs.artists, songs.genres))
    return DrawnSongs(output.audio_codes[0], artists, genres, conditions)


@torch.no_grad()
def sound_of(material: Material, level: int, codes: torch.Tensor) -> np.ndarray:
    """Decodes excerpts to `(excerpts, samples)`."""
    rows = batches(len(codes), 8)
    return np.concatenate([material.model.vqvae.decode(codes[row], level=level).audio_values[:, 0] for row in rows])


def measure_labels(material: Material, level: int, drawn: DrawnSongs, console: Console, train: int, test: int) -> dict:
    """Has a classifier name the instrument, and templates the key, of drawn songs.

    The classifier learns from training music that went through the same level of the VQ-VAE: one that learned from
    recordings might hear the codec where it should hear the instrument. How it does on held-out music that did, too, is
    the most that drawn songs can reach.
    """
    length = drawn.codes.shape[1]
    known, held_out = (
        cut_excerpts(material.train, level, length, train),
        cut_excerpts(material.test, level, length, test),
    )
    features, chromas = {}, {}
    for name, codes in track(
        {"train": known.codes, "test": held_out.codes, "drawn": drawn.codes}.items(),
        f"Decoding level {level}",
        console=console,
        transient=True,
    ):
        audio = sound_of(material, level, codes)
        features[name] = mel_spectra(audio, material.sampling_rate)
        chromas[name] = chroma(audio, material.sampling_rate)
    instruments = sorted(set(known.artists))
    probe = fit_probe(features["train"], np.array(known.artists), known.songs)
    heard = probe.predict(features["drawn"])
    confusion = [
        [int(sum(own == asked and other == name for own, other in zip(drawn.artists, heard))) for name in instruments]
        for asked in instruments
    ]
    return {
        "level": level,
        "seconds": length * material.hop_lengths[level] / material.sampling_rate,
        "train": len(known),
        "test": len(held_out),
        "drawn": len(drawn.codes),
        "instrument": {
            "chance": 1 / len(instruments),
            "held_out": _with_interval(np.array(held_out.artists) == probe.predict(features["test"]), held_out.songs),
            "drawn": _with_interval(np.array(drawn.artists) == heard, np.arange(len(heard))),
            "names": instruments,
            "confusion": confusion,
        },
        "key": {
            "held_out": key_figures(held_out.genres, chromas["test"], held_out.songs),
            "drawn": key_figures(drawn.genres, chromas["drawn"], np.arange(len(heard))),
        },
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
    return {
        name: _with_interval(score(references, estimates), songs)
        | {"chance": shuffled_score(references, estimates, score)}
        for name, score in scores.items()
    }


def _with_interval(scores: np.ndarray, songs: np.ndarray) -> dict:
    return {"score": float(np.mean(scores)), "interval": interval(scores.astype(float), songs)}
