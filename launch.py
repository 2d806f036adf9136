"""Train, sample, score and report: python launch.py --config=configs/ddpm.py"""

import traceback
from pathlib import Path
from typing import Any

from absl import app, flags, logging
from ml_collections import config_flags

import bloodjax
from bloodjax import compilation, data, doctor, methods, report, sample, score, train, workdir
from bloodjax.data import Dataset
from bloodjax.interrupt import stop_at_once
from bloodjax.methods import Method
from bloodjax.progress import console

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "what to do, e.g. configs/ddpm.py or configs/ddpm.py:quick"
)
MODE = flags.DEFINE_enum(
    "mode",
    "run",
    ["run", "train", "sample", "score", "report", "doctor"],
    "one stage or all of them; doctor says what this machine has",
)
WORKDIR = flags.DEFINE_string("workdir", None, "where the files go (default runs/<config name>)")


def main(argv: list[str]) -> None:
    logging.set_verbosity(logging.WARNING)  # orbax tells its life at INFO
    if MODE.value == "doctor":
        doctor.run()
        return
    if CONFIG.value is None or argv[1:]:
        raise app.UsageError(f"expected --config=FILE; not understood: {argv[1:]}")
    config = CONFIG.value.to_dict()
    compilation.prepare(config["deterministic"])
    folder = Path(WORKDIR.value or Path("runs", config["name"]))
    dataset = data.load(**config["data"])
    method = methods.make(shape=dataset.images.shape[1:], **config["method"])
    free = MODE.value if MODE.value in ("sample", "score") else ""
    train.check(seeds=config["seeds"], **config["train"])
    sample.check(method, **config["sample"])
    if MODE.value in ("run", "score"):  # may download weights
        score.check(**config["score"])
    if MODE.value == "report":  # reads alone, also what another process is writing
        workdir.claim(folder, config, dataset)
        report.run(folder, dataset)
        return
    with workdir.lock(folder):
        workdir.claim(folder, config, dataset, free)
        work(config, method, dataset, folder)


def work(config: dict[str, Any], method: Method, dataset: Dataset, folder: Path) -> None:
    """The stages that the mode asks for, one after the other."""
    match MODE.value:
        case "run":
            state = train.run(method, dataset, folder, seeds=config["seeds"], **config["train"])
            sample.run(method, state, folder, **config["sample"])
            score.run(folder, dataset, **config["score"])
            report.run(folder, dataset)
        case "train":
            train.run(method, dataset, folder, seeds=config["seeds"], **config["train"])
        case "sample":
            state = train.restore(method, folder, seeds=config["seeds"])
            sample.run(method, state, folder, **config["sample"])
        case "score":
            sample.check_made(folder, **config["sample"])
            score.run(folder, dataset, **config["score"])


def start(argv: list[str]) -> int | None:
    """`main`, with what a user can mend said in one line; a traceback means a bug.

    Returns:
        The exit code. Returned, not raised: an error keeps what its frames hold, and JAX may crash
        when arrays outlive it.
    """
    stop_at_once()
    try:
        main(argv)
    except SystemExit as stop:
        return stop.code
    except (ValueError, OSError, FloatingPointError) as error:
        source = traceback.extract_tb(error.__traceback__)[-1].filename
        ours = Path(bloodjax.__file__).parent in Path(source).parents
        if not ours and not isinstance(error, OSError):
            raise
        text = workdir.explain(error) if isinstance(error, OSError) else str(error)
        console.print(f"error: {text}", markup=False, soft_wrap=True)
        return 1


if __name__ == "__main__":
    app.run(start)
