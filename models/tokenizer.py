"""Text to token ids and back: byte-level BPE (Sennrich et al. 2016; Radford et al. 2019) and BERT's
word pieces (Devlin et al. 2019).

The tokenizers library does the work. A checkpoint stores its tokenizer as JSON; others come from
GPT-2's ``encoder.json`` and ``vocab.bpe``, or from BERT's ``vocab.txt``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from utils import UserError, one_line, read_json

import tokenizers
from tokenizers import Regex, decoders, normalizers, pre_tokenizers

from ckpt import registry
from data.files import read_lines

END_OF_TEXT = "<|endoftext|>"  # GPT-2's one token to start, end and pad a caption
CLS_SEP_PAD = "[CLS]", "[SEP]", "[PAD]"  # BERT's three tokens for the same


class Tokenizer:
    """Text to token ids, ids to text and to words, and the ids that start, end and pad a text."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        self.backend = backend
        self.vocab_size = backend.get_vocab_size()
        names = CLS_SEP_PAD if backend.token_to_id(END_OF_TEXT) is None else [END_OF_TEXT] * 3
        ids = [backend.token_to_id(name) for name in names]
        if None in ids:
            raise UserError(f"the tokenizer has no token {END_OF_TEXT}, nor all of "
                            f"{' '.join(CLS_SEP_PAD)}")
        self.start_id, self.end_id, self.pad_id = ids

    def encode(self, text: str) -> list[int]:
        """The ids of ``text``, without special tokens."""
        text = text.encode("utf-8", "replace").decode()  # JSON can hold half a surrogate pair
        return self.backend.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ``ids``; special tokens are left out."""
        return " ".join(self.backend.decode(ids, skip_special_tokens=True).split())

    def words(self, ids: Sequence[int]) -> list[tuple[str, list[int]]]:
        """The words of ``decode(ids)``, each with the positions in ``ids`` of its tokens; special
        tokens belong to no word.

        The decoder itself tells which tokens make a word, whatever the kind of its pieces: a token
        belongs to the last word of the text decoded up to it, or to the next word if that text ends
        in a space.
        """
        words, so_far, word_of = self.decode(ids).split(), [], {}
        for position, token in enumerate(ids):
            if self.backend.decode([token], skip_special_tokens=True):
                so_far.append(token)
                text = self.backend.decode(so_far, skip_special_tokens=True)
                number = len(text.split()) - (not text[-1:].isspace())
                word_of[position] = min(number, len(words) - 1)
        return [(word, [position for position, index in word_of.items() if index == number])
                for number, word in enumerate(words)]

    def to_json(self) -> str:
        """The tokenizer as JSON, in the format of the tokenizers library."""
        return self.backend.to_str()

    @classmethod
    def from_json(cls, text: str) -> Tokenizer:
        """The tokenizer that ``to_json`` wrote; UserError for a damaged one."""
        try:
            tokenizer = cls(tokenizers.Tokenizer.from_str(text))
            tokenizer.decode(tokenizer.encode("The dog's 2 b-c."))  # some faults show only in use
            return tokenizer
        except (KeyboardInterrupt, UserError):
            raise
        except BaseException as error:  # a panic in the library is not an Exception
            raise UserError(f"the tokenizer cannot be read: {one_line(error)}") from None


def train_bpe(captions: Iterable[str], vocab_size: int) -> Tokenizer:
    """A BPE tokenizer over lower-cased captions. It keeps letters, digits, and apostrophes and
    hyphens within words: the metrics ignore capitals and punctuation, so the captioner need not
    learn them."""
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.normalizer = normalizers.Sequence([
        normalizers.NFKC(), normalizers.Lowercase(),
        normalizers.Replace(Regex(r"\s+(?='s\b)"), ""),  # "the dog 's" is how Flickr8k writes it
        normalizers.Replace(Regex(r"[^\p{L}\p{N}'\-]+"), " "),
        normalizers.Replace(Regex(r"(?<![\p{L}\p{N}])['\-]+|['\-]+(?![\p{L}\p{N}])"), " "),
        normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()])
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    backend.decoder = decoders.ByteLevel()
    backend.train_from_iterator(captions, tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[END_OF_TEXT], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return Tokenizer(backend)


def gpt2_tokenizer(encoder_json: str | Path, vocab_bpe: str | Path) -> Tokenizer:
    """GPT-2's tokenizer, from its two files. UserError that names them if they are not that."""
    try:
        merges = [tuple(line.split(" ")) for line in read_lines(vocab_bpe)
                  if not line.startswith("#version")]
        backend = tokenizers.Tokenizer(tokenizers.models.BPE(read_json(encoder_json), merges))
    except Exception as error:  # the library raises plain Exception for whatever is wrong
        raise UserError(f"{encoder_json} and {vocab_bpe} are no GPT-2 tokenizer: "
                        f"{one_line(error)}") from None
    if backend.token_to_id(END_OF_TEXT) is None:
        raise UserError(f"{encoder_json} has no token {END_OF_TEXT}")
    backend.add_special_tokens([END_OF_TEXT])
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return Tokenizer(backend)


def wordpiece_tokenizer(vocab: str | Path) -> Tokenizer:
    """BERT's lower-casing tokenizer, from its ``vocab.txt``; UserError for any other file.

    Text is decoded as transformers does it: no space before . , ? ! nor around an apostrophe.
    """
    try:
        pieces = {line.rstrip(): index for index, line in enumerate(read_lines(vocab))}
    except UserError as error:
        raise UserError(f"{vocab} is no vocabulary: {error}") from None
    backend = tokenizers.Tokenizer(tokenizers.models.WordPiece(pieces, unk_token="[UNK]"))
    missing = [name for name in ("[UNK]", *CLS_SEP_PAD) if backend.token_to_id(name) is None]
    if missing:
        raise UserError(f"{vocab} is not BERT's vocabulary: it has no {', '.join(missing)}")
    backend.add_special_tokens(["[UNK]", *CLS_SEP_PAD])
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.Sequence([
        decoders.WordPiece(cleanup=True), decoders.Fuse(),
        decoders.Replace(Regex(r" '( |$)"), "'")])
    return Tokenizer(backend)


def gpt2_files(weights: str | Path) -> tuple[Path, Path]:
    """The paths of ``encoder.json`` and ``vocab.bpe`` for these GPT-2 weights. They are looked for
    beside the weights, in ``ckpt/``, then in the hub's cache as ``gpt2``'s ``vocab.json`` and
    ``merges.txt``. UserError if they are nowhere."""
    for folder in (Path(weights).resolve().parent, registry.FOLDER):
        files = folder / "encoder.json", folder / "vocab.bpe"
        if all(file.is_file() for file in files):
            return files
    from huggingface_hub import try_to_load_from_cache

    cached = [try_to_load_from_cache("gpt2", name) for name in ("vocab.json", "merges.txt")]
    if all(isinstance(path, str) for path in cached):
        return Path(cached[0]), Path(cached[1])
    raise UserError(f"the tokenizer of {weights} is missing: put encoder.json and vocab.bpe "
                    "beside it")
