"""Measures a small Jukebox on held-out music and writes the figures of its model card, figures.json and figures.md.

The music is what render_chorales.py wrote: the folders train, from which classifiers, probes and the counts that the
priors are compared with are made, and test, from which every figure is.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import datasets
from codec_figures import measure_reconstruction
from figure_tables import to_markdown
from label_figures import draw_lower_levels, draw_songs, measure_labels
from material import Material, load_material
from prior_figures import measure_prior
from probe_figures import measure_embeddings
from rich.console import Console
from transformers.utils import logging as transformers_logging

from jukebox_hf.audio_files import write_audio

PARTS = ("reconstruction", "priors", "labels", "embeddings")


def measure_all_priors(material: Material, arguments: argparse.Namespace, console: Console) -> list[dict]:
    levels = range(material.top, -1, -1)
    return [measure_prior(material, level, console, arguments.windows, arguments.seed) for level in levels]


def measure_drawn_songs(material: Material, arguments: argparse.Namespace, console: Console) -> list[dict]:
    """Draws songs, keeps the sound of those that went through all levels, and measures how they follow their labels."""
    sizes = {"train": arguments.excerpts, "test": arguments.held_out_excerpts}
    songs = draw_songs(material, console, arguments.songs, arguments.seed)
    figures = [measure_labels(material, songs, console, **sizes)]
    if arguments.full_songs:
        songs = draw_lower_levels(material, songs, console, arguments.full_songs, arguments.seed)
        figures.append(measure_labels(material, songs, console, **sizes))
    folder = arguments.output / "songs"
    folder.mkdir(exist_ok=True)
    for index, audio in enumerate(songs.audio):
        name = f"{index:02d}_{songs.artists[index]}_{songs.genres[index]}.wav".replace(" ", "_").replace("#", "s")
        write_audio(folder / name, [audio], material.sampling_rate)
    return figures


def measure(material: Material, arguments: argparse.Namespace, console: Console) -> dict:
    """Measures the asked parts."""
    sizes = (arguments.excerpts, arguments.held_out_excerpts)
    parts = {
        "reconstruction": lambda: measure_reconstruction(material, console, arguments.clips, arguments.seconds),
        "priors": lambda: measure_all_priors(material, arguments, console),
        "labels": lambda: measure_drawn_songs(material, arguments, console),
        "embeddings": lambda: measure_embeddings(material, console, *sizes, arguments.seed),
    }
    figures = {"train_songs": len(material.train), "test_songs": len(material.test), "minutes": {}}
    for name in arguments.parts:
        start = time.perf_counter()
        console.print(f"[bold]{name.capitalize()}[/bold]")
        figures[name] = parts[name]()
        figures["minutes"][name] = (time.perf_counter() - start) / 60
        console.print(f"   {figures['minutes'][name]:.1f} minutes")
    return figures


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("model", type=Path, help="folder of a JukeboxModel with its processor")
    parser.add_argument("music", type=Path, help="folder with the folders train and test")
    parser.add_argument("--output", type=Path, required=True, help="folder for the figures and the drawn songs")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what to measure")
    parser.add_argument("--vqvae", type=Path, help="folder under whose name datasets keeps codes; default: the model's")
    parser.add_argument("--training-songs", type=int, default=200, help="songs to count and learn from, evenly spaced")
    parser.add_argument("--encoding-processes", type=int, help="processes that encode the music")
    parser.add_argument("--clips", type=int, default=64, help="held-out clips to reconstruct")
    parser.add_argument("--seconds", type=float, default=8.192, help="length of each of them")
    parser.add_argument("--windows", type=int, default=96, help="held-out windows of each prior")
    parser.add_argument("--songs", type=int, default=12, help="songs to draw for each instrument at the top level")
    parser.add_argument("--full-songs", type=int, default=4, help="how many of them to draw at all levels, in part")
    parser.add_argument("--excerpts", type=int, default=360, help="training excerpts for a classifier or probe")
    parser.add_argument("--held-out-excerpts", type=int, default=136, help="held-out excerpts for its figures")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn")
    return parser.parse_args()


def main():
    arguments = read_arguments()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    datasets.disable_progress_bars()
    console = Console(soft_wrap=True, highlight=False)
    arguments.output.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    with console.status("Encoding the music, unless that was done before"):
        material = load_material(
            arguments.model, arguments.music, arguments.training_songs, arguments.encoding_processes, arguments.vqvae
        )
    encoding = (time.perf_counter() - start) / 60
    console.print(f"[bold]{len(material.train)} training songs, {len(material.test)} held out[/bold]")
    figures = measure(material, arguments, console)
    figures["minutes"] = {"encoding": encoding} | figures["minutes"]
    (arguments.output / "figures.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    table = to_markdown(figures)
    (arguments.output / "figures.md").write_text(table, encoding="utf-8")
    console.print(table, markup=False)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"Error: {' '.join(str(error).split())}")
