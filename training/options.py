"""Options of every training command; their defaults come from ``training.recipe``. No torch."""

from __future__ import annotations

import argparse

from data.augmentation import AUGMENTATIONS
from inference.options import (
    add_averaged_option,
    add_base_options,
    add_peft_size_options,
    add_run_options,
    add_search_options,
)
from inference.parser import fraction, natural, non_negative, positive_int, share
from training.recipe import CaptionOptions, Recipe, optimizer_defaults
from training.teacher_options import add_teacher_options

# A decoder that no checkpoint gives.
FRESH_DECODER = {"vocab_size": 4096, "width": 192, "layers": 4, "heads": 3}
MAX_LENGTH = 40  # tokens that a caption of such a decoder can have
# Highest learning rate of each PEFT method, cross-attention included, which is new in all of them.
PEFT_LR = {"cross": 3e-3, "adapter": 3e-3, "prefix": 3e-3, "lora": 3e-3, "full": 1.5e-3}


# --- what all trainings share ---------------------------------------------------------------------


def add_output_options(parser: argparse.ArgumentParser) -> None:
    """Where a training is written, and what is kept in its checkpoints."""
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for everything written")
    parser.add_argument("--about", metavar="TEXT", help="data and licence, kept in the checkpoint")


def add_recipe_options(
    parser: argparse.ArgumentParser, own_lr: str | None = None, resume: bool = True
) -> argparse._ArgumentGroup:
    """The options behind ``Recipe``, and --resume; returns the group for more of them. ``own_lr``
    says what --lr is by default where that is not the optimizer's."""
    group = parser.add_argument_group("recipe")
    group.add_argument("--epochs", type=positive_int, default=Recipe.epochs, metavar="N",
                       help="passes over the data")
    group.add_argument("--optimizer", choices=("adam", "adamw", "sgd", "sam"),
                       default=Recipe.optimizer,
                       help="sam: sharpness-aware minimization over --sam-base")
    group.add_argument("--sam-base", choices=("adam", "adamw", "sgd"), default=Recipe.sam_base,
                       help="the optimizer that takes sam's second step")
    group.add_argument("--sam-rho", type=non_negative, default=Recipe.sam_rho, metavar="RHO",
                       help="radius of sam's first step")
    group.add_argument("--momentum", type=fraction, default=Recipe.momentum, metavar="M",
                       help="momentum of sgd")
    group.add_argument("--lr", type=non_negative, metavar="RATE",
                       help="highest learning rate (default: "
                            f"{own_lr or optimizer_defaults('lr')})")
    group.add_argument("--weight-decay", type=non_negative, metavar="W",
                       help="not on norms, biases and position embedding (default: "
                            f"{optimizer_defaults('weight_decay')})")
    group.add_argument("--schedule", choices=("constant", "cosine", "linear"),
                       default=Recipe.schedule,
                       help="what follows the warm-up; cosine and linear end at 0")
    group.add_argument("--warmup", type=non_negative, default=Recipe.warmup, metavar="EPOCHS",
                       help="epochs in which the learning rate rises")
    group.add_argument("--accumulate", type=positive_int, default=Recipe.accumulate, metavar="N",
                       help="compute each batch in N parts")
    group.add_argument("--clip-norm", type=non_negative, default=Recipe.clip_norm, metavar="NORM",
                       help="largest gradient norm; 0 for no clipping")
    group.add_argument("--ema", type=fraction, default=Recipe.ema, metavar="DECAY",
                       help="evaluate and keep the moving average of the weights; 0 for none")
    group.add_argument("--workers", type=int, choices=range(65), default=Recipe.workers,
                       metavar="N", help="processes that read photos; 0 reads in the main one")
    if resume:
        group.add_argument("--resume", action="store_true", help="continue the training in --out")
    return group


def add_label_smoothing(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--label-smoothing", type=fraction, default=0.1, metavar="SHARE",
                       help="share of the target that is spread over all classes")


def add_augment_option(
    group: argparse._ArgumentGroup, default: list[str], more: str = ""
) -> None:
    group.add_argument("--augment", nargs="+", choices=AUGMENTATIONS, metavar="NAME",
                       default=default, help="any of " + " ".join(AUGMENTATIONS) + more)


# --- classifiers ----------------------------------------------------------------------------------


