"""Prints how far this package, and jukebox-infer from PyPI where it is installed, are from the original's numbers."""

import sys
import tempfile
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModel
from transformers.utils import logging

sys.path.insert(0, str(Path(__file__).parents[1]))

from conftest import VQVAE_CASES, golden
from test_vqvae_goldens import FP32_MARGIN, GRADIENTS, LOSSES, STATISTICS, training_step

from benchmarks.peer import load_peer_vqvae
from jukebox_hf.conversion import convert_checkpoint

broken_promises = []


def _codes(actual, expected, margins):
    wrong = actual != expected
    largest = f", margin {margins[wrong].max():.0e}" if wrong.any() else ""
    beyond = (wrong & (margins >= FP32_MARGIN)).sum().item()
    return f"{wrong.sum()} of {wrong.numel()}{largest}" + (f" ({beyond} WRONG)" if beyond else "")


def _difference(actual, expected):
    difference = (actual - expected).abs()
    return f"{difference.max():.1e}", f"{difference.mean():.1e}"


def inference_table(models) -> Table:
    table = Table(title="Codes and decoded audio against the original's", title_justify="left")
    for column in ("case", "level", "other codes", "audio max", "audio mean", "peer: other codes", "peer: audio max"):
        table.add_column(column)
    for case, model in models.items():
        reference = golden(case)
        for length in ("even", "odd"):
            audio = reference.tensors[f"{length}.audio"]
            codes = model.encode(audio.transpose(1, 2)).audio_codes
            peer = load_peer_vqvae(model.config, reference.checkpoint, audio.shape[1])
            peer_codes = peer.encode(audio) if peer else None
            for level in range(model.config.num_levels):
                expected = reference.tensors[f"{length}.codes.{level}"]
                margins = reference.tensors[f"{length}.margins.{level}"]
                wave = reference.tensors[f"{length}.decoded.{level}"]
                row = [f"{case}, {length}", str(level), _codes(codes[level], expected, margins)]
                if "WRONG" in row[-1]:
                    broken_promises.append(", ".join(row))
                row += _difference(model.decode(expected, level).audio_values.transpose(1, 2), wave)
                if peer:
                    row.append(_codes(peer_codes[level], expected, margins))
                    row.append(_difference(peer.decode([expected], level, level + 1), wave)[0])
                table.add_row(*row)
    return table


def training_table(models) -> Table:
    table = Table(title="Losses and a training step against the original's", title_justify="left")
    for column in ("case", "what", "values", "largest |difference|", "of the promise"):
        table.add_column(column)
    for case, model in models.items():
        tensors = golden(case).tensors
        if "train.loss" not in tensors:
            continue
        groups = {}
        for kind in ("l1", "l2", "linf", "lmix"):
            model.config.reconstruction_loss = kind
            output = model(tensors["even.audio"].transpose(1, 2))
            pairs = [(output.loss, tensors[f"loss.{kind}.total"])]
            pairs += [(output.metrics[ours], tensors[f"loss.{kind}.{theirs}"]) for theirs, ours in LOSSES.items()]
            groups[f"losses, {kind}"] = pairs
        output = training_step(model, tensors)
        groups["training: loss and statistics"] = [(output.loss, tensors["train.loss"])] + [
            (output.metrics[ours], tensors[f"train.{theirs}"]) for theirs, ours in (LOSSES | STATISTICS).items()
        ]
        names = {"k": "vectors", "k_sum": "vector_sums", "k_elem": "counts"}
        groups["training: codebooks"] = [
            (getattr(codebook, ours), tensors[f"train.{theirs}.{level}"])
            for level, codebook in enumerate(model.codebooks)
            for theirs, ours in names.items()
        ]
        groups["training: gradients"] = [
            (model.get_parameter(ours).grad, tensors[f"train.grad.{theirs}"]) for theirs, ours in GRADIENTS.items()
        ]
        for what, pairs in groups.items():
            differences = [(actual - expected).abs().max().item() for actual, expected in pairs]
            allowed = [1e-5 * max(1.0, expected.abs().max().item()) for _, expected in pairs]
            share = max(difference / limit for difference, limit in zip(differences, allowed))
            if share > 1:
                broken_promises.append(f"{case}, {what}")
            count = sum(expected.numel() for _, expected in pairs)
            table.add_row(case, what, str(count), f"{max(differences):.1e}", f"{share:.0%}")
    return table


def main():
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_grad_enabled(False)
    console = Console(width=140)
    with tempfile.TemporaryDirectory() as folder:
        models = {}
        for case in VQVAE_CASES:
            converted = convert_checkpoint(golden(case).checkpoint, Path(folder) / case)
            models[case] = AutoModel.from_pretrained(converted)
    console.print(inference_table(models))
    torch.set_grad_enabled(True)
    console.print(training_table(models))
    console.print(
        "other codes: codes unlike the original's, and how much nearer, relative to the latent's squared norm, the "
        "nearest code was than the next; below 1e-6 fp32 cannot tell them apart. of the promise: the largest share "
        "of 1e-5 times max(1, largest reference value) that a value uses."
    )
    if broken_promises:
        sys.exit(f"Not kept: {'; '.join(broken_promises)}")


if __name__ == "__main__":
    main()
