"""Names and sentences of the reports."""

from bloodjax.features.inception.weights import INSTALL
from bloodjax.scoring import metrics, tables

DATA = {"bloodmnist": "BloodMNIST", "synthetic": "synthetic cells, not BloodMNIST"}
METHODS = {"gan": "DCGAN"}
SPACES = {
    "bloodnet": "BloodNet, a small network that classifies blood cells",
    "inception": "InceptionV3 with the weights of Heusel et al. (2017)",
}
SECTIONS = {  # picture -> heading and caption
    "samples": ("Samples", "Real and generated images, drawn at random and not selected."),
    "closest": (
        "Nearest training images",
        "The samples that are most likely copies, each above its nearest training image among the "
        "first 2 × score.count. The ratio divides the distance between the two by the distance of "
        "the training image to its own nearest neighbour. Pairs that look the same were memorised.",
    ),
    "denoising": (
        "From noise to cell",
        "Each row is one sample: the network's estimate of the final image, first step to last.",
    ),
    "interpolation": ("Between samples", "Each row walks through latent space between samples."),
    "curves": ("Training", "Each loss over the training steps: raw values pale, smoothed dark."),
    "classes": (
        "The data",
        "Real images of each class; the number of images is in brackets. A class whose name has "
        "letters that the picture's font lacks stands there by its number, from 0.",
    ),
}
MISTAKE = (
    "Here the network got images in a range that it does not expect: all images with raw-range, "
    "only the real ones with raw-reals, each sample scaled to its own range with min-max. Some "
    "published numbers were made this way. This value explains them and measures nothing else."
)
SYNTHETIC = (
    "Synthetic cells, not BloodMNIST: these images are computed to try the software. No number "
    "here says anything about blood."
)
STUDY = (
    "The study's numbers are FIDs of 10,000 samples against 10,000 real images, mean ± σ of five "
    "runs. It states neither the software nor the input range. Only an FID compares with them."
)
PUBLISHED = {name: f"{mean:.2f} ± {std:.2f}" for name, (mean, std) in tables.STUDY.items()}
PUBLISHED_TABLE = [
    ("method", "FID"),
    *zip(("VAE", "GAN", "diffusion"), PUBLISHED.values(), strict=True),
]
NO_FID = (
    "There is no FID: these runs were scored without Inception's published weights. "
    f"{INSTALL} brings them; then --mode=score adds FID."
)
NOT_SCORED = "Not scored yet: run with --mode=score."


def describe_metrics() -> str:
    """Return the sentences below a table of scores: directions and definitions."""
    better = {
        side: ", ".join(m.heading for m in metrics.METRICS if m.heading and m.better == side)
        for side in ("lower", "higher")
    }
    return " ".join(
        [
            "The value is a Fréchet distance; the floor is that of two sets of real images.",
            "± is the population σ over seeds, σ of draws the σ over draws of the real images. The "
            "draws share images: new images would spread more.",
            f"Lower is better: value, {better['lower']}.",
            f"Higher is better: {better['higher']}.",
            *(m.note for m in metrics.METRICS if m.heading and m.note),
        ]
    )
