"""Report question: how well can a photo be described by a transformer that looks at it?

The captioner is a vision transformer whose patches a small GPT-2 sees through cross-attention.

  python3 p2_caption.py predict --images DIR --output captions.json
  python3 p2_caption.py eval --images DIR --captions val.json --bootstrap 1000
  python3 p2_caption.py score --predictions out.json --captions val.json --per-image scores.csv
  python3 p2_caption.py pretrain --captions FILE … --out runs/language --pretrained
  python3 p2_caption.py train --images DIR --captions train.json --out runs/mine \\
      --checkpoint runs/language/best.safetensors
  python3 p2_caption.py predict --model catr --weights FILE --vocab vocab.txt --images DIR …

Without --checkpoint, predict and eval use $HW3_P2_CKPT, else the default of ckpt/checkpoints.json,
which ships: ckpt/flickr8k_captioner.safetensors. score gives a prediction file the figures of the
course's evaluator, without Java, in about a second: CIDEr, BLEU-1 … BLEU-4 and ROUGE-L of the COCO
caption toolkit, tokenized as Stanford's PTBTokenizer does.
eval, and score --images DIR, add CLIPScore (Hessel et al. 2021), by ckpt/clip_vit_tiny.safetensors
or the CLIP that --clip names; those of different CLIPs, or prefixes, are not comparable.

What to expect: README.md, "Results", names figures, data and time for each command.
How to read the result: CIDEr weighs the words that tell images apart and goes from 0 to about 10;
good captioners reach 0.9 to 1.3 on COCO, people themselves 0.78 on Flickr8k (one caption of train
against the other four). It depends on the set of images: compare figures only on the same
references. With --bootstrap, the 95 % intervals say what another draw of images could have given;
two systems on the same images are best compared image by image (--per-image).
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from utils import (
    EXIT_SOME_UNREADABLE,
    ArgumentParser,
    UserError,
    check_writable,
    fraction,
    non_negative,
    positive_int,
    printable,
    resolve_run_options,
    run,
    warn,
    write_csv,
    write_json,
)

import numpy as np

from ckpt import registry
from data.captions import (
    captioned_images,
    language_texts,
    match_predictions,
    read_captions,
    read_predictions,
    read_texts,
    training_photos,
)
from data.photos import check_images, list_images, refuse_equal_stems, report_unreadable
from data.transform import AUGMENTATIONS
from inference.options import add_captioner_options, add_run_options, add_search_options
from metrics.captions import NAMES, describe, score_captions
from metrics.clipscore import PREFIX, mean_interval
from training.options import add_photo_options

HERE = Path(__file__).resolve().parent
SHOWN = 20  # captions that are printed; the JSON has all

# --- commands -----------------------------------------------------------------------------------


def predict(args):
    paths = list_images(args.images, args.limit)
    refuse_equal_stems(paths)
    check_writable(args.output)
    from inference.caption import (  # torch takes seconds: after what needs none
        caption_images,
        open_captioner,
    )
    from models.decoding import Search

    captioner = open_captioner(args)
    readable, texts, unreadable = caption_images(
        captioner, paths, Search.from_args(args), args)
    report_unreadable(readable, unreadable)
    write_json({path.stem: text for path, text in zip(readable, texts, strict=True)}, args.output)
    for path, text in list(zip(readable, texts, strict=True))[:SHOWN]:
        print(f"{printable(path.name):24} {text}")
    if len(readable) > SHOWN:
        print(f"… and {len(readable) - SHOWN} more in {printable(args.output)}")
    return EXIT_SOME_UNREADABLE if unreadable else 0


def evaluate(args):
    images = captioned_images(args.images, args.captions, args.limit)
    if args.record and args.model:
        raise UserError("--record writes into a checkpoint of this project; convert makes one")
    copied_from = read_texts(args.train_captions) if args.train_captions else None
    for path in filter(None, (args.output, args.per_image)):
        check_writable(path)
    from inference.caption import caption_images, open_captioner
    from models.decoding import Search

    captioner = open_captioner(args)
    search = Search.from_args(args)
    readable, texts, unreadable = caption_images(captioner, list(images), search, args)
    report_unreadable(readable, unreadable)
    result = scored([path.name for path in readable], texts, [images[path] for path in readable],
                    args, readable if args.clip or registry.CLIP.is_file() else [])
    result |= {"reads": describe(texts, copied_from), "checkpoint": str(args.checkpoint),
               "captions": str(args.captions), "search": dataclasses.asdict(search),
               "device": args.device, "precision": args.precision, "unreadable": len(unreadable)}
    if args.record:
        from models.checkpoint import record_measurement

        record_measurement(args.checkpoint, args.record, {
            key: result[key] for key in ("metrics", "images", "search", "precision", "clipscore")
            if key in result})
    write_json(result, args.output)
    return EXIT_SOME_UNREADABLE if unreadable else 0


def score(args):
    references = read_captions(args.captions)
    predictions = read_predictions(args.predictions)
    for path in filter(None, (args.output, args.per_image)):
        check_writable(path)
    pairs = match_predictions(predictions, references, args.allow_missing)
    left_out = len(references) - len(pairs)
    kept = min(args.limit or len(pairs), len(pairs))
    pairs = [pairs[i * len(pairs) // kept] for i in range(kept)]
    names = [image for _, image in pairs]
    if args.images:
        captioned_images(args.images, args.captions)  # all are there
    elif args.clip:
        raise UserError("--clip needs --images: CLIPScore looks at the photos")
    result = scored(names, [predictions[name] for name, _ in pairs],
                    [references[image] for image in names], args,
                    [Path(args.images) / name for name in names] if args.images else [])
    write_json(result | {
        "images_left_out": left_out,
        "predictions": str(args.predictions), "captions": str(args.captions),
    }, args.output)
    return EXIT_SOME_UNREADABLE if result.get("unreadable") else 0


def scored(names, texts, references, args, photos):
    """The metrics of captions as both eval and score print them, CLIPScore where ``photos`` has
    their files; writes --per-image."""
    try:
        overall, intervals, per_image = score_captions(texts, references, args.bootstrap or 0,
                                                       args.seed)
    except ValueError as error:
        raise UserError(str(error)) from None
    result, columns = {"metrics": overall, "images": len(names)}, list(NAMES)
    if intervals:
        result["intervals_95"] = intervals
        result["bootstrap"] = {"resamples": args.bootstrap, "seed": args.seed}
    if photos:
        each = add_clipscore(result, photos, texts, args)
        per_image, columns = np.column_stack([per_image, each]), [*NAMES, "CLIPScore"]
    if args.per_image:
        write_csv(args.per_image, ["filename", *columns, "caption"],
                  [[name, *map(repr, row), text]
                   for name, row, text in zip(names, per_image.tolist(), texts, strict=True)])
    return result | {
        "tokenizer": "PTB (equal to Stanford CoreNLP 3.4.1's, lower-cased, punctuation dropped)"}


def add_clipscore(result, photos, texts, args):
    """Put CLIPScore and what it was computed with into ``result``; returns each image's, nan where
    the photo cannot be read."""
    from inference.clip import prepare_clip
    from inference.scoring import about_clipscore, caption_scores

    clip = prepare_clip(args.clip or registry.CLIP, args)
    scores, unreadable = caption_scores(clip, photos, texts, args, args.clip_prefix)
    seen = scores[~np.isnan(scores)]
    report_unreadable(seen, unreadable)
    result["metrics"]["CLIPScore"] = float(seen.mean())
    if args.bootstrap:
        result["intervals_95"]["CLIPScore"] = mean_interval(seen, args.bootstrap, args.seed)
    result["clipscore"] = about_clipscore(clip, args.clip_prefix) | {"images": len(seen)}
    result["unreadable"] = len(unreadable)
    return scores


def train(args):
    """Train a captioner; returns its history (see training.fit)."""
    import torch

    from models.captioner_files import save_captioner
    from models.decoding import Search
    from training.caption import caption_task
    from training.loop import check_out, describe_training, fit_recipe

    images, val = training_photos(args)
    check_out(args.out, args.resume)
    check_images([*images, *(path for source in val for path in source)])
    resolve_run_options(args)
    torch.manual_seed(args.seed)
    captioner = starting_point(args, list(images.values()))
    captioner.encoder.requires_grad_(args.encoder_lr > 0)
    if args.resize:
        captioner.preprocessing |= {"resize": args.resize, "crop_pct": 1.0}
    args.features = args.features or str(Path(args.out) / "features")
    about = describe_training(args, {
        "captions": [Path(path).name for path in args.captions], "images": len(images)})
    about["started_from"] = {key: captioner.metadata[key] for key in (*about, "started_from")
                             if key in captioner.metadata}

    def save(path, model, row):
        save_captioner(path, model, **about, metrics=row)

    task = caption_task(captioner, images, val, Search.from_args(args), save, args)
    return fit_recipe(captioner, task, about["recipe"], args)


def pretrain(args):
    """Train a tokenizer and a decoder on captions alone; returns its history."""
    import torch

    from models.captioner_files import save_captioner
    from training.language import language_task
    from training.loop import check_out, describe_training, fit_recipe

    texts, val_texts = language_texts(args.captions, args.hold_out)
    texts = texts[:args.limit]
    check_out(args.out, args.resume)
    resolve_run_options(args)
    torch.manual_seed(args.seed)
    base = fresh_base(args, texts)
    base.encoder.requires_grad_(False)
    about = describe_training(args, {"captions": [Path(path).name for path in args.captions],
                                     "texts": len(texts)})

    def save(path, model, row):
        save_captioner(path, model, **about, metrics=row)

    task = language_task(base, texts, val_texts, save, args)
    return fit_recipe(base, task, about["recipe"], args)


def convert(args):
    from models.captioner_files import save_captioner
    from models.catr import open_catr

    check_writable(args.output)
    save_captioner(args.output, open_catr(args.weights, args.vocab), about=args.about)
    warn(f"wrote {args.output}")


def blend(args):
    from models.captioner_files import blend_captioners, save_captioner

    check_writable(args.output)
    captioner = blend_captioners(*args.checkpoint, args.share)
    kept = {key: captioner.metadata[key] for key in ("recipe", "trained_on", "about",
                                                     "started_from") if key in captioner.metadata}
    save_captioner(args.output, captioner, **kept, blended_with={
        "share": args.share, **describe_checkpoint(args.checkpoint[1])})
    warn(f"wrote {args.output}: {1 - args.share:g} of the first, {args.share:g} of the second")


# --- what the commands share --------------------------------------------------------------------


def starting_point(args, captions):
    """The captioner that training starts from: a checkpoint's weights, public CATR or GPT-2
    weights, or a fresh decoder with a tokenizer made of ``captions``."""
    from models.captioner_files import load_captioner
    from models.vit import build_vit
    from models.vit_gpt2 import add_cross_attention, gpt2_base

    source, without = (
        ("checkpoint", ["weights", "pretrained", "vocab", *FRESH_DECODER]) if args.checkpoint else
        ("decoder", ["vocab", *FRESH_DECODER]) if args.decoder else
        ("model catr", ["pretrained", *FRESH_DECODER]) if args.model == "catr" else
        ("model", ["vocab"]))
    unused = [name for name in without if getattr(args, name)]
    if unused:
        raise UserError(f"--{unused[0].replace('_', '-')} has no effect on what "
                        f"--{source} gives; leave it out")
    if source == "model catr":
        from models.catr import open_catr

        base = open_catr(args.weights, args.vocab)
    elif args.checkpoint:
        base = load_captioner(args.checkpoint, "base", "captioner")
    elif args.decoder:
        vit = build_vit(args.model, args.pretrained, args.weights)
        base = gpt2_base(vit, args.decoder)
    else:
        base = fresh_base(args, [text for texts in captions for text in texts])
    return add_cross_attention(base, args.dropout)


def fresh_base(args, texts):
    from models.gpt2 import GPT2Config
    from models.tokenizer import train_bpe
    from models.vit_gpt2 import build_captioner

    vocab_size, width, layers, heads = (getattr(args, name) or default
                                        for name, default in FRESH_DECODER.items())
    if width % heads:
        raise UserError(f"--heads {heads} does not divide --width {width}")
    tokenizer = train_bpe(texts, vocab_size)
    config = GPT2Config(tokenizer.vocab_size, args.max_length or 40, width, layers, heads,
                        cross_width=None, dropout=args.dropout)
    return build_captioner(args.model, config, tokenizer, pretrained=args.pretrained,
                           weights=args.weights)


def describe_checkpoint(path):
    from models.checkpoint import read_tensors

    metadata = read_tensors(path)[1]
    return {key: metadata[key] for key in ("recipe", "trained_on") if key in metadata}


# --- command line -------------------------------------------------------------------------------


def make_parser():
    parser = ArgumentParser(prog="p2_caption.py", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name, function, help):
        command = commands.add_parser(name, help=help, description=help)
        command.set_defaults(run=function)
        return command

    predicting = add("predict", predict, "caption a folder of photos: a JSON of stem and caption")
    evaluating = add("eval", evaluate, "the metrics of a captioner, as JSON")
    for command in (predicting, evaluating):
        add_run_options(command, None)
        command.add_argument("--images", default=str(HERE / "samples" / "scenes"),
                             metavar="DIR",
                             help="folder of photos, without its subfolders")
        add_captioner_options(command, registry.default("p2"))
        add_search_options(command)
    predicting.add_argument("--output", required=True, metavar="JSON",
                            help="file to write, whole or not at all")
    evaluating.add_argument("--captions", required=True, metavar="JSON",
                            help="references in COCO's format, of images in --images")
    evaluating.add_argument("--train-captions", metavar="JSON",
                            help="also say how many captions are copies of these")
    evaluating.add_argument("--record", metavar="NAME",
                            help="write the result into the checkpoint, as measured on NAME")

    scoring = add("score", score, "the metrics of any prediction file")
    scoring.add_argument("--predictions", required=True, metavar="JSON",
                         help='{"<image name>": "caption", …}')
    scoring.add_argument("--captions", required=True, metavar="JSON",
                         help="references in COCO's format: images and annotations")
    add_run_options(scoring, None)
    scoring.add_argument("--images", metavar="DIR", help="the photos: also report CLIPScore")
    scoring.add_argument("--allow-missing", action="store_true",
                         help="score the images that both files have, whatever else they hold")
    for command in (evaluating, scoring):
        command.add_argument("--per-image", metavar="CSV",
                             help="also write each image's scores here")
        command.add_argument("--bootstrap", type=positive_int, metavar="N",
                             help="95 %% intervals from N resamples of the images")
        command.add_argument("--clip", metavar="FILE|FOLDER|NAME",
                             help="the CLIP behind CLIPScore: a clip checkpoint, transformers' "
                                  f"folder or hub name (default: {registry.CLIP.name})")
        command.add_argument("--clip-prefix", nargs="?", const=PREFIX, default="", metavar="TEXT",
                             help="put before each caption for CLIPScore; without TEXT, "
                                  f'"{PREFIX}", as its paper has it (default: nothing, as the '
                                  "course's evaluator has it)")
        command.add_argument("--output", metavar="JSON", help="instead of stdout")

    pretraining = add("pretrain", pretrain, "train tokenizer and decoder on captions alone")
    add_run_options(pretraining, 128)
    pretraining.add_argument("--captions", nargs="+", required=True, metavar="JSON",
                             help="COCO's format, {name: [captions]}, or .txt with one a line")
    pretraining.add_argument("--hold-out", type=positive_int, metavar="N",
                             help="choose the best epoch by the captions of the photos that "
                                  "train --hold-out N holds out, and learn none of them "
                                  "(default: a twentieth of all captions chooses)")
    pretraining.add_argument("--max-length", type=positive_int, default=40, metavar="N",
                             help="tokens that a caption can have")
    add_training_options(pretraining)

    converting = add("convert", convert, "make the public CATR one checkpoint of this project")
    for name, help in (("weights", "the public v3 file"), ("vocab", "vocab.txt of its BERT"),
                       ("output", "file to write")):
        converting.add_argument(f"--{name}", required=True, metavar="FILE", help=help)
    converting.add_argument("--about", metavar="TEXT", help="data and licence, kept in it")

    blending = add("blend", blend, "one captioner between two stages of a training")
    blending.add_argument("--checkpoint", nargs=2, required=True, metavar="FILE",
                          help="before and after")
    blending.add_argument("--share", type=fraction, default=0.25, metavar="SHARE",
                          help="of the second's weights")
    blending.add_argument("--output", required=True, metavar="FILE", help="file to write")

    training = add("train", train, "train a captioner, or train one further")
    add_run_options(training, 64)
    add_photo_options(training)
    start = training.add_mutually_exclusive_group()
    start.add_argument("--checkpoint", metavar="FILE",
                       help="start from this captioner or pretrained base")
    start.add_argument("--decoder", metavar="FILE",
                       help="start from GPT-2 weights (decoder_model.bin, with encoder.json and "
                            "vocab.bpe beside it)")
    training.add_argument("--vocab", metavar="FILE", help="CATR's word pieces (vocab.txt)")
    add_search_options(training, beams=1, no_repeat_ngram=0)
    recipe = add_training_options(training)
    recipe.add_argument("--objective", choices=("xe", "cider"), default="xe",
                        help="cross-entropy, or self-critical training on CIDEr")
    recipe.add_argument("--samples", type=int, choices=range(2, 33), default=5, metavar="N",
                        help="captions that self-critical training draws of each photo")
    recipe.add_argument("--encoder-lr", type=non_negative, default=0.0, metavar="FACTOR",
                        help="the encoder's lr is this times --lr; 0 freezes it")
    recipe.add_argument("--augment", nargs="+", choices=AUGMENTATIONS, default=["none"],
                        metavar="NAME", help="any of " + " ".join(AUGMENTATIONS))
    return parser


def main():
    args = make_parser().parse_args()
    status = args.run(args)
    return status if isinstance(status, int) else 0  # train and pretrain return their history


if __name__ == "__main__":
    run(main)
