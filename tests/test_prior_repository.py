"""The repository that the conversion of a prior writes: vocabulary, Auto classes, model card, download, command."""

import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import typer
from conftest import PRIOR_CASES, golden
from huggingface_hub import ModelCard, constants
from test_download import Server
from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoProcessor, AutoTokenizer
from typer.testing import CliRunner

from jukebox_hf import JukeboxFeatureExtractor, JukeboxPriorModel, JukeboxProcessor, JukeboxTokenizer
from jukebox_hf.cli.convert import convert as convert_command
from jukebox_hf.conversion import vocabularies
from jukebox_hf.conversion.convert import convert_checkpoint
from jukebox_hf.conversion.hyperparameters import prior_config_from_hps
from jukebox_hf.conversion.official import OFFICIAL_CHECKPOINTS, OfficialCheckpoint

ARTISTS = "unknown;0\nvela;1\nsaltmarsh;2\n"
GENRES = "unknown;0\nfolk;1\n"


@pytest.fixture
def lists(tmp_path) -> Path:
    """The lists of artists and genres of a run."""
    folder = tmp_path / "lists"
    folder.mkdir()
    for version in ("v2", "v3"):
        (folder / f"{version}_artist_ids.txt").write_text(ARTISTS)
        (folder / f"{version}_genre_ids.txt").write_text(GENRES)
    return folder


def test_a_prior_with_its_vocabulary(lists, tmp_path):
    case = golden("prior-5b-lyrics-style")
    folder = convert_checkpoint(case.checkpoint, tmp_path / "out", vocabulary=lists)
    assert {path.name for path in folder.iterdir()} == {
        "config.json", "generation_config.json", "model.safetensors", "README.md", "jukebox_hf_shim.py",
        "processor_config.json", "tokenizer_config.json", "artists.json", "genres.json", "lyrics.json",
    }  # fmt: skip
    processor = AutoProcessor.from_pretrained(folder)
    assert isinstance(processor, JukeboxProcessor) and processor.sample_length == 64 * 128
    tokenizer, extractor = AutoTokenizer.from_pretrained(folder), AutoFeatureExtractor.from_pretrained(folder)
    assert isinstance(tokenizer, JukeboxTokenizer) and isinstance(extractor, JukeboxFeatureExtractor)
    assert (tokenizer.versions, tokenizer.max_genres, tokenizer.num_lyric_tokens) == (["v2"], 5, 16)
    assert (extractor.sampling_rate, extractor.hop_length) == (44100, 128)
    conditions = processor("Some lyrics of a song", artist="Saltmarsh", genre="Folk", total_seconds=30)
    assert conditions["artist_ids"].tolist() == [2] and conditions["genre_ids"].tolist() == [[1, -1, -1, -1, -1]]
    model = AutoModel.from_pretrained(folder)
    assert model.generate(**conditions, max_length=5).shape == (1, 5)


@pytest.mark.parametrize(("case", "version"), [("prior-1b-lyrics-style", "v3"), ("upsampler-level-0-style", "v2")])
def test_the_version_is_the_runs(case, version, lists, tmp_path):
    folder = convert_checkpoint(golden(case).checkpoint, tmp_path / "out", vocabulary=str(lists))
    processor = AutoProcessor.from_pretrained(folder)
    assert processor.tokenizer.versions == [version]
    assert processor.tokenizer.artists == {version: {"unknown": 0, "vela": 1, "saltmarsh": 2}}
    # The longest hop of the VQ-VAE, whatever the prior's level.
    assert processor.feature_extractor.hop_length == 128


def test_without_a_vocabulary_there_is_a_warning(tmp_path, caplog):
    folder = convert_checkpoint(golden("prior-1b-lyrics-style").checkpoint, tmp_path / "out")
    assert "gets no tokenizer" in caplog.text and "v3_artist_ids.txt" in caplog.text
    assert isinstance(AutoFeatureExtractor.from_pretrained(folder), JukeboxFeatureExtractor)
    assert not (folder / "tokenizer_config.json").exists()


