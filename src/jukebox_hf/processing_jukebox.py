"""Turns a song's lyrics, artist, genre and times, and audio, into what Jukebox's models take."""

import math
from collections.abc import Callable, Sequence
from numbers import Number
from typing import TYPE_CHECKING

import torch
from transformers import AutoConfig, BatchFeature, ProcessorMixin
from transformers.utils import CONFIG_NAME, PROCESSOR_NAME, TensorType, cached_file

from .configuration_jukebox import JukeboxConfig
from .feature_extraction_jukebox import JukeboxFeatureExtractor
from .lyric_windows import lyric_window_indices, take_lyric_windows
from .tokenization_jukebox import JukeboxTokenizer
from .v4_layout import HUB_ARGUMENTS

if TYPE_CHECKING:
    from .feature_extraction_jukebox import Clip


class JukeboxProcessor(ProcessorMixin):
    r"""Joins the tokenizer and the feature extractor.

    Args:
        feature_extractor ([`JukeboxFeatureExtractor`]): reads audio, and knows the sampling rate.
        tokenizer ([`JukeboxTokenizer`]): reads names and lyrics.
        sample_length (`int`, *optional*): for a prior alone, the samples that one context of it stands for; the lyric
            window lies around their middle. None for a [`JukeboxModel`], which moves the window over the whole lyrics
            itself.
    """

    def __init__(
        self,
        feature_extractor: JukeboxFeatureExtractor,
        tokenizer: JukeboxTokenizer,
        sample_length: int | None = 1048576,
    ):
        super().__init__(feature_extractor, tokenizer)
        self.sample_length = sample_length

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        """As for any processor; where a tokenizer alone was stored, as by pipelines, the model says the rest."""
        hub = {name: kwargs[name] for name in HUB_ARGUMENTS if kwargs.get(name) is not None}
        own, model = (
            cached_file(pretrained_model_name_or_path, name, _raise_exceptions_for_missing_entries=False, **hub)
            for name in (PROCESSOR_NAME, CONFIG_NAME)
        )
        config = AutoConfig.from_pretrained(pretrained_model_name_or_path, **hub) if model and not own else None
        if not isinstance(config, JukeboxConfig):
            return super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        vqvae = config.vqvae_config
        extractor = JukeboxFeatureExtractor(sampling_rate=vqvae.sampling_rate, hop_length=vqvae.hop_length)
        tokenizer = JukeboxTokenizer.from_pretrained(pretrained_model_name_or_path, **hub)
        return cls(extractor, tokenizer, sample_length=None)

    @classmethod
    def from_parts(cls, processors: Sequence["JukeboxProcessor"]) -> "JukeboxProcessor":
        """Makes the processor of a [`JukeboxModel`] from those of its priors, from level 0 up.

        Raises:
            ValueError: none, a processor of several levels, or different vocabularies of one version.
        """
        if not processors:
            raise ValueError("There are no processors: give those of the priors, from level 0 up.")
        tokenizers = [processor.tokenizer for processor in processors]
        vocabularies = [{}, {}, {}]
        for tokenizer in tokenizers:
            if len(tokenizer.versions) > 1:
                raise ValueError(f"versions={tokenizer.versions}: give processors of one prior each.")
            for joined, own in zip(vocabularies, (tokenizer.artists, tokenizer.genres, tokenizer.lyrics)):
                for version, names in own.items():
                    if joined.setdefault(version, names) != names:
                        raise ValueError(
                            f"Two of the priors have different vocabularies of version {version}: put together parts "
                            "that were trained together."
                        )
        tokenizer = JukeboxTokenizer(
            *vocabularies,
            versions=[tokenizer.versions[0] for tokenizer in tokenizers],
            max_genres=max(tokenizer.max_genres for tokenizer in tokenizers),
            num_lyric_tokens=tokenizers[-1].num_lyric_tokens,
        )
        return cls(processors[-1].feature_extractor, tokenizer, sample_length=None)

    def __call__(
        self,
        text: str | Sequence[str] | None = None,
        artist: str | Sequence[str] | None = None,
        genre: str | Sequence[str] | None = None,
        total_seconds: float | Sequence[float] | None = None,
        offset_seconds: float | Sequence[float] = 0.0,
        audio: "Clip | Sequence[Clip] | None" = None,
        sampling_rate: int | None = None,
        return_tensors: str | TensorType | None = "pt",
    ) -> BatchFeature:
        """Prepares labels, audio or both for a batch of songs.

        What is given as a list has one entry a song; what is not holds for every song.

        Args:
            text: the lyrics of the whole song; none, or an empty text, for an instrumental.
            artist: a name; without one, or with `None`, it is unknown.
            genre: a name, of up to `max_genres` words under v2; likewise.
            total_seconds: the length of the whole song, of which the model may see or generate a part.
            offset_seconds: where this part starts in the song.
            audio, sampling_rate: as in [`JukeboxFeatureExtractor`].
            return_tensors: `"pt"` or `"np"`; with `None` the result holds lists.

        Returns:
            [`BatchFeature`]: the integers `artist_ids` `(batch,)`, `genre_ids` `(batch, max_genres)` with -1 in empty
            slots, `offset` `(batch,)` and, with `total_seconds`, `total_length` `(batch,)` in samples; `lyric_ids`
            `(batch, num_lyric_tokens)`, the lyric window at this offset, for a prior with lyrics; the feature
            extractor's `input_values` and `padding_mask` with `audio`. For several priors `artist_ids` is
            `(batch, levels)` and `genre_ids` `(batch, levels, max_genres)`; for a [`JukeboxModel`] `lyric_ids` are the
            whole lyrics `(batch, longest)`, -1 after the end of shorter ones.

        Raises:
            ValueError: lists of different lengths, an offset outside the song, a length that is not positive or, for
                lyrics longer than the window, not given; lyrics for a prior without; what the tokenizer and the
                feature extractor refuse.
        """
        inputs = {}
        if audio is not None:
            inputs = dict(self.feature_extractor(audio, sampling_rate=sampling_rate))
        columns = {
            "text": text,
            "artist": artist,
            "genre": genre,
            "total_seconds": total_seconds,
            "offset_seconds": offset_seconds,
        }
        columns = _to_columns(columns, len(inputs["input_values"]) if inputs else None)

        versions = self.tokenizer.versions
        inputs["artist_ids"] = _look_up(self.tokenizer.artist_id, columns["artist"], versions)
        inputs["genre_ids"] = _look_up(self.tokenizer.genre_ids, columns["genre"], versions)
        total_length = None
        if total_seconds is not None:
            total_length = inputs["total_length"] = self._to_samples("total_seconds", columns["total_seconds"])
            for seconds, length in zip(columns["total_seconds"], total_length):
                if length < 1:
                    raise ValueError(f"total_seconds={seconds}: give the length of the whole song, a positive number.")
        offset = inputs["offset"] = self._to_samples("offset_seconds", columns["offset_seconds"])
        self._check_offset(total_length, offset)
        if not self.tokenizer.num_lyric_tokens:
            if lyrics := next(filter(None, columns["text"]), None):
                raise ValueError(f"text={lyrics[:40]!r}: this model reads no lyrics; leave them out, or give ''.")
        else:
            lyric_ids = self.tokenizer([lyrics or "" for lyrics in columns["text"]])["input_ids"]
            if self.sample_length is None:
                longest = max(1, *map(len, lyric_ids))
                inputs["lyric_ids"] = [[*ids, *[-1] * (longest - len(ids))] for ids in lyric_ids]
                return BatchFeature(inputs, tensor_type=return_tensors)
            if total_length is None:
                self._refuse_long_lyrics(lyric_ids)
                # The whole of the lyrics is in the window, wherever it is.
                total_length = [self.sample_length] * len(lyric_ids)
            inputs["lyric_ids"] = self._lyric_window(lyric_ids, total_length, offset, torch.float64)[0].tolist()
        return BatchFeature(inputs, tensor_type=return_tensors)

    def lyric_window(
        self,
        lyric_ids: Sequence[Sequence[int] | torch.Tensor],
        total_length: torch.Tensor | Sequence[int],
        offset: torch.Tensor | Sequence[int],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Moves the lyric window to a later part of each song.

        Args:
            lyric_ids: for each song the ids of its whole lyrics, `tokenizer(lyrics)["input_ids"]` without padding.
            total_length: `(batch,)`, of the whole songs, in samples.
            offset: `(batch,)`, where the part starts in its song, in samples.

        Returns:
            The ids `(batch, num_lyric_tokens)`, and which characters of the lyrics they are, -1 for padding. The
            window's middle is computed in fp32, as in the original, where `__call__` takes fp64.

        Raises:
            ValueError: a prior without lyrics, or an offset outside its song.
        """
        if not self.tokenizer.num_lyric_tokens or self.sample_length is None:
            raise ValueError("This is not the processor of a prior with lyrics: JukeboxModel moves the window itself.")
        total_length, offset = torch.as_tensor(total_length), torch.as_tensor(offset)
        self._check_offset(total_length.tolist(), offset.tolist())
        return self._lyric_window(lyric_ids, total_length, offset, torch.float32)

    @property
    def model_input_names(self) -> list[str]:
        """The names of everything that a call may return."""
        labels = ["artist_ids", "genre_ids", "total_length", "offset", "lyric_ids"]
        return labels + self.feature_extractor.model_input_names

    def _lyric_window(self, lyric_ids, total_length, offset, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        indices = lyric_window_indices(
            torch.tensor([len(ids) for ids in lyric_ids]),
            torch.as_tensor(total_length),
            torch.as_tensor(offset),
            self.sample_length,
            self.tokenizer.num_lyric_tokens,
            dtype,
        )
        return take_lyric_windows(lyric_ids, indices), indices

    def _to_samples(self, name: str, column: list[float]) -> list[int]:
        for seconds in column:
            if not math.isfinite(seconds):
                raise ValueError(f"{name}={seconds}: give a finite number of seconds.")
        return [round(float(seconds) * self.feature_extractor.sampling_rate) for seconds in column]

    def _check_offset(self, total_length: list[int] | None, offset: list[int]):
        rate = self.feature_extractor.sampling_rate
        for start, length in zip(offset, total_length or [math.inf] * len(offset)):
            if not 0 <= start < length:
                raise ValueError(
                    f"An offset of {start} samples ({start / rate:.2f} s) lies outside the song: give one from 0 to "
                    f"less than its length, {length} samples ({length / rate:.2f} s)."
                )

    def _refuse_long_lyrics(self, lyric_ids: list[list[int]]):
        longest = max(map(len, lyric_ids))
        if longest > self.tokenizer.num_lyric_tokens:
            raise ValueError(
                f"The lyrics have {longest} characters, and the prior reads {self.tokenizer.num_lyric_tokens} at a "
                "time: which ones follows from the song's length, so give total_seconds."
            )


def _to_columns(values: dict[str, object], batch_size: int | None) -> dict[str, list]:
    """Gives every value as a list with one entry a song."""
    lists = {
        name: list(value) for name, value in values.items() if not (value is None or isinstance(value, str | Number))
    }
    sizes = {name: len(entries) for name, entries in lists.items()}
    if batch_size is not None:
        sizes["audio"] = batch_size
    if len(set(sizes.values())) > 1 or 0 in sizes.values():
        lengths = ", ".join(f"{size} of {name}" for name, size in sizes.items())
        raise ValueError(f"The batch has no one size: {lengths}. Give lists of one length, with an entry a song.")
    size = next(iter(sizes.values()), 1)
    return {name: lists.get(name, [value] * size) for name, value in values.items()}


def _look_up(find: Callable[[str | None, str], object], names: list[str | None], versions: list[str]) -> list:
    # Each name once a version, so that an unknown one is warned about once.
    ids = {version: {name: find(name, version) for name in dict.fromkeys(names)} for version in dict.fromkeys(versions)}
    if len(versions) == 1:
        return [ids[versions[0]][name] for name in names]
    return [[ids[version][name] for version in versions] for name in names]


__all__ = ["JukeboxProcessor"]
