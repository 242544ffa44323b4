"""`jukebox-hf generate`, `continue` and `upsample`: what they draw, that they go on after any end, what they refuse."""

import io
import os
import random
import shlex
import signal
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from song_models import song_model, song_processor
from transformers import AutoModel

from jukebox_hf import JukeboxFeatureExtractor, JukeboxModel, cli
from jukebox_hf.audio_files import read_audio_blocks
from jukebox_hf.cli import song_drawing, song_progress
from jukebox_hf.cli.song_folder import read_codes, read_song
from jukebox_hf.generation_jukebox import MISSING, JukeboxProgress
from jukebox_hf.song_state import read_settings

RATE = 44100
# 20 codes of level 2, 80 of level 1 and 320 of level 0: 1, 2 and 9 windows.
SECONDS, FRAMES = 0.06, 20
LABELS = {"artist": "Vela", "genre": "Folk"}
LYRICS = "Hey now, (go)!\nLa la"


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Bits depend on the number of threads, and a test's subprocess shall compute the same."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def repositories(converted, tmp_path_factory):
    """Folders of a model with lyrics, one with labels only and one without."""
    root = tmp_path_factory.mktemp("repositories")
    for name, case in (("lyrics", "song-1b-lyrics-style"), ("labels", "song-5b-style")):
        model = song_model(case, converted)
        # The released layer 63 is not in a model of 48.
        model.config.priors[2].alignment_layer = 15 if name == "lyrics" else None
        model.save_pretrained(root / name)
        song_processor(model).save_pretrained(root / name)
    parts = [AutoModel.from_pretrained(converted(case)) for case in ("vqvae-three-level", "prior-unlabelled-style")]
    JukeboxModel.from_parts(parts[0], parts[1:]).save_pretrained(root / "unlabelled")
    JukeboxFeatureExtractor().save_pretrained(root / "unlabelled")
    return root


@pytest.fixture(scope="module")
def model(repositories):
    return AutoModel.from_pretrained(repositories / "lyrics")


@pytest.fixture(scope="module")
def inputs(model):
    return dict(song_processor(model)(LYRICS, **LABELS))


