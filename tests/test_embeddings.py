"""Embeddings: the recipes' numbers by plain recomputation, and what each clip gets whatever it is embedded with."""

import math

import numpy as np
import pytest
import scipy.signal
import soxr
import torch
from conftest import assert_matches, golden
from song_models import song_model
from torchao.quantization import Int8WeightOnlyConfig
from transformers import AutoModel, TorchAoConfig

from jukebox_hf import EmbeddingRecipe, JukeboxEmbedder, JukeboxFeatureExtractor, JukeboxPriorConfig, embeddings
from jukebox_hf.embedding_recipes import PRESETS, preset, resample_frames

RATE, HOP = 44100, 128
CONTEXT = 64
FIVE_B = JukeboxPriorConfig()


@pytest.fixture(scope="module")
def repository(converted, tmp_path_factory):
    """A whole model in the style of 5b, with a context of 64 codes."""
    folder = tmp_path_factory.mktemp("repository")
    song_model("song-5b-style", converted).save_pretrained(folder)
    JukeboxFeatureExtractor(hop_length=HOP).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def parts(repository):
    """Its VQ-VAE and top prior, for what is computed by hand."""
    model = AutoModel.from_pretrained(repository, dtype=torch.float32).eval()
    return model.vqvae, model.prior_2


def clips(*lengths: int) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.uniform(-0.7, 0.7, length).astype(np.float32) for length in lengths]


def states_by_hand(parts, audio: np.ndarray, layer: int, first: int = 0, codes: int = CONTEXT, **conditions):
    """The hidden states `(codes, width)` of the codes from `first` on of an encoded clip, by the models' own calls."""
    vqvae, prior = parts
    window = vqvae.encode(torch.from_numpy(audio)[None, None], levels=[2]).audio_codes[0][:, first : first + codes]
    conditions = {name: torch.tensor([value]) for name, value in conditions.items()}
    with torch.no_grad():
        return prior(input_ids=window, output_hidden_states=[layer], **conditions).hidden_states[layer][0]


def peak(audio: np.ndarray) -> np.ndarray:
    return audio / np.abs(audio).max()


# The presets against the original's hidden states


