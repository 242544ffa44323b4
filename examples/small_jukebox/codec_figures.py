"""How well each level of a VQ-VAE gives held-out music back, and how much of its codebook it uses."""

import math

import numpy as np
import torch
from material import Material, batches, song_codes, spread
from rich.console import Console
from rich.progress import track

from jukebox_hf.losses_jukebox import spectral_convergence
from jukebox_hf.training import AudioCrops


@torch.no_grad()
def measure_reconstruction(material: Material, console: Console, clips: int, seconds: float) -> dict:
    """Measures held-out clips, evenly spaced, through every level.

    A level's `convergence` is the mean over clips of `||S(x) - S(y)|| / ||S(x)||`, S the magnitudes of the original's
    spectrogram; silence in the place of y has 1, which is 0 dB. Entropy and use of a codebook are of all codes of the
    held-out songs.
    """
    vqvae, top_hop = material.model.vqvae, material.hop_lengths[-1]
    length = int(seconds * material.sampling_rate) // top_hop * top_hop
    crops = AudioCrops(material.test["audio"], length, material.sampling_rate, random_shift=False, random_blend=False)
    chosen = spread(len(crops), clips)
    distances = []
    for rows in track(batches(len(chosen), 4), "Reconstructing", console=console, transient=True):
        audio = torch.stack([crops[index]["input_values"] for index in chosen[rows]])
        outputs = vqvae(audio, return_loss=False).audio_values
        for clip in range(len(audio)):
            distances.append([spectral_convergence(output[clip], audio[clip]).item() for output in outputs])
    levels = []
    for level, convergence in enumerate(np.mean(distances, axis=0).tolist()):
        codes = np.concatenate(song_codes(material.test, level))
        levels.append(
            {
                "level": level,
                "hop_length": material.hop_lengths[level],
                "convergence": convergence,
                "decibels": 20 * math.log10(convergence),
                **codebook_use(codes, vqvae.config.codebook_size),
            }
        )
    return {"clips": len(chosen), "seconds": length / material.sampling_rate, "levels": levels}


def codebook_use(codes: np.ndarray, size: int) -> dict[str, float]:
    """Gives the entropy in bits of how frequent codes are, and the share of the codebook that occurs."""
    shares = np.bincount(codes, minlength=size) / len(codes)
    used = shares[shares > 0]
    return {"codes": len(codes), "entropy_bits": float(-(used * np.log2(used)).sum()), "used_share": len(used) / size}
