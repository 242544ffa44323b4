"""The small Jukebox that comes with the package, where a trained model says more than a random one."""

import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import assert_matches
from safetensors.torch import load_file
from torchao.quantization import Int8WeightOnlyConfig
from transformers import (
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForTextToWaveform,
    AutoProcessor,
    AutoTokenizer,
    TorchAoConfig,
    pipeline,
)

import jukebox_hf
from jukebox_hf import JukeboxEmbedder, JukeboxModel, JukeboxPriorModel, JukeboxProcessor, JukeboxVQVAEModel

FOLDER = Path(jukebox_hf.demo)
CODES = Path(__file__).parent / "data/demo_codes.safetensors"

RATE, LEVELS = 16000, range(3)
INSTRUMENTS = {"piano", "church organ", "nylon guitar", "string ensemble"}
TONICS = ("c", "c#", "d", "eb", "e", "f", "f#", "g", "ab", "a", "bb", "b")
LABELS = {"artist": "church organ", "genre": "g major", "total_seconds": 35.0}
# Two windows of level 1, and no level 0, which takes most of the time.
SECONDS, UPPER = 3.072, [1, 2]
# Bits of a code, of which a guess without knowledge takes 10, and what a number format may add to them.
MOST_BITS = {0: 6.2, 1: 6.2, 2: 6.8}
FORMATS = {
    "fp16": ({"dtype": torch.float16}, 0.002),
    "int8": ({"dtype": torch.bfloat16, "quantization_config": TorchAoConfig(Int8WeightOnlyConfig())}, 0.01),
}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """The bits of a song depend on their number."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model() -> JukeboxModel:
    return AutoModel.from_pretrained(jukebox_hf.demo)


def draw(model: JukeboxModel, seed: int = 1, **settings):
    labels = JukeboxProcessor.from_pretrained(jukebox_hf.demo)(**LABELS)
    settings = {"seconds": SECONDS, "levels": UPPER, "generator": torch.Generator().manual_seed(seed)} | settings
    return model.generate(**labels, **settings)


@pytest.fixture(scope="module")
def song(model):
    return draw(model)


@pytest.fixture(scope="module")
def windows() -> dict[int, dict[str, torch.Tensor]]:
    """Codes of held-out music with their conditions, for each level, as its prior takes them."""
    tensors = load_file(CODES)
    levels = {level: {} for level in LEVELS}
    for name, values in tensors.items():
        level, name = name.split(".")
        levels[int(level)][name] = values.long()
    return levels


@torch.no_grad()
def bits(prior: JukeboxPriorModel, inputs: dict[str, torch.Tensor]) -> float:
    return prior(**inputs, labels=inputs["input_ids"]).loss.item()


# The repository


def test_it_holds_what_a_repository_needs_and_fits_a_wheel():
    names = {path.name for path in FOLDER.iterdir()}
    assert names == {
        "README.md", "artists.json", "config.json", "generation_config.json", "genres.json", "lyrics.json",
        "model.safetensors", "processor_config.json", "tokenizer_config.json",
    }  # fmt: skip
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 25e6
    # transformers writes where each part was, which is a path of the machine that trained it.
    assert not any("/" in path.read_text() for path in FOLDER.glob("*.json"))


def test_every_class_loads_it_without_a_network(monkeypatch):
    asked = []

    def refuse(*address, **_):
        asked.append(address)
        raise OSError("There is no network.")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for auto_class in (AutoModel, AutoModelForTextToWaveform):
        whole = auto_class.from_pretrained(jukebox_hf.demo)
        # Its file is in half precision.
        assert isinstance(whole, JukeboxModel) and {value.dtype for value in whole.parameters()} == {torch.float32}
    assert isinstance(AutoProcessor.from_pretrained(jukebox_hf.demo), JukeboxProcessor)
    assert AutoFeatureExtractor.from_pretrained(jukebox_hf.demo).sampling_rate == RATE
    assert AutoTokenizer.from_pretrained(jukebox_hf.demo).versions == ["v3"] * 3
    assert JukeboxVQVAEModel.from_pretrained(jukebox_hf.demo).config.hop_lengths == [16, 64, 256]
    for level in LEVELS:
        assert JukeboxPriorModel.from_pretrained(jukebox_hf.demo, level=level).config.level == level
    clip = torch.randn(RATE * 2, generator=torch.Generator().manual_seed(0)).numpy() * 0.1
    embedding = JukeboxEmbedder.from_pretrained(jukebox_hf.demo, layers=[5])(clip, sampling_rate=RATE)
    assert embedding.layers[5].shape == (whole.config.priors[2].hidden_size,)
    assert not asked


def test_it_knows_the_instruments_and_all_keys():
    tokenizer = JukeboxProcessor.from_pretrained(jukebox_hf.demo).tokenizer
    assert set(tokenizer.artists["v3"]) - {"unknown"} == INSTRUMENTS
    keys = {f"{tonic} {mode}" for tonic in TONICS for mode in ("major", "minor")}
    assert set(tokenizer.genres["v3"]) - {"unknown"} == keys


# Songs


def test_the_pipeline_draws_a_song():
    pipe = pipeline("text-to-audio", model=jukebox_hf.demo)
    song = pipe("", preprocess_params=LABELS, generate_kwargs={"seconds": SECONDS, "levels": UPPER})
    assert song["sampling_rate"] == RATE and song["audio"].shape == (round(SECONDS * RATE),)
    # Music, and neither silence nor noise that is cut off.
    assert 0.01 < song["audio"].std() < 0.5


def test_the_same_seed_makes_the_same_song(model, song):
    again, other = (draw(model, seed) for seed in (1, 2))
    assert all(torch.equal(again.audio_codes[level], song.audio_codes[level]) for level in UPPER)
    assert torch.equal(again.audio, song.audio)
    assert not torch.equal(other.audio_codes[2], song.audio_codes[2])


KILLED = """
import os, signal, sys, torch
sys.path.insert(0, sys.argv[1])
import test_demo_model as test
torch.set_num_threads(1)

