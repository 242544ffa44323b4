"""Puts what a model makes of music into TensorBoard: sound, and its spectrogram."""

import numpy as np
import torch
from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback

from ..losses_jukebox import SPECTRAL_STFT, spectrogram
from .audio_crops import AudioCrops

# Crops that are listened to at each evaluation.
SAMPLES = 2


class LogReconstructions(TrainerCallback):
    """After each evaluation writes held-out crops and what each level makes of them.

    Args:
        trainer ([`JukeboxVQVAETrainer`]): whose model to listen to, with its averaged weights.
        crops ([`AudioCrops`]): of which the first few are taken.
    """

    def __init__(self, trainer, crops: AudioCrops):
        self.trainer = trainer
        self.crops = crops

    def on_evaluate(self, args, state, control, **kwargs):
        writer = tensorboard_writer(self.trainer)
        if writer is None:
            return
        for index in range(min(SAMPLES, len(self.crops))):
            original = self.crops[index]["input_values"]
            write_sound(writer, f"crop_{index}/original", original[0], self.crops.sampling_rate, state.global_step)
            for level, audio in enumerate(self.trainer.reconstruct(original)):
                write_sound(writer, f"crop_{index}/level_{level}", audio, self.crops.sampling_rate, state.global_step)


class LogSamples(TrainerCallback):
    """After each evaluation draws a window for held-out labels, and upper codes, and writes what it sounds like.

    Args:
        trainer ([`JukeboxPriorTrainer`]): whose prior to draw from, with its averaged weights.
        windows ([`CodeWindows`]): of which the first few are taken.
        vqvae ([`JukeboxVQVAEModel`]): decodes the codes.
    """

    def __init__(self, trainer, windows, vqvae):
        self.trainer = trainer
        self.windows = windows
        self.vqvae = vqvae

    def on_evaluate(self, args, state, control, **kwargs):
        writer = tensorboard_writer(self.trainer)
        if writer is None:
            return
        level = self.windows.config.level
        for index in range(min(SAMPLES, len(self.windows))):
            window = {name: values[None] for name, values in self.windows[index].items()}
            original = window.pop("input_ids")
            del window["labels"]
            for name, codes in (("original", original), ("drawn", self.trainer.draw(window, seed=index))):
                audio = self.vqvae.decode(codes.cpu(), level=level).audio_values[0, 0]
                write_sound(writer, f"window_{index}/{name}", audio, self.vqvae.config.sampling_rate, state.global_step)


def tensorboard_writer(trainer):
    """The writer of a trainer that reports to TensorBoard; None in other processes and without it."""
    callbacks = trainer.callback_handler.callbacks
    found = next((callback for callback in callbacks if isinstance(callback, TensorBoardCallback)), None)
    return found.tb_writer if found is not None and trainer.is_world_process_zero() else None


def write_sound(writer, name: str, audio: torch.Tensor, sampling_rate: int, step: int):
    """Writes audio `(samples,)` and its spectrogram, 80 dB from black to white."""
    audio = audio.float().cpu().clamp(-1, 1)
    writer.add_audio(name, audio[None], step, sample_rate=sampling_rate)
    # A spectrogram has one whole window or more.
    audio = torch.nn.functional.pad(audio, (0, max(0, SPECTRAL_STFT[0] - len(audio))))
    decibels = 20 * np.log10(spectrogram(audio[None], *SPECTRAL_STFT)[0].numpy() + 1e-5)
    picture = np.clip((decibels - decibels.max() + 80) / 80, 0, 1)
    writer.add_image(f"{name}/spectrogram", picture[None, ::-1].copy(), step)


__all__ = ["LogReconstructions", "LogSamples", "tensorboard_writer", "write_sound"]
