"""From the original's checkpoints to our models: names, hyper-parameters, files, and everything that is refused."""

import json
import os
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoFeatureExtractor, AutoModel, AutoModelForAudioTokenization

from jukebox_hf import JukeboxFeatureExtractor, JukeboxVQVAEConfig, JukeboxVQVAEModel
from jukebox_hf.conversion.checkpoints import Checkpoint, read_checkpoint
from jukebox_hf.conversion.convert import convert_checkpoint
from jukebox_hf.conversion.hyperparameters import vqvae_config_from_hps
from jukebox_hf.conversion.name_maps import VQVAE_NAMES, translate
from jukebox_hf.conversion.official import OFFICIAL_CHECKPOINTS
from jukebox_hf.conversion.vqvae import load_vqvae

TESTS = Path(__file__).parent
CASES = ("vqvae-two-level", "vqvae-three-level", "vqvae-5b-size")


def golden_file(case: str = "vqvae-two-level") -> Path:
    return TESTS / "goldens" / case / "checkpoint.pth.tar"


@pytest.fixture
def content() -> dict:
    """What the file of the small two-level case holds, to be changed and saved again."""
    return torch.load(golden_file(), weights_only=True)


@pytest.fixture
def save(tmp_path):
    def save(content, legacy: bool = True) -> Path:
        path = tmp_path / "changed.pth.tar"
        torch.save(content, path, _use_new_zipfile_serialization=not legacy)
        return path

    return save


# Names and tensors


@pytest.mark.parametrize("case", CASES)
def test_golden_checkpoints_load_through_the_auto_classes(case, tmp_path):
    original = torch.load(golden_file(case), weights_only=True)["model"]
    folder = convert_checkpoint(golden_file(case), tmp_path / case)
    model, info = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert isinstance(model, JukeboxVQVAEModel)
    assert not any(info.values())
    state = model.state_dict()
    held = {name: tensor for name, tensor in state.items() if not name.endswith(("vector_sums", "counts"))}
    assert len(held) == len(original)
    for name, tensor in translate(original, VQVAE_NAMES, held).items():
        assert torch.equal(state[name], tensor), name
    assert isinstance(AutoModelForAudioTokenization.from_pretrained(folder), JukeboxVQVAEModel)
    extractor = AutoFeatureExtractor.from_pretrained(folder)
    assert isinstance(extractor, JukeboxFeatureExtractor)
    assert (extractor.sampling_rate, extractor.hop_length) == (model.config.sampling_rate, model.config.hop_length)


@pytest.mark.parametrize(
    ("original", "ours"),
    [
        ("encoders.1.level_blocks.0.model.4.0.weight", "encoders.1.blocks.0.downsamples.4.conv.weight"),
        (
            "encoders.1.level_blocks.1.model.2.1.model.0.model.1.bias",
            "encoders.1.blocks.1.downsamples.2.residual_blocks.0.conv1.bias",
        ),
        (
            "encoders.0.level_blocks.0.model.4.1.model.2.model.3.weight",
            "encoders.0.blocks.0.downsamples.4.residual_blocks.2.conv2.weight",
        ),
        ("encoders.1.level_blocks.1.model.3.bias", "encoders.1.blocks.1.out_conv.bias"),
        ("decoders.1.level_blocks.0.model.0.weight", "decoders.1.blocks.0.in_conv.weight"),
        (
            "decoders.1.level_blocks.1.model.1.0.model.2.model.1.weight",
            "decoders.1.blocks.1.upsamples.0.residual_blocks.2.conv1.weight",
        ),
        (
            "decoders.0.level_blocks.0.model.5.0.model.0.model.3.bias",
            "decoders.0.blocks.0.upsamples.4.residual_blocks.0.conv2.bias",
        ),
        ("decoders.0.level_blocks.0.model.5.1.weight", "decoders.0.blocks.0.upsamples.4.conv.weight"),
        ("decoders.1.out.bias", "decoders.1.out_conv.bias"),
        ("bottleneck.level_blocks.1.k", "codebooks.1.vectors"),
    ],
)
def test_each_row_of_the_table(original, ours, content):
    model = load_vqvae(Checkpoint(content["model"], content["hps"]))
    assert torch.equal(model.state_dict()[ours], content["model"][original])


