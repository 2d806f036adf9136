"""The whole study: three methods, five seeds, one report.

python launch.py --config=configs/paper.py           its protocol, for GPUs
python launch.py --config=configs/paper.py:cpu       the same trainings, sampled in hours on a CPU
"""

from collections.abc import Mapping

from ml_collections import ConfigDict, FieldReference

from configs import ddpm, gan, vae
from configs.base import base, check


def get_config(variant: str | None = None) -> ConfigDict:
    check(variant, ("cpu",))
    runs = {"vae": vae.get_config(), "gan": gan.get_config(), "ddpm": ddpm.get_config()}
    if variant == "cpu":
        for config in runs.values():
            config.sample.count = config.score.count = 5000
        runs["ddpm"].sample.update({"steps": 50, "eta": 0.0})  # DDIM: 5 minutes a seed
        # The study's own sampler, all 1000 steps, for as many images as take five minutes a seed;
        # and as many by DDIM, since fewer images make the distances larger.
        for name, how in {"ddpm_ancestral": {}, "ddpm_few": {"steps": 50, "eta": 0.0}}.items():
            runs[name] = ddpm.get_config()
            runs[name].sample.update({"model": "ddpm", "count": 250, **how})
            runs[name].score.count = 5000
    name = f"paper-{variant}" if variant else "paper"
    columns = ("sample.count", "sample.steps", "sample.eta")
    return study(name, "The study, repeated", columns, runs)


def study(
    name: str, title: str, columns: tuple[str, ...], runs: Mapping[str, ConfigDict]
) -> ConfigDict:
    """Several runs, each in a folder of its own, with one report: a study.

    Args:
        name: names the default workdir.
        title: of the report.
        columns: keys of the configurations that the report's table shows, as the runs differ there.
        runs: by the names of their folders, in the order in which they are run and shown; without
            hyphens, so that flags can name them. All have the study's seeds and data.
    """
    shared = base(name)
    config = ConfigDict(
        {
            "name": name,
            "title": title,
            "columns": columns,
            "order": tuple(runs),  # a ConfigDict has none
            "deterministic": FieldReference(False),
            "precision": FieldReference("float32"),
            "seeds": FieldReference((0, 1, 2, 3, 4)),  # the paper's five
            "data": shared.data,
        }
    )
    for name, run in runs.items():
        run.name = f"{config.name}/{name}"
        run.data = config.data  # one object: --config.data.path is that of all runs
        for key in ("deterministic", "precision", "seeds"):
            run[key] = config.get_ref(key)
    config.runs = ConfigDict(runs)
    return config
