"""Embeddings of datasets and in the pipeline: each row gets what its clip gets alone, and caches are found again."""

import shutil
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch
from datasets import Audio, Dataset, Features, List, Value, load_dataset
from datasets.fingerprint import Hasher
from song_models import song_model
from torchao.quantization import Int8WeightOnlyConfig
from transformers import TorchAoConfig, pipeline

from jukebox_hf import JukeboxEmbedder, JukeboxFeatureExtractor, JukeboxModel

RATE = 44100
GOOD = {"stereo.wav": (RATE, 2), "low.flac": (22050, 1), "other.ogg": (48000, 1)}
BAD = {"garbage.wav": "Format not recognised|Could not open", "short.wav": "100 samples", "missing.wav": "missing.wav"}


@pytest.fixture(scope="module")
def repository(converted, tmp_path_factory):
    folder = tmp_path_factory.mktemp("repository")
    song_model("song-5b-style", converted).save_pretrained(folder)
    JukeboxFeatureExtractor(hop_length=128).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    for seed, (name, (rate, channels)) in enumerate(GOOD.items()):
        noise = np.random.default_rng(seed).uniform(-0.9, 0.9, (rate // (4 + seed), channels))
        soundfile.write(folder / name, noise, rate)
    (folder / "garbage.wav").write_bytes(b"no audio at all" * 100)
    soundfile.write(folder / "short.wav", np.zeros(100), RATE)
    return folder


def paths(files) -> list[str]:
    return [str(files / name) for pair in zip(BAD, GOOD) for name in pair]


def check_rows(rows, repository, files, column_dtype="float32", **settings):
    """Holds the rows of `paths` to what each clip gets alone."""
    rows = list(rows)
    alone = JukeboxEmbedder.from_pretrained(repository, **settings)
    for row, reason in zip(rows[0::2], BAD.values()):
        assert all(row[f"embedding_{layer}"] is None for layer in settings["layers"])
        assert any(part in row["error"] for part in reason.split("|")), row["error"]
    for row, name in zip(rows[1::2], GOOD, strict=True):
        assert row["error"] is None
        expected = alone(str(files / name))
        for layer in settings["layers"]:
            wanted = expected.layers[layer].astype(column_dtype).astype(np.float32)
            np.testing.assert_allclose(np.array(row[f"embedding_{layer}"], np.float32), wanted, atol=2e-5, rtol=1e-3)
        if settings.get("join") == "windows":
            assert list(row["window_starts"]) == expected.window_starts.tolist()


SETTINGS = {
    "mean": ({"layers": [2, 5]}, 1),
    "frames": ({"layers": [5], "pooling": "frames"}, 2),
    "windows": ({"layers": [5], "join": "windows"}, 2),
    "frames of windows": (
        {"layers": [5], "join": "windows", "pooling": "average", "frame_rate": 60.0, "tail": "drop",
         "window_seconds": 0.1, "total_length": None},
        3,
    ),
}  # fmt: skip


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("column_dtype", ["float32", "float16"])
@pytest.mark.parametrize("kind", SETTINGS)
def test_a_bad_row_costs_itself_alone(repository, files, kind, column_dtype, batch_size):
    settings, axes = SETTINGS[kind]
    embedder = JukeboxEmbedder.from_pretrained(repository, column_dtype=column_dtype, **settings)
    mapped = Dataset.from_dict({"audio": paths(files)}).map(embedder, batched=True, batch_size=batch_size)
    feature = Value(column_dtype)
    for _ in range(axes):
        feature = List(feature)
    columns = {f"embedding_{layer}": feature for layer in settings["layers"]}
    if axes > 1 and settings.get("join") == "windows":
        columns["window_starts"] = List(Value("float64"))
    assert mapped.features == Features({"audio": Value("string"), **columns, "error": Value("string")})
    check_rows(mapped, repository, files, column_dtype, **settings)


@pytest.mark.parametrize("decode", [True, False])
def test_audio_columns(repository, files, decode):
    dataset = Dataset.from_dict({"audio": paths(files)}).cast_column("audio", Audio(decode=decode))
    embedder = JukeboxEmbedder.from_pretrained(repository, [3])
    mapped = dataset.map(embedder, batched=True, batch_size=3).remove_columns("audio")
    if not decode:
        check_rows(mapped, repository, files, layers=[3])
    # torchcodec decodes lossy files otherwise, and resamples nothing.
    assert [error is None for error in mapped["error"]] == [False, True] * 3


def test_workers(repository, files):
    embedder = JukeboxEmbedder.from_pretrained(repository, [3])
    embedder(str(files / "stereo.wav"))
    mapped = Dataset.from_dict({"audio": paths(files)}).map(embedder, batched=True, batch_size=1, num_proc=2)
    check_rows(mapped, repository, files, layers=[3])


def test_streaming(repository, files, tmp_path):
    Dataset.from_dict({"audio": paths(files)}).to_json(tmp_path / "rows.jsonl")
    stream = load_dataset("json", data_files=str(tmp_path / "rows.jsonl"), split="train", streaming=True)
    mapped = stream.map(JukeboxEmbedder.from_pretrained(repository, [3]), batched=True, batch_size=2)
    check_rows(mapped, repository, files, layers=[3])


def test_another_column(repository, files):
    embedder = JukeboxEmbedder.from_pretrained(repository, [3], audio_column="song")
    assert embedder({"song": [str(files / "stereo.wav")]})["error"] == [None]
    with pytest.raises(ValueError, match="audio_column='song': the batch has the columns audio"):
        embedder({"audio": [str(files / "stereo.wav")]})


FINGERPRINT = """
import sys
from datasets.fingerprint import Hasher
from torchao.quantization import Int8WeightOnlyConfig
from transformers import TorchAoConfig
from jukebox_hf import JukeboxEmbedder
int8 = {"quantization_config": TorchAoConfig(Int8WeightOnlyConfig()), "dtype": "bfloat16"}
print(Hasher.hash(JukeboxEmbedder.from_pretrained(sys.argv[1], [3])))
print(Hasher.hash(JukeboxEmbedder.from_pretrained(sys.argv[1], [3], model_kwargs=int8)))
"""


def test_another_process_finds_the_same_fingerprint(repository, files):
    embedder = JukeboxEmbedder.from_pretrained(repository, [3])
    int8 = {"quantization_config": TorchAoConfig(Int8WeightOnlyConfig()), "dtype": "bfloat16"}
    fingerprints = [Hasher.hash(embedder)]
    fingerprints.append(Hasher.hash(JukeboxEmbedder.from_pretrained(repository, [3], model_kwargs=int8)))
    embedder(str(files / "stereo.wav"))
    assert Hasher.hash(embedder) == fingerprints[0]
    command = [sys.executable, "-c", FINGERPRINT, str(repository)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == fingerprints


def test_whatever_changes_embeddings_changes_the_fingerprint(repository, tmp_path, files):
    folder = shutil.copytree(repository, tmp_path / "model")

    def fingerprint(layers=(3,), **settings) -> str:
        return Hasher.hash(JukeboxEmbedder.from_pretrained(folder, list(layers), **settings))

    found = [
        fingerprint(), fingerprint(layers=(4,)), fingerprint(artist_id=1), fingerprint(stride_seconds=0.1),
        fingerprint(dtype="float16"), fingerprint(column_dtype="float16"), fingerprint(total_length=RATE * 2),
        fingerprint(normalize=None),
    ]  # fmt: skip
    before = JukeboxEmbedder.from_pretrained(folder, [3])
    model = JukeboxModel.from_pretrained(folder)
    with torch.no_grad():
        model.prior_2.layers[0].mlp.fc2.weight[0, 0] += 1
    model.save_pretrained(folder)
    found.append(fingerprint())
    assert len(set(found)) == 9
    with pytest.raises(ValueError, match=r"has changed since from_pretrained\(\) looked at it"):
        before(str(files / "stereo.wav"))


def test_models_in_memory_go_to_no_other_process(repository, files):
    source = JukeboxEmbedder.from_pretrained(repository, [3])
    embedder = JukeboxEmbedder.from_models(*source.load(), source.recipe)
    assert embedder({"audio": [str(files / "stereo.wav")]})["error"] == [None]
    with pytest.raises(ValueError, match="cannot go to another process: use from_pretrained"):
        embedder.__getstate__()


# The pipeline


@pytest.fixture(scope="module")
def pipe(repository):
    return pipeline("jukebox-embedding", model=str(repository), total_length=None)


def test_the_pipeline_gives_what_the_embedder_gives(repository, files, pipe):
    recipe = {"layers": [2, 4], "total_length": None}
    clip = soundfile.read(files / "stereo.wav", dtype="float32")[0].T
    expected = JukeboxEmbedder.from_preset("jukemir", repository, **recipe)(clip, RATE)
    one = pipe(str(files / "stereo.wav"), **recipe)
    batch = pipe([{"array": clip, "sampling_rate": RATE}] * 3, batch_size=2, **recipe)
    for result in (one, pipe(clip, sampling_rate=RATE, **recipe), *batch):
        assert result["frame_rate"] is None and result["window_starts"].tolist() == [0]
        for layer in (2, 4):
            np.testing.assert_allclose(result["embeddings"][layer], expected.layers[layer], atol=1e-5)


def test_the_pipeline_has_presets_of_its_own_or_the_call(repository, files):
    recipe = {"layers": [2], "total_length": None}
    pipe = pipeline("jukebox-embedding", model=str(repository), preset="sheetsage", **recipe)
    assert len(pipe(str(files / "stereo.wav"))["embeddings"][2]) == RATE // 4 // 128
    assert pipe(str(files / "stereo.wav"), preset="llark")["frame_rate"] == pytest.approx(RATE / 128 / 34)


def test_the_pipeline_loads_what_it_needs(repository):
    pipe = pipeline("jukebox-embedding", model=str(repository), model_kwargs={"num_hidden_layers": 2})
    assert list(pipe.model.priors) == [2] and len(pipe.model.prior_2.layers) == 2
    assert pipe.model.dtype == torch.float32
    with pytest.raises(ValueError, match=r"layers=\[3\]: there are 2. Load more"):
        pipe(np.zeros(9000, np.float32), sampling_rate=RATE, layers=[3], total_length=None)


def test_the_pipeline_wants_a_whole_model(converted):
    with pytest.raises(ValueError, match="is no whole Jukebox model"):
        pipeline("jukebox-embedding", model=str(converted("prior-5b-style")))
