"""Speed and memory of the VQ-VAE in the released architecture, against its limits and its peers, in one run.

Every figure is a median over rounds that take turns, so that a machine that slows down slows all of them.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile

from benchmarks import plain_vqvae
from benchmarks.peer import load_peer_vqvae
from jukebox_hf import JukeboxVQVAEConfig, JukeboxVQVAEModel
from jukebox_hf.conversion import convert_checkpoint

CHECKPOINT = Path(__file__).parents[1] / "tests/goldens/vqvae-5b-size/checkpoint.pth.tar"
SGEMM_SIZE = 3072
# Parts of the names of the profiler's events.
VQVAE_KINDS = {
    "convolutions": ("mkldnn_convolution", "slow_conv"),
    "matrix products": ("addmm", "aten::mm"),
    "joining blocks": ("aten::cat", "copy_"),
    "ReLU and residual sums": ("clamp_min", "add_", "relu"),
}


def multiply_adds(config: JukeboxVQVAEConfig, level: int) -> float:
    """Multiply-adds per sample of audio in the convolutions of one level's encoder (its decoder needs as many)."""
    multiplier = config.level_multipliers[level] if config.level_multipliers else 1
    width, depth = config.hidden_size * multiplier, config.num_residual_layers * multiplier
    rate, channels, total = 1.0, 1, 0.0
    for stride, downsamples in list(zip(config.strides, config.num_downsamples))[: level + 1]:
        for _ in range(downsamples):
            rate /= stride
            total += rate * (2 * stride * channels * width + depth * 4 * width * width)
            channels = width
        total += rate * 3 * width * config.codebook_dim
        channels = config.codebook_dim
    return total


def search_multiply_adds(config: JukeboxVQVAEConfig, level: int) -> float:
    return config.codebook_size * config.codebook_dim / config.hop_lengths[level]


def timed(jobs: dict, rounds: dict[str, int] | None = None) -> dict[str, float]:
    """Median seconds of each job; jobs take turns, expensive ones sit out once their rounds are done."""
    times = {name: [] for name in jobs}
    for turn in range(6):
        for name, job in jobs.items():
            if turn <= (rounds or {}).get(name, 5):
                start = time.perf_counter()
                job()
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values[1:]) for name, values in times.items()}


def speed(console: Console, seconds: float):
    with tempfile.TemporaryDirectory() as folder:
        model = JukeboxVQVAEModel.from_pretrained(convert_checkpoint(CHECKPOINT, Path(folder) / "model"))
    config = model.config
    samples = int(seconds * config.sampling_rate) // config.hop_length * config.hop_length
    audio = torch.randn(1, 1, samples, generator=torch.Generator().manual_seed(0)) * 0.2
    codes = model.encode(audio).audio_codes
    peer = load_peer_vqvae(config, CHECKPOINT, samples)
    left, right = torch.randn(SGEMM_SIZE, SGEMM_SIZE), torch.randn(SGEMM_SIZE, SGEMM_SIZE)

    jobs, rounds = {"sgemm": lambda: left @ right}, {}
    jobs["encode, all"] = lambda: model.encode(audio)
    for level in reversed(range(config.num_levels)):
        jobs[f"encode, {level}"] = lambda level=level: model.encode(audio, levels=[level])
        jobs[f"decode, {level}"] = lambda level=level: model.decode(codes[level], level)
        jobs[f"plain encode, {level}"] = lambda level=level: plain_vqvae.encode(model, level, audio)
        jobs[f"plain decode, {level}"] = lambda level=level: plain_vqvae.decode(model, level, codes[level])
        rounds |= {f"plain encode, {level}": 2, f"plain decode, {level}": 2}
        if peer:
            jobs[f"peer decode, {level}"] = lambda level=level: peer.decode([codes[level]], level, level + 1)
            rounds[f"peer decode, {level}"] = 2
    if peer:
        jobs["peer encode"] = lambda: peer.encode(audio.transpose(1, 2))
        rounds["peer encode"] = 2
    took = timed(jobs, rounds)
    peak = SGEMM_SIZE**3 / took["sgemm"]

    table = Table(title=f"{seconds:g} s of audio, released architecture, fp32, CPU, {torch.get_num_threads()} threads")
    for column in ("what", "seconds", "x real time", "over plain", "over jukebox-infer", "share of sgemm peak"):
        table.add_column(column, justify="left" if column == "what" else "right")

    def row(name: str, job: str, plain: float, theirs: str, work: float):
        table.add_row(
            name,
            f"{took[job]:.2f}",
            f"{seconds / took[job]:.0f}",
            f"{plain / took[job]:.1f}",
            f"{took[theirs] / took[job]:.1f}" if theirs in took else "not installed",
            f"{work * samples / took[job] / peak:.0%}",
        )

    levels = range(config.num_levels)
    encoding = [multiply_adds(config, level) + search_multiply_adds(config, level) for level in levels]
    plain = sum(took[f"plain encode, {level}"] for level in levels)
    row("encode all levels", "encode, all", plain, "peer encode", sum(encoding))
    for level in reversed(levels):
        plain = took[f"plain encode, {level}"]
        row(f"encode level {level}", f"encode, {level}", plain, "peer encode", encoding[level])
    for level in reversed(levels):
        plain, theirs = took[f"plain decode, {level}"], f"peer decode, {level}"
        row(f"decode level {level}", f"decode, {level}", plain, theirs, multiply_adds(config, level))
    console.print(table)
    console.print(
        f"sgemm peak: {peak / 1e9:.0f} G multiply-adds a second ({SGEMM_SIZE} x {SGEMM_SIZE} fp32). "
        "jukebox-infer always encodes all levels. plain: one pass of padded conv1d over the level."
    )
    for level in (config.num_levels - 1, 0):
        where_time_goes(console, f"encode level {level}", lambda level=level: model.encode(audio, levels=[level]))
        where_time_goes(console, f"decode level {level}", lambda level=level: model.decode(codes[level], level))


