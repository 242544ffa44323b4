"""The VQ-VAE as a transformers model: streams, batches, dtypes, devices, compilation, bad input."""

import copy

import numpy as np
import pytest
import torch
from accelerate import cpu_offload, dispatch_model
from huggingface_hub.errors import StrictDataclassError
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModel, AutoModelForAudioTokenization

from benchmarks import plain_vqvae
from jukebox_hf import JukeboxVQVAEConfig, JukeboxVQVAEModel, modeling_jukebox_vqvae
from jukebox_hf.convolution_jukebox import SignalStream


def _audio(batch: int, samples: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(batch, 1, samples, generator=torch.Generator().manual_seed(seed)) * 0.3


def _cut(signal: torch.Tensor, dim: int, sizes: list[int]):
    start = 0
    while start < signal.shape[dim]:
        for size in sizes:
            yield signal.narrow(dim, start, min(size, signal.shape[dim] - start))
            start += size
            if start >= signal.shape[dim]:
                return


@torch.no_grad()
def _assert_same_codes(model, level, audio, codes, expected, margin=1e-6):
    """Equal, but for latents whose distances to the two codes, over their norm, differ by less than the margin."""
    assert codes.shape == expected.shape
    latents = model.encoders[level](audio.transpose(1, 2), SignalStream()).double()
    vectors = model.codebooks[level].vectors.double()
    farther = (latents - vectors[codes]).square().sum(-1) - (latents - vectors[expected]).square().sum(-1)
    assert (farther < margin * latents.square().sum(-1)).all(), farther.max()


@torch.no_grad()
@pytest.mark.parametrize(
    "layout",
    [
        dict(),
        dict(num_downsamples=[5, 3], strides=[2, 2], level_multipliers=None),
        dict(num_downsamples=[1, 2], strides=[4, 6], level_multipliers=[1, 2], residual_expansion=1.5),
        dict(num_downsamples=[1], strides=[8], level_multipliers=[1], dilation_growth_rate=2, dilation_cycle=2),
        dict(hidden_size=1, level_multipliers=None),
    ],
)
@pytest.mark.parametrize("samples", [1536, 1999])
def test_any_layout_equals_its_plain_formulation(layout, samples):
    config = dict(hidden_size=4, num_residual_layers=3, codebook_size=16, codebook_dim=6) | layout
    model = JukeboxVQVAEModel(JukeboxVQVAEConfig(**config)).eval()
    audio = _audio(2, samples)
    for level, hop in enumerate(model.config.hop_lengths):
        latents = model.encoders[level](audio.transpose(1, 2), SignalStream())
        expected = plain_vqvae.encode_latents(model, level, audio)
        assert latents.shape == (2, samples // hop, 6)
        torch.testing.assert_close(latents, expected, rtol=1e-5, atol=1e-5)
        decoded = model.decoders[level](latents, SignalStream()).transpose(1, 2)
        assert decoded.shape == (2, 1, samples // hop * hop)
        torch.testing.assert_close(decoded, plain_vqvae.decode_vectors(model, level, latents), rtol=1e-5, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_blocks_of_any_sizes_give_the_one_pass_result(data):
    model = _model_once()
    samples = data.draw(st.integers(128, 3000), "samples")
    audio = _audio(2, samples, seed=samples)
    sizes = data.draw(st.lists(st.integers(1, 900), min_size=1, max_size=5), "block sizes")
    whole = model.encode(audio).audio_codes
    for level, parts in enumerate(zip(*model.encode_stream(_cut(audio, 2, sizes)))):
        _assert_same_codes(model, level, audio, torch.cat(parts, 1), whole[level])
    for level, codes in enumerate(whole):
        audio_values = model.decode(codes, level=level).audio_values
        parts = list(model.decode_stream(_cut(codes, 1, sizes), level=level))
        torch.testing.assert_close(torch.cat(parts, 2), audio_values, rtol=1e-6, atol=1e-6)


def test_pieces_of_any_size_give_the_one_pass_result(small_model, monkeypatch):
    audio = _audio(2, 2001)
    whole = small_model.encode(audio).audio_codes
    decoded = [small_model.decode(codes, level=level).audio_values for level, codes in enumerate(whole)]
    for size in (40, 1000, 4096):
        monkeypatch.setitem(modeling_jukebox_vqvae.PIECE_SIZE, "cpu", size)
        for level, codes in enumerate(small_model.encode(audio).audio_codes):
            _assert_same_codes(small_model, level, audio, codes, whole[level])
            pieces = small_model.decode(whole[level], level=level).audio_values
            torch.testing.assert_close(pieces, decoded[level], rtol=1e-6, atol=1e-6)


def test_a_streams_memory_does_not_grow(small_model):
    held = []

    def blocks():
        for index in range(30):
            held.append(sum(t.untyped_storage().nbytes() for t in stream._waiting.values()))
            yield _audio(1, 1000, seed=index)

    stream = SignalStream(ends=False)
    for block in blocks():
        small_model.encoders[0](block.transpose(1, 2), stream)
    assert 0 < held[-1] <= held[5]


@settings(max_examples=25, deadline=None)
@given(lengths=st.lists(st.integers(128, 1500), min_size=1, max_size=5))
def test_a_clip_in_a_padded_batch_gives_what_it_gives_alone(lengths):
    model = _model_once()
    clips = [_audio(1, length, seed=length) for length in lengths]
    batch = torch.full((len(clips), 1, max(lengths) + 7), 0.5)  # what stands in the padding must not matter
    mask = torch.zeros(len(clips), batch.shape[2], dtype=torch.long)
    for row, clip in enumerate(clips):
        batch[row, :, : clip.shape[2]], mask[row, : clip.shape[2]] = clip, 1
    together = model.encode(batch, mask)
    for level, hop in enumerate(model.config.hop_lengths):
        codes, codes_mask = together.audio_codes[level], together.audio_codes_mask[level]
        decoded = model.decode(codes, level, codes_mask).audio_values
        for row, clip in enumerate(clips):
            frames = clip.shape[2] // hop
            alone = model.encode(clip, levels=[level]).audio_codes[0]
            _assert_same_codes(model, level, clip, codes[row : row + 1, :frames], alone)
            assert codes_mask[row].sum() == frames and not codes[row, frames:].any()
            expected = model.decode(codes[row : row + 1, :frames], level).audio_values
            torch.testing.assert_close(decoded[row : row + 1, :, : frames * hop], expected, rtol=1e-6, atol=1e-6)
            assert not decoded[row, :, frames * hop :].any()


def test_zeros_after_a_clip_are_not_its_end(small_model):
    """The reason for the mask: the same padded batch without it gives other codes and audio near a clip's end."""
    clip = _audio(1, 1024)
    padded = torch.nn.functional.pad(clip, (0, 1024))
    alone = small_model.encode(clip).audio_codes
    without_mask = small_model.encode(padded).audio_codes
    assert any(not torch.equal(a[:, : b.shape[1]], b) for a, b in zip(without_mask, alone))


def test_only_asked_levels_are_computed_in_the_asked_order(small_model):
    called = []
    for level, encoder in enumerate(small_model.encoders):
        encoder.register_forward_hook(lambda *_, level=level: called.append(level))
    audio = _audio(1, 2048)
    top, bottom = small_model.encode(audio, levels=[2, 0]).audio_codes
    assert set(called) == {0, 2}
    every = small_model.encode(audio).audio_codes
    assert torch.equal(top, every[2]) and torch.equal(bottom, every[0])


def test_auto_classes_save_and_load(small_model, tmp_path):
    small_model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").exists()
    assert isinstance(AutoConfig.from_pretrained(tmp_path), JukeboxVQVAEConfig)
    for auto_class in (AutoModel, AutoModelForAudioTokenization):
        loaded = auto_class.from_pretrained(tmp_path)
        assert isinstance(loaded, JukeboxVQVAEModel)
        state = loaded.state_dict()
        assert all(torch.equal(value, state[name]) for name, value in small_model.state_dict().items())
    assert small_model.encode(_audio(1, 256), levels=[0], return_dict=False)[0][0].shape == (1, 32)


@torch.no_grad()
def _assert_searched_in_fp32(model, level, audio):
    """The codes are those of an fp64 search over the same latents, but for ties that fp32 leaves."""
    latents = model.encoders[level](audio.transpose(1, 2).to(model.dtype), SignalStream())
    codes, distances = model.codebooks[level](latents)
    assert distances.dtype == torch.float32
    latents, vectors = latents.double(), model.codebooks[level].vectors.double()
    exact = (latents.unsqueeze(-2) - vectors).square().sum(-1)
    farther = exact.gather(-1, codes.unsqueeze(-1))[..., 0] - exact.min(-1).values
    assert (farther < 1e-6 * latents.square().sum(-1)).all(), farther.max()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_the_codebook_search_in_fp32(small_model, tmp_path, dtype):
    small_model.save_pretrained(tmp_path)
    model = AutoModel.from_pretrained(tmp_path, dtype=dtype)
    assert model.dtype == dtype and model.encoders[0].blocks[0].out_conv.weight.dtype == dtype
    assert {buffer.dtype for buffer in model.codebooks.buffers()} == {torch.float32}
    audio = _audio(2, 4096)
    for level, codes in enumerate(model.encode(audio).audio_codes):
        _assert_searched_in_fp32(model, level, audio)
        expected = small_model.encode(audio, levels=[level]).audio_codes[0]
        _assert_same_codes(small_model, level, audio, codes, expected, margin=torch.finfo(dtype).eps)
    codes = small_model.encode(audio, levels=[1]).audio_codes[0]
    decoded = model.decode(codes, 1).audio_values
    assert decoded.dtype == dtype
    expected = small_model.decode(codes, 1).audio_values
    torch.testing.assert_close(decoded.float(), expected, rtol=0.05, atol=0.02)


def test_autocast_and_half_leave_the_search_in_fp32(small_model):
    audio = _audio(2, 4096)
    with torch.autocast("cpu", torch.bfloat16):
        _assert_searched_in_fp32(small_model, 1, audio)
    halved = copy.deepcopy(small_model).half()
    assert halved.encode(audio).audio_codes[2].shape == (2, 32)


def test_codes_of_any_integer_type_decode(small_model):
    codes = small_model.encode(_audio(1, 1024), levels=[1]).audio_codes[0]
    expected = small_model.decode(codes, 1).audio_values
    for dtype in (torch.int16, torch.int32, torch.uint8):
        assert torch.equal(small_model.decode(codes.to(dtype), 1).audio_values, expected)


def test_codes_stream_straight_into_the_decoder(small_model):
    """Also while the encoder has none to give yet."""
    audio = _audio(1, 3000)
    blocks = (codes for (codes,) in small_model.encode_stream(audio.split(64, 2), [2]))
    streamed = torch.cat(list(small_model.decode_stream(blocks, 2)), 2)
    codes = small_model.encode(audio, levels=[2]).audio_codes[0]
    torch.testing.assert_close(streamed, small_model.decode(codes, 2).audio_values, rtol=1e-6, atol=1e-6)


def test_device_map_and_offload(small_model, tmp_path):
    audio = _audio(2, 1024)
    expected = small_model.encode(audio).audio_codes
    decoded = small_model.decode(expected[1], 1).audio_values
    small_model.save_pretrained(tmp_path)
    parts = {f"{part}.{level}": "cpu" for part in ("encoders", "decoders", "codebooks") for level in range(3)}
    loaded = [
        AutoModel.from_pretrained(tmp_path, device_map="auto"),
        AutoModel.from_pretrained(tmp_path, device_map=parts),
        AutoModel.from_pretrained(
            tmp_path, device_map=parts | {"encoders.1": "disk", "decoders.1": "disk"}, offload_folder=tmp_path / "off"
        ),
        cpu_offload(copy.deepcopy(small_model), execution_device=torch.device("cpu")),
        cpu_offload(copy.deepcopy(small_model), execution_device=torch.device("cpu"), offload_buffers=True),
        dispatch_model(copy.deepcopy(small_model), parts, main_device="cpu", force_hooks=True),
    ]
    for model in loaded:
        assert all(torch.equal(a, b) for a, b in zip(model.encode(audio).audio_codes, expected))
        torch.testing.assert_close(model.decode(expected[1], 1).audio_values, decoded)


def test_one_window_compiles_without_graph_breaks(small_model):
    audio = _audio(1, 2048)
    for level in range(3):
        torch.compiler.reset()
        encode = torch.compile(lambda values, level=level: small_model.encode(values, levels=[level]), fullgraph=True)
        decode = torch.compile(lambda codes, level=level: small_model.decode(codes, level=level), fullgraph=True)
        codes = small_model.encode(audio, levels=[level]).audio_codes[0]
        _assert_same_codes(small_model, level, audio, encode(audio).audio_codes[0], codes, margin=1e-5)
        expected = small_model.decode(codes, level=level).audio_values
        torch.testing.assert_close(decode(codes).audio_values, expected, rtol=1e-4, atol=1e-4)


def test_encode_and_decode_build_no_graph(small_model):
    codes = small_model.encode(_audio(1, 1024).requires_grad_()).audio_codes[2]
    assert not small_model.decode(codes, 2).audio_values.requires_grad
    assert not next(small_model.decode_stream([codes], 2)).requires_grad


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.encode(torch.zeros(1, 4096)), r"shape \(1, 4096\).*\(batch, 1, samples\)"),
        (lambda m: m.encode(torch.zeros(1, 2, 4096)), r"shape \(1, 2, 4096\)"),
        (lambda m: m.encode(torch.zeros(0, 1, 4096)), r"shape \(0, 1, 4096\)"),
        (lambda m: m.encode(torch.full((1, 1, 4096), float("nan"))), "NaN or infinity"),
        (lambda m: m.encode(torch.full((1, 1, 4096), float("inf"))), "NaN or infinity"),
        (lambda m: m.encode(np.zeros((1, 1, 4096))), "input_values is ndarray"),
        (lambda m: m.encode(torch.zeros(1, 1, 4096, dtype=torch.int16)), "input_values is torch.int16"),
        (lambda m: m.encode(torch.zeros(1, 1, 4096), levels=2), "levels=2: this model has"),
        (lambda m: m.encode(torch.zeros(1, 1, 4096), levels=[1.0]), "1.0"),
        (lambda m: list(m.decode_stream([torch.zeros(1, 0, dtype=torch.long)], 0)), "holds no block"),
        (lambda m: m.encode(torch.zeros(1, 1, 4096), levels=[3]), r"levels=\[3\].* 0, 1, 2"),
        (lambda m: m.encode(torch.zeros(1, 1, 4096), levels=[]), r"levels=\[\]"),
        (lambda m: m.encode(torch.zeros(1, 1, 127)), "127 samples, fewer than the 128"),
        (lambda m: m.encode(torch.zeros(2, 1, 256), torch.arange(256).repeat(2, 1) < 100), "Clip 0 has 100 samples"),
        (lambda m: m.encode(torch.zeros(1, 1, 256), torch.ones(1, 255)), r"mask has the shape \(1, 255\)"),
        (lambda m: m.encode(torch.zeros(1, 1, 256), torch.arange(256).unsqueeze(0) > 100), "starts with padding"),
        (lambda m: m.encode(torch.zeros(1, 1, 256), torch.zeros(1, 256)), "all of clip 0"),
        (lambda m: m.decode(torch.full((1, 4), 32), 0), "holds 32: codes run from 0 to 31"),
        (lambda m: m.decode(torch.full((1, 4), -1), 0), "holds -1"),
        (lambda m: m.decode(torch.zeros(4, dtype=torch.long), 0), r"audio_codes is \(4,\)"),
        (lambda m: m.decode((torch.zeros(1, 4),), 0), "audio_codes is tuple"),
        (lambda m: m.decode(torch.zeros(1, 0, dtype=torch.long), 0), r"audio_codes is \(1, 0\)"),
        (lambda m: m.decode(torch.zeros(1, 4, dtype=torch.long), -1), r"levels=\[-1\]"),
        (lambda m: m.decode(torch.zeros(1, 4), 0), "audio_codes is torch.float32"),
        (lambda m: list(m.encode_stream([])), "0 samples, fewer than the 128"),
        (lambda m: list(m.encode_stream([torch.zeros(1, 1, 100)])), "100 samples, fewer than the 128"),
        (lambda m: list(m.decode_stream([], 0)), "holds no block"),
    ],
)
def test_bad_input_is_refused_with_its_value_and_the_fix(call, message):
    with pytest.raises(ValueError, match=message):
        call(_model_once())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(strides=[2, 3, 2]), "strides=.2, 3, 2.*even"),
        (dict(strides=[2, 2]), "strides=.2, 2.: give 3 numbers"),
        (dict(num_downsamples=[], strides=[]), "num_downsamples="),
        (dict(level_multipliers=[1]), "level_multipliers=.1.: give 3 numbers"),
        (dict(reconstruction_loss="l3"), "l3.*l1, l2, linf, lmix"),
        (dict(multispectral_n_fft=[512]), "equally long"),
        (dict(hidden_size="32"), "hidden_size"),
        (dict(num_residual_layers=0), "num_residual_layers=0: give a positive number"),
    ],
)
def test_bad_configurations_are_refused(settings, message):
    # huggingface_hub quotes what a validator raises in an error of its own.
    with pytest.raises(StrictDataclassError, match=f"(?s){message}"):
        JukeboxVQVAEConfig(**settings)


_MODEL = []


def _model_once() -> JukeboxVQVAEModel:
    """One model for all examples of a property: hypothesis does not reset fixtures between them."""
    if not _MODEL:
        torch.manual_seed(0)
        config = JukeboxVQVAEConfig(hidden_size=4, num_residual_layers=2, codebook_size=32, codebook_dim=8)
        model = JukeboxVQVAEModel(config).eval()
        for codebook in model.codebooks:
            codebook.vectors.copy_(torch.randn(32, 8) * 0.3)
        _MODEL.append(model)
    return _MODEL[0]
