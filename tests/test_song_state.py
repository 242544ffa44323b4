"""What a run leaves on disk: it goes on to the same bits after any stop, refuses other songs, and can be heard."""

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_composite_model import generators, random_song_model, shared_song_model, song_conditions
from test_composite_model import one_thread as one_thread
from torch import Tensor
from transformers import AutoModel, TorchAoConfig

from jukebox_hf import JukeboxModel, placement, song_state
from jukebox_hf.song_state import STATE_FILE, SongState, fingerprint, read_settings

# 7, 14 and 28 codes in 1, 3 and 6 windows.
SECONDS = 0.56
STYLE = "separate lyrics"
PROMPT = [None, torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6, 5]]), torch.tensor([[2, 7]])]


def draw(kind: str, seed: int = 1) -> dict:
    """What draws; another seed makes other songs."""
    if kind == "PyTorch's own":
        torch.manual_seed(seed)
        return {}
    seeds = (seed, seed + 1) if kind == "a generator each" else (seed,)
    return {"generator": generators(*seeds) if kind == "a generator each" else generators(*seeds)[0]}


def run(folder: Path | None, **settings):
    """Two songs, one after the other in every window."""
    model = shared_song_model(STYLE)
    settings = {"seconds": SECONDS, "batch_size": 1} | song_conditions(STYLE, 2) | settings
    return model.generate(**settings, state_dir=folder)


class Stop(Exception):
    pass


class OneWindow:
    """A callback that ends the run with the first window that is drawn."""

    def __init__(self, way: str):
        self.way, self.is_drawing = way, False

    def __call__(self, progress):
        self.is_drawing = self.is_drawing or progress.audio is None
        is_end = self.is_drawing and progress.audio is not None
        if is_end and self.way == "raises":
            raise Stop
        return is_end


def assert_same_song(song, expected):
    for codes, others in zip(song.audio_codes, expected.audio_codes):
        assert (codes is others is None) or torch.equal(codes, others)
    assert torch.equal(song.audio, expected.audio)
    assert song.is_complete and song.audio_level == expected.audio_level


