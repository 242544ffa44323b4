"""Codes of whole datasets: each row gets what its clip gets alone, a bad row costs itself, caches are found again."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import fsspec
import huggingface_hub.constants
import numpy as np
import pytest
import soundfile
import soxr
import torch
from datasets import Audio, Dataset, Features, List, Value, load_dataset
from datasets.fingerprint import Hasher
from torchcodec.decoders import AudioDecoder

from jukebox_hf import JukeboxCodeExtractor, JukeboxFeatureExtractor, JukeboxVQVAEConfig, JukeboxVQVAEModel

RATE = 44100
GOOD_FILES = {"stereo.wav": (44100, 2), "low.mp3": (22050, 1), "other.ogg": (48000, 2), "many.flac": (44100, 6)}
# In the order of the datasets of the tests: good and bad rows in turn.
BAD_FILES = {
    "garbage.wav": "Format not recognised|Could not open",
    "missing.wav": "No such file|Could not open|not find",
    "nan.wav": "NaN or infinity",
    "short.wav": "100 samples, fewer than the 128",
}


@pytest.fixture
def folder(small_model, tmp_path) -> Path:
    """A model's folder."""
    folder = tmp_path / "model"
    small_model.save_pretrained(folder)
    JukeboxFeatureExtractor(hop_length=small_model.config.hop_length).save_pretrained(folder)
    return folder


