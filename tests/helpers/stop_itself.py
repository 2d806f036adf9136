"""launch.py, which stops itself: stop_itself.py STAGE:TIMES:SECONDS:SIGNAL ...

It sends itself the signal so many seconds after it has begun the stage for that many times: from
within, since a tester that the machine keeps waiting would come too late.
"""

import functools
import os
import sys
import threading

from absl import app

import launch
from bloodjax.sampling import draw
from bloodjax.training import strategies
from bloodjax.training.checkpoint import Checkpoints

stage, times, seconds, number = sys.argv.pop(1).split(":")
send = functools.partial(os.kill, os.getpid(), int(number))
left = int(times)


def watch(place, name, begun):
    function = getattr(place, name)

    def watched(*arguments, **options):
        global left
        left -= begun == stage
        if begun == stage and left == 0:
            if float(seconds):
                timer = threading.Timer(float(seconds), send)
                timer.daemon = True  # what is over by then ends well, which a test sees
                timer.start()
            else:
                send()
        return function(*arguments, **options)

    setattr(place, name, watched)


watch(strategies.Loop, "__call__", "step")
watch(strategies.Batched, "__call__", "step")
watch(Checkpoints, "save", "checkpoint")
watch(draw, "write_array", "sample")
watch(launch, "write_scores", "score")
app.run(launch.cli)
