"""Renders Bach's four-part chorales from music21's corpus to audio: the music that the shipped model is trained on.

Each chorale is played a few times, each time by another instrument, at another tempo, in another key. Chorales whose
melodies begin alike stay together, so none of those that are held out has a sibling in training. Needs music21, mido,
and the programs and the sound font of Debian's packages fluidsynth and fluid-soundfont-gm. The scores stay where they
are: nothing of them is written but the sound.
"""

import argparse
import csv
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import mido
import numpy as np
import soundfile
from music21 import corpus, key, stream
from music21.corpus.chorales import Iterator
from rich.console import Console
from rich.progress import track

# General MIDI programs, counted from 0.
INSTRUMENTS = {"piano": 0, "church organ": 19, "nylon guitar": 24, "string ensemble": 48}
SOUND_FONT = Path("/usr/share/sounds/sf2/FluidR3_GM.sf2")
TICKS_PER_BEAT = 480
# Intervals of the melody that tell two chorales apart.
MELODY_START = 10
HELD_OUT = 0.1
TONICS = ("c", "c#", "d", "eb", "e", "f", "f#", "g", "ab", "a", "bb", "b")


@dataclass
class Chorale:
    """A chorale: its key, and its notes as (beat, beats, MIDI pitch), voice by voice."""

    name: str
    tonic: int
    mode: str
    voices: list[list[tuple[float, float, int]]]

    @property
    def melody_start(self) -> tuple[int, ...]:
        pitches = [pitch for _, _, pitch in self.voices[0]]
        return tuple(np.diff(pitches)[:MELODY_START].tolist())

    @property
    def beats(self) -> float:
        return max(start + beats for voice in self.voices for start, beats, _ in voice)


@dataclass
class Performance:
    """One way of playing a chorale."""

    chorale: Chorale
    instrument: str
    semitones: int
    beats_per_minute: int

    @property
    def name(self) -> str:
        return f"{self.chorale.name}_{self.instrument.replace(' ', '_')}"

    @property
    def key(self) -> str:
        return f"{TONICS[(self.chorale.tonic + self.semitones) % 12]} {self.chorale.mode}"


def read_chorale(name: str) -> Chorale | None:
    """Reads one chorale of the corpus; None for one that has not four voices of single notes."""
    score = corpus.parse(name)
    if len(score.parts) != 4:
        return None
    voices = [_notes(part) for part in score.parts]
    if not all(voices):
        return None
    found: key.Key = score.analyze("key")
    return Chorale(Path(name).name, found.tonic.pitchClass, found.mode, voices)


def _notes(part: stream.Part) -> list[tuple[float, float, int]]:
    notes = part.stripTies().flatten().notes
    return [(float(note.offset), float(note.quarterLength), note.pitch.midi) for note in notes if note.isNote]


def plan_performances(chorales: list[Chorale], performances: int, rng: np.random.Generator) -> list[Performance]:
    """Gives each chorale different instruments, and for each of them a tempo and a transposition."""
    plan = []
    for chorale in chorales:
        for instrument in rng.permutation(list(INSTRUMENTS))[:performances]:
            plan.append(Performance(chorale, str(instrument), int(rng.integers(-3, 4)), int(rng.integers(72, 101))))
    return plan


def split_chorales(chorales: list[Chorale], rng: np.random.Generator) -> dict[str, list[Chorale]]:
    """Holds out a tenth of the chorales, with all those whose melodies begin alike."""
    families: dict[tuple[int, ...], list[Chorale]] = {}
    for chorale in chorales:
        families.setdefault(chorale.melody_start, []).append(chorale)
    test: list[Chorale] = []
    train: list[Chorale] = []
    ordered = list(families.values())
    for family in (ordered[index] for index in rng.permutation(len(ordered))):
        (test if len(test) < HELD_OUT * len(chorales) else train).extend(family)
    return {"train": train, "test": test}