def test_the_model_is_built_around_the_checkpoints_own_tensors(content):
    model = load_vqvae(Checkpoint(content["model"], content["hps"]))
    tensor = content["model"]["decoders.1.out.bias"]
    assert model.decoders[1].out_conv.bias.data_ptr() == tensor.data_ptr()
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_names_from_distributed_training(content):
    wrapped = {f"module.{name}": tensor for name, tensor in content["model"].items()}
    plain = load_vqvae(Checkpoint(content["model"], content["hps"])).state_dict()
    for name, tensor in load_vqvae(Checkpoint(wrapped, content["hps"])).state_dict().items():
        assert torch.equal(tensor, plain[name]), name


def _drop(model):
    for level in range(2):
        del model[f"decoders.{level}.out.bias"], model[f"decoders.{level}.out.weight"]


def _add(model):
    model["decoders.0.level_blocks.0.model.0.1.weight"] = torch.zeros(1)


def _add_twin(model):
    # The table would give it the name of `encoders.0.level_blocks.0.model.5.weight`.
    model["encoders.0.level_blocks.0.model.6.weight"] = model["encoders.0.level_blocks.0.model.5.weight"]


def _reshape(model):
    model["decoders.1.out.weight"] = model["decoders.1.out.weight"][..., :2]


def _halve(model):
    model["bottleneck.level_blocks.0.k"] = model["bottleneck.level_blocks.0.k"].half()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            _drop,
            r"4 missing \(decoders.0.out_conv.weight, decoders.0.out_conv.bias, decoders.1.out_conv.weight, \.\.\.",
        ),
        (_add, r"1 without a place in the model \(decoders.0.level_blocks.0.model.0.1.weight\)"),
        (_add_twin, r"1 without a place in the model \(encoders.0.level_blocks.0.model.6.weight\)"),
        (_reshape, r"\(decoders.1.out.weight is float32 \(1, 8, 2\) and not float32 \(1, 8, 3\)\)"),
        (_halve, r"\(bottleneck.level_blocks.0.k is float16 \(24, 8\) and not float32 \(24, 8\)\)"),
    ],
)
def test_tensors_that_do_not_fit_are_named(change, message, content, save, tmp_path):
    change(content["model"])
    with pytest.raises(ValueError, match=message):
        convert_checkpoint(save(content), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_official_vqvae_fits_its_table_entry():
    recorded = json.loads((TESTS / "data" / "official_checkpoint_shapes.json").read_text())["vqvae"]
    official = OFFICIAL_CHECKPOINTS["5b-vqvae"]
    tensors = {name: torch.empty(shape, device="meta") for name, shape in recorded["tensors"].items()}
    model = load_vqvae(Checkpoint(tensors, {}), official)
    assert official.url.endswith(recorded["file"])
    assert model.num_parameters() == recorded["parameters"] == 1_485_763
    assert {tensor.device.type for tensor in model.parameters()} == {"meta"}
    assert [codebook.counts[0].item() for codebook in model.codebooks] == [24.0, 6.0, 1.5]


def test_codebook_statistics_are_those_of_a_resumed_run(content):
    config = vqvae_config_from_hps(content["hps"])
    model = load_vqvae(Checkpoint(content["model"], content["hps"]))
    for codebook, hop in zip(model.codebooks, config.hop_lengths):
        count = (8192 // hop) / 24
        assert torch.equal(codebook.counts, torch.full((24,), count))
        assert torch.equal(codebook.vector_sums, codebook.vectors * count)


# Hyper-parameters


def test_configuration_from_hps(content):
    config = vqvae_config_from_hps(content["hps"])
    expected = JukeboxVQVAEConfig(
        num_downsamples=[5, 3],
        strides=[2, 2],
        level_multipliers=None,
        hidden_size=4,
        num_residual_layers=3,
        codebook_size=24,
        codebook_dim=8,
        sampling_rate=22050,
        reconstruction_loss="l2",
        linf_k=64,
        lmix_l1=0.3,
        lmix_l2=1.0,
        lmix_linf=0.02,
        multispectral_n_fft=[2048, 1024, 512],
        multispectral_hop_length=[240, 120, 50],
        multispectral_window_length=[1200, 600, 240],
        bandwidth_l1=0.12,
        bandwidth_l2=0.031,
        bandwidth_spectral=9.7,
    )
    assert config.to_dict() == expected.to_dict()


def test_every_entry_of_hps_reaches_its_field(content):
    hps = content["hps"] | {
        "m_conv": 0.5, "dilation_growth_rate": 2, "dilation_cycle": 4, "l_mu": 0.9, "revival_threshold": 0.5,
        "spectral": 0.25, "multispectral": 0.75, "commit": 0.1, "hvqvae_multipliers": (2, 1),
        "multispec_loss_n_fft": (512,), "multispec_loss_hop_length": (50,), "multispec_loss_window_size": (240,),
    }  # fmt: skip
    config = vqvae_config_from_hps(hps)
    fields = (
        "residual_expansion", "dilation_growth_rate", "dilation_cycle", "codebook_decay", "codebook_revival_threshold",
        "spectral_weight", "multispectral_weight", "commitment_weight", "level_multipliers",
        "multispectral_n_fft", "multispectral_hop_length", "multispectral_window_length",
    )  # fmt: skip
    expected = [0.5, 2, 4, 0.9, 0.5, 0.25, 0.75, 0.1, [2, 1], [512], [50], [240]]
    assert [getattr(config, field) for field in fields] == expected


def test_bandwidths_default_to_one(content):
    del content["hps"]["bandwidth"]
    config = vqvae_config_from_hps(content["hps"])
    assert (config.bandwidth_l1, config.bandwidth_l2, config.bandwidth_spectral) == (1.0, 1.0, 1.0)


def test_levels_beyond_the_number_of_levels_are_not_read(content):
    config = vqvae_config_from_hps(content["hps"] | {"downs_t": (5, 3, 2), "strides_t": (2, 2, 2)})
    assert config.num_downsamples == [5, 3]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_bottleneck": False}, "hps\\['use_bottleneck'\\] is False"),
        ({"vqvae_reverse_decoder_dilation": False}, "hps\\['vqvae_reverse_decoder_dilation'\\] is False"),
        ({"strides_t": (3, 2)}, r"strides=\[3, 2\]: strides are even"),
        ({"width": "wide"}, "'hidden_size' expected int, got str"),
        ({"downs_t": None}, "does not describe a VQ-VAE"),
        ({"levels": 3}, r"hps\['levels'\] is 3, but hps\['downs_t'\] is \[5, 3\]"),
        ({"sample_length": 0}, r"hps\['sample_length'\] is 0"),
    ],
)
def test_hps_that_cannot_be_converted(change, message, content):
    with pytest.raises(ValueError, match=message):
        load_vqvae(Checkpoint(content["model"], content["hps"] | change))


