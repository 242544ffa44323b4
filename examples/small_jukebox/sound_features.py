"""Simple facts about how music sounds: mel spectra, chroma, and the key that chroma suggests."""

import numpy as np
import torch

from jukebox_hf.losses_jukebox import spectrogram

MEL_BANDS = 64
MEL_STFT = (2048, 512, 2048)
# Long enough to tell semitones apart from the second octave below middle C on.
CHROMA_STFT = (8192, 2048, 8192)
CHROMA_HERTZ = (110.0, 2000.0)
TONICS = {"c": 0, "d": 2, "e": 4, "f": 5, "g": 7, "a": 9, "b": 11}
# How well each pitch class fits a key on C: Krumhansl and Kessler 1982, as in Krumhansl 1990.
MAJOR_PROFILE = (6.35, 2.23, 3.48, 2.33, 4.38, 4.09, 2.52, 5.19, 2.39, 3.66, 2.29, 2.88)
MINOR_PROFILE = (6.33, 2.68, 3.52, 5.38, 2.60, 3.53, 2.54, 4.75, 3.98, 2.69, 3.34, 3.17)


def mel_spectra(audio: np.ndarray, sampling_rate: int) -> np.ndarray:
    """Takes `(clips, samples)` to means and deviations `(clips, 128)` over time of the logarithms of 64 mel bands."""
    frequencies = np.fft.rfftfreq(MEL_STFT[0], 1 / sampling_rate)
    mel = 2595 * np.log10(1 + frequencies / 700)
    centers = np.linspace(0, mel[-1], MEL_BANDS + 2)
    bands = np.maximum(0, 1 - np.abs(mel[:, None] - centers[1:-1]) / centers[1]).astype(np.float32)
    features = []
    for clip in torch.from_numpy(audio):
        power = spectrogram(clip[None], *MEL_STFT)[0].T.numpy() ** 2
        logarithms = np.log10(power @ bands + 1e-6)
        features.append(np.concatenate([logarithms.mean(axis=0), logarithms.std(axis=0)]))
    return np.stack(features)


def chroma(audio: np.ndarray, sampling_rate: int) -> np.ndarray:
    """Takes `(clips, samples)` to how loud each pitch class from C on is, `(clips, 12)`; each row adds up to 1."""
    frequencies = np.fft.rfftfreq(CHROMA_STFT[0], 1 / sampling_rate)
    heard = np.flatnonzero((frequencies >= CHROMA_HERTZ[0]) & (frequencies <= CHROMA_HERTZ[1]))
    classes = np.round(69 + 12 * np.log2(frequencies[heard] / 440)).astype(int) % 12
    features = []
    for clip in torch.from_numpy(audio):
        magnitudes = spectrogram(clip[None], *CHROMA_STFT)[0].numpy()[heard].sum(axis=1)
        sums = np.bincount(classes, magnitudes, minlength=12)
        features.append(sums / max(sums.sum(), 1e-9))
    return np.stack(features)


def estimate_keys(chromas: np.ndarray) -> np.ndarray:
    """Finds the key `(clips,)` whose profile correlates best with each row of chroma."""
    profiles = [np.roll(profile, tonic) for profile in (MAJOR_PROFILE, MINOR_PROFILE) for tonic in range(12)]
    centered = chromas - chromas.mean(axis=1, keepdims=True)
    # Each profile by its deviation; that of a row of chroma is the same for all keys.
    templates = np.stack([(profile - np.mean(profile)) / np.std(profile) for profile in profiles])
    return (centered @ templates.T).argmax(axis=1)


def parse_key(name: str) -> int:
    """Gives the number of a key such as "f# minor": semitones above C, and 12 more in minor.

    Raises:
        ValueError: anything else.
    """
    tonic, _, mode = name.lower().partition(" ")
    if tonic[:1] not in TONICS or tonic[1:] not in ("", "#", "b") or mode not in ("major", "minor"):
        raise ValueError(f"genre={name!r}: this is no key; give one such as 'f# minor'.")
    shift = {"": 0, "#": 1, "b": -1}[tonic[1:]]
    return (TONICS[tonic[0]] + shift) % 12 + 12 * (mode == "minor")


def key_scores(references: np.ndarray, estimates: np.ndarray) -> np.ndarray:
    """Scores estimated keys as MIREX does (mir_eval.key): 1, fifth above 0.5, relative 0.3, parallel 0.2, others 0."""
    interval = (estimates - references) % 12
    same_mode = references // 12 == estimates // 12
    relative = np.where(references < 12, 9, 3)
    alike = np.select([interval == 0, interval == 7], [1.0, 0.5], 0.0)
    other = np.select([interval == relative, interval == 0], [0.3, 0.2], 0.0)
    return np.where(same_mode, alike, other)
