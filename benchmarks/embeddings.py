"""Speed and memory of embeddings, against the whole model, the plain formulation and the machine's limits, in one run.

The prior is as wide as that of 1b_lyrics, with a context of 8192 codes, no lyrics and random weights; the VQ-VAE has
the released architecture. Every figure is a median over rounds that take turns, so that a machine that slows down slows
all of them.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers.utils import logging

from benchmarks import plain_vqvae
from benchmarks.conversion_1b import run_measured
from benchmarks.plain_prior import PlainPrefill
from benchmarks.prior import prefill_multiply_adds
from benchmarks.vqvae import (
    CHECKPOINT,
    SGEMM_SIZE,
    multiply_adds,
    peak_memory,
    search_multiply_adds,
    timed,
    where_time_goes,
)
from jukebox_hf import EmbeddingRecipe, JukeboxEmbedder, JukeboxPriorConfig, JukeboxPriorModel, JukeboxVQVAEModel
from jukebox_hf.audio_rows import read_row
from jukebox_hf.conversion import convert_checkpoint
from jukebox_hf.conversion.official import OFFICIAL_CHECKPOINTS

WITHOUT_LYRICS = {
    "num_lyric_tokens": 0, "lyric_vocab_size": 0, "alignment_layer": None, "alignment_head": None,
    "attention_pattern": "rcp", "context_length": 8192, "num_blocks": 128,
}  # fmt: skip
KINDS = {
    "matrix products": ("addmm", "aten::mm"),
    "attention": ("_scaled_dot_product", "aten::bmm", "_softmax", "flash_attention"),
    "convolutions": ("mkldnn_convolution",),
    "norms": ("layer_norm",),
    "sums and quick GELU": ("aten::add", "aten::mul", "aten::sigmoid"),
    "copies": ("aten::copy_", "aten::cat", "aten::index_select", "aten::where"),
}
FILES = {"44.1 kHz WAV": (44100, "wav"), "48 kHz FLAC": (48000, "flac"), "48 kHz MP3": (48000, "mp3")}
LOAD = """
import torch
from jukebox_hf import JukeboxPriorModel
with torch.no_grad():
    model = JukeboxPriorModel.from_pretrained({folder!r}, num_hidden_layers={layers}, dtype={dtype!r})
    # Weights that keep their type are the file's own pages, mapped, until somebody reads them.
    sum(parameter.sum() for parameter in model.parameters())
"""


def random_prior(num_layers: int) -> JukeboxPriorModel:
    official = OFFICIAL_CHECKPOINTS["1b-lyrics-prior-level-2"].config.to_diff_dict()
    torch.manual_seed(0)
    return JukeboxPriorModel(JukeboxPriorConfig(**official | WITHOUT_LYRICS | {"num_hidden_layers": num_layers})).eval()


def released_vqvae() -> JukeboxVQVAEModel:
    with tempfile.TemporaryDirectory() as folder:
        return JukeboxVQVAEModel.from_pretrained(convert_checkpoint(CHECKPOINT, Path(folder) / "model")).eval()


def noise(samples: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(samples, dtype=np.float32) * 0.2


def sgemm() -> Callable[[], Tensor]:
    left, right = torch.randn(SGEMM_SIZE, SGEMM_SIZE), torch.randn(SGEMM_SIZE, SGEMM_SIZE)
    return lambda: left @ right


def embedder(vqvae: JukeboxVQVAEModel, prior: JukeboxPriorModel, layer: int, **kwargs) -> JukeboxEmbedder:
    return JukeboxEmbedder.from_models(vqvae, prior, EmbeddingRecipe(layers=(layer,)), **kwargs)


class Plain:
    """All levels' codes in one pass of padded conv1d, as jukebox-infer has them, then dense attention under masks."""

    def __init__(self, vqvae: JukeboxVQVAEModel, prior: JukeboxPriorModel, num_layers: int):
        self.vqvae, self.prior, self.prefill = vqvae, prior, PlainPrefill(prior, num_layers)

    def __call__(self, clip: np.ndarray) -> Tensor:
        prior, audio = self.prior, torch.from_numpy(clip / np.abs(clip).max())[None, None]
        start = time.perf_counter()
        codes = [plain_vqvae.encode(self.vqvae, level, audio) for level in range(3)][prior.config.level]
        self.encoding = time.perf_counter() - start
        total, offset = EmbeddingRecipe(layers=(1,)).timing(len(clip), 0, prior.config)
        conditioning = prior.condition(total_length=torch.tensor([total]), offset=torch.tensor([offset]))
        states = torch.cat([conditioning.start_embeds, prior.embed_tokens(codes[:, :-1])], dim=1)
        states = states + prior.embed_positions.weight + conditioning.position_embeds
        return self.prefill(states)[0].mean(0)


