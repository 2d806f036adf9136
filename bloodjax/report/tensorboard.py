"""What TensorBoard shows of a run: the values in metrics.jsonl, and pictures."""

import io
import json
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

NAME = "events.out.tfevents"  # TensorBoard knows its files by that
SIDE = 6  # a picture is of SIDE x SIDE images
PLACE = {"seed", "step", "epoch"}  # where a line of metrics.jsonl belongs; all else in it is shown


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    """What to log beside metrics.jsonl: event files of TensorBoard, or nothing."""

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
    """WORKDIR/tensorboard: a TensorBoard run for each seed, seed0/ and so on, an event file in it.

    metrics.jsonl is the truth. When a process begins, each event file is written anew from it, so
    that it has every step once: also after a kill, and of commands that had no board. Only what is
    not in there is carried over from the file before: when a step was, and the pictures, as far as
    the run is known to have come.
    """

    def __init__(self, workdir: Path, seeds: Sequence[int], dataset: Dataset) -> None:
        self.log, self.read = workdir / "metrics.jsonl", 0  # its bytes that are on the board
        self.folders = {seed: workdir / "tensorboard" / f"seed{seed}" for seed in seeds}
        self.files: dict[int, Path] = {}  # none before the first event
        some = np.random.default_rng(0).permutation(len(dataset.images))[: SIDE * SIDE]
        self.real = dataset.images[some]

    def follow(self) -> None:
        """Bring the board to where metrics.jsonl is; the first time, begin it."""
        if not self.files:
            self.begin({})
            return
        rows = self.rows()
        for seed, file in self.files.items():
            append(file, [scalars(row) for row in rows if row["seed"] == seed])

    def draw(self, seed: int, step: int, images: np.ndarray) -> None:
        """Show uint8 [N, H, W, C], by which a checkpoint is evaluated, as "evaluated"."""
        self.follow()
        append(self.files[seed], [picture("evaluated", step, images[: SIDE * SIDE])])

    def show(self, samples: Samples) -> None:
        """Show finished samples and their trace, instead of earlier ones of the same step."""
        drawn = {}
        for seed, images, trace in zip(samples.seeds, samples.images, samples.trace, strict=True):
            drawn[int(seed)] = [picture("samples", samples.step, images[: SIDE * SIDE])]
            if trace.size:
                strip = trace.reshape(-1, *trace.shape[2:])
                drawn[int(seed)].append(
                    picture(samples.trace_name, samples.step, strip, trace.shape[1])
                )
        self.begin(drawn)

    def begin(self, drawn: Mapping[int, list[Any]]) -> None:
        """Write the event files anew, each seed's with `drawn` among its pictures."""
        self.read = 0
        rows = self.rows()
        last = max((row["step"] for row in rows), default=0)
        for seed, folder in self.folders.items():
            before = sorted(folder.glob(f"{NAME}.*"))
            old = [e for file in before for e in events(file) if e.summary.value]
            pictures = [e for e in old if is_picture(e) and e.step <= last]
            pictures += [picture("real", 0, self.real), *drawn.get(seed, ())]
            pictures = {(e.summary.value[0].tag, e.step): e for e in pictures}
            times = {e.step: e.wall_time for e in old if not is_picture(e)}
            own = [scalars(row, times.get(row["step"])) for row in rows if row["seed"] == seed]
            number = int(before[-1].suffix[1:]) + 1 if before else 0
            # A TensorBoard that is looking on forgets, at START, what it has read so far.
            start = event(0, session_log={"status": "START"})
            version = event(0, file_version="brain.Event:2")
            folder.mkdir(parents=True, exist_ok=True)
            self.files[seed] = folder / f"{NAME}.{number:06}"
            append(self.files[seed], [version, start, *pictures.values(), *own])
            for file in before:
                file.unlink()

    def rows(self) -> list[dict[str, Any]]:
        """What whole lines of metrics.jsonl hold that were not read yet."""
        rows: list[dict[str, Any]] = []
        if self.log.exists():
            with self.log.open("rb") as log:
                log.seek(self.read)
                text = log.read()
            lines = text[: text.rfind(b"\n") + 1].splitlines(keepends=True)
            self.read += sum(map(len, lines))
            for line in lines:
                with suppress(ValueError):  # of a damaged one, training says so
                    rows.append(json.loads(line))
        return rows


def event(step: int, when: float | None = None, **what: Any) -> Any:
    """TensorBoard's Event of a step, now unless `when` is given (seconds since 1970)."""
    from tensorboardX.proto.event_pb2 import Event

    return Event(step=step, wall_time=time.time() if when is None else when, **what)


def scalars(row: Mapping[str, float], when: float | None = None) -> Any:
    """The event of a line of metrics.jsonl: its values, in float32, under their names."""
    values = [{"tag": k, "simple_value": v} for k, v in row.items() if k not in PLACE]
    return event(row["step"], when, summary={"value": values})


def picture(tag: str, step: int, images: np.ndarray, columns: int = SIDE) -> Any:
    """The event of uint8 [N, H, W, C] as one picture, side by side."""
    grid, file = np.ascontiguousarray(tile(images, columns)), io.BytesIO()
    Image.fromarray(grid).save(file, "png")
    image = {"height": grid.shape[0], "width": grid.shape[1], "colorspace": 3}
    image["encoded_image_string"] = file.getvalue()
    return event(step, summary={"value": [{"tag": tag, "image": image}]})


def is_picture(event: Any) -> bool:
    return event.summary.value[0].HasField("image")


# ---- event files: records of length, its checksum, an event, its checksum ----


def append(file: Path, events: Iterable[Any]) -> None:
    """Write events to the end of `file`; by then the system has them, and whoever looks on."""
    with name_errors(file), file.open("ab") as out:
        out.write(b"".join(record(event.SerializeToString()) for event in events))


def record(content: bytes) -> bytes:
    """A record of TensorFlow's TFRecord format."""
    from tensorboardX.record_writer import masked_crc32c

    def summed(part: bytes) -> bytes:
        return part + struct.pack("<I", masked_crc32c(part))

    return summed(struct.pack("<Q", len(content))) + summed(content)


def events(file: Path) -> Iterator[Any]:
    """The events in `file`, up to the first that was cut short or is none."""
    from google.protobuf.message import DecodeError
    from tensorboardX.proto.event_pb2 import Event

    content, at = file.read_bytes(), 0
    with suppress(DecodeError):
        while at + 12 <= len(content):
            begin = at + 12
            end = begin + struct.unpack_from("<Q", content, at)[0]
            if end + 4 > len(content):
                return
            yield Event.FromString(content[begin:end])
            at = end + 4
