"""Whole songs on a small model: what the scheduling costs, what overlaps cost, and memory under each placement.

The parts are timed in the same run as the whole, in turns, so that a machine that slows down slows both.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.conversion_1b import run_measured
from jukebox_hf import JukeboxCache, JukeboxConditionerConfig, JukeboxModel, JukeboxPriorConfig, JukeboxVQVAEConfig
from jukebox_hf.configuration_jukebox import JukeboxConfig

CONTEXT = 256
SAMPLES = 16384
GENERATE = """
import torch, jukebox_hf
from transformers import AutoModel
torch.set_num_threads({threads})
model = AutoModel.from_pretrained({folder!r}, {arguments})
model.generate(seconds=8192 / 44100, {settings})
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
        context_length=CONTEXT, num_blocks=16, hidden_size=width, intermediate_size=width, head_dim=width // 16,
        num_attention_heads=4, num_hidden_layers=layers, num_artists=0, num_genres=0, num_time_bins=0,
        vocab_size=256, init_scale=2.0,
    )  # fmt: skip
    conditioner = JukeboxConditionerConfig(hidden_size=64, num_residual_layers=4)
    priors = [
        JukeboxPriorConfig(
            level=level, hop_length=hop, conditioner_config=conditioner.to_dict() if level < 2 else None, **sizes
        )
        for level, hop in enumerate((8, 32, 128))
    ]
    vqvae = JukeboxVQVAEConfig(hidden_size=8, num_residual_layers=2, codebook_size=256, codebook_dim=16)
    torch.manual_seed(0)
    return JukeboxModel(JukeboxConfig.from_parts(vqvae, priors)).eval()


def scheduling(console: Console, width: int, layers: int, rounds: int):
    model = small_model(width, layers)
    calls, own = [], {}

    def recorder(level, generate):
        def record(codes, past_key_values, **kwargs):
            calls.append((level, codes, kwargs))
            return generate(codes, past_key_values=past_key_values, **kwargs)

        return record

    for level, prior in model.priors.items():
        own[level] = prior.generate
        prior.generate = recorder(level, prior.generate)
    song = model.generate(seconds=SAMPLES / 44100)
    for prior in model.priors.values():
        del prior.generate

    def parts() -> dict[str, float]:
        """The windows one by one, each level decoded once: seconds for each level, and for its first tokens alone."""
        took = dict.fromkeys(["draw", "decode"], 0.0)
        for level, codes, kwargs in calls:
            cache = JukeboxCache(model.config.priors[level], codes.shape[1] + kwargs["max_new_tokens"])
            start = time.perf_counter()
            own[level](codes, past_key_values=cache, **kwargs)
            took["draw"] += time.perf_counter() - start
        for level, codes in enumerate(song.audio_codes):
            start = time.perf_counter()
            model.vqvae.decode(codes, level)
            took["decode"] += time.perf_counter() - start
        return took

    def prefill() -> float:
        """What reading the overlaps takes: each window's given codes and its first new one."""
        total = 0.0
        for level, codes, kwargs in calls:
            if codes.shape[1]:
                cache = JukeboxCache(model.config.priors[level], codes.shape[1] + kwargs["max_new_tokens"])
                start = time.perf_counter()
                own[level](codes, past_key_values=cache, **kwargs | {"max_new_tokens": 1})
                total += time.perf_counter() - start
        return total

    wholes, sums, overlaps, kept = [], [], [], []
    for _ in range(rounds):
        start = time.perf_counter()
        model.generate(seconds=SAMPLES / 44100)
        wholes.append(time.perf_counter() - start)
        took = parts()
        sums.append(took["draw"] + took["decode"])
        overlaps.append(prefill())
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            model.generate(seconds=SAMPLES / 44100, state_dir=folder, callback=lambda progress: None)
            kept.append(time.perf_counter() - start)
    tokens = sum(codes.shape[1] for codes in song.audio_codes)
    read_again = sum(codes.shape[1] for _, codes, _ in calls)
    whole, parts_sum, overlap, state = map(statistics.median, (wholes, sums, overlaps, kept))
    ratio = statistics.median(w / s for w, s in zip(wholes, sums))
    state_ratio = statistics.median(k / s for k, s in zip(kept, sums))
    table = Table(title=f"a song of {tokens} codes in {len(calls)} windows, width {width}, {layers} layers, fp32")
    for column in ("", "seconds", "codes/s", "over the sum of its parts"):
        table.add_column(column)
    table.add_row("windows and decoding, one by one", f"{parts_sum:.2f}", f"{tokens / parts_sum:.1f}", "")
    table.add_row("generate()", f"{whole:.2f}", f"{tokens / whole:.1f}", f"{ratio:.3f}")
    table.add_row("with state_dir and a callback", f"{state:.2f}", f"{tokens / state:.1f}", f"{state_ratio:.3f}")
    console.print(table)
    console.print(
        f"Overlaps: {read_again} codes read again, {overlap:.2f} s or {overlap / whole:.1%} of the song, at "
        f"{read_again / overlap:.0f} codes/s, {read_again / overlap * whole / tokens:.0f} times as fast as drawing."
    )


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
