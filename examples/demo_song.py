"""A song from the Jukebox that comes with the package, and a sketch whose command is killed and goes on."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from safetensors.torch import load_file

import jukebox_hf

# One context of its top prior, of a song as long as most that it was trained on.
SECONDS, TOTAL_SECONDS = 10.24, 35
# The shortest that its upsamplers take.
SKETCH_SECONDS = 2.048


def song_command(artist: str, genre: str, seed: int) -> list[str]:
    """Gives the command line of a song, without its length and its folder."""
    labels = ["--artist", artist, "--genre", genre, "--total-seconds", str(TOTAL_SECONDS)]
    return ["generate", "--model", jukebox_hf.demo, *labels, "--seed", str(seed)]


def show_song(output: Path, run: Callable, command: list[str]) -> Path:
    """Draws all levels of a song, with picture and page, and gives its folder; `run` runs a command line here."""
    folder = output / "song"
    shutil.rmtree(folder, ignore_errors=True)
    run(*command, "--seconds", str(SECONDS), "--picture", "--page", "--output", str(folder))
    return folder


def show_resume(console: Console, output: Path, run: Callable, command: list[str]):
    """Draws the upper levels of a short song twice, once killed midway, and compares their codes."""
    whole, killed = output / "sketch-uninterrupted", output / "sketch"
    for folder in (whole, killed):
        shutil.rmtree(folder, ignore_errors=True)
    command = [*command, "--seconds", str(SKETCH_SECONDS), "--level", "1"]
    run(*command, "--output", str(whole))
    console.print("   The same, killed midway")
    kill_midway([*command, "--output", str(killed)])
    run("generate", "--resume", str(killed))
    sketches = [load_file(folder / "song-0.safetensors") for folder in (whole, killed)]
    if not all(torch.equal(sketches[0][name], sketches[1][name]) for name in sketches[0]):
        raise ValueError("The song that was killed and resumed is not the uninterrupted one.")
    number = sum(codes.numel() for codes in sketches[1].values())
    console.print(f"   Resumed, it has the same {number} codes as uninterrupted")


def kill_midway(command: list[str]):
    """Starts the command line in a process of its own, and kills it when it has begun to draw level 1."""
    program = f"import torch; torch.set_num_threads({torch.get_num_threads()}); from jukebox_hf.cli import main; main()"
    process = subprocess.Popen([sys.executable, "-c", program, *command], stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        if line.startswith("Level 1 "):
            process.kill()
    if process.wait() >= 0:
        raise ValueError(f"The command ended with {process.returncode} before it could be killed.")
