"""Small random priors of every kind, for tests that need no reference values."""

import torch

from jukebox_hf import JukeboxPriorConfig, JukeboxPriorModel

_SMALL = {
    "vocab_size": 32, "context_length": 48, "hop_length": 128, "sampling_rate": 1000, "hidden_size": 32,
    "num_hidden_layers": 4, "num_attention_heads": 2, "head_dim": 4, "intermediate_size": 32, "num_blocks": 8,
    "init_scale": 5.0, "num_artists": 30, "num_genres": 12, "max_genres": 3, "num_time_bins": 16, "min_duration": 5.0,
    "max_duration": 60.0,
}  # fmt: skip
_ENCODER = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "head_dim": 2, "num_blocks": 4}
_CONDITIONER = {"hidden_size": 8, "num_residual_layers": 3, "dilation_cycle": 2}
_TIED = {"tie_word_embeddings": True, "add_conditioning_after_stack": True}
_LYRICS = {"num_lyric_tokens": 16, "lyric_vocab_size": 20}

STYLES = {
    "top": JukeboxPriorConfig(**_SMALL),
    "unlabelled": JukeboxPriorConfig(**_SMALL | {"num_artists": 0, "num_genres": 0, "num_time_bins": 0}),
    "shared lyrics": JukeboxPriorConfig(
        **_SMALL | {"num_hidden_layers": 5}, **_LYRICS, **_TIED, attention_pattern="rcpPD"
    ),
    "separate lyrics": JukeboxPriorConfig(
        **_SMALL, **_LYRICS, lyrics_encoder_config=_ENCODER | {"intermediate_size": 16}, attention_pattern="rcpx"
    ),
    "upsampler": JukeboxPriorConfig(
        **_SMALL | {"num_time_bins": 0, "level": 1, "hop_length": 32}, **_TIED, conditioner_config=_CONDITIONER
    ),
}


def random_prior(style: str) -> JukeboxPriorModel:
    torch.manual_seed(0)
    model = JukeboxPriorModel(STYLES[style]).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1 or not parameter.any():
                # Biases, norms and new cross layers start at trivial values, which would hide mistakes.
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def inputs_of(model: JukeboxPriorModel, batch_size: int = 2) -> dict[str, torch.Tensor]:
    """Codes of a whole window and everything that this kind of prior is conditioned on."""
    config = model.config
    generator = torch.Generator().manual_seed(1)

    def draw(high: int, *shape: int) -> torch.Tensor:
        return torch.randint(1, high - 1, (batch_size, *shape), generator=generator)

    inputs = {"input_ids": draw(config.vocab_size, config.context_length)}
    if config.num_artists:
        inputs |= {"artist_ids": draw(config.num_artists), "genre_ids": draw(config.num_genres, config.max_genres)}
    if config.num_time_bins:
        inputs |= {"total_length": 20000 + draw(1000), "offset": draw(1000)}
    if config.num_lyric_tokens:
        inputs["lyric_ids"] = draw(config.lyric_vocab_size, config.num_lyric_tokens)
    if config.conditioner_config is not None:
        inputs["upper_codes"] = draw(config.vocab_size, config.num_upper_codes)
    return inputs
