"""Which files are images, by their names and by their first bytes, and which of them can be read.

Needs no torch and no Pillow to import.
"""

from __future__ import annotations

import functools
from pathlib import Path

READ = {".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
HEIF = {".heic", ".heif"}
# Kinds that are not read: few photos have them, or they are no pictures of pixels.
OTHER = {".apng", ".arw", ".cr2", ".dng", ".eps", ".exr", ".hdr", ".ico", ".j2k", ".jp2", ".jpe",
         ".jxl", ".nef", ".pbm", ".pcx", ".pgm", ".pnm", ".ppm", ".psd", ".qoi", ".svg", ".tga"}
IMAGE_EXTENSIONS = READ | HEIF | OTHER | {".avif"}

# What files of a kind begin with, and the kind. A dot stands for any byte.
SIGNATURES = [
    (b"\xff\xd8\xff", "JPEG"), (b"\x89PNG\r\n\x1a\n", "PNG"), (b"GIF8", "GIF"),
    (b"RIFF....WEBP", "WebP"), (b"II*\0", "TIFF"), (b"MM\0*", "TIFF"), (b"BM....\0\0\0\0", "BMP"),
    (b"....ftypavif", "AVIF"), (b"....ftypavis", "AVIF"),
    *((b"....ftyp" + brand, "HEIF")
      for brand in (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")),
    (b"\0\0\0\x0cJXL ", "JPEG XL"), (b"\xff\x0a", "JPEG XL"), (b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (b"8BPS", "Photoshop"), (b"<svg", "SVG"),
]


@functools.cache
def readable_extensions() -> frozenset[str]:
    """The extensions of the files that are read: with AVIF where this Pillow has it, and HEIF where
    pillow-heif is installed, which is told to Pillow here."""
    from PIL import features

    found = READ | ({".avif"} if features.check("avif") else set())
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return frozenset(found)
    register_heif_opener()
    return frozenset(found | HEIF)


def kinds_read() -> str:
    """The kinds of files that are read, for a message."""
    return " ".join(sorted(extension[1:] for extension in readable_extensions()))


def kind_of(path: Path) -> str | None:
    """What kind of image the first bytes of a file say that it is; None for every other file."""
    try:
        with open(path, "rb") as file:
            head = file.read(12)
    except OSError:
        return None
    return next((kind for signature, kind in SIGNATURES if len(head) >= len(signature) and all(
        expected in (ord("."), byte) for expected, byte in zip(signature, head, strict=False))),
        None)
