"""Fine-tunes a top prior of Jukebox on a folder of music with LoRA (peft): small matrices beside the frozen ones.

What is saved is the adapter; peft.PeftModel.from_pretrained(prior, folder) puts it back, and merge_and_unload() makes a
prior of both. Artists and genres that the prior's vocabulary does not know are trained as unknown. All of transformers'
training arguments are understood, too; --resume_from_checkpoint true goes on where the last checkpoint is.
"""

import logging
import sys
from dataclasses import dataclass, field

from peft import LoraConfig, get_peft_model
from train_prior import DataArguments, load_prior, read_split, train
from transformers import HfArgumentParser, set_seed

from jukebox_hf.training import JukeboxTrainingArguments


@dataclass
class AdapterArguments:
    """What is trained."""

    rank: int = field(default=16, metadata={"help": "Rank of the added matrices."})
    alpha: int = field(default=32, metadata={"help": "Their scale times the rank."})
    dropout: float = field(default=0.0, metadata={"help": "Dropout before them."})
    target_modules: list[str] = field(
        default_factory=lambda: ["qkv_proj", "q_proj", "kv_proj", "out_proj", "fc1", "fc2"],
        metadata={"help": "The layers' matrices that get an addition."},
    )


def main():
    parser = HfArgumentParser((DataArguments, AdapterArguments, JukeboxTrainingArguments), description=__doc__)
    data, adapter, arguments = parser.parse_args_into_dataclasses()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    if data.model is None:
        raise SystemExit("--model: name the repository or folder of the top prior to fine-tune.")
    if data.add_names:
        raise SystemExit("--add_names: an adapter leaves the embeddings of names as they are; use train_prior.py.")
    set_seed(arguments.seed)
    prior, processor = load_prior(data)
    if prior.config.conditioner_config is not None:
        raise SystemExit(f"--model {data.model}: this is an upsampler of level {prior.config.level}; give a top prior.")
    config = LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.alpha,
        lora_dropout=adapter.dropout,
        target_modules=adapter.target_modules,
    )
    music, held_out = read_split(data)
    train(get_peft_model(prior, config), processor, data, arguments, music, held_out)


if __name__ == "__main__":
    main()
