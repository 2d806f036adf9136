"""launch.py, saying on stdout what it is about to do, so that a test can stop it there."""

from absl import app

import launch
from bloodjax import sample, score, sweep
from bloodjax.checkpoint import Checkpoints


def announce(place, name, stage):
    function = getattr(place, name)

    def announced(*arguments, **options):
        print(stage, flush=True)
        return function(*arguments, **options)

    setattr(place, name, announced)


announce(sweep.Loop, "__call__", "step")
announce(Checkpoints, "save", "checkpoint")
announce(sample, "write", "sample")
announce(score, "run", "score")
app.run(launch.start)
