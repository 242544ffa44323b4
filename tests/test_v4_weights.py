"""Repositories of transformers 4: the original's numbers from their weights, and all ways to load them."""

import json
import shutil

import pytest
import torch
from conftest import assert_matches, golden
from safetensors.torch import load_file, save_file
from song_models import song_inputs
from test_prior_goldens import SAMPLING, conditions, sample
from test_vqvae_goldens import FP32_MARGIN
from transformers import AutoModel, TorchAoConfig
from transformers.modeling_utils import LoadStateDictConfig
from v4_repositories import (
    CONFIGS,
    PARTS,
    STYLES,
    WEIGHTS,
    save_large_v4_repository,
    v4_fields,
    v4_folder,
    v4_repositories,
)

from benchmarks.conversion_1b import run_measured
from jukebox_hf import JukeboxModel, JukeboxPriorModel, JukeboxVQVAEModel, v4_weights

VARIANTS = [(style, config, weights) for style in STYLES for config in CONFIGS for weights in WEIGHTS]


@pytest.fixture(scope="module")
def v4_repository(tmp_path_factory):
    return v4_repositories(tmp_path_factory.mktemp("v4"))


@pytest.fixture(scope="module", params=VARIANTS, ids="-".join)
def whole(request, v4_repository):
    model, info = AutoModel.from_pretrained(v4_repository(*request.param), output_loading_info=True)
    assert isinstance(model, JukeboxModel) and not any(info.values())
    return model, PARTS[request.param[0]]


# The original's numbers


@torch.no_grad()
def test_codes_and_audio(whole):
    model, _ = whole
    tensors = golden("vqvae-three-level").tensors
    for length in ("even", "odd"):
        codes = model.vqvae.encode(tensors[f"{length}.audio"].transpose(1, 2)).audio_codes
        for level in range(3):
            expected = tensors[f"{length}.codes.{level}"]
            wrong = codes[level] != expected
            assert not (wrong & (tensors[f"{length}.margins.{level}"] >= FP32_MARGIN)).any()
            audio = model.vqvae.decode(expected, level).audio_values.transpose(1, 2)
            assert_matches(audio, tensors[f"{length}.decoded.{level}"], f"decoded {level}")


@torch.no_grad()
def test_conditioning_logits_hidden_states_and_losses(whole):
    model, parts = whole
    for level, case in enumerate(parts):
        prior, tensors = model.priors[level], golden(case).tensors
        inputs = conditions(prior, tensors)
        conditioning = prior.condition(**inputs, batch_size=2)
        assert_matches(conditioning.start_embeds, tensors["conditioning.start"], "start")
        positions = conditioning.position_embeds[:, prior.config.lyric_offset :]
        assert_matches(positions, tensors["conditioning.positions"], "positions")
        output = prior(tensors["codes"], **inputs, labels=tensors["codes"], output_hidden_states=True)
        assert_matches(output.logits, tensors["logits"], "logits")
        assert_matches(output.loss, tensors["loss"], "loss")
        assert_matches(output.music_loss, tensors["gen_loss"], "gen_loss")
        if prior.config.num_lyric_tokens:
            assert_matches(output.lyric_loss, tensors["prime_loss"], "prime_loss")
        names = [name for name in tensors if name.startswith("hidden.")]
        assert len(names) >= 4
        for name in names:
            assert_matches(output.hidden_states[int(name.removeprefix("hidden."))], tensors[name], name)


@pytest.fixture(scope="module")
def models(v4_repository):
    return {style: AutoModel.from_pretrained(v4_repository(style)) for style in STYLES}


@pytest.mark.parametrize("name", SAMPLING)
@pytest.mark.parametrize(("style", "level"), [("1b", 0), ("1b", 1), ("1b", 2), ("5b", 2)])
def test_samples(style, level, name, models):
    tensors = golden(PARTS[style][level]).tensors
    assert torch.equal(sample(models[style].priors[level], tensors, name), tensors[f"sample.{name}"])


def test_a_song(models):
    tensors = golden("song-1b-lyrics-style").tensors
    torch.manual_seed(4321)
    output = models["1b"].generate(
        **song_inputs("song-1b-lyrics-style"), seconds=golden("song-1b-lyrics-style").settings["length"] / 44100
    )
    for level in range(3):
        assert torch.equal(output.audio_codes[level], tensors[f"seeded.codes.{level}"])
    assert_matches(output.audio.transpose(1, 2), tensors["seeded.audio"], "audio")


# Weights


def test_all_layouts_are_the_same_model(v4_repository):
    for style in STYLES:
        first, *others = (AutoModel.from_pretrained(v4_repository(*each)) for each in VARIANTS if each[0] == style)
        expected = first.state_dict()
        for other in others:
            assert other.config.to_dict() | {"_name_or_path": ""} == first.config.to_dict() | {"_name_or_path": ""}
            for name, tensor in other.state_dict().items():
                assert torch.equal(tensor, expected[name]), name


