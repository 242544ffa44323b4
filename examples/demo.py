"""The package at work, without a download: the original's codes and samples, recoded audio, songs, embeddings."""

import argparse
import json
import logging
import shlex
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
from demo_embeddings import show_embeddings
from demo_song import show_song
from rich.console import Console
from rich.markup import escape
from safetensors.torch import load_file
from transformers import AutoModel
from transformers.utils import logging as transformers_logging

from jukebox_hf.audio_files import write_audio
from jukebox_hf.cli import app
from jukebox_hf.conversion import convert_checkpoint

GOLDEN = Path(__file__).parents[1] / "tests/goldens/vqvae-5b-size"
PRIOR_GOLDEN = Path(__file__).parents[1] / "tests/goldens/prior-1b-lyrics-style"
SAMPLING_RATE = 44100
# A round in A minor: semitones above A3 and beats.
MELODY = [(0, 1), (3, 1), (7, 1), (12, 1), (10, 0.5), (8, 0.5), (7, 1), (3, 1), (2, 1), (0, 2)]


def synthesize_tune(seconds_per_beat: float = 0.4) -> np.ndarray:
    """A plucked melody over a drone: decaying harmonics, mono, about four seconds."""
    notes = []
    for semitones, beats in MELODY:
        time = np.arange(int(SAMPLING_RATE * beats * seconds_per_beat)) / SAMPLING_RATE
        frequency = 220 * 2 ** (semitones / 12)
        harmonics = sum(np.sin(2 * np.pi * k * frequency * time) * np.exp(-3 * k * time) / k for k in range(1, 7))
        notes.append(harmonics * np.minimum(1, time * 200))
    melody = np.concatenate(notes)
    drone = np.sin(2 * np.pi * 110 * np.arange(len(melody)) / SAMPLING_RATE)
    return (0.3 * melody + 0.1 * drone).astype(np.float32)


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


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--audio", type=Path, help="an audio file of yours; default: a tune made here")
    parser.add_argument("--output", type=Path, default=Path("demo_output"), help="folder for the results")
    parser.add_argument("--level", type=int, default=1, help="level for the way there and back, 0 the finest")
    arguments = parser.parse_args()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    console, output = Console(soft_wrap=True, highlight=False), arguments.output
    output.mkdir(parents=True, exist_ok=True)

    console.print("[bold]1. Convert a checkpoint of the original[/bold] (the released architecture, random weights)")
    model_dir = output / "model"
    shutil.rmtree(model_dir, ignore_errors=True)
    convert_checkpoint(GOLDEN / "checkpoint.pth.tar", model_dir)
    settings = json.loads((model_dir / "config.json").read_text())
    console.print(
        f"   {model_dir}: {settings['num_downsamples']} downsamplings, {settings['codebook_size']} codes a level"
    )

    console.print("[bold]2. Encode the clip recorded with it[/bold]")
    check_codes(console, model_dir)

    audio = arguments.audio
    if audio is None:
        audio = output / "tune.wav"
        write_audio(audio, [synthesize_tune()], SAMPLING_RATE)
    console.print(f"[bold]3. Send {audio} through the command line[/bold]")
    run(console, "encode", str(audio), "--output", str(output / "codes"), "--model", str(model_dir))
    reconstructed = ["--level", str(arguments.level), "--picture", "--output", str(output / "reconstructed")]
    run(console, "reconstruct", str(audio), *reconstructed, "--model", str(model_dir))

    console.print("[bold]4. Convert a prior and draw the original's samples[/bold] (1b_lyrics in small)")
    prior_dir = output / "prior"
    shutil.rmtree(prior_dir, ignore_errors=True)
    logging.getLogger("jukebox_hf").setLevel(logging.ERROR)  # that no vocabulary comes with it
    convert_checkpoint(PRIOR_GOLDEN / "checkpoint.pth.tar", prior_dir)
    check_samples(console, prior_dir)

    console.print("[bold]5. Draw a song[/bold] (1b_lyrics in small, at all levels)")
    show_song(console, output, run)

    console.print("[bold]6. Embed a folder of clips[/bold] (the same small prior)")
    show_embeddings(console, output, run)

    console.print("[bold]Results[/bold] (noise: the weights are random; with the released ones it is music)")
    stem = f"{audio.name}.level-{arguments.level}"
    results = [f"codes/{audio.name}.safetensors", f"reconstructed/{stem}.wav", f"reconstructed/{stem}.png"]
    results += ["pipeline.wav", "song/song-0.wav", "song/song-0.html", "embeddings/map-layer-12.png"]
    for result in results:
        console.print(f"   {output / result}")


def run(console: Console, *command: str):
    console.print(f"   [dim]$ jukebox-hf {escape(shlex.join(command))}[/dim]")
    app(list(command), standalone_mode=False)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"Error: {error}")
