"""Embeddings of a folder of synthesised clips, as numbers and on a map."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from datasets import disable_progress_bars, load_dataset
from rich.console import Console

from jukebox_hf.audio_files import write_audio

RATE = 44100
SECONDS = 0.5
LAYER = 12
# The strength of each harmonic.
TIMBRES = {"flute": [1, 0.1, 0.02], "reed": [1, 0, 0.6, 0, 0.5, 0, 0.4], "bell": [1, 0, 0, 0.7, 0, 0, 0.6]}
PITCHES = [220.0, 247.5, 277.2, 330.0]


def write_clips(folder: Path):
    """Writes each pitch in each timbre, with a little noise."""
    generator, time = np.random.default_rng(0), np.arange(int(RATE * SECONDS)) / RATE
    folder.mkdir()
    for name, harmonics in TIMBRES.items():
        for pitch in PITCHES:
            tone = sum(level * np.sin(2 * np.pi * pitch * (k + 1) * time) for k, level in enumerate(harmonics))
            noise = 0.01 * generator.standard_normal(len(time))
            write_audio(folder / f"{name}-{pitch:.0f}.wav", [(0.3 * tone + noise).astype(np.float32)], RATE)


def show_embeddings(console: Console, output: Path, run: Callable):
    """Embeds the clips with the song model of the demo; `run` runs a command line here."""
    clips, results = output / "clips", output / "embeddings"
    for folder in (clips, results):
        shutil.rmtree(folder, ignore_errors=True)
    write_clips(clips)
    model = ["--model", str(output / "song-model"), "--layer", str(LAYER)]
    run(console, "embed", str(clips), *model, "--output", str(results), "--pictures")
    disable_progress_bars()
    rows = load_dataset("parquet", data_dir=str(results), split="train").with_format("numpy")
    vectors = rows["vector"][:]
    vectors = (vectors - vectors.mean(0)) / np.linalg.norm(vectors - vectors.mean(0), axis=1, keepdims=True)
    alike = vectors @ vectors.T
    np.fill_diagonal(alike, np.nan)
    console.print(f"   {len(rows)} clips, mean cosine similarity of those that share")
    names = [Path(path).stem.split("-") for path in rows["path"][:]]
    for what, labels in zip(("timbre", "pitch"), np.array(names).T):
        is_same = labels[:, None] == labels
        within, between = np.nanmean(alike[is_same]), np.nanmean(alike[~is_same])
        console.print(f"      a {what}: {within:.2f}, and of those that do not: {between:.2f}")
