"""The repository folder that a conversion writes, its way to the Hub, and the commands that ask for it."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import httpx2
import numpy as np
import pytest
import typer
from huggingface_hub import ModelCard
from huggingface_hub.errors import LocalTokenNotFoundError
from transformers import AutoModel
from typer.testing import CliRunner

from jukebox_hf import JukeboxFeatureExtractor
from jukebox_hf.cli.convert import convert as convert_command
from jukebox_hf.conversion import convert as convert_module
from jukebox_hf.conversion.convert import convert_checkpoint
from jukebox_hf.conversion.download import file_sha256
from jukebox_hf.conversion.official import OFFICIAL_CHECKPOINTS, OfficialCheckpoint

TESTS = Path(__file__).parent


def golden_file(case: str = "vqvae-two-level") -> Path:
    return TESTS / "goldens" / case / "checkpoint.pth.tar"


@pytest.fixture
def official_golden(monkeypatch) -> OfficialCheckpoint:
    """Makes the golden checkpoint of the released architecture the official file."""
    known = OFFICIAL_CHECKPOINTS["5b-vqvae"]
    official = OfficialCheckpoint(
        known.url, known.config, known.sample_length, sha256=file_sha256(golden_file("vqvae-5b-size"))
    )
    monkeypatch.setitem(OFFICIAL_CHECKPOINTS, "5b-vqvae", official)
    return official


def test_an_official_file_from_elsewhere_is_known_by_its_checksum(official_golden, tmp_path):
    model = AutoModel.from_pretrained(convert_checkpoint(golden_file("vqvae-5b-size"), tmp_path / "out"))
    # Its hps say 8192: the clip length of the table counts.
    assert model.codebooks[0].counts[0] == 24.0
    card = (tmp_path / "out" / "README.md").read_text()
    assert official_golden.url in card and official_golden.sha256 in card
    assert ModelCard(card).data.license_name == "openai-jukebox-noncommercial"
    assert not hasattr(official_golden.config, "auto_map")


def test_model_card(tmp_path):
    folder = convert_checkpoint(golden_file("vqvae-three-level"), tmp_path / "my-vqvae")
    card = ModelCard((folder / "README.md").read_text())
    assert card.data.license == "other" and card.data.get("license_name") is None
    assert (card.data.library_name, card.data.pipeline_tag) == ("transformers", "feature-extraction")
    assert "$" not in card.content
    for fact in (
        "# my-vqvae",
        file_sha256(golden_file("vqvae-three-level")),
        "| 0 | 8 | 5512.5 | 32 |\n| 1 | 32 | 1378.1 | 32 |\n| 2 | 128 | 344.5 | 32 |",
        f"{AutoModel.from_pretrained(folder).num_parameters():,} parameters",
        "no licence for its weights",
        "were not available to the project's continuous integration",
    ):
        assert fact in card.text


def test_the_cards_example_runs(tmp_path, monkeypatch):
    convert_checkpoint(golden_file("vqvae-three-level"), tmp_path / "my-vqvae")
    monkeypatch.chdir(tmp_path)
    (example,) = re.findall(r"```python\n(.*?)```", Path("my-vqvae", "README.md").read_text(), re.DOTALL)
    names = {"waveform": np.zeros(1280, dtype=np.float32)}
    exec(example, names)
    assert names["codes"].shape == (1, 10) and names["audio"].shape == (1, 1, 1280)


def test_trust_remote_code_needs_no_import(tmp_path):
    folder = convert_checkpoint(golden_file(), tmp_path / "out")
    # Each class in a process of its own, as loading the first imports the package.
    script = f"""
import os, sys
from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoModelForAudioTokenization
for auto in (AutoConfig, AutoFeatureExtractor, AutoModel, AutoModelForAudioTokenization):
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
        "jukebox_hf.configuration_jukebox JukeboxVQVAEConfig",
        "jukebox_hf.feature_extraction_jukebox JukeboxFeatureExtractor",
        "jukebox_hf.modeling_jukebox_vqvae JukeboxVQVAEModel",
        "jukebox_hf.modeling_jukebox_vqvae JukeboxVQVAEModel",
    ], result.stderr


def test_other_users_may_read_the_folder(tmp_path):
    folder = convert_checkpoint(golden_file(), tmp_path / "out")
    readable = tmp_path / "readable"
    readable.touch()
    assert {path.stat().st_mode for path in folder.iterdir()} == {readable.stat().st_mode}


