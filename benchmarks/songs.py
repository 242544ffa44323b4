"""Whole songs on a small model: what the scheduling costs, what overlaps cost, and memory under each placement.

Every window is drawn once more by itself right beside the song's own, so that a machine that slows down slows both.
"""

import argparse
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.conversion_1b import run_measured
from jukebox_hf import (
    JukeboxCache,
    JukeboxConditionerConfig,
    JukeboxModel,
    JukeboxPriorConfig,
    JukeboxVQVAEConfig,
    generation_jukebox,
)
from jukebox_hf.configuration_jukebox import JukeboxConfig
from jukebox_hf.song_state import SongState

# For each level, so that all of them have several windows in a short song.
CONTEXTS = (256, 128, 64)
SAMPLES = 16384
# The end of a song: full windows, and few codes to draw, as each step reads what is on disk.
GENERATE = """
import torch, jukebox_hf
from transformers import AutoModel
torch.set_num_threads({threads})
model = AutoModel.from_pretrained({folder!r}, {arguments})
beginning = [torch.zeros(1, (8192 - 512) // hop, dtype=torch.long) for hop in (8, 32, 128)]
model.generate(seconds=8192 / 44100, audio_codes=beginning, {settings})
"""
PLACEMENTS = {
    "all on one device": ("", ""),
    "two songs": ("", "num_return_sequences=2"),
    "two songs, one at a time": ("", "num_return_sequences=2, batch_size=1"),
    "priors on disk": (
        'device_map={"vqvae": "cpu", "prior_0": "disk", "prior_1": "disk", "prior_2": "disk"}, offload_folder=%r',
        "",
    ),
}


def small_model(width: int, layers: int) -> JukeboxModel:
    """Three random levels with the released hops, pattern and hop fractions, and small contexts."""
    sizes = dict(
        num_blocks=16, hidden_size=width, intermediate_size=width, head_dim=width // 16,
        num_attention_heads=4, num_hidden_layers=layers, num_artists=0, num_genres=0, num_time_bins=0,
        vocab_size=256, init_scale=2.0,
    )  # fmt: skip
    conditioner = JukeboxConditionerConfig(hidden_size=64, num_residual_layers=4)
    priors = [
        JukeboxPriorConfig(
            level=level,
            hop_length=hop,
            context_length=CONTEXTS[level],
            conditioner_config=conditioner.to_dict() if level < 2 else None,
            **sizes,
        )
        for level, hop in enumerate((8, 32, 128))
    ]
    vqvae = JukeboxVQVAEConfig(hidden_size=8, num_residual_layers=2, codebook_size=256, codebook_dim=16)
    torch.manual_seed(0)
    return JukeboxModel(JukeboxConfig.from_parts(vqvae, priors)).eval()


class Watch:
    """Adds up the time that functions take while it is open, and counts their calls."""

    def __init__(self, **functions: tuple[object, str]):
        self.seconds, self.calls, self.stack = Counter(), Counter(), ExitStack()
        for name, (owner, attribute) in functions.items():
            self.stack.enter_context(patch.object(owner, attribute, self.timed(name, getattr(owner, attribute))))

    def timed(self, name: str, function: Callable) -> Callable:
        def watched(*args, **kwargs):
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[name] += time.perf_counter() - start
                self.calls[name] += 1

        return watched


class Song(NamedTuple):
    """Seconds of a song, of its windows and decoding one by one, and of the decoding; windows `(level, given, new)`."""

    whole: float
    parts: float
    decoding: float
    codes: tuple[torch.Tensor, ...]
    windows: list[tuple[int, int, int]]


def draw_song(model: JukeboxModel, **settings) -> Song:
    """Draws a song, and each of its windows once more by itself right before or after: a busy machine slows both."""
    parts, aside, windows = 0.0, 0.0, []

    def beside(level: int, generate: Callable) -> Callable:
        def alone(codes, stopping_criteria=None, **kwargs):
            nonlocal parts, aside
            begin = time.perf_counter()
            # The song's own draws stay as they are.
            with torch.random.fork_rng(devices=[]):
                cache = JukeboxCache(model.config.priors[level], codes.shape[1] + kwargs["max_new_tokens"])
                start = time.perf_counter()
                generate(codes, **kwargs | {"past_key_values": cache})
                parts += time.perf_counter() - start
            aside += time.perf_counter() - begin

        def both(codes, **kwargs):
            windows.append((level, codes.shape[1], kwargs["max_new_tokens"]))
            if len(windows) % 2:
                alone(codes, **kwargs)
            drawn = generate(codes, **kwargs)
            if not len(windows) % 2:
                alone(codes, **kwargs)
            return drawn

        return both

    with ExitStack() as stack:
        for level, prior in model.priors.items():
            stack.enter_context(patch.object(prior, "generate", beside(level, prior.generate)))
        start = time.perf_counter()
        song = model.generate(seconds=SAMPLES / 44100, **settings)
        whole = time.perf_counter() - start - aside
    start = time.perf_counter()
    for level, codes in enumerate(song.audio_codes):
        model.vqvae.decode(codes, level)
    decoding = time.perf_counter() - start
    return Song(whole, parts + decoding, decoding, song.audio_codes, windows)


