"""The checkpoints that OpenAI published, and the architecture of each."""

from dataclasses import dataclass

from transformers import PreTrainedConfig

from ..configuration_jukebox import JukeboxVQVAEConfig

MODELS_URL = "https://openaipublic.azureedge.net/jukebox/models"


@dataclass(frozen=True)
class OfficialCheckpoint:
    """One published file.

    The architecture comes from here, as in the original, and never from the file's own `hps`.

    Args:
        url: where OpenAI serves it.
        config: the architecture.
        sample_length: the clip length of its training, in samples, as public training recipes for
            this architecture give it; not verified against the paper. Only the codebooks' statistics follow from it.
        size: in bytes, where known.
        sha256: of the file, where known. Others published these sums; this project could not compute them itself.
    """

    url: str
    config: PreTrainedConfig
    sample_length: int
    size: int | None = None
    sha256: str | None = None


OFFICIAL_CHECKPOINTS = {
    "5b-vqvae": OfficialCheckpoint(
        url=f"{MODELS_URL}/5b/vqvae.pth.tar",
        config=JukeboxVQVAEConfig(),
        sample_length=393216,
        sha256="69745413a48e887f8a3fe91b972a6f7f434021a1ce911a99187b331eb48c059a",
    ),
}