def test_a_failed_conversion_leaves_nothing(tmp_path, monkeypatch):
    def fail(*_, **__):
        assert any(root.rglob("model.safetensors")), "the failure should come when half of the folder is written"
        raise OSError("disk full")

    root = tmp_path / "root"
    monkeypatch.setattr(JukeboxFeatureExtractor, "save_pretrained", fail)
    with pytest.raises(OSError, match="disk full"):
        convert_checkpoint(golden_file(), root / "out")
    assert list(root.iterdir()) == []


def test_existing_output_is_never_touched(tmp_path, monkeypatch):
    monkeypatch.setattr(convert_module, "read_checkpoint", lambda _: pytest.fail("refuse before the work is done"))
    folder, file = tmp_path / "folder", tmp_path / "file"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    file.write_text("mine, too")
    for output in (folder, file):
        with pytest.raises(ValueError, match=f"{output} exists and is not an empty folder"):
            convert_checkpoint(golden_file(), output)
    assert [path.name for path in folder.iterdir()] == ["notes.txt"] and file.read_text() == "mine, too"


def test_an_empty_folder_is_fine(tmp_path):
    (tmp_path / "out").mkdir()
    assert (convert_checkpoint(golden_file(), tmp_path / "out") / "config.json").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.fixture
def hub(monkeypatch) -> list:
    calls = []
    monkeypatch.setattr(convert_module, "create_repo", lambda repo, **options: calls.append((repo, options)))
    monkeypatch.setattr(convert_module, "upload_folder", lambda **options: calls.append(options))
    return calls


def test_push_to_hub(hub, tmp_path):
    folder = convert_checkpoint(golden_file(), tmp_path / "out", push_to_hub="me/my-vqvae")
    created, uploaded = hub
    assert created == ("me/my-vqvae", {"exist_ok": True})
    assert (uploaded["repo_id"], uploaded["folder_path"]) == ("me/my-vqvae", folder)
    assert 'from_pretrained("me/my-vqvae")' in (folder / "README.md").read_text()


@pytest.mark.parametrize("error", [httpx2.ConnectError("no route"), LocalTokenNotFoundError("log in first")])
def test_a_failed_upload_keeps_the_folder(error, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(convert_module, "create_repo", fail)
    with pytest.raises(
        ConnectionError, match=rf"failed \({error}\). Upload it with `hf upload me/my-vqvae {tmp_path}/out`"
    ):
        convert_checkpoint(golden_file(), tmp_path / "out", push_to_hub="me/my-vqvae")
    assert AutoModel.from_pretrained(tmp_path / "out").num_parameters()


def test_a_wrong_repository_name_is_refused_before_the_work(hub, tmp_path):
    with pytest.raises(ValueError, match="not/a/name"):
        convert_checkpoint(golden_file(), tmp_path / "out", push_to_hub="not/a/name")
    assert not hub and not (tmp_path / "out").exists()


# The command and the maintainers' script


@pytest.fixture
def command_line():
    app = typer.Typer()
    app.command()(convert_command)
    return lambda *arguments: CliRunner().invoke(app, list(map(str, arguments)))


def test_command(command_line, hub, tmp_path):
    result = command_line(golden_file(), tmp_path / "out", "--push-to-hub", "me/my-vqvae")
    assert result.exit_code == 0, result.output
    assert str(tmp_path / "out") in result.output.replace("\n", "")
    assert "https://huggingface.co/me/my-vqvae" in result.output
    assert len(hub) == 2


def test_command_help_teaches(command_line):
    text = command_line("--help").output
    assert "5b-vqvae" in text and "jukebox-hf convert 5b-vqvae jukebox-5b-vqvae" in text


def test_maintainers_script(monkeypatch, tmp_path):
    path = TESTS.parent / "conversion" / "convert_official.py"
    spec = importlib.util.spec_from_file_location("convert_official", path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    calls = []
    monkeypatch.setattr(script, "convert_checkpoint", lambda *arguments: calls.append(arguments))
    script.main(tmp_path)
    script.main(tmp_path, organisation="org")
    folder = tmp_path / "jukebox-5b-vqvae"
    assert calls[0] == ("5b-vqvae", folder, None) and calls[6] == ("5b-vqvae", folder, "org/jukebox-5b-vqvae")
    assert [name for name, _, _ in calls] == 2 * list(OFFICIAL_CHECKPOINTS)
