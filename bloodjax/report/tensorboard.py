"""TensorBoard files of a run: the values of metrics.jsonl, and pictures."""

import io
import struct
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bloodjax import options
from bloodjax.data import Dataset
from bloodjax.images import tile
from bloodjax.runtime.files import name_errors
from bloodjax.sampling.samples import Samples
from bloodjax.scoring.embedding import shuffled_rows
from bloodjax.training import log

NAME = "events.out.tfevents"  # TensorBoard finds its files by this name
SIDE = 6  # a picture shows SIDE x SIDE images
PLACE = {"seed", "step", "epoch"}  # the position of a line of metrics.jsonl; the rest is shown


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    """The options of logging.

    Attributes:
        tensorboard: write WORKDIR/tensorboard.

    Raises:
        ValueError: TensorBoard files are wanted and tensorboardX is missing.
    """

    tensorboard: bool = False

    def __post_init__(self) -> None:
        options.check(type(self), "log", vars(self))
        if self.tensorboard:
            try:
                import tensorboardX  # noqa: F401
            except ImportError as error:
                raise ValueError(
                    f"log.tensorboard=True: expected the package tensorboardX ({error}): "
                    "pip install tensorboardX, or --config.log.tensorboard=False"
                ) from None


class Board:
    """WORKDIR/tensorboard: one TensorBoard run for each seed, an event file in seed0/ and so on.

    metrics.jsonl is the source. Each process first writes every event file again from it, so that
    each step appears once, also after a kill and after commands without a board. Only two things
    come from the old event file: the time of each step, and the pictures up to the last step.
    """

    def __init__(self, workdir: Path, seeds: Sequence[int], dataset: Dataset) -> None:
        self.file = workdir / "metrics.jsonl"
        self.offset = 0  # bytes of the log that are on the board
        self.folders = {seed: workdir / "tensorboard" / f"seed{seed}" for seed in seeds}
        self.files: dict[int, Path] = {}  # none before the first event
        self.real = dataset.images[shuffled_rows(dataset)[: SIDE * SIDE]]

    def update(self) -> None:
        """Add the new lines of metrics.jsonl; the first call writes all event files again."""
        if not self.files:
            self.rewrite({})
            return
        rows = self.read_rows()
        for seed, file in self.files.items():
            append(file, [scalars(row) for row in rows if row["seed"] == seed])

    def show_evaluated(self, seed: int, step: int, images: np.ndarray) -> None:
        """Show the images of an evaluation, uint8 [N, H, W, C], as "evaluated"."""
        self.update()
        append(self.files[seed], [picture("evaluated", step, images[: SIDE * SIDE])])

    def show_samples(self, samples: Samples) -> None:
        """Show finished samples and their trace in the place of earlier ones of the same step."""
        pictures = {}
        for seed, images, trace in zip(samples.seeds, samples.images, samples.trace, strict=True):
            events = [picture("samples", samples.step, images[: SIDE * SIDE])]
            if trace.size:
                strip = trace.reshape(-1, *trace.shape[2:])
                events.append(picture(samples.trace_name, samples.step, strip, trace.shape[1]))
            pictures[int(seed)] = events
        self.rewrite(pictures)

    def rewrite(self, new_pictures: Mapping[int, list[Any]]) -> None:
        """Write all event files again, with further pictures for each seed."""
        self.offset = 0
        rows = self.read_rows()
        last = max((row["step"] for row in rows), default=0)
        for seed, folder in self.folders.items():
            # Pictures and times of the old files.
            old_files = sorted(folder.glob(f"{NAME}.*"))
            old = [e for file in old_files for e in read_events(file) if e.summary.value]
            pictures = [e for e in old if is_picture(e) and e.step <= last]
            pictures += [picture("real", 0, self.real), *new_pictures.get(seed, ())]
            pictures = {(e.summary.value[0].tag, e.step): e for e in pictures}
            times = {e.step: e.wall_time for e in old if not is_picture(e)}

            # The new file. At START a running TensorBoard drops the events that it has read.
            events = [event(0, file_version="brain.Event:2")]
            events += [event(0, session_log={"status": "START"}), *pictures.values()]
            events += [scalars(x, times.get(x["step"])) for x in rows if x["seed"] == seed]
            number = int(old_files[-1].suffix[1:]) + 1 if old_files else 0
            folder.mkdir(parents=True, exist_ok=True)
            self.files[seed] = folder / f"{NAME}.{number:06}"
            append(self.files[seed], events)
            for file in old_files:
                file.unlink()

    def read_rows(self) -> list[dict[str, Any]]:
        """Return the whole lines of metrics.jsonl that were not read yet."""
        if not self.file.exists():
            return []
        with self.file.open("rb") as lines:
            lines.seek(self.offset)
            text = lines.read()
        whole = text[: text.rfind(b"\n") + 1]
        self.offset += len(whole)
        return list(log.parse_lines(whole.decode(errors="replace")))


def event(step: int, wall_time: float | None = None, **content: Any) -> Any:
    """Return TensorBoard's Event of a step; `wall_time` is in seconds since 1970, or now."""
    from tensorboardX.proto.event_pb2 import Event  # pyright: ignore  # generated at import

    return Event(step=step, wall_time=time.time() if wall_time is None else wall_time, **content)


def scalars(row: Mapping[str, Any], wall_time: float | None = None) -> Any:
    """Return the event of a line of metrics.jsonl: its values, in float32, by name."""
    values = [{"tag": k, "simple_value": v} for k, v in row.items() if k not in PLACE]
    return event(row["step"], wall_time, summary={"value": values})


def picture(tag: str, step: int, images: np.ndarray, columns: int = SIDE) -> Any:
    """Return the event of images, uint8 [N, H, W, C], side by side in one picture."""
    grid, file = np.ascontiguousarray(tile(images, columns)), io.BytesIO()
    Image.fromarray(grid).save(file, "png")
    image = {"height": grid.shape[0], "width": grid.shape[1], "colorspace": 3}
    image["encoded_image_string"] = file.getvalue()
    return event(step, summary={"value": [{"tag": tag, "image": image}]})


def is_picture(event: Any) -> bool:
    """Return whether an event shows a picture."""
    return event.summary.value[0].HasField("image")


# ---- event files: records of length, checksum, event, checksum ----


def append(file: Path, events: Iterable[Any]) -> None:
    """Write events to the end of `file`; readers see them when this returns."""
    with name_errors(file), file.open("ab") as out:
        out.write(b"".join(record(event.SerializeToString()) for event in events))


def record(content: bytes) -> bytes:
    """Return a record of TensorFlow's TFRecord format."""
    from tensorboardX.record_writer import masked_crc32c

    def with_checksum(part: bytes) -> bytes:
        return part + struct.pack("<I", masked_crc32c(part))

    return with_checksum(struct.pack("<Q", len(content))) + with_checksum(content)


def read_events(file: Path) -> Iterator[Any]:
    """Yield the events in `file`, up to the first that is cut short or damaged."""
    from google.protobuf.message import DecodeError
    from tensorboardX.proto.event_pb2 import Event  # pyright: ignore  # generated at import

    content, position = file.read_bytes(), 0
    with suppress(DecodeError):
        while position + 12 <= len(content):
            begin = position + 12
            end = begin + struct.unpack_from("<Q", content, position)[0]
            if end + 4 > len(content):
                return
            yield Event.FromString(content[begin:end])
            position = end + 4
