"""`generate` for one window of codes, on transformers' own loop."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, GenerationMixin, LogitsProcessor, LogitsProcessorList
from transformers.generation import GenerateDecoderOnlyOutput
from transformers.generation.streamers import BaseStreamer

from .cache_jukebox import JukeboxCache
from .prior_inputs import check_codes

CONDITIONS = ("upper_codes", "artist_ids", "genre_ids", "total_length", "offset", "lyric_ids")


class JukeboxPriorGenerationMixin(GenerationMixin):
    """What `generate` needs to know of a prior: its start, its shared lyrics, its cache and its generators."""

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        streamer: BaseStreamer | None = None,
        **kwargs: Any,
    ) -> Tensor | GenerateDecoderOnlyOutput:
        """Draws the codes of one window, by default to its end.

        Everything else is transformers' `generate`: temperature, top-k, top-p, `num_return_sequences`,
        `prefill_chunk_size`, processors, criteria. Processors and criteria see the stack's own ids: the start token,
        the lyrics where they share the stack, then codes shifted by `config.code_offset`. A streamer is given codes.

        Args:
            input_ids (`torch.LongTensor`, *optional*): codes `(batch, codes)` that the window starts with.
            generator (`torch.Generator` or a list, *optional*): draws for the whole batch, by default PyTorch's own as
                the original does; or one for each sample, which then gets what it gets alone. `output_scores` marks
                the drawn token only.
            kwargs: also what the model is conditioned on, as in `forward`, and `max_length`, in codes.

        Returns:
            Codes `(batch * num_return_sequences, codes)` with those of `input_ids`, or with `return_dict_in_generate`
            transformers' output, whose `sequences` are these.

        Raises:
            ValueError: nothing to draw, more than a context, and whatever `forward` refuses.
        """
        config = self.config
        if (mask := kwargs.pop("attention_mask", None)) is not None and not mask.all():
            raise ValueError(
                "attention_mask hides some codes: Jukebox's windows have no padding; generate each length apart."
            )
        if (cache := kwargs.get("past_key_values")) is not None and cache.get_seq_length():
            raise ValueError(
                f"past_key_values holds {cache.get_seq_length()} positions: give an empty cache, or reset() it; "
                "input_ids is read from its start."
            )
        conditions = {name: kwargs.pop(name, None) for name in CONDITIONS}
        if input_ids is None or not input_ids.shape[1]:
            given = [value for value in (input_ids, *conditions.values()) if value is not None]
            input_ids = torch.zeros(max(map(len, given), default=1), 0, dtype=torch.long)
        else:
            check_codes(config, input_ids)
        if self.device.type != "meta":  # as it is with every module on disk
            input_ids = input_ids.to(self.device)
        settings = deepcopy(self.generation_config if generation_config is None else generation_config)
        num_new = self._num_new_codes(input_ids.shape[1], settings, kwargs)
        settings.max_new_tokens, settings.max_length = num_new, None
        conditioning = self.condition(**conditions, batch_size=len(input_ids), device=input_ids.device)
        inputs = self.decoder_inputs(input_ids, conditions["lyric_ids"])
        prefix = 1 + config.lyric_offset
        if cache is not None and cache.get_max_length() < inputs.shape[1] + num_new - 1:
            raise ValueError(
                f"past_key_values has room for {cache.get_max_length()} positions, but {inputs.shape[1] + num_new - 1} "
                "come: make a longer JukeboxCache, or draw fewer codes."
            )
        if generator is not None:
            kwargs["custom_generate"] = _draw_with(generator)
        if streamer is not None:
            kwargs["streamer"] = _CodeStreamer(streamer, prefix, config.code_offset)
        output = super().generate(inputs=inputs, generation_config=settings, **kwargs, **conditioning)
        sequences = output if isinstance(output, Tensor) else output.sequences
        # A lyric id that was drawn where only codes have a meaning is heard as code 0, as in the original.
        codes = (sequences[:, prefix:] - config.code_offset).clamp(min=0)
        if isinstance(output, Tensor):
            return codes
        output.sequences = codes
        return output

    def _num_new_codes(self, num_given: int, settings: GenerationConfig, kwargs: dict) -> int:
        """Takes the asked length out of `kwargs`, or from the settings."""
        num_new = kwargs.pop("max_new_tokens", settings.max_new_tokens)
        length = kwargs.pop("max_length", settings.max_length)
        context = self.config.context_length
        if num_new is None:
            num_new = (context if length is None else length) - num_given
        if not 0 < num_new <= context - num_given:
            raise ValueError(
                f"{num_new} codes after the {num_given} given: this prior's context has room for "
                f"{context - num_given}. Set max_new_tokens, or max_length for all codes, or give fewer input_ids."
            )
        return num_new

    def _prepare_cache_for_generation(
        self, generation_config: GenerationConfig, model_kwargs: dict, generation_mode, batch_size: int, max_length: int
    ):
        if generation_config.cache_implementation is not None:
            raise ValueError(
                f"cache_implementation={generation_config.cache_implementation!r}: Jukebox has a cache of its own; "
                "leave this out."
            )
        if generation_config.use_cache and model_kwargs.get("past_key_values") is None:
            model_kwargs["past_key_values"] = JukeboxCache(self.config, max_length)

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        next_sequence_length: int | None = None,
        is_first_iteration: bool = False,
        attention_mask: None = None,
        position_ids: None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        if next_sequence_length is not None:
            input_ids = input_ids[:, -next_sequence_length:]
        # A clone has the same strides whatever the number of tokens so far; a compiled step needs that.
        return kwargs | {"decoder_input_ids": input_ids.clone(memory_format=torch.contiguous_format)}


class _DrawingProcessor(LogitsProcessor):
    """Draws a token for each sample and leaves only its score, so that the highest score is the drawn token."""

    def __init__(self, generator: torch.Generator | list[torch.Generator]):
        self.generator = generator

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        probabilities = scores.softmax(dim=-1)
        if isinstance(self.generator, list):
            rows = zip(probabilities.split(1), self.generator)
            tokens = torch.cat([torch.multinomial(row, 1, generator=generator) for row, generator in rows])
        else:
            tokens = torch.multinomial(probabilities, 1, generator=self.generator)
        return torch.full_like(scores, -torch.inf).scatter_(1, tokens, 0.0)


def _draw_with(generator: torch.Generator | list[torch.Generator]) -> Callable:
    """Makes a decoding method of transformers' sampling, which itself knows PyTorch's own generator only."""

    def sample(model, input_ids, logits_processor, generation_config, **kwargs):
        if not generation_config.do_sample:
            raise ValueError("generator was given, but nothing is drawn: set do_sample=True, or leave it out.")
        if generation_config.num_beams > 1:
            raise ValueError(f"num_beams={generation_config.num_beams} with a generator: give one of the two.")
        generators = generator if isinstance(generator, list) else [generator]
        if isinstance(generator, list) and len(generators) != len(input_ids):
            raise ValueError(f"{len(generators)} generators for {len(input_ids)} samples: give one, or one for each.")
        if wrong := {one.device.type for one in generators} - {input_ids.device.type}:
            raise ValueError(
                f"A generator is on {', '.join(wrong)} and the codes are drawn on {input_ids.device.type}: make it "
                f"with torch.Generator({input_ids.device.type!r})."
            )
        generation_config = deepcopy(generation_config)
        generation_config.do_sample = False
        processors = LogitsProcessorList([*logits_processor, _DrawingProcessor(generator)])
        return model._sample(input_ids, processors, generation_config=generation_config, **kwargs)

    return sample


class _CodeStreamer(BaseStreamer):
    """Hands on codes: without start and lyrics, and not shifted by the vocabulary of the lyrics."""

    def __init__(self, streamer: BaseStreamer, prefix: int, code_offset: int):
        self.streamer, self.prefix, self.code_offset = streamer, prefix, code_offset

    def put(self, value: Tensor):
        if value.ndim == 2:
            value = value[:, self.prefix :]
        if value.numel():
            self.streamer.put((value - self.code_offset).clamp(min=0))

    def end(self):
        self.streamer.end()
