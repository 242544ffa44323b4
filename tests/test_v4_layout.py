"""Repositories of transformers 4: their configurations, vocabularies, and names on the Hub."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from conftest import golden
from transformers import AutoConfig, AutoProcessor, AutoTokenizer
from v4_repositories import CONFIGS, PARTS, STYLES, v4_fields, v4_repositories

from jukebox_hf import JukeboxConfig, JukeboxPriorConfig, JukeboxProcessor, JukeboxTokenizer, v4_layout
from jukebox_hf.conversion.hyperparameters import prior_config_from_hps, vqvae_config_from_hps
from jukebox_hf.conversion.official import OFFICIAL_CHECKPOINTS, OFFICIAL_MODELS
from jukebox_hf.v4_layout import (
    translate_v4_config,
    translate_v4_prior,
    translate_v4_tokenizer,
    translate_v4_vqvae,
)


@pytest.fixture(scope="module")
def v4_repository(tmp_path_factory):
    return v4_repositories(tmp_path_factory.mktemp("v4"))


# Configurations


@pytest.mark.parametrize("layout", CONFIGS)
@pytest.mark.parametrize("style", STYLES)
def test_configurations_are_those_of_the_original_checkpoints(style, layout):
    config = JukeboxConfig.from_dict(v4_fields(style, layout))
    expected = vqvae_config_from_hps(golden("vqvae-three-level").settings["hps"]).to_dict()
    for name in ("num_downsamples", "strides", *v4_layout.VQVAE_FIELDS.values()):
        assert getattr(config.vqvae_config, name) == expected[name], name
    for level, case in enumerate(PARTS[style]):
        expected = prior_config_from_hps(golden(case).settings["hps"]).to_dict() | {"dtype": "float32"}
        assert config.priors[level].to_dict() == expected


HUB_UPSAMPLER = {
    "attention_pattern": "raw_column_previous_row_attention", "blocks": 64, "n_ctx": 8192, "hidden_size": 1920,
    "n_heads": 1, "init_scale": 0.4, "is_encoder_decoder": False, "merged_decoder": False, "alignment_head": None,
    "alignment_layer": None, "nb_relevant_lyric_tokens": 0, "metadata_dims": [120, 4111], "res_conv_depth": 16,
    "res_conv_width": 1024, "res_dilation_cycle": 8, "res_dilation_growth_rate": 3, "level": 1,
}  # fmt: skip
HUB_TOPS = {
    "1b-lyrics": {
        "attention_pattern": "enc_dec_with_lyrics", "blocks": 64, "n_ctx": 6144, "n_heads": 2, "num_layers": 72,
        "lyric_vocab_size": 79, "merged_decoder": False, "metadata_dims": [604, 7898], "alignment_layer": 68,
        "alignment_head": 2, "mask": True, "min_duration": 17.84, "init_scale": 0.2, "conv_res_scale": False,
    },
    "5b-lyrics": {
        "attention_pattern": "large_separated_enc_dec_w_lyrics", "blocks": 64, "n_ctx": 8192, "n_heads": 8,
        "hidden_size": 4800, "num_layers": 79, "nb_relevant_lyric_tokens": 512, "metadata_dims": [120, 4111],
        "is_encoder_decoder": False, "merged_decoder": True, "timing_dims": 128, "min_duration": 23.8,
        "init_scale": 0.1, "encoder_config": {
            "attention_pattern": "raw_column_previous_row_attention", "blocks": 32, "hidden_size": 1280,
            "num_layers": 18, "n_heads": 4, "init_scale": 0.7, "n_ctx": 6144, "nb_relevant_lyric_tokens": 384,
        },
    },
}  # fmt: skip


@pytest.mark.parametrize("name", HUB_TOPS)
def test_released_repositories_become_the_released_models(name):
    top = HUB_TOPS[name]
    fields = {
        "model_type": "jukebox", "nb_priors": 3, "hop_fraction": [0.125, 0.5, 0.5], "vqvae_config": {},
        "min_duration": top["min_duration"], "max_duration": 600.0, "timing_dims": top.get("timing_dims", 64),
        "max_nb_genres": 1 if name == "1b-lyrics" else 5,
        "prior_0": top, "prior_1": HUB_UPSAMPLER | {"conv_res_scale": True}, "prior_2": HUB_UPSAMPLER,
    }  # fmt: skip
    config = JukeboxConfig.from_dict(fields)
    vqvae, *priors = (OFFICIAL_CHECKPOINTS[part].config for part in OFFICIAL_MODELS[name])
    assert config.vqvae_config.to_dict() == vqvae.to_dict()
    for level, expected in enumerate(priors):
        unknown = {"min_duration": config.priors[level].min_duration} if level < 2 else {}
        assert config.priors[level].to_dict() == expected.to_dict() | unknown


@pytest.mark.parametrize(
    ("fields", "blocks"),
    [
        ({"n_ctx": 8192, "hidden_size": 1920}, 128),
        ({"n_ctx": 8192, "hidden_size": 4800}, 128),
        ({"n_ctx": 8192, "hidden_size": 1920, "blocks": 32}, 32),
        ({"n_ctx": 8192, "hidden_size": 2048}, 64),
        ({"n_ctx": 6144, "hidden_size": 1920}, 64),
    ],
)
def test_blocks(fields, blocks):
    assert translate_v4_prior(fields, 2, translate_v4_vqvae({}))["num_blocks"] == blocks


def test_scales_of_residuals():
    fields = translate_v4_prior({"attn_res_scale": True, "num_layers": 4}, 2, translate_v4_vqvae({}))
    assert fields["residual_scale"] == 0.25


@pytest.mark.parametrize(
    ("fields", "alignment"),
    [
        ({}, (63, 0)),
        ({"alignment_layer": 15, "alignment_head": 1}, (15, 1)),
        ({"is_encoder_decoder": False, "encoder_config": {}}, (68, 2)),
        ({"nb_relevant_lyric_tokens": 0}, (None, None)),
    ],
)
def test_alignment(fields, alignment):
    translated = translate_v4_prior(fields, 2, translate_v4_vqvae({}))
    assert (translated.get("alignment_layer"), translated.get("alignment_head")) == alignment


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("FullDenseAttention", "DDDDDD"),
        ("full_dense_attention", "DDDDDD"),
        ("RawColumnPreviousRowAttention", "rcprcp"),
        ("single_enc_dec_w_lyrics", "rcprcp"),
    ],
)
def test_names_of_patterns(name, pattern):
    fields = translate_v4_prior({"attention_pattern": name, "num_layers": 6}, 2, translate_v4_vqvae({}))
    assert JukeboxPriorConfig(**fields).layer_patterns == pattern


def test_the_whole_models_labels_win():
    fields = v4_fields("1b") | {
        "sampling_rate": 22050, "timing_dims": 8, "min_duration": 2.0, "max_duration": 9.0, "max_nb_genres": 3,
    }  # fmt: skip
    top, upsampler = JukeboxConfig.from_dict(fields).prior_2, JukeboxConfig.from_dict(fields).prior_0
    assert (top.sampling_rate, top.num_time_bins, top.min_duration, top.max_duration) == (22050, 8, 2.0, 9.0)
    assert (top.max_genres, upsampler.max_genres, upsampler.num_time_bins) == (3, 5, 0)
    unlabelled = JukeboxConfig.from_dict(fields | {"metadata_conditioning": False}).prior_2
    assert (unlabelled.num_artists, unlabelled.num_genres, unlabelled.num_time_bins) == (0, 0, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prior_1": None}, "has 2 priors: transformers 4 stored 3"),
        ({"prior_config_list": [{}, {}]}, "has 2 priors"),
        ({"prior_0": {"attention_pattern": "sparse"}}, "attention_pattern='sparse': the known ones are full_dense"),
        ({"prior_0": {"is_encoder_decoder": False}}, "encoder_config=None: a prior that reads lyrics apart"),
    ],
)
def test_configurations_that_cannot_be_read(change, message):
    with pytest.raises(ValueError, match=message):
        translate_v4_config(v4_fields("1b") | change)


def test_a_prior_that_was_stored_alone_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(v4_fields("1b")["prior_0"]))
    with pytest.raises(
        ValueError, match=r"load it from a whole repository, as in .*from_pretrained\(repository, level=2"
    ):
        AutoConfig.from_pretrained(tmp_path)


# Vocabularies

# Artist, genre and lyrics, and their ids under v3 and under v2.
ROWS = [
    ("Vela", "Country", "Hey now, (go)!", (8, [2], "8 31 51 76 40 41 49 64 76 72 33 41 73 67"),
     (7, [3], "8 31 51 77 40 41 49 64 77 73 33 41 74 67")),
    ("The Paper Lanterns", "Blues Rock", "two\\lines", (1, [1], "46 49 41 78 38 35 40 31 45"),
     (1, [1, 2], "46 49 41 79 38 35 40 31 45")),
    ("North.By.Noon", "Bebop", "a+b", (6, [5], "27 28"), (5, [0], "27 70 28")),
    ("Márta Körös", "Folk", "café — it’s “ok”", (3, [0], "29 27 32 31 76 69 69 76 35 46 70 45 76 71 41 37 71"),
     (0, [6], "29 27 32 31 77 69 69 77 35 46 71 45 77 72 41 37 72")),
]  # fmt: skip


@pytest.fixture(params=["as stored", "saved again"])
def processors(request, v4_repository, tmp_path):
    loaded = {style: AutoProcessor.from_pretrained(v4_repository(style)) for style in STYLES}
    if request.param == "as stored":
        return loaded
    for style, processor in loaded.items():
        processor.save_pretrained(tmp_path / style)
    return {style: AutoProcessor.from_pretrained(tmp_path / style) for style in STYLES}


@pytest.mark.parametrize("row", ROWS)
def test_names_and_lyrics(row, processors):
    artist, genre, lyrics, v3, v2 = row
    for style, top in (("1b", v3), ("5b", v2)):
        inputs = processors[style](lyrics, artist=artist, genre=genre, total_seconds=20)
        levels = (v2, v2, top)
        assert inputs["artist_ids"].tolist() == [[artist_id for artist_id, _, _ in levels]]
        assert inputs["genre_ids"].tolist() == [[ids + [-1] * (5 - len(ids)) for _, ids, _ in levels]]
        assert inputs["lyric_ids"].tolist() == [[int(index) for index in top[2].split()]]


def test_processors(processors):
    for style, versions, size in (("1b", ["v2", "v2", "v3"], 79), ("5b", ["v2", "v2", "v2"], 80)):
        processor = processors[style]
        tokenizer, extractor = processor.tokenizer, processor.feature_extractor
        assert isinstance(processor, JukeboxProcessor) and processor.sample_length is None
        assert isinstance(tokenizer, JukeboxTokenizer) and tokenizer.versions == versions
        assert (tokenizer.max_genres, tokenizer.num_lyric_tokens) == (5, 16)
        assert len(tokenizer) == tokenizer.vocab_size == size
        assert (tokenizer.unk_token, tokenizer.unk_token_id, tokenizer.pad_token_id) == ("<unk>", 0, 0)
        assert (extractor.sampling_rate, extractor.hop_length) == (44100, 128)


def test_vocabularies_are_saved_in_our_layout(v4_repository, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(v4_repository("1b"))
    tokenizer.save_pretrained(tmp_path)
    artists = json.loads((tmp_path / "artists.json").read_text())
    assert artists["v2"]["vela"] == 7 and artists["v3"]["vela"] == 8 and len(artists["v3"]) == 10
    stored = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert stored["versions"] == ["v2", "v2", "v3"] and not {"version", "n_genres", "max_n_lyric_tokens"} & set(stored)


def test_characters_that_the_old_tokenizer_wrote_after_use(v4_repository, tmp_path):
    shutil.copytree(v4_repository("1b"), tmp_path / "used")
    characters = AutoTokenizer.from_pretrained(v4_repository("5b")).get_vocab()
    (tmp_path / "used" / "lyrics.json").write_text(json.dumps(characters))
    used = AutoTokenizer.from_pretrained(tmp_path / "used")
    assert used.get_vocab() == AutoTokenizer.from_pretrained(v4_repository("1b")).get_vocab()
    assert used.vocab_size == 79


def test_genre_slots_are_the_stored_ones_where_no_prior_is_of_v2():
    assert translate_v4_tokenizer({"version": ["v3"] * 3, "n_genres": 1})["max_genres"] == 1


def test_arguments_win_over_the_file(v4_repository):
    tokenizer = AutoTokenizer.from_pretrained(v4_repository("5b"), max_genres=3)
    assert tokenizer.max_genres == 3 and len(tokenizer.genre_ids("Folk")) == 3


# The Hub


def test_a_name_on_the_hub(v4_repository, tmp_path):
    """From the cache that a download leaves, without a network."""
    commit = "0123456789012345678901234567890123456789"
    cached = tmp_path / "hub" / "models--openai--jukebox-1b-lyrics"
    shutil.copytree(v4_repository("1b"), cached / "snapshots" / commit)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit)
    code = """
import jukebox_hf
from transformers import AutoModel, AutoProcessor, AutoTokenizer
name = "openai/jukebox-1b-lyrics"
model, processor = AutoModel.from_pretrained(name), AutoProcessor.from_pretrained(name)
prior = jukebox_hf.JukeboxPriorModel.from_pretrained(name, level=1, revision="main")
print(type(model).__name__, model.generation_config.hop_fractions, type(processor).__name__, prior.config.level)
print(AutoTokenizer.from_pretrained(name).versions)
"""
    environment = os.environ | {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert result.stdout.splitlines() == [
        "JukeboxModel [0.5, 0.5, 0.25] JukeboxProcessor 1", "['v2', 'v2', 'v3']"
    ], result.stderr  # fmt: skip
