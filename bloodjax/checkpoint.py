"""Training states on disk: one folder per step, whole or not there at all."""

from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.options import MultiprocessingOptions

from bloodjax import hosts


class Checkpoints:
    """The checkpoints in `folder`, of which the newest `keep` are kept."""

    def __init__(self, folder: Path, keep: int = 2) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        own = jax.process_index()  # each process for itself: what is here is whole on every one
        alone = MultiprocessingOptions(own, {own}, barrier_sync_key_prefix=f"process{own}")
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            enable_async_checkpointing=False,
            create=False,  # which it does not do in this mode
            multiprocessing_options=alone if hosts.count() > 1 else MultiprocessingOptions(),
        )
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._manager.close()

    def latest(self) -> int | None:
        """The step of the newest checkpoint, None if there is none."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any) -> None:
        """Write `state`, a pytree of NumPy arrays; returns when it is on disk.

        With several processes it is process 0 that does, and the others return at once.
        """
        if not hosts.is_main():
            return
        self._manager.save(step, args=ocp.args.StandardSave(state))
        self._manager.wait_until_finished()

    def restore(self, step: int, like: Any) -> Any:
        """The state saved at `step`, as NumPy arrays.

        Args:
            like: a pytree with the structure, shapes and dtypes of what was saved; only looked at.
        """
        template = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), like)
        return self._manager.restore(step, args=ocp.args.StandardRestore(template))
