"""The devices that JAX computes on in this process."""

import jax

PLATFORMS = {"cpu": "cpu", "cuda": "gpu", "rocm": "gpu", "tpu": "tpu"}  # ours -> a device's own


def select_device(name: str) -> None:
    """Compute on a device with a name as in PyTorch: "cpu", "cuda", "cuda:1", "tpu"; "" for any.

    Call it before JAX computes.

    Raises:
        ValueError: no such name, or no such device on this machine.
    """
    platform, colon, index = name.partition(":")
    platform = "cuda" if platform == "gpu" else platform
    if name and (platform not in PLATFORMS or bool(colon) != index.isdigit()):
        raise ValueError(f"--device {name}: expected cpu, cuda, cuda:N, rocm or tpu")
    before = jax.config.jax_platforms
    if platform:
        jax.config.update("jax_platforms", platform)
    if index and platform == "cuda":
        jax.config.update("jax_cuda_visible_devices", index)
    try:
        require_devices()
        if platform and jax.devices()[0].platform != PLATFORMS[platform]:
            raise ValueError
    except ValueError:
        jax.config.update("jax_platforms", before)
        if not platform:
            raise
        raise ValueError(
            f"--device {name}: there is no such device, or JAX's package for it is not installed"
        ) from None


def require_devices() -> None:
    """Refuse to start on devices that are not there, as JAX_PLATFORMS may ask for.

    Raises:
        ValueError: names JAX_PLATFORMS and the remedy.
    """
    try:
        jax.devices()
    except Exception:  # RuntimeError or AssertionError, by platform, without helpful words
        asked = jax.config.jax_platforms
        raise ValueError(
            f"JAX_PLATFORMS={asked}: there is no such device, or JAX's package for it is not "
            "installed; unset it, or set it to cpu"
        ) from None
