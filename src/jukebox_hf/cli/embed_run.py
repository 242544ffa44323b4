"""Fills a folder with the embeddings of clips, alone or together with other processes."""

import logging as python_logging
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import typer
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from rich.console import Console
from rich.markup import escape
from safetensors import SafetensorError
from transformers.utils import logging

from ..embedding_pictures import save_embedding_pictures
from ..embedding_plan import EmbeddingPlan, known_lengths, read_plan
from ..embedding_shards import FAILURES_FILE, open_shard, remove_partials, write_failures
from ..embeddings import JukeboxEmbedder
from ..pinned_model import PinnedModel
from ..read_ahead import ReadAhead
from .embed_inputs import Clips, read_clip
from .embed_progress import EmbedProgress

# Full batches of windows that the embedder gets at once: more would waste less padding, and hold more audio.
BATCHES_TOGETHER = 2
# The first process may have to look at a million files before the others hear of the plan.
PLANNING_TIME = timedelta(days=1)


def describe_embedder(output: Path, model: str, preset: str | None, kwargs: dict[str, Any]) -> JukeboxEmbedder:
    """Describes the embedder that a folder was begun with, of the same commits, or a new one, without loading it.

    Raises:
        ValueError: whatever `JukeboxEmbedder.from_pretrained` refuses.
    """
    plan = read_plan(output)
    kept = {} if plan is None else {name: plan.settings.get(name, {}) for name in ("prior", "vqvae")}
    commits = {pin["repository"]: pin["commit"] for pin in kept.values() if "repository" in pin}
    kwargs |= {"revision": commits.get(model)}
    if preset is None:
        embedder = JukeboxEmbedder.from_pretrained(model, **kwargs)
    else:
        embedder = JukeboxEmbedder.from_preset(preset, model, **kwargs)
    if embedder.vqvae.name in commits:
        embedder.vqvae = PinnedModel(embedder.vqvae.name, commits[embedder.vqvae.name])
    return embedder


def identity(pin: PinnedModel) -> dict[str, str]:
    """Tells which weights are meant; a folder may move."""
    return {"digest": pin.digest} if pin.digest else {"repository": pin.name, "commit": pin.commit}


def run_embedding(
    output: Path,
    make_plan: Callable[[], tuple[JukeboxEmbedder, EmbeddingPlan]],
    find_clips: Callable[[EmbeddingPlan], Clips],
    device: str | None,
    pictures: bool,
):
    """Embeds the clips that a folder lacks, or this process's share of them; Ctrl-C says how to go on.

    Args:
        make_plan: for the first process.
        find_clips: for each process.

    Raises:
        ValueError: whatever does not fit, before anything is embedded; and, to a process alone, clips that failed, once
            all are done.
        OSError: files that cannot be read or written; what is done stands.
    """
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    try:
        _run(output, make_plan, find_clips, device, pictures, console)
    except KeyboardInterrupt:
        if int(os.environ.get("RANK", 0)) == 0:
            plan = read_plan(output)
            way = "Nothing was embedded."
            if plan is not None:
                way = f"{output} keeps {len(plan.done(output))} of {plan.num_shards} files. The same command goes on."
            console.print(escape(f"Stopped. {way}"))
        raise typer.Exit(130) from None


def _run(
    output: Path,
    make_plan: Callable[[], tuple[JukeboxEmbedder, EmbeddingPlan]],
    find_clips: Callable[[EmbeddingPlan], Clips],
    device: str | None,
    pictures: bool,
    console: Console,
):
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    state = _join_processes(device)
    if not state.is_main_process:
        console.quiet = True
        python_logging.getLogger("jukebox_hf").setLevel(python_logging.ERROR)
    embedder, plan, shares = _decide(state, output, make_plan)
    shards = shares[state.process_index]
    if [] in shares and any(shares):
        console.print(
            f"{sum(map(len, shares))} files are left for {len(shares)} processes, so some have nothing to do: next "
            "time choose a smaller --shard-size."
        )
    speed = ""
    if shards:
        embedder.device = device or str(state.device)
        speed = _embed_shards(embedder, plan, shards, find_clips(plan), output, console)
    done, failures = write_failures(output, plan)
    is_complete = len(done) == plan.num_shards
    counts = f"{output}: {len(plan.clips)} clips, {len(done)} of {plan.num_shards} files"
    if not is_complete:
        # Only other processes can lack some.
        console.print(escape(f"{counts} are there, the other processes go on{speed}"))
        return
    # Here the last process is, whichever it was.
    remove_partials(output)
    drawn = save_embedding_pictures(output, plan) if pictures else []
    Console(soft_wrap=True, highlight=False).print(escape("  ".join([f"{counts}{speed}", *map(str, drawn)])))
    if failures:
        message = (
            f"{len(failures)} of {len(plan.clips)} clips failed, as {output / FAILURES_FILE} says; the others are done."
        )
        if state.num_processes == 1:
            raise ValueError(message)
        # A launcher would take a status for a crash, and end or restart the other processes.
        Console(stderr=True, soft_wrap=True, highlight=False).print(f"[bold red]Error:[/bold red] {escape(message)}")


