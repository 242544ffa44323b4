"""The original's priors, number by number, through the shipped converter and `from_pretrained`."""

import pytest
import torch
from conftest import PRIOR_CASES, assert_matches, golden
from transformers import AutoModel

from jukebox_hf import JukeboxPriorModel

# The original's seeded draws, each after torch.manual_seed(1234); top_k=0 switches transformers' default of 50 off.
SAMPLING = {
    "seeded_plain": {"do_sample": True, "temperature": 0.99, "top_k": 0},
    "seeded_top_k": {"do_sample": True, "temperature": 0.9, "top_k": 5},
    "seeded_top_p": {"do_sample": True, "temperature": 1.1, "top_k": 0, "top_p": 0.8},
    "seeded_primed": {"do_sample": True, "temperature": 0.99, "top_k": 0},
    "greedy": {"do_sample": False},
    "greedy_short": {"do_sample": False},
    "primed_5": {"do_sample": False},
    "primed_21": {"do_sample": False},
}
NUM_PRIMED = {"seeded_primed": 9, "primed_5": 5, "primed_21": 21}
GRADIENTS = {
    "prior.x_emb.weight": ("embed_tokens.weight", False),
    "prior.transformer._attn_mods.0.attn.c_attn.w": ("layers.0.attention.qkv_proj.weight", True),
    "prior.transformer._attn_mods.1.mlp.c_fc.w": ("layers.1.mlp.fc1.weight", True),
}


def conditions(model: JukeboxPriorModel, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The columns of a golden label row, by the names of `forward`."""
    inputs = {}
    if "labels.y" in tensors:
        total_length, offset, _, artist_ids, *_ = rows = tensors["labels.y"].T
        genres_end = 4 + model.config.max_genres
        inputs |= {"total_length": total_length, "offset": offset, "artist_ids": artist_ids}
        inputs["genre_ids"] = rows[4:genres_end].T
        if model.config.num_lyric_tokens:
            inputs["lyric_ids"] = rows[genres_end:].T
    if "upper_codes" in tensors:
        inputs["upper_codes"] = tensors["upper_codes"]
    return inputs


def sample(model: JukeboxPriorModel, tensors: dict[str, torch.Tensor], name: str, **kwargs) -> torch.Tensor:
    """Draws what the golden `sample.<name>` drew."""
    prompt = tensors["codes"][:, : NUM_PRIMED.get(name, 0)]
    torch.manual_seed(1234)
    length = tensors[f"sample.{name}"].shape[1]
    return model.generate(prompt, max_length=length, **SAMPLING[name], **conditions(model, tensors), **kwargs)


def within_half_precision(expected: torch.Tensor, actual: torch.Tensor) -> torch.Tensor:
    """Some gradients were recorded in half precision: gives the value nearest to `actual` that rounds to those."""
    if expected.dtype != torch.float16:
        return expected
    room = expected.float().abs() * 2**-11
    return torch.minimum(torch.maximum(actual, expected - room), expected + room)


@pytest.fixture(params=PRIOR_CASES, scope="module")
def case(request, converted):
    return golden(request.param).tensors, AutoModel.from_pretrained(converted(request.param), dtype=torch.float32)


def test_conditioning(case):
    tensors, model = case
    conditioning = model.condition(**conditions(model, tensors), batch_size=2)
    if "conditioning.start" in tensors:
        assert_matches(conditioning.start_embeds, tensors["conditioning.start"], "start")
        positions = conditioning.position_embeds
        assert_matches(positions[:, model.config.lyric_offset :], tensors["conditioning.positions"], "positions")
        assert not positions[:, : model.config.lyric_offset].any()
    else:
        assert conditioning.position_embeds is None


@torch.no_grad()
def test_logits_hidden_states_and_losses(case):
    tensors, model = case
    codes = tensors["codes"]
    output = model(codes, **conditions(model, tensors), labels=codes, output_hidden_states=True)
    assert_matches(output.logits, tensors["logits"], "logits")
    assert_matches(output.loss, tensors["loss"], "loss")
    assert_matches(output.music_loss, tensors["gen_loss"], "gen_loss")
    assert_matches(output.music_loss, tensors["bpd"], "bpd")
    if model.config.num_lyric_tokens:
        assert_matches(output.lyric_loss, tensors["prime_loss"], "prime_loss")
    names = [name for name in tensors if name.startswith("hidden.")]
    assert len(names) >= 4
    for name in names:
        assert_matches(output.hidden_states[int(name.removeprefix("hidden."))], tensors[name], name)


@pytest.mark.parametrize("length", [5, 35])
@torch.no_grad()
def test_hidden_states_of_short_clips(case, length):
    tensors, model = case
    names = [name for name in tensors if name.startswith(f"short_{length}.")]
    if not names:
        pytest.skip("the original recorded none for this model")
    output = model(tensors["codes"][:, :length], **conditions(model, tensors), output_hidden_states=True)
    for name in names:
        assert_matches(output.hidden_states[int(name.rpartition(".")[2])], tensors[name], name)


@torch.no_grad()
def test_lyric_attention(case):
    tensors, model = case
    names = [name for name in tensors if name.startswith("attention.")]
    if not names:
        assert not model.config.num_lyric_tokens
        pytest.skip("this model reads no lyrics")
    (name,) = names
    layer = int(name.removeprefix("attention."))
    output = model(tensors["codes"], **conditions(model, tensors), output_attentions=[layer])
    assert_matches(output.lyric_attentions[layer], tensors[name], name)
    assert list(output.lyric_attentions) == [layer]


def test_gradients(case):
    tensors, model = case
    model.train()
    output = model(tensors["codes"], **conditions(model, tensors), labels=tensors["codes"])
    output.loss.backward()
    assert_matches(output.loss.detach(), tensors["train.loss"], "train.loss")
    for name, (ours, is_transposed) in GRADIENTS.items():
        gradient, expected = model.get_parameter(ours).grad, tensors[f"train.grad.{name}"]
        gradient = gradient.T if is_transposed else gradient
        assert_matches(gradient, within_half_precision(expected, gradient), name)
    model.eval()
    model.zero_grad()


@pytest.mark.parametrize("name", SAMPLING)
def test_samples(case, name):
    tensors, model = case
    assert torch.equal(sample(model, tensors, name), tensors[f"sample.{name}"])


@pytest.mark.parametrize("chunk_size", [1, 7, 16])
def test_prefill_in_chunks_gives_the_same_tokens(case, chunk_size):
    tensors, model = case
    assert torch.equal(sample(model, tensors, "primed_21", prefill_chunk_size=chunk_size), tensors["sample.primed_21"])


def test_a_generator_draws_what_the_original_draws(case):
    """One generator for the batch is the original's single stream of random numbers."""
    tensors, model = case
    state = torch.get_rng_state()
    codes = sample(model, tensors, "seeded_top_k", generator=torch.Generator().manual_seed(1234))
    assert torch.equal(codes, tensors["sample.seeded_top_k"])
    torch.manual_seed(1234)
    seeded = torch.get_rng_state()
    torch.set_rng_state(state)
    sample(model, tensors, "seeded_plain", generator=torch.Generator().manual_seed(1234))
    assert torch.equal(torch.get_rng_state(), seeded), "a given generator leaves PyTorch's own alone"


def test_generation_without_a_cache_gives_the_same_tokens(case):
    tensors, model = case
    assert torch.equal(sample(model, tensors, "greedy_short", use_cache=False), tensors["sample.greedy_short"])
