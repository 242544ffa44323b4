"""Runs that are stopped in the middle of an epoch and resumed go on to the same bits; checkpoints are good."""

import pytest
import torch
from training_parts import arguments, coded_songs, crops_of, losses_of, tiny_prior, tiny_vqvae
from transformers import TrainerCallback

from jukebox_hf import JukeboxPriorModel, JukeboxVQVAEModel
from jukebox_hf.training import CodeWindows, JukeboxPriorTrainer, JukeboxVQVAETrainer

# Nine crops, or windows, make five micro-batches: an epoch has three steps, and the last one is shorter.
RUN = dict(gradient_accumulation_steps=2, ema_decay=0.8, anneal_start=4, anneal_steps=4, max_steps=7)


def _vqvae_trainer(folder, model=None, crops=None, **settings):
    if crops is None:
        crops = crops_of(folder / "music", (1.3, 1.2, 2.3))
    return JukeboxVQVAETrainer(model=model or tiny_vqvae(), args=arguments(folder, **settings), train_dataset=crops)


def _prior_trainer(folder, model=None, **settings):
    model = model or tiny_prior()
    windows = CodeWindows(coded_songs(), model.config, seed=5)
    return JukeboxPriorTrainer(
        model=model, args=arguments(folder, **settings), train_dataset=windows, eval_dataset=windows
    )


@pytest.mark.parametrize("make", [_vqvae_trainer, _prior_trainer])
# In the middle of the second epoch, and at its end.
@pytest.mark.parametrize("stop", [5, 6])
def test_a_resumed_run_goes_on_to_the_same_bits(tmp_path, make, stop):
    whole = make(tmp_path / "whole", **RUN)
    whole.train()
    assert len(whole.train_dataset) == 9 and 2 < whole.state.epoch < 3
    first = make(tmp_path / "parts", **RUN, save_strategy="steps", save_steps=stop)
    first.add_callback(_StopAt(stop))
    first.train()
    # Its own first weights are others.
    model = make(tmp_path / "parts", **RUN).model
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.add_(1.0)
    resumed = make(tmp_path / "parts", model, **RUN)
    torch.manual_seed(99)
    resumed.train(resume_from_checkpoint=str(tmp_path / "parts" / f"checkpoint-{stop}"))
    assert resumed.state.global_step == 7
    assert losses_of(resumed) == losses_of(whole)
    _assert_equal(resumed.model.state_dict(), whole.model.state_dict())
    _assert_equal(resumed.average.state_dict(), whole.average.state_dict())


class _StopAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == self.step


def _assert_equal(state, expected):
    assert state.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(state[name], value), name


def test_a_resumed_run_of_half_precision_weights_keeps_fp32_averages(tmp_path):
    whole = _prior_trainer(tmp_path / "whole", tiny_prior().to(torch.bfloat16), **RUN)
    whole.train()
    first = _prior_trainer(
        tmp_path / "parts", tiny_prior().to(torch.bfloat16), **RUN | {"save_strategy": "steps"}, save_steps=3
    )
    first.add_callback(_StopAt(3))
    first.train()
    resumed = _prior_trainer(tmp_path / "parts", tiny_prior().to(torch.bfloat16), **RUN)
    resumed.train(resume_from_checkpoint=str(tmp_path / "parts" / "checkpoint-3"))
    _assert_equal(resumed.average.state_dict(), whole.average.state_dict())


def test_checkpoints_and_evaluations_have_the_averaged_weights(tmp_path):
    trainer = _vqvae_trainer(tmp_path, **RUN, save_strategy="steps", save_steps=3)
    trainer.train()
    trainer.save_model(tmp_path / "final")
    saved = JukeboxVQVAEModel.from_pretrained(tmp_path / "final")
    weights = dict(trainer.model.named_parameters())
    for name, param in saved.named_parameters():
        assert torch.equal(param, trainer.average.averages[name]), name
        assert not torch.equal(param, weights[name]), name
    # Codebooks are averages already.
    _assert_equal(dict(saved.named_buffers()), dict(trainer.model.named_buffers()))
    held_out = crops_of(tmp_path / "music", random_shift=False, random_blend=False)
    loss = trainer.evaluate(held_out)["eval_loss"]
    alone = JukeboxVQVAETrainer(model=saved, args=arguments(tmp_path), eval_dataset=held_out)
    assert loss == pytest.approx(alone.evaluate()["eval_loss"], rel=1e-6)