def wavs(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.wav"))}


def as_16_bits(audio: Tensor) -> np.ndarray:
    """What libsndfile makes of samples: it rounds down."""
    return np.floor(audio.numpy() * 32768).clip(-32768, 32767).astype(np.int16)


# Going on


@pytest.mark.parametrize("way", ["returns", "raises"])
@pytest.mark.parametrize("kind", ["PyTorch's own", "one generator", "a generator each"])
def test_a_run_that_ends_after_every_window_goes_on_to_the_same_bits(kind, way, tmp_path):
    """The runs that go on pass generators of their own, which the state overrules."""
    prompt = PROMPT if way == "raises" else None
    expected = run(tmp_path / "whole", audio_codes=prompt, **draw(kind))
    drawn_with = draw(kind)
    for runs in range(1, 50):
        try:
            song = run(tmp_path / "parts", audio_codes=prompt, callback=OneWindow(way), **drawn_with)
        except Stop:
            song = None
        if song is not None and song.is_complete:
            break
        drawn_with = draw(kind, seed=1000 + runs if kind == "PyTorch's own" else 1)
    assert runs == (2 * (1 + 3 + 6) if prompt is None else 2 * (1 + 2 + 6) + 1)
    assert_same_song(song, expected)
    assert wavs(tmp_path / "parts") == wavs(tmp_path / "whole")
    assert len(wavs(tmp_path / "whole")) == 6


def test_what_a_window_had_when_it_was_left_is_drawn_again(tmp_path):
    expected = run(None, **draw("one generator"))
    drawn_with = draw("one generator")
    for last in (3, 11, 14, 20, 21, 30):
        calls = iter([None] * (last - 1) + [True])
        song = run(tmp_path, callback=lambda progress, calls=calls: next(calls), **drawn_with)
        assert not song.is_complete
    song = run(tmp_path, **drawn_with)
    assert_same_song(song, expected)
    after = draw("one generator")
    run(None, **after)
    assert torch.equal(drawn_with["generator"].get_state(), after["generator"].get_state())


def test_a_finished_song_is_given_again_without_a_draw(tmp_path):
    calls = []
    expected = run(tmp_path, **draw("a generator each"))
    content = (tmp_path / STATE_FILE).read_bytes()
    song = run(tmp_path, callback=calls.append, **draw("a generator each"))
    assert_same_song(song, expected)
    assert calls and all(call.audio is not None for call in calls)
    assert (tmp_path / STATE_FILE).read_bytes() == content


def test_a_song_goes_on_in_the_batches_that_it_was_begun_in(tmp_path, monkeypatch):
    expected = run(None, batch_size=None, **draw("one generator"))
    run(tmp_path, batch_size=None, callback=OneWindow("returns"), **draw("one generator"))
    monkeypatch.setattr(placement, "get_max_memory", lambda: {"cpu": 0})
    song = run(tmp_path, batch_size=None, **draw("one generator"))
    assert_same_song(song, expected)


def test_many_songs_get_back_their_own_generators(tmp_path):
    settings = {"seconds": 0.72, "levels": [2], "batch_size": 12, **song_conditions(STYLE, 12)}
    expected = run(None, generator=generators(*range(12)), **settings)
    run(tmp_path, generator=generators(*range(12)), callback=OneWindow("returns"), **settings)
    assert_same_song(run(tmp_path, generator=generators(*range(12)), **settings), expected)


def test_greedy_songs_and_upsamplings_go_on_too(tmp_path):
    settings = {"do_sample": False, "levels": [0, 1], "seconds": None}
    settings["audio_codes"] = [None, None, torch.tensor([[1, 2, 3, 4, 5, 6]])]
    expected = run(None, **settings)
    run(tmp_path, callback=OneWindow("returns"), **settings)
    assert_same_song(run(tmp_path, **settings), expected)


KILLED = """
import json, os, random, signal, sys, time
sys.path[:0] = json.loads(sys.argv[1])
folder = sys.argv[2]
import torch
from test_song_state import draw, run, shared_song_model, STYLE
torch.set_num_threads(1)
shared_song_model(STYLE)

def begin(kind, name, seed):
    child = os.fork()
    if child == 0:
        try:
            song = run(os.path.join(folder, name), **draw(kind, seed))
            torch.save([*song.audio_codes, song.audio], os.path.join(folder, name + ".pt"))
            os._exit(0)
        finally:
            os._exit(1)
    return child

chance, report = random.SystemRandom(), {}
for kind in ("PyTorch's own", "one generator", "a generator each"):
    start = time.monotonic()
    os.waitpid(begin(kind, kind + " whole", 1), 0)
    duration = time.monotonic() - start
    deadline, kills = time.monotonic() + 10 + duration, 0
    while True:
        # Once there is a state, what draws is a part of it.
        is_begun = os.path.exists(os.path.join(folder, kind + " killed", "song.safetensors"))
        child = begin(kind, kind + " killed", 100 + kills if is_begun and kind == "PyTorch's own" else 1)
        # Longer and longer, as each run begins by computing again what was heard before; the first two surely too early
        # to be done, however much faster the machine is by now.
        share = 0.4 if kills > 1 else 0.1
        end = time.monotonic() + chance.uniform(0, share * duration) * (1 + kills / 20)
        while time.monotonic() < deadline and time.monotonic() < end:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                break
            time.sleep(0.001)
        else:
            if time.monotonic() < deadline:
                os.kill(child, signal.SIGKILL)
                kills += 1
            done, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            report[kind] = kills, os.WEXITSTATUS(status)
            break
print(json.dumps(report))
"""


def test_a_run_killed_at_random_moments_ends_as_an_uninterrupted_one(tmp_path):
    paths = json.dumps([str(Path(__file__).parent), str(Path(__file__).parents[1])])
    command = [sys.executable, "-c", KILLED, paths, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout.splitlines()[-1])
    for kind, (kills, status) in report.items():
        assert status == 0 and kills >= 2, report
        whole, killed = (tmp_path / f"{kind} {name}" for name in ("whole", "killed"))
        songs = (torch.load(f"{folder}.pt") for folder in (whole, killed))
        assert all(torch.equal(one, other) for one, other in zip(*songs, strict=True))
        assert wavs(whole) == wavs(killed) and len(wavs(whole)) == 6
        states = [load_file(folder / STATE_FILE) for folder in (whole, killed)]
        assert states[0].keys() == states[1].keys()
        assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


# Saving


@pytest.fixture(scope="module")
def expected():
    return run(None, **draw("a generator each"))


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A state in the middle of level 1."""
    folder = tmp_path_factory.mktemp("begun") / "state"
    run(folder, callback=lambda progress: progress.level == 1 and progress.window == 1, **draw("a generator each"))
    return folder


@pytest.fixture
def state(begun, tmp_path) -> Path:
    return shutil.copytree(begun, tmp_path / "state")


@pytest.mark.parametrize("function", ["replace", "fsync"])
@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_the_last_state_stands_when_a_save_is_cut_off(function, failure, state, expected, monkeypatch):
    """A KeyboardInterrupt stands for a kill: nothing is cleaned up."""
    before = load_file(state / STATE_FILE)
    with monkeypatch.context() as patch, pytest.raises(type(failure)) as caught:
        patch.setattr(song_state.os, function, lambda *args: (_ for _ in ()).throw(failure))
        run(state, **draw("a generator each"))
    after = load_file(state / STATE_FILE)
    assert all(torch.equal(before[name], after[name]) for name in before)
    partial = state / f".{STATE_FILE}.partial"
    if isinstance(failure, OSError):
        assert f"{state / STATE_FILE} could not be written" in str(caught.value)
        assert "Free some space and run the same command again" in str(caught.value)
        assert "No space left" in str(caught.value) and not partial.exists()
    else:
        assert partial.exists()
    assert_same_song(run(state, **draw("a generator each")), expected)
    assert not partial.exists()


def test_half_a_file_of_a_killed_save_is_no_harm(state, expected):
    (state / f".{STATE_FILE}.partial").write_bytes((state / STATE_FILE).read_bytes()[:500])
    assert_same_song(run(state, **draw("a generator each")), expected)


@contextmanager
def files_of_at_most(size: int):
    """A disk that has no more room for a file; unlike a full one it takes no rights to make."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


def test_a_disk_without_room_for_the_state_stops_the_run_and_the_last_state_stands(state, expected):
    before = (state / STATE_FILE).read_bytes()
    with files_of_at_most(2000), pytest.raises(OSError, match=f"{STATE_FILE} could not be written"):
        run(state, **draw("a generator each"))
    assert (state / STATE_FILE).read_bytes() == before
    assert_same_song(run(state, **draw("a generator each")), expected)


def test_a_disk_without_room_for_audio_stops_the_run(tmp_path):
    state = SongState(tmp_path, {})
    state.append_audio(0, 3, torch.zeros(1, 1, 100), 100)
    with (
        files_of_at_most(1000),
        pytest.raises(OSError, match=r"song-3-level-0.wav could not be written .* the song goes"),
    ):
        state.append_audio(0, 3, torch.zeros(1, 1, 1000), 100)


def test_a_folder_that_cannot_be_made_is_an_error_of_the_system(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        run(tmp_path / "file")


# Other songs


def one_value(part: str, name: str):
    def change(settings: dict) -> JukeboxModel:
        model = random_song_model(STYLE)
        value = model.get_submodule(part).state_dict()[name].view(-1)
        # None of those that are looked at one by one.
        value[len(value) // 2 + 3] += 1e-3
        return model

    return change


def configured(level: int, **changes):
    def change(settings: dict) -> JukeboxModel:
        model = random_song_model(STYLE)
        for name, value in changes.items():
            setattr(model.priors[level].config, name, value)
        return model

    return change


def given(**changes):
    def change(settings: dict) -> JukeboxModel:
        settings |= changes
        return shared_song_model(STYLE)

    return change


def shifted(name: str):
    def change(settings: dict) -> JukeboxModel:
        settings[name] = settings[name].clone()
        values = settings[name].view(-1)
        # The lyrics' last character may be padding.
        values[0 if name == "lyric_ids" else -1] = values[0] % 10 + 1 if name == "lyric_ids" else 1
        return shared_song_model(STYLE)

    return change


def fewer_songs(settings: dict) -> JukeboxModel:
    settings |= {name: values[:1] for name, values in settings.items() if isinstance(values, Tensor)}
    settings["generator"] = generators(1)
    return shared_song_model(STYLE)


OTHERS = {
    "one value of a prior": (one_value("prior_0", "layers.1.mlp.fc1.weight"), "weights.0="),
    "one value of the VQ-VAE": (one_value("vqvae", "codebooks.1.vectors"), "weights.vqvae="),
    "one value of an embedding": (one_value("prior_2", "embed_tokens.weight"), "weights.2="),
    "another range of times": (configured(2, max_duration=40.0), "weights.2="),
    "other blocks": (configured(1, num_blocks=2), "weights.1="),
    "another scale of an encoder's layers": (
        lambda settings: configured_encoder(residual_scale=0.5), "weights.2="
    ),
    "temperature": (given(temperature=0.7), r"settings.0.temperature=0.99, not 0.7; .*settings.2.temperature differ"),
    "one level's temperature": (given(temperature=[0.99, 0.5, 0.99]), "settings.1.temperature=0.99, not 0.5. Go on"),
    "greedy": (given(do_sample=False, generator=None), "do_sample"),
    "seconds": (given(seconds=0.64), "codes.0=28, not 32"),
    "hops": (given(hop_fractions=[0.25, 0.5, 0.125]), "windows.0"),
    "batches": (given(batch_size=2), "batch_sizes.0=1, not 2"),
    "levels": (given(levels=[1, 2]), "weights.0="),
    "a beginning": (given(audio_codes=PROMPT), "windows.1"),
    "one generator": (given(generator=generators(1)[0]), r"seeds=\[1, 2\], not \[1\]"),
    "another seed": (given(generator=generators(1, 3)), r"seeds=\[1, 2\], not \[1, 3\]"),
    "PyTorch's own": (given(generator=None), r"seeds=\[1, 2\], not \"PyTorch's\""),
    "artists": (shifted("artist_ids"), "labels="),
    "genres": (shifted("genre_ids"), "labels="),
    "lyrics": (shifted("lyric_ids"), "lyrics="),
    "offsets": (shifted("offset"), r"offset=\["),
    "total lengths": (given(total_length=torch.tensor([1999, 1999])), "total_length="),
    "the number of songs": (fewer_songs, "num_songs=2, not 1"),
}  # fmt: skip


def configured_encoder(**changes) -> JukeboxModel:
    model = random_song_model(STYLE)
    for name, value in changes.items():
        setattr(model.prior_2.config.lyrics_encoder_config, name, value)
    return model


@pytest.mark.parametrize(("change", "message"), OTHERS.values(), ids=OTHERS)
def test_a_state_of_another_song_is_refused(change, message, state):
    before, calls = (state / STATE_FILE).read_bytes(), []
    settings = {"seconds": SECONDS, "batch_size": 1} | song_conditions(STYLE, 2) | draw("a generator each")
    model = change(settings)
    with pytest.raises(ValueError, match=message) as caught:
        model.generate(**settings, state_dir=state, callback=calls.append)
    assert str(state) in str(caught.value) and "or choose another folder" in str(caught.value)
    assert not calls and (state / STATE_FILE).read_bytes() == before


def test_other_beginnings_of_one_length_are_refused(tmp_path):
    run(tmp_path, audio_codes=PROMPT, callback=OneWindow("returns"))
    other = [None, PROMPT[1] + 1, PROMPT[2]]
    with pytest.raises(ValueError, match="prompt="):
        run(tmp_path, audio_codes=other)


def junk(path: Path):
    path.write_bytes(b"junk" * 100)


def empty(path: Path):
    path.write_bytes(b"")


def cut(path: Path):
    path.write_bytes(path.read_bytes()[:-10])


def other_tensors(path: Path):
    save_file({"weight": torch.zeros(2)}, path)


def other_settings(path: Path):
    save_file({"weight": torch.zeros(2)}, path, metadata={"settings": "no JSON"})


@pytest.mark.parametrize("spoil", [junk, empty, cut, other_tensors, other_settings])
def test_a_file_that_is_no_state_is_refused(spoil, state):
    spoil(state / STATE_FILE)
    content = (state / STATE_FILE).read_bytes()
    with pytest.raises(ValueError, match=f"{STATE_FILE} is no state of a song .*: use another folder, or remove it"):
        run(state, **draw("a generator each"))
    assert (state / STATE_FILE).read_bytes() == content


def test_other_versions_are_warned_of(state, expected, monkeypatch, caplog):
    known = song_state.package_versions()
    monkeypatch.setattr(song_state, "package_versions", lambda: known | {"torch": "2.6.0"})
    assert_same_song(run(state, **draw("a generator each")), expected)
    (record,) = caplog.records
    assert str(state) in record.getMessage() and "'torch': '2.6.0'" in record.getMessage()


def test_the_same_versions_are_not(state, caplog):
    run(state, callback=lambda progress: True, **draw("a generator each"))
    assert not caplog.records


def test_a_fingerprint_is_of_the_model_and_not_of_where_it_came_from(tmp_path):
    model = shared_song_model(STYLE)
    model.save_pretrained(tmp_path / "model")
    loaded = AutoModel.from_pretrained(tmp_path / "model")
    on_disk = AutoModel.from_pretrained(tmp_path / "model", device_map={"": "disk"}, offload_folder=tmp_path / "disk")
    for part in ("vqvae", "prior_0", "prior_2"):
        expected = fingerprint(getattr(model, part))
        assert fingerprint(getattr(loaded, part)) == fingerprint(getattr(on_disk, part)) == expected
    model.prior_2.save_pretrained(tmp_path / "alone")
    assert fingerprint(AutoModel.from_pretrained(tmp_path / "alone")) == fingerprint(model.prior_2)
    assert fingerprint(model.prior_0) != fingerprint(model.prior_1)


def test_a_fingerprint_is_of_the_values_in_their_places():
    prior = random_song_model(STYLE).prior_0
    before, weight = fingerprint(prior), prior.layers[0].mlp.fc1.weight
    weight.data = torch.cat([torch.ones(1), weight.data.flatten()])[1:].view_as(weight)
    assert fingerprint(prior) == before, "where in its storage a tensor begins is no matter"
    weight.data = weight.data.flip(0)
    assert fingerprint(prior) != before


def test_quantized_weights_have_a_state_too(tmp_path):
    from torchao.quantization import Int8WeightOnlyConfig

    model = random_song_model("labelled")
    model.prior_2.save_pretrained(tmp_path / "prior")
    settings = {"dtype": torch.bfloat16, "quantization_config": TorchAoConfig(Int8WeightOnlyConfig())}
    model.prior_2 = AutoModel.from_pretrained(tmp_path / "prior", **settings)
    before = fingerprint(model.prior_2)
    expected = model.generate(seconds=0.4, levels=[2], generator=generators(1))
    settings = {"seconds": 0.4, "levels": [2], "state_dir": tmp_path / "state"}
    model.generate(**settings, generator=generators(1), callback=lambda progress: True)
    assert_same_song(model.generate(**settings, generator=generators(1)), expected)
    model.prior_2.layers[0].mlp.fc1.weight.qdata[3, 3] += 1
    assert fingerprint(model.prior_2) != before


# While it runs


def test_each_levels_audio_can_be_heard_after_each_window(tmp_path):
    heard = {}

    def listen(progress):
        if progress.audio is None:
            return
        for song, audio in enumerate(progress.audio, start=progress.songs[0]):
            pieces = heard.setdefault((song, progress.level), [])
            pieces.append(audio[0])
            samples, rate = soundfile.read(tmp_path / f"song-{song}-level-{progress.level}.wav", dtype="int16")
            assert rate == 100
            assert np.array_equal(samples, as_16_bits(torch.cat(pieces)))

    song = run(tmp_path, callback=listen, **draw("one generator"))
    assert len(heard) == 6 and len(heard[1, 0]) == 6
    for (row, level), pieces in heard.items():
        whole = shared_song_model(STYLE).vqvae.decode(song.audio_codes[level][row : row + 1], level).audio_values
        assert torch.allclose(torch.cat(pieces), whole[0, 0], atol=1e-6)
    info = soundfile.info(tmp_path / "song-1-level-0.wav")
    assert (info.channels, info.subtype, info.frames) == (1, "PCM_16", 56)


def test_loud_audio_is_clipped_and_not_wrapped_around(tmp_path):
    audio = torch.tensor([[[0.5, 1.5, -1.5, -1.0, 1.0]]])
    state = SongState(tmp_path, {})
    state.append_audio(2, 0, audio, 100)
    samples, _ = soundfile.read(state.audio_path(0, 2), dtype="int16")
    assert np.array_equal(samples, as_16_bits(audio[0, 0]))


def test_audio_that_a_killed_run_left_is_written_anew(state, expected, tmp_path):
    run(tmp_path / "whole", **draw("a generator each"))
    soundfile.write(state / "song-0-level-1.wav", np.ones(999), 100)
    (state / "song-1-level-0.wav").write_bytes(b"half a header")
    assert_same_song(run(state, **draw("a generator each")), expected)
    assert wavs(state) == wavs(tmp_path / "whole")


def test_finished_levels_can_be_used_while_the_rest_runs(tmp_path):
    read = {}

    def look(progress):
        assert read_settings(tmp_path)["num_songs"] == 2
        with safe_open(tmp_path / STATE_FILE, "pt") as file:
            now = {level: file.get_tensor(f"codes.{level}").long() for level in range(3)}
        for level, codes in now.items():
            if level > progress.level:
                assert (codes >= 0).all()
                read[level] = codes
            elif level < progress.level:
                assert (codes == -1).all()
        if progress.level == 0:
            path = tmp_path / "song-1-level-2.wav"
            whole = shared_song_model(STYLE).vqvae.decode(now[2][1:], 2).audio_values
            assert np.array_equal(soundfile.read(path, dtype="int16")[0], as_16_bits(whole[0, 0]))

    song = run(tmp_path, callback=look, **draw("one generator"))
    assert torch.equal(read[2], song.audio_codes[2]) and torch.equal(read[1], song.audio_codes[1])


def test_a_state_says_what_it_was_begun_with(begun):
    settings = read_settings(begun)
    assert settings["codes"] == {"0": 28, "1": 14, "2": 7} and settings["num_songs"] == 2
    assert settings["batch_sizes"] == {"0": 1, "1": 1, "2": 1} and settings["seeds"] == [1, 2]
    assert settings["settings"]["2"]["temperature"] == 0.99
    with safe_open(begun / STATE_FILE, "pt") as file:
        assert set(json.loads(file.metadata()["versions"])) == {"jukebox-hf", "torch", "transformers"}
    assert read_settings(begun.parent) is None
    assert not any(name.startswith(".") for name in os.listdir(begun))


def test_other_seeds_are_other_songs(state):
    with pytest.raises(ValueError, match=r"begun with seeds=\[1, 2\], not \[9, 10\]"):
        run(state, **draw("a generator each", seed=9))
