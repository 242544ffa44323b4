"""The package at work, without a download: the original's numbers, and music from the Jukebox that comes with it."""

import argparse
import logging
import shlex
import shutil
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from demo_embeddings import LAYER, show_embeddings
from demo_song import show_resume, show_song, song_command
from rich.console import Console
from rich.markup import escape
from safetensors.torch import load_file
from transformers import AutoModel
from transformers.utils import logging as transformers_logging

import jukebox_hf
from jukebox_hf.cli import app
from jukebox_hf.conversion import convert_checkpoint

GOLDEN = Path(__file__).parents[1] / "tests/goldens/vqvae-5b-size"
PRIOR_GOLDEN = Path(__file__).parents[1] / "tests/goldens/prior-1b-lyrics-style"


def check_codes(console: Console, model_dir: Path):
    """Encodes the clip that was recorded with the checkpoint and compares with the codes the original gave."""
    golden = load_file(GOLDEN / "tensors.safetensors")
    model = AutoModel.from_pretrained(model_dir)
    codes = model.encode(golden["even.audio"].transpose(1, 2)).audio_codes
    for level, ours in enumerate(codes):
        margins = golden[f"even.margins.{level}"]
        other = ours != golden[f"even.codes.{level}"]
        if (other & (margins >= 1e-6)).any():
            raise ValueError(f"Level {level}: {other.sum()} codes are not the original's; this build computes wrongly.")
        ties = f", {other.sum()} of them ties in fp32" if other.any() else ""
        console.print(f"   level {level}: {other.numel()} codes, the original's{ties}")


def check_samples(console: Console, model_dir: Path):
    """Draws what the original drew from the same seed, labels and lyrics, and takes hidden states of the result."""
    golden = load_file(PRIOR_GOLDEN / "tensors.safetensors")
    prior = AutoModel.from_pretrained(model_dir, dtype=torch.float32)
    total_length, offset, _, artist_ids, genre_ids, *lyrics = golden["labels.y"].T
    conditions = {"total_length": total_length, "offset": offset, "artist_ids": artist_ids, "genre_ids": genre_ids}
    conditions["lyric_ids"] = torch.stack(lyrics, dim=1)
    torch.manual_seed(1234)
    codes = prior.generate(do_sample=True, temperature=0.99, top_k=0, **conditions)
    if not torch.equal(codes, golden["sample.seeded_plain"]):
        raise ValueError("The drawn codes are not the original's; this build computes wrongly.")
    console.print(f"   {codes.numel()} codes drawn for {len(codes)} songs, the original's")
    layer = prior.config.num_hidden_layers // 2
    states = prior(codes, **conditions, output_hidden_states=[layer]).hidden_states[layer]
    console.print(f"   hidden states of layer {layer}: {tuple(states.shape)} (songs, lyrics and codes, width)")


def show_numbers(console: Console, output: Path):
    """Converts two small checkpoints of the original, of random weights, and computes what it computed with them."""
    folders = output / "vqvae", output / "prior"
    for folder, golden in zip(folders, (GOLDEN, PRIOR_GOLDEN)):
        shutil.rmtree(folder, ignore_errors=True)
        convert_checkpoint(golden / "checkpoint.pth.tar", folder)
    check_codes(console, folders[0])
    check_samples(console, folders[1])


def show_reconstructions(audio: Path, output: Path, run: Callable):
    """Encodes a file, and sends it through each level's codes and back."""
    model = ["--model", jukebox_hf.demo]
    run("encode", str(audio), *model, "--output", str(output / "codes"))
    for level in (2, 1, 0):
        way = ["--level", str(level), "--picture", "--output", str(output / "reconstructed")]
        run("reconstruct", str(audio), *model, *way)


def run_command(console: Console, *command: str):
    console.print(f"   [dim]$ jukebox-hf {escape(shlex.join(command))}[/dim]")
    app(list(command), standalone_mode=False)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--artist", default="church organ", help="piano, church organ, nylon guitar or string ensemble")
    parser.add_argument("--genre", default="g major", help="a key, such as 'f# minor' or 'bb major'")
    parser.add_argument("--seed", type=int, default=1, help="another one makes another song")
    parser.add_argument("--audio", type=Path, help="an audio file to reconstruct; default: the song")
    parser.add_argument("--output", type=Path, default=Path("demo_output"), help="folder for the results")
    arguments = parser.parse_args()
    start, output = time.monotonic(), arguments.output
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("jukebox_hf").setLevel(logging.ERROR)  # that no vocabulary comes with the original's prior
    # So small models are faster on one, and the bits of a song depend on their number.
    torch.set_num_threads(1)
    console = Console(soft_wrap=True, highlight=False)
    run = partial(run_command, console)
    output.mkdir(parents=True, exist_ok=True)

    console.print("[bold]1. The original's numbers[/bold] (small models of random weights, converted)")
    show_numbers(console, output)
    console.print("[bold]2. A song[/bold] from the Jukebox that comes with the package")
    command = song_command(arguments.artist, arguments.genre, arguments.seed)
    song = show_song(output, run, command)
    console.print("[bold]3. A sketch that is killed and goes on[/bold]")
    show_resume(console, output, run, command)
    audio = arguments.audio or song / "song-0.wav"
    console.print("[bold]4. Codes, and back[/bold]")
    show_reconstructions(audio, output, run)
    console.print("[bold]5. Embeddings[/bold]")
    show_embeddings(console, output, run, arguments.seed)

    console.print(f"[bold]Results[/bold] after {time.monotonic() - start:.0f} s; open the page in a browser")
    results = ["song/song-0.html", "song/song-0.wav", "song/song-0.png", f"codes/{audio.name}.safetensors"]
    results += [f"reconstructed/{audio.name}.level-{level}.wav" for level in (2, 1, 0)]
    results += ["clips", f"embeddings/map-layer-{LAYER}.png"]
    for result in results:
        console.print(f"   {output / result}")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"Error: {error}")