@pytest.fixture
def run(monkeypatch):
    """Runs the command line here and gives its exit status."""

    def run(*command) -> int:
        monkeypatch.setattr(sys, "argv", ["jukebox-hf", *map(str, command)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
            raise SystemExit(0)
        return stop.value.code or 0

    return run


@pytest.fixture(scope="module")
def command(repositories):
    """A short song's, without its output folder."""
    labels = ("--artist", "Vela", "--genre", "Folk", "--lyrics", LYRICS)
    return ("generate", "-m", repositories / "lyrics", *labels, "--seconds", SECONDS, "--seed", 5)


@pytest.fixture
def whole(whole_folder, run, command):
    """The folder of that song's uninterrupted run."""
    if not whole_folder.exists():
        assert run(*command, "-o", whole_folder) == 0
    return whole_folder


@pytest.fixture(scope="module")
def whole_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("whole") / "song"


def seeded(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def assert_holds(file, expected: tuple[torch.Tensor | None, ...], row: int = 0):
    codes = load_file(file)
    assert sorted(codes) == [f"codes.{level}" for level, values in enumerate(expected) if values is not None]
    for name, values in codes.items():
        assert values.dtype == torch.int16
        assert torch.equal(values.long(), expected[int(name[-1])][row : row + 1]), name


def results(folder) -> tuple[dict[int, list[int]], bytes]:
    """What a song is: its codes and its audio."""
    codes = read_codes(folder / "song-0.safetensors")
    return {level: values.tolist() for level, values in codes.items()}, (folder / "song-0.wav").read_bytes()


def test_songs_are_those_of_generate_each_as_alone(run, command, tmp_path, model, inputs, converted):
    folder = tmp_path / "out"
    assert run(*command, "--count", 2, "--picture", "--page", "-o", folder) == 0
    suffixes = (".wav", ".safetensors", ".png", "-lyrics.png", ".html", *(f"-level-{level}.wav" for level in range(3)))
    names = {f"song-{number}{suffix}" for number in range(2) for suffix in suffixes}
    assert set(os.listdir(folder)) == names | {"song.json", "song.safetensors"}

    alone = model.generate(seconds=SECONDS, **inputs, generator=seeded(6), return_alignment=True)
    assert_holds(folder / "song-1.safetensors", alone.audio_codes)
    audio, rate = soundfile.read(folder / "song-1.wav", dtype="float32")
    assert rate == RATE
    np.testing.assert_allclose(audio, alone.audio[0, 0].clamp(-1, 1).numpy(), atol=1 / 2**15)
    page = (folder / "song-1.html").read_text()
    assert all(text in page for text in ("song-1.wav", "Hey now, (go)!", "Vela", "<dd>6</dd>", "song-1-lyrics.png"))
    assert '"steps":[]' not in page

    assert run("decode", folder / "song-1.safetensors", "-m", converted("vqvae-three-level"), "-o", tmp_path) == 0
    # Decoded in other blocks, a sample may be rounded to its neighbour.
    decoded, _ = soundfile.read(tmp_path / "song-1.wav", dtype="int16")
    np.testing.assert_allclose(decoded, np.rint(audio * 2**15), atol=1)


def test_one_level_at_a_time_and_settings_a_level(run, command, tmp_path, model, inputs, monkeypatch):
    devices, generate = [], JukeboxModel.generate

    def watched(self, **options):
        devices.append(options["device"])
        return generate(self, **options)

    monkeypatch.setattr(JukeboxModel, "generate", watched)
    settings = ["--top-k", 4, *(part for value in (0.9, 0.95, 1.0) for part in ("--temperature", value))]
    assert run(*command, *settings, "-l", 1, "--low-memory", "--device", "cpu", "-f", "flac", "-o", tmp_path) == 0
    assert devices == [torch.device("cpu")]
    monkeypatch.undo()
    settings = {"temperature": [0.9, 0.95, 1.0], "top_k": 4, "levels": [1, 2]}
    expected = model.generate(seconds=SECONDS, **inputs, **settings, generator=seeded(5))
    assert_holds(tmp_path / "song-0.safetensors", expected.audio_codes)
    assert soundfile.info(tmp_path / "song-0.flac").frames == FRAMES * 128


def test_a_short_song_is_extended_and_drawn_one_at_a_time(run, command, tmp_path):
    options = ("--seconds", 0.01, "--extend-short", "--count", 2, "--batch-size", 1, "--level", 1, "-o", tmp_path)
    assert run(*command, *options) == 0
    assert [codes.shape[1] for codes in read_codes(tmp_path / "song-1.safetensors").values()] == [64, 16]
    assert read_settings(tmp_path)["batch_sizes"] == {"1": 1, "2": 1}


# The command line, which sends itself a signal when it reports its progress for the n-th time.
STOPPED = """
import os, sys
from jukebox_hf.cli import main, song_progress

number, signal = int(sys.argv.pop(1)), int(sys.argv.pop(1))
report, calls = song_progress.SongProgress.__call__, []

def report_and_stop(self, progress):
    report(self, progress)
    calls.append(progress)
    if len(calls) == number:
        os.kill(os.getpid(), signal)

song_progress.SongProgress.__call__ = report_and_stop
main()
"""
# What it reports: each code and each window of the levels 2, 1 and 0.
REPORTS = {2: 20 + 1, 1: 80 + 2, 0: 320 + 9}


def run_until(number: int, stop: signal.Signals, command) -> subprocess.CompletedProcess:
    code = [sys.executable, "-c", STOPPED, *map(str, (number, int(stop), *command))]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(code, capture_output=True, text=True, env=environment)


def test_a_killed_run_goes_on_to_the_same_bits(run, command, whole, tmp_path):
    folder = tmp_path / "killed"
    number = random.randint(1, sum(REPORTS.values()) - 1)
    print(f"killed at report {number}")
    killed = run_until(number, signal.SIGKILL, (*command, "-o", folder))
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (folder / "song-0.wav").exists()
    assert run("generate", "--resume", folder) == 0
    assert results(folder) == results(whole)


def test_ctrl_c_says_how_to_go_on(run, command, whole, tmp_path, capsys):
    folder = tmp_path / "it's stopped"
    # Anywhere below level 2.
    number = random.randint(REPORTS[2] + 1, sum(REPORTS.values()) - 1)
    print(f"stopped at report {number}")
    stopped = run_until(number, signal.SIGINT, (*command, "-o", folder))
    assert stopped.returncode == 130, stopped.stderr
    assert "Traceback" not in stopped.stderr
    way = stopped.stderr.strip().splitlines()[-1].partition("Go on with: ")[2]
    done = read_codes(folder / "song.safetensors")
    assert (done[2] != MISSING).all()
    program, *arguments = shlex.split(way)
    assert program == "jukebox-hf"
    assert run(*arguments) == 0
    assert results(folder) == results(whole)
    assert "level 2, window" not in capsys.readouterr().err


def test_ctrl_c_before_anything_is_drawn(run, command, tmp_path, monkeypatch, capsys):
    def interrupt(song):
        raise KeyboardInterrupt

    monkeypatch.setattr(song_drawing, "_load", interrupt)
    assert run(*command, "-o", tmp_path / "out") == 130
    assert capsys.readouterr().err.splitlines()[-1] == "Stopped. Nothing was drawn."


def test_a_made_up_seed_is_kept(run, command, tmp_path, capsys):
    command = (*command[:-2], "--level", 2, "-o", tmp_path)
    assert run(*command) == 0
    seed = capsys.readouterr().err.partition("--seed ")[2].split()[0]
    first = results(tmp_path)
    assert run(*command) == 0
    assert results(tmp_path) == first
    assert f"--seed {seed}" in capsys.readouterr().err
    assert run(*command, "--seed", int(seed) + 1) == 1
    assert f"holds a song with seed={seed}, not {int(seed) + 1}" in capsys.readouterr().err


def test_the_same_song_again_can_get_a_page(run, command, whole):
    before = results(whole)
    assert run(*command, "--page", "-o", whole) == 0
    assert results(whole) == before
    assert (whole / "song-0.html").exists()


def test_continue_goes_on_at_all_levels(run, whole, tmp_path, model, inputs):
    assert run("continue", whole, "--seconds", 0.08, "--seed", 3, "-o", tmp_path) == 0
    beginning = list(read_codes(whole / "song-0.safetensors").values())
    expected = model.generate(seconds=0.08, **inputs, audio_codes=beginning, generator=seeded(3))
    assert_holds(tmp_path / "song-0.safetensors", expected.audio_codes)
    assert all(torch.equal(new[:, : old.shape[1]], old) for old, new in zip(beginning, expected.audio_codes))


def test_continue_of_one_file_with_other_lyrics(run, whole, tmp_path, model):
    file, other = whole / "song-0.safetensors", tmp_path / "other.txt"
    other.write_text("Oh no")
    options = ("--level", 2, "--lyrics-file", other, "--seed", 3, "-o", tmp_path)
    assert run("continue", file, "--seconds", 0.08, *options) == 0
    assert read_song(tmp_path).lyrics == "Oh no"
    beginning = [None, None, read_codes(file)[2]]
    inputs = song_processor(model)("Oh no", **LABELS)
    expected = model.generate(seconds=0.08, **inputs, audio_codes=beginning, generator=seeded(3), levels=[2])
    assert_holds(tmp_path / "song-0.safetensors", expected.audio_codes)


def test_upsampling_a_song_folder(run, command, tmp_path, model, inputs):
    assert run(*command, "--level", 2, "--count", 2, "-o", tmp_path / "upper") == 0
    assert run("upsample", tmp_path / "upper", "-l", 1, "--seed", 8, "--page", "-o", tmp_path / "finer") == 0
    upper = torch.cat([read_codes(tmp_path / "upper" / f"song-{number}.safetensors")[2] for number in range(2)])
    audio_codes = [None, None, upper]
    expected = model.generate(**inputs, audio_codes=audio_codes, levels=[1], generator=seeded(8, 9))
    for number in range(2):
        assert_holds(tmp_path / "finer" / f"song-{number}.safetensors", (None, *expected.audio_codes[1:]), number)
    assert '"steps":[]' not in (tmp_path / "finer" / "song-1.html").read_text()


def test_upsampling_what_encode_wrote(run, repositories, converted, tmp_path):
    soundfile.write(tmp_path / "tune.wav", 0.3 * np.sin(np.arange(2200) / 20), RATE)
    vqvae = converted("vqvae-three-level")
    assert run("encode", tmp_path / "tune.wav", "-m", vqvae, "-l", 1, "-l", 2, "-o", tmp_path) == 0
    file, labels = tmp_path / "tune.wav.safetensors", ("--artist", "Vela", "--seed", 1)
    assert run("upsample", file, "-m", repositories / "labels", *labels, "-o", tmp_path / "out") == 0
    model = AutoModel.from_pretrained(repositories / "labels")
    upper, top = read_codes(file).values()
    conditions = song_processor(model)(artist="Vela")
    expected = model.generate(**conditions, audio_codes=[None, upper, None], levels=[0], generator=seeded(1))
    assert_holds(tmp_path / "out" / "song-0.safetensors", (expected.audio_codes[0], upper, top))


def test_a_prompt_of_another_rate(run, command, tmp_path, model):
    prompt = tmp_path / "prompt.flac"
    time_axis = np.arange(4800) / 48000
    soundfile.write(prompt, np.stack([np.sin(2500 * time_axis), np.cos(1900 * time_axis)], axis=1) / 2, 48000)
    options = ("--prompt", prompt, "--prompt-seconds", 0.03, "--temperature", 1.1, "-l", 1, "-o", tmp_path / "out")
    assert run(*command, *options) == 0
    audio = torch.from_numpy(np.concatenate(list(read_audio_blocks(prompt, RATE))))
    # Ten codes of the top level last 0.029 s.
    expected = model.vqvae.encode(audio[None, None, : 10 * 128], levels=[1, 2]).audio_codes
    codes = read_codes(tmp_path / "out" / "song-0.safetensors")
    assert torch.equal(codes[1][:, :40], expected[0])
    assert torch.equal(codes[2][:, :10], expected[1])


def test_a_model_without_labels(run, repositories, tmp_path):
    settings = ("--level", 2, "--seconds", 0.02, "--seed", 2, "-o", tmp_path)
    assert run("generate", "-m", repositories / "unlabelled", *settings) == 0
    model = AutoModel.from_pretrained(repositories / "unlabelled")
    assert_holds(tmp_path / "song-0.safetensors", model.generate(0.02, levels=[2], generator=seeded(2)).audio_codes)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("generate", "There is no --model"),
        ("generate -m {root}/none", "{root}/none"),
        ("generate -m {vqvae}", "holds a JukeboxVQVAEModel: give a whole model"),
        ("generate -m {root}/labels --seconds 0.01", "ask for seconds=0.05 or more"),
        ("generate -m {root}/labels --seconds 0", "give a positive length"),
        ("generate -m {root}/labels --level 3", "levels=[3]: this model has the levels 0, 1, 2"),
        (
            "generate -m {root}/labels --seconds 0.06 --prompt {long}",
            "The prompt has 2192 codes of level 0 (0.40 s) and the song 320",
        ),
        ("generate -m {root}/labels --prompt {root}/none.wav", "none.wav cannot be read"),
        ("generate -m {root}/labels --prompt-seconds 1", "--prompt-seconds 1.0: give a positive length of a --prompt"),
        ("generate -m {root}/labels --lyrics la", "labels reads no lyrics; leave them out"),
        ("generate -m {root}/unlabelled --artist Vela", "--artist Vela: {root}/unlabelled was trained without labels"),
        ("generate -m {root}/unlabelled --lyrics la", "unlabelled reads no lyrics"),
        ("generate -m {root}/labels --lyrics la --lyrics-file {long}", "give one of them"),
        ("generate -m {root}/labels --lyrics-file {long}", "is no UTF-8 text"),
        ("generate -m {root}/labels --total-seconds 0.05 --seconds 0.06", "give a larger total_seconds"),
        ("generate -m {root}/labels --seconds 0.06 --temperature 0", "temperature=0.0: give a number above 0"),
        ("generate -m {root}/labels --temperature 1 --temperature 1", "one for each of the 3 levels"),
        ("generate -m {root}/labels --count 0", "--count 0: draw 1 song or more"),
        ("generate -m {root}/labels --seed -1", "--seed -1: give a number from 0"),
        ("generate -m {root}/labels --format mp3", "--format mp3: choose wav or flac"),
        ("generate -m {root}/labels --dtype int8", "--dtype int8: choose float32 or float16 or bfloat16"),
        ("generate -m {root}/labels --device gpu", "--device gpu cannot be used"),
        ("generate --resume {root}", "{root} holds no song.json"),
        ("generate --resume {whole} --seed 1", "leave out --seed"),
        ("continue {root}/none --seconds 1", "none does not exist"),
        ("continue {root} --seconds 1", "{root} holds no finished song"),
        ("continue {whole} --seconds 0.05", "The prompt has 320 codes of level 0"),
        ("continue {codes} --seconds 1", "There is no --model"),
        ("continue {codes} --seconds 1 -m {root}/labels", "has the levels [0, 1]: to continue, give all up to 2"),
        ("continue {long} --seconds 1", "is no safetensors file"),
        ("upsample {whole}", "has codes of level 0 already; give codes of upper levels alone"),
        ("upsample {codes} -m {root}/labels", "has codes of level 0 already"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(run, repositories, converted, whole, tmp_path, capsys, line, message):
    soundfile.write(tmp_path / "long.wav", 0.3 * np.sin(np.arange(17600) / 20), RATE)
    save_file({f"codes.{level}": torch.zeros(1, 40, dtype=torch.int16) for level in (0, 1)}, tmp_path / "codes")
    names = {"root": repositories, "whole": whole, "long": tmp_path / "long.wav", "codes": tmp_path / "codes"}
    names["vqvae"] = converted("vqvae-three-level")
    arguments = [part.format(**names) for part in line.split()]
    arguments += [] if "--resume" in arguments else ["-o", tmp_path / "out"]
    capsys.readouterr()
    assert run(*arguments) == 1
    errors = capsys.readouterr().err
    assert message.format(**names) in errors
    assert "Traceback" not in errors
    assert errors.strip().splitlines()[-1].startswith("Error: ")
    assert not (tmp_path / "out").exists() or not os.listdir(tmp_path / "out")


def test_a_refused_change_leaves_the_song_as_it_was(run, command, whole, capsys):
    before = {path.name: path.read_bytes() for path in whole.iterdir()}
    assert run(*command[:-4], "--seconds", 0.07, "-o", whole) == 1
    assert "holds a song with seconds=0.06, not 0.07" in capsys.readouterr().err
    assert run("upsample", whole, "-o", whole) == 1
    assert {path.name: path.read_bytes() for path in whole.iterdir()} == before


def test_a_state_that_is_refused_leaves_the_song_as_it_was(run, command, whole, tmp_path, capsys):
    save_file({"codes.0": torch.zeros(1, 1)}, tmp_path / "song.safetensors")
    before = (whole / "song.json").read_text()
    (tmp_path / "song.json").write_text(before)
    assert run(*command, "--format", "flac", "-o", tmp_path) == 1
    assert "is no state of a song" in capsys.readouterr().err
    assert (tmp_path / "song.json").read_text() == before


def test_a_full_disk_is_one_line(run, command, whole, monkeypatch, capsys):
    write = soundfile.SoundFile.write

    def fail_on_results(file, samples):
        if file.name.endswith("song-0.wav"):
            raise soundfile.LibsndfileError(2)
        write(file, samples)

    monkeypatch.setattr(soundfile.SoundFile, "write", fail_on_results)
    assert run(*command, "-o", whole) == 1
    assert "song-0.wav could not be written" in capsys.readouterr().err


def test_progress_shows_level_window_speed_and_time_left(tmp_path, monkeypatch):
    left = {0: torch.full((2, 320), MISSING), 1: torch.full((2, 80), MISSING), 2: torch.full((2, 20), MISSING)}
    left[2][:, :4] = 1
    save_file({f"codes.{level}": codes for level, codes in left.items()}, tmp_path / "song.safetensors")
    now = [0.0]
    monkeypatch.setattr(song_progress.time, "monotonic", lambda: now[0])
    shown = {}
    for kind in ("terminal", "file"):
        now[0] = 0.0
        # Lines are as long as they are, as the commands print them: the folder's name may be long.
        console = Console(file=io.StringIO(), force_terminal=kind == "terminal", width=100, soft_wrap=True)
        with song_progress.SongProgress(console, tmp_path, 2) as progress:
            for code in range(16):
                now[0] += 0.5
                progress(JukeboxProgress(2, 0, 1, (0, 2), 5 + code, 20))
            progress(JukeboxProgress(2, 0, 1, (0, 2), 20, 20, torch.zeros(2, 1, 2560)))
            for code in range(8):
                now[0] += 0.25
                progress(JukeboxProgress(1, 0, 3, (0, 1), 1 + code, 80))
            if kind == "terminal":
                progress.bars.refresh()
        shown[kind] = console.file.getvalue()
    # 32 codes in 8 s; 800 codes are left at the levels below.
    lines = shown["file"].splitlines()
    assert lines[0].endswith("song-*-level-2.wav")
    assert lines[1] == "level 2, window 1 of 1: 4 codes/s, 0:00:00 left; all levels: 0:03:20 left"
    # 8 codes of one song in 2 s: 152 are left at this level, 792 at all.
    for text in ("level 1, window 1 of 3, songs 0 to 0", "4 codes/s, 0:00:38 left", "0:03:18 left"):
        assert text in shown["terminal"]