def test_missing_hps_are_named(content, save, tmp_path):
    del content["hps"]["depth"], content["hps"]["l_bins"]
    with pytest.raises(ValueError, match="lacks depth, l_bins"):
        convert_checkpoint(save(content), tmp_path / "out")
    del content["hps"]
    with pytest.raises(ValueError, match="lacks levels, downs_t"):
        convert_checkpoint(save(content), tmp_path / "out")


def test_relative_spectral_loss_is_not_dropped_silently(content, caplog):
    vqvae_config_from_hps(content["hps"] | {"use_nonrelative_specloss": False})
    assert "spectral convergence" in caplog.text


# Files


# The old spelling in the legacy format alone: a zip archive's checksums do not allow the change.
@pytest.mark.parametrize(
    ("spelling", "legacy"),
    [(b"numpy._core.multiarray", True), (b"numpy._core.multiarray", False), (b"numpy.core.multiarray", True)],
)
def test_numpy_scalars_in_hps(spelling, legacy, content, save, tmp_path):
    content["hps"] |= {
        "sample_length": np.int64(8192),
        "sr": np.int32(22050),
        "bandwidth": {"l1": np.float64(0.12), "l2": np.float32(0.031), "spec": np.float16(9.5)},
        "use_bottleneck": np.bool_(True),
    }
    path = save(content, legacy)
    path.write_bytes(path.read_bytes().replace(b"numpy._core.multiarray", spelling))
    assert spelling in path.read_bytes()
    config = AutoModel.from_pretrained(convert_checkpoint(path, tmp_path / "out")).config
    assert (config.sampling_rate, config.bandwidth_l1, config.bandwidth_spectral) == (22050, 0.12, 9.5)
    assert type(config.bandwidth_l2) is float


