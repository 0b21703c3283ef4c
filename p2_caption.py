"""Report question: how good are the captions of an image captioner?

  python3 p2_caption.py score --predictions out.json --captions val.json
  python3 p2_caption.py score --predictions out.json --captions val.json --bootstrap 1000 \\
      --per-image scores.csv

score gives a prediction file the figures that the course's evaluator gives it, without Java, in
about a second: CIDEr, BLEU-1 … BLEU-4 and ROUGE-L of the COCO caption toolkit, tokenized as
Stanford's PTBTokenizer does. On the course's own prediction file, CIDEr is 0.7733517323.

How to read the result: CIDEr weighs the words that tell images apart and goes from 0 to about 10;
good captioners reach 0.9 to 1.3 on COCO. It depends on the set of images: compare figures only on
the same references. With --bootstrap, the 95 % intervals say what another draw of images could
have given; two systems on the same images are best compared image by image (--per-image).
"""

from __future__ import annotations

from utils import (
    ArgumentParser,
    UserError,
    check_writable,
    positive_int,
    run,
    write_csv,
    write_json,
)

import captions
from metrics.captions import NAMES, score_captions


def score(args):
    references = captions.read_captions(args.captions)
    predictions = captions.read_predictions(args.predictions)
    for path in filter(None, (args.output, args.per_image)):
        check_writable(path)
    pairs = captions.match_predictions(predictions, references, args.allow_missing)
    try:
        overall, intervals, per_image = score_captions(
            [predictions[name] for name, _ in pairs], [references[image] for _, image in pairs],
            args.bootstrap or 0, args.seed)
    except ValueError as error:
        raise UserError(str(error)) from None
    if args.per_image:
        write_csv(args.per_image, ["filename", *NAMES, "caption"],
                  [[image, *map(repr, row), predictions[name]]
                   for (name, image), row in zip(pairs, per_image.tolist(), strict=True)])
    result = {"metrics": overall}
    if intervals:
        result["intervals_95"] = intervals
        result["bootstrap"] = {"resamples": args.bootstrap, "seed": args.seed}
    write_json(result | {
        "images": len(pairs),
        "images_left_out": len(references) - len(pairs),
        "tokenizer": "PTB (equal to Stanford CoreNLP 3.4.1's, lower-cased, punctuation dropped)",
        "predictions": str(args.predictions), "captions": str(args.captions),
    }, args.output)
    return 0


def parse_args():
    parser = ArgumentParser(prog="p2_caption.py", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    scoring = commands.add_parser("score", help="the metrics of any prediction file",
                                  description="the metrics of any prediction file")
    scoring.set_defaults(run=score)
    scoring.add_argument("--predictions", required=True, metavar="JSON",
                         help='{"<image name>": "caption", …}')
    scoring.add_argument("--captions", required=True, metavar="JSON",
                         help="references in COCO's format: images and annotations")
    scoring.add_argument("--per-image", metavar="CSV", help="also write each image's scores here")
    scoring.add_argument("--bootstrap", type=positive_int, metavar="N",
                         help="95 %% intervals from N resamples of the images")
    scoring.add_argument("--seed", type=int, default=0, help="seed of the resamples")
    scoring.add_argument("--allow-missing", action="store_true",
                         help="score the images that both files have, whatever else they hold")
    scoring.add_argument("--output", metavar="JSON", help="instead of stdout")
    return parser.parse_args()


def main():
    args = parse_args()
    return args.run(args)


if __name__ == "__main__":
    run(main)
