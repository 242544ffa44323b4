"""Draws the songs of `jukebox-hf generate`, `continue` and `upsample`, and writes what becomes of them."""

import secrets
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.markup import escape
from safetensors import SafetensorError
from transformers import AutoModel, AutoProcessor
from transformers.utils import logging

from ..alignment_jukebox import LyricAlignment
from ..audio_files import read_audio_blocks, write_audio
from ..configuration_jukebox import JukeboxConfig
from ..conversion.convert import DTYPES
from ..modeling_jukebox import JukeboxModel
from ..pictures import require_matplotlib, save_spectrograms
from ..processing_jukebox import JukeboxProcessor
from ..song_page import save_alignment_picture, sung_characters, write_song_page
from .song_folder import Song, kept_song, read_song, read_source, resume_command, same_song, write_codes
from .song_progress import SongProgress

# Seeds that are made up are short enough to type.
MAX_SEED, MAX_NEW_SEED = 2**63, 10**6


def draw_song(song: Song, folder: Path):
    """Draws songs to a folder, or goes on with them there; Ctrl-C says how to go on.

    Raises:
        ValueError: whatever does not fit, before anything is drawn.
        OSError: files that cannot be read or written; what is drawn stands.
    """
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    try:
        _draw(song, folder, console)
    except KeyboardInterrupt:
        is_begun = read_song(folder) is not None
        way = f"{folder} keeps what is done. Go on with: {resume_command(folder)}" if is_begun else "Nothing was drawn."
        console.print(escape(f"Stopped. {way}"))
        raise typer.Exit(130) from None


def _draw(song: Song, folder: Path, console: Console):
    song = same_song(song, folder)
    if song.seed is None:
        song = replace(song, seed=secrets.randbelow(MAX_NEW_SEED))
    if song.picture:
        require_matplotlib()
    console.print(escape(f"Loading {song.model}"))
    model, device = _load(song)
    conditions, lyrics = _conditions(model, song)
    beginning = _beginning(model, song)
    placement = {"device": device if song.low_memory else None}
    what = "1 song" if song.count == 1 else f"{song.count} songs"
    console.print(escape(f"Drawing {what} to {folder} with --seed {song.seed}"))
    with SongProgress(console, folder, song.count) as progress, kept_song(folder, song, lambda: progress.has_begun):
        try:
            output = model.generate(
                **conditions,
                **beginning,
                **_settings(song),
                **placement,
                seconds=song.seconds,
                generator=[torch.Generator(device).manual_seed(song.seed + number) for number in range(song.count)],
                batch_size=song.batch_size,
                extend_short=song.extend_short,
                state_dir=folder,
                callback=progress,
            )
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise ValueError(f"The memory is too small: try --batch-size 1 or --low-memory. ({error})") from error
    codes = dict(enumerate(beginning["audio_codes"])) if song.is_upsampling else {}
    codes |= {level: values for level, values in enumerate(output.audio_codes) if values is not None}
    codes = {level: values for level, values in sorted(codes.items()) if values is not None}
    songs = [{level: values[number : number + 1] for level, values in codes.items()} for number in range(song.count)]
    files = [
        _write_results(song, folder, number, output.audio[number, 0], own_codes, model.config)
        for number, own_codes in enumerate(songs)
    ]
    # Only now, lest a failure cost the results; and one song at a time, as weights of long ones are large.
    can_align = lyrics and (song.picture or song.page) and _can_align(model, codes)
    if can_align:
        console.print("Looking for when the lyrics are sung")
    for number, own_codes in enumerate(songs):
        alignment = _align(model, conditions, own_codes, placement) if can_align else None
        shown = _write_pages(song, folder, number, files[number], model.config.sampling_rate, lyrics, alignment)
        Console(soft_wrap=True, highlight=False).print(escape("  ".join(map(str, [*files[number], *shown]))))