def add_classifier_training(parser: argparse.ArgumentParser) -> None:
    """Options of ``p1_vit_classify.py train`` and ``sweep``."""
    add_run_options(parser, Recipe.batch_size)
    parser.add_argument("--train", required=True, metavar="DIR", help="photos to train on")
    add_output_options(parser)
    validation = parser.add_mutually_exclusive_group()
    validation.add_argument("--val", metavar="DIR", help="photos that choose the best epoch")
    validation.add_argument("--hold-out", action="store_true",
                            help="validate on a tenth of --train, equally many of each label")
    parser.add_argument("--labels", metavar="CSV",
                        help="filename,label (default: the labels in the file names)")
    parser.add_argument("--names", metavar="JSON",
                        help="label to name (default: id2label.json in --train or beside it)")

    model = parser.add_argument_group("model")
    model.add_argument("--model", default="vit_tiny_patch16_224", metavar="NAME|FILE",
                       help="timm's name of any image classifier, hf:owner/name, or a file")
    model.add_argument("--pretrained", action=argparse.BooleanOptionalAction,
                       help="start from --weights, or from timm's for this name (network)")
    model.add_argument("--weights", metavar="FILE", help="start from this state dict or checkpoint")
    add_averaged_option(model)
    model.add_argument("--image-size", type=positive_int, metavar="PIXELS",
                       help="input side; a ViT's position embedding is resampled to it")
    model.add_argument("--resize", choices=("crop", "squash"), default="crop",
                       help="centre crop, or the whole photo made square")
    model.add_argument("--crop-pct", type=share, metavar="SHARE",
                       help="share of the shorter side that the centre crop keeps")
    model.add_argument("--num-heads", type=positive_int, metavar="N", help="heads in each layer")
    model.add_argument("--drop-path", type=fraction, default=0.0, metavar="RATE",
                       help="rate of stochastic depth")
    model.add_argument("--freeze", action="store_true", help="train the head only")

    recipe = add_recipe_options(parser)
    add_label_smoothing(recipe)
    recipe.add_argument("--layer-decay", type=share, default=1.0, metavar="FACTOR",
                        help="each layer's lr is this times that of the layer above")
    recipe.add_argument("--balance", action="store_true",
                        help="learn as if every label were equally frequent (logit adjustment)")
    add_augment_option(recipe, ["crop", "flip"])
    recipe.add_argument("--mixup", type=non_negative, default=0.0, metavar="ALPHA",
                        help="mix photos in pairs by a Beta(ALPHA, ALPHA) share; 0 for none")
    add_teacher_options(parser)


# --- captioners -----------------------------------------------------------------------------------


def add_photo_options(parser: argparse.ArgumentParser) -> None:
    """Captioned photos to train and to validate on, and how they are prepared."""
    group = parser.add_argument_group("photos")
    group.add_argument("--images", nargs="+", required=True, metavar="DIR",
                       help="photos to train on; several folders are several sources")
    group.add_argument("--captions", nargs="+", required=True, metavar="JSON",
                       help="their captions in COCO's format, a file for each folder")
    group.add_argument("--val-images", nargs="+", metavar="DIR",
                       help="folders of --val-captions (default: --images)")
    group.add_argument("--val-captions", nargs="+", metavar="JSON",
                       help="captions to validate on: the best epoch has the highest mean CIDEr "
                            "over the files (default: photos held out of --captions)")
    group.add_argument("--hold-out", type=positive_int, default=400, metavar="N",
                       help="photos of each source to hold out where there is no --val-captions")
    group.add_argument("--resize", choices=("crop", "squash"),
                       help="the largest centre square, or the whole photo made square "
                            "(default: as in what the training starts from)")
    group.add_argument("--features", metavar="DIR",
                       help="where a frozen encoder's features are kept (default: in --out)")
    group.add_argument("--captions-each", type=positive_int, metavar="N",
                       help="train on N captions of each photo an epoch, drawn anew "
                            "(default: on all)")