@pytest.fixture
def files(tmp_path) -> Path:
    """A folder of good and bad audio files."""
    files = tmp_path / "files"
    files.mkdir()
    for seed, (name, (rate, channels)) in enumerate(GOOD_FILES.items()):
        noise = np.random.default_rng(seed).uniform(-0.9, 0.9, (rate // 10, channels))
        soundfile.write(files / name, noise, rate)
    (files / "garbage.wav").write_bytes(b"no audio at all" * 100)
    soundfile.write(files / "nan.wav", np.append(np.zeros(1000), np.nan), RATE, subtype="FLOAT")
    soundfile.write(files / "short.wav", np.zeros(100), RATE)
    return files


def mixed_rows(files: Path) -> list[str]:
    return [str(files / name) for pair in zip(BAD_FILES, GOOD_FILES) for name in pair]


def audio_dataset(files: Path, names, decode: bool = True) -> Dataset:
    paths = [str(files / name) for name in names]
    return Dataset.from_dict({"audio": paths}).cast_column("audio", Audio(decode=decode))


def expected_codes(model: JukeboxVQVAEModel, path: str, decode: bool, levels: list[int]) -> list[list[int]]:
    """The codes of one file, by the shortest way that does not touch what is tested."""
    if decode:
        decoded = AudioDecoder(path).get_all_samples()
        samples, rate = decoded.data.mean(0).numpy(), decoded.sample_rate
    else:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
        samples = samples.mean(1)
    if rate != RATE:
        samples = soxr.resample(samples, rate, RATE)
    codes = model.encode(torch.from_numpy(samples)[None, None], levels=levels).audio_codes
    return [level[0].tolist() for level in codes]


def check_mixed_rows(rows, model: JukeboxVQVAEModel, files: Path, decode: bool):
    """Holds the rows of `mixed_rows` to what they must be."""
    rows = list(rows)
    assert len(rows) == len(BAD_FILES) + len(GOOD_FILES)
    for row, name in zip(rows[0::2], BAD_FILES):
        assert row["audio_codes_1"] is None and row["audio_codes_2"] is None
        assert any(reason in row["error"] for reason in BAD_FILES[name].split("|")), row["error"]
    for row, name in zip(rows[1::2], GOOD_FILES):
        assert row["error"] is None
        codes = [list(row["audio_codes_1"]), list(row["audio_codes_2"])]
        assert codes == expected_codes(model, str(files / name), decode, [1, 2])
        assert len(set(codes[1])) > 3


@pytest.mark.parametrize("batch_size", [1, 3, 1000])
@pytest.mark.parametrize("decode", [True, False])
def test_a_bad_row_costs_itself_alone(folder, files, small_model, decode, batch_size):
    dataset = Dataset.from_dict({"audio": mixed_rows(files)}).cast_column("audio", Audio(decode=decode))
    extractor = JukeboxCodeExtractor.from_pretrained(folder, levels=[1, 2])
    mapped = dataset.map(extractor, batched=True, batch_size=batch_size)
    # The first batch holds nothing but a bad row when batch_size is 1, and must not settle the types.
    assert mapped.features == Features(
        {
            "audio": Audio(decode=decode),
            "audio_codes_1": List(Value("int16")),
            "audio_codes_2": List(Value("int16")),
            "error": Value("string"),
        }
    )
    check_mixed_rows(mapped.remove_columns("audio"), small_model, files, decode)


def test_the_first_error_may_come_late(folder, files):
    dataset = audio_dataset(files, ["stereo.wav", "low.mp3", "garbage.wav"])
    mapped = dataset.map(JukeboxCodeExtractor.from_pretrained(folder, levels=[2]), batched=True, batch_size=1)
    assert [error is None for error in mapped["error"]] == [True, True, False]


# A worker that waits for the threads of its parent waits forever.
@pytest.mark.timeout(120)
def test_workers_do_not_wait_for_the_threads_of_their_parent(folder, files, small_model):
    extractor = JukeboxCodeExtractor.from_pretrained(folder, levels=[1, 2])
    extractor({"audio": [str(files / "stereo.wav")]})
    torch.randn(512, 512) @ torch.randn(512, 512)
    dataset = Dataset.from_dict({"audio": mixed_rows(files)}).cast_column("audio", Audio())
    mapped = dataset.map(extractor, batched=True, batch_size=2, num_proc=2)
    check_mixed_rows(mapped.remove_columns("audio"), small_model, files, decode=True)


@pytest.mark.parametrize("how", ["cast_column", "decode"])
def test_streaming_undecoded_rows(folder, files, small_model, tmp_path, how):
    stream = load_dataset("audiofolder", data_dir=str(files), split="train", streaming=True)
    stream = stream.cast_column("audio", Audio(decode=False)) if how == "cast_column" else stream.decode(False)
    rows = list(stream.map(JukeboxCodeExtractor.from_pretrained(folder, levels=[2]), batched=True, batch_size=3))
    by_name = {Path(row["audio"]["path"]).name: row for row in rows}
    assert len(rows) == len(GOOD_FILES) + len(BAD_FILES) - 1
    for name in GOOD_FILES:
        (expected,) = expected_codes(small_model, str(files / name), False, [2])
        assert by_name[name]["audio_codes_2"].tolist() == expected
    assert "Format not recognised" in by_name["garbage.wav"]["error"]


def test_streaming_decoded_rows(folder, files, small_model):
    extractor = JukeboxCodeExtractor.from_pretrained(folder, levels=[2])
    stream = audio_dataset(files, GOOD_FILES).to_iterable_dataset()
    for row, name in zip(stream.map(extractor, batched=True), GOOD_FILES, strict=True):
        (expected,) = expected_codes(small_model, str(files / name), True, [2])
        assert row["audio_codes_2"].tolist() == expected
    # As the class says: here the file fails before the extractor sees it.
    with pytest.raises(RuntimeError):
        list(audio_dataset(files, ["garbage.wav"]).to_iterable_dataset().map(extractor, batched=True))


@pytest.mark.parametrize("format", ["numpy", "torch"])
def test_formatted_datasets(folder, files, small_model, format):
    extractor = JukeboxCodeExtractor.from_pretrained(folder, levels=[2])
    mapped = audio_dataset(files, GOOD_FILES).with_format(format).map(extractor, batched=True)
    for codes, name in zip(mapped["audio_codes_2"], GOOD_FILES, strict=True):
        assert [codes.tolist()] == expected_codes(small_model, str(files / name), True, [2])
    with pytest.raises(RuntimeError):
        audio_dataset(files, ["garbage.wav"]).with_format(format).map(extractor, batched=True)
    undecoded = audio_dataset(files, ["garbage.wav", *GOOD_FILES], decode=False).with_format(format)
    assert [error is None for error in undecoded.map(extractor, batched=True)["error"]] == [False] + [True] * 4


def test_a_plain_dict_of_rows(folder, files, small_model):
    path = str(files / "stereo.wav")
    samples, _ = soundfile.read(path, dtype="float32")
    memory = fsspec.filesystem("memory")
    memory.pipe("/clips/stereo.wav", Path(path).read_bytes())
    rows = [
        path,
        Path(path),
        {"bytes": None, "path": path},
        {"bytes": Path(path).read_bytes(), "path": None},
        {"bytes": Path(path).read_bytes(), "path": "elsewhere.wav"},
        {"bytes": None, "path": "memory://clips/stereo.wav"},
        {"array": samples.mean(1), "sampling_rate": RATE},
        {"array": samples.T.tolist(), "sampling_rate": RATE},
        AudioDecoder(path),
    ]
    extractor = JukeboxCodeExtractor.from_pretrained(folder, audio_column="sound")
    columns = extractor({"sound": rows})
    assert sorted(columns) == ["audio_codes_0", "audio_codes_1", "audio_codes_2", "error"]
    assert columns["error"] == [None] * len(rows)
    expected = expected_codes(small_model, path, False, [0, 1, 2])
    for level in range(3):
        for codes in columns[f"audio_codes_{level}"]:
            assert codes.dtype == np.int16 and codes.tolist() == expected[level]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (None, "no audio"),
        ({"bytes": None, "path": None}, "no audio"),
        ({"bytes": b"", "path": "empty.wav"}, "empty.wav cannot be read"),
        ({"bytes": None, "path": "memory://nowhere.wav"}, "nowhere.wav"),
        ({"array": np.zeros(1000, np.int16), "sampling_rate": RATE}, "holds int16"),
        ({"array": np.zeros(1000), "sampling_rate": None}, "dict, has no sampling rate"),
        ({"array": np.zeros((1000, 2)), "sampling_rate": RATE}, r"shape \(1000, 2\)"),
        (np.zeros(1000), "ndarray, has no sampling rate"),
    ],
)
def test_the_reason_of_a_bad_row_is_recorded(folder, row, reason):
    columns = JukeboxCodeExtractor.from_pretrained(folder, levels=[2])({"audio": [row]})
    assert columns["audio_codes_2"] == [None]
    with pytest.raises(ValueError, match=reason):
        raise ValueError(columns["error"][0])


