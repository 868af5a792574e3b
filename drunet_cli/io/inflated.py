"""Reading gzip files."""

import zlib
from typing import BinaryIO, Final

from isal import isal_zlib

GZIP_SIGNATURE: Final = b"\x1f\x8b"
MOST_INFLATED: Final = 1032  # bytes that deflate can make of one (zlib's technical notes)
# What `Inflated` raises for a stream that is not as it was written; isal's stub calls its class an instance.
CORRUPT: Final[tuple[type[Exception], ...]] = (zlib.error, isal_zlib.error)  # type: ignore[assignment]
CHUNK_BYTES: Final = 2**17
_WITH_GZIP_HEADER: Final = 31  # zlib: the largest window, and a gzip header


class Inflated:
    """The content of a gzip file of any number of members.

    gzip.GzipFile takes pieces of 8 kB in Python 3.11 and holds the interpreter's lock between them, so that the four threads
    which read a case wait for one another; and ISA-L inflates faster than zlib.
    """

    def __init__(self, file: BinaryIO, *, chunk_bytes: int = CHUNK_BYTES) -> None:
        self._file = file
        self._chunk_bytes = chunk_bytes
        self._member = isal_zlib.decompressobj(wbits=_WITH_GZIP_HEADER)

    def read(self, n_bytes: int) -> bytes:
        """So many bytes; fewer only at the end, where every check sum has been verified.

        Raises EOFError where the file ends too early, one of CORRUPT where it is damaged.
        """
        pieces = []
        while n_bytes > 0 and (piece := self._some(n_bytes)):
            pieces.append(piece)
            n_bytes -= len(piece)
        return b"".join(pieces)

    def _some(self, most: int) -> bytes:
        """At least one byte; none at the end."""
        while True:
            if self._member.eof:
                compressed = self._member.unused_data
                while not (compressed := compressed.lstrip(b"\0")):  # padding
                    compressed = self._file.read(self._chunk_bytes)
                    if not compressed:
                        return b""
                if len(compressed) < self._chunk_bytes:  # ISA-L misreads a header that comes in two pieces
                    compressed += self._file.read(self._chunk_bytes)
                if not compressed.startswith(GZIP_SIGNATURE[: len(compressed)]):
                    raise zlib.error("something else follows a complete stream")
                self._member = isal_zlib.decompressobj(wbits=_WITH_GZIP_HEADER)
            else:
                compressed = self._member.unconsumed_tail or self._file.read(self._chunk_bytes)
            content = self._member.decompress(compressed, most)
            if content:
                return content
            if not compressed and not self._member.eof:
                raise EOFError
