"""transformers' Trainer with what Jukebox's training has of its own."""

import contextlib
import math
import os
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    default_data_collator,
)
from transformers.trainer_utils import get_last_checkpoint
from transformers.utils import logging

from ..losses_jukebox import spectral_convergence
from ..modeling_jukebox_prior import SAMPLING
from .averaging import WeightAverage
from .optimization import JukeboxAdam, jukebox_schedule

logger = logging.get_logger(__name__)

# A checkpoint's own weights, beside the averaged ones that are its model.
RAW_WEIGHTS_NAME = "raw_weights.safetensors"
# Marks, in that file, the averages of weights that are not in fp32, which the model rounds.
AVERAGE_PREFIX = "average/"
SUBCLASS = "JukeboxTrainer is what two trainers share: use JukeboxVQVAETrainer or JukeboxPriorTrainer."
# A level that uses a smaller share of its codes than this, over the steps of a log line, is said to collapse.
COLLAPSED_USAGE = 0.1


@dataclass
class JukeboxTrainingArguments(TrainingArguments):
    """transformers' arguments, with the original's defaults and these of its own.

    Args:
        ema_decay (`float`, *optional*): share of the averaged weights that a step leaves; the original's default is
            `1 - batch / 8000`. None for no averaging. Evaluated, sampled and saved are the averaged weights.
        anneal_start (`int`): the step from which on the learning rate falls linearly.
        anneal_steps (`int`): in how many steps it reaches 0, where training stops, however many epochs that takes; 0
            for a rate that stays.
        original_optimizer (`bool`): the original's Adam ([`JukeboxAdam`]) and its schedule; otherwise what `optim` and
            `lr_scheduler_type` say.
    """

    learning_rate: float = 3e-4
    warmup_steps: float = 100
    max_grad_norm: float = 1.0
    # As in the original; each process computes the same codebooks.
    ddp_broadcast_buffers: bool | None = False
    # Logits and audio of all that is held out would fill the memory.
    prediction_loss_only: bool = True
    # A loss that is not finite ends the run, so none must be hidden.
    logging_nan_inf_filter: bool = False
    # Crops are datasets of their own, whose columns are what the models take.
    remove_unused_columns: bool | None = False
    ema_decay: float | None = field(default=None, metadata={"help": "Share of the averaged weights that a step keeps."})
    anneal_start: int = field(default=0, metadata={"help": "The step from which on the learning rate falls."})
    anneal_steps: int = field(default=0, metadata={"help": "In how many steps it reaches 0; 0: it stays."})
    original_optimizer: bool = field(default=True, metadata={"help": "The original's Adam and schedule."})

    def __post_init__(self):
        super().__post_init__()
        # Otherwise the order of the data follows from torch's seed at the moment, and a resumed run may have another.
        if self.data_seed is None:
            self.data_seed = self.seed
        if self.anneal_steps:
            last = self.anneal_start + self.anneal_steps
            self.max_steps = min(self.max_steps, last) if self.max_steps > 0 else last

    @property
    def checkpoint_to_resume(self) -> str | None:
        """What `resume_from_checkpoint` names; with `"true"` the folder of the last checkpoint, if there is any."""
        if str(self.resume_from_checkpoint).lower() != "true":
            return self.resume_from_checkpoint
        return get_last_checkpoint(self.output_dir) if os.path.isdir(self.output_dir) else None


class _AverageWeights(TrainerCallback):
    def __init__(self, average: WeightAverage):
        self.average = average

    def on_step_end(self, args, state, control, **kwargs):
        self.average.update()


class _SetEpoch(TrainerCallback):
    """Tells the data its epoch: accelerate's loader does not, in several processes and where it skips batches."""

    def on_epoch_begin(self, args, state, control, train_dataloader=None, **kwargs):
        if hasattr(train_dataloader.dataset, "set_epoch"):
            train_dataloader.dataset.set_epoch(int(state.epoch or 0))


