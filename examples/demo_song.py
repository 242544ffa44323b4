"""A song from a small random model: by the pipeline, by a command that is killed and goes on, and on its page."""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from safetensors.torch import load_file
from transformers import AutoModel, pipeline

from jukebox_hf import JukeboxFeatureExtractor, JukeboxModel, JukeboxProcessor, JukeboxTokenizer
from jukebox_hf.audio_files import write_audio
from jukebox_hf.conversion import convert_checkpoint

GOLDENS = Path(__file__).parents[1] / "tests/goldens"
PARTS = ("vqvae-three-level", "upsampler-level-0-style", "upsampler-level-1-style", "prior-1b-lyrics-style")
ARTISTS, GENRES = ["The Paper Lanterns", "Vela"], ["Folk", "Country"]
LYRICS = "Hey now, paper moon,\nshine on me"
LABELS = {"artist": "Vela", "genre": "Folk"}
SECONDS = 0.12
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def make_model(folder: Path):
    """Converts small checkpoints of the original, puts them together and gives them names of artists and genres."""
    with tempfile.TemporaryDirectory() as scratch:
        parts = [
            AutoModel.from_pretrained(
                convert_checkpoint(GOLDENS / part / "checkpoint.pth.tar", Path(scratch, part)), dtype=torch.float32
            )
            for part in PARTS
        ]
        # The checkpoint names the released model's layer, and is not as deep.
        parts[-1].config.alignment_layer = 15
        model = JukeboxModel.from_parts(parts[0], parts[1:])
        model.save_pretrained(folder)
    extractor, processors = JukeboxFeatureExtractor(), []
    for config in model.config.priors.values():
        version = "v3" if config.max_genres == 1 else "v2"
        sizes = {"max_genres": config.max_genres, "num_lyric_tokens": config.num_lyric_tokens}
        tokenizer = JukeboxTokenizer.from_labels(ARTISTS, GENRES, versions=[version], **sizes)
        processors.append(JukeboxProcessor(extractor, tokenizer))
    JukeboxProcessor.from_parts(processors).save_pretrained(folder)


def draw_by_pipeline(model_dir: Path, target: Path):
    """Draws a song by transformers' own pipeline and saves it."""
    pipe = pipeline("text-to-audio", model=str(model_dir))
    song = pipe(LYRICS, preprocess_params=LABELS, generate_kwargs={"seconds": SECONDS / 2})
    write_audio(target, [song["audio"]], song["sampling_rate"])


def kill_midway(command: list[str]):
    """Starts the command line in a process of its own, and kills it when it has begun to draw level 1."""
    program = f"import torch; torch.set_num_threads({torch.get_num_threads()}); from jukebox_hf.cli import main; main()"
    process = subprocess.Popen([sys.executable, "-c", program, *command], stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        if line.startswith("Level 1 "):
            process.kill()
    if process.wait() >= 0:
        raise ValueError(f"The command ended with {process.returncode} before it could be killed.")


def check_page(page: Path) -> str:
    """Loads the page in a headless browser when there is one, and tells what came of it."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        return "open it in a browser"
    with tempfile.TemporaryDirectory() as profile:
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}", "--dump-dom"]
        done = subprocess.run(
            [browser, *options, page.resolve().as_uri()], capture_output=True, text=True, timeout=60, check=True
        )
    if done.stdout.count("<span") != len(LYRICS):
        raise ValueError(f"{page} shows {done.stdout.count('<span')} characters and not the {len(LYRICS)} of the song.")
    return "loaded in a headless browser, which shows every character of the lyrics"


def show_song(console: Console, output: Path, run: Callable):
    """Makes the model and its songs in the output folder; `run` runs a command line here."""
    # So small a model is faster on one, and the bits of a song depend on their number.
    torch.set_num_threads(1)
    model_dir, killed, whole = output / "song-model", output / "song", output / "song-uninterrupted"
    for folder in (model_dir, killed, whole):
        shutil.rmtree(folder, ignore_errors=True)
    make_model(model_dir)
    console.print(f"   {model_dir}: a VQ-VAE, three priors, invented names")
    draw_by_pipeline(model_dir, output / "pipeline.wav")
    console.print(f'   pipeline("text-to-audio"): {output / "pipeline.wav"}')

    command = ["generate", "--model", str(model_dir), "--artist", "Vela", "--genre", "Folk", "--lyrics", LYRICS]
    command += ["--seconds", str(SECONDS), "--seed", "1", "--picture", "--page"]
    run(console, *command, "--output", str(whole))
    console.print("   The same, killed midway")
    kill_midway([*command, "--output", str(killed)])
    run(console, "generate", "--resume", str(killed))
    songs = [load_file(folder / "song-0.safetensors") for folder in (whole, killed)]
    if not all(torch.equal(songs[0][name], songs[1][name]) for name in songs[0]):
        raise ValueError("The song that was killed and resumed is not the uninterrupted one.")
    number = sum(codes.numel() for codes in songs[1].values())
    console.print(f"   Resumed, it has the same {number} codes as uninterrupted")
    page = killed / "song-0.html"
    console.print(f"   {page}: {check_page(page)}")
