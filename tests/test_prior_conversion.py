"""From the original's priors to ours: names, hyper-parameters, and the official table."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import PRIOR_CASES, golden
from transformers import AutoConfig, AutoModel

from jukebox_hf import JukeboxPriorModel
from jukebox_hf.conversion.convert import convert_checkpoint
from jukebox_hf.conversion.hyperparameters import ATTENTION_ORDERS, prior_config_from_hps
from jukebox_hf.conversion.name_maps import PRIOR_NAMES, translate
from jukebox_hf.conversion.official import MODELS_URL, OFFICIAL_CHECKPOINTS

SHAPES = json.loads((Path(__file__).parent / "data" / "official_checkpoint_shapes.json").read_text())
OFFICIAL_PRIORS = {
    "5b-prior-level-0": ("upsampler_level_0", 981_298_176),
    "5b-prior-level-1": ("upsampler_level_1", 981_298_176),
    "5b-prior-level-2": ("prior_5b", 5_060_452_800),
    "5b-lyrics-prior-level-2": ("prior_5b_lyrics", 5_640_506_800),
    "1b-lyrics-prior-level-2": ("prior_1b_lyrics", 942_643_200),
}
# The numbers of the patterns in `attention_kinds`.
LETTERS = {0: "D", 1: "r", 2: "c", 3: "p", 6: "x", 7: "P"}


@pytest.fixture
def content(request) -> dict:
    """What the file of a golden case holds, to be changed and saved again."""
    case = getattr(request, "param", "prior-5b-style")
    return torch.load(golden(case).checkpoint, weights_only=True)


@pytest.fixture
def save(tmp_path):
    def save(content, legacy: bool = True) -> Path:
        path = tmp_path / "changed.pth.tar"
        torch.save(content, path, _use_new_zipfile_serialization=not legacy)
        return path

    return save


def state_of(folder: Path) -> dict[str, torch.Tensor]:
    return AutoModel.from_pretrained(folder, dtype=torch.float32).state_dict()


# Names and tensors


@pytest.mark.parametrize("case", PRIOR_CASES)
def test_golden_priors_load_whole(case, converted):
    original = torch.load(golden(case).checkpoint, weights_only=True)["model"]
    model, info = AutoModel.from_pretrained(converted(case), dtype=torch.float32, output_loading_info=True)
    assert isinstance(model, JukeboxPriorModel)
    assert not any(info.values())
    assert len(model.state_dict()) == len(original)
    totals = [sum(tensor.double().sum().item() for tensor in each.values()) for each in (model.state_dict(), original)]
    assert totals[0] == pytest.approx(totals[1], abs=1e-6)


LAYER = "prior.transformer._attn_mods.2"
ENCODER_LAYER = "prime_prior.transformer._attn_mods.1"
CONDITIONER = "conditioner_blocks.0"


@pytest.mark.parametrize(
    ("case", "original", "ours"),
    [
        ("prior-5b-style", "prior.x_emb.weight", "embed_tokens.weight"),
        ("prior-5b-style", "prior.x_out.weight", "lm_head.weight"),
        ("prior-1b-lyrics-style", "prior.x_out.weight", "lm_head.weight"),
        ("prior-5b-style", "prior.pos_emb.pos_emb", "embed_positions.weight"),
        ("prior-unlabelled-style", "prior.start_token", "start_embedding.weight"),
        ("prior-5b-style", f"{LAYER}.attn.c_attn.w", "layers.2.attention.qkv_proj.weight.T"),
        ("prior-5b-style", f"{LAYER}.attn.c_attn.b", "layers.2.attention.qkv_proj.bias"),
        ("prior-5b-style", f"{LAYER}.attn.c_proj.w", "layers.2.attention.out_proj.weight.T"),
        ("prior-5b-style", f"{LAYER}.attn.c_proj.b", "layers.2.attention.out_proj.bias"),
        ("prior-5b-style", f"{LAYER}.mlp.c_fc.w", "layers.2.mlp.fc1.weight.T"),
        ("prior-5b-style", f"{LAYER}.mlp.c_fc.b", "layers.2.mlp.fc1.bias"),
        ("prior-5b-style", f"{LAYER}.mlp.c_proj.w", "layers.2.mlp.fc2.weight.T"),
        ("prior-5b-style", f"{LAYER}.mlp.c_proj.b", "layers.2.mlp.fc2.bias"),
        ("prior-5b-style", f"{LAYER}.ln_0.weight", "layers.2.attention_layer_norm.weight"),
        ("prior-5b-style", f"{LAYER}.ln_1.bias", "layers.2.mlp_layer_norm.bias"),
        (
            "prior-5b-lyrics-style",
            "prior.transformer._attn_mods.18.attn.c_attn.w",
            "layers.18.attention.q_proj.weight.T",
        ),
        (
            "prior-5b-lyrics-style",
            "prior.transformer._attn_mods.18.attn.c_attn.b",
            "layers.18.attention.q_proj.bias",
        ),
        (
            "prior-5b-lyrics-style",
            "prior.transformer._attn_mods.18.attn.c_enc_kv.w",
            "layers.18.attention.kv_proj.weight.T",
        ),
        (
            "prior-5b-lyrics-style",
            "prior.transformer._attn_mods.18.attn.c_enc_kv.b",
            "layers.18.attention.kv_proj.bias",
        ),
        ("prior-5b-style", "y_emb.artist_emb.emb.weight", "label_embedding.artists.weight"),
        ("prior-5b-style", "y_emb.bow_genre_emb.emb.weight", "label_embedding.genres.weight"),
        ("prior-5b-style", "y_emb.total_length_emb.emb.weight", "timing_embedding.total_length.weight"),
        ("prior-5b-style", "y_emb.absolute_pos_emb.emb.weight", "timing_embedding.absolute_position.weight"),
        ("prior-5b-style", "y_emb.relative_pos_emb.emb.weight", "timing_embedding.relative_position.weight"),
        ("upsampler-level-1-style", f"{CONDITIONER}.x_emb.weight", "conditioner.embed_codes.weight"),
        ("upsampler-level-1-style", f"{CONDITIONER}.cond.model.0.weight", "conditioner.in_conv.weight"),
        ("upsampler-level-1-style", f"{CONDITIONER}.cond.model.2.1.bias", "conditioner.upsamples.1.conv.bias"),
        ("upsampler-level-1-style", f"{CONDITIONER}.ln.weight", "conditioner.layer_norm.weight"),
        (
            "upsampler-level-1-style",
            f"{CONDITIONER}.cond.model.2.0.blocks.3.model.1.weight",
            "conditioner.upsamples.1.residual_blocks.3.conv1.weight",
        ),
        (
            "upsampler-level-1-style",
            f"{CONDITIONER}.cond.model.1.0.blocks.2.model.3.bias",
            "conditioner.upsamples.0.residual_blocks.2.conv2.bias",
        ),
        ("prior-5b-lyrics-style", "prime_prior.x_emb.weight", "lyrics_encoder.embed_tokens.weight"),
        ("prior-5b-lyrics-style", "prime_prior.pos_emb.pos_emb", "lyrics_encoder.embed_positions.weight"),
        ("prior-5b-lyrics-style", "prime_prior.start_token", "lyrics_encoder.start_embedding.weight"),
        (
            "prior-5b-lyrics-style",
            f"{ENCODER_LAYER}.attn.c_attn.w",
            "lyrics_encoder.layers.1.attention.qkv_proj.weight.T",
        ),
        ("prior-5b-lyrics-style", f"{ENCODER_LAYER}.ln_1.weight", "lyrics_encoder.layers.1.mlp_layer_norm.weight"),
        ("prior-5b-lyrics-style", "prime_state_proj.w", "lyrics_encoder.state_proj.weight.T"),
        ("prior-5b-lyrics-style", "prime_state_proj.b", "lyrics_encoder.state_proj.bias"),
        ("prior-5b-lyrics-style", "prime_state_ln.bias", "lyrics_encoder.layer_norm.bias"),
        ("prior-5b-lyrics-style", "prime_x_out.weight", "lyrics_encoder.lm_head.weight"),
    ],
)
def test_each_row_of_the_table(case, original, ours, converted):
    expected = torch.load(golden(case).checkpoint, weights_only=True)["model"][original].float()
    state = state_of(converted(case))
    if ours.endswith(".T"):
        expected, ours = expected.T, ours.removesuffix(".T")
    assert torch.equal(state[ours], expected)


@pytest.mark.parametrize("content", ["upsampler-level-0-style"], indirect=True)
def test_residual_blocks_of_a_run_without_checkpointing(content, save, converted, tmp_path):
    content["model"] = {name.replace(".blocks.", ".model."): tensor for name, tensor in content["model"].items()}
    expected = state_of(converted("upsampler-level-0-style"))
    for name, tensor in state_of(convert_checkpoint(save(content), tmp_path / "out")).items():
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize("legacy", [True, False])
def test_file_formats_and_names_from_distributed_training(legacy, content, save, converted, tmp_path):
    content["model"] = {f"module.{name}": tensor for name, tensor in content["model"].items()}
    content["opt"] = {"state": {0: {"exp_avg": torch.zeros(1000)}}}
    expected = state_of(converted("prior-5b-style"))
    for name, tensor in state_of(convert_checkpoint(save(content, legacy), tmp_path / "out")).items():
        assert torch.equal(tensor, expected[name]), name


def _halve_embedding(model):
    model["prior.pos_emb.pos_emb"] = model["prior.pos_emb.pos_emb"].half()


def _widen_matrix(model):
    model[f"{LAYER}.mlp.c_fc.w"] = model[f"{LAYER}.mlp.c_fc.w"].double()


def _transpose(model):
    model[f"{LAYER}.attn.c_proj.w"] = model[f"{LAYER}.attn.c_proj.w"].T


def _cross(model):
    model[f"{LAYER}.attn.c_enc_kv.b"] = torch.zeros(16)


def _drop(model):
    del model["y_emb.artist_emb.emb.weight"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_halve_embedding, r"\(prior.pos_emb.pos_emb is float16 \(64, 32\) and not float32 \(64, 32\)\)"),
        (_widen_matrix, r"2.mlp.c_fc.w is float64 \(32, 32\) transposed and not float32 \(32, 32\)"),
        (_transpose, r"2.attn.c_proj.w is float16 \(8, 32\) transposed and not float32 \(32, 8\)"),
        (_cross, r"1 without a place in the model \(prior.transformer._attn_mods.2.attn.c_enc_kv.b\)"),
        (_drop, r"1 missing \(label_embedding.artists.weight\)"),
    ],
)
def test_tensors_that_do_not_fit_are_named(change, message, content, save, tmp_path):
    change(content["model"])
    with pytest.raises(ValueError, match=message):
        convert_checkpoint(save(content), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", ["prior-unlabelled-style"], indirect=True)
def test_matrices_that_should_be_one(content, save, tmp_path):
    content["model"]["prior.x_out.weight"] = content["model"]["prior.x_out.weight"] + 1
    with pytest.raises(ValueError, match=r"x_out.weight differs from .*hps\['merged_decoder'\] is off"):
        convert_checkpoint(save(content), tmp_path / "out")


# The official table


@pytest.mark.parametrize("name", OFFICIAL_PRIORS)
def test_official_priors_fit_their_table_entries(name):
    recorded, parameters = SHAPES[OFFICIAL_PRIORS[name][0]], OFFICIAL_PRIORS[name][1]
    official = OFFICIAL_CHECKPOINTS[name]
    assert official.url == f"{MODELS_URL}/{recorded['file']}"
    with torch.device("meta"):
        model = JukeboxPriorModel(official.config)
        tensors = {key: torch.empty(shape) for key, shape in recorded["tensors"].items()}
    translated = translate(tensors, PRIOR_NAMES, model.state_dict())
    assert len(translated) == len(tensors) == len(model.state_dict())
    assert model.num_parameters() == recorded["parameters"] == parameters
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


def test_every_official_file_is_in_the_table():
    urls = {official.url for official in OFFICIAL_CHECKPOINTS.values()}
    assert urls == {f"{MODELS_URL}/{recorded['file']}" for recorded in SHAPES.values()}
    assert next(iter(OFFICIAL_CHECKPOINTS)) == "5b-vqvae"


def test_official_size_is_that_of_fp16_matrices():
    tensors = SHAPES["prior_5b"]["tensors"]
    weights = sum(np.prod(shape) * (2 if name.endswith(".w") else 4) for name, shape in tensors.items())
    pickles = OFFICIAL_CHECKPOINTS["5b-prior-level-2"].size - weights
    assert 8 * len(tensors) < pickles < 300_000


def test_official_facts():
    """What shapes do not show; from the issue's table of released models."""
    configs = {name: OFFICIAL_CHECKPOINTS[name].config for name in OFFICIAL_PRIORS}
    facts = {
        name: (
            config.level, config.hop_length, config.num_attention_heads, config.num_blocks, config.init_scale,
            config.tie_word_embeddings, config.add_conditioning_after_stack, config.num_time_bins,
            round(config.sample_length / config.sampling_rate, 2), OFFICIAL_CHECKPOINTS[name].label_version,
        )
        for name, config in configs.items()
    }  # fmt: skip
    assert facts == {
        "5b-prior-level-0": (0, 8, 1, 128, 0.4, True, True, 0, 1.49, "v2"),
        "5b-prior-level-1": (1, 32, 1, 128, 0.4, True, True, 0, 5.94, "v2"),
        "5b-prior-level-2": (2, 128, 8, 128, 0.1, False, False, 128, 23.78, "v2"),
        "5b-lyrics-prior-level-2": (2, 128, 8, 128, 0.1, False, False, 128, 23.78, "v2"),
        "1b-lyrics-prior-level-2": (2, 128, 2, 64, 0.2, True, True, 64, 17.83, "v3"),
    }
    assert [configs[name].conditioner_config.residual_scale for name in list(configs)[:2]] == [1.0, 0.25]
    assert all(config.residual_scale == 1 for config in configs.values())
    lyrics_5b, lyrics_1b = configs["5b-lyrics-prior-level-2"], configs["1b-lyrics-prior-level-2"]
    assert (lyrics_5b.alignment_layer, lyrics_5b.alignment_head) == (68, 2)
    assert (lyrics_1b.alignment_layer, lyrics_1b.alignment_head) == (63, 0)
    assert lyrics_5b.layer_patterns[68] == "x" and lyrics_1b.layer_patterns[63] == "P"
    assert lyrics_5b.lyrics_encoder_config.init_scale == 0.7
    assert [configs[name].min_duration for name in list(configs)[2:]] == [60.0, 23.8, 17.84]


