"""Jukebox's VQ-VAE: for each level an encoder, a codebook and a decoder (arXiv 2005.00341, section 3)."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_utils import PreTrainedAudioTokenizerBase
from transformers.utils import ModelOutput, can_return_tuple

from .codebook_jukebox import JukeboxCodebook
from .configuration_jukebox import JukeboxVQVAEConfig
from .convolution_jukebox import (
    JukeboxConv1d,
    JukeboxConvTranspose1d,
    JukeboxDownsample,
    JukeboxResidualBlock,
    JukeboxUpsample,
    SignalStream,
    run_growing,
    run_shrinking,
)
from .losses_jukebox import SPECTRAL_STFT, reconstruction_loss, relative_distance, spectral_loss, spectrogram
from .v4_weights import V4LoadingMixin

# Values of the largest activation, and samples of audio that enter the network at a time for each of them. On a CPU an
# activation of 4 MiB stays in the cache; an accelerator wants more work at once.
PIECE_SIZE = {"cpu": 2**20}
DEFAULT_PIECE_SIZE = 2**24
SAMPLES_PER_VALUE = 0.25


@dataclass
class JukeboxVQVAEEncoderOutput(ModelOutput):
    """Codes of the asked levels.

    Args:
        audio_codes (`tuple[torch.LongTensor]`): for each asked level `(batch, frames)`.
        audio_codes_mask (`tuple[torch.BoolTensor]`, *optional*): for each asked level `(batch, frames)`, false where a
            shorter clip has ended (its codes are 0 there); only when a `padding_mask` was given.
    """

    audio_codes: tuple[torch.LongTensor, ...] | None = None
    audio_codes_mask: tuple[torch.BoolTensor, ...] | None = None


@dataclass
class JukeboxVQVAEDecoderOutput(ModelOutput):
    """Decoded audio.

    Args:
        audio_values (`torch.FloatTensor`): `(batch, 1, samples)`, zero where a shorter clip has ended.
    """

    audio_values: torch.FloatTensor | None = None


@dataclass
class JukeboxVQVAEOutput(ModelOutput):
    """Reconstruction of the input through every level.

    Args:
        loss (`torch.FloatTensor`, *optional*): the weighted sum of all losses over all levels.
        audio_codes (`tuple[torch.LongTensor]`): for each level `(batch, frames)`.
        audio_values (`tuple[torch.FloatTensor]`): for each level `(batch, 1, samples)`.
        metrics (`dict[str, torch.FloatTensor]`, *optional*): the parts of the loss, those of a level with the suffix
            `_level_<n>`; `l1_loss`, `l2_loss`, `linf_loss` and `spectral_convergence` of level 0; in training mode
            the codebooks' statistics, as means over levels.
    """

    loss: torch.FloatTensor | None = None
    audio_codes: tuple[torch.LongTensor, ...] | None = None
    audio_values: tuple[torch.FloatTensor, ...] | None = None
    metrics: dict[str, torch.FloatTensor] | None = None


def _residual_blocks(config: JukeboxVQVAEConfig, level: int, reverse: bool) -> nn.ModuleList:
    multiplier = config.level_multipliers[level] if config.level_multipliers else 1
    width, depth = config.hidden_size * multiplier, config.num_residual_layers * multiplier
    dilations = [config.dilation_growth_rate ** (i % (config.dilation_cycle or depth)) for i in range(depth)]
    inner = int(config.residual_expansion * width)
    order = reversed(dilations) if reverse else dilations
    return nn.ModuleList(JukeboxResidualBlock(width, inner, dilation) for dilation in order)


class JukeboxEncoderBlock(nn.Module):
    """The part of an encoder that goes from one level's rate to the next one's."""

    def __init__(self, config: JukeboxVQVAEConfig, level: int, step: int):
        super().__init__()
        stacks = [_residual_blocks(config, level, reverse=False) for _ in range(config.num_downsamples[step])]
        width = stacks[0][0].conv1.in_channels
        first = 1 if step == 0 else config.codebook_dim
        self.downsamples = nn.ModuleList(
            JukeboxDownsample(width if i else first, config.strides[step], stack) for i, stack in enumerate(stacks)
        )
        self.out_conv = JukeboxConv1d(width, config.codebook_dim, 3, padding=1)


class JukeboxEncoder(nn.Module):
    """Audio `(batch, samples, 1)` to the latents `(batch, frames, codebook_dim)` of one level."""

    def __init__(self, config: JukeboxVQVAEConfig, level: int):
        super().__init__()
        self.blocks = nn.ModuleList(JukeboxEncoderBlock(config, level, step) for step in range(level + 1))

    def forward(self, hidden_states: torch.Tensor, stream: SignalStream) -> torch.Tensor:
        layers = (layer for block in self.blocks for layer in (*block.downsamples, block.out_conv))
        return run_shrinking(layers, hidden_states, stream)


class JukeboxDecoderBlock(nn.Module):
    """The part of a decoder that goes from one level's rate to that of the level below it."""

    def __init__(self, config: JukeboxVQVAEConfig, level: int, step: int):
        super().__init__()
        stacks = [_residual_blocks(config, level, reverse=True) for _ in range(config.num_downsamples[step])]
        width = stacks[0][0].conv1.in_channels
        self.in_conv = JukeboxConv1d(config.codebook_dim, width, 3, padding=1)
        outputs = [width] * (len(stacks) - 1) + [config.codebook_dim]
        self.upsamples = nn.ModuleList(
            JukeboxUpsample(out_channels, config.strides[step], stack) for out_channels, stack in zip(outputs, stacks)
        )


