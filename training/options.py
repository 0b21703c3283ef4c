"""Options of every training command; their defaults come from the recipe."""

from __future__ import annotations

import argparse

from utils import fraction, non_negative, positive_int


def add_recipe_options(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """The options behind ``training.Recipe``, and --resume; returns the group for more of them."""
    group = parser.add_argument_group("recipe")
    group.add_argument("--epochs", type=positive_int, default=10, metavar="N",
                       help="passes over the photos")
    group.add_argument("--optimizer", choices=("adam", "adamw", "sgd", "sam"), default="adamw",
                       help="sam: sharpness-aware minimization over --sam-base")
    group.add_argument("--sam-base", choices=("adam", "adamw", "sgd"), default="sgd",
                       help="the optimizer that takes sam's second step")
    group.add_argument("--sam-rho", type=non_negative, default=0.05, metavar="RHO",
                       help="how far sam climbs")
    group.add_argument("--momentum", type=fraction, default=0.9, metavar="M",
                       help="of sgd")
    group.add_argument("--lr", type=non_negative, default=1e-4, metavar="RATE",
                       help="highest learning rate")
    group.add_argument("--weight-decay", type=non_negative, default=0.05, metavar="W",
                       help="not on norms, biases and position embedding")
    group.add_argument("--schedule", choices=("constant", "cosine", "linear"), default="cosine",
                       help="what follows the warm-up; cosine and linear end at 0")
    group.add_argument("--warmup", type=non_negative, default=1.0, metavar="EPOCHS",
                       help="how long the learning rate rises")
    group.add_argument("--accumulate", type=positive_int, default=1, metavar="N",
                       help="compute each batch in N parts")
    group.add_argument("--clip-norm", type=non_negative, default=1.0, metavar="NORM",
                       help="largest gradient norm; 0 for no clipping")
    group.add_argument("--label-smoothing", type=fraction, default=0.1, metavar="SHARE",
                       help="of the target given to all classes alike")
    group.add_argument("--ema", type=fraction, default=0.0, metavar="DECAY",
                       help="judge and keep the moving average of the weights; 0 for none")
    group.add_argument("--workers", type=int, choices=range(65), default=2, metavar="N",
                       help="processes that read photos; 0 reads in the main one")
    group.add_argument("--resume", action="store_true", help="continue the training in --out")
    return group


def add_photo_options(parser: argparse.ArgumentParser) -> None:
    """Which captioned photos to train on and to choose the best epoch by, and how they are seen."""
    group = parser.add_argument_group("photos")
    group.add_argument("--images", nargs="+", required=True, metavar="DIR",
                       help="photos to train on; several folders are several sources")
    group.add_argument("--captions", nargs="+", required=True, metavar="JSON",
                       help="their captions in COCO's format, a file for each folder")
    group.add_argument("--val-images", nargs="+", metavar="DIR", help="default: --images")
    group.add_argument("--val-captions", nargs="+", metavar="JSON",
                       help="chooses the best epoch by the mean over the files (default: photos "
                            "held out of --captions)")
    group.add_argument("--hold-out", type=positive_int, default=400, metavar="N",
                       help="photos of each source to hold out where there is no --val-captions")
    group.add_argument("--resize", choices=("crop", "squash"),
                       help="the largest centre square, or the whole photo made square "
                            "(default: as the starting point has it)")
    group.add_argument("--features", metavar="DIR",
                       help="where a frozen encoder's features are kept (default: in --out)")
    group.add_argument("--captions-each", type=positive_int, metavar="N",
                       help="learn N captions of each photo an epoch, drawn anew (default: all)")
