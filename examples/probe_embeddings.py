"""Probes embeddings of music as JukeMIR does: what shallow models make of them, beside simple features and chance.

Without --data it makes a small set of chords, and without --model it takes a small untrained model: both only show that
it runs. The released 5b prior has, in the paper's table (Castellon, Donahue, Liang 2021, arXiv 2107.05677; published
there, not measured here): genre (GTZAN) accuracy 79.7, key (GiantSteps) weighted score 66.7, emotion (EmoMusic) R2 72.1
for arousal and 61.7 for valence, in percent, with --preset jukemir, --grid full, and their splits of clips.
"""

import argparse
import os
import sys
import tempfile
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from jukemir_probe import GRIDS, TASKS, Classification, Regression, Task, best_probe, grid, interval
from probe_clips import SAMPLING_RATE, SPLITS, Clip, read_folder, read_table, split_clips, synthesize, synthetic_clips
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table
from transformers.utils import logging as transformers_logging

from jukebox_hf import JukeboxEmbedder, JukeboxPriorConfig, JukeboxPriorModel, JukeboxVQVAEConfig, JukeboxVQVAEModel
from jukebox_hf.audio_files import read_audio_blocks
from jukebox_hf.embedding_recipes import PRESETS, preset

# Files between two writes of --embeddings.
CHUNK = 16


def make_embedder(arguments: argparse.Namespace) -> JukeboxEmbedder:
    """Describes the embedder of a model, or makes a small untrained one."""
    changes = {} if arguments.layer is None else {"layers": [arguments.layer]}
    if arguments.model is not None:
        changes |= {"vqvae": arguments.vqvae, "device": arguments.device, "dtype": arguments.dtype}
        if arguments.preset == "default":
            return JukeboxEmbedder.from_pretrained(arguments.model, **changes)
        return JukeboxEmbedder.from_preset(arguments.preset, arguments.model, **changes)
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_residual_layers": 2, "codebook_size": 128, "codebook_dim": 16}
    vqvae = JukeboxVQVAEModel(JukeboxVQVAEConfig(**sizes))
    # In training mode the first latents become the codebook, which would else have one code for everything.
    chords = synthesize(np.random.default_rng(1), 0, "major", 0.5)
    vqvae.train()(torch.from_numpy(chords[: 512 * 128])[None, None])
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 2, "head_dim": 8, "vocab_size": 128}
    prior = JukeboxPriorModel(JukeboxPriorConfig(**sizes, num_hidden_layers=4, num_artists=1, num_genres=1))
    recipe = preset("jukemir" if arguments.preset == "default" else arguments.preset, **({"layers": [4]} | changes))
    return JukeboxEmbedder.from_models(vqvae.eval(), prior.eval(), recipe)


def band_energies(samples: np.ndarray) -> np.ndarray:
    """Takes samples to the mean logarithms `(64,)` of their energy in bands that widen as those of mel spectra do."""
    samples = np.pad(samples, (0, max(0, 2048 - len(samples))))
    frames = np.lib.stride_tricks.sliding_window_view(samples, 2048)[::1024] * np.hanning(2048)
    power = np.abs(np.fft.rfft(frames)).astype(np.float32) ** 2
    mel = 2595 * np.log10(1 + np.fft.rfftfreq(2048, 1 / SAMPLING_RATE) / 700)
    centers = np.linspace(0, mel[-1], 66)
    bands = np.maximum(0, 1 - np.abs(mel[:, None] - centers[1:-1]) / centers[1])
    return np.log10(power @ bands + 1e-6).mean(0).astype(np.float32)


