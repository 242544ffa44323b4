"""What the trainers compute, log and report."""

import logging
import math
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.nn import functional as F
from torch.utils.data import DataLoader
from training_parts import (
    CROP,
    RATE,
    arguments,
    coded_songs,
    crops_of,
    losses_of,
    tiny_prior,
    tiny_vqvae,
    vqvae_with_codes,
)

from jukebox_hf.losses_jukebox import spectral_convergence
from jukebox_hf.training import (
    CodeWindows,
    JukeboxAdam,
    JukeboxPriorTrainer,
    JukeboxVQVAETrainer,
    LogReconstructions,
    LogSamples,
    WeightAverage,
    jukebox_schedule,
)


def _vqvae_run(folder, model=None, **settings):
    crops = crops_of(folder / "music", (1.3, 1.2, 2.3))
    trainer = JukeboxVQVAETrainer(model=model or tiny_vqvae(), args=arguments(folder, **settings), train_dataset=crops)
    trainer.train()
    return trainer


def _prior_run(folder, model=None, **settings):
    model = model or tiny_prior()
    windows = CodeWindows(coded_songs(), model.config)
    trainer = JukeboxPriorTrainer(model=model, args=arguments(folder, **settings), train_dataset=windows)
    trainer.train()
    return trainer


RUNS = pytest.mark.parametrize("run", [_vqvae_run, _prior_run])


@RUNS
def test_every_epoch_has_other_crops(tmp_path, run):
    # With 9 items in one batch, an epoch a step; the model stays what it is.
    trainer = run(tmp_path, per_device_train_batch_size=9, max_steps=3, learning_rate=0.0, ema_decay=None)
    assert trainer.train_dataset.epoch == 2
    losses = losses_of(trainer)
    assert len(set(losses)) == 3
    trainer.train_dataset.set_epoch(1)
    items = [trainer.train_dataset[index] for index in range(9)]
    if run is _prior_run:
        batch = {name: torch.stack([item[name] for item in items]) for name in items[0]}
        assert trainer.model(**batch).loss.item() == pytest.approx(losses[1], rel=1e-6)


@RUNS
def test_gradient_checkpointing_gives_the_same_losses(tmp_path, run):
    plain = run(tmp_path / "plain")
    saving = run(tmp_path / "saving", gradient_checkpointing=True)
    assert any(getattr(module, "gradient_checkpointing", False) for module in saving.model.modules())
    assert losses_of(saving) == losses_of(plain)


def test_accumulated_batches_train_a_prior_as_one_batch(tmp_path):
    whole = _prior_run(tmp_path / "whole", per_device_train_batch_size=4)
    parts = _prior_run(tmp_path / "parts", gradient_accumulation_steps=2)
    assert losses_of(parts) == pytest.approx(losses_of(whole), rel=1e-5)


@RUNS
def test_bf16_trains_fp32_weights_to_nearly_the_same_losses(tmp_path, run):
    plain = run(tmp_path / "plain", learning_rate=1e-3)
    half = run(tmp_path / "half", learning_rate=1e-3, bf16=True)
    assert next(half.model.parameters()).dtype == torch.float32
    assert losses_of(half) == pytest.approx(losses_of(plain), rel=0.05) and losses_of(half) != losses_of(plain)