def test_a_large_codebook_takes_int32(tmp_path):
    config = JukeboxVQVAEConfig(
        num_downsamples=[1], strides=[2], level_multipliers=None, hidden_size=2, num_residual_layers=1,
        codebook_size=2**15 + 1, codebook_dim=2,
    )  # fmt: skip
    model = JukeboxVQVAEModel(config)
    # All latents are nearest to the last code, which int16 cannot hold.
    model.codebooks[0].vectors.fill_(1e6)
    model.codebooks[0].vectors[-1] = 0
    model.save_pretrained(tmp_path)
    JukeboxFeatureExtractor(hop_length=2).save_pretrained(tmp_path)
    dataset = Dataset.from_dict({"audio": [{"array": [0.5] * 8, "sampling_rate": RATE}]})
    mapped = dataset.map(JukeboxCodeExtractor.from_pretrained(tmp_path), batched=True)
    assert mapped.features["audio_codes_0"] == List(Value("int32"))
    assert mapped[0]["audio_codes_0"] == [2**15] * 4


SECOND_PROCESS = """
import json, sys
from datasets import load_from_disk
from datasets.fingerprint import Hasher
from jukebox_hf import JukeboxCodeExtractor, JukeboxVQVAEModel

def refuse(*args, **kwargs):
    raise AssertionError("the model was loaded although its codes are in the cache")

JukeboxVQVAEModel.from_pretrained = refuse
extractor = JukeboxCodeExtractor.from_pretrained(sys.argv[1], levels=[1, 2])
mapped = load_from_disk(sys.argv[2]).map(extractor, batched=True)
print(json.dumps([Hasher.hash(extractor), mapped._fingerprint, mapped.cache_files, mapped["audio_codes_2"][:]]))
"""


def test_a_second_process_finds_the_codes_in_the_cache(folder, files, tmp_path):
    audio_dataset(files, GOOD_FILES).save_to_disk(tmp_path / "dataset")
    dataset = Dataset.load_from_disk(str(tmp_path / "dataset"))
    extractor = JukeboxCodeExtractor.from_pretrained(folder, levels=[1, 2])
    mapped = dataset.map(extractor, batched=True)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "dataset").iterdir()}

    command = [sys.executable, "-c", SECOND_PROCESS, str(folder), str(tmp_path / "dataset")]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    # The extractor has a model by now and must hash as it did without one.
    assert json.loads(output) == [
        Hasher.hash(extractor), mapped._fingerprint, mapped.cache_files, mapped["audio_codes_2"][:],
    ]  # fmt: skip
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "dataset").iterdir()} == before


def test_whatever_changes_the_codes_changes_the_fingerprint(folder, small_model):
    describe = partial(JukeboxCodeExtractor.from_pretrained, folder)
    first = Hasher.hash(describe())
    # What changes no code changes nothing.
    (folder / "README.md").write_text("A card.")
    os.utime(folder / "model.safetensors", (0, 0))
    assert Hasher.hash(describe()) == Hasher.hash(describe(levels=[0, 1, 2])) == first
    hashes = [
        first,
        Hasher.hash(describe(levels=[2])),
        Hasher.hash(describe(levels=[2, 1])),
        Hasher.hash(describe(audio_column="sound")),
        Hasher.hash(describe(dtype="float16")),
    ]
    JukeboxFeatureExtractor(normalize=True).save_pretrained(folder)
    hashes.append(Hasher.hash(describe()))
    small_model.codebooks[0].vectors[0, 0] += 1
    small_model.save_pretrained(folder)
    hashes.append(Hasher.hash(describe()))
    assert len(set(hashes)) == len(hashes)


