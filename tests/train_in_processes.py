"""Trains a VQ-VAE and a prior, in as many processes as it is started in, and keeps what came of it."""

import os
import sys
from pathlib import Path

import torch
from training_parts import arguments, coded_songs, crops_of, losses_of, tiny_prior, vqvae_with_codes

from jukebox_hf.training import CodeWindows, JukeboxPriorTrainer, JukeboxVQVAETrainer


def train(folder: Path, batch_size: int, music: Path):
    """Two epochs of two steps of four items, and an evaluation; writes `{name: (losses, metrics, weights)}`."""
    # Where codebooks are initialised and codes restart, they take random latents of the first process's batch, which
    # is another batch than that of one process. So both are left out.
    vqvae = vqvae_with_codes(codebook_revival_threshold=0.0)
    prior = tiny_prior()
    crops = crops_of(music, (1.1, 1.2, 1.9))
    windows = CodeWindows(coded_songs((60, 70, 130)), prior.config)
    results = {}
    for kind, model, data in ((JukeboxVQVAETrainer, vqvae, crops), (JukeboxPriorTrainer, prior, windows)):
        assert len(data) == 8
        settings = arguments(
            folder / kind.__name__, per_device_train_batch_size=batch_size, per_device_eval_batch_size=batch_size,
            max_steps=4, learning_rate=1e-3, ema_decay=0.8, warmup_steps=1,
        )  # fmt: skip
        trainer = kind(model=model, args=settings, train_dataset=data, eval_dataset=data)
        trainer.train()
        metrics = {name: value for name, value in trainer.evaluate().items() if not name.endswith(("second", "time"))}
        lines = [line for line in trainer.state.log_history if "loss" in line]
        results[kind.__name__] = (losses_of(trainer), metrics, trainer.model.state_dict(), lines[-1])
        assert trainer.args.world_size * batch_size == 4
    if trainer.is_world_process_zero():
        torch.save(results, folder / "results.pt")


if __name__ == "__main__":
    # Each process writes the same music for itself.
    train(Path(sys.argv[1]), 2, Path(sys.argv[1]) / f"music_{os.environ['RANK']}")