class JukeboxTrainer(Trainer):
    """What training a VQ-VAE and a prior have in common.

    Averages what the model reports beside its loss over the steps of a log line; keeps an average of the weights; and
    ends the run with a FloatingPointError at a loss or gradient that is not finite, before it reaches the weights, and
    before weights that are not finite are saved: every checkpoint is good.

    In several processes an evaluation's batches are filled up with samples from the front, as those of any Trainer;
    for the figures of one process take a number of samples that all batches together divide.
    """

    args: JukeboxTrainingArguments

    def __init__(self, model: PreTrainedModel, args: JukeboxTrainingArguments, **kwargs):
        # Crops and windows are all of one length; Trainer's own choice would pad them.
        kwargs.setdefault("data_collator", default_data_collator)
        super().__init__(model=model, args=args, **kwargs)
        if args.fp16 and not self.accelerator.native_amp:
            logger.warning(f"fp16=True: on {args.device} accelerate computes in fp32 all the same. Give bf16 there.")
        self._sums: dict[str, torch.Tensor] = {}
        self._counts: dict[str, int] = defaultdict(int)
        self._evaluation: dict[str, torch.Tensor] = {}
        self.average = None
        if args.ema_decay is not None:
            if self.is_fsdp_enabled or self.is_deepspeed_enabled:
                raise ValueError(f"ema_decay={args.ema_decay}: weights that are sharded have no average; leave it out.")
            self.average = WeightAverage(model, args.ema_decay)
            self.add_callback(_AverageWeights(self.average))
        self.add_callback(_SetEpoch())

    def step_metrics(self, inputs: dict, outputs) -> dict[str, torch.Tensor]:
        """What to log of a training step beside its loss."""
        raise NotImplementedError(SUBCLASS)

    def evaluation_sums(self, inputs: dict, outputs) -> dict[str, torch.Tensor]:
        """What to add up over the batches of an evaluation."""
        raise NotImplementedError(SUBCLASS)

    def evaluation_metrics(self, sums: dict[str, torch.Tensor]) -> dict[str, float]:
        """What to report of these sums."""
        raise NotImplementedError(SUBCLASS)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The original's Adam over all that is trained, unless the arguments or the caller chose another."""
        if self.optimizer is not None or not self.args.original_optimizer:
            return super().create_optimizer(model)
        params = [param for param in (model or self.model).parameters() if param.requires_grad]
        betas = (self.args.adam_beta1, self.args.adam_beta2)
        self.optimizer = JukeboxAdam(
            params, self.args.learning_rate, betas, self.args.adam_epsilon, self.args.weight_decay
        )
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None):
        """The original's warm-up and annealing, unless the arguments or the caller chose another."""
        if self.lr_scheduler is not None or not self.args.original_optimizer:
            return super().create_scheduler(num_training_steps, optimizer)
        args = self.args
        warmup = args.get_warmup_steps(num_training_steps)
        self.lr_scheduler = jukebox_schedule(optimizer or self.optimizer, warmup, args.anneal_start, args.anneal_steps)
        return self.lr_scheduler

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The model's loss; what else it reports is kept for the next log line."""
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        if not loss.isfinite():
            self._stop(f"loss={loss.item()}")
        if not model.training:
            for name, value in self.evaluation_sums(inputs, outputs).items():
                self._evaluation[name] = self._evaluation.get(name, 0) + value.detach()
        else:
            for name, value in self.step_metrics(inputs, outputs).items():
                self._sums[name] = self._sums.get(name, 0) + value.detach().float()
                self._counts[name] += 1
        return (loss, outputs) if return_outputs else loss

    def evaluation_loop(self, *args, metric_key_prefix: str = "eval", **kwargs):
        """As for any Trainer, with what the model says about held-out data beside its loss."""
        self._evaluation = {}
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        sums = {name: self.accelerator.reduce(value, "sum") for name, value in self._evaluation.items()}
        metrics = self.evaluation_metrics(sums)
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in metrics.items()})
        return output

    def log(self, logs: dict[str, float], start_time: float | None = None):
        """Adds the means of what training steps reported since the last line."""
        if "loss" in logs and self._sums:
            names = sorted(self._sums)
            means = torch.stack([self._sums[name] / self._counts[name] for name in names])
            means = self.accelerator.reduce(means, "mean")
            logs |= dict(zip(names, means.tolist()))
            self._sums.clear()
            self._counts.clear()
        super().log(logs, start_time)

    def evaluate(self, *args, **kwargs) -> dict[str, float]:
        """As for any Trainer, with the averaged weights if there are any."""
        with self._averaged():
            return super().evaluate(*args, **kwargs)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False):
        """As for any Trainer, with the averaged weights if there are any; only finite ones."""
        for name, tensor in (*self.model.named_parameters(), *self.model.named_buffers()):
            if not tensor.isfinite().all():
                self._stop(f"{name} is not finite")
        with self._averaged():
            super().save_model(output_dir, _internal_call)

    def _averaged(self) -> contextlib.AbstractContextManager:
        return self.average.applied() if self.average is not None else contextlib.nullcontext()

    def _load_best_model(self):
        super()._load_best_model()
        if self.average is not None:
            self.average.load_state_dict({name: param.detach() for name, param in self.average.weights.items()})

    def _get_grad_norm(self, model, grad_norm=None):
        norm = super()._get_grad_norm(model, grad_norm)
        # In fp16 the scaler skips such a step and lowers its scale.
        if self.accelerator.scaler is None and not math.isfinite(norm):
            self._stop(f"gradient norm={norm}")
        return norm

    def _save_optimizer_and_scheduler(self, output_dir: str):
        super()._save_optimizer_and_scheduler(output_dir)
        if self.average is not None and self.args.should_save:
            raw = {name: param.detach().contiguous() for name, param in self.average.weights.items()}
            for name, average in self.average.averages.items():
                if raw[name].dtype != average.dtype:
                    raw[AVERAGE_PREFIX + name] = average
            save_file(raw, os.path.join(output_dir, RAW_WEIGHTS_NAME))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None):
        path = Path(resume_from_checkpoint, RAW_WEIGHTS_NAME)
        if path.exists() != (self.average is not None):
            made, way_out = ("with", "give one") if path.exists() else ("without", "leave it out")
            raise ValueError(f"{resume_from_checkpoint} was made {made} ema_decay: {way_out} to go on from it.")
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self.average is None:
            return
        raw = load_file(path)
        # The checkpoint's model is the average.
        self.average.load_state_dict(
            {name: raw.pop(AVERAGE_PREFIX + name, param.detach()) for name, param in self.average.weights.items()}
        )
        with torch.no_grad():
            for name, weight in raw.items():
                self.average.weights[name].copy_(weight)

    def _stop(self, what: str):
        folder = self.args.output_dir
        kept = get_last_checkpoint(folder) if os.path.isdir(folder) else None
        raise FloatingPointError(
            f"{what} at step {self.state.global_step}: training ends here; "
            + (f"{kept} is good. Resume from it" if kept else "there is no checkpoint yet. Start again")
            + " with a lower learning rate, a smaller max_grad_norm, or in fp32."
        )


