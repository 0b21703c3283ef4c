"""Photos to captions JSON: the usual scripts against ours, side by side in one run; one JSON.

    python3 benchmarks/caption.py --images DIR [--captions val.json] [--limit N]
    python3 benchmarks/caption.py --images DIR --model catr --vocab vocab.txt [--weights FILE]

All sides have the same weights (the shipped captioner) and all threads. Time runs from the first
file to the last caption, after the model is loaded. Each side runs in processes of its own, all in
turn; the median of --repeats counts. --sides takes some of them alone; "ratio" and "equal" are 1
where the usual side is not among these. About 3 minutes on two cores; of generate, ours-3-fp32 and
ours-3-bf16 alone 1.5.

loop      one photo at a time, greedy; for every token the whole model runs over photo and caption
once      the same, but the encoder runs once a photo
generate  batches of 8, transformers' ``generate`` with 3 beams on its own GPT-2
ours      ``p2_caption.py predict``, greedy and with 3 beams; float32, and bfloat16 where the CPU
          has it

The usual sides read photos with PIL and timm's transform; generate reads them with a DataLoader of
one worker a core. "equal" is the share of captions equal to those of the usual side with the same
search in float32; "CIDEr" is computed where --captions is given.

--model catr compares the public CATR's loop with ours, both greedy. That loop takes one photo at a
time and runs the whole model, its ResNet with separate norms, over all 128 positions for every
token. Without --weights the weights are arbitrary and end no caption: all sides then write --tokens
tokens (default: the loop's limit, 127). The ratio grows with that number; a caption of COCO has
about 12 tokens.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
SIDES = ("loop", "once", "generate", "ours-1-fp32", "ours-3-fp32", "ours-1-bf16", "ours-3-bf16")


def their_transform(captioner):
    import timm.data

    fields = captioner.preprocessing
    return timm.data.create_transform(
        (3, *fields["size"]), interpolation=fields["interpolation"], mean=fields["mean"],
        std=fields["std"], crop_pct=fields["crop_pct"])


def their_decoder(captioner):
    """transformers' GPT-2 with the captioner's weights."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config, end = captioner.decoder.config, captioner.tokenizer.end_id
    decoder = GPT2LMHeadModel(GPT2Config(
        vocab_size=config.vocab_size, n_positions=config.max_length, n_embd=config.width,
        n_layer=config.layers, n_head=config.heads, add_cross_attention=True, bos_token_id=end,
        eos_token_id=end, pad_token_id=end, is_decoder=True))
    tensors = {key: tensor.t() if key.startswith("h.") and tensor.ndim == 2 else tensor
               for key, tensor in captioner.decoder.state_dict().items()}
    decoder.transformer.load_state_dict(tensors)
    return decoder.eval()


def loop(options, captioner, paths):
    import torch
    from PIL import Image

    transform, decoder = their_transform(captioner), their_decoder(captioner)
    end, texts = captioner.tokenizer.end_id, []
    started = time.perf_counter()
    for path in paths:
        image = transform(Image.open(path).convert("RGB"))[None]
        tokens = torch.tensor([[end]])
        with torch.no_grad():
            memory = captioner.encode(image).features
            for _ in range(captioner.max_length):
                if options.side == "loop":
                    memory = captioner.encode(image).features
                logits = decoder(tokens, encoder_hidden_states=memory, use_cache=False).logits
                tokens = torch.cat([tokens, logits[:, -1:].argmax(-1)], 1)
                if tokens[0, -1] == end:
                    break
        texts.append(captioner.tokenizer.decode(tokens[0].tolist()))
    return time.perf_counter() - started, texts


def catr_loop(options, captioner, paths):
    import numpy as np
    import torch
    from PIL import Image

    resnet, texts = captioner.backbone[0]["body"], []  # its norms are layers of their own
    started = time.perf_counter()
    for path in paths:
        image = Image.open(path).convert("RGB")
        scale = 299 / max(image.size)
        pixels = np.array(image.resize([int(side * scale) for side in image.size]))
        image = (torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255 - 0.5) / 0.5
        tokens = torch.zeros(1, captioner.max_length, dtype=torch.long)
        tokens[0, 0] = captioner.tokenizer.start_id
        with torch.no_grad():
            for position in range(options.tokens or captioner.max_length - 1):
                memory = captioner.memory_of(captioner.input_proj(resnet(image)))
                token = captioner(memory, tokens)[0, position].argmax()
                if token == captioner.tokenizer.end_id:
                    break
                tokens[0, position + 1] = token
        texts.append(captioner.tokenizer.decode(tokens[0].tolist()))
    return time.perf_counter() - started, texts


