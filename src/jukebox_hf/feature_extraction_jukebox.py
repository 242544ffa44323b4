"""Turns raw audio into the mono batches that Jukebox's VQ-VAE reads."""

from collections.abc import Mapping, Sequence
from numbers import Number
from typing import TYPE_CHECKING

import numpy as np
import torch
from transformers import BatchFeature, SequenceFeatureExtractor
from transformers.utils import PaddingStrategy, TensorType, logging

if TYPE_CHECKING:
    from torchcodec.decoders import AudioDecoder

    Clip = np.ndarray | torch.Tensor | Sequence | Mapping | AudioDecoder

logger = logging.get_logger(__name__)


class JukeboxFeatureExtractor(SequenceFeatureExtractor):
    r"""Turns mono or stereo audio into padded mono batches.

    Args:
        feature_size (`int`): 1, since Jukebox is mono.
        sampling_rate (`int`): the rate of the audio that the model was trained on, in Hz; any other is refused.
        padding_value (`float`): fills what lies behind a clip's end.
        hop_length (`int`): lengths are padded to a multiple of it: the samples a code of the top level stands for.
        normalize (`bool`): divide each clip by its largest absolute sample; silence stays silence.
    """

    model_input_names = ["input_values", "padding_mask"]

    def __init__(
        self,
        feature_size: int = 1,
        sampling_rate: int = 44100,
        padding_value: float = 0.0,
        hop_length: int = 128,
        normalize: bool = False,
        **kwargs,
    ):
        if feature_size != 1:
            raise ValueError(f"feature_size={feature_size}: Jukebox is mono and stereo is downmixed, so use 1.")
        super().__init__(feature_size=feature_size, sampling_rate=sampling_rate, padding_value=padding_value, **kwargs)
        self.hop_length = hop_length
        self.normalize = normalize

    def __call__(
        self,
        raw_audio: "Clip | Sequence[Clip]",
        padding: bool | str | PaddingStrategy | None = None,
        truncation: bool = False,
        max_length: int | None = None,
        return_tensors: str | TensorType | None = None,
        sampling_rate: int | None = None,
    ) -> BatchFeature:
        """Prepares one clip, or a batch of clips, for the model.

        Give the model the mask, too: with it a clip of `n` samples gets `n // hop` codes, exactly the original's,
        however much padding follows; without it the padding is encoded as if it were audio.

        Args:
            raw_audio: a clip or a list of clips. A clip is a list of floats, an array or tensor `(samples,)` or
                `(channels, samples)` with one or two channels, or what a `datasets.Audio` column holds: a torchcodec
                `AudioDecoder` or a dict of `array` and `sampling_rate`. An array or tensor is always one clip, a list
                of lists always a batch. Samples are floats, about -1 to 1; integers are refused, as nothing says what
                their full scale is. Several channels become their mean.
            padding (`bool`, `str` or [`~utils.PaddingStrategy`], *optional*): `True` or `"longest"` (default) pads to
                the longest clip and `"max_length"` to `max_length`, rounded up to a multiple of `hop_length`; with
                `False` clips keep their lengths and there is no mask.
            truncation (`bool`): cut clips to `max_length`, rounded up to a multiple of `hop_length`.
            max_length (`int`, *optional*): in samples.
            return_tensors (`str`, *optional*): `"pt"` or `"np"`; without it `input_values` is a list of arrays.
            sampling_rate (`int`, *optional*): the rate of the audio in Hz. Without it a wrong rate goes unnoticed,
                except in clips from a `datasets.Audio` column, which know their own.

        Returns:
            [`BatchFeature`]: `input_values` `(batch, 1, samples)` in float32 and `padding_mask` `(batch, samples)`,
            1 for a clip's own samples.

        Raises:
            ValueError: a wrong sampling rate; a clip, named by its index, that is empty, not finite, not made of
                floats or of a wrong shape; `padding` together with `truncation`.
        """
        if padding and truncation:
            raise ValueError("Both padding and truncation were set: set one of them.")
        if sampling_rate is not None:
            self._check_sampling_rate(sampling_rate, "The audio")
        clips, own_rates = [], []
        for index, clip in enumerate(list_clips(raw_audio)):
            samples, own_rate = read_clip(clip, f"Clip {index}")
            if own_rate is not None:
                self._check_sampling_rate(own_rate, f"Clip {index}")
            clips.append(_normalize_peak(samples) if self.normalize else samples)
            own_rates.append(own_rate)
        if not clips:
            raise ValueError("raw_audio holds no clips: give at least one.")
        if sampling_rate is None and None in own_rates:
            logger.warning(
                f"{type(self).__name__} was not told the sampling rate of the audio and takes it for "
                f"{self.sampling_rate} Hz. Pass sampling_rate, or a wrong rate goes unnoticed."
            )

        padding = True if padding is None else padding
        batch = self.pad(
            BatchFeature({"input_values": clips}),
            padding=padding,
            max_length=max_length,
            truncation=truncation,
            pad_to_multiple_of=self.hop_length,
            return_attention_mask=bool(padding),
        )
        if padding:
            batch["padding_mask"] = batch.pop("attention_mask")
        batch["input_values"] = [samples[np.newaxis] for samples in batch["input_values"]]
        return batch.convert_to_tensors(return_tensors)

    def _check_sampling_rate(self, sampling_rate: int, name: str):
        if sampling_rate != self.sampling_rate:
            raise ValueError(
                f"{name} is sampled at {sampling_rate} Hz, and the model wants {self.sampling_rate} Hz: resample with "
                f"soxr.resample(audio, {sampling_rate}, {self.sampling_rate}), or a datasets column with "
                f'dataset.cast_column("audio", Audio(sampling_rate={self.sampling_rate})).'
            )


