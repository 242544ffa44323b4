"""The command line, on real files and on bad ones."""

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch
from conftest import golden
from safetensors import safe_open
from transformers import AutoModel

from jukebox_hf import cli
from jukebox_hf.audio_files import read_audio_blocks


@pytest.fixture
def model_dir(converted):
    return str(converted("vqvae-three-level"))


@pytest.fixture
def song(tmp_path):
    """Three seconds in stereo at another rate than the model's."""
    path = tmp_path / "so$ng ^_$.ogg"
    time = np.arange(3 * 48000) / 48000
    tone = 0.4 * np.sin(2 * np.pi * 220 * time)
    soundfile.write(path, np.stack([tone, 0.5 * tone], axis=1), 48000)
    return path


def _run(monkeypatch, *command) -> int:
    monkeypatch.setattr(sys, "argv", ["jukebox-hf", *map(str, command)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
        raise SystemExit(0)
    return stop.value.code or 0


def test_encode_and_decode_give_what_the_model_gives(monkeypatch, tmp_path, song, model_dir):
    codes_dir, audio_dir = tmp_path / "codes", tmp_path / "audio"
    assert _run(monkeypatch, "encode", song, "-m", model_dir, "-o", codes_dir) == 0
    model = AutoModel.from_pretrained(model_dir)
    audio = torch.from_numpy(np.concatenate(list(read_audio_blocks(song, 44100))))[None, None]
    with safe_open(codes_dir / "so$ng ^_$.ogg.safetensors", "pt") as file:
        assert file.metadata() == {"sampling_rate": "44100", "samples": str(audio.shape[2]), "model": model_dir}
        assert sorted(file.keys()) == ["codes.0", "codes.1", "codes.2"]
        for level, expected in enumerate(model.encode(audio).audio_codes):
            assert torch.equal(file.get_tensor(f"codes.{level}").long(), expected)
        codes = file.get_tensor("codes.1").long()

    assert _run(monkeypatch, "decode", codes_dir, "-m", model_dir, "-o", audio_dir, "-l", "1", "-f", "flac") == 0
    decoded, rate = soundfile.read(audio_dir / "so$ng ^_$.ogg.flac", dtype="float32")
    assert rate == 44100
    expected = model.decode(codes, 1).audio_values[0, 0].clamp(-1, 1).numpy()
    np.testing.assert_allclose(decoded, expected, atol=1 / 2**15)
    assert sorted(os.listdir(codes_dir) + os.listdir(audio_dir)) == ["so$ng ^_$.ogg.flac", "so$ng ^_$.ogg.safetensors"]


def test_reconstruct_draws_a_picture(monkeypatch, tmp_path, song, model_dir):
    output = tmp_path / "out"
    assert _run(monkeypatch, "reconstruct", song, "-m", model_dir, "-o", output, "-l", "2", "--picture") == 0
    assert sorted(os.listdir(output)) == ["so$ng ^_$.ogg.level-2.png", "so$ng ^_$.ogg.level-2.wav"]
    frames = 3 * 44100 // 128
    assert soundfile.info(output / "so$ng ^_$.ogg.level-2.wav").frames == frames * 128
    assert (output / "so$ng ^_$.ogg.level-2.png").read_bytes()[:4] == b"\x89PNG"


def test_a_folder_keeps_its_structure_and_a_bad_file_costs_only_itself(monkeypatch, tmp_path, song, model_dir, capsys):
    folder = tmp_path / "music"
    (folder / "album").mkdir(parents=True)
    song.rename(folder / "album" / "good.ogg")
    (folder / "bad.wav").write_bytes(b"RIFF not really")
    soundfile.write(folder / "short.wav", np.zeros(64), 44100)
    (folder / "notes.txt").write_text("no audio")
    assert _run(monkeypatch, "encode", folder, "-m", model_dir, "-o", tmp_path / "codes") == 1
    found = [path.relative_to(tmp_path / "codes") for path in (tmp_path / "codes").rglob("*") if path.is_file()]
    assert [str(path) for path in found] == ["album/good.ogg.safetensors"]
    errors = capsys.readouterr().err
    assert "bad.wav cannot be read" in errors and "short.wav: Clip 0 has 64 samples" in errors
    assert "2 of 3 files failed; the others are done." in errors


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["encode", "missing.wav"], "missing.wav does not exist"),
        (["encode", "{song}", "-l", "7"], "levels=[7]: this model has the levels 0, 1, 2"),
        (["encode", "{empty}"], "holds no file that ends in one of .wav"),
        (["reconstruct", "{song}", "-f", "mp3"], "--format mp3: choose wav or flac"),
        (["decode", "{song}"], "is no safetensors file"),
        (["encode", "{song}", "{song_twin}"], "Several inputs"),
        (["encode", "{song}", "-m", "{empty}"], "{empty}"),
        (["encode", "{song}", "--device", "gpu"], "--device gpu cannot be used"),
        (["encode", "{song}", "-m", "{broken}"], "The weights in {broken} cannot be read"),
    ],
)
def test_bad_input_is_one_line_and_status_1(monkeypatch, tmp_path, song, model_dir, capsys, command, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "twin").mkdir()
    (tmp_path / "twin" / "so$ng ^_$.ogg").write_bytes(song.read_bytes())
    shutil.copytree(model_dir, tmp_path / "broken")
    weights = tmp_path / "broken" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    names = {
        "broken": tmp_path / "broken",
        "song": song,
        "empty": tmp_path / "empty",
        "song_twin": tmp_path / "twin" / "so$ng ^_$.ogg",
    }
    command = [part.format(**names) for part in command]
    command += [] if "-m" in command else ["-m", model_dir]
    assert _run(monkeypatch, *command, "-o", tmp_path / "out") == 1
    errors = capsys.readouterr().err
    assert message.format(**names) in errors and "Traceback" not in errors
    assert errors.strip().splitlines()[-1].startswith("Error: ")
    assert not (tmp_path / "out").exists() or not any((tmp_path / "out").iterdir())


def test_the_installed_command_converts_and_explains_itself(tmp_path):
    command = [sys.executable, "-c", "from jukebox_hf.cli import main; main()"]
    help_text = subprocess.run([*command, "--help"], capture_output=True, text=True, check=True).stdout
    assert all(name in help_text for name in ("convert", "encode", "decode", "reconstruct"))
    source = golden("vqvae-two-level").checkpoint
    done = subprocess.run([*command, "convert", str(source), str(tmp_path / "model")], capture_output=True, text=True)
    assert done.returncode == 0 and (tmp_path / "model" / "model.safetensors").exists()
    again = subprocess.run([*command, "convert", str(source), str(tmp_path / "model")], capture_output=True, text=True)
    assert again.returncode == 1 and again.stderr.splitlines()[-1].startswith("Error: ")
    assert "Traceback" not in again.stderr