def generate(options, captioner, paths):
    import torch
    from PIL import Image
    from transformers import VisionEncoderDecoderModel, ViTConfig, ViTModel
    from transformers.modeling_outputs import BaseModelOutput

    transform, decoder = their_transform(captioner), their_decoder(captioner)

    class Photos(torch.utils.data.Dataset):
        def __len__(self):
            return len(paths)

        def __getitem__(self, index):
            return transform(Image.open(paths[index]).convert("RGB"))

    # the wrapper that generate wants; its own encoder never runs
    encoder = ViTModel(ViTConfig(hidden_size=captioner.decoder.config.width, num_hidden_layers=1))
    model = VisionEncoderDecoderModel(encoder=encoder, decoder=decoder).eval()
    end = captioner.tokenizer.end_id
    for name in ("decoder_start_token_id", "eos_token_id", "pad_token_id"):
        setattr(model.generation_config, name, end)
    texts = []
    started = time.perf_counter()
    loader = torch.utils.data.DataLoader(Photos(), batch_size=8, num_workers=os.cpu_count())
    for images in loader:
        with torch.no_grad():
            memory = captioner.encode(images).features
            rows = model.generate(
                encoder_outputs=BaseModelOutput(last_hidden_state=memory), num_beams=3,
                do_sample=False, max_new_tokens=captioner.max_length - 1)
        texts += [captioner.tokenizer.decode(row) for row in rows.tolist()]
    return time.perf_counter() - started, texts


def ours(options, captioner, paths):
    from data.compute import Compute
    from inference.caption import caption_images
    from inference.options import BATCH_SIZES
    from models.decoding import Search

    beams, precision = options.side.split("-")[1:]
    compute = Compute("cpu", precision, BATCH_SIZES["captioner"]["cpu"])
    search = Search(beams=int(beams), max_length=options.tokens or captioner.max_length - 1)
    started = time.perf_counter()
    _, texts, _ = caption_images(captioner, paths, search, compute)
    return time.perf_counter() - started, texts


def open_captioner(options):
    if options.model is None:
        from models.captioner_files import load_captioner

        return load_captioner(options.checkpoint)
    from models.catr import CATR, CATRConfig, open_catr
    from models.tokenizer import wordpiece_tokenizer
    from tests.fixtures.deterministic_fill import fill

    if options.weights:
        return open_catr(options.weights, options.vocab)
    catr = CATR(CATRConfig(), wordpiece_tokenizer(options.vocab)).eval()
    catr.load_state_dict({name: fill(name, tuple(tensor.shape))
                          for name, tensor in catr.state_dict().items()})
    return catr


def run_side(options):
    from data.photos import list_images

    paths = list_images(options.images, options.limit)
    captioner = open_captioner(options)
    sides = {"loop": catr_loop if options.model else loop, "once": loop, "generate": generate}
    side = sides.get(options.side, ours)
    seconds, texts = side(options, captioner, paths)
    with open(options.output, "w") as file:
        json.dump({"seconds": seconds, "captions": dict(zip((path.name for path in paths), texts,
                                                            strict=True))}, file)


def measure(side):
    """The seconds and captions of one run in a process of its own."""
    with tempfile.NamedTemporaryFile(suffix=".json") as output:
        subprocess.run([
            sys.executable, __file__, *sys.argv[1:], "--side", side, "--output", output.name],
            check=True, stderr=subprocess.DEVNULL)
        return json.load(output)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", required=True)
    parser.add_argument("--captions")
    parser.add_argument("--checkpoint", default=str(ROOT / "ckpt/captioner.safetensors"))
    parser.add_argument("--model", choices=["catr"])
    parser.add_argument("--weights")
    parser.add_argument("--vocab")
    parser.add_argument("--tokens", type=int)
    parser.add_argument("--limit", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--sides", nargs="+", choices=SIDES, metavar="SIDE")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--output", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        return run_side(options)
    from data.captions import read_captions
    from data.compute import resolve_precision
    from metrics.captions import score_captions

    sides = ("loop", "ours-1-fp32", "ours-1-bf16") if options.model else SIDES
    if resolve_precision("auto", "cpu") != "bf16":
        sides = [side for side in sides if not side.endswith("bf16")]
    sides = [side for side in sides if side in (options.sides or sides)]
    runs = {side: [] for side in sides}
    for _ in range(options.repeats):  # in turn, so that all see the machine alike
        for side, each in runs.items():
            each.append(measure(side))
    results = {side: {"seconds": statistics.median(run["seconds"] for run in each),
                      "captions": each[0]["captions"]} for side, each in runs.items()}
    report = {"images": options.images, "photos": options.limit, "cores": os.cpu_count()}
    if options.model:
        report |= {"model": options.model, "weights": options.weights or "arbitrary",
                   "tokens": options.tokens or "as many as fit"}
    references = read_captions(options.captions) if options.captions else {}
    for side, result in results.items():
        usual = results.get("generate" if "-3-" in side or side == "generate" else "loop", result)
        mine = result["captions"]
        report[side] = {
            "images_per_s": float(f"{len(mine) / result['seconds']:.3g}"),
            "ratio": round(usual["seconds"] / result["seconds"], 2),
            "equal": sum(mine[name] == usual["captions"][name] for name in mine) / len(mine)}
        if references:
            report[side]["CIDEr"] = score_captions(
                list(mine.values()), [references[name] for name in mine])[0]["CIDEr"]
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