def test_matrices_are_laid_out_as_ours(models):
    for model in models.values():
        assert all(parameter.is_contiguous() for parameter in model.parameters())


def test_codebooks_have_statistics_to_train_on_from(models):
    for level, codebook in enumerate(models["1b"].vqvae.codebooks):
        # The released model's clips of 393216 samples.
        assert torch.equal(codebook.counts, torch.full((32,), 393216 / 8 / 4**level / 32))
        assert torch.equal(codebook.vector_sums, codebook.vectors * codebook.counts[0])


@pytest.mark.parametrize("kept", [("embed_tokens",), ("fc_proj_out",), ("embed_tokens", "fc_proj_out")])
def test_tied_matrices_under_any_of_their_names(kept, models, v4_repository, tmp_path):
    folder = tmp_path / "repository"
    shutil.copytree(v4_repository("1b", weights="safetensors"), folder)
    tensors = load_file(folder / "model.safetensors")
    for prior in range(3):
        matrix = tensors.pop(f"priors.{prior}.prior.embed_tokens.weight")
        tensors |= {f"priors.{prior}.prior.{name}.weight": matrix.clone() for name in kept}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    model, info = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values())
    for level, prior in model.priors.items():
        assert prior.lm_head.weight is prior.embed_tokens.weight
        assert torch.equal(prior.lm_head.weight, models["1b"].priors[level].lm_head.weight)
    assert models["5b"].prior_2.lm_head.weight is not models["5b"].prior_2.embed_tokens.weight


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("style", STYLES)
def test_parts_load_alone(style, weights, models, v4_repository):
    folder = v4_repository(style, weights=weights)
    parts = {"vqvae": JukeboxVQVAEModel.from_pretrained(folder, output_loading_info=True)}
    for level in range(3):
        parts[f"prior_{level}"] = JukeboxPriorModel.from_pretrained(folder, level=level, output_loading_info=True)
    for name, (part, info) in parts.items():
        assert not any(info.values())
        expected = getattr(models[style], name).state_dict()
        assert part.state_dict().keys() == expected.keys()
        for key, tensor in part.state_dict().items():
            assert torch.equal(tensor, expected[key]), key
    assert JukeboxPriorModel.from_pretrained(folder).config.level == 2
    settings = parts["prior_1"][0].generation_config
    assert (settings.do_sample, settings.temperature, settings.top_k, settings.max_length) == (True, 0.99, 0, None)


@torch.no_grad()
def test_fewer_layers(v4_repository):
    tensors = golden("prior-5b-lyrics-style").tensors
    model, info = JukeboxPriorModel.from_pretrained(
        v4_repository("5b"), level=2, num_hidden_layers=4, output_loading_info=True
    )
    assert not any(info.values()) and len(model.layers) == 4
    output = model(tensors["codes"], **conditions(model, tensors), output_hidden_states=[4])
    expected = JukeboxPriorModel.from_pretrained(v4_repository("5b"))(
        tensors["codes"], **conditions(model, tensors), output_hidden_states=[4]
    )
    assert torch.equal(output.hidden_states[4], expected.hidden_states[4])


def test_a_vqvae_that_was_stored_alone(models, v4_repository, tmp_path):
    tensors = load_file(v4_repository("1b", weights="safetensors") / "model.safetensors")
    tensors = {name.removeprefix("vqvae."): tensor for name, tensor in tensors.items() if name.startswith("vqvae.")}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps(v4_fields("1b")["vqvae_config"]))
    model, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, models["1b"].vqvae.state_dict()[name]), name