def read_clip(clip: "Clip", name: str) -> tuple[np.ndarray, int | None]:
    """Reads a decoded clip as mono float32 `(samples,)`, and its sampling rate if it knows it.

    Raises:
        ValueError: what [`JukeboxFeatureExtractor`] refuses, by `name`.
    """
    sampling_rate = None
    if hasattr(clip, "get_all_samples"):
        decoded = clip.get_all_samples()
        # A decoder says which axis is which, so any number of channels is clear.
        clip, sampling_rate = decoded.data.mean(dim=0), decoded.sample_rate
    elif isinstance(clip, Mapping):
        if clip.get("array") is None:
            raise ValueError(
                f"{name} has no array, only {', '.join(map(str, clip))}: decode the column with "
                'dataset.cast_column("audio", Audio()).'
            )
        rate = clip.get("sampling_rate")
        clip, sampling_rate = clip["array"], None if rate is None else int(rate)
    if isinstance(clip, torch.Tensor):
        clip = clip.detach().cpu()
        clip = clip.float() if clip.is_floating_point() else clip
    try:
        samples = np.asarray(clip)
    except ValueError as error:
        raise ValueError(f"{name} is no array: {error}") from error
    return _check_samples(samples, name), sampling_rate


def list_clips(raw_audio: "Clip | Sequence[Clip]") -> "Sequence[Clip]":
    """Gives a batch as it is, and one clip in a list."""
    is_batch = (
        isinstance(raw_audio, Sequence)
        and not isinstance(raw_audio, str | bytes)
        and not (len(raw_audio) and isinstance(raw_audio[0], Number))
    )
    return raw_audio if is_batch else [raw_audio]


def _check_samples(samples: np.ndarray, name: str) -> np.ndarray:
    """Gives samples as mono float32 `(samples,)`."""
    if samples.size and not np.issubdtype(samples.dtype, np.floating):
        raise ValueError(
            f"{name} holds {samples.dtype}, not floats: give decoded audio from -1 to 1 (16-bit PCM is audio / 32768)."
        )
    samples = samples.astype(np.float32, copy=False)
    if samples.ndim == 2 and samples.shape[0] in (1, 2):
        samples = samples.mean(axis=0)
    if samples.ndim != 1:
        raise ValueError(
            f"{name} has the shape {samples.shape}: give (samples,) or (channels, samples) with one or two channels. "
            "Transpose (samples, channels), and give a batch as a list of clips."
        )
    if not samples.size:
        raise ValueError(f"{name} is empty: give at least one sample.")
    finite = np.isfinite(samples)
    if not finite.all():
        raise ValueError(f"{name} holds NaN or infinity at sample {finite.argmin()}: repair or drop it.")
    return samples


def _normalize_peak(samples: np.ndarray) -> np.ndarray:
    peak = np.abs(samples).max()
    return samples / peak if peak else samples


__all__ = ["JukeboxFeatureExtractor"]
