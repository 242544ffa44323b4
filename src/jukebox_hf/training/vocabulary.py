"""Gives a trained prior the names of new artists and genres, beside those that it knows."""

from collections.abc import Iterable

import torch
from torch import nn

from ..modeling_jukebox_prior import JukeboxPriorModel
from ..tokenization_jukebox import LABEL_VERSIONS, JukeboxTokenizer


def extend_vocabulary(
    prior: JukeboxPriorModel, tokenizer: JukeboxTokenizer, artists: Iterable[str], genres: Iterable[str]
) -> JukeboxTokenizer:
    """Adds names to a prior's vocabulary: rows that it has keep their weights, new ones start as "unknown" is now.

    Args:
        prior ([`JukeboxPriorModel`]): with labels; its embeddings and configuration grow in place.
        tokenizer ([`JukeboxTokenizer`]): of this prior alone.
        artists, genres (`Iterable[str]`): names, of which those that the vocabulary knows change nothing; a genre of
            several words, under v2, adds each word.

    Returns:
        [`JukeboxTokenizer`]: the prior's tokenizer from now on.

    Raises:
        ValueError: a prior without labels, or a tokenizer of several priors.
    """
    if not prior.config.num_artists:
        raise ValueError("This prior was trained without labels, so it has no vocabulary to extend.")
    if len(tokenizer.versions) > 1:
        raise ValueError(f"versions={tokenizer.versions}: give the tokenizer of this prior alone.")
    (version,) = tokenizer.versions
    rule, embedding = LABEL_VERSIONS[version], prior.label_embedding
    spelled = [rule.normalize(name) for name in artists], [word for name in genres for word in rule.split_genre(name)]
    known = tokenizer.artists[version], tokenizer.genres[version]
    names = [_extend(vocabulary, new) for vocabulary, new in zip(known, spelled)]
    embedding.artists = _grow(embedding.artists, known[0], names[0])
    embedding.genres = _grow(embedding.genres, known[1], names[1])
    prior.config.num_artists = embedding.artists.num_embeddings
    prior.config.num_genres = embedding.genres.num_embeddings
    return JukeboxTokenizer(
        {version: names[0]},
        {version: names[1]},
        tokenizer.lyrics,
        versions=tokenizer.versions,
        max_genres=tokenizer.max_genres,
        num_lyric_tokens=tokenizer.num_lyric_tokens,
    )


def _extend(vocabulary: dict[str, int], names: list[str]) -> dict[str, int]:
    new = [name for name in dict.fromkeys(names) if name and name not in vocabulary]
    first = max(vocabulary.values()) + 1
    return vocabulary | {name: first + index for index, name in enumerate(new)}


@torch.no_grad()
def _grow(embedding: nn.Embedding, known: dict[str, int], names: dict[str, int]) -> nn.Embedding:
    old, first, size = embedding.weight, max(known.values()) + 1, max(names.values()) + 1
    weight = torch.cat([old, old.new_empty(max(0, size - len(old)), old.shape[1])])
    # A name that nobody knows is the best guess at one that is new.
    weight[first:size] = old[0]
    grown = nn.Embedding.from_pretrained(weight, freeze=False)
    grown.init_std = embedding.init_std
    return grown


__all__ = ["extend_vocabulary"]