def test_fp16_on_a_cpu_is_fp32_and_a_warning(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        half = _prior_run(tmp_path / "half", fp16=True)
    assert any("fp16=True: on cpu accelerate computes in fp32" in record.getMessage() for record in caplog.records)
    assert losses_of(half) == losses_of(_prior_run(tmp_path / "plain"))


def _fp16_run(folder, model, **settings):
    """Does on a CPU what accelerate does on accelerators only: autocast to fp16, with scaled gradients."""
    windows = CodeWindows(coded_songs(), model.config)
    args = arguments(folder, fp16=True, **settings)
    trainer = JukeboxPriorTrainer(model=model, args=args, train_dataset=windows)
    trainer.accelerator.native_amp, trainer.accelerator.scaler = True, torch.amp.GradScaler("cpu")
    trainer.train()
    return trainer


def test_fp16_trains_fp32_weights_to_nearly_the_same_losses(tmp_path):
    plain = losses_of(_prior_run(tmp_path / "plain", learning_rate=1e-3))
    trainer = _fp16_run(tmp_path / "half", tiny_prior(), learning_rate=1e-3)
    assert next(trainer.model.parameters()).dtype == torch.float32
    assert losses_of(trainer) == pytest.approx(plain, rel=0.01) and losses_of(trainer) != plain


def test_fp16_skips_a_step_whose_gradients_overflow(tmp_path):
    model = tiny_prior()
    weight = model.layers[0].mlp.fc1.weight
    overflows = iter([float("inf")])
    weight.register_hook(lambda gradient: gradient * next(overflows, 1.0))
    trainer = _fp16_run(tmp_path, model, ema_decay=0.5)
    assert trainer.accelerator.scaler.get_scale() == 2**15
    assert trainer.state.global_step == 6 and all(tensor.isfinite().all() for tensor in model.state_dict().values())


def test_training_learns(tmp_path):
    songs = coded_songs().map(lambda row: {"audio_codes_1": [i % 16 for i in range(len(row["audio_codes_1"]))]})
    model = tiny_prior()
    trainer = JukeboxPriorTrainer(
        model=model,
        args=arguments(tmp_path, max_steps=60, learning_rate=2e-2),
        train_dataset=CodeWindows(songs, model.config),
    )
    trainer.train()
    losses = losses_of(trainer)
    assert losses[0] > 3.5 and losses[-1] < 1.5


def test_training_stops_where_the_rate_is_zero(tmp_path):
    trainer = _prior_run(tmp_path, max_steps=-1, anneal_start=3, anneal_steps=5, num_train_epochs=1)
    rates = [line["learning_rate"] for line in trainer.state.log_history if "loss" in line]
    assert rates == pytest.approx([0, 0.005, 0.01, 0.01, 0.008, 0.006, 0.004, 0.002])


def test_another_optimizer_may_be_asked_for(tmp_path):
    trainer = _prior_run(tmp_path, original_optimizer=False, optim="adamw_torch", lr_scheduler_type="linear")
    assert isinstance(trainer.optimizer.optimizer, torch.optim.AdamW)
    assert [line["learning_rate"] for line in trainer.state.log_history[:6]][-2:] == pytest.approx([0.005, 0.0025])


def test_vqvae_reports_each_level(tmp_path):
    model = vqvae_with_codes(codebook_size=64, codebook_revival_threshold=0.0)
    held_out = crops_of(tmp_path, random_shift=False, random_blend=False)
    assert len(held_out) % 2, "so that the last batch is smaller"
    trainer = JukeboxVQVAETrainer(model=model, args=arguments(tmp_path), eval_dataset=held_out)
    metrics = trainer.evaluate()
    items = torch.stack([held_out[index]["input_values"] for index in range(len(held_out))])
    with torch.no_grad():
        output = model.eval()(items)
    assert metrics["eval_loss"] == pytest.approx(output.loss.item(), rel=1e-5)
    for level in range(2):
        convergence = [spectral_convergence(a, b).item() for a, b in zip(output.audio_values[level], items)]
        decibels = 20 * math.log10(sum(convergence) / len(convergence))
        assert metrics[f"eval_spectral_convergence_db_level_{level}"] == pytest.approx(decibels, abs=1e-4)
        shares = output.audio_codes[level].unique(return_counts=True)[1].double()
        shares /= shares.sum()
        entropy = -(shares * shares.log2()).sum().item()
        assert metrics[f"eval_codebook_entropy_bits_level_{level}"] == pytest.approx(entropy, rel=1e-5)
        assert metrics[f"eval_codebook_usage_level_{level}"] == pytest.approx(len(shares) / 64)
    assert metrics["eval_codebook_usage_level_0"] != metrics["eval_codebook_usage_level_1"]


def test_prior_reports_bits_per_code(tmp_path):
    model = tiny_prior()
    windows = CodeWindows(coded_songs(), model.config, random_shift=False)
    assert len(windows) % 2
    metrics = JukeboxPriorTrainer(model=model, args=arguments(tmp_path), eval_dataset=windows).evaluate()
    codes = torch.stack([windows[index]["input_ids"] for index in range(len(windows))])
    bits = F.cross_entropy(model(codes).logits.flatten(0, 1), codes.flatten()).item() / math.log(2)
    assert metrics["eval_bits_per_code"] == pytest.approx(bits, rel=1e-5)
    assert metrics["eval_loss"] == pytest.approx(bits, rel=1e-5)


def test_log_lines_average_over_their_steps(tmp_path):
    each = _vqvae_run(tmp_path / "each").state.log_history[:6]
    (two,) = _vqvae_run(tmp_path / "two", logging_steps=6).state.log_history[:1]
    for name in ("reconstruction_loss_level_1", "codebook_entropy", "spectral_convergence", "loss"):
        assert two[name] == pytest.approx(sum(line[name] for line in each) / 6, rel=1e-5)


def test_a_codebook_that_collapses_is_reported_once_a_log_line(tmp_path, caplog):
    model = vqvae_with_codes(codebook_size=64, codebook_revival_threshold=0.0)
    # Level 1's latents are all the same, level 0's are as they were.
    with torch.no_grad():
        for param in model.encoders[1].parameters():
            param.zero_()
    with caplog.at_level(logging.WARNING):
        trainer = _vqvae_run(tmp_path, model, max_steps=6, logging_steps=3, learning_rate=0.0)
    warnings = [record.getMessage() for record in caplog.records if "collapses" in record.getMessage()]
    assert [warning.partition(" collapses")[0] for warning in warnings] == [
        "Step 3: the codebook of level 1",
        "Step 6: the codebook of level 1",
    ]
    assert "of 64 codes" in warnings[0] and "1.6% were" in warnings[0]
    line = trainer.state.log_history[0]
    assert line["codebook_usage_level_1"] == 1 / 64 and line["codebook_usage_level_0"] > 0.1


def test_few_codes_are_no_collapse(tmp_path, caplog):
    # A batch has 256 codes of level 1, and four times as many could not all be used.
    with caplog.at_level(logging.WARNING):
        trainer = _vqvae_run(tmp_path, tiny_vqvae(codebook_size=1024), max_steps=1, learning_rate=0.0)
    assert not [record for record in caplog.records if "collapses" in record.getMessage()]
    assert trainer.state.log_history[0]["codebook_usage_level_1"] > 0.1


def test_sound_and_spectrograms_reach_tensorboard(tmp_path, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    settings = dict(report_to="tensorboard", eval_strategy="steps", eval_steps=2, max_steps=2)
    vqvae, crops = vqvae_with_codes(), crops_of(tmp_path / "music")
    trainer = JukeboxVQVAETrainer(
        model=vqvae, args=arguments(tmp_path, **settings), train_dataset=crops, eval_dataset=crops
    )
    trainer.add_callback(LogReconstructions(trainer, crops))
    trainer.train()
    prior = tiny_prior()
    windows = CodeWindows(coded_songs(), prior.config)
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "prior"))
    trainer = JukeboxPriorTrainer(
        model=prior, args=arguments(tmp_path, **settings), train_dataset=windows, eval_dataset=windows
    )
    listen = LogSamples(trainer, windows, vqvae.eval())
    trainer.add_callback(listen)
    trainer.train()
    # Listening changes nothing for training: neither its mode nor its random numbers.
    prior.train()
    state = torch.get_rng_state()
    listen.on_evaluate(trainer.args, trainer.state, trainer.control)
    assert prior.training and torch.equal(torch.get_rng_state(), state)
    first_draw, other_draw = (trainer.draw({}, seed=seed) for seed in (0, 1))
    assert torch.equal(trainer.draw({}, seed=0), first_draw) and not torch.equal(first_draw, other_draw)
    first, second = _events(tmp_path / "events"), _events(tmp_path / "prior")
    names = [f"crop_{crop}/{what}" for crop in range(2) for what in ("original", "level_0", "level_1")]
    assert sorted(first.Tags()["audio"]) == sorted(names)
    assert sorted(first.Tags()["images"]) == sorted(f"{name}/spectrogram" for name in names)
    assert "eval/codebook_entropy_bits_level_1" in first.Tags()["scalars"]
    (sound,) = first.Audio("crop_0/level_1")
    assert sound.sample_rate == RATE and sound.length_frames == CROP and sound.step == 2
    assert sorted(second.Tags()["audio"]) == [f"window_{i}/{what}" for i in range(2) for what in ("drawn", "original")]


