"""`jukebox-hf embed`."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from ..conversion.convert import DTYPES
from ..embedding_plan import EmbeddingPlan, make_plan
from ..embedding_recipes import CHOICES, PRESETS
from ..embeddings import JukeboxEmbedder
from ..pictures import require_matplotlib
from .codes import Device
from .embed_inputs import Clips, FileClips, clip_seconds, dataset_clips, file_clips
from .embed_run import describe_embedder, identity, run_embedding


def embed(
    inputs: Annotated[
        list[Path] | None,
        typer.Argument(help="Audio files, folders that are searched for them, .txt files with a path a line."),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="A whole model or a top prior: a repository or a folder.")
    ] = None,
    vqvae: Annotated[str | None, typer.Option(help="The VQ-VAE's repository or folder, beside a prior alone.")] = None,
    preset: Annotated[str | None, typer.Option(help=f"A recipe of the literature: {', '.join(PRESETS)}.")] = None,
    layer: Annotated[
        list[int] | None, typer.Option("--layer", "-l", help="A layer, counted from 1; repeat for several.")
    ] = None,
    window_seconds: Annotated[float | None, typer.Option(help="Length of a window. Default: one context.")] = None,
    stride_seconds: Annotated[
        float | None, typer.Option(help="From one window's start to the next one's. Default: no overlap.")
    ] = None,
    tail: Annotated[str | None, typer.Option(help=f"A clip's rest: {', '.join(CHOICES['tail'])}.")] = None,
    join: Annotated[str | None, typer.Option(help=f"A clip's windows: {', '.join(CHOICES['join'])}.")] = None,
    pooling: Annotated[str | None, typer.Option(help=f"A window's frames: {', '.join(CHOICES['pooling'])}.")] = None,
    frame_rate: Annotated[float | None, typer.Option(help="Frames a second, for resample and average.")] = None,
    dataset: Annotated[
        str | None, typer.Option(help="Instead of files: a dataset on the Hub, a folder of files or of save_to_disk.")
    ] = None,
    config_name: Annotated[str | None, typer.Option(help="The dataset's configuration.")] = None,
    split: Annotated[str, typer.Option(help="The dataset's split.")] = "train",
    audio_column: Annotated[str, typer.Option(help="The dataset's column of audio, or of paths.")] = "audio",
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder for the results.")] = Path("embeddings"),
    dtype: Annotated[str, typer.Option(help=f"Of the prior's matrices: {', '.join(DTYPES)}.")] = "float32",
    column_dtype: Annotated[str, typer.Option(help="Of the vectors: float32 or float16.")] = "float32",
    batch_size: Annotated[int, typer.Option(help="Windows that go through the prior together.")] = 4,
    shard_size: Annotated[int, typer.Option(help="The most clips of a file of results.")] = 256,
    pictures: Annotated[bool, typer.Option("--pictures", help="Also draw how alike clips are, as PNG.")] = False,
    device: Device = None,
):
    """Embed music with the first layers of a top prior.

    OUTPUT/data gets Parquet files with a row for each clip, layer and window: path, layer, window_start, vector. Each
    is there only when whole: stopped at any moment, the same command goes on with those that are missing. A clip that
    fails costs only itself and is listed in OUTPUT/failures.csv.

    Several devices share the work under torchrun or accelerate launch, and write the same dataset as one. There clips
    that failed leave the exit status 0, as launchers take another one for a crash.

    \b
    Examples:
      jukebox-hf embed music/ --model jukebox-5b --preset jukemir --output embeddings
      jukebox-hf embed clips.txt -m jukebox-1b-lyrics -l 24 -l 36 --join windows --column-dtype float16
      jukebox-hf embed --dataset org/tracks --split test -m jukebox-5b -l 36 --dtype float16 --pictures
      torchrun --nproc_per_node 8 --no-python jukebox-hf embed music/ -m jukebox-5b --preset jukemir
    """
    if pictures:
        require_matplotlib()
    if dtype not in DTYPES:
        raise ValueError(f"--dtype {dtype}: choose {', '.join(DTYPES)}.")
    if shard_size < 1:
        raise ValueError(f"--shard-size {shard_size}: give a positive number of clips.")
    if model is None:
        raise ValueError("There is no --model: name a whole Jukebox model or a top prior, a repository or a folder.")
    if dataset is not None and inputs:
        raise ValueError(f"There are --dataset {dataset} and the input {inputs[0]}: give one of them.")
    recipe = {
        "layers": layer or None,
        "window_seconds": window_seconds,
        "stride_seconds": stride_seconds,
        "tail": tail,
        "join": join,
        "pooling": pooling,
        "frame_rate": frame_rate,
    }
    changes = {name: value for name, value in recipe.items() if value is not None}
    if pooling in ("mean", "frames"):
        # They have no rate, whatever that of the preset is.
        changes["frame_rate"] = frame_rate
    source = {"name": dataset, "config": config_name, "split": split, "column": audio_column}

    def find_clips() -> Clips:
        return file_clips(inputs or []) if dataset is None else dataset_clips(dataset, config_name, split, audio_column)

    def plan() -> tuple[JukeboxEmbedder, EmbeddingPlan]:
        clips = find_clips()
        kwargs = {"vqvae": vqvae, "dtype": dtype, "column_dtype": column_dtype, "batch_size": batch_size, **changes}
        embedder = describe_embedder(output, model, preset, kwargs)
        settings = {
            "prior": identity(embedder.prior),
            "vqvae": identity(embedder.vqvae),
            "recipe": asdict(embedder.recipe),
            "dtype": dtype,
            "column_dtype": column_dtype,
            "dataset": None if dataset is None else source,
        }
        models = {"prior": embedder.prior.name, "vqvae": embedder.vqvae.name}
        return embedder, make_plan(output, settings, models, clips.paths, lambda: clip_seconds(clips), shard_size)

    def clips_of(plan: EmbeddingPlan) -> Clips:
        # Files that have come since the plan was made are none of it.
        return FileClips([clip.path for clip in plan.clips]) if dataset is None else find_clips()

    run_embedding(output, plan, clips_of, device, pictures)