def test_an_unlabelled_prior_needs_none(lists, tmp_path, caplog):
    checkpoint = golden("prior-unlabelled-style").checkpoint
    folder = convert_checkpoint(checkpoint, tmp_path / "out")
    assert "tokenizer" not in caplog.text
    assert isinstance(AutoFeatureExtractor.from_pretrained(folder), JukeboxFeatureExtractor)
    with pytest.raises(ValueError, match="trained without labels"):
        convert_checkpoint(checkpoint, tmp_path / "other", vocabulary=lists)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("v2_artist_ids.txt", None, "There is no v2_artist_ids.txt in .*lists"),
        ("v2_genre_ids.txt", "folk;12\n", r"v2_genre_ids.txt has the id 12, but hps\['y_bins'\] .* 0 to 11"),
        ("v2_genre_ids.txt", "folk\n", "Line 1 of .*v2_genre_ids.txt is 'folk'"),
    ],
)
def test_vocabularies_that_do_not_fit(name, content, message, lists, tmp_path):
    (lists / name).unlink()
    if content is not None:
        (lists / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        convert_checkpoint(golden("prior-5b-style").checkpoint, tmp_path / "out", vocabulary=lists)
    assert not (tmp_path / "out").exists()


def test_lyrics_of_another_version(lists, tmp_path):
    content = torch.load(golden("prior-5b-lyrics-style").checkpoint, weights_only=True)
    content["hps"]["labels_v3"] = True
    torch.save(content, tmp_path / "changed.pth.tar")
    with pytest.raises(ValueError, match=r"hps\['n_vocab'\] is 80, but the lyrics of v3 have 79 ids"):
        convert_checkpoint(tmp_path / "changed.pth.tar", tmp_path / "out", vocabulary=lists)


@pytest.mark.parametrize("option", [{"dtype": "float16"}, {"vocabulary": "lists"}])
def test_options_of_priors_alone(option, tmp_path):
    with pytest.raises(ValueError, match=f"{next(iter(option))}=.*: this is the checkpoint of a VQ-VAE"):
        convert_checkpoint(golden("vqvae-two-level").checkpoint, tmp_path / "out", **option)


def test_an_unknown_dtype_is_refused_before_the_work(tmp_path):
    with pytest.raises(ValueError, match="dtype='int8': choose one of float32, float16, bfloat16"):
        convert_checkpoint("5b-prior-level-2", tmp_path / "out", dtype="int8")


def test_generation_defaults_are_the_originals(converted):
    settings = AutoModel.from_pretrained(converted("prior-5b-style")).generation_config
    assert (settings.do_sample, settings.temperature, settings.top_k) == (True, 0.99, 0)


def test_trust_remote_code_needs_no_import(lists, tmp_path):
    folder = convert_checkpoint(golden("prior-5b-style").checkpoint, tmp_path / "out", vocabulary=lists)
    # Each class in a process of its own, as loading the first imports the package.
    script = f"""
import os, sys
from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoProcessor, AutoTokenizer
for auto in (AutoConfig, AutoFeatureExtractor, AutoTokenizer, AutoProcessor, AutoModel):
    if os.fork() == 0:
        assert "jukebox_hf" not in sys.modules
        loaded = type(auto.from_pretrained({str(folder)!r}, trust_remote_code=True))
        print(loaded.__module__, loaded.__qualname__, flush=True)
        os._exit(0)
    os.wait()
"""
    environment = os.environ | {"HF_HOME": str(tmp_path / "home")}
    result = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert result.stdout.splitlines() == [
        "jukebox_hf.configuration_jukebox JukeboxPriorConfig",
        "jukebox_hf.feature_extraction_jukebox JukeboxFeatureExtractor",
        "jukebox_hf.tokenization_jukebox JukeboxTokenizer",
        "jukebox_hf.processing_jukebox JukeboxProcessor",
        "jukebox_hf.modeling_jukebox_prior JukeboxPriorModel",
    ], result.stderr


# The model card


def test_model_card(converted):
    folder = converted("prior-5b-lyrics-style")
    card = ModelCard((folder / "README.md").read_text())
    assert card.data.license == "other" and card.data.get("license_name") is None
    assert "$" not in card.content
    for fact in (
        "# prior-5b-lyrics-style",
        hashlib.sha256(golden("prior-5b-lyrics-style").checkpoint.read_bytes()).hexdigest(),
        "| context | 64 codes, 0.19 s |",
        "| labels | v2: 30 artists, 12 genres, up to 5 for a song |",
        "| timing | songs of 1 s to 60 s |",
        "| lyrics | 16 characters of 79, read by layers of their own |",
        f"| parameters | {AutoModel.from_pretrained(folder).num_parameters():,} |",
        "loaded in float16",
        "no licence for its weights",
        "token for token",
    ):
        assert fact in card.text


@pytest.mark.parametrize("with_vocabulary", [False, True])
@pytest.mark.parametrize("case", PRIOR_CASES)
def test_the_cards_example_runs(case, with_vocabulary, lists, tmp_path, monkeypatch):
    if with_vocabulary and case == "prior-unlabelled-style":
        pytest.skip("this prior has no labels")
    vocabulary = lists if with_vocabulary else None
    convert_checkpoint(golden(case).checkpoint, tmp_path / "my-prior", vocabulary=vocabulary)
    monkeypatch.chdir(tmp_path)
    (example,) = re.findall(r"```python\n(.*?)```", Path("my-prior", "README.md").read_text(), re.DOTALL)
    assert ("AutoProcessor" in example) == with_vocabulary
    names = {}
    exec(example, names)
    assert names["codes"].shape == (1, 16)
    assert names["hidden_states"].shape == (1, 32 if case == "prior-1b-lyrics-style" else 16, 32)


# Official names


@pytest.fixture
def server():
    servers = []

    def serve(content: bytes) -> Server:
        servers.append(Server(content))
        return servers[-1]

    yield serve
    for each in servers:
        each.close()


def test_an_official_prior_and_its_lists_are_downloaded(server, monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("jukebox_hf.conversion.download.RETRY_SECONDS", 0)
    case = golden("prior-1b-lyrics-style")
    content = case.checkpoint.read_bytes()
    weights, names = server(content), server(ARTISTS.encode())
    weights.break_after = [300_000, 100_000, None]
    name = "1b-lyrics-prior-level-2"
    official = OfficialCheckpoint(
        weights.url,
        prior_config_from_hps(case.settings["hps"]),
        sha256=hashlib.sha256(content).hexdigest(),
        label_version="v3",
    )
    monkeypatch.setitem(OFFICIAL_CHECKPOINTS, name, official)
    monkeypatch.setattr(vocabularies, "IDS_URL", names.url.rpartition("/")[0])
    # The server sends the same file whatever it is asked for, so both lists are of artists here.
    for file in ("v3_artist_ids.txt", "v3_genre_ids.txt"):
        monkeypatch.setitem(vocabularies.ID_LISTS, file, hashlib.sha256(ARTISTS.encode()).hexdigest())

    result = run_command(name, tmp_path / "out")
    assert result.exit_code == 0, result.output
    folder = tmp_path / "out"
    assert weights.served == len(content) and len(weights.asked) == 3
    assert len(names.asked) == 2
    assert isinstance(AutoModel.from_pretrained(folder), JukeboxPriorModel)
    processor = AutoProcessor.from_pretrained(folder)
    assert processor("text", artist="Vela", total_seconds=20)["artist_ids"].tolist() == [1]
    card = ModelCard((folder / "README.md").read_text())
    assert card.data.license_name == "openai-jukebox-noncommercial"
    assert weights.url in card.text and "names of artists and genres" in card.text
    assert not hasattr(official.config, "auto_map")
    # The same file from elsewhere is known by its checksum.
    again = convert_checkpoint(case.checkpoint, tmp_path / "again")
    assert weights.url in (again / "README.md").read_text()
    assert len(weights.asked) == 3 and len(names.asked) == 2


def test_an_official_prior_that_is_another_checkpoint(server, monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))
    weights = server(golden("vqvae-two-level").checkpoint.read_bytes())
    known = OFFICIAL_CHECKPOINTS["5b-prior-level-1"]
    monkeypatch.setitem(
        OFFICIAL_CHECKPOINTS, "5b-prior-level-1", OfficialCheckpoint(weights.url, known.config, label_version="v2")
    )
    with pytest.raises(ValueError, match=r"does not fit its configuration.*without a place in the model.*missing"):
        convert_checkpoint("5b-prior-level-1", tmp_path / "out")


# The command


def run_command(*arguments):
    app = typer.Typer()
    app.command()(convert_command)
    return CliRunner().invoke(app, list(map(str, arguments)))


def test_command(lists, tmp_path):
    checkpoint = golden("prior-5b-style").checkpoint
    result = run_command(checkpoint, tmp_path / "out", "--dtype", "bfloat16", "--vocabulary", lists)
    assert result.exit_code == 0, result.output
    assert AutoConfig.from_pretrained(tmp_path / "out").dtype == torch.bfloat16
    assert AutoTokenizer.from_pretrained(tmp_path / "out").artist_id("vela") == 1


def test_command_help_names_all_official_checkpoints():
    text = run_command("--help").output
    for name in OFFICIAL_CHECKPOINTS:
        assert name in re.sub(r"\s+", "", text)


@pytest.mark.parametrize("options", [["--dtype", "int8"], ["--vocabulary", "nowhere"]])
def test_errors_are_one_line(options, tmp_path):
    checkpoint = golden("prior-5b-style").checkpoint
    command = [sys.executable, "-c", "from jukebox_hf.cli import main; main()", "convert", str(checkpoint)]
    result = subprocess.run([*command, str(tmp_path / "out"), *options], capture_output=True, text=True)
    assert result.returncode == 1 and result.stdout == ""
    # Libraries may have had something to say on import.
    assert re.fullmatch(rf"Error: .*{options[1]}.*", result.stderr.splitlines()[-1])
    assert "Traceback" not in result.stderr