def _events(folder: Path) -> EventAccumulator:
    (file,) = folder.rglob("events.*")
    events = EventAccumulator(str(file), size_guidance={"audio": 0, "images": 0})
    events.Reload()
    return events


def train_with_accelerate(model, data, num_epochs, learning_rate, ema_decay):
    """The whole of training, with accelerate alone."""
    accelerator = Accelerator(cpu=True, step_scheduler_with_optimizer=False)
    average = WeightAverage(model, ema_decay)
    optimizer = JukeboxAdam(model.parameters(), lr=learning_rate)
    schedule = jukebox_schedule(optimizer, warmup_steps=2)
    loader = DataLoader(data, batch_size=2, shuffle=False)
    model, optimizer, loader = accelerator.prepare(model.train(), optimizer, loader)
    losses = []
    for epoch in range(num_epochs):
        data.set_epoch(epoch)
        for batch in loader:
            loss = model(**batch).loss
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            average.update()
            losses.append(loss.item())
    with average.applied():
        state = {name: tensor.clone() for name, tensor in accelerator.unwrap_model(model).state_dict().items()}
    return losses, state


@RUNS
def test_plain_accelerate_trains_as_the_trainer(tmp_path, run):
    settings = dict(max_steps=-1, num_train_epochs=2, train_sampling_strategy="sequential", ema_decay=0.8)
    trainer = run(tmp_path, **settings)
    trainer.save_model(tmp_path / "final")
    model = tiny_vqvae() if run is _vqvae_run else tiny_prior()
    torch.manual_seed(3)
    losses, state = train_with_accelerate(model, trainer.train_dataset, 2, 1e-2, 0.8)
    assert len(losses) == 10
    assert losses == pytest.approx(losses_of(trainer), rel=1e-5)
    saved = type(model).from_pretrained(tmp_path / "final").state_dict()
    for name, tensor in state.items():
        torch.testing.assert_close(tensor, saved[name], rtol=1e-4, atol=1e-5, msg=name)