class JukeboxVQVAETrainer(JukeboxTrainer):
    """Trains a [`JukeboxVQVAEModel`] on batches of [`AudioCrops`].

    A log line has the parts of the loss, the codebooks' statistics and, for each level, the share of codes used since
    the last line, with a warning where a codebook collapses; an evaluation has for each level the spectral convergence
    in dB, and of its codebook the entropy in bits and the share of codes that are used.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._code_counts: list[torch.Tensor] = []

    def step_metrics(self, inputs: dict, outputs) -> dict[str, torch.Tensor]:
        """The parts of the loss and the codebooks' statistics."""
        counts = [self._count(codes) for codes in outputs.audio_codes]
        kept = self._code_counts
        self._code_counts = [a + b for a, b in zip(kept, counts)] if kept else counts
        return outputs.metrics

    def log(self, logs: dict[str, float], start_time: float | None = None):
        """Adds for each level the share of codes used since the last line, and warns of a level that collapses."""
        if "loss" in logs and self._code_counts:
            for level, counts in enumerate(self.accelerator.reduce(torch.stack(self._code_counts), "sum")):
                # Fewer codes than the codebook has cannot use all of it.
                possible = min(len(counts), counts.sum().item())
                usage = logs[f"codebook_usage_level_{level}"] = (counts > 0).sum().item() / possible
                if usage < COLLAPSED_USAGE:
                    logger.warning(
                        f"Step {self.state.global_step}: the codebook of level {level} collapses: of {possible} codes "
                        f"that could have been used since the last line, {usage:.1%} were. Try a lower learning rate, "
                        "or a codebook_revival_threshold above 0, which restarts unused codes."
                    )
            self._code_counts = []
        super().log(logs, start_time)

    def _count(self, codes: torch.Tensor) -> torch.Tensor:
        size = self.accelerator.unwrap_model(self.model).config.codebook_size
        return torch.bincount(codes.flatten(), minlength=size)

    def evaluation_sums(self, inputs: dict, outputs) -> dict[str, torch.Tensor]:
        """For each level the sum of the crops' spectral convergence, and how often each code occurs."""
        target = inputs["input_values"][:, 0]
        sums = {"crops": torch.tensor(float(len(target)), device=target.device)}
        for level, (codes, audio) in enumerate(zip(outputs.audio_codes, outputs.audio_values)):
            sums[f"convergence_{level}"] = spectral_convergence(audio[:, 0].float(), target) * len(target)
            sums[f"counts_{level}"] = self._count(codes)
        return sums

    def evaluation_metrics(self, sums: dict[str, torch.Tensor]) -> dict[str, float]:
        """Spectral convergence, entropy and usage of each level."""
        metrics = {}
        for level in range(sum(name.startswith("counts_") for name in sums)):
            shares = sums[f"counts_{level}"] / sums[f"counts_{level}"].sum()
            convergence = (sums[f"convergence_{level}"] / sums["crops"]).clamp(min=1e-10)
            metrics[f"spectral_convergence_db_level_{level}"] = 20 * convergence.log10().item()
            metrics[f"codebook_entropy_bits_level_{level}"] = torch.special.entr(shares).sum().item() / math.log(2)
            metrics[f"codebook_usage_level_{level}"] = (shares > 0).float().mean().item()
        return metrics

    @torch.no_grad()
    def reconstruct(self, audio: torch.Tensor) -> list[torch.Tensor]:
        """What each level, with the averaged weights, makes of audio `(1, samples)`: for each `(samples,)`."""
        with self._averaged(), _evaluating(self.model), self.compute_loss_context_manager():
            outputs = self.model(audio[None].to(self.args.device), return_loss=False)
        return [level[0, 0] for level in outputs.audio_values]


