"""Tiny models, music and trainers for the tests of training."""

from pathlib import Path

import numpy as np
import soundfile
import torch
from datasets import Dataset

from jukebox_hf import JukeboxPriorConfig, JukeboxPriorModel, JukeboxVQVAEConfig, JukeboxVQVAEModel
from jukebox_hf.training import AudioCrops, JukeboxTrainingArguments

RATE = 4000
CROP = 2048
VQVAE = dict(
    sampling_rate=RATE, num_downsamples=[3, 1], strides=[2, 2], level_multipliers=None, hidden_size=4,
    num_residual_layers=1, codebook_size=16, codebook_dim=8, linf_k=64,
)  # fmt: skip
PRIOR = dict(
    vocab_size=16, context_length=32, hop_length=16, sampling_rate=RATE, level=1, hidden_size=16, num_hidden_layers=3,
    num_attention_heads=2, head_dim=4, intermediate_size=16, num_blocks=4, init_scale=2.0, num_artists=0, num_genres=0,
    num_time_bins=0, min_duration=0.1, max_duration=60.0,
)  # fmt: skip


def melody(samples: int, seed: int = 0, channels: int = 1) -> np.ndarray:
    """Tones with a little noise, `(samples, channels)`."""
    rng = np.random.default_rng(seed)
    time = np.arange(samples)[:, None]
    tones = sum(np.sin(time * rng.uniform(0.01, 1.0, channels) + rng.uniform(0, 6)) for _ in range(3))
    return (0.15 * tones + 0.02 * rng.standard_normal((samples, channels))).astype(np.float32)


def write_music(folder: Path, seconds=(3.0, 2.5, 4.0, 3.3), rate: int = RATE, channels: int = 1) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for index, length in enumerate(seconds):
        paths.append(str(folder / f"song_{index}.wav"))
        soundfile.write(paths[-1], melody(int(length * rate), index, channels), rate, subtype="FLOAT")
    return paths


def tiny_vqvae(**settings) -> JukeboxVQVAEModel:
    torch.manual_seed(0)
    return JukeboxVQVAEModel(JukeboxVQVAEConfig(**VQVAE | settings))


def vqvae_with_codes(**settings) -> JukeboxVQVAEModel:
    """One whose codebooks a batch has initialised, so that codes differ."""
    model = tiny_vqvae(**settings).train()
    audio = torch.from_numpy(melody(4 * CROP, seed=9)).view(4, 1, CROP)
    with torch.no_grad():
        for _ in range(3):
            model(audio)
    return model.eval()


def tiny_prior(**settings) -> JukeboxPriorModel:
    torch.manual_seed(0)
    return JukeboxPriorModel(JukeboxPriorConfig(**PRIOR | settings))


def coded_songs(codes=(100, 70, 130), levels=(1,), seed: int = 0, **columns) -> Dataset:
    """Rows as encode_music gives them, of random codes; `codes` are numbers of codes of the first level."""
    rng = np.random.default_rng(seed)
    rows = {"audio": [f"song_{index}.wav" for index in range(len(codes))]}
    for level in levels:
        counts = [count // 2 ** (level - levels[0]) for count in codes]
        rows[f"audio_codes_{level}"] = [rng.integers(0, 16, count).astype(np.int16) for count in counts]
    rows["num_samples"] = [count * 8 * 2 ** levels[0] + 3 for count in codes]
    return Dataset.from_dict(rows | columns)


def arguments(folder: Path, **settings) -> JukeboxTrainingArguments:
    defaults = dict(
        output_dir=str(folder), per_device_train_batch_size=2, per_device_eval_batch_size=2, max_steps=6,
        logging_steps=1, save_strategy="no", report_to="none", use_cpu=True, disable_tqdm=True, warmup_steps=2,
        learning_rate=1e-2, dataloader_pin_memory=False, seed=3,
    )  # fmt: skip
    return JukeboxTrainingArguments(**defaults | settings)


def losses_of(trainer) -> list[float]:
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


def crops_of(folder: Path, seconds=(3.0, 2.5, 4.0, 3.3), **settings) -> AudioCrops:
    return AudioCrops(write_music(folder, seconds), CROP, RATE, **settings)