def scheduling(console: Console, width: int, layers: int, rounds: int):
    model = small_model(width, layers)
    draw_song(model)
    songs = {"generate()": [], "with state_dir and a callback": []}
    watch = Watch(
        save=(SongState, "save"),
        audio=(SongState, "append_audio"),
        fingerprint=(generation_jukebox, "fingerprint"),
        callback=(generation_jukebox._Ticker, "__call__"),
        decoding=(generation_jukebox._Track, "extend"),
    )
    with watch.stack:
        for _ in range(rounds):
            songs["generate()"].append(draw_song(model))
            with tempfile.TemporaryDirectory() as folder:
                kept = draw_song(model, state_dir=folder, callback=lambda progress: None)
            songs["with state_dir and a callback"].append(kept)
    codes, windows = kept.codes, kept.windows
    tokens = sum(level.shape[1] for level in codes)
    table = Table(title=f"a song of {tokens} codes in {len(windows)} windows, width {width}, {layers} layers, fp32")
    for column in ("", "seconds", "codes/s", "parts", "over the sum of its parts", "least and most"):
        table.add_column(column)
    for name, rows in songs.items():
        whole, parts = (statistics.median(seconds) for seconds in zip(*(row[:2] for row in rows)))
        ratios = sorted(row.whole / row.parts for row in rows)
        spread = f"{ratios[0]:.3f} to {ratios[-1]:.3f}"
        ratio = f"{statistics.median(ratios):.3f}"
        table.add_row(name, f"{whole:.2f}", f"{tokens / whole:.1f}", f"{parts:.2f}", ratio, spread)
    console.print(table)
    each = {name: 1e3 * seconds / watch.calls[name] for name, seconds in watch.seconds.items()}
    decoding = 1e3 * statistics.median(row.decoding for rows in songs.values() for row in rows) / len(windows)
    console.print(
        f"A window's decoding takes {each['decoding']:.1f} ms, and {decoding:.1f} ms where all are decoded together; "
        f"its state {each['save']:.1f} ms, its audio file {each['audio']:.1f} ms; a code's callback "
        f"{1e3 * each['callback']:.0f} us; the weights' checksums, once a run, "
        f"{1e3 * watch.seconds['fingerprint'] / rounds:.0f} ms."
    )
    overlaps(console, model, codes, windows, statistics.median(row.whole for row in songs["generate()"]))


def overlaps(console: Console, model: JukeboxModel, codes, windows: list[tuple[int, int, int]], whole: float):
    """What reading given codes again takes, level by level: all of a window's given codes and one new one."""
    table = Table(title="overlaps")
    for column in ("level", "windows", "codes drawn", "codes read again", "seconds", "of the song", "codes/s"):
        table.add_column(column)
    for level, prior in sorted(model.priors.items(), reverse=True):
        drawn = [window for window in windows if window[0] == level]
        read_again, seconds = sum(given for _, given, _ in drawn), 0.0
        settings = {}
        if level < max(model.priors):
            settings["upper_codes"] = codes[level + 1][:, : prior.config.num_upper_codes]
        for _, given, _ in drawn:
            if given:
                start = time.perf_counter()
                prior.generate(codes[level][:, :given], max_new_tokens=1, **settings)
                seconds += time.perf_counter() - start
        speed = f"{read_again / seconds:.0f}"
        row = len(drawn), codes[level].shape[1], read_again, f"{seconds:.2f}", f"{seconds / whole:.1%}", speed
        table.add_row(*map(str, (level, *row)))
    console.print(table)


def memory(console: Console, width: int, layers: int):
    table = Table(title="memory of a whole process, by placement; the model's files are mapped, not copied")
    for column in ("placement", "peak MB", "of its own MB", "seconds"):
        table.add_column(column)
    with tempfile.TemporaryDirectory() as folder:
        model = small_model(width, layers)
        model.save_pretrained(folder)
        size = sum(file.stat().st_size for file in Path(folder).glob("*.safetensors"))
        del model
        idle = run_measured("import torch, jukebox_hf, transformers; torch.zeros(1)")
        table.add_row("nothing but the libraries", f"{idle.resident / 1e6:.0f}", f"{idle.anonymous / 1e6:.0f}", "")
        for name, (arguments, settings) in PLACEMENTS.items():
            if "%r" in arguments:
                arguments %= str(Path(folder) / "offload")
            code = GENERATE.format(
                threads=torch.get_num_threads(), folder=folder, arguments=arguments, settings=settings
            )
            peak = run_measured(code)
            row = f"{peak.resident / 1e6:.0f}", f"{peak.anonymous / 1e6:.0f}", f"{peak.seconds:.1f}"
            table.add_row(name, *row)
    console.print(table)
    console.print(f"The model is {size / 1e6:.0f} MB.")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.set_grad_enabled(False)
    console = Console(width=140)
    scheduling(console, arguments.width, arguments.layers, arguments.rounds)
    memory(console, 2 * arguments.width, 2 * arguments.layers)


if __name__ == "__main__":
    main()