def relative_difference(vector: Tensor | np.ndarray, reference: np.ndarray) -> float:
    return float(np.abs(np.asarray(vector) - reference).max() / np.abs(reference).max())


def compare(console: Console, asked: int, rounds: int):
    """One window: the first `asked` layers against twice as many, the plain formulation and half precision."""
    vqvae, whole = released_vqvae(), random_prior(2 * asked)
    config, clip = whole.config, noise(whole.config.sample_length)
    with tempfile.TemporaryDirectory() as folder:
        whole.save_pretrained(folder)
        half = JukeboxPriorModel.from_pretrained(folder, num_hidden_layers=asked, dtype="bfloat16").eval()
        ours, ours_half = embedder(vqvae, whole, asked), embedder(vqvae, half, asked)
        plain, first = Plain(vqvae, whole, asked), ours.load()[1]

        def all_states() -> Tensor:
            audio = torch.from_numpy(clip / np.abs(clip).max())[None, None]
            total, offset = ours.recipe.timing(len(clip), 0, config)
            codes = vqvae.encode(audio, levels=[config.level]).audio_codes[0]
            timing = {"total_length": torch.tensor([total]), "offset": torch.tensor([offset])}
            return whole(codes, **timing, output_hidden_states=True).hidden_states[asked][0].mean(0)

        names = {
            "ours": f"first {asked} layers",
            "half": f"first {asked} layers, bf16",
            "whole": f"all {2 * asked} layers' states, all logits",
            "plain": f"plain, first {asked} layers",
        }
        jobs = {
            "ours": lambda: torch.from_numpy(ours.embed([clip])[0].layers[asked]),
            "half": lambda: torch.from_numpy(ours_half.embed([clip])[0].layers[asked]),
            "whole": all_states,
            "plain": lambda: plain(clip),
        }
        peaks, vectors = {}, {}
        for name, job in jobs.items():
            before = peak_memory(reset=True)
            vectors[name] = job()
            peaks[name] = peak_memory() - before
        reference = vectors["ours"].numpy()
        # It takes several times as long as the others.
        fewer = {"plain": max(1, rounds - 1)}
        took = timed({"sgemm": sgemm()} | jobs, dict.fromkeys(jobs, rounds) | fewer)
    samples, peak = config.sample_length, SGEMM_SIZE**3 / took["sgemm"]
    encoding = samples * (multiply_adds(vqvae.config, config.level) + search_multiply_adds(vqvae.config, config.level))
    work = {
        "ours": encoding + prefill_multiply_adds(first),
        "half": encoding + prefill_multiply_adds(first),
        "whole": encoding + prefill_multiply_adds(whole) + config.context_length * whole.lm_head.weight.numel(),
    }
    seconds = samples / config.sampling_rate
    table = Table(title=f"embedding {seconds:.1f} s of audio, 1b_lyrics' width, CPU, {torch.get_num_threads()} threads")
    for column in ("what", "seconds", "x real time", "times ours", "of sgemm peak", "memory, MB", "vector off by"):
        table.add_column(column, justify="left" if column == "what" else "right")
    for name in names:
        table.add_row(
            names[name],
            f"{took[name]:.2f}",
            f"{seconds / took[name]:.2f}",
            f"{took[name] / took['ours']:.2f}",
            f"{work[name] / took[name] / peak:.0%}" if name in work else "",
            f"{peaks[name]:.0f}",
            f"{relative_difference(vectors[name], reference):.0e}",
        )
    console.print(table)
    console.print(
        f"sgemm peak: {peak / 1e9:.0f} G multiply-adds a second ({SGEMM_SIZE} x {SGEMM_SIZE} fp32). Memory is the peak "
        "above the models'. Off: the largest difference from the first row's vector, of that one's largest value. "
        f"plain: all levels' codes in one pass of padded conv1d ({plain.encoding:.1f} s of it in the last round), then "
        "dense attention under each pattern's mask."
    )
    if max(relative_difference(vectors[name], reference) for name in ("whole", "plain")) > 1e-4:
        raise RuntimeError("The formulations differ.")
    where_time_goes(console, names["ours"], jobs["ours"], KINDS)
    where_time_goes(console, names["half"], jobs["half"], KINDS)


