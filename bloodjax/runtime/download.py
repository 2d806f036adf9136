"""Downloads into the user's cache: whole and as published, or not there."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pooch

from bloodjax.runtime.progress import progress

TIMEOUT = (3, 20)  # seconds to connect, and between two packets
pooch.get_logger().setLevel("WARNING")  # the progress bar replaces its messages


class UnavailableError(OSError):
    """Data or weights are not on this machine and could not be fetched."""


def fetch(urls: Sequence[str], file: str, known_hash: str, size: int = 0) -> Path:
    """Return `file` in bloodjax's cache; download it from the first of `urls` that has it.

    Args:
        urls: addresses of the same file.
        file: its name in the cache.
        known_hash: "sha256:" or "md5:" and hex digits; another file is not kept.
        size: its bytes; 0 if unknown.

    Raises:
        OSError: no address has it, or there is no network or no space; all reasons in one line.
    """

    def stream(url: str, part: Any, _: Any) -> None:
        """Download to the temporary file `part`, as pooch asks for it."""
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

    downloader: Any = stream  # pooch's type asks for its own names of the parameters
    folder, reasons = pooch.os_cache("bloodjax"), []
    for url in urls:
        try:
            return Path(pooch.retrieve(url, known_hash, file, folder, downloader=downloader))
        except (OSError, ValueError) as error:  # ValueError: not the published bytes
            reasons.append(textwrap.shorten(str(error), 150))
    raise OSError("; ".join(dict.fromkeys(reasons)))
