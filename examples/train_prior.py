"""Trains a prior of Jukebox, a top prior or an upsampler, on a folder of music, from scratch or from released weights.

The music is encoded once with --vqvae and kept in the cache of datasets. All of transformers' training arguments are
understood, too. Run the same command again with --resume_from_checkpoint true and it goes on where the last checkpoint
is, to the same numbers. Several processes: torchrun --nproc_per_node N.
"""

import json
import logging
import sys
from dataclasses import dataclass, field
from pathlib import Path

import datasets
from torch.utils.data import Subset
from transformers import GenerationConfig, HfArgumentParser, PreTrainedModel, set_seed

from jukebox_hf import (
    JukeboxFeatureExtractor,
    JukeboxPriorConfig,
    JukeboxPriorModel,
    JukeboxProcessor,
    JukeboxTokenizer,
    JukeboxVQVAEConfig,
    JukeboxVQVAEModel,
)
from jukebox_hf.modeling_jukebox_prior import SAMPLING
from jukebox_hf.training import (
    CodeWindows,
    JukeboxPriorTrainer,
    JukeboxTrainingArguments,
    LogSamples,
    encode_music,
    extend_vocabulary,
    read_music,
    split_music,
)


@dataclass
class DataArguments:
    """The music, and which model to train on it."""

    music: str = field(metadata={"help": "Folder with audio files; metadata.csv has their artist, genre and lyrics."})
    vqvae: str = field(metadata={"help": "Repository or folder of the VQ-VAE whose codes are learned."})
    held_out_music: str | None = field(
        default=None, metadata={"help": "Folder of music to evaluate on; default: a tenth of the files of --music."}
    )
    level: int = field(default=2, metadata={"help": "Level of the codes, 0 the finest."})
    model: str | None = field(
        default=None, metadata={"help": "Repository or folder of a prior to start from; default: new weights."}
    )
    config: str | None = field(
        default=None,
        metadata={"help": "JSON file of settings for a new model (JukeboxPriorConfig); default: the 5b prior's."},
    )
    add_names: bool = field(
        default=False,
        metadata={"help": "Add the music's artists and genres to those that --model knows; else they are unknown."},
    )
    label_version: str = field(default="v3", metadata={"help": "Rules for names of a new model: v2, v3 or none."})
    eval_windows: int = field(default=256, metadata={"help": "How many held-out windows an evaluation takes."})
    log_samples: bool = field(default=True, metadata={"help": "Draw windows at each evaluation, for TensorBoard."})
    encoding_processes: int | None = field(default=None, metadata={"help": "Processes that encode the music."})


def new_prior(
    data: DataArguments, music: datasets.Dataset, vqvae: JukeboxVQVAEConfig
) -> tuple[JukeboxPriorModel, JukeboxProcessor | None]:
    """Makes a prior for this VQ-VAE and, where it has labels, the vocabulary of the names that the music has."""
    settings = json.loads(Path(data.config).read_text()) if data.config else {}
    hop = vqvae.hop_lengths[data.level]
    settings |= {"level": data.level, "vocab_size": vqvae.codebook_size, "hop_length": hop}
    settings |= {"sampling_rate": vqvae.sampling_rate}
    if data.label_version == "none":
        settings |= {"num_artists": 0, "num_genres": 0, "num_time_bins": 0}
        return _initialise(JukeboxPriorConfig(**settings)), None
    tokenizer = JukeboxTokenizer.from_labels(
        sorted({name for name in music["artist"] if name}),
        sorted({name for name in music["genre"] if name}),
        versions=[data.label_version],
        max_genres=settings.setdefault("max_genres", 5 if data.label_version == "v2" else 1),
        num_lyric_tokens=settings.get("num_lyric_tokens", 0),
    )
    settings["num_artists"] = max(tokenizer.artists[data.label_version].values()) + 1
    settings["num_genres"] = max(tokenizer.genres[data.label_version].values()) + 1
    if settings.get("num_lyric_tokens"):
        settings["lyric_vocab_size"] = tokenizer.vocab_size
    config = JukeboxPriorConfig(**settings)
    extractor = JukeboxFeatureExtractor(sampling_rate=vqvae.sampling_rate, hop_length=vqvae.hop_length)
    return _initialise(config), JukeboxProcessor(extractor, tokenizer, config.sample_length)


