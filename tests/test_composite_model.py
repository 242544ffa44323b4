"""One model of a VQ-VAE and its priors: how it is put together, refused, saved, and loaded as a whole or in parts."""

from functools import cache

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import safe_open
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForTextToWaveform,
    AutoProcessor,
    AutoTokenizer,
)

from jukebox_hf import (
    JukeboxConfig,
    JukeboxFeatureExtractor,
    JukeboxModel,
    JukeboxPriorConfig,
    JukeboxPriorModel,
    JukeboxProcessor,
    JukeboxTokenizer,
    JukeboxVQVAEConfig,
    JukeboxVQVAEModel,
)
from jukebox_hf.convolution_jukebox import SignalStream

# The small songs: 100 samples a second, of which a code of level 0, 1 and 2 stands for 2, 4 and 8; contexts of 8 codes.
RATE = 100
_SMALL = {
    "vocab_size": 24, "context_length": 8, "sampling_rate": RATE, "hidden_size": 16, "num_hidden_layers": 3,
    "num_attention_heads": 2, "head_dim": 4, "intermediate_size": 16, "num_blocks": 4, "num_artists": 9,
    "num_genres": 7, "max_genres": 2, "min_duration": 1.0, "max_duration": 30.0,
}  # fmt: skip
_UNLABELLED = {"num_artists": 0, "num_genres": 0}
_UPSAMPLER = {
    "num_time_bins": 0, "tie_word_embeddings": True, "add_conditioning_after_stack": True,
    "conditioner_config": {"strides": [2], "hidden_size": 8, "num_residual_layers": 2, "dilation_cycle": 2},
}  # fmt: skip
_TOP = {"level": 2, "hop_length": 8, "num_time_bins": 16}
_LYRICS = {"num_lyric_tokens": 8, "lyric_vocab_size": 12, "alignment_layer": 3, "alignment_head": 1}
_ENCODER = {
    "hidden_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2, "head_dim": 2, "intermediate_size": 8,
    "num_blocks": 4,
}  # fmt: skip
TOPS = {
    "labelled": _TOP,
    "unlabelled": _TOP | _UNLABELLED | {"num_time_bins": 0},
    "shared lyrics": _TOP | _LYRICS | {
        "tie_word_embeddings": True, "add_conditioning_after_stack": True, "num_hidden_layers": 5,
        "attention_pattern": "rcpPD",
    },
    "separate lyrics": _TOP | _LYRICS | {
        "num_hidden_layers": 4, "lyrics_encoder_config": _ENCODER, "attention_pattern": "rcpx"
    },
}  # fmt: skip


def prior_config(style: str, place: int, **changes) -> JukeboxPriorConfig:
    """The configuration of the prior of one level of a song model."""
    own = TOPS[style] if place == 2 else _UPSAMPLER | {"level": place, "hop_length": 2 << place}
    return JukeboxPriorConfig(**_SMALL | (_UNLABELLED if style == "unlabelled" else {}) | own | changes)


def random_prior(config: JukeboxPriorConfig) -> JukeboxPriorModel:
    """A prior whose likeliest code changes with everything that it is given."""
    prior = JukeboxPriorModel(config).eval()
    with torch.no_grad():
        for name, parameter in prior.named_parameters():
            if name.endswith("layer_norm.weight") and not name.startswith("layers"):
                parameter.fill_(2.0)
            elif parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
            else:
                # Small codes: no draw should be certain.
                is_code = name in ("embed_tokens.weight", "lm_head.weight")
                parameter.normal_(std=0.12 if is_code else 1.0 if "embed" in name or "timing" in name else 0.5)
    return prior


def random_vqvae(**changes) -> JukeboxVQVAEModel:
    settings = {
        "num_downsamples": [1, 1, 1], "hidden_size": 4, "num_residual_layers": 1, "level_multipliers": None,
        "codebook_size": 24, "codebook_dim": 4, "sampling_rate": RATE,
    }  # fmt: skip
    vqvae = JukeboxVQVAEModel(JukeboxVQVAEConfig(**settings | changes)).eval()
    audio = torch.randn(1, 400, 1) * 0.3
    with torch.no_grad():
        for encoder, codebook in zip(vqvae.encoders, vqvae.codebooks):
            # Vectors among the latents, so that audio has many codes.
            codebook.vectors.copy_(encoder(audio, SignalStream())[0, :24] * 2)
    return vqvae