def kill(progress):
    if (progress.level, progress.window) == (1, 1) and progress.position > 600:
        os.kill(os.getpid(), signal.SIGKILL)

model = test.AutoModel.from_pretrained(test.jukebox_hf.demo)
test.draw(model, state_dir=sys.argv[2], callback=kill)
"""


def test_a_song_that_is_killed_and_resumed_is_the_uninterrupted_one(model, song, tmp_path):
    command = [sys.executable, "-c", KILLED, str(Path(__file__).parent), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == -signal.SIGKILL, done.stderr
    drawn = []
    resumed = draw(model, state_dir=tmp_path, callback=lambda progress: drawn.append(progress))
    # Level 2 and the first window of level 1 were kept.
    assert {(one.level, one.window) for one in drawn if one.audio is None} == {(1, 1)}
    assert all(torch.equal(resumed.audio_codes[level], song.audio_codes[level]) for level in UPPER)
    assert torch.equal(resumed.audio, song.audio)


@pytest.mark.parametrize("level", UPPER)
def test_streamed_codes_and_audio_are_those_of_one_pass(level, model, song):
    vqvae, codes = model.vqvae, song.audio_codes[level]
    whole = vqvae.decode(codes, level=level).audio_values
    streamed = torch.cat([*vqvae.decode_stream(codes.split(37, dim=1), level)], dim=2)
    assert_matches(streamed, whole)
    (encoded,) = vqvae.encode(whole, levels=[level]).audio_codes
    streamed = torch.cat([block for (block,) in vqvae.encode_stream(whole.split(3001, dim=2), [level])], dim=1)
    assert torch.equal(streamed, encoded)


# What the priors know


@pytest.mark.parametrize("level", LEVELS)
def test_music_that_it_never_heard_takes_fewer_bits_than_a_guess(level, model, windows):
    assert bits(model.priors[level], windows[level]) < MOST_BITS[level]


@pytest.mark.parametrize("level", [0, 1])
def test_upsamplers_read_the_codes_above(level, model, windows):
    right = bits(model.priors[level], windows[level])
    others = {"upper_codes": windows[level]["upper_codes"].roll(1, dims=0)}
    assert bits(model.priors[level], windows[level] | others) > right + 5


@pytest.mark.parametrize(("name", "step"), [("artist_ids", 1), ("genre_ids", 6)])
def test_the_top_prior_reads_the_labels(name, step, model, windows):
    """Under the name of another instrument, or of another key, music takes more bits."""
    prior, inputs = model.priors[2], windows[2]
    size = prior.config.num_artists if name == "artist_ids" else prior.config.num_genres
    wrong = {name: (inputs[name] - 1 + step) % (size - 1) + 1}
    assert bits(prior, inputs | wrong) > bits(prior, inputs)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", FORMATS)
def test_other_number_formats_hardly_change_the_bits(name, level, model, windows):
    settings, most = FORMATS[name]
    prior = JukeboxPriorModel.from_pretrained(jukebox_hf.demo, level=level, **settings)
    assert prior.dtype == settings["dtype"]
    change = bits(prior, windows[level]) - bits(model.priors[level], windows[level])
    assert 0 < abs(change) < most, change


def test_it_draws_by_itself_and_a_little_colder_than_the_original(model):
    settings = model.generation_config
    assert (settings.do_sample, settings.temperature, settings.top_k) == (True, 0.9, 0)


def test_a_part_draws_as_the_whole_does(model):
    codes = model.priors[2].generate(max_length=4, num_return_sequences=8, generator=torch.Generator().manual_seed(0))
    assert len(set(codes[:, 0].tolist())) > 1