def test_the_best_model_is_the_best_average(tmp_path):
    settings = RUN | {"learning_rate": 0.3, "max_steps": 4, "warmup_steps": 0, "anneal_steps": 0}
    trainer = _prior_trainer(
        tmp_path, **settings, save_strategy="steps", eval_strategy="steps", save_steps=1, eval_steps=1,
        load_best_model_at_end=True,
    )  # fmt: skip
    trainer.train()
    best = trainer.state.best_global_step
    assert best < 4, "the rate is so high that the model gets worse"
    trainer.save_model(tmp_path / "final")
    saved, expected = (
        JukeboxPriorModel.from_pretrained(tmp_path / name).state_dict() for name in ("final", f"checkpoint-{best}")
    )
    _assert_equal(saved, expected)


def test_resuming_needs_the_average_that_was_kept(tmp_path):
    with_average = _prior_trainer(tmp_path / "with", **RUN | {"max_steps": 2}, save_strategy="steps", save_steps=2)
    without = _prior_trainer(tmp_path / "without", max_steps=2, save_strategy="steps", save_steps=2)
    with_average.train()
    without.train()
    with pytest.raises(ValueError, match="was made with ema_decay: give one"):
        without.train(resume_from_checkpoint=str(tmp_path / "with" / "checkpoint-2"))
    with pytest.raises(ValueError, match="was made without ema_decay: leave it out"):
        with_average.train(resume_from_checkpoint=str(tmp_path / "without" / "checkpoint-2"))


class _Break(TrainerCallback):
    """Sets a weight to NaN at the end of a step."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step == self.step:
            with torch.no_grad():
                next(model.parameters()).view(-1)[0] = float("nan")


@pytest.mark.parametrize(("make", "kind"), [(_vqvae_trainer, JukeboxVQVAEModel), (_prior_trainer, JukeboxPriorModel)])
# At step 5 the next loss tells, at step 4 the checkpoint that would be saved.
@pytest.mark.parametrize("step", [4, 5])
def test_nan_ends_the_run_and_the_last_checkpoint_is_good(tmp_path, make, kind, step):
    trainer = make(tmp_path, **RUN, save_strategy="steps", save_steps=2)
    trainer.add_callback(_Break(step))
    last = 2 if step == 4 else 4
    with pytest.raises(FloatingPointError, match=rf"at step {step}: .*checkpoint-{last} is good"):
        trainer.train()
    model = kind.from_pretrained(tmp_path / f"checkpoint-{last}")
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())
    resumed = make(tmp_path, **RUN)
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{last}"))
    assert resumed.state.global_step == 7


def test_nan_before_the_first_checkpoint_and_gradients_without_clipping(tmp_path):
    trainer = _prior_trainer(tmp_path, max_grad_norm=0.0, save_strategy="steps", save_steps=50)
    weight = trainer.model.layers[0].mlp.fc1.weight
    weight.register_hook(lambda gradient: gradient * float("inf"))
    before = weight.detach().clone()
    with pytest.raises(FloatingPointError, match=r"gradient norm=.* at step 0: .*no checkpoint yet"):
        trainer.train()
    assert torch.equal(weight, before)


def test_a_model_that_broke_in_the_last_step_is_not_saved(tmp_path):
    trainer = _prior_trainer(tmp_path, max_steps=2)
    trainer.add_callback(_Break(2))
    trainer.train()
    with pytest.raises(FloatingPointError, match="is not finite at step 2"):
        trainer.save_model(tmp_path / "final")
    assert not (tmp_path / "final").exists()