def read_features(file: Path | None, made_by: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Reads what an earlier run has kept: for each clip its embedding and its band energies.

    Raises:
        ValueError: another model or recipe made it, or it is no such file.
    """
    if file is None or not file.exists():
        return {}
    try:
        with np.load(file) as kept:
            stored, rows = str(kept["made_by"]), zip(kept["names"], kept["embeddings"], kept["spectra"])
            known = {str(name): (embedding, spectrum) for name, embedding, spectrum in rows}
    except (KeyError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{file} is no file of embeddings ({error}): name another.") from error
    if stored != made_by:
        raise ValueError(f"{file} is of another model or recipe, {stored}: name another file.")
    return known


def write_features(file: Path, made_by: str, known: dict[str, tuple[np.ndarray, np.ndarray]]):
    part = file.with_name(f".{file.name}.part")
    with part.open("wb") as stream:
        embeddings, spectra = zip(*known.values())
        np.savez(stream, made_by=made_by, names=list(known), embeddings=np.stack(embeddings), spectra=np.stack(spectra))
    os.replace(part, file)


def clip_features(
    clips: list[Clip], embedder: JukeboxEmbedder, file: Path | None, console: Console
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Gives the embedding and the band energies of each clip that can be read, and says which cannot."""
    weights = [pinned and (pinned.commit or pinned.digest) for pinned in (embedder.prior, embedder.vqvae)]
    made_by = f"{weights} {embedder.model_kwargs} {embedder.recipe}"
    known = read_features(file, made_by)
    todo = [clip for clip in clips if clip.name not in known]
    column = f"embedding_{embedder.recipe.layers[0]}"
    for first in track(range(0, len(todo), CHUNK), "   Embedding", console=console, transient=True):
        chunk = todo[first : first + CHUNK]
        embedded = embedder({"audio": [str(clip.path) for clip in chunk]})
        for clip, embedding, error in zip(chunk, embedded[column], embedded["error"]):
            if error is not None:
                console.print(f"   Left out: {escape(clip.name)}: {escape(error)}")
                continue
            # Some recipes give frames, or windows, or both; a probe wants one vector.
            embedding = np.asarray(embedding, dtype=np.float32)
            vector = embedding.reshape(-1, embedding.shape[-1]).mean(0)
            samples = np.concatenate(list(read_audio_blocks(clip.path, SAMPLING_RATE)))
            known[clip.name] = vector, band_energies(samples)
        if file is not None and known:
            write_features(file, made_by, known)
    return known


def probe(console: Console, clips: list[Clip], features: dict, arguments: argparse.Namespace):
    """Chooses a probe for each kind of features and prints how it does on the test clips."""
    task = TASKS[arguments.task]([clip.label for clip in clips])
    targets = {split: task.targets([clip.label for clip in clips if clip.split == split]) for split in SPLITS}
    constant = np.tile(task.constant(targets["train"]), (len(targets["test"]), 1))
    title = f"{task.metric}, {len(constant)} test files"
    table = Table("Features", "Width", "Valid", "Test", "95 % interval", title=title)
    table.add_row("none: always the same answer", "", "", *shown(task, constant, targets["test"]))
    details = []
    for index, name in enumerate(("embeddings", "log energies in 64 bands")):
        rows = {split: np.stack([features[c.name][index] for c in clips if c.split == split]) for split in SPLITS}
        train, valid = ((rows[split], targets[split]) for split in SPLITS[:2])
        settings = track(grid(arguments.grid), f"   Probing {name}", console=console, transient=True)
        options = {"max_steps": arguments.max_steps, "device": arguments.device or "cpu"}
        best = best_probe(settings, task, train, valid, **options)
        outputs = best.outputs(rows["test"])
        table.add_row(name, str(train[0].shape[1]), f"{best.valid_score:.3f}", *shown(task, outputs, targets["test"]))
        details.append(f"   {name}: {best.settings}, {best.best_step} steps")
        if isinstance(task, Regression) and task.num_outputs > 1:
            each = [f"{task.score(outputs[:, [k]], targets['test'][:, [k]]):.3f}" for k in range(task.num_outputs)]
            details.append(f"      R2 of each number: {', '.join(each)}")
        elif arguments.task == "key":
            accuracy = Classification.score(task, outputs, targets["test"])
            details.append(f"      accuracy: {accuracy:.3f}")
    console.print(table)
    console.print("The best of the grid on the validation files:")
    for line in details:
        console.print(line)


def shown(task: Task, outputs: np.ndarray, targets: np.ndarray) -> tuple[str, str]:
    low, high = interval(task, outputs, targets)
    return f"{task.score(outputs, targets):.3f}", f"{low:.3f} to {high:.3f}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a folder that has a folder of audio files for each label")
    parser.add_argument("--metadata", type=Path, help="a CSV file of path, label and maybe split, for files in --data")
    parser.add_argument("--task", choices=TASKS, default="classification", help="keys are such as 'Eb minor'")
    parser.add_argument("--model", help="a whole model or a top prior: repository or folder; default: untrained")
    parser.add_argument("--vqvae", help="the VQ-VAE beside a prior alone")
    parser.add_argument("--preset", choices=[*PRESETS, "default"], default="jukemir", help="recipe of the embeddings")
    parser.add_argument("--layer", type=int, help="whose output to take, from 1; default: the preset's")
    parser.add_argument("--grid", choices=GRIDS, default="small", help="4 probes, or the paper's 216")
    parser.add_argument(
        "--max-steps",
        type=int,
        help="updates of a probe at most; default: no limit, as in the paper, but 2000 without --data",
    )
    parser.add_argument("--embeddings", type=Path, help="a .npz file to keep them in, and to take them from")
    parser.add_argument("--device", help="such as cuda; default: the accelerator, and the CPU for the probes")
    parser.add_argument("--dtype", default="float32", help="of the prior's matrices")
    arguments = parser.parse_args()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    console = Console(soft_wrap=True, highlight=False)
    with tempfile.TemporaryDirectory() as scratch:
        if arguments.metadata is not None:
            clips = read_table(arguments.metadata, arguments.data or arguments.metadata.parent)
        elif arguments.data is not None:
            clips = read_folder(arguments.data)
        else:
            console.print("[bold]Making chords[/bold] (no --data)")
            clips = synthetic_clips(Path(scratch), arguments.task)
            arguments.max_steps = arguments.max_steps or 2000
        # Told before the model runs, which may take hours.
        TASKS[arguments.task]([clip.label for clip in clips]).targets([clip.label for clip in clips])
        embedder = make_embedder(arguments)
        name = arguments.model or "a small untrained model (no --model)"
        console.print(
            f"[bold]Embedding {len(clips)} clips[/bold] with {escape(name)}, layer {embedder.recipe.layers[0]}"
        )
        split_clips(clips, arguments.task)
        features = clip_features(clips, embedder, arguments.embeddings, console)
    clips = split_clips([clip for clip in clips if clip.name in features], arguments.task)
    counts = Counter(clip.split for clip in clips)
    console.print(f"[bold]Probing[/bold] {', '.join(f'{counts[split]} {split}' for split in SPLITS)} files")
    probe(console, clips, features, arguments)
    if arguments.model is None:
        console.print("The model was untrained: this says nothing about Jukebox.")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"Error: {' '.join(str(error).split())}")
