"""Weights from disk to disk: their types, the files, and how little memory reading, writing and loading take."""

import hashlib
import json
import os
import struct
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import GOLDENS, PRIOR_CASES, golden
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel

from benchmarks.conversion_1b import run_measured, save_random_checkpoint
from jukebox_hf.conversion import weights as weights_module
from jukebox_hf.conversion.checkpoints import in_memory, read_checkpoint
from jukebox_hf.conversion.convert import convert_checkpoint


def state_of(folder: Path) -> dict[str, torch.Tensor]:
    return AutoModel.from_pretrained(folder, dtype=torch.float32).state_dict()


def dtypes_of(folder: Path) -> dict[str, torch.dtype]:
    return {name: tensor.dtype for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


@pytest.mark.parametrize("dtype", [None, "float32", "float16", "bfloat16"])
@pytest.mark.parametrize("case", ["prior-5b-lyrics-style", "prior-1b-lyrics-style"])
def test_only_the_layers_matrices_change_their_type(case, dtype, tmp_path):
    folder = convert_checkpoint(golden(case).checkpoint, tmp_path / "out", dtype=dtype)
    stored = {"prior-5b-lyrics-style": "float16", "prior-1b-lyrics-style": "float32"}[case]
    expected = getattr(torch, dtype or stored)
    original = torch.load(golden(case).checkpoint, weights_only=True)["model"]
    written = dtypes_of(folder)
    matrices = {name for name in written if "layers." in name and name.endswith("weight") and "norm" not in name}
    assert len(matrices) == sum(name.endswith(".w") and "attn_mods" in name for name in original)
    assert {written[name] for name in matrices} == {expected}
    assert {written[name] for name in written.keys() - matrices} == {torch.float32}
    model = AutoModel.from_pretrained(folder)
    assert model.dtype == AutoConfig.from_pretrained(folder).dtype == expected
    weight = model.layers[0].mlp.fc1.weight
    assert torch.equal(weight, original["prior.transformer._attn_mods.0.mlp.c_fc.w"].T.to(expected))
    assert model.embed_tokens.weight.dtype == torch.float32


def test_shards(monkeypatch, converted, tmp_path):
    split = partial(weights_module.split_torch_state_dict_into_shards, max_shard_size=30_000)
    monkeypatch.setattr(weights_module, "split_torch_state_dict_into_shards", split)
    folder = convert_checkpoint(golden("prior-5b-style").checkpoint, tmp_path / "out")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in folder.glob("*.safetensors"))
    assert files == [f"model-0000{i}-of-0000{len(files)}.safetensors" for i in range(1, len(files) + 1)]
    assert len(files) > 2 and sorted(set(index["weight_map"].values())) == files
    assert all((folder / file).stat().st_size < 35_000 for file in files)
    expected = state_of(converted("prior-5b-style"))
    for name, tensor in state_of(folder).items():
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize("case", ["prior-5b-lyrics-style", "vqvae-two-level"])
def test_files_are_what_safetensors_would_write(case, converted, tmp_path):
    (path,) = converted(case).glob("*.safetensors")
    save_file(load_file(path), tmp_path / "library.safetensors", metadata={"format": "pt"})
    assert path.read_bytes() == (tmp_path / "library.safetensors").read_bytes()


def test_legacy_files_are_mapped_as_torch_reads_them():
    for case in (*PRIOR_CASES, "vqvae-three-level"):
        path = GOLDENS / case / "checkpoint.pth.tar"
        expected, actual = torch.load(path, weights_only=True), read_checkpoint(path)
        assert actual.hps == expected["hps"] and list(actual.state_dict) == list(expected["model"])
        for name, tensor in actual.state_dict.items():
            copy = tensor.clone()
            assert torch.equal(copy, expected["model"][name]) and copy.dtype == expected["model"][name].dtype, name


def test_tensors_are_aligned_in_memory_alone():
    tensors = read_checkpoint(golden("prior-5b-style").checkpoint).state_dict.values()
    # Else this test shows nothing: the legacy format puts tensors anywhere.
    assert any(tensor.data_ptr() % tensor.dtype.itemsize for tensor in tensors)
    for tensor in tensors:
        for view in (tensor, tensor.T) if tensor.ndim == 2 else (tensor,):
            copy = in_memory(view)
            assert copy.data_ptr() % 64 == 0 and copy.stride() == view.stride()
            assert torch.equal(copy, view.clone())


