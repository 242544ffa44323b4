"""Training of Jukebox's models with transformers' Trainer or with accelerate alone; recipes are in `examples/`."""

from .audio_crops import AudioCrops, measure_bandwidth
from .averaging import WeightAverage
from .listening import LogReconstructions
from .music import read_music, split_music
from .optimization import JukeboxAdam, jukebox_schedule
from .trainer import JukeboxPriorTrainer, JukeboxTrainingArguments, JukeboxVQVAETrainer

__all__ = [
    "AudioCrops",
    "JukeboxAdam",
    "JukeboxPriorTrainer",
    "JukeboxTrainingArguments",
    "JukeboxVQVAETrainer",
    "LogReconstructions",
    "WeightAverage",
    "jukebox_schedule",
    "measure_bandwidth",
    "read_music",
    "split_music",
]
