"""`jukebox-hf embed`: each clip gets what it gets alone, in whole files, whoever is killed and however many compute."""

import csv
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from datasets import Audio, Dataset, DatasetDict, load_dataset
from rich.console import Console
from song_models import song_model
from transformers import AutoModel

from jukebox_hf import JukeboxEmbedder, cli
from jukebox_hf.audio_files import read_audio_blocks
from jukebox_hf.cli import embed_progress, embed_run
from jukebox_hf.cli.embed_progress import EmbedProgress
from jukebox_hf.embedding_recipes import PRESETS

RATE = 44100
# A window of the model has 0.19 s.
GOOD_FILES = {
    "a.wav": (44100, 1, 0.45),
    "b.flac": (48000, 2, 0.1),
    "c.ogg": (22050, 1, 0.3),
    "album/d.wav": (16000, 3, 0.21),
    "album/e.wav": (44100, 1, 0.62),
    "f.wav": (44100, 1, 0.05),
    "g.wav": (32000, 1, 0.25),
}
BAD_FILES = {"garbage.wav": "cannot be read", "nan.wav": "NaN or infinity", "short.wav": "The clip has 100 samples"}
LAYERS = ("-l", 2, "-l", 3)
# Runs the command and says of each call of the model who made it; slow enough to be killed.
SLOW = """
import os, pathlib, time, torch
from jukebox_hf.embeddings import JukeboxEmbedder
embed = JukeboxEmbedder.embed
def slow(self, clips):
    time.sleep(0.25)
    # Who computes needs nobody.
    assert not torch.distributed.is_initialized()
    log, rank = pathlib.Path(os.environ["EMBED_LOG"]), os.environ.get("RANK", "alone")
    with log.open("a") as file:
        file.write(rank + "\\n")
    if rank == os.environ.get("KILL_RANK") and log.read_text().count(rank) == 2:
        os.kill(os.getpid(), 9)
    return embed(self, clips)
JukeboxEmbedder.embed = slow
from jukebox_hf.cli import main
main()
"""


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Bits depend on the number of threads, and a test's subprocess shall compute the same."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model(converted, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "model"
    song_model("song-5b-style", converted).save_pretrained(folder)
    return folder


@pytest.fixture
def music(tmp_path, monkeypatch) -> Path:
    """A folder of good files, in the folder where commands run."""
    monkeypatch.chdir(tmp_path)
    for seed, (name, (rate, channels, seconds)) in enumerate(GOOD_FILES.items()):
        path = tmp_path / "music" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(seed).uniform(-0.9, 0.9, (int(rate * seconds), channels))
        soundfile.write(path, noise, rate)
    return Path("music")


@pytest.fixture
def bad_files(music) -> Path:
    """The same folder with bad files in it."""
    (music / "garbage.wav").write_bytes(b"no audio at all" * 100)
    soundfile.write(music / "nan.wav", np.append(np.zeros(1000), np.nan), RATE, subtype="FLOAT")
    soundfile.write(music / "short.wav", np.zeros(100), RATE)
    return music


