"""The probe of JukeMIR: shallow models on frozen features, chosen by a grid (Castellon et al. 2021, arXiv 2107.05677).

As their code trains it (github.com/p-lambda/jukemir, jukemir/probe/__init__.py), with the same draws for the same rows.
Not here: tagging, and the vote of a song's clips in key detection; each file gives one answer.
"""

import copy
import itertools
import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.metrics import r2_score
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

# The paper's 216 probes.
FULL_GRID = {
    "standardize": (False, True),
    "hidden_size": (None, 512),
    "batch_size": (64, 256),
    "learning_rate": (1e-5, 1e-4, 1e-3),
    "dropout": (0.25, 0.5, 0.75),
    "weight_decay": (None, 1e-4, 1e-3),
}
# A few of them, in minutes instead of hours.
SMALL_GRID = FULL_GRID | {"batch_size": (64,), "learning_rate": (1e-3,), "dropout": (0.5,), "weight_decay": (None,)}
GRIDS = {"full": FULL_GRID, "small": SMALL_GRID}
TONICS = ("C", "Db", "D", "Eb", "E", "F", "Gb", "G", "Ab", "A", "Bb", "B")
SHARPS = {"C#": "Db", "D#": "Eb", "F#": "Gb", "G#": "Ab", "A#": "Bb"}
MODES = ("major", "minor")


@dataclass(frozen=True)
class ProbeSettings:
    """One point of the grid; without a `hidden_size` the probe is linear."""

    standardize: bool
    hidden_size: int | None
    batch_size: int
    learning_rate: float
    dropout: float
    weight_decay: float | None


def grid(name: str) -> list[ProbeSettings]:
    """Gives all probes of the `"full"` or the `"small"` grid."""
    return [ProbeSettings(*values) for values in itertools.product(*GRIDS[name].values())]


def parse_key(label: str) -> tuple[int, str]:
    """Gives semitones above C and the mode of a key such as "Eb minor".

    Raises:
        ValueError: anything else.
    """
    tonic, _, mode = label.strip().capitalize().partition(" ")
    tonic = SHARPS.get(tonic, tonic)
    if tonic not in TONICS or mode not in MODES:
        raise ValueError(f"{label!r} is no key: write such as 'Eb minor' or 'F# major'.")
    return TONICS.index(tonic), mode


def weighted_key_score(reference: tuple[int, str], estimate: tuple[int, str]) -> float:
    """Scores an estimated key as `mir_eval.key.weighted_score` does: of the fifths only the one above counts."""
    interval = (estimate[0] - reference[0]) % 12
    if estimate[1] == reference[1]:
        return {0: 1.0, 7: 0.5}.get(interval, 0.0)
    relative = 9 if reference[1] == "major" else 3
    return {relative: 0.3, 0: 0.2}.get(interval, 0.0)


class Classification:
    """One of several labels; the metric is the accuracy."""

    metric = "accuracy"

    def __init__(self, labels: Iterable[str]):
        self.classes = sorted(set(labels))
        if len(self.classes) < 2:
            raise ValueError(
                f"All clips have the label {', '.join(self.classes)!r}: a probe needs at least two labels."
            )
        self.num_outputs = len(self.classes)

    def targets(self, labels: Sequence[str]) -> np.ndarray:
        """Gives the number `(clips,)` of each label."""
        return np.array([self.classes.index(label) for label in labels])

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets)

    def score(self, outputs: np.ndarray, targets: np.ndarray) -> float:
        """Gives the metric of outputs `(clips, num_outputs)`; higher is better."""
        return float(np.mean(outputs.argmax(1) == targets))

    def constant(self, targets: np.ndarray) -> np.ndarray:
        """Gives the outputs `(num_outputs,)` of the best answer that is always the same."""
        answers = np.eye(self.num_outputs)
        return max(answers, key=lambda answer: self.score(np.tile(answer, (len(targets), 1)), targets))


class KeyDetection(Classification):
    """One of the 24 major and minor keys; the metric is the weighted score."""

    metric = "weighted key score"

    def __init__(self, labels: Iterable[str]):
        super().__init__({parse_key(label): label for label in labels}.values())
        self.keys = [(tonic, mode) for mode in MODES for tonic in range(12)]
        self.num_outputs = len(self.keys)
        self.scores = np.array([[weighted_key_score(own, other) for other in self.keys] for own in self.keys])

    def targets(self, labels: Sequence[str]) -> np.ndarray:
        return np.array([self.keys.index(parse_key(label)) for label in labels])

    def score(self, outputs: np.ndarray, targets: np.ndarray) -> float:
        return float(self.scores[targets, outputs.argmax(1)].mean())


