"""`jukebox-hf generate`, `continue` and `upsample`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from ..conversion.convert import DTYPES
from .codes import Device
from .song_drawing import MAX_SEED, draw_song
from .song_folder import Song, read_song, read_source

Model = Annotated[
    str | None, typer.Option("--model", "-m", help="A whole Jukebox model: a repository on the Hub or a folder.")
]
Artist = Annotated[str | None, typer.Option(help="A name; unknown ones are reported, with the nearest known.")]
Genre = Annotated[str | None, typer.Option(help="A name; v2 models know several words, such as 'pop rock'.")]
Lyrics = Annotated[str | None, typer.Option(metavar="TEXT", help="The whole song's lyrics, for a lyrics model.")]
LyricsFile = Annotated[Path | None, typer.Option(metavar="FILE", help="The lyrics in a UTF-8 text file.")]
TotalSeconds = Annotated[
    float | None, typer.Option(help="Length of the whole song, of which a part is drawn. Default: to that part's end.")
]
OffsetSeconds = Annotated[float | None, typer.Option(help="Where that part starts in the whole song. Default: 0.")]
Seed = Annotated[int | None, typer.Option(help="Song n is drawn from SEED + n, alone or not. Default: a new one.")]
Temperature = Annotated[
    list[float] | None,
    typer.Option(help="Below 1 is safer; give it once, or for each level from 0 up. Default: the model's, 0.99."),
]
TopK = Annotated[int | None, typer.Option(help="Draw among so many likeliest codes. Default: all.")]
TopP = Annotated[float | None, typer.Option(help="Draw among the likeliest codes of this probability. Default: 1.")]
BatchSize = Annotated[
    int | None, typer.Option(help="Songs to draw at a time. Default: as many as the free memory holds.")
]
ExtendShort = Annotated[
    bool, typer.Option("--extend-short", help="Lengthen a song that is too short for an upsampler.")
]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="The song's folder. Default: song.")]
Format = Annotated[str | None, typer.Option("--format", "-f", help="Of the results: wav or flac. Default: wav.")]
Picture = Annotated[bool, typer.Option("--picture", help="Also draw spectrograms, and when lyrics are sung, as PNG.")]
Page = Annotated[bool, typer.Option("--page", help="Also write HTML pages that play the songs and follow the lyrics.")]
LowMemory = Annotated[
    bool, typer.Option("--low-memory", help="Keep the model on the CPU, and on the device one level at a time.")
]
DType = Annotated[str | None, typer.Option(help=f"{', '.join(DTYPES)}. Default: as in the model's files.")]
Source = Annotated[Path, typer.Argument(help="A finished song folder, or one file of codes.")]
OUTPUT = Path("song")


def generate(
    model: Model = None,
    artist: Artist = None,
    genre: Genre = None,
    lyrics: Lyrics = None,
    lyrics_file: LyricsFile = None,
    seconds: Annotated[
        float | None, typer.Option(help="Seconds to draw, with the prompt. Default: one context of the top prior.")
    ] = None,
    total_seconds: TotalSeconds = None,
    offset_seconds: OffsetSeconds = None,
    prompt: Annotated[Path | None, typer.Option(help="Audio of any rate and channel count to start with.")] = None,
    prompt_seconds: Annotated[float | None, typer.Option(help="Use only so much of the prompt's beginning.")] = None,
    seed: Seed = None,
    count: Annotated[int | None, typer.Option(help="How many songs. Default: 1.")] = None,
    level: Annotated[
        int | None, typer.Option("--level", "-l", help="The lowest level to draw, 0 the finest. Default: 0.")
    ] = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    batch_size: BatchSize = None,
    extend_short: ExtendShort = False,
    output: Output = None,
    format: Format = None,
    picture: Picture = False,
    page: Page = False,
    device: Device = None,
    low_memory: LowMemory = False,
    dtype: DType = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Go on as FOLDER's song.json says; no other option.")
    ] = None,
):
    """Draw songs, level by level from the top down.

    The output folder gets song-N.wav, its codes song-N.safetensors, which decode reads, and what keeps the run: each
    level's audio song-N-level-L.wav, to be heard while it grows, song.json and song.safetensors. Stopped at any moment,
    by Ctrl-C or a power cut, the same command or --resume goes on from the last window to the same bits.

    \b
    Examples:
      jukebox-hf generate --model jukebox-1b-lyrics --artist Adele --genre pop --lyrics-file hello.txt --seconds 40
      jukebox-hf generate -m jukebox-5b --seconds 30 --prompt intro.mp3 --prompt-seconds 10 --count 3 --level 2
      jukebox-hf generate --resume song
    """
    given = _given(locals())
    if resume is None:
        draw_song(_song(given), output or OUTPUT)
        return
    if len(given) > 1:
        others = ", ".join(f"--{name.replace('_', '-')}" for name in given if name != "resume")
        raise ValueError(f"--resume takes the song as {resume} has it: leave out {others}.")
    song = read_song(resume)
    if song is None:
        raise ValueError(f"{resume} holds no song.json: give the output folder of a song that was begun.")
    draw_song(song, resume)


def continue_song(
    source: Source,
    seconds: Annotated[float, typer.Option(help="Seconds of the result, with what there is already.")],
    model: Model = None,
    artist: Artist = None,
    genre: Genre = None,
    lyrics: Lyrics = None,
    lyrics_file: LyricsFile = None,
    total_seconds: TotalSeconds = None,
    offset_seconds: OffsetSeconds = None,
    seed: Seed = None,
    level: Annotated[
        int | None, typer.Option("--level", "-l", help="The lowest level to draw. Default: the source's lowest.")
    ] = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    batch_size: BatchSize = None,
    output: Output = None,
    format: Format = None,
    picture: Picture = False,
    page: Page = False,
    device: Device = None,
    low_memory: LowMemory = False,
    dtype: DType = None,
):
    """Go on with songs from their codes, at all levels.

    Model, labels, lyrics and settings are the song folder's, unless given anew; files of encode need --model. Files,
    stopping and resuming are as in generate.

    \b
    Examples:
      jukebox-hf continue song --seconds 60 --output longer
      jukebox-hf continue song/song-2.safetensors --seconds 60 --lyrics-file verses.txt --output longer
    """
    given = _given(locals())
    codes, inherited = read_source(source)
    given |= {"level": min(codes) if level is None else level, "count": len(codes[min(codes)])}
    draw_song(_song(given, inherited), output or OUTPUT)


def upsample(
    source: Source,
    model: Model = None,
    artist: Artist = None,
    genre: Genre = None,
    seed: Seed = None,
    level: Annotated[
        int | None, typer.Option("--level", "-l", help="The lowest level to draw, 0 the finest. Default: 0.")
    ] = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    batch_size: BatchSize = None,
    output: Output = None,
    format: Format = None,
    picture: Picture = False,
    page: Page = False,
    device: Device = None,
    low_memory: LowMemory = False,
    dtype: DType = None,
):
    """Draw the lower levels of songs whose upper ones exist.

    Model, labels and settings are the song folder's, unless given anew; files of encode need --model. Files, stopping
    and resuming are as in generate.

    \b
    Examples:
      jukebox-hf upsample song --output finer
      jukebox-hf upsample codes/tune.ogg.safetensors --model jukebox-5b --artist Adele --level 1 --output finer
    """
    given = _given(locals())
    codes, inherited = read_source(source)
    given |= {"is_upsampling": True, "count": len(codes[min(codes)])}
    draw_song(_song(given, inherited), output or OUTPUT)


def _given(arguments: dict[str, Any]) -> dict[str, Any]:
    """Picks what the user gave."""
    return {name: value for name, value in arguments.items() if value is not None and value is not False}


def _song(given: dict[str, Any], inherited: dict[str, Any] | None = None) -> Song:
    """Makes the song of what was given and inherited, with texts read and paths that hold wherever it is resumed.

    Raises:
        ValueError: no model, lyrics twice or unreadable, or values that no song has.
    """
    given = {name: value for name, value in given.items() if name != "output"}
    if (file := given.pop("lyrics_file", None)) is not None:
        if "lyrics" in given:
            raise ValueError("There are --lyrics and a --lyrics-file: give one of them.")
        try:
            given["lyrics"] = file.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{file} is no UTF-8 text: {error}") from error
    given = (inherited or {}) | given
    if "model" not in given:
        raise ValueError("There is no --model: name a whole Jukebox model, a repository on the Hub or a folder.")
    for name in ("model", "prompt", "source"):
        if name in given:
            path = Path(given[name])
            given[name] = str(path.resolve() if path.exists() else path)
    song = Song(**given)
    for name, choices in (("format", ("wav", "flac")), ("dtype", (None, *DTYPES))):
        if getattr(song, name) not in choices:
            raise ValueError(f"--{name} {getattr(song, name)}: choose {' or '.join(filter(None, choices))}.")
    if song.count < 1:
        raise ValueError(f"--count {song.count}: draw 1 song or more.")
    if song.seed is not None and not 0 <= song.seed < MAX_SEED:
        raise ValueError(f"--seed {song.seed}: give a number from 0 to below {MAX_SEED}.")
    if song.prompt_seconds is not None and (song.prompt is None or not song.prompt_seconds > 0):
        raise ValueError(f"--prompt-seconds {song.prompt_seconds}: give a positive length of a --prompt.")
    return song
