"""Fills the model cards in `model_cards/`."""

from collections.abc import Collection, Mapping, Sequence
from importlib.resources import files
from string import Template
from typing import NamedTuple

import torch

from .. import __version__
from ..configuration_jukebox import JukeboxPriorConfig
from ..modeling_jukebox import JukeboxModel
from ..modeling_jukebox_prior import JukeboxPriorModel
from ..modeling_jukebox_vqvae import JukeboxVQVAEModel

OPENAI_LICENSE = "https://github.com/openai/jukebox/blob/master/LICENSE"
LICENSE_NAME = "openai-jukebox-noncommercial"
LICENSE_METADATA = f"license_name: {LICENSE_NAME}\nlicense_link: {OPENAI_LICENSE}\n"
OFFICIAL_WEIGHTS = (
    "The weights, and the names of artists and genres where there are any, are OpenAI's, under its [Noncommercial Use "
    f"License]({OPENAI_LICENSE})."
)
OTHER_WEIGHTS = (
    "The converter knows this file as none of OpenAI's, and no licence for its weights: whoever trained them, name it "
    "here and at the top."
)


class Source(NamedTuple):
    """What a repository was made of: the URL or name of a file, and its checksum; or the name of a repository."""

    name: str
    sha256: str | None = None


def fill_card(
    template: str, facts: Mapping[str, str], repository: str, sources: Sequence[Source], is_official: bool
) -> str:
    """Writes the card of a converted checkpoint.

    Args:
        template: a file in `model_cards/`.
        facts: what `vqvae_facts`, `prior_facts` or `whole_facts` gives; it may refer to `$repository`.
        repository: what its users give to `from_pretrained`.
        sources: what it was converted from.
        is_official: whether OpenAI published the weights; the licence follows from it.
    """
    lines = (f"- `{source.name}`" + (f",\n  sha256 `{source.sha256}`" if source.sha256 else "") for source in sources)
    text = files(__package__).joinpath("model_cards", template).read_text(encoding="utf-8")
    return Template(Template(text).safe_substitute(facts)).substitute(
        title=repository.rpartition("/")[2],
        repository=repository,
        license_metadata=LICENSE_METADATA if is_official else "",
        weights_license=OFFICIAL_WEIGHTS if is_official else OTHER_WEIGHTS,
        sources="\n".join(lines),
        version=__version__,
    )


def vqvae_facts(model: JukeboxVQVAEModel) -> dict[str, str]:
    """States what the card of a VQ-VAE says about the model."""
    config = model.config
    levels = [
        f"| {level} | {hop} | {config.sampling_rate / hop:.1f} | {config.codebook_size} |"
        for level, hop in enumerate(config.hop_lengths)
    ]
    return {
        "sampling_rate": str(config.sampling_rate),
        "parameters": f"{model.num_parameters():,}",
        "codebook_values": f"{config.num_levels * config.codebook_size * config.codebook_dim:,}",
        "codebook_dim": str(config.codebook_dim),
        "levels": "\n".join(levels),
        "top_level": str(config.num_levels - 1),
    }


