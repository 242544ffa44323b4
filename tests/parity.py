"""Prints how far this package, and jukebox-infer from PyPI where it is installed, are from the original's numbers."""

import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModel, TorchAoConfig
from transformers.utils import logging

sys.path.insert(0, str(Path(__file__).parents[1]))

from conftest import PRIOR_CASES, VQVAE_CASES, golden
from song_models import SONG_CASES, song_inputs, song_model
from test_prior_goldens import GRADIENTS as PRIOR_GRADIENTS
from test_prior_goldens import SAMPLING, conditions, sample, within_half_precision
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


def prior_table(models) -> Table:
    table = Table(title="Priors against the original's", title_justify="left")
    for column in ("case", "what", "values", "largest |difference|", "of the promise"):
        table.add_column(column)
    for case, model in models.items():
        for what, pairs in _prior_pairs(model, golden(case).tensors).items():
            differences = [(actual - expected).abs().max().item() for actual, expected in pairs]
            allowed = [1e-5 * max(1.0, expected.abs().max().item()) for _, expected in pairs]
            share = max(difference / limit for difference, limit in zip(differences, allowed))
            if share > 1:
                broken_promises.append(f"{case}, {what}")
            count = sum(expected.numel() for _, expected in pairs)
            table.add_row(case, what, str(count), f"{max(differences):.1e}", f"{share:.0%}")
    return table


def _prior_pairs(model, tensors) -> dict[str, list[tuple[torch.Tensor, torch.Tensor]]]:
    """Ours and the original's values of one model, by what they are."""
    codes, inputs = tensors["codes"], conditions(model, tensors)
    output = model(codes, **inputs, labels=codes, output_hidden_states=True, output_attentions=True)
    model.train()
    loss = model(codes, **inputs, labels=codes).loss
    loss.backward()
    model.eval()
    pairs = {"conditioning": [], "logits": [(output.logits, tensors["logits"])], "hidden states": []}
    conditioning = model.condition(**inputs, batch_size=2)
    if "conditioning.start" in tensors:
        positions = conditioning.position_embeds[:, model.config.lyric_offset :]
        pairs["conditioning"] = [
            (conditioning.start_embeds, tensors["conditioning.start"]), (positions, tensors["conditioning.positions"])
        ]  # fmt: skip
    for name, expected in tensors.items():
        kind, _, number = name.rpartition(".")
        if kind == "hidden":
            pairs["hidden states"].append((output.hidden_states[int(number)], expected))
        elif kind == "attention":
            pairs["lyric attention"] = [(output.lyric_attentions[int(number)], expected)]
        elif kind.startswith("short_"):
            length = int(kind.removeprefix("short_").removesuffix(".hidden"))
            short = model(codes[:, :length], **inputs, output_hidden_states=True).hidden_states[int(number)]
            pairs.setdefault("hidden states of short clips", []).append((short, expected))
    pairs["losses"] = [(output.loss, tensors["loss"]), (output.music_loss, tensors["gen_loss"])]
    if output.lyric_loss is not None:
        pairs["losses"].append((output.lyric_loss, tensors["prime_loss"]))
    pairs["training: loss and gradients"] = [(loss, tensors["train.loss"])]
    for theirs, (ours, is_transposed) in PRIOR_GRADIENTS.items():
        gradient = model.get_parameter(ours).grad
        gradient = gradient.T if is_transposed else gradient
        expected = within_half_precision(tensors[f"train.grad.{theirs}"], gradient)
        pairs["training: loss and gradients"].append((gradient, expected))
    return {what: values for what, values in pairs.items() if values}


def sample_table(models) -> Table:
    table = Table(title="Samples against the original's: other tokens", title_justify="left")
    for column in ("case", *SAMPLING):
        table.add_column(column)
    for case, model in models.items():
        tensors = golden(case).tensors
        wrong = [(sample(model, tensors, name) != tensors[f"sample.{name}"]).sum().item() for name in SAMPLING]
        if any(wrong):
            broken_promises.append(f"{case}, samples")
        sizes = [tensors[f"sample.{name}"].numel() for name in SAMPLING]
        table.add_row(case, *(f"{count} of {size}" for count, size in zip(wrong, sizes)))
    return table


