"""Fills the model cards in `model_cards/`."""

from importlib.resources import files
from string import Template

from .. import __version__
from ..modeling_jukebox_vqvae import JukeboxVQVAEModel

OPENAI_LICENSE = "https://github.com/openai/jukebox/blob/master/LICENSE"
LICENSE_METADATA = f"license_name: openai-jukebox-noncommercial\nlicense_link: {OPENAI_LICENSE}\n"
OFFICIAL_WEIGHTS = f"The weights are OpenAI's, under its [Noncommercial Use License]({OPENAI_LICENSE})."
OTHER_WEIGHTS = (
    "The converter knows this file as none of OpenAI's, and no licence for its weights: whoever trained them, name it "
    "here and at the top."
)


def vqvae_card(model: JukeboxVQVAEModel, repository: str, source: str, sha256: str, is_official: bool) -> str:
    """Writes the card of a converted VQ-VAE.

    Args:
        repository: what its users give to `from_pretrained`.
        source: the URL or the name of the file it was converted from.
        sha256: the checksum of that file, computed now.
        is_official: whether OpenAI published the file; the licence follows from it.
    """
    config = model.config
    levels = [
        f"| {level} | {hop} | {config.sampling_rate / hop:.1f} | {config.codebook_size} |"
        for level, hop in enumerate(config.hop_lengths)
    ]
    template = files(__package__).joinpath("model_cards", "vqvae.md").read_text(encoding="utf-8")
    return Template(template).substitute(
        title=repository.rpartition("/")[2],
        repository=repository,
        license_metadata=LICENSE_METADATA if is_official else "",
        weights_license=OFFICIAL_WEIGHTS if is_official else OTHER_WEIGHTS,
        source=source,
        sha256=sha256,
        version=__version__,
        sampling_rate=config.sampling_rate,
        parameters=f"{model.num_parameters():,}",
        codebook_values=f"{config.num_levels * config.codebook_size * config.codebook_dim:,}",
        codebook_dim=config.codebook_dim,
        levels="\n".join(levels),
        top_level=config.num_levels - 1,
    )