def _load(song: Song) -> tuple[JukeboxModel, torch.device]:
    """Loads the model, to the device unless that will hold one level at a time."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        model = AutoModel.from_pretrained(song.model, **({"dtype": DTYPES[song.dtype]} if song.dtype else {}))
    except SafetensorError as error:
        raise ValueError(f"The weights in {song.model} cannot be read: {error}. Fetch them again.") from error
    if not isinstance(model, JukeboxModel):
        raise ValueError(f"{song.model} holds a {type(model).__name__}: give a whole model, VQ-VAE and priors.")
    device = song.device
    if device is None:
        device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    try:
        device = torch.empty(0, device=device).device
        return (model if song.low_memory else model.to(device)), device
    except torch.OutOfMemoryError as error:
        raise ValueError(
            f"The model does not fit on {device}: try --low-memory, or --dtype float16. ({error})"
        ) from error
    # PyTorch asserts that a build has CUDA.
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {device} cannot be used: {error}") from error


def _conditions(model: JukeboxModel, song: Song) -> tuple[dict[str, Any], str]:
    """Gives the labels and lyrics as `generate` takes them, and the lyrics as the model reads them."""
    priors = model.config.priors.values()
    has_labels = any(prior.num_artists for prior in priors)
    reads_lyrics = any(prior.num_lyric_tokens for prior in priors)
    for name in ("artist", "genre", "total_seconds", "offset_seconds"):
        if getattr(song, name) and not has_labels:
            option = f"--{name.replace('_', '-')} {getattr(song, name)}"
            raise ValueError(f"{option}: {song.model} was trained without labels; leave it out.")
    if song.lyrics and not reads_lyrics:
        raise ValueError(f"--lyrics: {song.model} reads no lyrics; leave them out, or take a model that does.")
    if not has_labels and not reads_lyrics:
        return {}, ""
    processor = _processor(song)
    if processor is None:
        rate = model.config.sampling_rate
        times = {"total_length": song.total_seconds, "offset": song.offset_seconds}
        inputs = {name: torch.tensor([round(seconds * rate)]) for name, seconds in times.items() if seconds is not None}
        return inputs | ({"lyric_ids": torch.tensor([[-1]])} if reads_lyrics else {}), ""
    inputs = processor(
        song.lyrics if reads_lyrics else None,
        artist=song.artist,
        genre=song.genre,
        total_seconds=song.total_seconds,
        offset_seconds=song.offset_seconds,
    )
    ids = inputs["lyric_ids"][0] if reads_lyrics else torch.zeros(0, dtype=torch.long)
    return dict(inputs), processor.tokenizer.decode(ids[ids >= 0])


def _processor(song: Song) -> JukeboxProcessor | None:
    """Gives the model's processor, or None for a repository without names, whose songs are of unknown artists."""
    try:
        return AutoProcessor.from_pretrained(song.model)
    except (ValueError, OSError) as error:
        if song.artist or song.genre or song.lyrics:
            raise ValueError(
                f"{song.model} has no names of artists and genres ({error}): convert it with --vocabulary, or leave "
                "--artist, --genre and --lyrics out."
            ) from error
        return None


def _beginning(model: JukeboxModel, song: Song) -> dict[str, Any]:
    """Gives the levels to draw and what they start with, as `generate` takes it."""
    config = model.config.vqvae_config
    top = config.num_levels - 1
    (level,) = config.check_levels([song.level])
    if song.source is None:
        beginning = {"levels": list(range(level, top + 1))}
        if song.prompt is not None:
            beginning["input_values"] = _read_prompt(song, config.sampling_rate)
        return beginning
    codes, _ = read_source(Path(song.source))
    lowest, *_ = config.check_levels(sorted(codes))
    audio_codes = [codes.get(level) for level in range(config.num_levels)]
    if not song.is_upsampling:
        if set(codes) != set(range(lowest, top + 1)):
            raise ValueError(f"{song.source} has the levels {sorted(codes)}: to continue, give all up to {top}.")
        return {"levels": list(range(level, top + 1)), "audio_codes": audio_codes}
    if level >= lowest:
        way = f"ask for --level {lowest - 1} or lower" if lowest else "give codes of upper levels alone"
        raise ValueError(f"--level {level}: {song.source} has codes of level {lowest} already; {way}.")
    return {"levels": list(range(level, lowest)), "audio_codes": audio_codes}