def test_official_patterns():
    patterns = {name: OFFICIAL_CHECKPOINTS[name].config.layer_patterns for name in OFFICIAL_PRIORS}
    for name in ("5b-prior-level-0", "5b-prior-level-1", "5b-prior-level-2"):
        assert patterns[name] == 24 * "rcp"
    cross = patterns["5b-lyrics-prior-level-2"]
    assert [i for i, letter in enumerate(cross) if letter == "x"] == [18, 28, 38, 48, 58, 68, 78]
    assert cross.replace("x", "") == 24 * "rcp"
    shared = patterns["1b-lyrics-prior-level-2"]
    assert {i: shared[i] for i in (15, 31, 47, 63)} == {15: "P", 31: "P", 47: "D", 63: "P"}
    assert all(shared[i] == "rcp"[i % 3] for i in range(72) if i % 16 != 15)


# Hyper-parameters


@pytest.mark.parametrize("case", PRIOR_CASES)
def test_configuration_from_hps(case, converted):
    settings = golden(case).settings
    config = AutoConfig.from_pretrained(converted(case))
    assert config.layer_patterns == "".join(LETTERS[kind] for kind in settings["attention_kinds"])
    assert (config.level, config.context_length) == (settings["level"], settings["n_ctx"])
    assert config.hop_length == settings["raw_to_tokens"]


