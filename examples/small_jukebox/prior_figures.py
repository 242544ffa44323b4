"""Bits per code of the priors on held-out windows, beside counts of the same codes, and with wrong conditions."""

import numpy as np
import torch
from baselines import Conditional, bigram, bigram_bits
from material import Material, batches, song_codes, spread
from rich.console import Console
from rich.progress import track

from jukebox_hf import JukeboxPriorModel
from jukebox_hf.training import CodeWindows

BATCH_SIZE = 8


def measure_prior(material: Material, level: int, console: Console, wanted: int, seed: int = 0) -> dict:
    """Measures one level's prior on held-out windows, evenly spaced, under right and wrong conditions.

    An upsampler cannot run without the codes above: what it would know then is what counts of its own codes know, so
    these stand for it. With those of another song it is misled, which costs more than knowing nothing.
    """
    prior = material.model.priors[level]
    windows, songs = held_out_windows(material, level, wanted)
    factor = material.hop_lengths[level + 1] // material.hop_lengths[level] if level < material.top else 1
    conditions = {"right": windows}
    if factor > 1:
        conditions["upper codes of another song"] = windows | {"upper_codes": windows["upper_codes"][other_song(songs)]}
    else:
        conditions |= wrong_labels(material, windows, np.random.default_rng(seed))
    steps = track(conditions.items(), f"Prior of level {level}", console=console, transient=True)
    return {
        "level": level,
        "windows": len(songs),
        "codes": windows["labels"].numel(),
        "training_codes": sum(map(len, song_codes(material.train, level))),
        "bits": {name: bits_per_code(prior, inputs) for name, inputs in steps},
        "counts": count_codes(material, level, windows, factor),
    }


def held_out_windows(material: Material, level: int, wanted: int) -> tuple[dict[str, torch.Tensor], np.ndarray]:
    """Gives a prior's inputs for windows of the held-out songs, and which song each is of."""
    prior = material.model.priors[level]
    cut = CodeWindows(material.test, prior.config, material.processor.tokenizer, random_shift=False)
    chosen = spread(len(cut), wanted)
    items = [cut[index] for index in chosen]
    songs = np.array([cut.timeline.place(index, None).song for index in chosen])
    return {name: torch.stack([item[name] for item in items]) for name in items[0]}, songs


@torch.no_grad()
def bits_per_code(prior: JukeboxPriorModel, windows: dict[str, torch.Tensor]) -> float:
    """The mean loss over windows of one length, in bits."""
    total, count = 0.0, len(windows["labels"])
    for rows in batches(count, BATCH_SIZE):
        inputs = {name: values[rows] for name, values in windows.items()}
        total += prior(**inputs).music_loss.item() * len(inputs["labels"])
    return total / count


def other_song(songs: np.ndarray) -> np.ndarray:
    """Gives for each window one of another song.

    Raises:
        ValueError: most windows are of one song.
    """
    half = len(songs) // 2
    for shift in sorted(range(1, len(songs)), key=lambda shift: abs(shift - half)):
        if (np.roll(songs, shift) != songs).all():
            return np.roll(np.arange(len(songs)), shift)
    raise ValueError(f"{len(songs)} windows of {len(set(songs))} songs: give more held-out songs.")


def wrong_labels(
    material: Material, windows: dict[str, torch.Tensor], rng: np.random.Generator
) -> dict[str, dict[str, torch.Tensor]]:
    """Windows with other artists, other genres, both, and neither (id 0); each is wrong everywhere."""
    tokenizer = material.processor.tokenizer
    version = tokenizer.versions[-1]
    artists = _others(windows["artist_ids"], sorted(set(tokenizer.artists[version].values()) - {0}), rng)
    genres = _others(windows["genre_ids"], sorted(set(tokenizer.genres[version].values()) - {0}), rng)
    unknown = {name: torch.zeros_like(windows[name]) for name in ("artist_ids", "genre_ids")}
    return {
        "wrong instrument": windows | {"artist_ids": artists},
        "wrong key": windows | {"genre_ids": genres},
        "both wrong": windows | {"artist_ids": artists, "genre_ids": genres},
        "no labels": windows | unknown,
    }


def _others(ids: torch.Tensor, known: list[int], rng: np.random.Generator) -> torch.Tensor:
    drawn = [rng.choice([other for other in known if other != own]) for own in ids.flatten().tolist()]
    return torch.tensor(drawn).view_as(ids)


def count_codes(material: Material, level: int, windows: dict[str, torch.Tensor], factor: int) -> dict[str, float]:
    """Bits per code of the same windows by counts of the training songs' codes."""
    size = material.model.config.vqvae_config.codebook_size
    songs, targets = song_codes(material.train, level), list(windows["labels"].numpy())
    pairs = bigram(songs, size)
    alone = pairs.unigram
    figures = {
        "unigram": float(alone.bits(targets).mean()),
        "unigram_alpha": alone.alpha,
        "bigram": float(bigram_bits(pairs, targets).mean()),
        "bigram_strength": pairs.strength,
    }
    if factor > 1:
        upper = [np.repeat(codes, factor) for codes in song_codes(material.train, level + 1)]
        lengths = [min(len(own), len(above)) for own, above in zip(songs, upper)]
        beside = Conditional(
            [above[:length] for above, length in zip(upper, lengths)],
            [own[:length] for own, length in zip(songs, lengths)],
            alone,
        )
        above = [np.repeat(codes, factor) for codes in windows["upper_codes"].numpy()]
        figures |= {"code_above": float(beside.bits(above, targets).mean()), "code_above_strength": beside.strength}
    return figures
