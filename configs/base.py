"""Every value that the three configurations share, with its reason."""

from ml_collections import ConfigDict


def base(name: str) -> ConfigDict:
    """The paper's protocol; `name` names the default workdir; the method's file adds the rest."""
    return ConfigDict(
        {
            "name": name,
            # On a GPU, only what gives the same bits each time; slower. A CPU does so anyway.
            "deterministic": False,
            # float32: every product in full, which a GPU does not do unasked. tf32: products by
            # TensorFloat-32 where a GPU has it, else float32. bfloat16: activations in bfloat16;
            # parameters, statistics, losses and the sampler's arithmetic stay float32.
            "precision": "float32",
            "seeds": (0,),  # the paper uses five: --config.seeds=0,1,2,3,4
            "data": {
                "source": "bloodmnist",  # all 17,092 images, as in the paper
                "path": "",  # a MedMNIST-style .npz; empty: BLOODJAX_DATA, ~/.medmnist, download
            },
            "method": {},
            "train": {
                "epochs": 20,  # the paper's
                "batch_size": 128,  # the paper's
                "learning_rate": 1e-3,  # the paper's for VAE and DDPM
                "beta1": 0.9,  # the paper's, for the GAN too
                "beta2": 0.999,  # the paper's
                "ema_decay": 0.0,  # none in the paper
                "scan_steps": 0,  # steps per dispatch: 1 on CPU, an epoch on accelerators
                # Seeds over devices: the fastest of what makes sense here, timed at the start; or a
                "strategy": "auto",  # name in bloodjax/sweep.py; loop,vmap takes the faster one
                "checkpoint_epochs": 1,
                "keep": 2,  # newest checkpoints: should one be damaged, there is another
                # Images per seed drawn and scored by FD-BloodNet at each of these, which takes as
                # long as sampling so many; the best checkpoint is then kept, too. 0: none.
                "evaluate": 0,
            },
            "sample": {
                "count": 10_000,  # the paper's
                # A folder beside this run's, of a run with the same data, method, train and seeds:
                # its model is sampled from, and nothing is trained. Empty: this run's own.
                "model": "",
                "checkpoint": "newest",  # the paper's; or best, by train.evaluate
                # The average of the parameters (see train.ema_decay); or raw, the last ones.
                "weights": "ema",
                # Images per dispatch and device, which takes memory. Another number is another
                # program, which may round a pixel to the next grey level.
                "chunk": 250,
                # What else to write of each seed: png, a folder of them all; grid, a picture of 64.
                "export": (),
            },
            "score": {
                # feature spaces, see bloodjax/features; "inception:clean" is another protocol
                "features": ("bloodnet", "inception"),
                "count": 10_000,  # real images to compare with: the paper's
                "draws": 5,  # of the real images for one model's σ: the paper's five
            },
            "log": {
                # Losses, speed and pictures for TensorBoard in WORKDIR/tensorboard, too. Off: it
                # needs a package more (pip install tensorboardX) for what the report shows as well.
                "tensorboard": False,
            },
            "bench": {  # --mode=benchmark
                "torch_python": "",  # PyTorch's interpreter; empty: this one
                "batches": (32, 128, 512),  # sizes of the training step
                "repeats": 5,  # windows of each contestant, taken in turns
                "quick": False,  # batches of 128 alone, and nothing that takes minutes
            },
        }
    )


def check(variant: str | None, allowed: tuple[str, ...]) -> None:
    """Refuse what stands behind the colon of --config=FILE:VARIANT if it is not known."""
    if variant and variant not in allowed:
        expected = " or ".join(allowed) or "nothing behind the colon"
        raise ValueError(f"--config=...:{variant}: expected {expected}")