@pytest.fixture
def golden_codes(monkeypatch):
    """Makes the VQ-VAE hear the golden codes, those of row 1 in clips that begin below zero."""
    tensors = golden("prior-5b-style").tensors

    def codes(vqvae, audio, level):
        assert level == 2 and np.abs(audio).max() == 1
        return tensors["codes"][int(audio[0] < 0), : len(audio) // HOP]

    monkeypatch.setattr(embeddings, "_codes", codes)
    return tensors


def golden_clip(row: int, codes: int, rest: int) -> np.ndarray:
    return np.full(codes * HOP + rest, (-1) ** row * 0.25, np.float32)


def golden_preset(name: str, repository, row: int, layer: int, **changes) -> JukeboxEmbedder:
    total_length, offset, _, artist_id, *genre_ids = golden("prior-5b-style").tensors["labels.y"][row].tolist()
    conditions = dict(artist_id=artist_id, genre_ids=genre_ids, total_length=total_length, offset=offset)
    return JukeboxEmbedder.from_preset(name, repository, layers=[layer], **conditions, **changes)


@pytest.mark.parametrize("row", [0, 1])
@pytest.mark.parametrize("layer", [1, 3, 6])
@pytest.mark.parametrize("codes", [CONTEXT, 35])
class TestPresetsOfTheOriginalsStates:
    def states(self, tensors, row: int, layer: int, codes: int) -> np.ndarray:
        name = f"hidden.{layer}" if codes == CONTEXT else f"short_{codes}.hidden.{layer}"
        return tensors[name][row].double().numpy()

    def embedded(self, embedder: JukeboxEmbedder, row: int, codes: int):
        # Samples that make no code, as in nearly every file.
        return embedder(golden_clip(row, codes, 77 if codes < CONTEXT else 0), RATE)

    def test_jukemir(self, golden_codes, repository, row, layer, codes):
        embedding = self.embedded(golden_preset("jukemir", repository, row, layer), row, codes)
        expected = self.states(golden_codes, row, layer, codes).mean(0)
        assert_matches(torch.tensor(embedding.layers[layer]), torch.tensor(expected))
        assert embedding.frame_rate is None

    def test_llark(self, golden_codes, repository, row, layer, codes):
        embedding = self.embedded(golden_preset("llark", repository, row, layer), row, codes)
        # 344.53 frames a second are 34 to a tenth of a second.
        expected = self.states(golden_codes, row, layer, codes)[:34].mean(0, keepdims=True)
        assert_matches(torch.tensor(embedding.layers[layer]), torch.tensor(expected))
        assert embedding.frame_rate == pytest.approx(RATE / HOP / 34)

    def test_sheetsage(self, golden_codes, repository, row, layer, codes):
        embedding = self.embedded(golden_preset("sheetsage", repository, row, layer), row, codes)
        expected = self.states(golden_codes, row, layer, codes)
        assert_matches(torch.tensor(embedding.layers[layer]), torch.tensor(expected))
        assert embedding.frame_rate == RATE / HOP

    def test_edge(self, golden_codes, repository, row, layer, codes):
        window = {"window_seconds": codes * HOP / RATE, "stride_seconds": codes * HOP / RATE}
        embedding = self.embedded(golden_preset("edge", repository, row, layer, **window), row, codes)
        frames = math.ceil(codes * 30 * HOP / RATE)
        expected = scipy.signal.resample(self.states(golden_codes, row, layer, codes), frames)[None]
        assert_matches(torch.tensor(embedding.layers[layer]), torch.tensor(expected))
        assert embedding.layers[layer].shape == (1, frames, 32) and embedding.frame_rate == 30


def test_presets_are_told_an_unknown_song_of_62_seconds():
    for name in ("jukemir", "edge", "llark"):
        recipe = PRESETS[name]
        assert (recipe.artist_id, recipe.genre_ids, recipe.offset) == (0, (0,), 0)
        assert recipe.total_length == 2734080 == 62 * RATE // HOP * HOP
        assert recipe.timing(10**6, 5 * RATE, FIVE_B) == (2734080, 0)
    assert [PRESETS[name].layers for name in ("jukemir", "edge", "sheetsage", "llark")] == [(36,), (66,), (53,), (36,)]


def test_presets_fit_the_released_prior():
    for recipe in PRESETS.values():
        recipe.check(FIVE_B, 72)


def test_windows_of_the_presets_on_the_released_prior():
    thirty, context = 30 * RATE, 8192 * HOP
    assert PRESETS["jukemir"].plan(25 * RATE, FIVE_B) == [(0, context), (context, 25 * RATE - context)]
    assert PRESETS["jukemir"].max_windows == PRESETS["llark"].max_windows == 1
    starts = [window.start for window in PRESETS["edge"].plan(thirty, FIVE_B)]
    assert starts == [int(2.5 * RATE) * i for i in range(11)]
    frames = torch.zeros(5 * RATE // HOP, 2)
    assert len(frames) == 1722 and PRESETS["edge"].pool(frames, FIVE_B).shape == (150, 2)
    assert PRESETS["sheetsage"].plan(thirty, FIVE_B) == [(0, context), (context, context)]
    pooled = PRESETS["llark"].pool(torch.arange(8192.0)[:, None], FIVE_B)
    assert pooled.shape == (240, 1) and pooled[:2, 0].tolist() == [16.5, 50.5]


@pytest.mark.parametrize(
    "seconds, total, offsets",
    [
        (30, 2646016, [0, 1048576]),  # told to last a minute
        (70, 3086976, [0, 1048576, 2038400]),  # the last window would end after the song
        (700, 26459904, [0, 1048576, 25411328]),  # told to last ten minutes
    ],
)
def test_sheetsage_is_told_where_each_window_is(seconds, total, offsets):
    recipe, samples = PRESETS["sheetsage"], seconds * RATE
    starts = [window.start for window in recipe.plan(samples, FIVE_B)]
    picked = [starts[0], starts[1], starts[-1]] if len(offsets) == 3 else starts
    assert [recipe.timing(samples, start, FIVE_B) for start in picked] == [(total, offset) for offset in offsets]


@pytest.mark.parametrize("frames, count", [(1722, 150), (64, 6), (35, 4), (35, 3), (8, 8), (9, 9), (8, 1)])
def test_resampling_is_scipys(frames, count):
    states = torch.randn(frames, 5, dtype=torch.float64)
    np.testing.assert_allclose(resample_frames(states, count), scipy.signal.resample(states.numpy(), count), atol=1e-12)


# Windows and what becomes of them


@pytest.mark.parametrize("encode", ["clip", "window"])
def test_windows_of_any_clip(encode):
    config = JukeboxPriorConfig(context_length=128)
    for codes in (1, 3, 7):
        for step in range(1, codes + 1):
            # Given as seconds, a length must not lose a sample.
            recipe = EmbeddingRecipe(
                layers=[1], encode=encode, window_seconds=codes * HOP / RATE, stride_seconds=step * HOP / RATE
            )
            assert (recipe.window(config), recipe.stride(config)) == (codes * HOP, step * HOP)
            for length in range(1, 20):
                windows = recipe.plan(length * HOP + 5, config)
                covered = [range(w.start, min(w.start + w.length, length * HOP + 5)) for w in windows]
                assert [window.start for window in windows] == [step * HOP * i for i in range(len(windows))]
                # All codes are in some window, and none of the windows would not be missed at the end.
                assert max(part.stop for part in covered) // HOP == length
                assert all(part.stop // HOP < length for part in covered[:-1])


def test_all_windows_of_a_context_are_whole():
    for codes in range(1, 8193, 7):
        recipe = EmbeddingRecipe(layers=[1], encode="window", window_seconds=codes * HOP / RATE)
        assert recipe.window(FIVE_B) == codes * HOP


@pytest.mark.parametrize("normalize", ["clip", None])
def test_a_clip_is_the_mean_of_all_its_frames(repository, parts, normalize):
    (audio,) = clips(3 * CONTEXT * HOP + 10 * HOP + 5)
    embedder = JukeboxEmbedder.from_pretrained(repository, [2, 5], normalize=normalize)
    embedding = embedder(audio, RATE)
    heard = peak(audio) if normalize else audio
    # Longer than the model's shortest song, one second, in whole codes.
    total = max(len(audio) // HOP * HOP, math.ceil(RATE / HOP) * HOP)
    offsets = [min(CONTEXT * HOP * i, total - CONTEXT * HOP) for i in range(4)]
    for layer in (2, 5):
        states = [
            states_by_hand(parts, heard, layer, CONTEXT * i, total_length=total, offset=offset)
            for i, offset in enumerate(offsets)
        ]
        assert len(states[-1]) == 10
        assert_matches(torch.tensor(embedding.layers[layer]), torch.cat(states).double().mean(0))
    assert embedding.window_starts.tolist() == [CONTEXT * HOP * i / RATE for i in range(4)]


def test_windows_are_stitched_where_they_have_heard_most(repository, parts):
    (audio,) = clips(150 * HOP)
    told = {"total_length": 2 * RATE, "offset": 0}
    settings = {"stride_seconds": 24.5 * HOP / RATE, "pooling": "frames", **told}
    embedding = JukeboxEmbedder.from_pretrained(repository, [4], **settings)(audio, RATE)
    windows = [states_by_hand(parts, peak(audio), 4, first, **told) for first in (0, 24, 48, 72, 96)]
    expected = [windows[0], *(window[CONTEXT - 24 :] for window in windows[1:])]
    assert [len(window) for window in windows] == [64, 64, 64, 64, 54]
    assert_matches(torch.tensor(embedding.layers[4]), torch.cat(expected))
    assert embedding.layers[4].shape == (150, 32)
    mean = JukeboxEmbedder.from_pretrained(repository, [4], **settings | {"pooling": "mean"})(audio, RATE)
    assert_matches(torch.tensor(mean.layers[4]), torch.cat(expected).double().mean(0))


@pytest.mark.parametrize("tail, counts", [("keep", [64, 64, 22]), ("drop", [64, 64]), ("pad", [64, 64, 22])])
@pytest.mark.parametrize("encode", ["clip", "window"])
def test_windows_of_their_own_and_their_mean(repository, parts, tail, counts, encode):
    (audio,) = clips(150 * HOP + 9)
    told = {"total_length": 2 * RATE, "offset": 0}
    settings = {"tail": tail, "encode": encode, **told}
    heard = peak(audio)
    if tail == "pad":
        heard = np.pad(heard, (0, 3 * CONTEXT * HOP - len(heard)))
    means = []
    for index, count in enumerate(counts):
        window = heard[index * CONTEXT * HOP :][: CONTEXT * HOP]
        whole = encode == "clip"
        states = states_by_hand(parts, heard if whole else window, 3, index * CONTEXT if whole else 0, **told)
        means.append(states[:count].double().mean(0))
    own = JukeboxEmbedder.from_pretrained(repository, [3], join="windows", **settings)(audio, RATE)
    assert_matches(torch.tensor(own.layers[3]), torch.stack(means))
    joined = JukeboxEmbedder.from_pretrained(repository, [3], join="mean", **settings)(audio, RATE)
    assert_matches(torch.tensor(joined.layers[3]), torch.stack(means).mean(0))


def test_each_window_is_normalized(repository, parts):
    (audio,) = clips(2 * CONTEXT * HOP)
    audio[CONTEXT * HOP :] *= 0.1
    told = {"total_length": 2 * RATE, "offset": 0}
    settings = {"normalize": "window", "encode": "window", "join": "windows", **told}
    embedding = JukeboxEmbedder.from_pretrained(repository, [3], **settings)(audio, RATE)
    for index, half in enumerate(np.split(audio, 2)):
        expected = states_by_hand(parts, peak(half), 3, **told).double().mean(0)
        assert_matches(torch.tensor(embedding.layers[3][index]), expected)


def test_labels_change_what_a_prior_hears(repository, parts):
    (audio,) = clips(CONTEXT * HOP)
    told = {"total_length": 3 * RATE, "offset": HOP}
    embedder = JukeboxEmbedder.from_pretrained(repository, 6, artist_id=7, genre_ids=[3, 5], **told)
    expected = states_by_hand(parts, peak(audio), 6, artist_ids=7, genre_ids=[3, 5], **told).double().mean(0)
    assert_matches(torch.tensor(embedder(audio, RATE).layers[6]), expected)
    other = JukeboxEmbedder.from_pretrained(repository, 6, **told)(audio, RATE).layers[6]
    assert np.abs(other - expected.numpy()).max() > 1e-3


def test_only_the_first_windows_are_taken_with_a_warning(repository, monkeypatch):
    said = []
    monkeypatch.setattr(embeddings.logger, "warning_once", said.append)
    (audio,) = clips(3 * CONTEXT * HOP)
    embedder = JukeboxEmbedder.from_pretrained(repository, [2], max_windows=1, total_length=3 * RATE)
    short = embedder(audio[: CONTEXT * HOP], RATE)
    assert not said
    assert embedder(audio, RATE).window_starts.tolist() == short.window_starts.tolist() == [0]
    (warning,) = said
    assert warning.startswith("max_windows=1: of longer clips only the first 0.19 s are embedded.")


# A clip gets what it gets alone


@pytest.mark.parametrize("batch_size", [1, 3, 100])
@pytest.mark.parametrize(
    "settings",
    [{}, {"pooling": "frames"}, {"join": "windows"}, {"pooling": "average", "frame_rate": 20.0}],
    ids=["mean", "frames", "windows", "average"],
)
def test_a_clip_gets_what_it_gets_alone(repository, batch_size, settings):
    audio = clips(5 * HOP + 3, 70 * HOP, 200 * HOP, 64 * HOP, 31 * HOP)
    if "frame_rate" in settings:
        audio = [clip for clip in audio if len(clip) >= 17 * HOP]
    embedder = JukeboxEmbedder.from_pretrained(repository, [1, 6], batch_size=batch_size, **settings)
    alone = JukeboxEmbedder.from_pretrained(repository, [1, 6], batch_size=1, **settings)
    for clip, together in zip(audio, embedder(audio, RATE)):
        expected = alone(clip, RATE)
        assert together.window_starts.tolist() == expected.window_starts.tolist()
        for layer in (1, 6):
            assert_matches(torch.tensor(together.layers[layer]), torch.tensor(expected.layers[layer]))


@pytest.mark.parametrize("case", ["song-1b-lyrics-style", "song-5b-style"])
def test_models_in_memory_run_no_more_layers_than_asked(converted, case):
    model = song_model(case, converted)
    prior, ran = model.prior_2, []
    for index, layer in enumerate(prior.layers):
        layer.register_forward_hook(lambda *_, index=index: ran.append(index))
    recipe = EmbeddingRecipe(layers=[2, 3], pooling="frames", total_length=2 * RATE, offset=0)
    (audio,) = clips(40 * HOP)
    embedding = JukeboxEmbedder.from_models(model.vqvae, prior, recipe)(audio, RATE)
    assert ran == [0, 1, 2] and len(prior.layers) == prior.config.num_hidden_layers > 3
    codes = model.vqvae.encode(torch.from_numpy(peak(audio))[None, None], levels=[2]).audio_codes[0]
    lyrics = prior.config.num_lyric_tokens
    inputs = {"lyric_ids": torch.zeros(1, lyrics, dtype=torch.long)} if lyrics else {}
    with torch.no_grad():
        states = prior(codes, total_length=torch.tensor([2 * RATE]), output_hidden_states=[3], **inputs).hidden_states[
            3
        ]
    # The lyrics' positions come first where they share the stack, and are no frames.
    assert_matches(torch.tensor(embedding.layers[3]), states[0, prior.config.lyric_offset :])


def test_a_trainers_autocast_changes_nothing(repository):
    (audio,) = clips(100 * HOP)
    embedder = JukeboxEmbedder.from_pretrained(repository, [3])
    expected = embedder(audio, RATE).layers[3]
    with torch.autocast("cpu", torch.bfloat16):
        np.testing.assert_array_equal(embedder(audio, RATE).layers[3], expected)


def test_silence_is_embedded(repository):
    assert np.isfinite(
        JukeboxEmbedder.from_pretrained(repository, [3])(np.zeros(9000, np.float32), RATE).layers[3]
    ).all()


# Loading


def test_loading_reads_the_layers_up_to_the_deepest_asked(repository):
    _, prior = JukeboxEmbedder.from_pretrained(repository, [1, 4]).load()
    assert len(prior.layers) == prior.config.num_hidden_layers == 4 and not prior.training


@pytest.mark.parametrize("dtype", ["float16", torch.bfloat16])
def test_half_precision(repository, dtype):
    (audio,) = clips(CONTEXT * HOP)
    embedder = JukeboxEmbedder.from_pretrained(repository, [3], dtype=dtype)
    expected = JukeboxEmbedder.from_pretrained(repository, [3])(audio, RATE).layers[3]
    actual = embedder(audio, RATE).layers[3]
    assert actual.dtype == np.float32 and str(embedder.load()[1].dtype).endswith(str(dtype).removeprefix("torch."))
    assert 0 < np.abs(actual - expected).max() < 0.05 * np.abs(expected).max()


def test_int8(repository):
    (audio,) = clips(CONTEXT * HOP)
    int8 = {"quantization_config": TorchAoConfig(Int8WeightOnlyConfig()), "dtype": "bfloat16"}
    embedder = JukeboxEmbedder.from_pretrained(repository, [3], model_kwargs=int8)
    expected = JukeboxEmbedder.from_pretrained(repository, [3])(audio, RATE).layers[3]
    actual = embedder(audio, RATE).layers[3]
    assert type(embedder.load()[1].layers[0].mlp.fc1.weight).__name__ == "Int8Tensor"
    assert 0 < np.abs(actual - expected).max() < 0.1 * np.abs(expected).max()


def test_a_prior_alone_and_its_vqvae(repository, converted):
    (audio,) = clips(CONTEXT * HOP)
    prior = converted("prior-5b-style")
    embedder = JukeboxEmbedder.from_pretrained(prior, [3], vqvae=converted("vqvae-three-level"))
    expected = JukeboxEmbedder.from_pretrained(repository, [3])(audio, RATE)
    np.testing.assert_array_equal(embedder(audio, RATE).layers[3], expected.layers[3])
    with pytest.raises(ValueError, match=r"is a prior alone: name its VQ-VAE, as in vqvae="):
        JukeboxEmbedder.from_pretrained(prior, [3])


# Input and its faults


def test_any_rate_and_any_kind_of_clip(repository):
    generator = np.random.default_rng(1)
    stereo = generator.uniform(-0.5, 0.5, (2, 11025)).astype(np.float32)
    embedder = JukeboxEmbedder.from_pretrained(repository, [3])
    expected = embedder(soxr.resample(stereo.mean(0), 22050, RATE), RATE).layers[3]
    for clip, rate in (
        (stereo, 22050),
        (torch.from_numpy(stereo), 22050),
        ({"array": stereo, "sampling_rate": 22050}, None),
    ):
        np.testing.assert_array_equal(embedder(clip, rate).layers[3], expected)
        (listed,) = embedder([clip], rate)
        np.testing.assert_array_equal(listed.layers[3], expected)


CLIP = np.full(9000, 0.1, np.float32)


@pytest.mark.parametrize(
    "clip, rate, message",
    [
        (CLIP, None, "sampling_rate=None: say at which rate"),
        (CLIP, 0, "sampling_rate=0: give a positive number"),
        (CLIP[:127], RATE, r"127 samples \(0.003 s\), but one window needs 128"),
        (np.append(CLIP, np.nan), RATE, "NaN or infinity at sample 9000"),
        ([CLIP, CLIP[:0]], RATE, "is empty"),
        ("missing.wav", None, "missing.wav"),
    ],
)
def test_bad_clips_are_refused(repository, clip, rate, message):
    with pytest.raises(ValueError, match=message):
        JukeboxEmbedder.from_pretrained(repository, [3])(clip, rate)


def test_one_bad_clip_costs_itself(repository):
    embedder = JukeboxEmbedder.from_pretrained(repository, [3])
    good, bad = embedder.embed([CLIP, CLIP[:100]])
    assert isinstance(bad, ValueError)
    np.testing.assert_array_equal(good.layers[3], embedder(CLIP, RATE).layers[3])


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"layers": [7]}, r"layers=\[7\]: there are 6"),
        ({"layers": [0]}, "numbers from 1 on"),
        ({"layers": []}, "numbers from 1 on"),
        ({}, "layers=None: name the layers"),
        ({"layers": [1], "window": 3}, "window: a recipe has layers, normalize"),
        ({"layers": [1], "window_seconds": 1.0}, "longer than this prior's context of 0.19 s"),
        ({"layers": [1], "window_seconds": 0.001}, "less than one code"),
        ({"layers": [1], "stride_seconds": -1}, "stride_seconds=-1: give a positive number"),
        ({"layers": [1], "window_seconds": 0.1, "stride_seconds": 0.15}, "leaves gaps"),
        ({"layers": [1], "stride_seconds": 0.05, "encode": "window"}, "every 2205 samples cannot be stitched"),
        ({"layers": [1], "pooling": "resample"}, "'resample' and 'average' need a rate"),
        ({"layers": [1], "pooling": "median"}, "choose one of 'mean', 'frames'"),
        ({"layers": [1], "pooling": "average", "frame_rate": 400.0}, "344.53 frames a second"),
        ({"layers": [1], "join": "mean", "pooling": "frames"}, "frames of windows have no mean"),
        ({"layers": [1], "join": "windows", "pooling": "frames"}, "fewer frames than the others"),
        ({"layers": [1], "normalize": "window"}, "hears the clip once"),
        ({"layers": [1], "total_length": 2734080}, "outside the .* that this prior was trained for"),
        ({"layers": [1], "total_length": 2.5}, "give samples as a whole number, or 'clip'"),
        ({"layers": [1], "batch_size": 0}, "batch_size=0"),
        ({"layers": [1], "column_dtype": "int8"}, "choose 'float32' or 'float16'"),
    ],
)
def test_recipes_that_cannot_be_followed_are_refused_before_loading(repository, settings, message):
    with pytest.raises(ValueError, match=message):
        JukeboxEmbedder.from_pretrained(repository, **settings)


