"""The values that all configurations share, each with its reason."""

from ml_collections import ConfigDict

OPTIMIZER = {  # Adam
    "learning_rate": 1e-3,  # the study's for VAE and DDPM
    "beta1": 0.9,  # the study's, also for the GAN
    "beta2": 0.999,  # the study's
    "warmup_steps": 0,  # none in the study
    "decay": "none",  # none in the study; or cosine, to 0 at the end
    "clip_norm": 0.0,  # no clipping of gradients in the study
}
TRAIN = {
    "epochs": 20,  # the study's
    "batch_size": 128,  # the study's
    "augment": False,  # not in the study; True: flips and quarter turns
    # Decay of the moving average of the parameters; the study has none. Its memory is at most about
    # a tenth of the steps so far: after N steps all decays above N / (N + 9) give the same average.
    "ema_decay": 0.0,
    # Of a second, longer average, between which and the first sample.weights chooses; 0: none. It
    # costs as much memory as the parameters.
    "ema_decay_long": 0.0,
    "scan_steps": 0,  # steps per dispatch: 1 on CPU, an epoch on accelerators
    # How seeds are spread over devices: auto times the strategies that make sense and takes the
    # fastest; or a name of bloodjax/training/strategies.py; or loop,vmap, of which the faster one
    # is taken.
    "strategy": "auto",
    "checkpoint_epochs": 1,
    "keep": 2,  # newest checkpoints: if one is damaged, there is another
    # Images per seed to draw and score by FD-BloodNet at each checkpoint, which takes the time of
    # sampling them; the best checkpoint then stays as well. 0: none.
    "evaluate_count": 0,
}
SAMPLE = {
    "count": 10_000,  # the study's
    # The name of a folder beside this run's. The model of that run, which must have the same data,
    # method, optimizer, train and seeds, is sampled, and nothing is trained. Empty: the model of
    # this run.
    "model": "",
    "checkpoint": "newest",  # the study's; or best, by train.evaluate_count
    # Classes that a conditional method draws: data, as often as in the data; balanced; or the name
    # of a class.
    "labels": "data",
    # The average of the parameters; or ema_long, the second one; or raw, the last parameters.
    "weights": "ema",
    # Images per dispatch and device; 0: 250 on a CPU, 2,500 on accelerators, for which the DDPM of
    # configs/ddpm.py needs 1.4 GiB. Another number is another program, which may round a pixel to
    # the next grey level.
    "chunk": 0,
    # Further formats for each seed: png, a folder of all; grid, a picture of 64.
    "export": (),
}
SCORE = {
    # Feature spaces of bloodjax/features; "inception:clean" has another protocol.
    "features": ("bloodnet", "inception"),
    "count": 10_000,  # images per side: the study's
    "draws": 5,  # sets of real images for the σ of one model: the study's five
    # Sets of `count` samples for the σ of sampling; sample.count must hold them.
    "sample_sets": 1,
}
BENCH = {  # --mode=benchmark
    "torch_python": "",  # the Python that has PyTorch; empty: this one
    "batches": (32, 128, 512),  # images per training step
    "repeats": 5,  # windows of each contestant, taken in turns
    "quick": False,  # True: batches of 128 only, and no task that takes minutes
}


def base(name: str) -> ConfigDict:
    """Return the study's protocol; the file of a method adds its own values.

    Args:
        name: the name of the default workdir.
    """
    return ConfigDict(
        {
            "name": name,
            # True makes a GPU give the same bits each time, more slowly. A CPU always does.
            "deterministic": False,
            # float32: full products, which a GPU does not compute by default. tf32: products in
            # TensorFloat-32 on a GPU that has it, else float32. bfloat16: activations in bfloat16;
            # parameters, statistics, losses and the sampler's arithmetic stay float32.
            "precision": "float32",
            "seeds": (0,),  # the study uses five: --config.seeds=0,1,2,3,4
            "data": {
                # All 17,092 images, as in the study; or auto, medmnist, tfds, folder,
                # synthetic.
                "source": "bloodmnist",
                # bloodmnist reads a MedMNIST-style .npz; "" means BLOODJAX_DATA, ~/.medmnist or a
                # download. medmnist reads FLAG[:SIZE], tfds NAME[:VERSION] or the folder of a
                # prepared data set, folder a folder with one image folder per class.
                "path": "",
                # all, as in the study; or train, which leaves test images for --mode=audit.
                "split": "all",
            },
            "method": {},
            "optimizer": OPTIMIZER,
            "train": TRAIN,
            "sampler": {},  # the method's own options
            "sample": SAMPLE,
            "score": SCORE,
            # True writes losses, speed and pictures for TensorBoard to WORKDIR/tensorboard. It
            # needs the package tensorboardX and shows what the report shows as well.
            "log": {"tensorboard": False},
            "bench": BENCH,
        }
    )


def check(variant: str | None, allowed: tuple[str, ...]) -> None:
    """Refuse an unknown VARIANT of --config=FILE:VARIANT: ValueError."""
    if variant and variant not in allowed:
        expected = " or ".join(allowed) or "nothing behind the colon"
        raise ValueError(f"--config=...:{variant}: expected {expected}")