def test_legacy_files_cut_short_in_the_optimizers_state(tmp_path):
    content = torch.load(golden("prior-5b-style").checkpoint, weights_only=True)
    content["opt"] = {"state": {i: {"exp_avg": torch.zeros(3)} for i in range(1000)}}
    path = tmp_path / "changed.pth.tar"
    torch.save(content, path, _use_new_zipfile_serialization=False)
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(ValueError, match=r"changed.pth.tar is no checkpoint .* cut short"):
        convert_checkpoint(path, tmp_path / "out")


def test_legacy_files_with_a_wrong_length_inside(tmp_path):
    content = torch.load(golden("prior-5b-style").checkpoint, weights_only=True)
    path = tmp_path / "changed.pth.tar"
    torch.save(content, path, _use_new_zipfile_serialization=False)
    damaged = bytearray(path.read_bytes())
    tensor = next(iter(content["model"].values()))
    position = damaged.index(struct.pack("<q", tensor.numel()) + tensor.contiguous().numpy().tobytes())
    damaged[position] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match=r"changed.pth.tar is no checkpoint"):
        convert_checkpoint(path, tmp_path / "out")


# Memory


@pytest.fixture(scope="module")
def large_checkpoint(tmp_path_factory) -> Path:
    """30 layers of 6 MB, and an optimiser's state as large."""
    case = golden("prior-5b-style")
    layer = "prior.transformer._attn_mods.{}."
    sizes = {32: 1024, 24: 768, 8: 256}
    shapes = {
        name.replace(layer.format(0), layer.format(i)): [sizes.get(size, size) for size in tensor.shape]
        for name, tensor in torch.load(case.checkpoint, weights_only=True)["model"].items()
        for i in range(30)
        if "attn_mods" not in name or layer.format(0) in name
    }
    path = tmp_path_factory.mktemp("large") / "checkpoint.pth.tar"
    hps = case.settings["hps"] | {"l_bins": 1024, "prior_width": 1024, "prior_depth": 30}
    save_random_checkpoint(path, shapes, hps, with_optimizer=True)
    return path


@pytest.fixture(scope="module")
def large_repository(large_checkpoint) -> Path:
    return convert_checkpoint(large_checkpoint, large_checkpoint.parent / "converted")


def test_conversion_takes_the_memory_of_a_few_tensors(large_checkpoint, tmp_path):
    assert large_checkpoint.stat().st_size > 350e6
    imports = run_measured("from jukebox_hf.conversion import convert_checkpoint")
    code = f"convert_checkpoint({str(large_checkpoint)!r}, {str(tmp_path / 'out')!r})"
    peak = run_measured(f"from jukebox_hf.conversion import convert_checkpoint; {code}")
    # The largest tensor has 4 MB; the rest is what PyTorch and transformers set up when they are first used.
    assert peak.anonymous - imports.anonymous < 100e6
    # Mapped pages of the model, but not of the optimiser's state.
    assert peak.resident - imports.resident < 300e6


def test_fewer_layers_are_all_that_is_read(large_repository):
    # Mapped tensors are not read before they are used: here, to be widened.
    load = (
        "import torch, jukebox_hf; from transformers import AutoModel; "
        f"AutoModel.from_pretrained({str(large_repository)!r}, num_hidden_layers={{}}, dtype=torch.float32)"
    )
    few, all_layers = (run_measured(load.format(layers)) for layers in (3, 30))
    assert all_layers.resident - few.resident > 0.9 * 27 * (6.3e6 + 12.6e6)


def test_tensors_of_other_layers_need_not_be_there(converted, tmp_path):
    source, folder = converted("prior-5b-lyrics-style"), tmp_path / "part"
    folder.mkdir()
    (folder / "config.json").write_text((source / "config.json").read_text())
    with safe_open(source / "model.safetensors", "pt") as file:
        names = [name for name in file.keys() if not name.startswith(tuple(f"layers.{i}." for i in range(3, 20)))]  # noqa: SIM118
        tensors = {name: file.get_tensor(name) for name in names}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    whole = AutoModel.from_pretrained(source, num_hidden_layers=3).state_dict()
    part, info = AutoModel.from_pretrained(folder, num_hidden_layers=3, output_loading_info=True)
    assert not any(info.values()) and len(part.layers) == 3
    for name, tensor in part.state_dict().items():
        assert torch.equal(tensor, whole[name]), name


def test_sources_are_left_as_they_are(tmp_path):
    path = golden("prior-5b-style").checkpoint
    before = hashlib.sha256(path.read_bytes()).hexdigest()
    convert_checkpoint(path, tmp_path / "out")
    assert hashlib.sha256(path.read_bytes()).hexdigest() == before