def growth(console: Console, layers: int, rounds: int):
    """What an hour of music costs as clips and batches grow; all with few layers, as only ratios matter."""
    vqvae, prior = released_vqvae(), random_prior(layers)
    context = prior.config.sample_length
    cases = [(1, 1), (2, 1), (4, 1), (8, 1), (4, 2), (4, 4)]
    jobs = {}
    for contexts, batch_size in cases:
        embed, clip = embedder(vqvae, prior, layers, batch_size=batch_size).embed, noise(contexts * context)
        jobs[contexts, batch_size] = lambda embed=embed, clip=clip: embed([clip])
    peaks = {}
    for case, job in jobs.items():
        before = peak_memory(reset=True)
        job()
        peaks[case] = peak_memory() - before
    took = timed(jobs, dict.fromkeys(jobs, rounds))
    table = Table(title=f"one clip, {layers} layers, CPU, {torch.get_num_threads()} threads")
    for column in (
        "contexts",
        "batch size",
        "seconds",
        "minutes an hour of music",
        "per context, over one",
        "memory, MB",
    ):
        table.add_column(column, justify="right")
    for case in cases:
        contexts, batch_size = case
        hours = contexts * context / prior.config.sampling_rate / 3600
        table.add_row(
            str(contexts),
            str(batch_size),
            f"{took[case]:.2f}",
            f"{took[case] / hours / 60:.1f}",
            f"{took[case] / contexts / took[1, 1]:.2f}",
            f"{peaks[case]:.0f}",
        )
    console.print(table)


def reading(console: Console, layers: int, rounds: int):
    """Whether a thread that reads keeps the model busy."""
    vqvae, prior = released_vqvae(), random_prior(layers)
    rate, context = prior.config.sampling_rate, prior.config.sample_length
    embed, clip, seconds = embedder(vqvae, prior, layers).embed, noise(context), 60
    jobs = {f"embed, {layers} layers": lambda: embed([clip])}
    lengths = {f"embed, {layers} layers": context / rate}
    with tempfile.TemporaryDirectory() as folder:
        for name, (own_rate, suffix) in FILES.items():
            path = Path(folder, f"stereo.{suffix}")
            soundfile.write(path, noise(2 * seconds * own_rate).reshape(-1, 2), own_rate)
            jobs[name], lengths[name] = lambda path=path: read_row(lambda: path, rate), seconds
        took = timed(jobs, {f"embed, {layers} layers": rounds})
    cost = {name: took[name] / lengths[name] for name in jobs}
    model = cost.pop(f"embed, {layers} layers")
    console.print(
        f"Embedding with {layers} layers takes {1000 * model:.0f} ms a second of audio. Reading a stereo file as mono "
        f"at {rate} Hz, one thread: "
        + ", ".join(f"{name} {1000 * each:.2f} ms ({each / model:.1%} of that)" for name, each in cost.items())
        + "."
    )


def loading(console: Console, asked: int):
    """Memory of a process that loads the first `asked` layers of four times as many."""
    table = Table(title=f"loading the first {asked} of {4 * asked} layers")
    for column in ("file", "loaded as", "file, MB", "weights, MB", "peak, MB", "peak over weights"):
        table.add_column(column, justify="left" if column in ("file", "loaded as") else "right")
    imports = run_measured("import torch\nfrom jukebox_hf import JukeboxPriorModel").resident
    with tempfile.TemporaryDirectory() as folder:
        random_prior(4 * asked).save_pretrained(Path(folder, "float32"))
        JukeboxPriorModel.from_pretrained(Path(folder, "float32"), dtype="float16").save_pretrained(
            Path(folder, "float16")
        )
        for stored, dtype in (("float32", "float32"), ("float16", "float16"), ("float16", "float32")):
            path = Path(folder, stored)
            model = JukeboxPriorModel.from_pretrained(path, num_hidden_layers=asked, dtype=dtype)
            size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
            del model
            code = LOAD.format(folder=str(path), layers=asked, dtype=dtype)
            peak = run_measured(code).resident - imports
            file = sum(part.stat().st_size for part in path.glob("*.safetensors"))
            values = (f"{value / 1e6:.0f}" for value in (file, size, peak))
            table.add_row(stored, dtype, *values, f"{peak / size:.2f}")
    console.print(table)
    console.print(
        f"Peak resident memory, mapped pages of the file included, above the {imports / 1e6:.0f} MB of imports."
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parts = {
        "compare": lambda: compare(console, arguments.layers, arguments.rounds),
        "growth": lambda: growth(console, max(1, arguments.layers // 6), arguments.rounds),
        "reading": lambda: reading(console, arguments.layers, arguments.rounds),
        "loading": lambda: loading(console, arguments.layers),
    }
    parser.add_argument("--parts", nargs="+", choices=list(parts), default=list(parts))
    parser.add_argument("--layers", type=int, default=6, help="whose last one gives the embedding")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(arguments.threads)
    torch.set_grad_enabled(False)
    console = Console(width=130)
    for part in arguments.parts:
        parts[part]()


if __name__ == "__main__":
    main()