def test_a_folder_that_changed_is_not_loaded_under_its_old_fingerprint(folder, files, small_model):
    extractor = JukeboxCodeExtractor.from_pretrained(folder)
    small_model.codebooks[0].vectors[0, 0] += 1
    small_model.save_pretrained(folder)
    with pytest.raises(ValueError, match="has changed since"):
        extractor({"audio": [str(files / "stereo.wav")]})


def test_a_pickle_holds_no_model_and_works(folder, files):
    extractor = JukeboxCodeExtractor.from_pretrained(folder, levels=[2])
    batch = {"audio": [str(files / "stereo.wav")]}
    codes = extractor(batch)["audio_codes_2"][0]
    pickled = pickle.dumps(extractor)
    assert len(pickled) < 1000
    np.testing.assert_array_equal(pickle.loads(pickled)(batch)["audio_codes_2"][0], codes)


def test_a_repository_is_kept_at_its_commit(folder, files, tmp_path, monkeypatch):
    commits = {"main": "a" * 40, "other": "b" * 40}
    repository = tmp_path / "hub" / "models--org--tiny"
    (repository / "refs").mkdir(parents=True)
    for branch, commit in commits.items():
        shutil.copytree(folder, repository / "snapshots" / commit)
        (repository / "refs" / branch).write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    extractors = {
        branch: JukeboxCodeExtractor.from_pretrained("org/tiny", levels=[2], revision=branch) for branch in commits
    }
    assert {branch: extractor.model.commit for branch, extractor in extractors.items()} == commits
    assert Hasher.hash(extractors["main"]) != Hasher.hash(extractors["other"])
    # The branch moves on to a commit that is not there; the extractor stays where it was.
    (repository / "refs" / "main").write_text("c" * 40)
    expected = JukeboxCodeExtractor.from_pretrained(folder, levels=[2])
    batch = {"audio": [str(files / "stereo.wav")]}
    np.testing.assert_array_equal(extractors["main"](batch)["audio_codes_2"][0], expected(batch)["audio_codes_2"][0])


def test_a_broken_torchcodec_stops_the_run(folder, files, tmp_path, monkeypatch):
    dataset = audio_dataset(files, GOOD_FILES)
    extractor = JukeboxCodeExtractor.from_pretrained(folder, levels=[2])
    broken = tmp_path / "broken" / "torchcodec"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise RuntimeError('Could not load libtorchcodec')")
    monkeypatch.syspath_prepend(broken.parent)
    for module in list(sys.modules):
        if module.startswith("torchcodec") or module == "datasets.features._torchcodec":
            monkeypatch.delitem(sys.modules, module)
    with pytest.raises(RuntimeError, match="Could not load libtorchcodec"):
        dataset.map(extractor, batched=True)


@pytest.mark.parametrize("levels", [[3], [-1], []])
def test_unknown_levels_are_refused_before_anything_runs(folder, levels):
    with pytest.raises(ValueError, match=r"this model has the levels 0, 1, 2"):
        JukeboxCodeExtractor.from_pretrained(folder, levels=levels)


def test_a_missing_column_is_named(folder):
    with pytest.raises(ValueError, match="audio_column='audio': the batch has the columns sound, text"):
        JukeboxCodeExtractor.from_pretrained(folder)({"sound": [], "text": []})


def test_the_import_brings_no_audio_library():
    program = """
import sys
from transformers import AutoFeatureExtractor, AutoModel, PreTrainedModel, SequenceFeatureExtractor
from transformers.modeling_utils import PreTrainedAudioTokenizerBase
before = set(sys.modules)
import jukebox_hf
print(*sorted({"datasets", "soundfile", "soxr", "torchcodec", "pyarrow", "multiprocess"} & (set(sys.modules) - before)))
print("jukebox_hf.audio_files" in sys.modules)
"""
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert output.split() == ["False"]


def test_bytes_are_read_like_their_file(folder, files):
    """A dataset that embeds its files, as those on the Hub do."""
    extractor = JukeboxCodeExtractor.from_pretrained(folder, levels=[2])
    rows = [{"bytes": (files / name).read_bytes(), "path": name} for name in GOOD_FILES]
    embedded = Dataset.from_dict({"audio": rows}).cast_column("audio", Audio(decode=False))
    from_bytes = embedded.map(extractor, batched=True)["audio_codes_2"][:]
    assert from_bytes == audio_dataset(files, GOOD_FILES, decode=False).map(extractor, batched=True)["audio_codes_2"][:]
