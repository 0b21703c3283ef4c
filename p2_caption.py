"""Report question: how well can a transformer describe a photo in a sentence?

The captioner is a vision transformer whose patch features a small GPT-2 reads by cross-attention.

  python3 p2_caption.py predict --images DIR --output captions.json
  python3 p2_caption.py eval --images DIR --captions val.json --bootstrap 1000
  python3 p2_caption.py eval --images DIR --captions val.json --vary beam=1,3,5 --out runs/beams
  python3 p2_caption.py compare A.safetensors B.safetensors --images DIR --captions val.json
  python3 p2_caption.py score --predictions out.json --captions val.json --per-image scores.csv
  python3 p2_caption.py pretrain --captions FILE … --out runs/language --pretrained
  python3 p2_caption.py train --images DIR --captions train.json --out runs/mine \\
      --checkpoint runs/language/best.safetensors
  python3 p2_caption.py predict --model catr --weights FILE --vocab vocab.txt --images DIR …

Without --checkpoint, predict and eval use $HW3_P2_CKPT, else the default of ckpt/checkpoints.json,
which is ckpt/captioner.safetensors; with --decoder they take a PEFT file, as peft_caption.py does.
score computes for a prediction file what the course's
evaluator computes, without Java: CIDEr, BLEU-1 … BLEU-4 and ROUGE-L of the COCO caption toolkit,
tokenized as Stanford's PTBTokenizer does. eval, and score --images DIR, add CLIPScore (Hessel et
al. 2021), computed with ckpt/clip_vit_tiny.safetensors or the CLIP that --clip names; scores of
different CLIPs or prefixes are not comparable.

A beam search ends with several captions. --rerank WEIGHT, 4 by default for the shipped captioner,
writes the one with the highest score + WEIGHT times its cosine with the photo, by a CLIP.

What to expect: the shipped captioner has CIDEr 0.626 on 1,000 photos of Flickr8k val, which eval
computes in a minute or two on two CPU cores. docs/captions.md has the commands, docs/results.md
every figure with its data and interval, docs/training.md how long each stage of the training took.
How to read the result: CIDEr gives weight to the words that tell images apart and goes from 0 to
about 10; good captioners reach 0.9 to 1.3 on COCO, people 0.78 on Flickr8k (one caption of train
against the other four). It depends on the set of images: compare only values on the same
references. With --bootstrap, the 95 % intervals show how much another sample of images could
change a value; compare two systems on the same images image by image (--per-image).
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # PYTHONSAFEPATH leaves it out
from utils import EXIT_SOME_UNREADABLE, UserError, run, warn

from ckpt import registry
from data.captions import (
    captioned_images,
    match_predictions,
    photos_called,
    read_captions,
    read_predictions,
    read_texts,
    write_predictions,
)
from data.compute import Compute
from data.files import check_outputs
from data.folders import spread
from inference.options import (
    BATCH_SIZES,
    add_caption_comparison,
    add_captioner_options,
    add_clip_prefix_option,
    add_command,
    add_images_option,
    add_json_option,
    add_prediction_options,
    add_run_options,
    add_scoring_options,
    add_search_options,
    add_vary_options,
    complete_captioner_options,
    complete_rerank,
)
from inference.parser import Parser, fraction
from inference.results import of_captions, write_result
from metrics.captions import describe
from training.options import add_caption_training, add_language_training

SCENES = Path(__file__).resolve().parent / "samples" / "scenes"

# Torch takes seconds to import, so commands import what needs it after they have checked files.

# --- captions and their scores ------------------------------------------------------------------


def predict(args):
    """Write the captions of a folder of photos."""
    complete_captioner_options(args)
    args, = complete_rerank(args)
    from data.photos import list_images, refuse_equal_stems

    paths = list_images(args.images, args.limit)
    refuse_equal_stems(paths)
    check_outputs({"--output": args.output},
                  {"--images": paths, "--checkpoint": args.checkpoint, "--weights": args.weights,
                   "--vocab": args.vocab, "--base": args.base, "--decoder": args.decoder,
                   "--rerank-clip": args.rerank_clip})
    from inference.caption import caption_work, open_captioner
    from inference.predictions import predictions
    from models.decoding import Search

    compute = Compute.from_args(args, BATCH_SIZES["captioner"])
    captioner = open_captioner(args, compute)
    captions = caption_work(captioner, Search.from_args(args), compute)
    with predictions(args, paths, captioner.views, captions, compute, "caption") as done:
        write_predictions(done.rows, done.count, args.output)
    return EXIT_SOME_UNREADABLE if done.unreadable else 0


def evaluate(args):
    """Print the scores of a captioner on photos with references; with --vary, of several searches.
    """
    complete_captioner_options(args)
    if args.vary or args.out:
        from inference.search_table import compare_searches

        return compare_searches(args)
    args, = complete_rerank(args)
    images = captioned_images(args.images, args.captions, args.limit)
    if args.record and args.model:
        raise UserError("--record writes into a checkpoint of this project; make one with convert")
    train_captions = read_texts(args.train_captions) if args.train_captions else None
    check_outputs({"--json": args.json, "--per-image": args.per_image},
                  {"--images": list(images), "--captions": args.captions,
                   "--train-captions": args.train_captions, "--checkpoint": args.checkpoint,
                   "--weights": args.weights, "--vocab": args.vocab, "--clip": args.clip,
                   "--base": args.base, "--decoder": args.decoder,
                   "--rerank-clip": args.rerank_clip})
    from inference.caption import open_captioner
    from inference.scoring import Scoring, default_clip, evaluate_captioner, record_scores
    from models.checkpoint import check_recordable
    from models.decoding import Search

    if args.record:
        check_recordable(args.checkpoint)
    compute = Compute.from_args(args, BATCH_SIZES["captioner"])
    scoring = Scoring.from_args(args, args.clip or default_clip())
    result, captions = evaluate_captioner(open_captioner(args, compute), images,
                                          Search.from_args(args), compute, scoring, args.per_image)
    result |= {"reads": describe(captions, train_captions), "captions": args.captions,
               "checkpoint": args.weights if args.model else args.checkpoint}
    if args.record:
        record_scores(args.checkpoint, args.record, result)
    write_result(result, of_captions(result), args.json)
    return EXIT_SOME_UNREADABLE if result["unreadable"] else 0


def compare(args):
    """Captioners on the same photos: their difference, and the photos on which they differ most."""
    from inference.caption_compare import compare_captioners

    return compare_captioners(args)


def score(args):
    """Print the scores of a file of predictions; needs no torch without CLIPScore."""
    references = read_captions(args.captions)
    predictions = read_predictions(args.predictions)
    check_outputs({"--json": args.json, "--per-image": args.per_image},
                  {"--predictions": args.predictions, "--captions": args.captions,
                   "--images": args.images and [Path(args.images) / name for name in references],
                   "--clip": args.clip})
    for option, value in (("--clip", args.clip), ("--clip-prefix", args.clip_prefix)):
        if value and not args.images:
            raise UserError(f"{option} needs --images: CLIPScore compares captions with photos")
    pairs = match_predictions(predictions, references, args.allow_missing)
    left_out = len(references) - len(pairs)
    pairs = spread(pairs, args.limit)
    names = [image for _, image in pairs]
    captions = [predictions[name] for name, _ in pairs]
    from inference.scoring import Scoring, measure, write_per_image

    photos = photos_called(names, args.images) if args.images else []
    scoring = Scoring.from_args(args, (args.clip or registry.CLIP) if args.images else None)
    clip_scorer = scoring.clip_scorer(scoring.open_clip(), photos)
    result, each = measure(captions, [references[name] for name in names], scoring, clip_scorer)
    if args.per_image:
        write_per_image(args.per_image, names, each, captions)
    unreadable = {"unreadable": len(clip_scorer.unreadable)} if clip_scorer else {}
    result |= unreadable | {"images_left_out": left_out, "predictions": args.predictions,
                            "captions": args.captions}
    write_result(result, of_captions(result), args.json)
    return EXIT_SOME_UNREADABLE if any(unreadable.values()) else 0


# --- checkpoints --------------------------------------------------------------------------------


def pretrain(args):
    """Train a tokenizer and a decoder on captions alone."""
    from training import language

    language.pretrain(args)


def train(args):
    """Train a captioner on photos."""
    from training.caption import train_captioner

    train_captioner(args)


def convert(args):
    """Write the public CATR weights as a checkpoint of this project."""
    check_outputs({"--output": args.output}, {"--weights": args.weights, "--vocab": args.vocab})
    from models.captioner_files import save_captioner
    from models.catr import open_catr

    save_captioner(args.output, open_catr(args.weights, args.vocab), about=args.about)
    warn(f"wrote {args.output}")


def blend(args):
    """Average the weights of two stages of one training."""
    check_outputs({"--output": args.output}, {"--checkpoint": args.checkpoint})
    from models.captioner_files import blend_captioners, save_captioner
    from models.checkpoint import read_tensors

    captioner = blend_captioners(*args.checkpoint, args.share)
    second = read_tensors(args.checkpoint[1])[1]
    kept = ("recipe", "trained_on", "about", "started_from")
    save_captioner(
        args.output, captioner,
        **{key: captioner.metadata[key] for key in kept if key in captioner.metadata},
        blended_with={"share": args.share, **{key: second[key] for key in ("recipe", "trained_on")
                                              if key in second}})
    warn(f"wrote {args.output}: {1 - args.share:g} of the first, {args.share:g} of the second")


# --- command line -------------------------------------------------------------------------------


def make_parser():
    parser = Parser(prog="p2_caption.py", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    predicting = add_command(commands, "predict", predict,
                             "caption a folder of photos: a JSON of stem and caption")
    evaluating = add_command(commands, "eval", evaluate, "the scores of a captioner")
    add_images_option(predicting, SCENES)
    evaluating.add_argument("--images", default=str(SCENES), metavar="DIR",
                            help="folder of photos, without its subfolders")
    for command in (predicting, evaluating):
        add_run_options(command, None)
        add_captioner_options(command)
        add_search_options(command, rerank=True)
    add_prediction_options(predicting, "JSON")
    evaluating.add_argument("--captions", required=True, metavar="JSON",
                            help="references in COCO's format, of images in --images")
    evaluating.add_argument("--train-captions", metavar="JSON",
                            help="also say how many captions are copies of these")
    evaluating.add_argument("--record", metavar="NAME",
                            help="write the result into the checkpoint, as measured on NAME")

    add_vary_options(evaluating)
    add_caption_comparison(add_command(commands, "compare", compare,
                                       "captioners on the same photos: which is better, and where"))
    scoring = add_command(commands, "score", score, "the scores of any prediction file")
    scoring.add_argument("--predictions", required=True, metavar="JSON",
                         help='{"<image name>": "caption", …}')
    scoring.add_argument("--captions", required=True, metavar="JSON",
                         help="references in COCO's format: images and annotations")
    add_run_options(scoring, None)
    scoring.add_argument("--images", metavar="DIR", help="the photos: also compute CLIPScore")
    scoring.add_argument("--allow-missing", action="store_true",
                         help="score the images that both files have, and leave out the others")
    for command in (evaluating, scoring):
        command.add_argument("--per-image", metavar="CSV",
                             help="also write each image's scores into this file")
        add_scoring_options(command)
        add_clip_prefix_option(command)
        add_json_option(command, "--output")

    add_language_training(add_command(commands, "pretrain", pretrain,
                                      "train tokenizer and decoder on captions alone"))
    add_caption_training(add_command(commands, "train", train,
                                     "train a captioner, or continue with one"))

    converting = add_command(commands, "convert", convert,
                             "write the public CATR as a checkpoint of this project")
    for name, help in (("weights", "the public v3 file"), ("vocab", "vocab.txt of its BERT"),
                       ("output", "file to write")):
        converting.add_argument(f"--{name}", required=True, metavar="FILE", help=help)
    converting.add_argument("--about", metavar="TEXT", help="data and licence, kept in it")

    blending = add_command(commands, "blend", blend,
                           "average the weights of two stages of one training")
    blending.add_argument("--checkpoint", nargs=2, required=True, metavar="FILE",
                          help="the earlier and the later stage")
    blending.add_argument("--share", type=fraction, default=0.25, metavar="SHARE",
                          help="of the later stage's weights")
    blending.add_argument("--output", required=True, metavar="FILE", help="file to write")
    return parser


def main():
    args = make_parser().parse_args()
    return args.run(args)


if __name__ == "__main__":
    run(main)