class Regression:
    """One number or several, such as arousal and valence; the metric is the mean of their R2."""

    metric = "R2"

    def __init__(self, labels: Sequence[str]):
        widths = {len(label.split()) for label in labels}
        if len(widths) > 1:
            raise ValueError(f"Some labels have {min(widths)} numbers, others {max(widths)}: give each the same.")
        (self.num_outputs,) = widths
        if len(set(labels)) < 2:
            raise ValueError(f"All clips have the label {labels[0]!r}: a probe needs at least two values.")

    def targets(self, labels: Sequence[str]) -> np.ndarray:
        """Gives the numbers `(clips, num_outputs)`."""
        try:
            targets = np.array([[float(number) for number in label.split()] for label in labels], dtype=np.float32)
        except ValueError as error:
            raise ValueError(f"A label is no number, or no numbers between spaces: {error}.") from error
        if not np.isfinite(targets).all():
            raise ValueError("A label is NaN or infinite: repair or drop it.")
        return targets

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.mse_loss(outputs, targets)

    def score(self, outputs: np.ndarray, targets: np.ndarray) -> float:
        return float(r2_score(targets, outputs))

    def constant(self, targets: np.ndarray) -> np.ndarray:
        return targets.mean(0)


Task = Classification | Regression
TASKS = {"classification": Classification, "key": KeyDetection, "regression": Regression}


@dataclass
class TrainedProbe:
    """A probe at its best moment on the validation clips.

    Args:
        valid_score (`float`): the metric then.
        best_step, num_steps (`int`): updates until then, and in all.
    """

    settings: ProbeSettings
    scaler: StandardScaler
    model: nn.Module
    valid_score: float
    best_step: int
    num_steps: int

    def outputs(self, features: np.ndarray) -> np.ndarray:
        """Takes features `(clips, width)` to logits or numbers `(clips, num_outputs)`."""
        device = next(self.model.parameters()).device
        return _outputs(self.model, torch.from_numpy(self.scaler.transform(features)).to(device))


def train_probe(
    settings: ProbeSettings,
    task: Task,
    train: tuple[np.ndarray, np.ndarray],
    valid: tuple[np.ndarray, np.ndarray],
    *,
    eval_every: int = 8,
    patience: int = 256,
    max_steps: int | None = None,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> TrainedProbe:
    """Trains one probe until it has not become better on the validation clips for long.

    Args:
        train, valid: features `(clips, width)` in fp32, and targets as the task gives them.
        eval_every (`int`): updates from one look at the validation clips to the next.
        patience (`int`): looks without any gain before it stops.
        max_steps (`int`, *optional*): updates after which it stops anyway, which the paper does not.

    Raises:
        ValueError: the metric is NaN, as for features that are not finite.
    """
    scaler = StandardScaler(with_mean=settings.standardize, with_std=settings.standardize).fit(train[0])
    rows, targets = (torch.from_numpy(array).to(device) for array in (scaler.transform(train[0]), train[1]))
    valid_rows = torch.from_numpy(scaler.transform(valid[0])).to(device)
    draws, count = random.Random(seed), min(settings.batch_size, len(rows))
    best_state, best_score, best_step, bored = {}, -math.inf, 0, 0
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = make_model(rows.shape[1], task.num_outputs, settings).to(device)
        adam = torch.optim.Adam(
            model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay or 0.0
        )
        for step in itertools.count():
            if step % eval_every == 0:
                if bored >= patience or (max_steps is not None and step >= max_steps):
                    break
                score = task.score(_outputs(model, valid_rows), valid[1])
                if math.isnan(score):
                    raise ValueError(f"The {task.metric} of the validation clips is NaN after {step} steps.")
                bored = 0 if score > best_score else bored + 1
                if not bored:
                    best_state, best_score, best_step = copy.deepcopy(model.state_dict()), score, step
            model.train()
            batch = draws.sample(range(len(rows)), count)
            adam.zero_grad()
            task.loss(model(rows[batch]), targets[batch]).backward()
            adam.step()
    model.load_state_dict(best_state)
    return TrainedProbe(settings, scaler, model.eval(), best_score, best_step, step)


def best_probe(settings: Iterable[ProbeSettings], task: Task, train, valid, **kwargs) -> TrainedProbe:
    """Trains a probe for each of the settings and gives the best on the validation clips, the first of equals."""
    return max((train_probe(each, task, train, valid, **kwargs) for each in settings), key=lambda p: p.valid_score)


def make_model(num_features: int, num_outputs: int, settings: ProbeSettings) -> nn.Sequential:
    """Makes a linear model or one of a hidden layer, with dropout in front of each matrix, the input's too."""
    sizes = [num_features, *([settings.hidden_size] if settings.hidden_size else []), num_outputs]
    layers: list[nn.Module] = []
    for width, next_width in itertools.pairwise(sizes):
        layers += [nn.ReLU()] if layers else []
        layers += [nn.Dropout(settings.dropout), nn.Linear(width, next_width)]
    return nn.Sequential(*layers)


def interval(task: Task, outputs: np.ndarray, targets: np.ndarray, draws: int = 1000) -> tuple[float, float]:
    """Gives the 95 % interval of the metric under other draws of as many test clips (bootstrap)."""
    rng, count = np.random.default_rng(0), len(targets)
    drawn = (rng.integers(count, size=count) for _ in range(draws))
    low, high = np.percentile([task.score(outputs[rows], targets[rows]) for rows in drawn], (2.5, 97.5))
    return float(low), float(high)


@torch.no_grad()
def _outputs(model: nn.Module, rows: Tensor) -> np.ndarray:
    return model.eval()(rows).cpu().numpy()
