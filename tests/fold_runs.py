"""The flags of a short run of two folds."""

import shlex

FLAGS = shlex.split(
    "train --train_dir images --output_dir run --variant tiny --image_size 32 --per_device_train_batch_size 8 "
    "--max_steps 2 --save_steps 1 --eval_steps 2 --logging_steps 1 --fold all/2"
)