def test_each_kind_of_configuration():
    configs = {case: prior_config_from_hps(golden(case).settings["hps"]) for case in PRIOR_CASES}
    small = configs["prior-unlabelled-style"]
    assert (small.num_artists, small.num_genres, small.num_time_bins, small.num_lyric_tokens) == (0, 0, 0, 0)
    assert small.tie_word_embeddings and small.lyrics_encoder_config is None and small.conditioner_config is None
    labelled = configs["prior-5b-style"]
    assert (labelled.num_artists, labelled.num_genres, labelled.max_genres, labelled.num_time_bins) == (30, 12, 5, 16)
    assert (labelled.min_duration, labelled.max_duration, labelled.tie_word_embeddings) == (1.0, 60.0, False)
    encoder = configs["prior-5b-lyrics-style"].lyrics_encoder_config
    assert (encoder.hidden_size, encoder.num_hidden_layers, encoder.num_attention_heads, encoder.head_dim) == (
        16, 3, 2, 2,
    )  # fmt: skip
    assert (encoder.num_blocks, encoder.attention_pattern, encoder.init_scale) == (4, "rcp", 0.7)
    shared = configs["prior-1b-lyrics-style"]
    assert shared.shares_stack and (shared.num_lyric_tokens, shared.lyric_vocab_size) == (16, 79)
    assert (shared.alignment_layer, shared.alignment_head, shared.lyrics_loss_weight) == (63, 0, 0.4)
    scales = [configs[f"upsampler-level-{level}-style"].conditioner_config.residual_scale for level in (0, 1)]
    assert scales == [1.0, 0.5]
    upsampler = configs["upsampler-level-1-style"]
    assert upsampler.conditioner_config.strides == [2, 2] and upsampler.conditioner_config.dilation_cycle == 2
    assert (upsampler.num_artists, upsampler.num_time_bins) == (30, 0)


