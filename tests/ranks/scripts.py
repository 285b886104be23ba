"""Train, evaluate and segment on every rank, then train on data with a broken image, which fails.

`tests/runtime/test_ranks.py` starts this program under `torchrun`, in a folder that holds two copies of a
dataset: `whole`, and `broken`, whose second validation image is damaged.
"""

import pytest

import eval_base_model
import inference_base_model
import train_base_model
from helpers import SHORT_TRAINING
from lib import cli
from lib.runtime.errors import OtherRankError, RunError
from lib.runtime.ranks import is_first_rank


def training_argv(bsds_root, out_dir):
    """Options of a training run of seconds."""
    return [
        f"--bsds_root={bsds_root}",
        f"--out_dir={out_dir}",
        *SHORT_TRAINING,
        "--train_iter=4",
        "--deepfdim=3",
        "--niter=2",
        "--val_niter=2",
    ]


def evaluation_argv(out_dir):
    """Options of an evaluation of the trained model."""
    return [
        "--bsds_root=whole",
        "--bsds_split=val",
        "--base_model_weights=run/best_model.pth",
        f"--out_dir={out_dir}",
        "--nspix=24",
        "--nworkers=0",
        "--device=cpu",
    ]


def inference_argv():
    """Options of a segmentation of all nine images, one of them damaged."""
    return [
        "--image=broken/BSDS500/data/images",
        "--base_model_weights=none",
        "--nspix=24",
        "--out=overlays",
        "--device=cpu",
    ]


def main():
    train_base_model.main(training_argv("whole", "run"))
    eval_base_model.main(evaluation_argv("two_ranks"))
    with pytest.raises(RunError if is_first_rank() else OtherRankError):
        inference_base_model.main(inference_argv())
    train_base_model.main(training_argv("broken", "broken_run"))


if __name__ == "__main__":
    cli.run(main)
