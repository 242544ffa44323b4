"""Training of Jukebox's models with transformers' Trainer or with accelerate alone; recipes are in `examples/`."""

from .audio_crops import AudioCrops, measure_bandwidth
from .averaging import WeightAverage
from .code_windows import CodeWindows, encode_music
from .listening import LogReconstructions, LogSamples
from .music import read_music, split_music
from .optimization import JukeboxAdam, jukebox_schedule
from .trainer import JukeboxPriorTrainer, JukeboxTrainingArguments, JukeboxVQVAETrainer
from .vocabulary import extend_vocabulary

__all__ = [
    "AudioCrops",
    "CodeWindows",
    "JukeboxAdam",
    "JukeboxPriorTrainer",
    "JukeboxTrainingArguments",
    "JukeboxVQVAETrainer",
    "LogReconstructions",
    "LogSamples",
    "WeightAverage",
    "encode_music",
    "extend_vocabulary",
    "jukebox_schedule",
    "measure_bandwidth",
    "read_music",
    "split_music",
]
