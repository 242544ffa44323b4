"""Writes the figures of a small Jukebox as a section of its model card."""

from collections.abc import Iterable


def to_markdown(figures: dict) -> str:
    """Writes the section "Measured" from what was measured."""
    parts = [
        "## Measured",
        f"On {figures['test_songs']} held-out songs. Counts, classifiers and probes are of {figures['train_songs']} of "
        "the training songs. Intervals are the middle 95 % when songs are drawn anew.",
    ]
    writers = {"reconstruction": _reconstruction, "priors": _priors, "labels": _labels, "embeddings": _embeddings}
    for name, write in writers.items():
        if name in figures:
            parts += write(figures[name])
    return "\n\n".join(parts) + "\n"


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _percent(figure: dict) -> str:
    low, high = figure["interval"]
    return f"{100 * figure['score']:.1f} % ({100 * low:.0f} to {100 * high:.0f})"


def _share(value: float) -> str:
    return f"{100 * value:.1f} %"


def _reconstruction(figures: dict) -> list[str]:
    rows = [
        [
            f"{level['level']}",
            f"{level['hop_length']}",
            f"{level['decibels']:.1f} dB",
            f"{level['entropy_bits']:.2f} bits",
            _share(level["used_share"]),
        ]
        for level in figures["levels"]
    ]
    rows.append(["silence", "", "0.0 dB", "", ""])
    return [
        "### Reconstruction",
        _table(["Level", "Samples per code", "Spectral convergence", "Codebook entropy", "Codes used"], rows),
        f"Spectral convergence is 20 log10 of the mean over {figures['clips']} clips of {figures['seconds']:.2f} s of "
        "the distance of magnitude spectrograms over the norm of the original's (n_fft 2048, hop 256, window 1536). "
        "Entropy and use are of all codes of the held-out songs.",
    ]


def _priors(levels: list[dict]) -> list[str]:
    names = list(dict.fromkeys(name for level in levels for name in level["bits"]))
    head = ["Bits per code", *(f"level {level['level']}" for level in levels)]
    rows = [[f"prior, {name}", *(_bits(level["bits"].get(name)) for level in levels)] for name in names]
    counts = {"unigram": "unigram", "bigram": "bigram", "code_above": "counts beside the code above"}
    rows += [[title, *(_bits(level["counts"].get(name)) for level in levels)] for name, title in counts.items()]
    sizes = "; ".join(
        f"level {level['level']}: {level['windows']} windows, {level['codes']} codes, counts of "
        f"{level['training_codes']} (alpha {level['counts']['unigram_alpha']:g}, bigram backed off with "
        f"{level['counts']['bigram_strength']:g})"
        for level in levels
    )
    return [
        "### Priors",
        _table(head, rows),
        'All rows of a level are of the same held-out codes. "Right" has the true labels and, below the top, the true '
        "codes above; an upsampler cannot run without these, so the counts say what there is to know without them. The "
        "bigram mixes in the unigram, and both were smoothed as suits a tenth of the training songs best. A window's "
        f"first code has its unigram's. {sizes}.",
    ]


def _bits(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _labels(levels: list[dict]) -> list[str]:
    parts = ["### Labels"]
    for figures in levels:
        instrument, key = figures["instrument"], figures["key"]
        through = "the top level alone" if figures is levels[0] else "all levels"
        rows = [_compared("instrument", instrument["held_out"], instrument["drawn"])]
        titles = {"key": "key", "weighted": "key, MIREX-weighted", "tonic": "tonic", "mode": "major or minor"}
        rows += [_compared(title, key["held_out"][name], key["drawn"][name]) for name, title in titles.items()]
        confusion = [[name, *map(str, row)] for name, row in zip(instrument["names"], instrument["confusion"])]
        parts += [
            f"Of {figures['drawn']} songs of {figures['seconds']:.2f} s, drawn at {through}:",
            _table(["", "Held-out music", "chance", "Drawn songs", "chance"], rows),
            "Asked for (rows) and heard (columns):",
            _table(["", *instrument["names"]], confusion),
        ]
    return [
        *parts,
        "The instrument is heard by a logistic regression on log-mel spectra of training music, the key by Krumhansl's "
        "profiles on chroma. All music went through the same level of the VQ-VAE, or the classifier might tell the "
        "codec from the instrument; held-out music shows the most to be expected. Chance is what the same answers "
        "would score if the labels were shuffled. The key of a stretch need not be that of its song.",
    ]


def _compared(title: str, held_out: dict, drawn: dict) -> list[str]:
    return [title, _percent(held_out), _share(held_out["chance"]), _percent(drawn), _share(drawn["chance"])]


def _embeddings(figures: dict) -> list[str]:
    rows = [
        [name, str(row["width"]), *(_percent(row[task]) for task in ("instrument", "key", "key_weighted"))]
        for name, row in figures["features"].items()
    ]
    first = next(iter(figures["features"].values()))
    rows.append(["chance", "", *(_share(first[task]["chance"]) for task in ("instrument", "key", "key_weighted"))])
    return [
        "### Embeddings",
        _table(["Linear probe on", "Width", "Instrument", "Key (24)", "Key, MIREX-weighted"], rows),
        f"Of {figures['test']} held-out excerpts of {figures['seconds']:.2f} s of {figures['test_songs']} songs; the "
        f"probes learned from {figures['train']} of training songs. Hidden states are means over time, and the prior "
        "was told neither label. Spectra and chroma are of the recordings.",
    ]