@pytest.mark.parametrize("legacy", [True, False])
def test_both_file_formats_give_the_same_model(legacy, content, save, tmp_path):
    content["opt"] = {"state": {0: {"exp_avg": torch.zeros(3)}}}
    model = AutoModel.from_pretrained(convert_checkpoint(save(content, legacy), tmp_path / "out"))
    assert torch.equal(model.decoders[0].out_conv.weight, content["model"]["decoders.0.out.weight"])


class Hostile:
    """Calls a function when it is unpickled."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize("place", ["hps", "opt", "model"])
@pytest.mark.parametrize(
    ("function", "argument", "name"),
    [
        (os.mkdir, "{mark}", "posix.mkdir"),
        (exec, "import os; os.mkdir('{mark}')", "exec"),
        (torch.load, "{mark}", "torch.serialization.load"),
        (np.zeros, 3, "numpy.zeros"),
    ],
)
def test_hostile_pickles_are_refused_and_do_not_run(function, argument, name, place, legacy, content, save, tmp_path):
    mark = tmp_path / "mark"
    content[place] = {"x": Hostile(function, argument.format(mark=mark) if isinstance(argument, str) else argument)}
    path = save(content, legacy)
    with pytest.raises(ValueError, match=rf"refused: its pickle asks for \S*{re.escape(name)}, "):
        convert_checkpoint(path, tmp_path / "out")
    assert not mark.exists() and not (tmp_path / "out").exists()


def test_the_allow_list_ends_with_the_reading():
    before = set(torch.serialization.get_safe_globals())
    read_checkpoint(golden_file())
    assert set(torch.serialization.get_safe_globals()) == before


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize("kept", [0.0, 0.001, 0.1, 0.9, 0.99999])
def test_truncated_files(kept, legacy, content, save, tmp_path):
    path = save(content, legacy)
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    with pytest.raises(ValueError, match=r"changed.pth.tar is no checkpoint .* cut short"):
        convert_checkpoint(path, tmp_path / "out")


def test_other_files(tmp_path):
    path = tmp_path / "other"
    for content in (
        b"<html>not found</html>",
        b"RIFF\0\0\0\0WAVE",
        pickle.dumps([1, 2], protocol=2),
        bytes(range(256)),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="is no checkpoint"):
            convert_checkpoint(path, tmp_path / "out")


@pytest.mark.parametrize("content", [{"state_dict": {}, "step": 1}, [1, 2], {"model": [1]}, {"model": {"x": 1}}])
def test_checkpoints_without_a_model(content, save, tmp_path):
    with pytest.raises(ValueError, match="holds no dictionary of tensors named 'model'"):
        convert_checkpoint(save(content), tmp_path / "out")


def test_unknown_sources_name_the_official_ones(tmp_path):
    for source in ("6b-vqvae", tmp_path):
        with pytest.raises(ValueError, match=r"neither a file nor an official checkpoint.* 5b-vqvae"):
            convert_checkpoint(source, tmp_path / "out")