def _add_decoder_options(
    parser: argparse.ArgumentParser, other_model: str = ""
) -> argparse._ArgumentGroup:
    """The encoder, the size of a fresh decoder, and the recipe, whose group is returned."""
    model = parser.add_argument_group("model")
    model.add_argument("--model", default="vit_tiny_patch16_224", metavar="NAME",
                       help="timm's name of the encoder" + other_model)
    model.add_argument("--pretrained", action="store_true",
                       help="give the encoder timm's weights for this name (network)")
    model.add_argument("--weights", metavar="FILE", help="give the encoder these weights")
    for name, default in FRESH_DECODER.items():
        model.add_argument(f"--{name.replace('_', '-')}", type=positive_int, metavar="N",
                           help=f"of a fresh decoder (default: {default})")
    model.add_argument("--dropout", type=fraction, default=0.1, metavar="RATE",
                       help="dropout in the decoder")
    recipe = add_recipe_options(parser)
    add_label_smoothing(recipe)
    return recipe


def add_language_training(parser: argparse.ArgumentParser) -> None:
    """Options of ``p2_caption.py pretrain``."""
    add_run_options(parser, 128, unit="captions")
    add_output_options(parser)
    parser.add_argument("--captions", nargs="+", required=True, metavar="JSON",
                        help="COCO's format, {name: [captions]}, or .txt with one a line")
    parser.add_argument("--hold-out", type=positive_int, metavar="N",
                        help="validate on the captions of the photos that train --hold-out N holds "
                             "out, and train on none of them (default: a twentieth of all)")
    parser.add_argument("--max-length", type=positive_int, default=MAX_LENGTH, metavar="N",
                        help="tokens that a caption can have")
    _add_decoder_options(parser)


def add_caption_training(parser: argparse.ArgumentParser) -> None:
    """Options of ``p2_caption.py train``."""
    add_run_options(parser, 64)
    add_output_options(parser)
    add_photo_options(parser)
    start = parser.add_mutually_exclusive_group()
    start.add_argument("--checkpoint", metavar="FILE",
                       help="start from this captioner or pretrained base")
    start.add_argument("--decoder", metavar="FILE",
                       help="start from GPT-2 weights (decoder_model.bin, with encoder.json and "
                            "vocab.bpe beside it)")
    parser.add_argument("--vocab", metavar="FILE", help="CATR's word pieces (vocab.txt)")
    add_search_options(parser, beams=1, no_repeat_ngram=0)
    recipe = _add_decoder_options(parser, ", or catr with --weights and --vocab")
    recipe.add_argument("--objective", choices=("xe", "cider"), default=CaptionOptions.objective,
                        help="cross-entropy, or self-critical training on CIDEr")
    recipe.add_argument("--samples", type=int, choices=range(2, 33),
                        default=CaptionOptions.samples, metavar="N",
                        help="captions that self-critical training draws of each photo")
    recipe.add_argument("--encoder-lr", type=non_negative, default=CaptionOptions.encoder_lr,
                        metavar="FACTOR", help="the encoder's lr is this times --lr; 0 freezes it")
    add_augment_option(recipe, list(CaptionOptions.augment))


# --- CLIP -----------------------------------------------------------------------------------------


def add_clip_words_training(parser: argparse.ArgumentParser) -> None:
    """Options of ``clip_zeroshot.py words``."""
    _add_clip_options(parser, batch_size=256, wordnet_needed=True, texts="phrases in an epoch")
    parser.add_argument("--captions", nargs="+", default=[], metavar="JSON",
                        help="the tokenizer learns from these captions, and names that they "
                             "mention are drawn more often")
    parser.add_argument("--images", nargs="+", default=[], metavar="DIR",
                        help="photos of the first --captions, a folder for each file: a name also "
                             "means what the photos show whose captions mention it")
    for name, default, what in (
            ("vocab-size", 4096, "tokens that the tokenizer learns"),
            ("context", 32, "tokens that the text tower reads"),
            ("width", 192, "width of the text tower"), ("layers", 3, "layers of the text tower"),
            ("heads", 3, "attention heads in each of its layers")):
        parser.add_argument(f"--{name}", type=positive_int, default=default, metavar="N", help=what)


