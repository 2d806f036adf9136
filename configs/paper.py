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
        runs["ddpm"].sampler.update({"steps": 50, "eta": 0.0})  # DDIM: 5 to 13 minutes a seed
        # The study's own sampler with all 1000 steps, for the 250 images that take five minutes a
        # seed; and 250 images by DDIM, since fewer images make the distances larger.
        for name, sampler in {"ddpm_ancestral": {}, "ddpm_few": {"steps": 50, "eta": 0.0}}.items():
            runs[name] = ddpm.get_config()
            runs[name].sample.update({"model": "ddpm", "count": 250})
            runs[name].sampler.update(sampler)
            runs[name].score.count = 5000
    name = f"paper-{variant}" if variant else "paper"
    columns = ("sample.count", "sampler.steps", "sampler.eta")
    return study(name, "The study, repeated", columns, runs)


def study(
    name: str, title: str, columns: tuple[str, ...], runs: Mapping[str, ConfigDict]
) -> ConfigDict:
    """Return a study: several runs, each in a folder of its own, and one report.

    Args:
        name: the name of the default workdir.
        title: the title of the report.
        columns: keys in which the runs differ; the table of the report shows their values.
        runs: name of a folder -> configuration, in the order in which they run and are shown. Names
            have no hyphens, so that flags can name them. All runs share the study's seeds and data.
    """
    shared = base(name)
    config = ConfigDict(
        {
            "name": name,
            "title": title,
            "columns": columns,
            "order": tuple(runs),  # a ConfigDict keeps no order
            "deterministic": FieldReference(False),
            "precision": FieldReference("float32"),
            "seeds": FieldReference((0, 1, 2, 3, 4)),  # the study's five
            "data": shared.data,
        }
    )
    for name, run in runs.items():
        run.name = f"{config.name}/{name}"
        run.data = config.data  # one object: --config.data.path sets it for all runs
        for key in ("deterministic", "precision", "seeds"):
            run[key] = config.get_ref(key)
    config.runs = ConfigDict(runs)
    return config