def random_parts(style: str = "labelled") -> tuple[JukeboxVQVAEModel, list[JukeboxPriorModel]]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return random_vqvae(), [random_prior(prior_config(style, level)) for level in range(3)]


def random_song_model(style: str = "labelled") -> JukeboxModel:
    return JukeboxModel.from_parts(*random_parts(style))


@cache
def shared_song_model(style: str = "labelled") -> JukeboxModel:
    """One for all tests that leave it as it is."""
    return random_song_model(style)


def song_conditions(style: str, num_songs: int) -> dict[str, Tensor]:
    """Labels, lyrics and times of songs, as a processor gives them, different for each."""
    if style == "unlabelled":
        return {"offset": torch.zeros(num_songs, dtype=torch.long)}
    generator = torch.Generator().manual_seed(5)

    def draw(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, (num_songs, *shape), generator=generator)

    conditions = {
        "artist_ids": draw(0, 9, 3), "genre_ids": draw(-1, 7, 3, 2), "total_length": draw(700, 2000),
        "offset": draw(0, 600),
    }  # fmt: skip
    if "lyrics" in style:
        # Longer than the window of 8, a little longer, shorter, none at all.
        ends = torch.tensor([100, 37, 5, 0]).repeat(num_songs)[:num_songs]
        conditions["lyric_ids"] = draw(1, 12, 100).where(torch.arange(100) < ends[:, None], -1)
    return conditions


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def assert_same_weights(one: nn.Module, other: nn.Module):
    weights, others = one.state_dict(), other.state_dict()
    assert weights.keys() == others.keys()
    for name, weight in weights.items():
        assert weight.dtype == others[name].dtype and torch.equal(weight, others[name]), name


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """More would only get in each other's way in models as small as these."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session", params=["labelled", "shared lyrics", "separate lyrics", "unlabelled"])
def saved(request, tmp_path_factory):
    """A composite repository and the model that was saved."""
    model = shared_song_model(request.param)
    folder = tmp_path_factory.mktemp("composite")
    model.save_pretrained(folder)
    return folder, model


# Put together


def test_the_parts_are_held_and_not_copied():
    vqvae, priors = random_parts()
    pointers = [tensor.data_ptr() for part in (vqvae, *priors) for tensor in part.state_dict().values()]
    model = JukeboxModel.from_parts(vqvae, [priors[1], priors[2], priors[0]])
    assert model.vqvae is vqvae and list(model.priors.items()) == list(enumerate(priors))
    assert [tensor.data_ptr() for tensor in model.state_dict().values()] == pointers
    assert not model.training and not any(tensor.is_meta for tensor in model.state_dict().values())


def test_the_original_sampling_settings_are_the_default():
    settings = shared_song_model().generation_config
    assert (settings.do_sample, settings.temperature, settings.top_k) == (True, 0.99, 0)
    assert settings.hop_fractions == [0.5, 0.5, 0.125] and settings.max_length == 8


PARTS = {
    "two of a level": ([("labelled", 1, {}), ("labelled", 1, {})], "Two of the priors are of level 1"),
    "a level beyond three": ([("labelled", 0, {"level": 3})], "level 3: a JukeboxModel has the levels 0 to 2"),
    "another hop": ([("labelled", 2, {"hop_length": 16})], "prior_2 has hop_length=16, but .* level 2 has 8"),
    "another vocabulary": ([("labelled", 0, {"vocab_size": 32})], "prior_0 has vocab_size=32, but .* has 24"),
    "another rate": ([("labelled", 2, {"sampling_rate": 44100})], "prior_2 has sampling_rate=44100, but .* has 100"),
    "an upsampler on top": ([("labelled", 0, {"level": 2, "hop_length": 8})], "prior_2 is an upsampler"),
    "a top prior below": ([("labelled", 2, {"level": 1, "hop_length": 4})], "prior_1 is a top prior"),
    "another factor": (
        [("labelled", 1, {"conditioner_config": _UPSAMPLER["conditioner_config"] | {"strides": [2, 2]}})],
        "prior_1 brings level 2 up by 4, but .* has 2 codes .* set conditioner_config.strides",
    ),
}


@pytest.mark.parametrize(("configs", "message"), PARTS.values(), ids=PARTS)
def test_parts_that_do_not_fit_are_refused(configs, message):
    with torch.device("meta"):
        priors = [JukeboxPriorModel(prior_config(style, level, **changes)) for style, level, changes in configs]
    with pytest.raises((ValueError, StrictDataclassError), match=message):
        JukeboxModel.from_parts(shared_song_model().vqvae, priors)


def test_a_level_that_the_vqvae_lacks_is_refused():
    with pytest.raises((ValueError, StrictDataclassError), match=r"prior_2 is given, but .* levels 0 to 1"):
        JukeboxModel.from_parts(random_vqvae(num_downsamples=[1, 1], strides=[2, 2]), random_parts()[1][::2])


def test_two_levels_make_a_model_too(tmp_path):
    torch.manual_seed(0)
    top = prior_config("labelled", 2, level=1, hop_length=4)
    vqvae = random_vqvae(num_downsamples=[1, 1], strides=[2, 2])
    model = JukeboxModel.from_parts(vqvae, [random_prior(prior_config("labelled", 0)), random_prior(top)])
    assert model.generation_config.hop_fractions == [0.5, 0.125]
    song = model.generate(seconds=0.4, generator=generators(1))
    assert [codes.shape[1] for codes in song.audio_codes] == [20, 10] and song.audio.shape == (1, 1, 40)
    model.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path)
    assert torch.equal(again.generate(seconds=0.4, generator=generators(1)).audio, song.audio)
    assert JukeboxPriorModel.from_pretrained(tmp_path).config.level == 1


def test_a_model_without_all_priors_draws_the_levels_that_it_has(tmp_path):
    vqvae, priors = random_parts()
    JukeboxModel.from_parts(vqvae, [priors[0], priors[2]]).save_pretrained(tmp_path)
    model = AutoModel.from_pretrained(tmp_path)
    assert list(model.priors) == list(model.config.priors) == [0, 2]
    whole, one = shared_song_model(), generators(1)
    artists = torch.tensor([[3, 4, 5]])
    expected = whole.generate(seconds=0.96, artist_ids=artists, generator=generators(1)).audio_codes
    top = model.generate(seconds=0.96, artist_ids=artists[:, [0, 2]], generator=one, levels=[2])
    assert torch.equal(top.audio_codes[2], expected[2]) and top.audio_level == 2
    middle = whole.generate(levels=[1], audio_codes=[None, None, expected[2]], artist_ids=artists, generator=one)
    assert torch.equal(middle.audio_codes[1], expected[1])
    # Labels may also be those of all levels.
    low = model.generate(levels=[0], audio_codes=[None, *expected[1:]], artist_ids=artists, generator=one)
    assert torch.equal(low.audio_codes[0], expected[0]) and low.audio_codes[2] is None
    with pytest.raises(ValueError, match=r"no prior of level 1, only of \[0, 2\]"):
        model.generate(seconds=0.96)


def test_a_top_prior_alone_takes_what_its_own_processor_gives():
    vqvae, priors = random_parts()
    model, whole = JukeboxModel.from_parts(vqvae, priors[2:]), shared_song_model()
    inputs = {"artist_ids": torch.tensor([5, 7]), "genre_ids": torch.tensor([[1, 2], [3, -1]])}
    columns = {name: torch.stack([ids] * 3, dim=1) for name, ids in inputs.items()}
    settings = {"seconds": 0.96, "levels": [2]}
    song = model.generate(**inputs, **settings, generator=generators(1, 2))
    expected = whole.generate(**columns, **settings, generator=generators(1, 2))
    assert torch.equal(song.audio_codes[2], expected.audio_codes[2])


# Saved and loaded


@pytest.mark.parametrize("auto", [AutoModel, AutoModelForTextToWaveform, JukeboxModel])
def test_a_model_comes_back_as_it_was_saved(auto, saved):
    folder, model = saved
    loaded, info = auto.from_pretrained(folder, output_loading_info=True)
    assert type(loaded) is JukeboxModel and not any(info[name] for name in ("missing_keys", "unexpected_keys"))
    assert_same_weights(loaded, model)
    for settings in ("hop_fractions", "temperature", "top_k", "do_sample", "max_length"):
        assert getattr(loaded.generation_config, settings) == getattr(model.generation_config, settings)
    lyrics = {"lyric_ids": torch.tensor([[3, 1, 4]])} if model.config.prior_2.num_lyric_tokens else {}
    one, other = (each.generate(seconds=0.4, generator=generators(1), **lyrics) for each in (model, loaded))
    assert torch.equal(one.audio, other.audio)


def test_the_configuration_comes_back(saved):
    folder, model = saved
    config = AutoConfig.from_pretrained(folder)
    assert isinstance(config, JukeboxConfig) and isinstance(config.vqvae_config, JukeboxVQVAEConfig)
    for level, prior in config.priors.items():
        expected = prior_config_of(model, level)
        assert prior_config_of(config, level) == expected and isinstance(prior, JukeboxPriorConfig)


def prior_config_of(whole: JukeboxModel | JukeboxConfig, level: int) -> dict:
    config = (whole.config if isinstance(whole, JukeboxModel) else whole).priors[level].to_dict()
    return {name: value for name, value in config.items() if name not in ("architectures", "dtype", "_name_or_path")}


def test_weights_without_a_place_in_the_model_are_told_of(tmp_path):
    shared_song_model().save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    config.prior_1 = None
    _, info = AutoModel.from_pretrained(tmp_path, config=config, output_loading_info=True)
    assert info["unexpected_keys"] and all(name.startswith("prior_1.") for name in info["unexpected_keys"])


def test_tied_weights_are_stored_once_and_stay_tied(saved):
    folder, model = saved
    with safe_open(folder / "model.safetensors", "pt") as file:
        names = set(file.keys())
    loaded = AutoModel.from_pretrained(folder)
    for level, prior in loaded.priors.items():
        is_tied = prior.config.tie_word_embeddings
        assert (prior.lm_head.weight is prior.embed_tokens.weight) == is_tied
        stored = {f"prior_{level}.lm_head.weight", f"prior_{level}.embed_tokens.weight"} & names
        assert len(stored) == 2 - is_tied
    assert [prior.config.tie_word_embeddings for prior in model.priors.values()][:2] == [True, True]


@pytest.mark.parametrize("level", [None, 0, 1, 2])
def test_a_prior_is_loaded_alone_from_the_whole_repository(level, saved):
    folder, model = saved
    prior, info = JukeboxPriorModel.from_pretrained(
        folder, **({} if level is None else {"level": level}), output_loading_info=True
    )
    assert not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert_same_weights(prior, model.priors[2 if level is None else level])


def test_the_vqvae_is_loaded_alone_from_the_whole_repository(saved):
    folder, model = saved
    vqvae, info = JukeboxVQVAEModel.from_pretrained(folder, output_loading_info=True)
    assert not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert_same_weights(vqvae, model.vqvae)


def test_the_first_layers_of_a_prior_are_loaded_from_the_whole_repository(saved):
    folder, model = saved
    prior = JukeboxPriorModel.from_pretrained(folder, level=1, num_hidden_layers=2)
    assert len(prior.layers) == 2
    assert_same_weights(prior.layers, model.prior_1.layers[:2])


def test_levels_that_a_repository_does_not_have_are_refused(saved, tmp_path):
    folder, model = saved
    with pytest.raises(ValueError, match=r"level=3: .* has \[0, 1, 2\]"):
        JukeboxPriorModel.from_pretrained(folder, level=3)
    model.prior_1.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"level=1: .* holds one prior; leave level out"):
        JukeboxPriorModel.from_pretrained(tmp_path, level=1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_for_the_priors_matrices_alone(dtype, saved):
    folder, model = saved
    half = AutoModel.from_pretrained(folder, dtype=dtype)
    assert {tensor.dtype for tensor in half.vqvae.state_dict().values()} == {torch.float32}
    for level, prior in half.priors.items():
        alone = JukeboxPriorModel.from_pretrained(folder, level=level, dtype=dtype)
        assert_same_weights(prior, alone)
        assert prior.dtype == prior.layers[0].mlp.fc1.weight.dtype == dtype
        for name, parameter in prior.named_parameters():
            if "norm" in name or "embed" in name or "conditioner" in name or "lm_head" in name:
                assert parameter.dtype == torch.float32, name
    lyrics = {"lyric_ids": torch.tensor([[3, 1, 4]])} if model.config.prior_2.num_lyric_tokens else {}
    assert half.generate(seconds=0.4, **lyrics).audio.dtype == torch.float32


@pytest.mark.xfail(strict=True, reason="transformers loads all parts in the type of the first")
def test_parts_keep_their_own_precision(tmp_path):
    """The released top priors are stored in half precision, their upsamplers are not."""
    vqvae, priors = random_parts()
    priors[2].save_pretrained(tmp_path / "top")
    priors[2] = JukeboxPriorModel.from_pretrained(tmp_path / "top", dtype=torch.float16)
    model = JukeboxModel.from_parts(vqvae, priors)
    model.save_pretrained(tmp_path / "whole")
    assert JukeboxPriorModel.from_pretrained(tmp_path / "whole", level=2).dtype == torch.float16
    assert_same_weights(AutoModel.from_pretrained(tmp_path / "whole"), model)


# Processors


def processor(version: str = "v2", artists: tuple[str, ...] = ("Vela", "Saltmarsh"), **kwargs) -> JukeboxProcessor:
    tokenizer = JukeboxTokenizer.from_labels(artists, ["Folk", "Country"], versions=[version], **kwargs)
    return JukeboxProcessor(JukeboxFeatureExtractor(sampling_rate=RATE, hop_length=8), tokenizer, sample_length=64)


def test_priors_of_different_versions_get_one_processor(tmp_path):
    parts = [processor("v2", max_genres=3), processor("v2", max_genres=4)]
    parts.append(processor("v3", ("The Paper Lanterns", "Vela"), max_genres=1, num_lyric_tokens=8))
    JukeboxProcessor.from_parts(parts).save_pretrained(tmp_path)
    shared_song_model("shared lyrics").config.save_pretrained(tmp_path)
    whole = AutoProcessor.from_pretrained(tmp_path)
    assert isinstance(whole, JukeboxProcessor) and whole.sample_length is None
    assert whole.tokenizer.versions == ["v2", "v2", "v3"] and whole.tokenizer.num_lyric_tokens == 8
    inputs = whole("La la la", artist="Vela", genre="folk country", total_seconds=20, audio=torch.zeros(16).numpy())
    # Each version has its own ids: v2 splits genres into words and v3 does not.
    assert inputs["artist_ids"].tolist() == [[1, 1, 2]]
    assert inputs["genre_ids"].tolist() == [[[1, 2, -1, -1]] * 2 + [[0, -1, -1, -1]]]
    assert inputs["lyric_ids"].shape == (1, 8) and inputs["input_values"].shape == (1, 1, 16)
    assert isinstance(AutoTokenizer.from_pretrained(tmp_path), JukeboxTokenizer)
    assert isinstance(AutoFeatureExtractor.from_pretrained(tmp_path), JukeboxFeatureExtractor)


def test_whole_lyrics_of_several_songs_are_padded_at_the_end():
    whole = JukeboxProcessor.from_parts([processor(), processor(), processor(num_lyric_tokens=8)])
    inputs = whole(["A long one, longer than the window", "short", ""], total_seconds=20)
    lengths = (inputs["lyric_ids"] >= 0).sum(dim=1).tolist()
    assert lengths == [34, 5, 0] and (inputs["lyric_ids"][1, 5:] == -1).all()


def test_a_processors_output_is_what_generate_takes():
    whole = JukeboxProcessor.from_parts([processor(), processor(), processor(num_lyric_tokens=8)])
    inputs = whole(["la la", "lo"], artist=["Vela", None], genre="folk", total_seconds=[20, 15], offset_seconds=[0, 3])
    # The invented vocabulary is larger than the small model's.
    inputs["lyric_ids"] = inputs["lyric_ids"].clamp(max=11)
    song = shared_song_model("separate lyrics").generate(**inputs, seconds=0.4)
    assert song.audio.shape == (2, 1, 40)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (lambda: [], "There are no processors"),
        (lambda: [JukeboxProcessor.from_parts([processor(), processor()])], r"versions=\['v2', 'v2'\]: give .* one"),
        (lambda: [processor(), processor(artists=("Vela",))], "different vocabularies of version v2"),
    ],
    ids=["none", "one of several levels", "other names"],
)
def test_processors_that_do_not_fit_are_refused(parts, message):
    with pytest.raises(ValueError, match=message):
        JukeboxProcessor.from_parts(parts())
