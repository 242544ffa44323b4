"""`jukebox-hf encode`, `decode` and `reconstruct`."""

import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from transformers import AutoModel
from transformers.utils import logging

from ..audio_files import audio_file_length, read_audio_blocks, write_audio
from ..modeling_jukebox import JukeboxModel
from ..modeling_jukebox_vqvae import JukeboxVQVAEModel
from ..pictures import require_matplotlib, save_spectrograms

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".au", ".caf", ".w64", ".rf64")
CODES_SUFFIX = ".safetensors"
CODES_PER_BLOCK = 2**16
# Told how many samples are done.
Report = Callable[[int], None]

Inputs = Annotated[list[Path], typer.Argument(help="Audio files, or folders that are searched for them.")]
CodeFiles = Annotated[list[Path], typer.Argument(help="Files that encode wrote, or folders of them.")]
Model = Annotated[str, typer.Option("--model", "-m", help="A converted VQ-VAE: a repository on the Hub or a folder.")]
Output = Annotated[Path, typer.Option("--output", "-o", help="The folder for the results; made when missing.")]
Format = Annotated[str, typer.Option("--format", "-f", help="Format of the audio: wav or flac.")]
Device = Annotated[str | None, typer.Option(help="Such as cpu or cuda:0; default: an accelerator when there is one.")]


def encode(
    inputs: Inputs,
    model: Model,
    output: Output = Path("codes"),
    level: Annotated[
        list[int] | None,
        typer.Option("--level", "-l", help="A level to compute, 0 the finest; repeat for several. Default: all."),
    ] = None,
    device: Device = None,
):
    """Turn audio of any rate, length and channel count into discrete codes.

    Each input NAME gives OUTPUT/NAME.safetensors with a tensor codes.LEVEL of shape (1, frames) for each level, and
    the sampling rate, samples and model as metadata. Files are read in blocks, so only the codes grow with length.

    \b
    Examples:
      jukebox-hf encode song.ogg --model jukebox-5b-vqvae --level 2
      jukebox-hf encode music/ --model org/jukebox-5b-vqvae --output codes/
    """
    vqvae = _load(model, device)
    levels = vqvae.config.check_levels(level)
    rate = vqvae.config.sampling_rate

    dtype = torch.int16 if vqvae.config.codebook_size <= 2**15 else torch.int32

    def encode_file(path: Path, target: Path, report: Report):
        counter = _Counted(read_audio_blocks(path, rate), report)
        stream = vqvae.encode_stream(_tensors(counter, vqvae), levels)
        blocks = [[codes.to("cpu", dtype) for codes in block] for block in stream]
        codes = {f"codes.{level}": torch.cat(parts, 1) for level, parts in zip(levels, zip(*blocks))}
        metadata = {"sampling_rate": str(rate), "samples": str(counter.samples), "model": model}
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.partial")
        try:
            # save_file would write a file that only its owner may read.
            partial.write_bytes(save(codes, metadata))
            os.replace(partial, target)
        finally:
            partial.unlink(missing_ok=True)

    jobs = _jobs(inputs, AUDIO_SUFFIXES, output, CODES_SUFFIX)
    _run(jobs, encode_file, lambda path: audio_file_length(path, rate), rate)


def decode(
    inputs: CodeFiles,
    model: Model,
    output: Output = Path("decoded"),
    level: Annotated[
        int | None, typer.Option("--level", "-l", help="The level to decode. Default: the finest in the file.")
    ] = None,
    format: Format = "wav",
    device: Device = None,
):
    """Turn codes back into audio; each level's codes make a whole signal of their own.

    \b
    Examples:
      jukebox-hf decode codes/song.ogg.safetensors --model jukebox-5b-vqvae
      jukebox-hf decode codes/ --model jukebox-5b-vqvae --level 2 --format flac
    """
    vqvae = _load(model, device)
    rate = vqvae.config.sampling_rate

    def decode_file(path: Path, target: Path, report: Report):
        chosen, codes = _read_codes(path, level)
        if codes.ndim != 2 or len(codes) != 1:
            raise ValueError(f"{path} holds codes {tuple(codes.shape)}: give those of one signal, (1, frames).")
        blocks = vqvae.decode_stream(codes.to(vqvae.device).split(CODES_PER_BLOCK, dim=1), chosen)
        target.parent.mkdir(parents=True, exist_ok=True)
        write_audio(target, _Counted(_arrays(blocks), report), rate)

    def length(path: Path) -> int:
        chosen, codes = _read_codes(path, level)
        (chosen,) = vqvae.config.check_levels([chosen])
        return codes.shape[1] * vqvae.config.hop_lengths[chosen]

    _run(_jobs(inputs, (CODES_SUFFIX,), output, _audio_suffix(format)), decode_file, length, rate)


def reconstruct(
    inputs: Inputs,
    model: Model,
    output: Output = Path("reconstructed"),
    level: Annotated[int, typer.Option("--level", "-l", help="The level to go through, 0 the finest.")] = 0,
    format: Format = "wav",
    picture: Annotated[bool, typer.Option("--picture", help="Also draw spectrograms of both as a PNG.")] = False,
    device: Device = None,
):
    """Send audio through one level's codes and back: what the codes keep of it.

    \b
    Examples:
      jukebox-hf reconstruct song.ogg --model jukebox-5b-vqvae --level 2 --picture
    """
    if picture:
        require_matplotlib()
    vqvae = _load(model, device)
    (level,) = vqvae.config.check_levels([level])
    rate = vqvae.config.sampling_rate

    def reconstruct_file(path: Path, target: Path, report: Report):
        counter = _Counted(read_audio_blocks(path, rate), report)
        codes = (codes for (codes,) in vqvae.encode_stream(_tensors(counter, vqvae), [level]))
        target.parent.mkdir(parents=True, exist_ok=True)
        write_audio(target, _arrays(vqvae.decode_stream(codes, level)), rate)
        if picture:
            titles = {f"{path.name}": path, f"reconstructed from level {level}": target}
            save_spectrograms(target.with_suffix(".png"), titles, rate)

    jobs = _jobs(inputs, AUDIO_SUFFIXES, output, f".level-{level}{_audio_suffix(format)}")
    _run(jobs, reconstruct_file, lambda path: audio_file_length(path, rate), rate)