def add_clip_pairs_training(parser: argparse.ArgumentParser) -> None:
    """Options of ``clip_zeroshot.py train``."""
    recipe = _add_clip_options(parser, batch_size=64, wordnet_needed=False,
                               texts="phrases that the word loss draws from")
    recipe.add_argument("--encoder-lr", type=non_negative, default=0.1, metavar="FACTOR",
                        help="the image tower's lr is this times --lr")
    parser.add_argument("--checkpoint", required=True, metavar="FILE",
                        help="start from this checkpoint, of words or of train")
    parser.add_argument("--images", nargs="+", default=[], metavar="DIR",
                        help="photos of --captions, a folder for each file")
    parser.add_argument("--captions", nargs="+", default=[], metavar="JSON", help="COCO's format")
    parser.add_argument("--freeze", type=natural, default=0, metavar="N",
                        help="do not train the image tower's first N blocks")
    parser.add_argument("--crop-pct", type=share, metavar="SHARE",
                        help="share of the shorter side that the centre crop keeps (default: as "
                             "the checkpoint has it)")
    add_augment_option(parser, ["crop", "flip"])
    parser.add_argument("--shrink", type=fraction, default=0.0, metavar="SHARE",
                        help="share of the photos that are scaled down and up again")
    parser.add_argument("--shrink-to", type=positive_int, default=32, metavar="PIXELS",
                        help="their smallest side when scaled down; the largest is three times it")
    parser.add_argument("--teacher", type=non_negative, default=1.0, metavar="WEIGHT",
                        help="weight of the distillation loss from the frozen image tower (needs "
                             "--weights or --pretrained)")
    parser.add_argument("--words", type=non_negative, default=0.5, metavar="WEIGHT",
                        help="weight of the word loss (needs --wordnet)")


def _add_clip_options(
    parser: argparse.ArgumentParser, batch_size: int, wordnet_needed: bool, texts: str
) -> argparse._ArgumentGroup:
    """What both trainings of CLIP have, ``texts`` for the help of --texts; returns the group of the
    recipe."""
    add_run_options(parser, batch_size)
    add_output_options(parser)
    head = parser.add_argument_group("image tower, with its head over ImageNet's 1,000 classes")
    head.add_argument("--vit", default="vit_tiny_patch16_224", metavar="NAME",
                      help="its name in timm")
    head.add_argument("--pretrained", action="store_true",
                      help="give it timm's weights for this name (network)")
    head.add_argument("--weights", metavar="FILE", help="give it these weights, head included")
    parser.add_argument("--pairs", nargs="+", default=[], metavar="CSV",
                        help="image,text: paths beside the CSV, names of what they show; with "
                             "--name-vectors, similar names mean it too")
    names = parser.add_argument_group("names")
    names.add_argument("--wordnet", metavar="DIR", required=wordnet_needed,
                       help="WordNet's folder with data.noun and index.sense")
    names.add_argument("--name-vectors", metavar="FILE.npz",
                       help="names (N,) and vectors (N, D) of a sentence encoder, the 1,000 class "
                            "names among them: a name also means the classes with similar vectors")
    names.add_argument("--name-scale", type=non_negative, default=16.0, metavar="SCALE",
                       help="softmax scale of this similarity")
    names.add_argument("--word-scale", type=non_negative, default=12.0, metavar="SCALE",
                       help="softmax scale of the word targets")
    names.add_argument("--texts", type=positive_int, default=100_000, metavar="N", help=texts)
    return add_recipe_options(parser)


# --- PEFT -----------------------------------------------------------------------------------------


def add_peft_training(parser: argparse.ArgumentParser, resume: bool = True) -> None:
    """Options of ``peft_caption.py train`` and ``compare``, which resumes without being asked."""
    add_run_options(parser, 64)
    add_base_options(parser)
    method = add_peft_size_options(parser)
    method.add_argument("--allow-large", action="store_true",
                        help="train 35 million parameters and more")
    method.add_argument("--dropout", type=fraction, default=0.1, metavar="RATE",
                        help="dropout in the decoder")
    add_photo_options(parser)
    add_search_options(parser, beams=1, no_repeat_ngram=0)
    add_output_options(parser)
    rates = ", ".join(f"{name} {rate:g}" for name, rate in PEFT_LR.items())
    recipe = add_recipe_options(parser, own_lr=f"the method's own: {rates}", resume=resume)
    add_label_smoothing(recipe)
    add_augment_option(recipe, list(CaptionOptions.augment),
                       "; photos that change are encoded anew in every epoch")
    parser.set_defaults(workers=0, warmup=0.3)
