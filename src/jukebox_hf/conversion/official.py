"""The checkpoints that OpenAI published, and the architecture of each."""

from dataclasses import dataclass

from transformers import PreTrainedConfig

from ..configuration_jukebox import (
    JukeboxConditionerConfig,
    JukeboxLyricsEncoderConfig,
    JukeboxPriorConfig,
    JukeboxVQVAEConfig,
)
from ..v4_weights import CLIP_LENGTH
from .hyperparameters import ATTENTION_ORDERS

MODELS_URL = "https://openaipublic.azureedge.net/jukebox/models"


@dataclass(frozen=True)
class OfficialCheckpoint:
    """One published file.

    The architecture comes from here, as in the original, and never from the file's own `hps`.

    Args:
        url: where OpenAI serves it.
        config: the architecture.
        sample_length: the clip length of a VQ-VAE's training, in samples.
        size: in bytes, where known.
        sha256: of the file, where known. Others published these sums; this project could not compute them itself.
        label_version: of a prior's artists, genres and lyrics, `"v2"` or `"v3"`.
    """

    url: str
    config: PreTrainedConfig
    sample_length: int | None = None
    size: int | None = None
    sha256: str | None = None
    label_version: str | None = None


def _upsampler(level: int, hop_length: int, residual_scale: float) -> JukeboxPriorConfig:
    return JukeboxPriorConfig(
        level=level,
        hop_length=hop_length,
        hidden_size=1920,
        num_attention_heads=1,
        head_dim=480,
        intermediate_size=1920,
        init_scale=0.4,
        tie_word_embeddings=True,
        add_conditioning_after_stack=True,
        num_time_bins=0,
        conditioner_config=JukeboxConditionerConfig(residual_scale=residual_scale),
    )


OFFICIAL_CHECKPOINTS = {
    "5b-vqvae": OfficialCheckpoint(
        url=f"{MODELS_URL}/5b/vqvae.pth.tar",
        config=JukeboxVQVAEConfig(),
        sample_length=CLIP_LENGTH,
        sha256="69745413a48e887f8a3fe91b972a6f7f434021a1ce911a99187b331eb48c059a",
    ),
    "5b-prior-level-0": OfficialCheckpoint(
        url=f"{MODELS_URL}/5b/prior_level_0.pth.tar",
        config=_upsampler(level=0, hop_length=8, residual_scale=1.0),
        label_version="v2",
    ),
    "5b-prior-level-1": OfficialCheckpoint(
        url=f"{MODELS_URL}/5b/prior_level_1.pth.tar",
        config=_upsampler(level=1, hop_length=32, residual_scale=0.25),
        label_version="v2",
    ),
    "5b-prior-level-2": OfficialCheckpoint(
        url=f"{MODELS_URL}/5b/prior_level_2.pth.tar",
        config=JukeboxPriorConfig(),
        size=10_288_727_721,
        sha256="89a1dd14f5b2f9b16b3e73b53fa2138cc89fd96bb13249b4267fea471de92672",
        label_version="v2",
    ),
    "5b-lyrics-prior-level-2": OfficialCheckpoint(
        url=f"{MODELS_URL}/5b_lyrics/prior_level_2.pth.tar",
        config=JukeboxPriorConfig(
            num_hidden_layers=79,
            attention_pattern=ATTENTION_ORDERS[10],
            min_duration=23.8,
            num_lyric_tokens=512,
            lyric_vocab_size=80,
            lyrics_encoder_config=JukeboxLyricsEncoderConfig(),
            alignment_layer=68,
            alignment_head=2,
        ),
        label_version="v2",
    ),
    "1b-lyrics-prior-level-2": OfficialCheckpoint(
        url=f"{MODELS_URL}/1b_lyrics/prior_level_2.pth.tar",
        config=JukeboxPriorConfig(
            context_length=6144,
            hidden_size=2048,
            num_attention_heads=2,
            head_dim=256,
            intermediate_size=2048,
            num_blocks=64,
            attention_pattern=ATTENTION_ORDERS[12],
            init_scale=0.2,
            tie_word_embeddings=True,
            add_conditioning_after_stack=True,
            num_artists=7898,
            num_genres=604,
            max_genres=1,
            num_time_bins=64,
            min_duration=17.84,
            num_lyric_tokens=384,
            lyric_vocab_size=79,
            alignment_layer=63,
            alignment_head=0,
        ),
        label_version="v3",
    ),
}

# The models that these files make up.
OFFICIAL_MODELS = {
    name: ("5b-vqvae", "5b-prior-level-0", "5b-prior-level-1", f"{name}-prior-level-2")
    for name in ("5b", "5b-lyrics", "1b-lyrics")
}
