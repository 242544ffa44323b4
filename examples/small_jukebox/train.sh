#!/bin/sh
# Renders the music and trains every part of the shipped model from scratch: sh examples/small_jukebox/train.sh FOLDER
# Needs `pip install jukebox-hf[chorales,training,probe]` and Debian's fluidsynth and fluid-soundfont-gm.
# Run again, it goes on where it was.
set -e
out=${1:?Give the folder that the music, the parts and the model go to.}
recipe=$(dirname "$0")
python=${PYTHON:-python}
music="--music $out/music/train --held_out_music $out/music/test"
usual="--use_cpu true --bf16 true --report_to tensorboard --logging_steps 50 --save_steps 500 --save_total_limit 2
  --resume_from_checkpoint true --disable_tqdm true"

test -d "$out/music/test" || $python "$recipe/render_chorales.py" "$out/music"

$python "$recipe/../train_vqvae.py" $music $usual --config "$recipe/vqvae.json" --output_dir "$out/vqvae" \
  --crop_length 8192 --per_device_train_batch_size 8 --learning_rate 1e-3 --ema_decay 0.995 \
  --anneal_start 2000 --anneal_steps 2000

# prior LEVEL ANNEAL_START ANNEAL_STEPS
prior() {
  $python "$recipe/../train_prior.py" $music $usual --vqvae "$out/vqvae" --level "$1" \
    --config "$recipe/prior_$1.json" --output_dir "$out/prior_$1" --encoding_processes 2 \
    --per_device_train_batch_size 8 --learning_rate 1e-3 --weight_decay 0.01 --ema_decay 0.995 \
    --anneal_start "$2" --anneal_steps "$3"
}
prior 2 1000 2000
prior 1 500 1500
prior 0 500 1500

$python "$recipe/assemble.py" --vqvae "$out/vqvae" --priors "$out/prior_0" "$out/prior_1" "$out/prior_2" \
  --output "$out/model" --temperature 0.9
$python "$recipe/evaluate.py" "$out/model" "$out/music" --output "$out/figures" \
  --vqvae "$out/vqvae" --training-songs 594 --excerpts 240
