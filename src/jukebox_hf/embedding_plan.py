"""A plan of a dataset of embeddings: which clip is in which file, whoever computes it."""

import heapq
import json
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .run_settings import flat_settings, package_versions
from .whole_files import whole_file

logger = logging.getLogger(__name__)

PLAN_FILE = "embeddings.json"
# As on the Hub, where a dataset in this folder needs no configuration.
SHARD_FOLDER = "data"


@dataclass(frozen=True)
class PlannedClip:
    """A clip by its name, its length as far as it is known, and the shard that it belongs to."""

    path: str
    seconds: float | None
    shard: int


@dataclass(frozen=True)
class EmbeddingPlan:
    """What a folder of embeddings is to hold; it never depends on how many processes fill it.

    Args:
        settings: everything that the vectors and their places depend on, as JSON has it.
        models: their names, which may change as long as their contents do not.
        versions: of the packages that began it.
        clips: in the order of the input.
    """

    settings: dict[str, Any]
    models: dict[str, str]
    versions: dict[str, str]
    clips: list[PlannedClip]

    @property
    def num_shards(self) -> int:
        return 1 + max(clip.shard for clip in self.clips)

    def shards(self) -> list[list[int]]:
        """Gives for each shard its clips by their numbers."""
        shards: list[list[int]] = [[] for _ in range(self.num_shards)]
        for number, clip in enumerate(self.clips):
            shards[clip.shard].append(number)
        return shards

    def path(self, folder: Path, shard: int) -> Path:
        """Where a shard is."""
        return folder / SHARD_FOLDER / f"train-{shard:05}-of-{self.num_shards:05}.parquet"

    def done(self, folder: Path) -> list[int]:
        """Gives the shards that are there."""
        present = set(os.listdir(folder / SHARD_FOLDER)) if (folder / SHARD_FOLDER).is_dir() else set()
        return [shard for shard in range(self.num_shards) if self.path(folder, shard).name in present]

    def assign(self, shards: Sequence[int], count: int) -> list[list[int]]:
        """Divides shards among `count` processes, so that each gets about as much audio."""
        weights = known_lengths([clip.seconds for clip in self.clips])
        totals = [0.0] * self.num_shards
        for clip, weight in zip(self.clips, weights):
            totals[clip.shard] += weight
        places = balance([totals[shard] for shard in shards], count)
        return [[shard for shard, place in zip(shards, places) if place == number] for number in range(count)]


def make_plan(
    folder: Path,
    settings: dict[str, Any],
    models: dict[str, str],
    paths: Sequence[str],
    lengths: Callable[[], Sequence[float | None]],
    shard_size: int,
) -> EmbeddingPlan:
    """Reads the plan of a folder, or writes it, if there is none.

    Args:
        paths: the clips' names, each once.
        lengths: tells their lengths in seconds, None where that is unknown; asked for a new plan only.
        shard_size: the most clips of a shard.

    Raises:
        ValueError: the folder's plan is of other settings or clips, or it has shards without a plan.
    """
    settings = json.loads(json.dumps(settings | {"shard_size": shard_size}))
    plan = read_plan(folder)
    if plan is not None:
        _refuse_other(folder, plan, settings, paths)
        if plan.versions != package_versions():
            logger.warning(
                "%s was begun with %s and goes on with %s; vectors may differ in their last bits.",
                folder, plan.versions, package_versions(),
            )  # fmt: skip
        return plan
    if any((folder / SHARD_FOLDER).glob("*.parquet")):
        raise ValueError(f"{folder} holds shards, but no {PLAN_FILE} that says of what: choose another folder.")
    seconds = lengths()
    shards = balance(known_lengths(seconds), -(-len(paths) // shard_size), shard_size)
    clips = [PlannedClip(*of_clip) for of_clip in zip(paths, seconds, shards)]
    plan = EmbeddingPlan(settings, models, package_versions(), clips)
    (folder / SHARD_FOLDER).mkdir(parents=True, exist_ok=True)
    with whole_file(folder / PLAN_FILE) as file:
        file.write(json.dumps(asdict(plan), indent=1).encode())
    return plan


def read_plan(folder: Path) -> EmbeddingPlan | None:
    """Reads a folder's plan, if it has one.

    Raises:
        ValueError: a file that is no plan.
    """
    path = folder / PLAN_FILE
    if not path.exists():
        return None
    try:
        plan = json.loads(path.read_bytes())
        return EmbeddingPlan(**plan | {"clips": [PlannedClip(**clip) for clip in plan["clips"]]})
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} is no plan of embeddings ({error}): choose another folder.") from error


def balance(weights: Sequence[float], count: int, capacity: int | None = None) -> list[int]:
    """Puts weights into bins, the heaviest first, each into the lightest bin that has room; gives each one's bin."""
    bins = [(0.0, 0, number) for number in range(count)]
    places = [0] * len(weights)
    for index in sorted(range(len(weights)), key=lambda index: (-weights[index], index)):
        total, used, number = heapq.heappop(bins)
        places[index] = number
        if used + 1 != capacity:
            heapq.heappush(bins, (total + weights[index], used + 1, number))
    return places


def known_lengths(lengths: Sequence[float | None]) -> list[float]:
    """Takes unknown lengths to be the mean of the others."""
    known = [length for length in lengths if length is not None]
    mean = sum(known) / len(known) if known else 1.0
    return [mean if length is None else length for length in lengths]


def _refuse_other(folder: Path, plan: EmbeddingPlan, settings: dict[str, Any], paths: Sequence[str]):
    old, new = flat_settings(plan.settings), flat_settings(settings)
    for name in {**old, **new}:
        if old.get(name) != new.get(name):
            raise ValueError(
                f"{folder} holds embeddings with {name}={old.get(name)!r}, not {new.get(name)!r}: give the same "
                "settings, or choose another folder."
            )
    before, now = [clip.path for clip in plan.clips], list(paths)
    if before == now:
        return
    known, given = set(before), set(now)
    if added := [path for path in now if path not in known]:
        what = f"'{added[0]}' is not among them"
    elif removed := [path for path in before if path not in given]:
        what = f"'{removed[0]}' is missing now"
    else:
        what = "they came in another order"
    raise ValueError(
        f"{folder} holds embeddings of {len(before)} clips, not of these {len(now)}: {what}. Give the same inputs, or "
        "choose another folder."
    )