def song_table(convert) -> Table:
    table = Table(title="Whole songs against the original's: other codes of levels 0, 1, 2", title_justify="left")
    for column in ("case", "run", "other codes", "audio max"):
        table.add_column(column)
    for case in SONG_CASES:
        model, tensors, settings = song_model(case, convert), golden(case).tensors, golden(case).settings
        inputs = song_inputs(case) | {
            "seconds": settings["length"] / model.config.sampling_rate,
            "hop_fractions": settings["hop_fraction"],
        }
        for run in ("ancestral", "seeded", "primed"):
            changes = {} if run == "seeded" else {"do_sample": False}
            if run == "primed":
                samples = tensors["primed.prompt"].shape[1]
                hops = enumerate(model.config.vqvae_config.hop_lengths)
                changes["audio_codes"] = [tensors[f"primed.codes.{level}"][:, : samples // hop] for level, hop in hops]
            torch.manual_seed(4321)
            song = model.generate(**inputs, **changes)
            expected = [tensors[f"{run}.codes.{level}"] for level in range(3)]
            wrong = [(ours != theirs).sum().item() for ours, theirs in zip(song.audio_codes, expected)]
            audio = tensors[f"{run}.audio"].transpose(1, 2)
            off = (song.audio - audio).abs().max().item()
            if any(wrong) or off > 1e-5 * max(1.0, audio.abs().max().item()):
                broken_promises.append(f"{case}, {run}")
            counts = ", ".join(f"{count} of {codes.numel()}" for count, codes in zip(wrong, expected))
            table.add_row(case, run, counts, f"{off:.1e}")
    return table


def precision_table(folder: Path) -> Table:
    """What half precision and int8 weights change: no promise, but what there is to know."""
    table = Table(title="Other number formats against fp32: logits, largest and mean |difference|; loss in bits")
    formats = {"bf16": {"dtype": torch.bfloat16}, "fp16": {"dtype": torch.float16}}
    if find_spec("torchao"):
        from torchao.quantization import Int8WeightOnlyConfig

        formats["int8"] = {"dtype": torch.bfloat16, "quantization_config": TorchAoConfig(Int8WeightOnlyConfig())}
    for column in ("case", "fp32 loss", *formats):
        table.add_column(column)
    for case in PRIOR_CASES:
        tensors, row = golden(case).tensors, []
        for name, settings in ({"fp32": {"dtype": torch.float32}} | formats).items():
            model = AutoModel.from_pretrained(folder / case, **settings)
            output = model(tensors["codes"], **conditions(model, tensors), labels=tensors["codes"])
            if name == "fp32":
                logits, loss = output.logits, output.loss
                row.append(f"{loss:.4f}")
            else:
                difference = (output.logits - logits).abs()
                row.append(f"{difference.max():.1e}, {difference.mean():.1e}; {output.loss - loss:+.4f}")
        table.add_row(case, *row)
    return table


def main():
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_grad_enabled(False)
    console = Console(width=140)
    with tempfile.TemporaryDirectory() as folder:
        models, priors = {}, {}
        for case in VQVAE_CASES:
            converted = convert_checkpoint(golden(case).checkpoint, Path(folder) / case)
            models[case] = AutoModel.from_pretrained(converted)
        for case in PRIOR_CASES:
            converted = convert_checkpoint(golden(case).checkpoint, Path(folder) / case)
            priors[case] = AutoModel.from_pretrained(converted, dtype=torch.float32)
        console.print(inference_table(models))
        console.print(precision_table(Path(folder)))
        console.print(song_table(lambda case: Path(folder) / case))
    console.print(sample_table(priors))
    torch.set_grad_enabled(True)
    console.print(training_table(models))
    console.print(prior_table(priors))
    console.print(
        "other codes: codes unlike the original's, and how much nearer, relative to the latent's squared norm, the "
        "nearest code was than the next; below 1e-6 fp32 cannot tell them apart. of the promise: the largest share "
        "of 1e-5 times max(1, largest reference value) that a value uses."
    )
    if broken_promises:
        sys.exit(f"Not kept: {'; '.join(broken_promises)}")


if __name__ == "__main__":
    main()
