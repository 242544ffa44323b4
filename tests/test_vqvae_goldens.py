"""The original's numbers, through the shipped converter, `save_pretrained` and `from_pretrained`."""

import pytest
import torch
from conftest import VQVAE_CASES, assert_matches, golden
from transformers import AutoModel

from jukebox_hf.convolution_jukebox import SignalStream

# Below this recorded margin fp32 cannot tell the two nearest codes apart, and any order of summation may flip them.
FP32_MARGIN = 1e-6
LOSSES = {
    "recons_loss": "reconstruction_loss",
    "spectral_loss": "spectral_loss",
    "multispectral_loss": "multispectral_loss",
    "commit_loss": "commitment_loss",
    "l1_loss": "l1_loss",
    "l2_loss": "l2_loss",
    "linf_loss": "linf_loss",
    "spectral_convergence": "spectral_convergence",
}
STATISTICS = {
    "fit": "codebook_distance",
    "pn": "latent_deviation",
    "entropy": "codebook_entropy",
    "used_curr": "codebook_used",
    "usage": "codebook_alive",
    "dk": "codebook_change",
}
GRADIENTS = {
    "decoders.0.out.weight": "decoders.0.out_conv.weight",
    "decoders.1.level_blocks.0.model.0.weight": "decoders.1.blocks.0.in_conv.weight",
    "encoders.0.level_blocks.0.model.0.0.weight": "encoders.0.blocks.0.downsamples.0.conv.weight",
    "encoders.1.level_blocks.1.model.0.0.weight": "encoders.1.blocks.1.downsamples.0.conv.weight",
}


@pytest.fixture(params=VQVAE_CASES)
def case(request, converted):
    return golden(request.param), AutoModel.from_pretrained(converted(request.param))


@pytest.fixture(params=[name for name in VQVAE_CASES if name != "vqvae-5b-size"])
def training_case(request, converted):
    return golden(request.param), AutoModel.from_pretrained(converted(request.param))


@pytest.mark.parametrize("length", ["even", "odd"])
def test_codes_and_audio(case, length):
    reference, model = case
    audio = reference.tensors[f"{length}.audio"].transpose(1, 2)
    codes = model.encode(audio).audio_codes
    for level in range(model.config.num_levels):
        expected = reference.tensors[f"{length}.codes.{level}"]
        margins = reference.tensors[f"{length}.margins.{level}"]
        assert codes[level].shape == expected.shape
        wrong = codes[level] != expected
        assert not (wrong & (margins >= FP32_MARGIN)).any(), f"level {level}: {margins[wrong].tolist()}"
        assert wrong.sum() <= 5
        # Decoded from the original's codes, so that a flipped code does not hide a wrong decoder.
        decoded = model.decode(expected, level=level).audio_values
        assert_matches(decoded.transpose(1, 2), reference.tensors[f"{length}.decoded.{level}"], f"level {level}")


@pytest.mark.parametrize("length", ["even", "odd"])
def test_latents(training_case, length):
    reference, model = training_case
    audio = reference.tensors[f"{length}.audio"]
    for level, encoder in enumerate(model.encoders):
        with torch.no_grad():
            latents = encoder(audio, SignalStream())
        assert_matches(latents.transpose(1, 2), reference.tensors[f"{length}.latents.{level}"], f"level {level}")


@pytest.mark.parametrize("kind", ["l1", "l2", "linf", "lmix"])
def test_losses(training_case, kind):
    reference, model = training_case
    model.config.reconstruction_loss = kind
    output = model(reference.tensors["even.audio"].transpose(1, 2))
    assert_matches(output.loss, reference.tensors[f"loss.{kind}.total"], "total")
    _assert_losses(output.metrics, reference.tensors, f"loss.{kind}", model.config.num_levels)


def training_step(model, tensors):
    """The recorded step: from sums equal to the codebook and counts of one, without random restarts."""
    model.config.reconstruction_loss = "lmix"
    for level, codebook in enumerate(model.codebooks):
        _settle_ties(codebook, tensors[f"even.codes.{level}"], tensors[f"even.margins.{level}"])
        codebook.vector_sums.copy_(codebook.vectors)
        codebook.counts.fill_(1.0)
        codebook.revival_threshold = 0.0
    output = model.train()(tensors["even.audio"].transpose(1, 2))
    output.loss.backward()
    return output


def test_training_step(training_case):
    reference, model = training_case
    tensors = reference.tensors
    output = training_step(model, tensors)
    assert_matches(output.loss, tensors["train.loss"], "loss")
    _assert_losses(output.metrics, tensors, "train", model.config.num_levels)
    for theirs, ours in STATISTICS.items():
        assert_matches(output.metrics[ours], tensors[f"train.{theirs}"], theirs)
    for level, codebook in enumerate(model.codebooks):
        assert_matches(codebook.vectors, tensors[f"train.k.{level}"], f"vectors {level}")
        assert_matches(codebook.vector_sums, tensors[f"train.k_sum.{level}"], f"sums {level}")
        assert_matches(codebook.counts, tensors[f"train.k_elem.{level}"], f"counts {level}")
    for theirs, ours in GRADIENTS.items():
        assert_matches(model.get_parameter(ours).grad, tensors[f"train.grad.{theirs}"], theirs)


def _settle_ties(codebook, codes, margins):
    """Takes the original's code where fp32 cannot tell two apart: a single one moves a codebook's statistics."""
    search = codebook._search

    def settled(latents):
        found, distances = search(latents)
        return torch.where(margins < FP32_MARGIN, codes, found), distances

    codebook._search = settled


def _assert_losses(metrics, tensors, prefix, num_levels):
    for theirs, ours in LOSSES.items():
        assert_matches(metrics[ours], tensors[f"{prefix}.{theirs}"], theirs)
    for theirs in ("recons_loss", "spectral_loss", "multispectral_loss"):
        for level in range(num_levels):
            expected = tensors[f"{prefix}.{theirs}_l{level + 1}"]
            assert_matches(metrics[f"{LOSSES[theirs]}_level_{level}"], expected, f"{theirs}_l{level + 1}")
