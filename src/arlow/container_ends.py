"""Is a video file all there? What FFmpeg reads without a word, though the file says that it goes on.

In: a file and its size in bytes. Out: nothing, or what is missing, in a few words. Only headers are read.

- MP4: the boxes (ISO/IEC 14496-12) and Matroska: the segment (RFC 8794) tell their lengths.
- GIF: a chain of blocks that ends with a trailer (GIF89a, appendix B).
- FLV: a chain of tags, each followed by its length (FLV 10.1, E.3).
- MPEG-TS: packets of one size, 188 bytes or, with a time or a checksum, 192 or 204 (ISO/IEC 13818-1).

A transport stream or an FLV file that ends between two packets or tags is shorter, and nobody can tell; nor can one
tell of a recording of unknown length.
"""

from __future__ import annotations

from typing import BinaryIO


MP4_BOXES = (
    b"ftyp",
    b"moov",
    b"mdat",
    b"moof",
    b"free",
    b"skip",
    b"wide",
    b"styp",
    b"sidx",
    b"mfra",
    b"uuid",
    b"udta",
)
SYNC = 0x47  # of a transport stream: the first byte of each packet
EXTENSION, IMAGE, TRAILER = b"!", b",", b";"  # blocks of a GIF
SHORTER = "truncated, the file is shorter than its headers say"


def what_is_missing(file: BinaryIO, size: int) -> str | None:
    """Why a video file cannot be complete, or None where its headers do not tell. `size` is that of the file."""
    head = file.read(4096)
    if head.startswith(b"\x1a\x45\xdf\xa3"):
        return SHORTER if _end_of_segment(head) > size else None
    if head[4:8] in MP4_BOXES:
        return SHORTER if _end_of_boxes(file, size) > size else None
    if head.startswith((b"GIF87a", b"GIF89a")):
        return None if _gif_ends(file) else "truncated or corrupt, the last block of the GIF is missing or unfinished"
    if head.startswith(b"FLV"):
        return None if _flv_ends(file, size) else "truncated, the last tag of the FLV file is unfinished"
    if (packet := _packet_size(head)) and size % packet:
        return f"truncated, the file ends {size % packet} bytes into a packet of {packet}"
    return None


def _end_of_segment(head: bytes) -> int:
    """Where the segment of a Matroska or WebM file ends (RFC 8794: ID, then size), 0 for a live recording."""
    at = head.find(b"\x18\x53\x80\x67") + 4
    if not 4 <= at < len(head) - 8 or head[at] == 0:
        return 0
    length = 9 - head[at].bit_length()  # bytes of the size field
    unknown = (1 << 7 * length) - 1
    value = int.from_bytes(head[at : at + length], "big") & unknown
    return 0 if value == unknown else at + length + value


def _end_of_boxes(file: BinaryIO, size: int) -> int:
    """Where the last of the boxes ends that an MP4 file consists of: length, then type."""
    at = 0
    while at < size:
        file.seek(at)
        head = file.read(16)
        length = int.from_bytes(head[:4], "big")
        if length == 1:
            length = int.from_bytes(head[8:], "big")
        if length < 8 or head[4:8] not in MP4_BOXES:  # up to the end, or bytes behind the video
            return 0
        at += length
    return at


def _gif_ends(file: BinaryIO) -> bool:
    """Whether the blocks of a GIF follow one another up to its trailer; what comes behind that does not matter."""
    file.seek(10)
    _skip_colours(file, file.read(1))
    file.seek(2, 1)
    while block := file.read(1):
        if block == TRAILER:
            return True
        if block == EXTENSION:
            file.seek(1, 1)  # which one
        elif block == IMAGE:
            file.seek(8, 1)  # place and size
            _skip_colours(file, file.read(1))
            file.seek(1, 1)  # code size
        elif block != b"\0":  # an empty block too many is common
            return False
        if block != b"\0":
            while (length := file.read(1)) not in (b"", b"\0"):  # sub-blocks, up to an empty one
                file.seek(length[0], 1)
    return False


def _skip_colours(file: BinaryIO, flags: bytes) -> None:
    """Skip the colour table that the flags of a screen or an image announce, and nothing at the end of the file."""
    if flags and flags[0] & 0x80:
        file.seek(3 << (flags[0] & 7) + 1, 1)


def _flv_ends(file: BinaryIO, size: int) -> bool:
    """Whether the last tag of an FLV file is there in full; the length behind it may be missing."""
    file.seek(5)
    at = int.from_bytes(file.read(4), "big") + 4
    while at < size:
        file.seek(at + 1)
        at += 11 + int.from_bytes(file.read(3), "big") + 4
    return at <= size + 4


def _packet_size(head: bytes) -> int:
    """Bytes per packet of a transport stream, 0 for anything else."""
    for packet, first in ((188, 0), (192, 4), (204, 0)):
        places = head[first::packet]
        if len(places) >= 4 and set(places) == {SYNC}:
            return packet
    return 0