def test_saving_writes_our_layout(models, v4_repository, tmp_path):
    fresh = JukeboxModel(models["5b"].config)
    prior = JukeboxPriorModel.from_pretrained(v4_repository("5b"), level=1)
    for model in (models["5b"], fresh, prior):
        folder = tmp_path / f"{type(model).__name__}-{model is fresh}"
        model.save_pretrained(folder)
        names = load_file(folder / "model.safetensors").keys()
        assert names <= model.state_dict().keys()
        again, info = AutoModel.from_pretrained(folder, output_loading_info=True)
        assert type(again) is type(model) and not any(info.values())
        assert again.generation_config.to_diff_dict() == model.generation_config.to_diff_dict()
        for name, tensor in again.state_dict().items():
            assert torch.equal(tensor, model.state_dict()[name]), name
    assert "prior_config_list" not in (tmp_path / "JukeboxModel-False" / "config.json").read_text()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_rounds_only_the_layers(dtype, models, v4_repository, tmp_path):
    source = v4_repository("5b", weights="safetensors")
    shutil.copytree(source, tmp_path / "rounded")
    tensors = load_file(source / "model.safetensors")
    # What is kept in fp32 is not to pass through half precision, which the original's fp16 matrices would not show.
    name = "priors.0.encoder.proj_in.weight"
    tensors[name] = tensors[name] + 1e-6
    save_file(tensors, tmp_path / "rounded" / "model.safetensors", metadata={"format": "pt"})
    model = AutoModel.from_pretrained(tmp_path / "rounded", dtype=dtype)
    for name, tensor in model.state_dict().items():
        expected = models["5b"].state_dict()[name]
        if name == "prior_2.lyrics_encoder.state_proj.weight":
            expected = expected + 1e-6
        is_matrix = ".layers." in name and name.endswith("weight") and "norm" not in name
        assert tensor.dtype == dtype if is_matrix else tensor.dtype in (dtype, torch.float32), name
        assert torch.equal(tensor, expected.to(tensor.dtype)), name
    assert model.prior_2.lyrics_encoder.state_proj.weight.dtype == torch.float32


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("device_map", ["auto", "disk"])
@torch.no_grad()
def test_device_maps(device_map, weights, models, v4_repository, tmp_path):
    tensors, folder = golden("prior-5b-lyrics-style").tensors, v4_repository("5b", weights=weights)
    places = "auto" if device_map == "auto" else {"vqvae": "cpu", "prior_0": "cpu", "prior_1": "cpu", "prior_2": "disk"}
    model = AutoModel.from_pretrained(folder, device_map=places, offload_folder=tmp_path)
    inputs = conditions(model.prior_2, tensors)
    output = model.prior_2(tensors["codes"], **inputs)
    assert_matches(output.logits, tensors["logits"], "logits")
    assert (model.prior_2.layers[0].mlp.fc1.weight.device.type == "meta") == (device_map == "disk")


def test_offloading_wants_a_folder(v4_repository):
    places = {"vqvae": "cpu", "prior_0": "disk", "prior_1": "cpu", "prior_2": "cpu"}
    with pytest.raises(ValueError, match="offload_folder"):
        AutoModel.from_pretrained(v4_repository("1b", weights="safetensors"), device_map=places)


@torch.no_grad()
def test_int8_weights(models, v4_repository, tmp_path):
    quantization = pytest.importorskip("torchao.quantization")
    settings = {"quantization_config": TorchAoConfig(quantization.Int8WeightOnlyConfig()), "dtype": torch.bfloat16}
    models["5b"].prior_2.save_pretrained(tmp_path)
    tensors = golden("prior-5b-lyrics-style").tensors
    logits = [
        model(tensors["codes"], **conditions(model, tensors)).logits
        for model in (
            JukeboxPriorModel.from_pretrained(v4_repository("5b"), level=2, **settings),
            JukeboxPriorModel.from_pretrained(tmp_path, **settings),
        )
    ]
    assert torch.equal(*logits)


def test_weights_that_are_quantized_on_loading_are_not_cast_before(models, v4_repository):
    """The model's tensors are of another kind then, such as int8."""
    config = LoadStateDictConfig(hf_quantizer=object())
    files = [str(v4_repository("5b") / "pytorch_model.bin")]
    tensors = v4_weights._v4_state_dict(models["5b"].half(), files, config)
    models["5b"].float()
    assert tensors["prior_2.layers.0.mlp.fc1.weight"][...].dtype == torch.float32


def test_deepspeeds_own_loading_is_refused(v4_repository, monkeypatch):
    monkeypatch.setattr(v4_weights, "is_deepspeed_zero3_enabled", lambda: True)
    with pytest.raises(ValueError, match="ZeRO-3 cannot read: convert it first, with `jukebox-hf convert`"):
        AutoModel.from_pretrained(v4_repository("1b"))


def test_generation_settings_are_the_originals_and_the_files(models):
    for style, top_fraction in (("1b", 0.25), ("5b", 0.125)):
        settings = models[style].generation_config
        assert (settings.do_sample, settings.temperature, settings.top_k, settings.max_length) == (True, 0.99, 0, 64)
        assert settings.hop_fractions == [0.5, 0.5, top_fraction]


# Memory


@pytest.mark.parametrize("weights", WEIGHTS)
def test_loading_makes_one_copy(weights, tmp_path):
    size = save_large_v4_repository(tmp_path, weights)
    assert size > 150e6
    load = "import torch, jukebox_hf; from transformers import AutoModel; AutoModel.from_pretrained({!r}, dtype={})"
    small = run_measured(load.format(str(v4_folder("1b")), "torch.float32"))
    for dtype, share in (("torch.float32", 1.0), ("torch.float16", 0.5)):
        peak = run_measured(load.format(str(tmp_path), dtype))
        # The rest are mapped pages of the file, which the system can drop.
        assert peak.anonymous - small.anonymous < 1.05 * share * size
