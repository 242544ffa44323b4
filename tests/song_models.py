"""The golden songs' models and inputs."""

import torch
from conftest import golden
from transformers import AutoModel

from jukebox_hf import JukeboxFeatureExtractor, JukeboxModel, JukeboxProcessor, JukeboxTokenizer

SONG_CASES = ("song-5b-style", "song-1b-lyrics-style")


def song_model(case: str, convert) -> JukeboxModel:
    """The model of a golden song, put together from the converted checkpoints of its parts."""
    vqvae = AutoModel.from_pretrained(convert("vqvae-three-level"))
    priors = [
        AutoModel.from_pretrained(convert(part), dtype=torch.float32) for part in golden(case).settings["members"]
    ]
    return JukeboxModel.from_parts(vqvae, priors)


def song_inputs(case: str) -> dict[str, torch.Tensor]:
    """The labels and lyrics of a golden song, as a processor gives them."""
    tensors = golden(case).tensors
    rows = [tensors[f"labels.{level}.raw"] for level in range(3)]
    num_tokens = 16 if "labels.2.full_lyric_tokens" in tensors else 0
    genres = [row[:, 4 : row.shape[1] - (num_tokens if level == 2 else 0)] for level, row in enumerate(rows)]
    slots = max(genre.shape[1] for genre in genres)
    genres = [torch.nn.functional.pad(genre, (0, slots - genre.shape[1]), value=-1) for genre in genres]
    inputs = {
        "artist_ids": torch.stack([row[:, 3] for row in rows], dim=1),
        "genre_ids": torch.stack(genres, dim=1),
        "total_length": rows[2][:, 0],
        "offset": rows[2][:, 1],
    }
    if num_tokens:
        inputs["lyric_ids"] = tensors["labels.2.full_lyric_tokens"]
    return inputs


def song_processor(model: JukeboxModel) -> JukeboxProcessor:
    """A processor with invented names, as many as the model has rows for."""
    priors = []
    for prior in model.config.priors.values():
        version = "v3" if prior.max_genres == 1 else "v2"
        tokenizer = JukeboxTokenizer.from_labels(
            ["The Paper Lanterns", "Vela"],
            ["Country", "Folk"],
            versions=[version],
            max_genres=prior.max_genres,
            num_lyric_tokens=prior.num_lyric_tokens,
        )
        priors.append(JukeboxProcessor(JukeboxFeatureExtractor(hop_length=128), tokenizer))
    return JukeboxProcessor.from_parts(priors)