class JukeboxPriorTrainer(JukeboxTrainer):
    """Trains a [`JukeboxPriorModel`] on batches of [`CodeWindows`].

    A log line and an evaluation have the bits per code and, for a model with lyrics, per character.
    """

    def step_metrics(self, inputs: dict, outputs) -> dict[str, torch.Tensor]:
        """The losses in bits, unweighted."""
        parts = {"bits_per_code": outputs.music_loss, "bits_per_character": outputs.lyric_loss}
        return {name: value for name, value in parts.items() if value is not None}

    def evaluation_sums(self, inputs: dict, outputs) -> dict[str, torch.Tensor]:
        """The sums over windows of the losses in bits."""
        count = torch.tensor(float(len(inputs["input_ids"])), device=outputs.loss.device)
        return {"windows": count} | {name: value * count for name, value in self.step_metrics(inputs, outputs).items()}

    def evaluation_metrics(self, sums: dict[str, torch.Tensor]) -> dict[str, float]:
        """The losses in bits."""
        return {name: (value / sums["windows"]).item() for name, value in sums.items() if name != "windows"}

    @torch.no_grad()
    def draw(self, conditions: dict[str, torch.Tensor], seed: int) -> torch.Tensor:
        """Draws a window `(batch, codes)`, with the averaged weights, without touching training's random numbers."""
        model = self.accelerator.unwrap_model(self.model)
        conditions = {name: values.to(self.args.device) for name, values in conditions.items()}
        generator = torch.Generator(self.args.device).manual_seed(seed)
        with self._averaged(), _evaluating(model), self.compute_loss_context_manager():
            sampling = GenerationConfig(**SAMPLING, max_new_tokens=model.config.context_length)
            return model.generate(**conditions, generation_config=sampling, generator=generator)


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


__all__ = ["JukeboxPriorTrainer", "JukeboxTrainer", "JukeboxTrainingArguments", "JukeboxVQVAETrainer"]