def test_presets_on_another_prior_are_refused(repository, converted):
    with pytest.raises(ValueError, match=r"layers=\[36\]: there are 6"):
        JukeboxEmbedder.from_preset("jukemir", repository)
    with pytest.raises(ValueError, match="total_length=2734080 samples is outside"):
        JukeboxEmbedder.from_preset("jukemir", repository, layers=[3])
    with pytest.raises(ValueError, match=r"preset='mert': there are jukemir, edge"):
        JukeboxEmbedder.from_preset("mert", repository)
    with pytest.raises(ValueError, match="is an upsampler"):
        vqvae = converted("vqvae-three-level")
        JukeboxEmbedder.from_pretrained(converted("upsampler-level-1-style"), [1], vqvae=vqvae)
    with pytest.raises(ValueError, match="holds a jukebox_vqvae"):
        JukeboxEmbedder.from_pretrained(converted("vqvae-three-level"), [1])


def test_a_clip_too_short_for_a_whole_window_or_frame(repository):
    recipe = preset("edge", layers=[1], window_seconds=0.1, stride_seconds=0.05, total_length=None)
    with pytest.raises(ValueError, match=r"4000 samples \(0.091 s\), but one window needs 4410 \(0.100 s\)"):
        JukeboxEmbedder.from_pretrained(repository, recipe=recipe)(CLIP[:4000], RATE)
    with pytest.raises(ValueError, match="has 10 frames, and one at 10 Hz is the mean of 34"):
        JukeboxEmbedder.from_preset("llark", repository, layers=[1], total_length=None)(CLIP[: 10 * HOP], RATE)