def _read_prompt(song: Song, rate: int) -> torch.Tensor:
    blocks, wanted = [], np.inf if song.prompt_seconds is None else round(song.prompt_seconds * rate)
    for block in read_audio_blocks(song.prompt, rate):
        blocks.append(block)
        if sum(map(len, blocks)) >= wanted:
            break
    samples = np.concatenate(blocks)
    return torch.from_numpy(samples)[None, None, : None if song.prompt_seconds is None else wanted]


def _settings(song: Song) -> dict[str, Any]:
    settings = {"temperature": song.temperature, "top_k": song.top_k, "top_p": song.top_p}
    if song.temperature is not None and len(song.temperature) == 1:
        settings["temperature"] = song.temperature[0]
    # Continued songs are rows already.
    settings["num_return_sequences"] = song.count if song.source is None else 1
    return {name: value for name, value in settings.items() if value is not None} | {"do_sample": True}


def _can_align(model: JukeboxModel, codes: dict[int, torch.Tensor]) -> bool:
    top = model.config.vqvae_config.num_levels - 1
    prior = model.config.priors.get(top)
    if prior is None or top not in codes or prior.alignment_head is None or prior.alignment_layer is None:
        return False
    reads = prior.layer_patterns[prior.alignment_layer : prior.alignment_layer + 1] in tuple("xPD")
    return reads and prior.alignment_head < prior.num_attention_heads


def _align(
    model: JukeboxModel, conditions: dict[str, Any], codes: dict[int, torch.Tensor], placement: dict[str, Any]
) -> LyricAlignment:
    """Aligns lyrics and song by the top prior, also where this run drew lower levels only."""
    top = max(codes)
    audio_codes = [None] * top + [codes[top]]
    settings = {"levels": [top], "max_length": codes[top].shape[1], "return_alignment": True}
    return model.generate(**conditions, **placement, **settings, audio_codes=audio_codes).alignment[0]


def _write_results(
    song: Song, folder: Path, number: int, audio: torch.Tensor, codes: dict[int, torch.Tensor], config: JukeboxConfig
) -> list[Path]:
    """Writes the audio and the codes of one song and gives their files."""
    rate = config.sampling_rate
    track, tokens = (folder / f"song-{number}.{suffix}" for suffix in (song.format, "safetensors"))
    write_audio(track, [audio.float().cpu().numpy()], rate)
    metadata = {"sampling_rate": str(rate), "samples": str(len(audio)), "model": song.model}
    write_codes(tokens, codes, metadata, torch.int16 if config.vqvae_config.codebook_size <= 2**15 else torch.int32)
    return [track, tokens]


def _write_pages(
    song: Song,
    folder: Path,
    number: int,
    results: list[Path],
    rate: int,
    lyrics: str,
    alignment: LyricAlignment | None,
) -> list[Path]:
    """Writes the pictures and the page that were asked for of one song and gives their files."""
    track, sung = results[0], alignment and (alignment.weights.numpy(), alignment.seconds_per_code, lyrics)
    pictures = {}
    if song.picture:
        pictures["Spectrogram"] = folder / f"song-{number}.png"
        save_spectrograms(pictures["Spectrogram"], {track.name: track}, rate)
        if sung:
            pictures["When the lyrics are sung"] = folder / f"song-{number}-lyrics.png"
            save_alignment_picture(pictures["When the lyrics are sung"], *sung)
    if not song.page:
        return [*pictures.values()]
    # A folder's whole path is nobody else's concern.
    model = Path(song.model).name if Path(song.model).is_dir() else song.model
    facts = {"Artist": song.artist, "Genre": song.genre, "Seed": str(song.seed + number), "Model": model}
    facts = {name: value for name, value in facts.items() if value}
    page = folder / f"song-{number}.html"
    write_song_page(page, track, f"Song {number}", facts, lyrics, sung and sung_characters(*sung), pictures, results)
    return [*pictures.values(), page]