class JukeboxDecoder(nn.Module):
    """Code vectors `(batch, frames, codebook_dim)` of one level, and of no other, to audio `(batch, samples, 1)`."""

    def __init__(self, config: JukeboxVQVAEConfig, level: int):
        super().__init__()
        self.blocks = nn.ModuleList(JukeboxDecoderBlock(config, level, step) for step in range(level + 1))
        self.out_conv = JukeboxConv1d(config.codebook_dim, 1, 3, padding=1)

    def forward(self, hidden_states: torch.Tensor, stream: SignalStream) -> torch.Tensor:
        layers = [layer for block in reversed(self.blocks) for layer in (block.in_conv, *block.upsamples)]
        return run_growing([*layers, self.out_conv], hidden_states, stream)


class JukeboxVQVAEModel(V4LoadingMixin, PreTrainedAudioTokenizerBase):
    """Jukebox's VQ-VAE: audio to discrete codes at several rates, and each level's codes back to audio.

    Levels are counted from 0, the finest. Audio is mono, `(batch, 1, samples)`; codes are `(batch, frames)`.
    """

    config: JukeboxVQVAEConfig
    base_model_prefix = "vqvae"
    main_input_name = "input_values"
    input_modalities = "audio"
    supports_gradient_checkpointing = True
    _no_split_modules = ["JukeboxEncoder", "JukeboxDecoder", "JukeboxCodebook"]
    _keep_in_fp32_modules_strict = ["codebooks"]
    # The checkpoint may be that of a whole JukeboxModel.
    _keys_to_ignore_on_load_unexpected = [r"^(prior_|priors\.)\d\."]

    def __init__(self, config: JukeboxVQVAEConfig):
        super().__init__(config)
        self.encoders = nn.ModuleList(JukeboxEncoder(config, level) for level in range(config.num_levels))
        self.decoders = nn.ModuleList(JukeboxDecoder(config, level) for level in range(config.num_levels))
        self.codebooks = nn.ModuleList(JukeboxCodebook(config) for _ in range(config.num_levels))
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        if isinstance(module, JukeboxConv1d | JukeboxConvTranspose1d):
            # PyTorch's default, as in the original; it takes the second axis for the fan-in of both kinds.
            bound = 1 / math.sqrt(module.weight.shape[1] * module.weight.shape[2])
            init.uniform_(module.weight, -bound, bound)
            init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, JukeboxCodebook):
            for buffer in module.buffers():
                init.zeros_(buffer)

    @torch.no_grad()
    @can_return_tuple
    def encode(
        self,
        input_values: torch.Tensor,
        padding_mask: torch.Tensor | None = None,
        levels: list[int] | None = None,
    ) -> JukeboxVQVAEEncoderOutput:
        """Encodes audio to the original's codes; no activation is longer than a block, however long the audio.

        On an NVIDIA GPU PyTorch's convolutions use TF32 unless `torch.backends.cudnn.allow_tf32 = False`; the
        original's codes want that line.

        Args:
            input_values (`torch.FloatTensor`): audio `(batch, 1, samples)` at `config.sampling_rate`, about -1 to 1.
            padding_mask (`torch.Tensor`, *optional*): `(batch, samples)`, true or 1 for a clip's own samples, which
                come first. Each clip gets exactly the codes it gets alone.
            levels (`list[int]`, *optional*): the levels to compute, in the order of the result; default all.

        Raises:
            ValueError: a wrong shape, values that are not finite, a mask with gaps, an unknown level, or a clip
                shorter than one code.
        """
        levels = self.config.check_levels(levels)
        audio = self._check_audio(input_values)
        lengths = _clip_lengths(audio.shape[:2], padding_mask)
        hops = [self.config.hop_lengths[level] for level in levels]
        _check_lengths(lengths, hops)

        def encode_clips(clips: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return tuple(torch.cat(codes, dim=1) for codes in zip(*self._encode_blocks([clips], levels)))

        masks = None
        if padding_mask is not None:
            masks = tuple(_padding_mask([length // hop for length in lengths], audio.device) for hop in hops)
        return JukeboxVQVAEEncoderOutput(_run_by_length(encode_clips, audio, lengths), masks)

    @torch.no_grad()
    @can_return_tuple
    def decode(
        self,
        audio_codes: torch.Tensor,
        level: int = 0,
        audio_codes_mask: torch.Tensor | None = None,
    ) -> JukeboxVQVAEDecoderOutput:
        """Decodes the codes of one level to audio; no activation is longer than a block, however long the audio.

        For a gradient into the decoder use [`~JukeboxVQVAEModel.forward`].

        Args:
            audio_codes (`torch.LongTensor`): `(batch, frames)`.
            level (`int`): the level these codes belong to.
            audio_codes_mask (`torch.Tensor`, *optional*): `(batch, frames)`, as `encode` returns it. Each clip gets
                exactly the audio it gets alone.

        Raises:
            ValueError: a wrong shape, a mask with gaps, an unknown level, or codes out of range.
        """
        (level,) = self.config.check_levels([level])
        codes = self.check_codes(audio_codes)
        lengths = _clip_lengths(codes.shape, audio_codes_mask)

        def decode_clips(clips: torch.Tensor) -> tuple[torch.Tensor]:
            return (torch.cat(list(self._decode_blocks([clips], level)), dim=1),)

        (audio,) = _run_by_length(decode_clips, codes, lengths)
        return JukeboxVQVAEDecoderOutput(audio.transpose(1, 2))

    @torch.no_grad()
    def encode_stream(
        self, blocks: Iterable[torch.Tensor], levels: list[int] | None = None
    ) -> Iterator[tuple[torch.LongTensor, ...]]:
        """Encodes a signal of any length that comes in blocks; the codes joined are those of the whole signal.

        Takes blocks of audio `(batch, 1, samples)` of any sizes and yields, as soon as they are certain, codes
        `(batch, frames)` of each asked level; a level may yield none for a while, as a code depends on later audio.

        Raises:
            ValueError: as `encode` does; a stream that turns out to be too short raises at its end.
        """
        levels = self.config.check_levels(levels)
        samples = 0

        def checked() -> Iterator[torch.Tensor]:
            nonlocal samples
            for block in blocks:
                samples += block.shape[-1]
                yield self._check_audio(block)
            _check_lengths([samples], [self.config.hop_lengths[level] for level in levels])

        yield from self._encode_blocks(checked(), levels)

    @torch.no_grad()
    def decode_stream(self, blocks: Iterable[torch.Tensor], level: int = 0) -> Iterator[torch.FloatTensor]:
        """Decodes codes of one level that come in blocks; the audio joined is that of the whole sequence.

        Takes blocks of codes `(batch, frames)` of any sizes and yields audio `(batch, 1, samples)`.

        Raises:
            ValueError: as `decode` does, and when there are no codes at all.
        """
        (level,) = self.config.check_levels([level])
        # encode_stream, whose blocks may come straight here, has none for a while.
        codes = (self.check_codes(block) for block in blocks if block.shape[-1])
        for audio in self._decode_blocks(codes, level):
            yield audio.transpose(1, 2)

    def decoding_stream(self, level: int = 0) -> Callable[[torch.Tensor, bool], torch.FloatTensor]:
        """Makes a decoder for codes of one level that come when they come; the audio joined is that of all codes.

        It takes the next codes `(batch, frames)` and whether they are the last, and gives the audio `(batch, 1,
        samples)` that is certain with them.

        Raises:
            ValueError: as `decode` does.
        """
        (level,) = self.config.check_levels([level])
        stream = SignalStream()

        @torch.no_grad()
        def decode(codes: torch.Tensor, is_last: bool) -> torch.FloatTensor:
            blocks = _cut([self.check_codes(codes)], self.config.hop_lengths[level])
            audio = [self._decode_block(block, level, stream, is_last and ends) for block, ends in blocks]
            return torch.cat(audio, dim=1).transpose(1, 2)

        return decode

    @can_return_tuple
    def forward(
        self,
        input_values: torch.Tensor,
        padding_mask: torch.Tensor | None = None,
        return_loss: bool = True,
    ) -> JukeboxVQVAEOutput:
        """Reconstructs audio through every level, with gradients, in one pass; in training mode updates the codebooks.

        Args:
            input_values (`torch.FloatTensor`): audio `(batch, 1, samples)`; for the loss every hop divides `samples`.
            padding_mask (`torch.Tensor`, *optional*): `(batch, samples)`; all true, since the losses compare whole
                crops.
            return_loss (`bool`): compute the loss and its parts.

        Raises:
            ValueError: a wrong shape, padded clips, or a length that the top level's hop does not divide.
        """
        audio = self._check_audio(input_values)
        if any(length != audio.shape[1] for length in _clip_lengths(audio.shape[:2], padding_mask)):
            raise ValueError(
                "forward() reconstructs crops of equal length and padding_mask marks shorter clips: crop them to one "
                "length, or use encode() and decode(), which take padded batches."
            )
        if return_loss and audio.shape[1] % self.config.hop_length:
            raise ValueError(
                f"Clips of {audio.shape[1]} samples have no loss at every level: use a multiple of "
                f"{self.config.hop_length}, the top level's hop, such as "
                f"{max(1, audio.shape[1] // self.config.hop_length) * self.config.hop_length}, or return_loss=False."
            )
        levels = []
        for encoder, codebook, decoder in zip(self.encoders, self.codebooks, self.decoders):
            codes, vectors, commitment, statistics = codebook.quantize(encoder(audio.to(self.dtype), SignalStream()))
            levels.append((codes, decoder(vectors, SignalStream()), commitment, statistics))
        audio_codes, reconstructions, commitments, statistics = zip(*levels)
        loss = metrics = None
        if return_loss:
            loss, metrics = self._loss(audio[..., 0], [level[..., 0] for level in reconstructions], commitments)
            metrics |= {name: torch.stack([level[name] for level in statistics]).mean() for name in statistics[0]}
        return JukeboxVQVAEOutput(loss, audio_codes, tuple(a.transpose(1, 2) for a in reconstructions), metrics)

    def _loss(
        self, target: torch.Tensor, reconstructions: list[torch.Tensor], commitments: tuple[torch.Tensor, ...]
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The total over levels, and its parts; all sums, never means, over levels."""
        config, target = self.config, target.float()
        reconstructions = [audio.float() for audio in reconstructions]
        target_spectra = cache(partial(spectrogram, target))
        kind = config.reconstruction_loss
        parts = {"reconstruction_loss": [reconstruction_loss(kind, audio, target, config) for audio in reconstructions]}
        for name, weight, stfts in (
            ("spectral_loss", config.spectral_weight, [SPECTRAL_STFT]),
            ("multispectral_loss", config.multispectral_weight, config.multispectral_stfts),
        ):
            # A weight of 0 leaves a number to report: its gradient, all zeros, would cost as much as any other.
            levels = reconstructions if weight else [audio.detach() for audio in reconstructions]
            parts[name] = [spectral_loss(audio, target_spectra, stfts, config) for audio in levels]
        parts["commitment_loss"] = list(commitments)
        sums = {name: torch.stack(levels).sum() for name, levels in parts.items()}
        loss = (
            sums["reconstruction_loss"]
            + config.spectral_weight * sums["spectral_loss"]
            + config.multispectral_weight * sums["multispectral_loss"]
            + config.commitment_weight * sums["commitment_loss"]
        )
        finest = reconstructions[0].detach()
        for kind in ("l1", "l2", "linf"):
            if kind == "linf" and config.linf_k > finest.shape[1]:
                continue
            sums[f"{kind}_loss"] = reconstruction_loss(kind, finest, target, config)
        spectra = (spectrogram(finest, *SPECTRAL_STFT), target_spectra(*SPECTRAL_STFT))
        sums["spectral_convergence"] = relative_distance(*spectra)
        for name, levels in parts.items():
            sums |= {f"{name}_level_{level}": value for level, value in enumerate(levels)}
        return loss, {name: value.detach() for name, value in sums.items()}

    def _encode_blocks(
        self, blocks: Iterable[torch.Tensor], levels: list[int]
    ) -> Iterator[tuple[torch.LongTensor, ...]]:
        streams = [SignalStream() for _ in levels]
        for block, ends in _cut(blocks, hop_length=1):
            codes = []
            for level, stream in zip(levels, streams):
                stream.ends, stream.piece_size = ends, _piece_size(block)
                codes.append(self.codebooks[level](self.encoders[level](block.to(self.dtype), stream))[0])
            yield tuple(codes)

    def _decode_blocks(self, blocks: Iterable[torch.Tensor], level: int) -> Iterator[torch.FloatTensor]:
        stream = SignalStream()
        for block, ends in _cut(blocks, self.config.hop_lengths[level]):
            yield self._decode_block(block, level, stream, ends)

    def _decode_block(self, block: torch.Tensor, level: int, stream: SignalStream, ends: bool) -> torch.FloatTensor:
        stream.ends, stream.piece_size = ends, _piece_size(block)
        return self.decoders[level](self.codebooks[level](block).to(self.dtype), stream)

    def _check_audio(self, input_values: torch.Tensor) -> torch.Tensor:
        """Gives audio as `(batch, samples, 1)`."""
        if not isinstance(input_values, torch.Tensor) or not input_values.is_floating_point():
            given = input_values.dtype if isinstance(input_values, torch.Tensor) else type(input_values).__name__
            raise ValueError(f"input_values is {given}: give a tensor of floats, as JukeboxFeatureExtractor does.")
        if input_values.ndim != 3 or input_values.shape[1] != 1 or not input_values.shape[0]:
            raise ValueError(
                f"input_values has the shape {tuple(input_values.shape)}: give (batch, 1, samples), as "
                "JukeboxFeatureExtractor does."
            )
        # Reading a value would break the graph of torch.compile.
        if not torch.compiler.is_compiling() and not input_values.isfinite().all():
            raise ValueError("input_values holds NaN or infinity: repair or drop the clip.")
        return input_values.transpose(1, 2)

    def check_codes(self, audio_codes: torch.Tensor) -> torch.Tensor:
        """Gives codes `(batch, frames)` as they are; a ValueError names what is wrong with others."""
        if not isinstance(audio_codes, torch.Tensor) or audio_codes.ndim != 2 or not audio_codes.numel():
            given = tuple(audio_codes.shape) if isinstance(audio_codes, torch.Tensor) else type(audio_codes).__name__
            raise ValueError(f"audio_codes is {given}: give the codes of one level as a tensor (batch, frames).")
        if audio_codes.is_floating_point() or audio_codes.dtype == torch.bool:
            raise ValueError(f"audio_codes is {audio_codes.dtype}: codes are integers.")
        if not torch.compiler.is_compiling():
            low, high = audio_codes.min().item(), audio_codes.max().item()
            last = self.config.codebook_size - 1
            if low < 0 or high > last:
                raise ValueError(f"audio_codes holds {low if low < 0 else high}: codes run from 0 to {last}.")
        return audio_codes


def _piece_size(block: torch.Tensor) -> int:
    return PIECE_SIZE.get(block.device.type, DEFAULT_PIECE_SIZE) // block.shape[0]


def _cut(blocks: Iterable[torch.Tensor], hop_length: int) -> Iterator[tuple[torch.Tensor, bool]]:
    """Cuts blocks `(batch, frames, ...)` to at most the size that is computed at once, and marks the last piece."""
    waiting = None
    for block in blocks:
        frames = max(1, int(SAMPLES_PER_VALUE * _piece_size(block)) // hop_length)
        for piece in block.split(frames, dim=1):
            if waiting is not None:
                yield waiting, False
            waiting = piece
    if waiting is None:
        raise ValueError("The stream holds no block: give at least one.")
    yield waiting, True


def _clip_lengths(shape: tuple[int, int], padding_mask: torch.Tensor | None) -> list[int]:
    if padding_mask is None:
        return [shape[1]] * shape[0]
    if padding_mask.shape != shape:
        raise ValueError(f"The mask has the shape {tuple(padding_mask.shape)}, not {tuple(shape)} as its input.")
    padding_mask = padding_mask.bool()
    if (padding_mask[:, 1:] & ~padding_mask[:, :-1]).any():
        raise ValueError("The mask has a gap or starts with padding: a clip's own frames come first, padding follows.")
    lengths = padding_mask.sum(1).tolist()
    if 0 in lengths:
        raise ValueError(f"The mask marks all of clip {lengths.index(0)} as padding: drop empty clips.")
    return lengths


def _check_lengths(lengths: list[int], hops: list[int]):
    for row, length in enumerate(lengths):
        if length < max(hops):
            raise ValueError(
                f"Clip {row} has {length} samples, fewer than the {max(hops)} that one code of the asked levels stands "
                "for: give a longer clip or ask for lower levels."
            )


def _padding_mask(lengths: list[int], device: torch.device) -> torch.BoolTensor:
    return torch.arange(max(lengths), device=device) < torch.tensor(lengths, device=device).unsqueeze(1)


def _run_by_length(
    run: Callable[[torch.Tensor], tuple[torch.Tensor, ...]], signals: torch.Tensor, lengths: list[int]
) -> tuple[torch.Tensor, ...]:
    """Runs clips of equal length together and pads the results with zeros.

    The end of a clip is not the zeros that follow it in a batch: each layer pads what it reads, and biases turn the
    zeros of one layer into other values of the next. So no clip ever sees another's padding.
    """
    if len(set(lengths)) == 1:
        return run(signals[:, : lengths[0]])
    results = [None] * len(lengths)
    for length in sorted(set(lengths)):
        rows = [row for row, other in enumerate(lengths) if other == length]
        for row, *result in zip(rows, *run(signals[rows, :length])):
            results[row] = result
    return tuple(nn.utils.rnn.pad_sequence(list(outputs), batch_first=True) for outputs in zip(*results))


__all__ = [
    "JukeboxVQVAEDecoderOutput",
    "JukeboxVQVAEEncoderOutput",
    "JukeboxVQVAEModel",
    "JukeboxVQVAEOutput",
]
