"""Jukebox's priors: transformers over the codes of one level of the VQ-VAE (arXiv 2005.00341, sections 4 and 5)."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, GenerationConfig, PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput, can_return_tuple

from .attention_patterns import PATTERNS, AttentionPlan
from .cache_jukebox import JukeboxCache
from .conditioning_jukebox import (
    JukeboxConditioner,
    JukeboxLabelEmbedding,
    JukeboxLyricsEncoder,
    JukeboxTimingEmbedding,
)
from .configuration_jukebox import JukeboxConfig, JukeboxPriorConfig
from .convolution_jukebox import JukeboxConv1d, JukeboxConvTranspose1d
from .linear_jukebox import JukeboxLinear
from .prior_generation import JukeboxPriorGenerationMixin
from .prior_inputs import check_codes, check_labels, check_lyrics, check_upper_codes
from .transformer_jukebox import JukeboxTransformerLayer, with_init_std
from .v4_layout import HUB_ARGUMENTS, read_v4_config
from .v4_weights import V4LoadingMixin

# As the original samples.
SAMPLING = {"do_sample": True, "temperature": 0.99, "top_k": 0}


@dataclass
class JukeboxConditioning(ModelOutput):
    """What a prior makes of labels, timing, lyrics and upper codes; the same for all steps of a window.

    Args:
        start_embeds (`torch.FloatTensor`): `(batch, 1, hidden_size)`, in place of the token before the first.
        position_embeds (`torch.FloatTensor`, *optional*): `(batch, sequence_length, hidden_size)`, added to each
            position's input: timing, or the upsampled codes of the level above.
        lyric_states (`torch.FloatTensor`, *optional*): `(batch, num_lyric_tokens, hidden_size)` of a lyrics encoder.
    """

    start_embeds: torch.FloatTensor | None = None
    position_embeds: torch.FloatTensor | None = None
    lyric_states: torch.FloatTensor | None = None


@dataclass
class JukeboxPriorOutput(ModelOutput):
    """What a prior says about codes. "Positions" are the codes', after those of the lyrics where both share the stack.

    Args:
        loss (`torch.FloatTensor`, *optional*): in bits, the parts below weighted by their numbers of tokens, the
            lyrics' by `config.lyrics_loss_weight` too.
        music_loss (`torch.FloatTensor`, *optional*): bits per code.
        lyric_loss (`torch.FloatTensor`, *optional*): bits per character of the lyrics.
        logits (`torch.FloatTensor`): `(batch, positions, vocabulary)` in fp32; position t predicts its own code from
            those before. A shared stack's vocabulary is that of the lyrics, then the codes.
        past_key_values (`JukeboxCache`, *optional*): the cache that was given.
        hidden_states (`tuple[torch.FloatTensor]`, *optional*): `(batch, positions, hidden_size)`; item k is the output
            of layer k, counted from 1, and item 0 the input of the first; none where a list asked for others only.
        attentions (`tuple[torch.FloatTensor]`, *optional*): the weights of each layer, laid out as its pattern: dense,
            prime and cross `(batch, heads, queries, keys)`; row, column and previous with the groups in the batch.
        lyric_attentions (`dict[int, torch.FloatTensor]`, *optional*): for each layer that reads the lyrics, counted
            from 0, `(batch, heads, codes, num_lyric_tokens)`.
    """

    loss: torch.FloatTensor | None = None
    music_loss: torch.FloatTensor | None = None
    lyric_loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    past_key_values: JukeboxCache | None = None
    hidden_states: tuple[torch.FloatTensor | None, ...] | None = None
    attentions: tuple[torch.FloatTensor | None, ...] | None = None
    lyric_attentions: dict[int, torch.FloatTensor] | None = None


class JukeboxPriorModel(V4LoadingMixin, JukeboxPriorGenerationMixin, PreTrainedModel):
    """A prior of Jukebox: the distribution of each code of a window, given those before it and facts about the song.

    A top prior is conditioned on artist, genre, timing and, if it was trained so, lyrics; an upsampler on artist, genre
    and the codes of the level above.
    """

    config: JukeboxPriorConfig
    base_model_prefix = "prior"
    main_input_name = "input_ids"
    input_modalities = "audio"
    output_modalities = ("audio",)
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _can_compile_fullgraph = True
    _no_split_modules = [
        "JukeboxTransformerLayer", "JukeboxConditioner", "JukeboxLyricsEncoder", "JukeboxLabelEmbedding",
        "JukeboxTimingEmbedding",
    ]  # fmt: skip
    _tied_weights_keys = {"lm_head.weight": "embed_tokens.weight"}
    # As in the original, only the layers' matrices and activations are ever in half precision.
    _keep_in_fp32_modules_strict = [
        "embed_tokens", "embed_positions", "start_embedding", "label_embedding", "timing_embedding", "conditioner",
        "attention_layer_norm", "mlp_layer_norm", "state_proj", "lyrics_encoder.layer_norm", "lm_head",
    ]  # fmt: skip
    # `num_hidden_layers` may be smaller than what the checkpoint has, and the checkpoint that of a whole JukeboxModel.
    _keys_to_ignore_on_load_unexpected = [r"^layers\.\d+\.", r"^(vqvae|prior_\d|priors\.\d)\."]

    def __init__(self, config: JukeboxPriorConfig):
        super().__init__(config)
        if config.lyrics_encoder_config is not None:
            # transformers resolves the default for whole models only, and the encoder is a part of this one.
            config.lyrics_encoder_config._attn_implementation = config._attn_implementation
        width, scale = config.hidden_size, config.init_scale
        self.embed_tokens = with_init_std(nn.Embedding(config.start_token_id, width), 0.02 * scale)
        self.embed_positions = with_init_std(nn.Embedding(config.sequence_length, width), 0.01 * scale)
        if config.num_artists:
            self.label_embedding = JukeboxLabelEmbedding(config)
        else:
            self.start_embedding = with_init_std(nn.Embedding(1, width), 0.01 * scale)
        if config.num_time_bins:
            self.timing_embedding = JukeboxTimingEmbedding(config)
        if config.conditioner_config is not None:
            self.conditioner = JukeboxConditioner(config)
        if config.lyrics_encoder_config is not None:
            self.lyrics_encoder = JukeboxLyricsEncoder(config)
        self.layers = nn.ModuleList(JukeboxTransformerLayer(config, letter) for letter in config.layer_patterns)
        self.lm_head = JukeboxLinear(width, config.start_token_id, bias=False)
        self.post_init()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, level: int | None = None, **kwargs):
        """As for any model; from the repository of a [`JukeboxModel`] it loads one of its priors.

        Args:
            level (`int`, *optional*): whose prior to load from such a repository; default the top level's.

        Raises:
            ValueError: a level without a prior, or a level asked of a repository that holds one prior.
        """
        given = kwargs.get("config")
        if pretrained_model_name_or_path is not None:
            hub = {name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs}
            config = AutoConfig.from_pretrained(pretrained_model_name_or_path, **hub)
            if isinstance(config, JukeboxConfig):
                if isinstance(given, JukeboxPriorConfig):
                    level = given.level if level is None else level
                level = max(config.priors, default=None) if level is None else level
                if level not in config.priors:
                    raise ValueError(f"level={level}: {pretrained_model_name_or_path} has {sorted(config.priors)}.")
                if not isinstance(given, JukeboxPriorConfig):
                    kwargs.pop("config", None)
                    given, kwargs = JukeboxPriorConfig.from_dict(
                        config.priors[level].to_dict(), return_unused_kwargs=True, **kwargs
                    )
                elif given.level != level:
                    raise ValueError(f"level={level} with the configuration of level {given.level}: give one of them.")
                kwargs["config"], kwargs["key_mapping"] = given, {rf"^prior_{level}\.": ""}
                if read_v4_config(pretrained_model_name_or_path, **hub) is not None:
                    # transformers 4 stored none.
                    kwargs.setdefault("generation_config", GenerationConfig(**SAMPLING))
            elif level is not None:
                raise ValueError(f"level={level}: {pretrained_model_name_or_path} holds one prior; leave level out.")
        return super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)

    @property
    def dtype(self) -> torch.dtype:
        """The type of the layers' matrices and of the residual stream; what is around them stays in fp32."""
        return self.layers[0].mlp.fc2.bias.dtype

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embed_tokens

    def get_output_embeddings(self) -> nn.Linear:
        return self.lm_head

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        """The original's laws: normal with the deviation that `with_init_std` set, else PyTorch's default."""
        if isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif (std := getattr(module, "init_std", None)) is not None:
            init.normal_(module.weight, std=std)
            if getattr(module, "bias", None) is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Linear | JukeboxConv1d | JukeboxConvTranspose1d):
            # It takes the second axis for the fan-in of transposed convolutions, too.
            bound = 1 / math.sqrt(module.weight[0].numel())
            init.uniform_(module.weight, -bound, bound)
            if module.bias is not None:
                init.uniform_(module.bias, -bound, bound)

    def condition(
        self,
        upper_codes: Tensor | None = None,
        artist_ids: Tensor | None = None,
        genre_ids: Tensor | None = None,
        total_length: Tensor | None = None,
        offset: Tensor | None = None,
        lyric_ids: Tensor | None = None,
        batch_size: int = 1,
        device: torch.device | None = None,
    ) -> JukeboxConditioning:
        """Computes what all steps of a window share; `forward` and `generate` call it on the same arguments.

        Args:
            batch_size (`int`): samples; arguments of one sample are those of all.
            device (`torch.device`, *optional*): where to compute it, if not where the model is.

        Raises:
            ValueError: an argument that this prior does not take or cannot do without, a wrong shape, an id out of
                range, or a duration outside the trained range.
        """
        config, device = self.config, self.device if device is None else device
        labels = check_labels(config, batch_size, artist_ids, genre_ids, total_length, offset)
        artist_ids, genre_ids, total_length, offset = (_to(ids, device) for ids in labels)
        upper_codes = _to(check_upper_codes(config, batch_size, upper_codes), device)
        lyric_ids = _to(check_lyrics(config, batch_size, lyric_ids), device)
        position_embeds = lyric_states = None
        if config.num_artists:
            start_embeds = self.label_embedding(artist_ids, genre_ids)
        else:
            start_embeds = self.start_embedding(torch.zeros(batch_size, 1, dtype=torch.long, device=device))
        if config.conditioner_config is not None:
            position_embeds = self.conditioner(upper_codes)
        elif config.num_time_bins:
            position_embeds = self.timing_embedding(total_length, offset)
        if config.lyrics_encoder_config is not None:
            lyric_states = self.lyrics_encoder(lyric_ids)
        if config.shares_stack and position_embeds is not None:
            position_embeds = F.pad(position_embeds, (0, 0, config.lyric_offset, 0))
        return JukeboxConditioning(start_embeds, position_embeds, lyric_states)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        upper_codes: Tensor | None = None,
        artist_ids: Tensor | None = None,
        genre_ids: Tensor | None = None,
        total_length: Tensor | None = None,
        offset: Tensor | None = None,
        lyric_ids: Tensor | None = None,
        labels: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        start_embeds: Tensor | None = None,
        position_embeds: Tensor | None = None,
        lyric_states: Tensor | None = None,
        past_key_values: JukeboxCache | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        output_hidden_states: bool | list[int] | None = None,
        output_attentions: bool | list[int] | None = None,
    ) -> JukeboxPriorOutput:
        """Computes logits, hidden states and loss of a window's codes, or, with a cache, of the positions that follow.

        Args:
            input_ids (`torch.LongTensor`): codes `(batch, codes)` of a window from its start, at most a context.
            upper_codes (`torch.LongTensor`): an upsampler's codes of the level above, `(batch, num_upper_codes)`:
                exactly those of one context.
            artist_ids (`torch.LongTensor`, *optional*): `(batch,)`; default 0, the unknown artist.
            genre_ids (`torch.LongTensor`, *optional*): `(batch, up to max_genres)`, -1 for an empty slot; default one
                word, 0, the unknown genre.
            total_length (`torch.LongTensor`, *optional*): samples of the whole song, `(batch,)`; default the shortest
                that was trained and holds this window. Upsamplers have no timing and do not read it.
            offset (`torch.LongTensor`, *optional*): samples of the song before this window, `(batch,)`; default 0.
            lyric_ids (`torch.LongTensor`): a lyrics model's characters around this window, `(batch,
                num_lyric_tokens)`, 0 for none.
            labels (`torch.LongTensor`, *optional*): codes to predict, usually `input_ids`; -100 for those to leave
                out. Gives the loss.
            decoder_input_ids (`torch.LongTensor`, *optional*): instead of `input_ids`, what the positions are fed:
                `config.start_token_id`, the lyrics where they share the stack, then codes shifted by
                `config.code_offset`; with a cache only those after what it holds.
            start_embeds, position_embeds, lyric_states (*optional*): what `condition` gave, instead of its arguments.
            past_key_values ([`JukeboxCache`], *optional*): goes on from its positions and keeps the new ones.
            use_cache (`bool`, *optional*): make a cache when none is given.
            logits_to_keep (`int`): compute the logits of the last positions only; 0 for all.
            output_hidden_states, output_attentions (`bool` or `list[int]`, *optional*): which to return.

        Raises:
            ValueError: codes out of range, wrong shapes, and whatever `condition` refuses.
        """
        config = self.config
        if (input_ids is None) == (decoder_input_ids is None):
            raise ValueError("Give either input_ids, the codes of a window, or decoder_input_ids, what to feed next.")
        if input_ids is not None and past_key_values is not None:
            raise ValueError(
                "input_ids is a window from its start, so past_key_values has no place with it: give what comes next "
                "as decoder_input_ids."
            )
        if decoder_input_ids is None:
            check_codes(config, input_ids)
            decoder_input_ids = self.decoder_inputs(input_ids, lyric_ids)[:, :-1]
        (batch_size, num_positions), input_device = decoder_input_ids.shape, decoder_input_ids.device
        if start_embeds is None:
            conditioning = self.condition(
                upper_codes, artist_ids, genre_ids, total_length, offset, lyric_ids, batch_size, input_device
            )
            start_embeds, lyric_states = conditioning.start_embeds, conditioning.lyric_states
            position_embeds = conditioning.position_embeds
        if use_cache and past_key_values is None:
            past_key_values = JukeboxCache(config)

        positions, plans = self._plan(num_positions, past_key_values, input_device)
        is_start = (decoder_input_ids == config.start_token_id).unsqueeze(-1)
        embeds = self.embed_tokens(decoder_input_ids.clamp(max=config.start_token_id - 1))
        # A model on several devices may have each of these on another one.
        embeds = torch.where(is_start.to(embeds.device), start_embeds.to(embeds.device), embeds)
        embeds = embeds + self.embed_positions(positions).to(embeds.device)
        if position_embeds is not None:
            position_embeds = position_embeds.index_select(1, positions.to(position_embeds.device)).to(embeds.device)
            embeds = embeds + position_embeds
        hidden_states, all_hidden_states, attentions = self._run_layers(
            embeds.to(self.dtype),
            plans,
            lyric_states,
            past_key_values,
            _indices(output_hidden_states, config.output_hidden_states, config.num_hidden_layers + 1),
            _indices(output_attentions, config.output_attentions, config.num_hidden_layers),
        )
        if past_key_values is not None:
            past_key_values.position.add_(num_positions)

        kept = slice(-logits_to_keep, None) if logits_to_keep else slice(None)
        hidden_states = hidden_states[:, kept].float()
        if config.add_conditioning_after_stack and position_embeds is not None:
            hidden_states = hidden_states + position_embeds[:, kept].to(hidden_states.device)
        logits = _in_fp32(self.lm_head, hidden_states)
        losses = self._losses(logits, labels, lyric_ids, lyric_states) if labels is not None else {}
        return JukeboxPriorOutput(
            logits=logits,
            past_key_values=past_key_values,
            hidden_states=all_hidden_states,
            attentions=attentions,
            lyric_attentions=self._lyric_attentions(attentions),
            **losses,
        )

    def decoder_inputs(self, codes: Tensor, lyric_ids: Tensor | None = None) -> Tensor:
        """Gives what the stack is fed, up to the position that follows the last code: start, shared lyrics, codes."""
        config = self.config
        start = codes.new_full((len(codes), 1), config.start_token_id, dtype=torch.long)
        parts = [start, codes.long() + config.code_offset]
        if config.shares_stack:
            parts.insert(1, check_lyrics(config, len(codes), lyric_ids).to(codes.device))
        return torch.cat(parts, dim=1)

    def _plan(
        self, num_positions: int, cache: JukeboxCache | None, device: torch.device
    ) -> tuple[Tensor, dict[str, AttentionPlan]]:
        """The positions to run, and what the layers of each pattern do with them."""
        letters = sorted(set(self.config.layer_patterns))
        positions = torch.arange(num_positions, device=device)
        if cache is None:
            grid = self.config.grid
            return positions, {letter: PATTERNS[letter].plan(0, num_positions, grid, device) for letter in letters}
        cache.to_device(device)
        positions = positions + cache.position
        if num_positions == 1:
            # Left to the device, since a step does not wait for it. A row or a previous layer would find room in a
            # cache that is full, and go on with wrong keys.
            torch._assert_async(cache.position < cache.get_max_length(), "This step is past the JukeboxCache's end.")
            step = cache.position.clone()
            return positions, {letter: PATTERNS[letter].plan_step(step, cache.grid) for letter in letters}
        start = cache.get_seq_length()
        stop = start + num_positions
        if stop > cache.get_max_length():
            raise ValueError(
                f"{num_positions} positions do not fit into a cache of {cache.get_max_length()} that holds {start}."
            )
        return positions, {letter: PATTERNS[letter].plan(start, stop, cache.grid, device) for letter in letters}

    def _run_layers(
        self,
        hidden_states: Tensor,
        plans: dict[str, AttentionPlan],
        lyric_states: Tensor | None,
        cache: JukeboxCache | None,
        kept_states: frozenset[int],
        kept_attentions: frozenset[int],
    ) -> tuple[Tensor, tuple | None, tuple | None]:
        all_hidden_states = [hidden_states if 0 in kept_states else None]
        attentions = []
        for index, (letter, layer) in enumerate(zip(self.config.layer_patterns, self.layers)):
            cache_layer = cache.layers[index] if cache is not None else None
            hidden_states, weights = layer(
                hidden_states, plans[letter], lyric_states, cache_layer, index in kept_attentions
            )
            all_hidden_states.append(hidden_states if index + 1 in kept_states else None)
            attentions.append(weights)
        return (
            hidden_states,
            tuple(all_hidden_states) if kept_states else None,
            tuple(attentions) if kept_attentions else None,
        )

    def _losses(
        self, logits: Tensor, labels: Tensor, lyric_ids: Tensor | None, lyric_states: Tensor | None
    ) -> dict[str, Tensor]:
        config, labels = self.config, labels.long()
        num_codes, num_lyrics = labels.shape[1], config.num_lyric_tokens
        music_logits = logits[:, config.lyric_offset :]
        if music_logits.shape[:2] != labels.shape:
            raise ValueError(
                f"labels has the shape {tuple(labels.shape)}, but the logits are of {tuple(music_logits.shape[:2])} "
                "codes: give as many labels as input_ids, and no logits_to_keep."
            )
        check_codes(config, labels.where(labels != -100, 0), "labels")
        music_loss = _bits(music_logits, labels.where(labels == -100, labels + config.code_offset))
        losses = {"loss": music_loss, "music_loss": music_loss}
        if num_lyrics:
            if config.shares_stack:
                lyric_logits = logits[:, :num_lyrics]
            else:
                lyric_logits = _in_fp32(self.lyrics_encoder.lm_head, lyric_states)
            losses["lyric_loss"] = _bits(lyric_logits, check_lyrics(config, len(labels), lyric_ids))
            losses["loss"] = (
                config.lyrics_loss_weight * num_lyrics * losses["lyric_loss"] + num_codes * music_loss
            ) / (num_lyrics + num_codes)
        return losses

    def _lyric_attentions(self, attentions: tuple[Tensor | None, ...] | None) -> dict[int, Tensor] | None:
        if attentions is None or not self.config.num_lyric_tokens:
            return None
        first, last = self.config.lyric_offset, self.config.num_lyric_tokens
        return {
            index: weights[:, :, first:, :last]
            for index, (letter, weights) in enumerate(zip(self.config.layer_patterns, attentions))
            if letter in "xPD" and weights is not None
        }


def _indices(asked: bool | list[int] | None, default: bool, count: int) -> frozenset[int]:
    """The asked items of a tuple of `count`, negative numbers from its end."""
    asked = default if asked is None else asked
    if isinstance(asked, bool):
        return frozenset(range(count) if asked else ())
    if any(not -count <= index < count for index in asked):
        raise ValueError(f"{asked}: this model has the items 0 to {count - 1}.")
    return frozenset(index % count for index in asked)


def _to(ids: Tensor | None, device: torch.device) -> Tensor | None:
    return None if ids is None else ids.to(device)


def _in_fp32(head: nn.Linear, states: Tensor) -> Tensor:
    # Meta tensors, which stand for another device where there is none, have no autocast.
    device = states.device.type
    with torch.autocast(device if torch.amp.is_autocast_available(device) else "cpu", enabled=False):
        return head(states.to(head.weight.dtype)).float()


def _bits(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten().to(logits.device)) / math.log(2)


__all__ = ["JukeboxConditioning", "JukeboxPriorModel", "JukeboxPriorOutput"]