@pytest.fixture
def run(monkeypatch):
    """Runs the command here and gives its exit status."""

    def run(*command) -> int:
        monkeypatch.setattr(sys, "argv", ["jukebox-hf", "embed", *map(str, command)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
            raise SystemExit(0)
        return stop.value.code or 0

    return run


@pytest.fixture
def no_model(monkeypatch):
    """Lets nobody load a model from now on."""

    def forbid():
        def load(*_, **__):
            raise AssertionError("A model is loaded.")

        monkeypatch.setattr(JukeboxEmbedder, "load", load)

    return forbid


def slow(launcher: list[str], *command, **environment) -> dict:
    """Arguments of `subprocess` for a command in a process of its own."""
    log = {"EMBED_LOG": os.path.abspath("calls.log"), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return dict(
        args=[*launcher, sys.executable, "-c", SLOW, "embed", *map(str, command)],
        env={**os.environ, **log, **environment},
    )


def rows(output) -> dict[tuple[str, int, float], list]:
    table = pyarrow.dataset.dataset(Path(output, "data")).to_table()
    rows = {(row["path"], row["layer"], row["window_start"]): row["vector"] for row in table.to_pylist()}
    assert len(rows) == len(table)
    return rows


def contents(output) -> dict[str, bytes]:
    """The dataset byte for byte."""
    return {path.name: path.read_bytes() for path in Path(output, "data").iterdir()}


def failures(output) -> list[dict[str, str]]:
    with Path(output, "failures.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    ("options", "recipe"),
    [
        (["--join", "windows"], {"join": "windows"}),
        (["--join", "mean", "--stride-seconds", 0.1], {"join": "mean", "stride_seconds": 0.1}),
        (["--pooling", "frames", "--window-seconds", 0.1], {"pooling": "frames", "window_seconds": 0.1}),
        (
            [
                "--pooling",
                "average",
                "--frame-rate",
                50,
                "--join",
                "windows",
                "--tail",
                "drop",
                "--window-seconds",
                0.05,
            ],
            {"pooling": "average", "frame_rate": 50.0, "join": "windows", "tail": "drop", "window_seconds": 0.05},
        ),
    ],
)
def test_each_clip_gets_what_the_embedder_gives_it_alone(run, model, music, options, recipe):
    assert run(music, "-m", model, *LAYERS, *options, "-o", "out", "--shard-size", 3, "--batch-size", 3) == 0
    found = rows("out")
    embedder = JukeboxEmbedder.from_pretrained(model, [2, 3], batch_size=1, **recipe)
    num_rows = 0
    for name in GOOD_FILES:
        embedding = embedder(np.concatenate(list(read_audio_blocks(music / name, RATE))), sampling_rate=RATE)
        starts = embedding.window_starts if recipe.get("join") == "windows" else [0.0]
        for layer in (2, 3):
            vectors = embedding.layers[layer] if recipe.get("join") == "windows" else [embedding.layers[layer]]
            assert len(vectors) == len(starts)
            for start, vector in zip(starts, vectors):
                np.testing.assert_allclose(np.array(found[str(music / name), layer, start]), vector, atol=1e-5)
                num_rows += 1
    assert len(found) == num_rows
    assert not failures("out")


def test_bad_files_cost_themselves_and_are_not_forgotten(run, model, bad_files, capsys, no_model):
    command = (bad_files, "-m", model, *LAYERS, "-o", "out", "--shard-size", 4)
    assert run(*command) == 1
    errors = capsys.readouterr().err
    assert {path for path, *_ in rows("out")} == {str(bad_files / name) for name in GOOD_FILES}
    listed = {Path(failure["path"]).name: failure for failure in failures("out")}
    assert list(listed) == sorted(BAD_FILES)
    for name, reason in BAD_FILES.items():
        assert reason in listed[name]["error"] and reason in errors
        assert str(bad_files / name) not in pq.read_table(Path("out/data", listed[name]["shard"]))["path"].to_pylist()
    assert errors.splitlines()[-1] == "Error: 3 of 10 clips failed, as out/failures.csv says; the others are done."

    before = contents("out")
    Path("out/failures.csv").unlink()
    no_model()
    assert run(*command) == 1
    assert "3 of 10 clips failed" in capsys.readouterr().err
    assert {Path(failure["path"]).name for failure in failures("out")} == set(BAD_FILES)
    assert contents("out") == before


def test_a_shard_that_is_removed_is_computed_again(run, model, bad_files):
    command = (bad_files, "-m", model, *LAYERS, "-o", "out", "--shard-size", 4)
    assert run(*command) == 1
    before = contents("out")
    (failure,) = (failure for failure in failures("out") if "garbage" in failure["path"])
    soundfile.write(bad_files / "garbage.wav", np.zeros(9000), RATE)
    Path("out/data", failure["shard"]).unlink()
    assert run(*command) == 1
    assert sorted(Path(failure["path"]).name for failure in failures("out")) == ["nan.wav", "short.wav"]
    assert (str(bad_files / "garbage.wav"), 2, 0.0) in rows("out")
    changed = {name for name, content in contents("out").items() if content != before[name]}
    assert changed == {failure["shard"]}

    Path("out/data", failure["shard"]).write_bytes(b"no Parquet")
    with pytest.raises(ValueError, match=f"{failure['shard']} is no shard .*: remove it and run the same command"):
        embed_run.write_failures(Path("out"), embed_run.read_plan(Path("out")))


@pytest.mark.parametrize(("dtype", "pooling"), [("float32", "mean"), ("float16", "mean"), ("float16", "frames")])
def test_shards_are_one_dataset_even_where_all_clips_failed(run, model, bad_files, dtype, pooling, tmp_path):
    options = (*LAYERS, "--column-dtype", dtype, "--pooling", pooling, "--shard-size", 1)
    assert run(bad_files, "-m", model, *options, "-o", "out") == 1
    schemas = [pq.read_schema(path) for path in Path("out/data").iterdir()]
    assert len(schemas) == 10 and all(schema.equals(schemas[0]) for schema in schemas)
    vector = schemas[0].field("vector").type
    value = {"float32": "float", "float16": "halffloat"}[dtype]
    assert str(vector).count("list") == (1 if pooling == "mean" else 2) and value in str(vector)
    assert [str(schemas[0].field(name).type) for name in ("path", "layer", "window_start")] == [
        "string", "int32", "double"
    ]  # fmt: skip

    expected = rows("out")
    ways = ({"path": "parquet", "data_dir": "out/data"}, {"path": "parquet", "data_dir": "out"}, {"path": "out"})
    for number, way in enumerate(ways):
        loaded = load_dataset(**way, split="train", cache_dir=str(tmp_path / f"cache-{number}"))
        assert len(loaded) == len(expected) == 14
        for row in loaded:
            assert row["vector"] == expected[row["path"], row["layer"], row["window_start"]]

    assert run(bad_files, "-m", model, *LAYERS, "--pooling", pooling, "--shard-size", 1, "-o", "exact") == 1
    for key, vector in rows("exact").items():
        vector = np.array(vector, np.float32)
        assert np.array_equal(np.array(expected[key], dtype), vector.astype(dtype)), key


def test_a_preset_and_what_is_changed_of_it(run, model, music, capsys, monkeypatch):
    # Of its layers this model has none, and its window is longer than this one's.
    assert run(music, "-m", model, "--preset", "edge", "-o", "out") == 1
    assert "layers=[66]: there are" in capsys.readouterr().err
    changes = ("-l", 2, "--window-seconds", 1280 / RATE, "--stride-seconds", 640 / RATE)
    assert run(music, "-m", model, "--preset", "sheetsage", *changes, "--pooling", "mean", "-o", "out") == 0
    recipe = json.loads(Path("out/embeddings.json").read_text())["settings"]["recipe"]
    assert (recipe["layers"], recipe["tail"], recipe["encode"], recipe["pooling"]) == ([2], "pad", "window", "mean")
    # A mean has no rate, even where the preset's frames have one.
    with monkeypatch.context() as patch:
        patch.setitem(PRESETS, "edge", replace(PRESETS["edge"], layers=(2,), window_seconds=0.1, total_length=None))
        assert run(music, "-m", model, "--preset", "edge", "--pooling", "mean", "-o", "mean") == 1
    recipe = json.loads(Path("mean/embeddings.json").read_text())["settings"]["recipe"]
    assert (recipe["join"], recipe["pooling"], recipe["frame_rate"]) == ("windows", "mean", None)


def test_killed_and_run_again_the_dataset_is_that_of_one_run(run, model, bad_files):
    command = (bad_files, "-m", model, *LAYERS, "--join", "windows", "--shard-size", 2, "--batch-size", 2)
    assert run(*command, "-o", "whole") == 1
    with subprocess.Popen(**slow([], *command, "-o", "out"), stderr=subprocess.DEVNULL) as process:
        while not list(Path("out").glob("data/train*")):
            assert process.poll() is None
            time.sleep(0.01)
        while not list(Path("out").glob("data/.*.partial")):
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    kept = {path.name: path.stat().st_mtime_ns for path in Path("out/data").glob("train*")}
    assert 1 <= len(kept) < 5 and not Path("out/failures.csv").exists()
    assert list(Path("out").glob("data/.*.partial"))
    # What is there is whole already.
    assert all(contents("out")[name] == contents("whole")[name] for name in kept)

    assert run(*command, "-o", "out") == 1
    assert contents("out") == contents("whole") and len(contents("out")) == 5
    assert failures("out") == failures("whole")
    assert all(Path("out/data", name).stat().st_mtime_ns == time for name, time in kept.items())


def test_ctrl_c_ends_with_a_word_how_to_go_on(run, model, music, capsys, monkeypatch):
    command = (music, "-m", model, *LAYERS, "--shard-size", 2, "--batch-size", 1)
    assert run(*command, "-o", "whole") == 0
    embed, calls = JukeboxEmbedder.embed, []

    def interrupted(self, clips):
        calls.append(clips)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return embed(self, clips)

    monkeypatch.setattr(JukeboxEmbedder, "embed", interrupted)
    assert run(*command, "-o", "out") == 130
    num_files = len(list(Path("out/data").iterdir()))
    assert 1 <= num_files < 4 and not list(Path("out/data").glob(".*"))
    message = f"Stopped. out keeps {num_files} of 4 files. The same command goes on."
    assert capsys.readouterr().err.splitlines()[-1] == message
    assert run(*command, "-o", "out") == 0
    assert contents("out") == contents("whole")

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(embed_run, "_decide", interrupt)
    assert run(*command, "-o", "other") == 130
    assert capsys.readouterr().err.splitlines()[-1] == "Stopped. Nothing was embedded."


def test_other_settings_or_inputs_are_refused(run, model, music, capsys, no_model, tmp_path):
    command = (music, "-m", model)
    assert run(*command, *LAYERS, "-o", "out") == 0
    before = contents("out")
    no_model()

    def refusal(*command) -> str:
        assert run(*command, "-o", "out") == 1
        assert contents("out") == before
        return capsys.readouterr().err.splitlines()[-1]

    assert "out holds embeddings with recipe.layers=[2, 3], not [2]: give" in refusal(*command, "-l", 2)
    assert "recipe.join='stitch', not 'windows'" in refusal(*command, *LAYERS, "--join", "windows")
    assert "with dtype='float32', not 'float16'" in refusal(*command, *LAYERS, "--dtype", "float16")
    assert "column_dtype='float32', not 'float16'" in refusal(*command, *LAYERS, "--column-dtype", "float16")
    assert "shard_size=256, not 7" in refusal(*command, *LAYERS, "--shard-size", 7)
    assert "of 7 clips, not of these 1: 'music/album/d.wav' is missing now" in refusal(
        music / "a.wav", "-m", model, *LAYERS
    )
    assert "they came in another order" in refusal(music / "g.wav", music, "-m", model, *LAYERS)
    soundfile.write(music / "new.wav", np.zeros(9000), RATE)
    assert "of 7 clips, not of these 8: 'music/new.wav' is not among them" in refusal(*command, *LAYERS)
    Dataset.from_dict({"audio": [str(music / "a.wav")]}).save_to_disk("saved")
    assert "with dataset.name=None, not 'saved'" in refusal("--dataset", "saved", "-m", model, *LAYERS)
    (music / "new.wav").unlink()
    other = AutoModel.from_pretrained(model)
    with torch.no_grad():
        next(other.parameters()).add_(1.0)
    other.save_pretrained(tmp_path / "other")
    assert "with prior.digest=" in refusal(music, "-m", tmp_path / "other", *LAYERS)
    # The same weights may have moved.
    AutoModel.from_pretrained(model).save_pretrained(tmp_path / "moved")
    assert run(music, "-m", tmp_path / "moved", *LAYERS, "-o", "out") == 0

    Path("out/embeddings.json").rename("plan.json")
    assert "out holds shards, but no embeddings.json" in refusal(*command, *LAYERS)
    Path("out/embeddings.json").write_text('{"clips": 3}')
    assert "embeddings.json is no plan of embeddings" in refusal(*command, *LAYERS)


def test_a_repository_stays_at_its_commit(run, model, music, monkeypatch, tmp_path):
    first, second = "1" * 40, "2" * 40
    repository = tmp_path / "hub" / "models--org--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(first)
    (repository / "snapshots").mkdir()
    for commit in (first, second):
        (repository / "snapshots" / commit).symlink_to(model)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert run(music, "-m", "org/tiny", *LAYERS, "-o", "out") == 0
    settings = json.loads(Path("out/embeddings.json").read_text())["settings"]
    assert settings["prior"] == settings["vqvae"] == {"repository": "org/tiny", "commit": first}
    (repository / "refs" / "main").write_text(second)
    assert run(music, "-m", "org/tiny", *LAYERS, "-o", "out") == 0
    # Also of the VQ-VAE's repository.
    kwargs = {"vqvae": "org/tiny", "layers": [2]}
    plan = Path("out/embeddings.json").read_text()
    Path("out/embeddings.json").write_text(plan.replace(first, second))
    (repository / "refs" / "main").write_text(first)
    assert embed_run.describe_embedder(Path("out"), str(model), None, kwargs).vqvae.commit == second


def test_a_prior_alone_needs_its_vqvae(run, converted, music, capsys):
    prior, vqvae = converted("prior-5b-style"), converted("vqvae-three-level")
    assert run(music, "-m", prior, *LAYERS, "-o", "out") == 1
    assert "is a prior alone: name its VQ-VAE" in capsys.readouterr().err
    assert run(music, "-m", prior, "--vqvae", vqvae, *LAYERS, "-o", "out") == 0
    assert len(rows("out")) == 2 * len(GOOD_FILES)


def test_lists_of_paths_and_files_twice(run, model, music, capsys):
    lists = Path("lists")
    lists.mkdir()
    lines = ["../music/a.wav", "", "  ../music/b.flac ", "gone.wav", "../music/a.wav"]
    (lists / "some.txt").write_text("\ufeff" + "\r\n".join(lines), encoding="utf-8")
    inputs = (lists / "some.txt", music / "c.ogg", music / "album", music / "c.ogg")
    assert run(*inputs, "-m", model, *LAYERS, "-o", "out") == 1
    names = ["lists/../music/a.wav", "lists/../music/b.flac", "music/c.ogg", "music/album/d.wav", "music/album/e.wav"]
    assert [path for path, layer, _ in rows("out") if layer == 2] == names
    assert [(failure["path"], failure["error"]) for failure in failures("out")] == [
        ("lists/gone.wav", "lists/gone.wav cannot be read: No such file or directory")
    ]


@pytest.mark.parametrize("kind", ["audio", "decoded", "bytes", "paths", "splits", "folder", "numbered"])
def test_datasets(run, model, bad_files, kind, capsys):
    names = [*BAD_FILES, *GOOD_FILES]
    paths = [str(bad_files.resolve() / name) for name in names]
    options, column = (), "audio"
    if kind == "folder":
        source = str(bad_files)
    else:
        table = {"audio": paths}
        if kind == "bytes":
            # As on the Hub: files inside of the table.
            table = {"audio": [{"bytes": Path(path).read_bytes(), "path": Path(path).name} for path in paths]}
        if kind == "numbered":
            table = {"audio": [{"bytes": Path(path).read_bytes(), "path": None} for path in paths]}
        dataset = Dataset.from_dict(table)
        if kind != "paths":
            dataset = dataset.cast_column("audio", Audio(decode=kind == "decoded"))
        if kind == "paths":
            dataset, column = dataset.rename_column("audio", "file"), "file"
            options = ("--audio-column", "file")
        if kind == "splits":
            dataset, options = DatasetDict(other=dataset), ("--split", "other")
        dataset.save_to_disk("saved")
        source = "saved"
    assert run("--dataset", source, *options, "-m", model, *LAYERS, "-o", "out", "--shard-size", 4) == 1
    assert run(bad_files, "-m", model, *LAYERS, "-o", "files") == 1
    expected = rows("files")

    def name(path: str) -> str:
        if kind == "numbered":
            path = names[int(path)]
        path = path.removeprefix(f"{bad_files.resolve()}/")
        return next(name for name in names if path in (name, Path(name).name))

    found = {(str(bad_files / name(path)), *rest): vector for (path, *rest), vector in rows("out").items()}
    assert found.keys() == expected.keys()
    for key, vector in found.items():
        np.testing.assert_allclose(vector, expected[key], atol=1e-5)
    assert {name(failure["path"]) for failure in failures("out")} == set(BAD_FILES)

    assert run("--dataset", source, *options, "-m", model, *LAYERS, "-o", "out", "--audio-column", "sound") == 1
    assert f"--audio-column sound: the dataset has {column}." in capsys.readouterr().err


def test_file_names_need_not_be_unicode_nor_distinct_in_a_dataset(run, model, music):
    odd = os.fsencode(music / "a") + b"\xff.wav"
    os.rename(music / "a.wav", odd)
    assert run(music, "-m", model, *LAYERS, "-o", "out") == 0
    assert ("music/a\\udcff.wav", 2, 0.0) in rows("out")
    assert run(music, "-m", model, *LAYERS, "-o", "out") == 0
    Path(os.fsdecode(odd)).write_bytes(b"bad")
    assert run(music, "-m", model, *LAYERS, "-o", "bad") == 1
    assert [failure["path"] for failure in failures("bad")] == ["music/a\\udcff.wav"]

    Dataset.from_dict({"audio": [str(music / "g.wav")] * 2}).save_to_disk("twice")
    assert run("--dataset", "twice", "-m", model, *LAYERS, "-o", "twice-out") == 0
    assert {path for path, *_ in rows("twice-out")} == {"0", "1"}
    content = (music / "g.wav").read_bytes()
    nameless = Dataset.from_dict({"audio": [{"bytes": content, "path": name} for name in ("g.wav", None)]})
    nameless.save_to_disk("nameless")
    assert run("--dataset", "nameless", "-m", model, *LAYERS, "-o", "nameless-out") == 0
    assert {path for path, *_ in rows("nameless-out")} == {"0", "1"}


def test_pictures(run, model, bad_files, no_model, monkeypatch, capsys):
    command = (bad_files, "-m", model, *LAYERS, "-o", "out")
    with monkeypatch.context() as patch:
        patch.setattr("jukebox_hf.pictures.find_spec", lambda name: None)
        assert run(*command, "--pictures") == 1
        assert "Pictures need matplotlib" in capsys.readouterr().err and not Path("out").exists()
    assert run(*command) == 1
    assert not list(Path("out").glob("*.png"))
    no_model()
    capsys.readouterr()
    assert run(*command, "--pictures") == 1
    printed = capsys.readouterr().out
    names = {f"{what}-layer-{layer}.png" for what in ("similarity", "map") for layer in (2, 3)}
    assert {path.name for path in Path("out").glob("*.png")} == names
    assert all((Path("out") / name).read_bytes()[:4] == b"\x89PNG" for name in names)
    assert all(name in printed for name in names)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["-m", "{model}", "-l", "2"], "There are no inputs: give audio files"),
        (["missing.wav", "-m", "{model}", "-l", "2"], "missing.wav does not exist"),
        (["empty", "-m", "{model}", "-l", "2"], "empty holds no file that ends in one of .wav"),
        (["empty.txt", "-m", "{model}", "-l", "2"], "empty.txt holds no paths: write one a line."),
        (["latin.txt", "-m", "{model}", "-l", "2"], "latin.txt is no UTF-8 text"),
        (["music", "-l", "2"], "There is no --model: name a whole Jukebox model or a top prior"),
        (["music", "-m", "{model}"], "layers=None: name the layers"),
        (["music", "-m", "{model}", "-l", "2", "--preset", "best"], "preset='best': there are jukemir"),
        (["music", "-m", "{model}", "-l", "2", "--dataset", "saved"], "There are --dataset saved and the input music"),
        (["music", "-m", "{model}", "-l", "2", "--dtype", "int8"], "--dtype int8: choose float32, float16, bfloat16"),
        (["music", "-m", "{model}", "-l", "2", "--column-dtype", "int8"], "column_dtype='int8': choose 'float32'"),
        (["music", "-m", "{model}", "-l", "2", "--shard-size", "0"], "--shard-size 0: give a positive number"),
        (["music", "-m", "{model}", "-l", "2", "--batch-size", "0"], "batch_size=0: give a positive number"),
        (["music", "-m", "{model}", "-l", "2", "--window-seconds", "0"], "window_seconds=0.0: give a positive number"),
        (
            ["music", "-m", "{model}", "-l", "2", "--join", "sum"],
            "join='sum': choose one of 'windows', 'mean'",
        ),
        (["music", "-m", "{model}", "-l", "2", "--device", "gpu"], "--device gpu cannot be used"),
        (["music", "-m", "{broken}", "-l", "2"], "The weights cannot be read"),
        (["--dataset", "saved", "-m", "{model}", "-l", "2", "--split", "test"], "there are the splits train"),
        (["--dataset", "none", "-m", "{model}", "-l", "2"], "Couldn't reach 'none' on the Hub"),
        (["--dataset", "empty", "-m", "{model}", "-l", "2"], "empty doesn't contain any data files"),
        (
            ["--dataset", "broken-rows", "-m", "{model}", "-l", "2"],
            "broken-rows --split train cannot be loaded: ",
        ),
        (["--dataset", "rowless", "-m", "{model}", "-l", "2"], "--dataset rowless has no rows"),
    ],
)
def test_bad_input_is_one_line_and_status_1(run, model, music, tmp_path, capsys, monkeypatch, command, message):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    Path("empty").mkdir()
    Path("empty.txt").write_text("\n \n")
    Path("latin.txt").write_bytes(b"caf\xe9.wav")
    DatasetDict(train=Dataset.from_dict({"audio": ["a.wav"]})).save_to_disk("saved")
    Dataset.from_dict({"audio": []}).save_to_disk("rowless")
    Path("broken-rows").mkdir()
    Path("broken-rows/train.parquet").write_bytes(b"no Parquet")
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in model.iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    header = (model / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(header[: len(header) // 2])
    command = [part.format(model=model, broken=broken) for part in command]
    assert run(*command, "-o", "out") == 1
    errors = capsys.readouterr().err
    assert message in errors and "Traceback" not in errors
    assert errors.strip().splitlines()[-1].startswith("Error: ")
    assert not list(Path().glob("out/data/*"))


def test_too_little_memory_costs_no_clip(run, model, music, monkeypatch, capsys):
    embed = JukeboxEmbedder.embed

    def exhausted(*_):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    command = (music, "-m", model, *LAYERS, "-o", "out")
    monkeypatch.setattr(JukeboxEmbedder, "embed", exhausted)
    assert run(*command) == 1
    assert "The memory is too small: try --batch-size 1 or --dtype float16." in capsys.readouterr().err
    assert not list(Path("out/data").iterdir())
    monkeypatch.setattr(JukeboxEmbedder, "embed", embed)
    assert run(*command) == 0 and len(rows("out")) == 2 * len(GOOD_FILES)


def test_what_is_computed_together_is_bounded_and_of_one_shard(run, model, music, monkeypatch):
    embed, calls = JukeboxEmbedder.embed, []

    def counted(self, clips):
        calls.append(clips)
        return embed(self, clips)

    monkeypatch.setattr(JukeboxEmbedder, "embed", counted)
    assert run(music, "-m", model, *LAYERS, "-o", "out", "--batch-size", 2, "--shard-size", 5) == 0
    config = AutoModel.from_pretrained(model).config.priors[2]
    recipe = JukeboxEmbedder.from_pretrained(model, 2).recipe
    windows = [[len(recipe.plan(len(clip), config)) for clip in clips] for clips in calls]
    # Until there are two batches of two.
    assert all(sum(call[:-1]) < 4 for call in windows)
    plan = embed_run.read_plan(Path("out"))
    num_calls = 0
    for shard in plan.shards():
        clips = 0
        while clips < len(shard):
            clips += len(calls[num_calls])
            num_calls += 1
        assert clips == len(shard)
    assert num_calls == len(calls) and max(map(len, calls)) > 1


def test_progress_tells_speed_failures_and_time_left(monkeypatch):
    now = iter([0.0])
    monkeypatch.setattr(embed_progress.time, "monotonic", lambda: next(now, 10.0))
    file = io.StringIO()
    with EmbedProgress(Console(file=file, soft_wrap=True), 8, 90.0) as progress:
        progress.fail("[a].wav", "[a].wav is bad.")
        progress.fail("b.wav", "too short")
        progress.advance(4, 30.0, 20.0)
    assert file.getvalue().splitlines() == [
        "Error: [a].wav is bad.",
        "Error: b.wav: too short",
        "4 of 8 clips, 0.40 clips/s, 2.0x real time, 0:00:20 left, 2 failed",
    ]
    file = io.StringIO()
    terminal = Console(file=file, force_terminal=True, width=120)
    with EmbedProgress(terminal, 8, 60.0) as progress:
        progress.advance(4, 30.0, 20.0)
    assert "4 of 8 clips" in file.getvalue()


TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


def test_two_processes_write_what_one_writes(run, model, bad_files):
    command = (bad_files, "-m", model, *LAYERS, "--shard-size", 2, "--batch-size", 1)
    assert run(*command, "-o", "alone") == 1
    done = subprocess.run(
        **slow([*TORCHRUN, "--no-python"], *command, "-o", "out", "--pictures"), capture_output=True, text=True
    )
    # Clips that fail are not a process that fails.
    assert done.returncode == 0, done.stderr
    assert contents("out") == contents("alone") and failures("out") == failures("alone")
    assert Path("out/map-layer-2.png").exists()
    assert set(Path("calls.log").read_text().split()) == {"0", "1"}
    assert "3 of 10 clips failed" in done.stderr and done.stderr.count("Loading ") == 1
    # The last one to be ready says it.
    assert done.stdout.count("10 clips, 5 of 5 files") in (1, 2)

    again = subprocess.run(
        **slow([*TORCHRUN, "--no-python"], *command, "-l", 1, "-o", "out"), capture_output=True, text=True
    )
    assert again.returncode == 1 and again.stderr.count("Error: out holds embeddings with recipe.layers=[2, 3]") == 1


def test_a_launcher_that_ends_all_processes_costs_their_unfinished_shards(run, model, music):
    command = (music, "-m", model, *LAYERS, "--shard-size", 1, "--batch-size", 1)
    assert run(*command, "-o", "alone") == 0
    launcher = [*TORCHRUN, "--no-python"]
    done = subprocess.run(**slow(launcher, *command, "-o", "out", KILL_RANK="1"), capture_output=True, text=True)
    assert done.returncode == 1 and "exitcode: -9" in done.stderr
    whole = contents("alone")
    kept = {path.name: path.read_bytes() for path in Path("out/data").glob("train*")}
    assert 1 <= len(kept) < 7 and all(whole[name] == content for name, content in kept.items())
    done = subprocess.run(**slow(launcher, *command, "-o", "out"), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert contents("out") == whole


def test_a_killed_process_costs_its_unfinished_shard_alone(run, model, music):
    command = (music, "-m", model, *LAYERS, "--shard-size", 1, "--batch-size", 1)
    assert run(*command, "-o", "alone") == 0
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    processes = []
    for rank in "01":
        # As a cluster's scheduler starts them, where nobody ends the others.
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        place |= {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "KILL_RANK": "1"}
        processes.append(
            subprocess.Popen(**slow([], *command, "-o", "out", **place), stderr=subprocess.PIPE, text=True)
        )
    (_, errors), _ = (process.communicate(timeout=120) for process in processes)
    assert [process.returncode for process in processes] == [0, -signal.SIGKILL], errors
    assert "the other processes go on" in errors
    plan = embed_run.read_plan(Path("out"))
    mine, others = plan.assign(range(7), 2)
    # It was killed when it computed its second one.
    assert plan.done(Path("out")) == sorted([*mine, others[0]])
    assert run(*command, "-o", "out") == 0
    assert contents("out") == contents("alone")


def test_a_process_that_finds_no_others_says_so(run, model, music, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(embed_run, "PartialState", lambda **_: type("Alone", (), {"num_processes": 1}))
    assert run(music, "-m", model, *LAYERS, "-o", "out") == 1
    assert "WORLD_SIZE=2, but this process finds 1: start it by torchrun" in capsys.readouterr().err