def _load(name: str, device: str | None) -> JukeboxVQVAEModel:
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        model = AutoModel.from_pretrained(name)
    except SafetensorError as error:
        raise ValueError(f"The weights in {name} cannot be read: {error}. Convert or fetch them again.") from error
    if isinstance(model, JukeboxModel):
        model = model.vqvae
    if not isinstance(model, JukeboxVQVAEModel):
        raise ValueError(f"{name} holds a {type(model).__name__}: give a converted VQ-VAE, such as jukebox-5b-vqvae.")
    if device is None:
        device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    try:
        return model.to(device)
    # PyTorch asserts that a build has CUDA.
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {device} cannot be used: {error}") from error


def _audio_suffix(format: str) -> str:
    if format not in ("wav", "flac"):
        raise ValueError(f"--format {format}: choose wav or flac.")
    return f".{format}"


def find_files(given: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """Gives a file, or what a folder holds of files with these suffixes.

    Raises:
        ValueError: no such file or folder, or a folder without such files.
    """
    if not given.exists():
        raise ValueError(f"{given} does not exist.")
    if not given.is_dir():
        return [given]
    found = sorted(path for path in given.rglob("*") if path.suffix.lower() in suffixes and path.is_file())
    if not found:
        raise ValueError(f"{given} holds no file that ends in one of {', '.join(suffixes)}.")
    return found


def _jobs(inputs: list[Path], suffixes: tuple[str, ...], output: Path, new_suffix: str) -> dict[Path, Path]:
    """Maps each input file to the file it becomes; a folder keeps its structure below the output folder."""
    jobs: dict[Path, Path] = {}
    for given in inputs:
        found = find_files(given, suffixes)
        for path in found:
            name = path.relative_to(given) if given.is_dir() else Path(path.name)
            jobs[path] = output / f"{str(name).removesuffix(CODES_SUFFIX)}{new_suffix}"
    uses = Counter(jobs.values())
    for path, target in jobs.items():
        if uses[target] > 1:
            raise ValueError(
                f"Several inputs, {path} among them, would become {target}: use an output folder for each."
            )
    return jobs


def _run(
    jobs: dict[Path, Path],
    work: Callable[[Path, Path, Report], None],
    length: Callable[[Path], int],
    rate: int,
):
    """Works through the jobs; a file that fails costs only itself, is reported, and makes the exit status 1."""
    console, failures = Console(soft_wrap=True), 0
    columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[speed]}"), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        for path, target in jobs.items():
            task = progress.add_task(escape(path.name), total=None, speed="")

            start = time.monotonic()

            def report(samples: int, task=task, start=start):
                speed = samples / rate / max(time.monotonic() - start, 1e-3)
                progress.update(task, completed=samples, speed=f"{speed:.1f}x real time")

            try:
                progress.update(task, total=length(path))
                work(path, target, report)
                console.print(escape(f"{path} -> {target}"), highlight=False)
            except (ValueError, OSError, SafetensorError, torch.OutOfMemoryError) as error:
                failures += 1
                message = " ".join(str(error).split())
                message = escape(message if str(path) in message else f"{path}: {message}")
                progress.console.print(f"[bold red]Error:[/bold red] {message}", highlight=False, soft_wrap=True)
            progress.remove_task(task)
    if failures:
        raise ValueError(f"{failures} of {len(jobs)} files failed; the others are done.")


class _Counted:
    """Passes blocks `(samples,)` on and reports how many samples have passed."""

    def __init__(self, blocks: Iterable[np.ndarray], report: Report):
        self.blocks, self.report, self.samples = blocks, report, 0

    def __iter__(self) -> Iterator[np.ndarray]:
        for block in self.blocks:
            self.samples += len(block)
            self.report(self.samples)
            yield block


def _tensors(blocks: Iterable[np.ndarray], model: JukeboxVQVAEModel) -> Iterator[torch.Tensor]:
    return (torch.from_numpy(block).to(model.device)[None, None] for block in blocks)


def _arrays(blocks: Iterable[torch.Tensor]) -> Iterator[np.ndarray]:
    return (block[0, 0].float().cpu().numpy() for block in blocks)


def _read_codes(path: Path, level: int | None) -> tuple[int, torch.Tensor]:
    try:
        with safe_open(path, "pt") as file:
            names = file.keys()
            levels = sorted(int(name.removeprefix("codes.")) for name in names if name.startswith("codes."))
            if not levels:
                raise ValueError("holds no tensor named codes.LEVEL: give a file that jukebox-hf encode wrote.")
            level = levels[0] if level is None else level
            if level not in levels:
                raise ValueError(f"holds the levels {', '.join(map(str, levels))}, not {level}.")
            return level, file.get_tensor(f"codes.{level}")
    except SafetensorError as error:
        raise ValueError(f"is no safetensors file: {error}") from error