def _join_processes(device: str | None) -> PartialState:
    """Meets the other processes of a launcher, if there is one."""
    is_cpu = device == "cpu" or not torch.accelerator.is_available()
    state = PartialState(cpu=is_cpu, timeout=PLANNING_TIME)
    expected = int(os.environ.get("WORLD_SIZE", 1))
    if state.num_processes != expected:
        raise ValueError(
            f"WORLD_SIZE={expected}, but this process finds {state.num_processes}: start it by torchrun, or unset "
            "WORLD_SIZE."
        )
    return state


def _decide(
    state: PartialState, output: Path, make_plan: Callable[[], tuple[JukeboxEmbedder, EmbeddingPlan]]
) -> tuple[JukeboxEmbedder, EmbeddingPlan, list[list[int]]]:
    """Tells each process what the first one planned, and which of the missing shards each computes.

    Afterwards the processes are on their own, so that the end of one is not that of the others.
    """
    decided, refusal = None, None
    if state.is_main_process:
        try:
            embedder, plan = make_plan()
            missing = sorted(set(range(plan.num_shards)) - set(plan.done(output)))
            decided = embedder, plan, plan.assign(missing, state.num_processes)
        except Exception as error:
            # The others wait for an answer.
            refusal = error
    if state.num_processes > 1:
        (decided,) = broadcast_object_list([decided])
        state.wait_for_everyone()
        state.destroy_process_group()
    if refusal is not None:
        raise refusal
    if decided is None:
        # The first process says why.
        raise typer.Exit(1)
    return decided


def _embed_shards(
    embedder: JukeboxEmbedder, plan: EmbeddingPlan, shards: list[int], clips: Clips, output: Path, console: Console
) -> str:
    """Writes shards one after another and tells how fast it was."""
    if clips.paths != [clip.path for clip in plan.clips]:
        raise ValueError(f"The dataset has other rows than {output} was begun with, or than the first process sees.")
    console.print(escape(f"Loading {embedder.prior.name}"))
    rate = _load(embedder)
    numbers_of = plan.shards()
    numbers = [number for shard in shards for number in numbers_of[shard]]
    seconds = known_lengths([clip.seconds for clip in plan.clips])
    count = 2 * BATCHES_TOGETHER * embedder.batch_size
    ahead = ReadAhead(numbers, lambda number: read_clip(clips, number, rate), seconds, count)
    total = sum(seconds[number] for number in numbers)
    with EmbedProgress(console, len(numbers), total) as progress, closing(iter(ahead)) as stream:
        for shard in shards:
            path = plan.path(output, shard)
            with open_shard(path, embedder.recipe, embedder.column_dtype) as file:
                # Never clips of two shards: what is computed together would else depend on what is missing.
                for chunk in _chunks(islice(stream, len(numbers_of[shard])), embedder):
                    for number, result in _embed(embedder, chunk):
                        name = plan.clips[number].path
                        if (reason := file.add(name, result)) is not None:
                            progress.fail(name, str(reason))
                    planned = sum(seconds[number] for number, _ in chunk)
                    audio = sum(len(clip) for _, clip in chunk if not isinstance(clip, ValueError)) / rate
                    progress.advance(len(chunk), planned, audio)
    return f"; {progress.speed()}, the model waited for audio {ahead.waited / progress.elapsed:.1%} of the time"


def _load(embedder: JukeboxEmbedder) -> int:
    """Loads the models and gives their sampling rate."""
    try:
        _, prior = embedder.load()
    except SafetensorError as error:
        raise ValueError(f"The weights cannot be read: {error}. Convert or fetch them again.") from error
    except torch.OutOfMemoryError as error:
        raise ValueError(f"The model does not fit on {embedder.device}: try --dtype float16. ({error})") from error
    # PyTorch asserts that a build has CUDA.
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {embedder.device} cannot be used: {error}") from error
    return prior.config.sampling_rate


Read = tuple[int, np.ndarray | ValueError]


def _chunks(clips: Iterable[Read], embedder: JukeboxEmbedder) -> Iterator[list[Read]]:
    """Gathers clips until their windows fill some batches."""
    recipe, config = embedder.recipe, embedder.load()[1].config
    chunk, num_windows = [], 0
    for number, clip in clips:
        chunk.append((number, clip))
        if not isinstance(clip, ValueError):
            try:
                planned = len(recipe.plan(len(clip), config))
            except ValueError:
                # Too short, as the embedder will say.
                planned = 0
            num_windows += min(planned, recipe.max_windows or planned)
        if num_windows >= BATCHES_TOGETHER * embedder.batch_size:
            yield chunk
            chunk, num_windows = [], 0
    if chunk:
        yield chunk


def _embed(embedder: JukeboxEmbedder, chunk: list[Read]) -> list[tuple[int, Any]]:
    """Gives each clip's embedding or the reason why it has none."""
    good = [(number, clip) for number, clip in chunk if not isinstance(clip, ValueError)]
    try:
        embeddings = embedder.embed([clip for _, clip in good])
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise ValueError(f"The memory is too small: try --batch-size 1 or --dtype float16. ({error})") from error
    results = dict(chunk) | {number: result for (number, _), result in zip(good, embeddings)}
    return list(results.items())
