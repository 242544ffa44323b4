"""Trains Jukebox's VQ-VAE on a folder of music, from scratch or from released weights.

All of transformers' training arguments are understood, too. Run the same command again with --resume_from_checkpoint
true and it goes on where the last checkpoint is, to the same numbers. Several processes: torchrun --nproc_per_node N.
"""

import json
import logging
import sys
from dataclasses import dataclass, field
from pathlib import Path

from torch.utils.data import Subset
from transformers import HfArgumentParser, set_seed

from jukebox_hf import JukeboxFeatureExtractor, JukeboxVQVAEConfig, JukeboxVQVAEModel
from jukebox_hf.training import (
    AudioCrops,
    JukeboxTrainingArguments,
    JukeboxVQVAETrainer,
    LogReconstructions,
    measure_bandwidth,
    read_music,
    split_music,
)


@dataclass
class DataArguments:
    """The music, and which model to train on it."""

    music: str = field(metadata={"help": "Folder with audio files, and metadata.csv if there are labels."})
    held_out_music: str | None = field(
        default=None, metadata={"help": "Folder of music to evaluate on; default: a tenth of the files of --music."}
    )
    model: str | None = field(
        default=None, metadata={"help": "Repository or folder of a VQ-VAE to start from; default: new weights."}
    )
    config: str | None = field(
        default=None,
        metadata={"help": "JSON file of settings for a new model (JukeboxVQVAEConfig); default: the released model's."},
    )
    crop_length: int = field(default=262144, metadata={"help": "Samples of a crop; a multiple of the longest hop."})
    eval_crops: int = field(default=256, metadata={"help": "How many held-out crops an evaluation takes."})
    random_shift: bool = field(default=True, metadata={"help": "Move crops at random."})
    random_blend: bool = field(default=True, metadata={"help": "Mix left and right at random."})


def make_model(data: DataArguments, crops_of: "AudioCrops | None", config: JukeboxVQVAEConfig) -> JukeboxVQVAEModel:
    """Loads the model, or makes a new one whose losses are in units of the data."""
    if data.model is not None:
        return JukeboxVQVAEModel.from_pretrained(data.model)
    for name, value in measure_bandwidth(crops_of).items():
        setattr(config, name, value)
    return JukeboxVQVAEModel(config)


def main():
    parser = HfArgumentParser((DataArguments, JukeboxTrainingArguments), description=__doc__)
    data, arguments = parser.parse_args_into_dataclasses()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    # Before the model is made: its first weights follow from the seed.
    set_seed(arguments.seed)
    if data.model is not None:
        config = JukeboxVQVAEConfig.from_pretrained(data.model)
    else:
        config = JukeboxVQVAEConfig(**(json.loads(Path(data.config).read_text()) if data.config else {}))
    if data.crop_length % config.hop_length:
        raise SystemExit(f"--crop_length {data.crop_length}: give a multiple of the longest hop, {config.hop_length}.")
    music = read_music(data.music)
    if data.held_out_music is not None:
        held_out = read_music(data.held_out_music)
    else:
        music, held_out = split_music(music)
    rate = config.sampling_rate
    crops = AudioCrops(
        music["audio"], data.crop_length, rate, data.random_shift, data.random_blend, seed=arguments.seed
    )
    held_out_crops = AudioCrops(held_out["audio"], data.crop_length, rate, random_shift=False, random_blend=False)
    step = max(1, len(held_out_crops) // data.eval_crops)
    trainer = JukeboxVQVAETrainer(
        model=make_model(data, crops, config),
        args=arguments,
        train_dataset=crops,
        eval_dataset=Subset(held_out_crops, range(0, len(held_out_crops), step)),
        processing_class=JukeboxFeatureExtractor(sampling_rate=rate, hop_length=config.hop_length),
    )
    trainer.add_callback(LogReconstructions(trainer, held_out_crops))
    trainer.train(resume_from_checkpoint=arguments.checkpoint_to_resume)
    trainer.save_model()
    trainer.save_metrics("eval", trainer.evaluate())


if __name__ == "__main__":
    main()
