"""Draws the clips of the documentation from the shipped model: one for each instrument, each with its spectrogram."""

import argparse
import tempfile
from pathlib import Path

import soundfile
import torch
from PIL import Image
from transformers import AutoModel, AutoProcessor

import jukebox_hf
from jukebox_hf.audio_files import write_audio
from jukebox_hf.pictures import save_spectrograms

SONGS = [("church organ", "g major"), ("piano", "d minor"), ("string ensemble", "a minor"), ("nylon guitar", "c major")]
SECONDS = 10.24
SONG_SECONDS = 40.0


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path, help="folder for the clips and their pictures")
    parser.add_argument("--model", default=jukebox_hf.demo, help="default: the shipped one")
    parser.add_argument("--seed", type=int, default=0, help="of the first clip; the others follow (default: 0)")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    model = AutoModel.from_pretrained(arguments.model)
    processor = AutoProcessor.from_pretrained(arguments.model)
    artists, genres = zip(*SONGS)
    inputs = processor(artist=artists, genre=genres, total_seconds=SONG_SECONDS)
    generators = [torch.Generator().manual_seed(arguments.seed + index) for index in range(len(SONGS))]
    audio = model.generate(**inputs, seconds=SECONDS, generator=generators).audio[:, 0]
    rate = model.config.sampling_rate
    with tempfile.TemporaryDirectory() as folder:
        files = {}
        for (artist, genre), samples in zip(SONGS, audio.numpy()):
            name = artist.replace(" ", "_")
            soundfile.write(arguments.output / f"{name}.ogg", samples, rate, format="OGG", subtype="VORBIS")
            files[f"{artist}, {genre}"] = Path(folder, f"{name}.wav")
            write_audio(files[f"{artist}, {genre}"], [samples], rate)
        picture = Path(folder, "spectrograms.png")
        save_spectrograms(picture, files, rate)
        # Noise does not compress, and a repository should stay small.
        Image.open(picture).convert("RGB").save(arguments.output / "spectrograms.jpg", quality=80)


if __name__ == "__main__":
    main()
