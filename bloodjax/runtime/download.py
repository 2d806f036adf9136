"""Downloads into the user's cache: whole and as published, or not there."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import pooch

from bloodjax.runtime.progress import progress

TIMEOUT = (3, 20)  # seconds to connect, and between two packets
pooch.get_logger().setLevel("WARNING")  # the bar says what it would


class Unavailable(OSError):
    """Data or weights are not on this machine and could not be fetched."""


def fetch(urls: Sequence[str], file: str, known_hash: str, size: int = 0) -> Path:
    """`file` in bloodjax's cache, downloaded from the first of `urls` that has it if need be.

    Args:
        known_hash: "sha256:" or "md5:" and hex digits; what differs is not kept.
        size: bytes that it has; 0: not known beforehand.

    Raises:
        OSError: none has it, or there is no network or no space; all reasons in one line.
    """

    def stream(url: str, part: str, _: object) -> None:
        """What pooch calls with a temporary file."""
        import requests  # pooch's own dependency, slow to import

        try:
            reply = requests.get(url, stream=True, timeout=TIMEOUT)
        except requests.ConnectionError:
            raise OSError("no connection to the server") from None
        with reply, open(part, "wb") as out:
            reply.raise_for_status()
            total = size or int(reply.headers.get("content-length", 0))
            with progress(f"download {file} (bytes)", total) as advance:
                for block in reply.iter_content(1 << 18):
                    advance(out.write(block))
                    if size and out.tell() > size:
                        break
            if size and out.tell() != size:
                raise OSError(f"the server sends another file: expected {size} bytes")

    folder, reasons = pooch.os_cache("bloodjax"), []
    for url in urls:
        try:
            return Path(pooch.retrieve(url, known_hash, file, folder, downloader=stream))
        except (OSError, ValueError) as error:  # ValueError: not the published bytes
            reasons.append(textwrap.shorten(str(error), 150))
    raise OSError("; ".join(dict.fromkeys(reasons)))