def prior_facts(
    model: JukeboxPriorModel, label_version: str | None, has_tokenizer: bool, num_layer_values: int, dtype: torch.dtype
) -> dict[str, str]:
    """States what the card of a prior says about the model.

    Args:
        label_version: of its artists, genres and lyrics; none for a prior without labels.
        has_tokenizer: whether the repository holds their names.
        num_layer_values: how many of its parameters may be in half precision: the layers' matrices.
        dtype: which of these are written in.
    """
    config, size = model.config, model.num_parameters()
    return {
        "kind": "An upsampler" if config.conditioner_config else "A top-level prior",
        "level": str(config.level),
        "conditions": _conditions(config, has_tokenizer),
        "auto_classes": "AutoModel, AutoProcessor" if has_tokenizer else "AutoModel",
        "layer": str(config.num_hidden_layers // 2),
        "positions": "lyrics and codes" if config.shares_stack else "codes",
        "dtype": str(dtype).removeprefix("torch."),
        "rows": "\n".join(f"| {name} | {value} |" for name, value in _prior_rows(config, label_version)),
        "parameters": f"{size:,}",
        "memory_fp32": f"{4 * size / 1e9:.3g}",
        "memory_half": f"{(4 * size - 2 * num_layer_values) / 1e9:.3g}",
    }


def whole_facts(
    model: JukeboxModel, label_versions: Sequence[str] | None, num_layer_values: int, dtypes: Collection[torch.dtype]
) -> dict[str, str]:
    """States what the card of a whole Jukebox says about the model.

    Args:
        label_versions: of each prior's artists, genres and lyrics, from level 0 up; None without their names.
        num_layer_values: as in `prior_facts`.
        dtypes: which the layers' matrices are written in.
    """
    priors, size = model.config.priors, model.num_parameters()
    versions = dict(zip(priors, label_versions or [None] * len(priors)))
    columns = {level: dict(_prior_rows(prior, versions[level])) for level, prior in priors.items()}
    names = dict.fromkeys(name for rows in columns.values() for name in rows)
    top = priors[max(priors)]
    return {
        "sampling_rate": str(model.config.sampling_rate),
        "conditions": _conditions(top, has_tokenizer=bool(label_versions)),
        "torch_import": "" if label_versions or not top.num_lyric_tokens else "import torch\n",
        "auto_classes": "AutoModel, AutoProcessor" if label_versions else "AutoModel",
        "seconds": f"{top.sample_length / top.sampling_rate:.1f}",
        "dtypes": " and ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes)),
        "header": "".join(f" prior of level {level} |" for level in columns),
        "rule": "---|" * len(columns),
        "rows": "\n".join(
            f"| {name} |" + "".join(f" {rows.get(name, 'nothing')} |" for rows in columns.values()) for name in names
        ),
        "parameters": f"{size:,}",
        "memory_fp32": f"{4 * size / 1e9:.3g}",
        "memory_half": f"{(4 * size - 2 * num_layer_values) / 1e9:.3g}",
    }


def _conditions(config: JukeboxPriorConfig, has_tokenizer: bool) -> str:
    """The lines of Python that make what the model is conditioned on."""
    lines = ["conditions = {}  # unknown artist and genre" if config.num_artists else "conditions = {}"]
    if has_tokenizer:
        arguments = ["artist=None", "genre=None"]
        if config.num_lyric_tokens:
            arguments.insert(0, '"Lyrics of the whole song"')
        if config.num_time_bins:
            arguments.append(f"total_seconds={round(min(180.0, (config.min_duration + config.max_duration) / 2))}")
        lines = [
            "# Names are those in artists.json and genres.json.",
            'processor = AutoProcessor.from_pretrained("$repository")',
            f"conditions = processor({', '.join(arguments)})",
        ]
    elif config.num_lyric_tokens:
        lines.append(f'conditions["lyric_ids"] = torch.zeros(1, {config.num_lyric_tokens}, dtype=torch.long)')
    if config.conditioner_config:
        lines += [
            f"# The codes of level {config.level + 1} in the same window.",
            f'conditions["upper_codes"] = torch.zeros(1, {config.num_upper_codes}, dtype=torch.long)',
        ]
    return "\n".join(lines)


def _prior_rows(config: JukeboxPriorConfig, label_version: str | None) -> list[tuple[str, str]]:
    seconds = config.sample_length / config.sampling_rate
    labels = timing = lyrics = "none"
    if config.num_artists:
        genres = f"{config.num_genres:,} genres, up to {config.max_genres} for a song"
        version = f"{label_version}: " if label_version else ""
        labels = f"{version}{config.num_artists:,} artists, {genres}"
    if config.num_time_bins:
        timing = f"songs of {config.min_duration:g} s to {config.max_duration:g} s"
    if config.num_lyric_tokens:
        place = "in front of the codes" if config.shares_stack else "read by layers of their own"
        lyrics = f"{config.num_lyric_tokens} characters of {config.lyric_vocab_size - 1}, {place}"
    codes = f"level {config.level}, {config.vocab_size}, one for {config.hop_length} samples"
    rows = [
        ("codes", f"{codes} at {config.sampling_rate} Hz"),
        ("context", f"{config.context_length} codes, {seconds:.2f} s"),
        ("layers", f"{config.num_hidden_layers}, width {config.hidden_size}, heads {config.num_attention_heads}"),
        ("labels", labels),
        ("timing", timing),
        ("lyrics", lyrics),
    ]
    if config.conditioner_config:
        rows.insert(2, ("reads", f"the {config.num_upper_codes} codes of level {config.level + 1} in the same window"))
    return rows