def _initialise(config: JukeboxPriorConfig) -> JukeboxPriorModel:
    model = JukeboxPriorModel(config)
    # As the released ones: transformers' own default would take the likeliest code every time.
    model.generation_config = GenerationConfig(**SAMPLING)
    return model


def load_prior(data: DataArguments) -> tuple[JukeboxPriorModel, JukeboxProcessor | None]:
    """Loads a prior with the vocabulary that belongs to it, in fp32: --bf16 and --fp16 keep a copy of that."""
    model = JukeboxPriorModel.from_pretrained(data.model, dtype="float32")
    return model, JukeboxProcessor.from_pretrained(data.model) if model.config.num_artists else None


def make_windows(
    data: DataArguments, music: datasets.Dataset, config: JukeboxPriorConfig, processor: JukeboxProcessor | None, **how
) -> CodeWindows:
    """Encodes the music, unless that was done before, and cuts it to windows."""
    levels = [config.level] if config.conditioner_config is None else [config.level, config.level + 1]
    songs = encode_music(music, data.vqvae, levels, data.encoding_processes)
    return CodeWindows(songs, config, processor.tokenizer if processor is not None else None, **how)


def train(
    model: PreTrainedModel,
    processor: JukeboxProcessor | None,
    data: DataArguments,
    arguments: JukeboxTrainingArguments,
    music: datasets.Dataset,
    held_out: datasets.Dataset,
):
    """Trains a prior, or an adapter of one, saves it, and evaluates it on what was held out."""
    config = model.config
    # The other processes find in the cache what the first one encoded.
    with arguments.main_process_first(desc="Encoding"):
        windows = make_windows(data, music, config, processor, seed=arguments.seed)
        held_out_windows = make_windows(data, held_out, config, processor, random_shift=False)
    step = max(1, len(held_out_windows) // data.eval_windows)
    trainer = JukeboxPriorTrainer(
        model=model,
        args=arguments,
        train_dataset=windows,
        eval_dataset=Subset(held_out_windows, range(0, len(held_out_windows), step)),
        processing_class=processor,
    )
    if data.log_samples:
        trainer.add_callback(LogSamples(trainer, held_out_windows, JukeboxVQVAEModel.from_pretrained(data.vqvae)))
    trainer.train(resume_from_checkpoint=arguments.checkpoint_to_resume)
    trainer.save_model()
    trainer.save_metrics("eval", trainer.evaluate())


def read_split(data: DataArguments) -> tuple[datasets.Dataset, datasets.Dataset]:
    """Reads the music to train on and the music that is held out."""
    if data.held_out_music is None:
        return split_music(read_music(data.music))
    return read_music(data.music), read_music(data.held_out_music)


def main():
    parser = HfArgumentParser((DataArguments, JukeboxTrainingArguments), description=__doc__)
    data, arguments = parser.parse_args_into_dataclasses()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    # Before the model is made: its first weights follow from the seed.
    set_seed(arguments.seed)
    music, held_out = read_split(data)
    if data.model is not None:
        model, processor = load_prior(data)
        if data.add_names:
            if processor is None:
                raise SystemExit(f"--add_names: {data.model} was trained without labels; leave it out.")
            names = ({name for name in music[column] if name} for column in ("artist", "genre"))
            processor.tokenizer = extend_vocabulary(model, processor.tokenizer, *map(sorted, names))
    else:
        model, processor = new_prior(data, music, JukeboxVQVAEConfig.from_pretrained(data.vqvae))
    train(model, processor, data, arguments, music, held_out)


if __name__ == "__main__":
    main()