def write_midi(performance: Performance, path: Path, rng: np.random.Generator):
    """Writes what a synthesiser plays; each note a little louder or softer than the last."""
    file = mido.MidiFile(ticks_per_beat=TICKS_PER_BEAT)
    for channel, voice in enumerate(performance.chorale.voices):
        track = mido.MidiTrack()
        if channel == 0:
            track.append(mido.MetaMessage("set_tempo", tempo=mido.bpm2tempo(performance.beats_per_minute)))
        track.append(mido.Message("program_change", channel=channel, program=INSTRUMENTS[performance.instrument]))
        events = []
        for start, beats, pitch in voice:
            sounding = {"channel": channel, "note": pitch + performance.semitones}
            velocity = int(rng.integers(76, 92))
            events.append((start + 0.97 * beats, mido.Message("note_off", **sounding)))
            events.append((start, mido.Message("note_on", velocity=velocity, **sounding)))
        now = 0
        for beat, message in sorted(events, key=lambda event: event[0]):
            ticks = round(beat * TICKS_PER_BEAT)
            track.append(message.copy(time=ticks - now))
            now = ticks
        file.tracks.append(track)
    file.save(path)


def synthesize(midi: Path, sampling_rate: int) -> np.ndarray:
    """Plays a MIDI file without reverberation and chorus; mono `(samples,)`."""
    sound = midi.with_suffix(".wav")
    command = ["fluidsynth", "-ni", "-q", "-g", "1.0", "-R", "0", "-C", "0", "-r", str(sampling_rate)]
    command += ["-T", "wav", "-O", "s16", "-F", str(sound), str(SOUND_FONT), str(midi)]
    subprocess.run(command, check=True, capture_output=True)
    samples, _ = soundfile.read(sound, dtype="float32")
    sound.unlink()
    return samples.mean(axis=1)


def render(performance: Performance, seed: int, folder: Path, sampling_rate: int) -> dict[str, object]:
    """Renders one performance to FLAC and returns its row of the metadata file."""
    midi = folder / f"{performance.name}.mid"
    write_midi(performance, midi, np.random.default_rng(seed))
    samples = synthesize(midi, sampling_rate)
    midi.unlink()
    # The synthesiser lets the last note ring; a second of it is enough.
    end = int((performance.chorale.beats * 60 / performance.beats_per_minute + 1) * sampling_rate)
    soundfile.write(folder / f"{performance.name}.flac", samples[:end], sampling_rate, subtype="PCM_16")
    return {
        "file_name": f"{performance.name}.flac",
        "artist": performance.instrument,
        "genre": performance.key,
        "chorale": performance.chorale.name,
        "beats_per_minute": performance.beats_per_minute,
        "semitones": performance.semitones,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path, help="folder for the folders train and test, each with its metadata.csv")
    parser.add_argument("--performances", type=int, default=2, help="instruments for each chorale (default: 2)")
    parser.add_argument("--sampling-rate", type=int, default=16000, help="in Hz (default: 16000)")
    parser.add_argument("--chorales", type=int, help="take only so many, for a trial")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    console = Console()
    if not SOUND_FONT.exists() or shutil.which("fluidsynth") is None:
        raise SystemExit("apt install fluidsynth fluid-soundfont-gm: the program or its sound font is not there.")
    if not 1 <= arguments.performances <= len(INSTRUMENTS):
        raise SystemExit(f"--performances {arguments.performances}: there are 1 to {len(INSTRUMENTS)} instruments.")
    names = [str(name) for name in Iterator(returnType="filename")][: arguments.chorales]
    read = [read_chorale(name) for name in track(names, "Reading scores", console=console)]
    chorales = list({chorale.name: chorale for chorale in read if chorale is not None}.values())
    rng = np.random.default_rng(arguments.seed)
    for split, members in split_chorales(chorales, rng).items():
        folder = arguments.output / split
        folder.mkdir(parents=True, exist_ok=True)
        plan = plan_performances(members, arguments.performances, rng)
        seeds = rng.integers(2**32, size=len(plan))
        with ThreadPoolExecutor() as threads:
            jobs = threads.map(partial(render, folder=folder, sampling_rate=arguments.sampling_rate), plan, seeds)
            rows = list(track(jobs, f"Rendering {split}", total=len(plan), console=console))
        with (folder / "metadata.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
        console.print(f"{split}: {len(members)} chorales, {len(rows)} performances")


if __name__ == "__main__":
    main()
