"""Pictures of sounds."""

import os
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from .audio_files import audio_file_length, read_audio_blocks

COLUMNS = 1200
N_FFT = 2048
FLOOR_DB = -90


def spectrogram_columns(blocks: Iterable[np.ndarray], samples: int) -> np.ndarray:
    """Spectra in dB `(N_FFT // 2 + 1, columns)` at up to `COLUMNS` moments of a signal of about so many samples.

    Only the frames that are drawn are kept: length costs no memory.
    """
    hop = max(N_FFT // 4, samples // COLUMNS)
    window = np.hanning(N_FFT).astype(np.float32)
    columns, waiting, skip = [], np.zeros(0, np.float32), 0
    for block in blocks:
        waiting = np.concatenate([waiting, block])
        waiting, skip = waiting[skip:], max(0, skip - len(waiting))
        while len(waiting) >= N_FFT and not skip:
            columns.append(np.abs(np.fft.rfft(waiting[:N_FFT] * window)))
            waiting, skip = waiting[hop:], max(0, hop - len(waiting))
    if not columns:
        columns = [np.abs(np.fft.rfft(np.pad(waiting, (0, N_FFT - len(waiting))) * window))]
    return 20 * np.log10(np.stack(columns, axis=1) / (N_FFT / 4) + 1e-10)


def require_matplotlib():
    """Raises an ImportError that says how to get matplotlib when it is missing."""
    if find_spec("matplotlib") is None:
        raise ImportError("Pictures need matplotlib: pip install 'jukebox-hf[pictures]'.")


def save_spectrograms(path: Path, files: dict[str, Path], sampling_rate: int):
    """Draws the spectrograms of audio files one above the other, each under its title, as a PNG."""
    require_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.2 * len(files)), layout="constrained")
    panels = figure.subplots(len(files), 1, sharex=True, squeeze=False)[:, 0]
    for panel, (title, file) in zip(panels, files.items()):
        samples = audio_file_length(file, sampling_rate)
        decibels = spectrogram_columns(read_audio_blocks(file, sampling_rate), samples)
        extent = (0, samples / sampling_rate, 0, sampling_rate / 2000)
        image = panel.imshow(
            decibels, origin="lower", aspect="auto", extent=extent, vmin=FLOOR_DB, vmax=0, cmap="magma"
        )
        panel.set_title(title, parse_math=False)
        panel.set_ylabel("kHz")
        figure.colorbar(image, ax=panel, label="dB")
    panels[-1].set_xlabel("seconds")
    partial = path.with_name(f".{path.name}.partial")
    try:
        figure.savefig(partial, format="png", dpi=110)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