def where_time_goes(console: Console, name: str, job, kinds: dict[str, tuple[str, ...]] = VQVAE_KINDS):
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        job()
    events = profiler.key_averages()
    total = sum(event.self_cpu_time_total for event in events)
    shares = dict.fromkeys([*kinds, "everything else"], 0.0)
    for event in events:
        # The first kind that fits: "aten::add" is a part of "aten::addmm" too.
        kind = next((k for k, parts in kinds.items() if any(part in event.key for part in parts)), "everything else")
        shares[kind] += event.self_cpu_time_total / total
    console.print(f"{name}: " + ", ".join(f"{kind} {share:.0%}" for kind, share in shares.items() if share > 0.005))


def memory(console: Console, minutes: float):
    """Peak resident memory of encoding a file of so many minutes, streamed from disk, in a process of its own."""
    for level, length in ((2, minutes), (0, minutes / 10)):
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.vqvae", "--measure-file", str(length), "--level", str(level)],
            check=True,
            capture_output=True,
            text=True,
        )
        console.print(done.stdout.strip(), highlight=False)


def peak_memory(reset: bool = False) -> float:
    """Peak resident memory of this process in MB, on Linux; `reset` starts it afresh from what is resident now."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1000


def measure_file(minutes: float, level: int):
    import numpy as np
    import soundfile

    from jukebox_hf.audio_files import read_audio_blocks

    with tempfile.TemporaryDirectory() as folder:
        model = JukeboxVQVAEModel.from_pretrained(convert_checkpoint(CHECKPOINT, Path(folder) / "model"))
        rate, path, noise = model.config.sampling_rate, Path(folder) / "long.wav", np.random.default_rng(0)
        with soundfile.SoundFile(path, "w", rate, 1, "PCM_16") as file:
            for _ in range(int(minutes * 6)):
                file.write(noise.standard_normal(rate * 10, dtype=np.float32) * 0.2)
        before = peak_memory(reset=True)
        start = time.perf_counter()
        blocks = (torch.from_numpy(block)[None, None] for block in read_audio_blocks(path, rate))
        frames = sum(codes.short().shape[1] for (codes,) in model.encode_stream(blocks, [level]))
        took = time.perf_counter() - start
        peak = peak_memory()
    print(
        f"level {level} of a file of {minutes:g} minutes: {frames} codes in {took:.0f} s "
        f"({60 * minutes / took:.0f} x real time), peak memory {peak - before:.0f} MB above the "
        f"{before:.0f} MB of the libraries and the model"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="length of the timed audio")
    parser.add_argument("--minutes", type=float, default=60, help="length of the file of the memory measurement")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--measure-file", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--level", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.set_grad_enabled(False)
    if arguments.measure_file:
        return measure_file(arguments.measure_file, arguments.level)
    console = Console(width=130)
    speed(console, arguments.seconds)
    memory(console, arguments.minutes)


if __name__ == "__main__":
    main()
