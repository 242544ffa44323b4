"""Clips of several instruments in several keys, drawn at once, and how their embeddings lie: as numbers, on a map."""

import shutil
from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import torch
from datasets import disable_progress_bars, load_dataset
from demo_song import TOTAL_SECONDS
from rich.console import Console
from transformers import AutoModel, AutoProcessor

import jukebox_hf
from jukebox_hf.audio_files import write_audio

INSTRUMENTS = ["piano", "church organ", "nylon guitar", "string ensemble"]
KEYS = ["g major", "a minor", "eb major"]
SECONDS = 4.096
# The middle of the top prior.
LAYER = 5


def draw_clips(folder: Path, seed: int):
    """Draws each instrument in each key, all in one batch, which costs little more than one clip."""
    model, processor = (auto.from_pretrained(jukebox_hf.demo) for auto in (AutoModel, AutoProcessor))
    artists, genres = zip(*product(INSTRUMENTS, KEYS))
    labels = processor(artist=list(artists), genre=list(genres), total_seconds=TOTAL_SECONDS)
    generators = [torch.Generator().manual_seed(seed + number) for number in range(len(artists))]
    # Without level 0, which takes most of the time and adds no note.
    songs = model.generate(**labels, seconds=SECONDS, levels=[1, 2], generator=generators)
    folder.mkdir()
    for artist, genre, audio in zip(artists, genres, songs.audio):
        write_audio(folder / f"{artist}, {genre}.wav", [audio[0].numpy()], model.config.sampling_rate)


def show_embeddings(console: Console, output: Path, run: Callable, seed: int):
    """Draws clips and embeds them with the model that drew them; `run` runs a command line here."""
    clips, results = output / "clips", output / "embeddings"
    for folder in (clips, results):
        shutil.rmtree(folder, ignore_errors=True)
    console.print(f"   Drawing {len(INSTRUMENTS) * len(KEYS)} clips of {SECONDS} s to {clips}")
    draw_clips(clips, seed)
    model = ["--model", jukebox_hf.demo, "--layer", str(LAYER)]
    run("embed", str(clips), *model, "--output", str(results), "--pictures")
    disable_progress_bars()
    rows = load_dataset("parquet", data_dir=str(results), split="train").with_format("numpy")
    vectors = rows["vector"][:]
    vectors = (vectors - vectors.mean(0)) / np.linalg.norm(vectors - vectors.mean(0), axis=1, keepdims=True)
    alike = vectors @ vectors.T
    np.fill_diagonal(alike, np.nan)
    console.print(f"   {len(rows)} clips, mean cosine similarity of those that share")
    names = [Path(path).stem.split(", ") for path in rows["path"][:]]
    for what, labels in zip(("an instrument", "a key"), np.array(names).T):
        is_same = labels[:, None] == labels
        within, between = np.nanmean(alike[is_same]), np.nanmean(alike[~is_same])
        nearest = np.mean(labels[np.nanargmax(alike, axis=1)] == labels)
        console.print(
            f"      {what}: {within:.2f}, and of those that do not: {between:.2f}; "
            f"{nearest:.0%} of the nearest neighbours share it"
        )