SMALL_PRIOR = {"n_ctx": 8192, "prior_width": 1024, "prior_depth": 48, "heads": 1, "blocks": 64, "init_scale": 0.7}
SMALL_CONFIGURATIONS = {
    "small_prior": ("prior-unlabelled-style", {}),
    "small_labelled_prior": (
        "prior-5b-style",
        {"merged_decoder": False, "labels_v3": True, "y_bins": (10, 100), "max_bow_genre_size": 1, "t_bins": 64},
    ),
    "small_single_enc_dec_prior": (
        "prior-1b-lyrics-style",
        {"n_ctx": 6144, "n_tokens": 384, "heads": 2, "y_bins": (10, 100)},
    ),
    "small_sep_enc_dec_prior": (
        "prior-separate-encoder-style",
        {"prior_depth": 50, "n_tokens": 384, "prime_width": 256, "prime_depth": 9, "prime_blocks": 32},
    ),
    "small_upsampler": (
        "upsampler-level-0-style",
        {"levels": 2, "downs_t": (5, 3), "strides_t": (2, 2), "cond_width": 512, "cond_depth": 16, "labels": False},
    ),
}


@pytest.mark.parametrize("name", SMALL_CONFIGURATIONS)
def test_the_originals_small_configurations(name):
    case, changes = SMALL_CONFIGURATIONS[name]
    config = prior_config_from_hps(golden(case).settings["hps"] | SMALL_PRIOR | changes)
    with torch.device("meta"):
        model = JukeboxPriorModel(config)
    assert (config.hidden_size, config.head_dim) == (1024, 256 // config.num_attention_heads)
    assert len(model.layers) == config.num_hidden_layers
    if name == "small_upsampler":
        assert (config.hop_length, config.conditioner_config.upsampling_factor) == (32, 8)


@pytest.mark.parametrize(
    ("order", "pattern"),
    [
        (0, "DDDDDDDDDDDDDDDDDDDD"),
        (1, "rcrcrcrcrcrcrcrcrcrc"),
        (2, "rcprcprcprcprcprcprc"),
        (9, "rcpDrcpDrcpDrcpDrcpD"),
    ],
)
def test_attention_orders(order, pattern):
    hps = golden("prior-5b-style").settings["hps"] | {"attn_order": order, "prior_depth": 20}
    assert prior_config_from_hps(hps).layer_patterns == pattern


@pytest.mark.parametrize("order", [6, 7, 8, 10, 11])
def test_attention_orders_with_lyrics(order):
    hps = golden("prior-5b-lyrics-style").settings["hps"] | {"attn_order": order, "prior_depth": 96}
    pattern = prior_config_from_hps(hps).layer_patterns
    cross = [i for i, letter in enumerate(pattern) if letter == "x"]
    assert cross[:3] == {6: [3, 7, 11], 7: [15, 31, 47], 8: [9, 19, 29], 10: [18, 28, 38], 11: [15, 31, 63]}[order]
    assert len(ATTENTION_ORDERS[11]) == 48 and pattern[47] == ("D" if order == 11 else pattern[47])


def test_numpy_scalars_and_scales():
    hps = golden("upsampler-level-1-style").settings["hps"]
    numpy = {name: np.int64(value) if type(value) is int else value for name, value in hps.items()}
    numpy |= {"init_scale": np.float64(0.4), "strides_t": tuple(np.int32(2) for _ in range(3)), "res_scale": True}
    config = prior_config_from_hps(numpy)
    assert config.residual_scale == 0.2
    config.residual_scale = 1.0
    assert config.to_dict() == prior_config_from_hps(hps).to_dict()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attn_order": 4}, r"hps\['attn_order'\] is 4: only priors with one of the attention orders 0, 1, 2, 6"),
        ({"prime_attn_order": 3, "n_tokens": 16, "use_tokens": True}, r"hps\['prime_attn_order'\] is 3"),
        ({"attn_order": 8}, r"attention_pattern='rcprcprcpx': this model's layers can be r \(row\)"),
        ({"pos_init": True}, r"hps\['pos_init'\] is True: only priors trained with it off"),
        ({"y_cond_as_bias": True}, r"hps\['y_cond_as_bias'\] is True"),
        ({"copy_input": True}, r"hps\['copy_input'\] is True"),
        ({"level": 3}, r"hps\['level'\] is 3, but there are 3 levels"),
        ({"downs_t": (3, 2)}, "does not describe a prior"),
        ({"y_bins": 0}, "does not describe a prior"),
        ({"min_duration": None}, "does not describe a prior. .*min_duration"),
        ({"prior_width": "wide"}, "does not describe a prior"),
        ({"n_ctx": 63}, "num_blocks=8 does not divide the sequence of 63 positions"),
    ],
)
def test_hps_that_cannot_be_converted(change, message, content, save, tmp_path):
    content["hps"] |= change
    with pytest.raises(ValueError, match=message):
        convert_checkpoint(save(content), tmp_path / "out")


def test_missing_hps_are_named(content, save, tmp_path):
    del content["hps"]["prior_width"], content["hps"]["cond_depth"]
    with pytest.raises(ValueError, match="does not describe a prior: it lacks prior_width, cond_depth"):
        convert_checkpoint(save(content), tmp_path / "out")
    del content["hps"]
    with pytest.raises(ValueError, match="does not describe a prior: it lacks levels, downs_t"):
        convert_checkpoint(save(content), tmp_path / "out")
