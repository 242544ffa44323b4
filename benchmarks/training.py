"""Speed of training: steps against the machine's limits and the plain formulation, and whether they wait for data.

A step is the loss, its gradient, the gradient's norm and the original's Adam. Every figure is a median over rounds that
take turns, so that a machine that slows down slows all of them.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import soundfile
import torch
from datasets import Dataset
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils.data import DataLoader
from transformers.utils import logging

from benchmarks import plain_vqvae
from benchmarks.embeddings import WITHOUT_LYRICS
from benchmarks.plain_prior import PlainPrior
from benchmarks.prior import prefill_multiply_adds
from benchmarks.vqvae import SGEMM_SIZE, multiply_adds, search_multiply_adds, timed, where_time_goes
from jukebox_hf import (
    JukeboxPriorConfig,
    JukeboxPriorModel,
    JukeboxTokenizer,
    JukeboxVQVAEConfig,
    JukeboxVQVAEModel,
)
from jukebox_hf.conversion.official import OFFICIAL_CHECKPOINTS
from jukebox_hf.training import AudioCrops, CodeWindows, JukeboxAdam

SMALL = Path(__file__).parents[1] / "examples/small_jukebox"
# The gradient of a layer's input and that of its weights cost as much as the layer, each.
WITH_GRADIENTS = 3
KINDS = {
    "convolutions": ("convolution", "slow_conv2d"),
    "matrix products": ("addmm", "aten::mm", "aten::bmm"),
    "attention": ("_scaled_dot_product", "flash_attention", "_softmax"),
    "spectrograms": ("_fft", "aten::abs", "aten::sgn"),
    "joining and copies": ("aten::cat", "copy_", "fill_", "index_select", "aten::index"),
    "optimiser": ("_foreach", "lerp", "addcmul", "reciprocal", "sqrt"),
    "sums and activations": ("add", "mul", "clamp_min", "threshold", "sigmoid", "layer_norm", "sum", "sub"),
}
SONGS, SONG_SECONDS, SONG_RATE = 8, 30, 44100
# Songs that are codes already, and so cost nothing to make.
CODED_SECONDS = 150


@dataclass
class Case:
    """A model in training: ours and plain losses of a batch, what is trained, and the multiply-adds of a step."""

    name: str
    batch: dict[str, Tensor]
    ours: Callable[..., Tensor]
    plain: Callable[..., Tensor]
    parameters: list[Tensor]
    plain_parameters: list[Tensor]
    work: float
    # What a step takes in: so many seconds of audio or codes.
    amount: float
    unit: str


def make_step(loss_of: Callable[..., Tensor], parameters: list[Tensor], bf16: bool = False) -> Callable[..., float]:
    """A training step; its rate of 0 costs what any other does and leaves the weights to the next one."""
    optimizer = JukeboxAdam(parameters, lr=0.0)

    def step(**batch: Tensor) -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = loss_of(**batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def vqvae_case(name: str, settings: dict, crop_length: int, batch_size: int) -> Case:
    config = JukeboxVQVAEConfig(**settings)
    torch.manual_seed(0)
    model = JukeboxVQVAEModel(config).train()
    audio = torch.randn(batch_size, 1, crop_length) * 0.2
    # The first batch initialises the codebooks.
    model(audio)
    levels = range(config.num_levels)
    convolutions = sum(2 * multiply_adds(config, level) for level in levels)
    searches = sum(search_multiply_adds(config, level) for level in levels)
    samples = batch_size * crop_length
    return Case(
        name=f"{name}, {batch_size} x {crop_length / config.sampling_rate:.2f} s",
        batch={"input_values": audio},
        ours=lambda input_values: model(input_values).loss,
        plain=lambda input_values: plain_vqvae.training_loss(model, input_values),
        parameters=list(model.parameters()),
        plain_parameters=list(model.parameters()),
        work=samples * (WITH_GRADIENTS * convolutions + searches),
        amount=samples / config.sampling_rate,
        unit="s of audio",
    )


def prior_case(name: str, settings: dict, batch_size: int) -> Case:
    config = JukeboxPriorConfig(**settings)
    torch.manual_seed(0)
    model = JukeboxPriorModel(config).train()
    codes = torch.randint(config.vocab_size, (batch_size, config.context_length))
    timing = {
        "total_length": torch.full((batch_size,), int(config.max_duration * config.sampling_rate) // 2),
        "offset": torch.zeros(batch_size, dtype=torch.long),
    }
    plain = PlainPrior(model)
    head = config.context_length * model.lm_head.weight.numel()
    return Case(
        name=f"{name}, {config.num_hidden_layers} layers, {batch_size} x {config.context_length} codes",
        batch={"input_ids": codes, **timing},
        ours=lambda input_ids, **conditions: model(input_ids, labels=input_ids, **conditions).loss,
        plain=lambda input_ids, **conditions: plain.loss(input_ids, **conditions),
        parameters=list(model.parameters()),
        plain_parameters=plain.parameters,
        work=WITH_GRADIENTS * batch_size * (prefill_multiply_adds(model) + head),
        amount=batch_size * config.context_length,
        unit="codes",
    )


def small_vqvae_settings() -> dict:
    return json.loads((SMALL / "vqvae.json").read_text())


def small_prior_settings() -> dict:
    vqvae = JukeboxVQVAEConfig(**small_vqvae_settings())
    settings = json.loads((SMALL / "prior_2.json").read_text())
    settings |= {"vocab_size": vqvae.codebook_size, "hop_length": vqvae.hop_length, "num_artists": 5}
    return settings | {"sampling_rate": vqvae.sampling_rate, "num_genres": 25, "max_genres": 1}


def wide_prior_settings(num_layers: int, context_length: int) -> dict:
    official = OFFICIAL_CHECKPOINTS["1b-lyrics-prior-level-2"].config.to_diff_dict()
    blocks = {"context_length": context_length, "num_blocks": 64, "num_hidden_layers": num_layers}
    return official | WITHOUT_LYRICS | blocks


def gemm(dtype: torch.dtype) -> Callable[[], Tensor]:
    left, right = torch.randn(SGEMM_SIZE, SGEMM_SIZE).to(dtype), torch.randn(SGEMM_SIZE, SGEMM_SIZE).to(dtype)

    def product() -> Tensor:
        with torch.no_grad():
            return left @ right

    return product


def difference(case: Case) -> tuple[float, float]:
    """How far our loss and gradient are from the plain ones, relative; of what has a plain gradient of its own name."""
    found = []
    shared = {id(parameter) for parameter in case.plain_parameters}
    parameters = [parameter for parameter in case.parameters if id(parameter) in shared]
    for loss_of in (case.ours, case.plain):
        # Codebooks draw rows at random, whether or not a code restarts.
        torch.manual_seed(0)
        loss = loss_of(**case.batch)
        grads = torch.autograd.grad(loss, parameters, allow_unused=True)
        found.append((loss.item(), torch.cat([grad.flatten() for grad in grads if grad is not None])))
    (ours, grads), (plain, plain_grads) = found
    return abs(ours - plain) / abs(plain), ((grads - plain_grads).norm() / plain_grads.norm()).item()


def throughput(console: Console, cases: list[Callable[[], Case]], rounds: int):
    table = Table(title=f"training, fp32 and bf16 autocast, CPU, {torch.get_num_threads()} threads")
    for column in (
        "what", "ms a step", "a second", "of sgemm peak", "over plain", "bf16, ms", "of bf16 peak", "loss, gradient off"
    ):  # fmt: skip
        table.add_column(column, justify="left" if column == "what" else "right")
    peaks, profiles = {}, []
    for make in cases:
        case = make()
        off = difference(case)
        if off[0] > 1e-4:
            raise RuntimeError(f"{case.name}: our loss is off by {off[0]:.0e} of the plain one.")
        steps = {
            "ours": make_step(case.ours, case.parameters),
            "bf16": make_step(case.ours, case.parameters, bf16=True),
            "plain": make_step(case.plain, case.plain_parameters),
        }
        jobs = {name: partial(step, **case.batch) for name, step in steps.items()}
        products = {"sgemm": gemm(torch.float32), "bf16 gemm": gemm(torch.bfloat16)}
        # It takes several times as long as the others.
        took = timed(products | jobs, dict.fromkeys(jobs, rounds) | {"plain": max(1, rounds - 1)})
        peaks = {name: SGEMM_SIZE**3 / took[name] for name in products}
        table.add_row(
            case.name,
            f"{1000 * took['ours']:.0f}",
            f"{case.amount / took['ours']:.3g} {case.unit}",
            f"{case.work / took['ours'] / peaks['sgemm']:.0%}",
            f"{took['plain'] / took['ours']:.1f}",
            f"{1000 * took['bf16']:.0f}",
            f"{case.work / took['bf16'] / peaks['bf16 gemm']:.0%}",
            f"{off[0]:.0e}, {off[1]:.0e}",
        )
        profiles.append((case.name, jobs["ours"]))
    console.print(table)
    console.print(
        f"Peaks ({SGEMM_SIZE} x {SGEMM_SIZE}, the last case's run): "
        + ", ".join(f"{name} {peak / 1e9:.0f} G multiply-adds a second" for name, peak in peaks.items())
        + ". Counted are the layers' multiply-adds, three times for a step, and neither losses nor optimiser. plain: "
        "padded conv1d and each level's own spectrograms; dense attention under masks, matrices as the original's."
    )
    for name, job in profiles:
        where_time_goes(console, name, job, KINDS)


def write_songs(folder: Path) -> list[Path]:
    """Stereo FLAC files of chords with a little noise."""
    paths, rng = [], np.random.default_rng(0)
    seconds = np.arange(SONG_SECONDS * SONG_RATE) / SONG_RATE
    for song in range(SONGS):
        sound = sum(np.sin(2 * np.pi * rng.uniform(80, 2000) * seconds + rng.uniform(0, 6)) for _ in range(8)) / 16
        stereo = np.stack([sound, np.roll(sound, 99)], axis=1) + rng.normal(0, 0.01, (len(sound), 2))
        paths.append(folder / f"{song}.flac")
        soundfile.write(paths[-1], stereo, SONG_RATE)
    return paths


def code_windows(case_settings: dict) -> CodeWindows:
    config, rng = JukeboxPriorConfig(**case_settings), np.random.default_rng(0)
    codes = CODED_SECONDS * config.sampling_rate // config.hop_length
    songs = {
        f"audio_codes_{config.level}": [rng.integers(config.vocab_size, size=codes) for _ in range(SONGS)],
        "num_samples": [codes * config.hop_length] * SONGS,
        "artist": [f"artist {song % 4}" for song in range(SONGS)],
        "genre": [f"genre {song}" for song in range(SONGS)],
    }
    tokenizer = JukeboxTokenizer.from_labels(songs["artist"], songs["genre"], versions=["v3"], max_genres=1)
    return CodeWindows(Dataset.from_dict(songs), config, tokenizer)


def batches(loader: DataLoader) -> Iterator[dict[str, Tensor]]:
    """One epoch after the other."""
    while True:
        yield from loader


def waiting(step: Callable[..., float], loader: DataLoader, steps: int) -> tuple[float, float]:
    """Seconds of a step, and the share of them that it waits for its batch, after the first two batches."""
    source, waited, start = batches(loader), 0.0, 0.0
    for index in range(steps + 2):
        if index == 2:
            waited, start = 0.0, time.perf_counter()
        before = time.perf_counter()
        batch = next(source)
        waited += time.perf_counter() - before
        step(**batch)
    took = time.perf_counter() - start
    return took / steps, waited / took


def loading(console: Console, small_vqvae: Case, small_prior: Case, steps: int):
    """Whether the fastest steps, those of the small models, wait for their batches."""
    table = Table(title=f"data loading, CPU, {torch.get_num_threads()} threads, {steps} steps")
    for column in ("what", "workers", "ms a step", "of it waiting", "ms to load a batch"):
        table.add_column(column, justify="left" if column == "what" else "right")
    rate = small_vqvae_settings()["sampling_rate"]
    with tempfile.TemporaryDirectory() as folder:
        paths = write_songs(Path(folder))
        audio = small_vqvae.batch["input_values"]
        crops = AudioCrops(paths, audio.shape[-1], rate)
        windows = code_windows(small_prior_settings())
        for case, data, size in (
            (small_vqvae, crops, len(audio)),
            (small_prior, windows, len(small_prior.batch["input_ids"])),
        ):
            loss_of = case.ours if data is crops else lambda case=case, labels=None, **batch: case.ours(**batch)
            step = make_step(loss_of, case.parameters)
            for workers in (0, 2):
                loader = DataLoader(
                    data, size, shuffle=True, drop_last=True, num_workers=workers, persistent_workers=workers > 0
                )
                took, share = waiting(step, loader, steps)
                alone = min(timed_batch(data, size) for _ in range(3))
                table.add_row(case.name, str(workers), f"{1000 * took:.0f}", f"{share:.1%}", f"{1000 * alone:.1f}")
    console.print(table)
    console.print(
        f"Crops come from stereo FLAC files at {SONG_RATE} Hz, resampled to {rate} Hz; windows from a dataset of "
        "codes. The last column is one thread's time for a batch, whatever the workers."
    )


def timed_batch(data, size: int) -> float:
    start = time.perf_counter()
    for index in range(size):
        data[index % len(data)]
    return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", nargs="+", choices=["throughput", "loading"], default=["throughput", "loading"])
    parser.add_argument("--layers", type=int, default=3, help="of the prior of 1b_lyrics' width")
    parser.add_argument("--context", type=int, default=4096, help="its codes; dense attention grows with the square")
    parser.add_argument("--crop-length", type=int, default=32768, help="samples of the VQ-VAEs' crops")
    parser.add_argument("--batch-size", type=int, default=8, help="of the small models")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20, help="of the measurement of data loading")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    torch.set_num_threads(arguments.threads)
    console = Console(width=150)
    small = {
        "vqvae": partial(
            vqvae_case, "small VQ-VAE", small_vqvae_settings(), arguments.crop_length, arguments.batch_size
        ),
        "prior": partial(prior_case, "small prior", small_prior_settings(), arguments.batch_size),
    }
    wide = wide_prior_settings(arguments.layers, arguments.context)
    if "throughput" in arguments.parts:
        cases = [
            partial(vqvae_case, "released VQ-VAE", {}, arguments.crop_length, 1),
            small["vqvae"],
            partial(prior_case, "1b_lyrics' width", wide, 1),
            small["prior"],
        ]
        throughput(console, cases, arguments.rounds)
    if "loading" in arguments.parts:
        loading(console, small["vqvae"](), small["prior"](), arguments.steps)


if __name__ == "__main__":
    main()
