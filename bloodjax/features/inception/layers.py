"""The 94 convolutions of FID's InceptionV3, as pytorch-fid's weight file names them.

Shapes: Szegedy et al. (2016), Rethinking the Inception Architecture; the graph of 2015-12-05.
"""

Shape = tuple[int, int, int, int]  # out, in, kernel height, kernel width


def _mixed(block: str, width: int, **branches: list[tuple[int, int, int]]) -> dict[str, Shape]:
    """Return the layers of a block with `width` channels in: chains of (out, kernel height, width).

    A 1×3 layer and the 3×1 after it lie side by side: both have the same input, 384 wide.
    """
    shapes = {}
    for branch, layers in branches.items():
        into = width
        for i, (out, h, w) in enumerate(layers, start=1):
            beside = {(1, 3): f"_{i}a", (3, 1): f"_{i - 1}b"}
            number = beside.get((h, w), f"_{i}") if len(layers) > 1 else ""
            shapes[f"{block}.{branch}{number}"] = (out, into, h, w)
            into = out
    return shapes


def _convs() -> dict[str, Shape]:
    shapes = {
        "Conv2d_1a_3x3": (32, 3, 3, 3),
        "Conv2d_2a_3x3": (32, 32, 3, 3),
        "Conv2d_2b_3x3": (64, 32, 3, 3),
        "Conv2d_3b_1x1": (80, 64, 1, 1),
        "Conv2d_4a_3x3": (192, 80, 3, 3),
    }
    double = [(64, 1, 1), (96, 3, 3), (96, 3, 3)]
    for block, width, pooled in (("5b", 192, 32), ("5c", 256, 64), ("5d", 288, 64)):
        shapes |= _mixed(
            f"Mixed_{block}",
            width,
            branch1x1=[(64, 1, 1)],
            branch5x5=[(48, 1, 1), (64, 5, 5)],
            branch3x3dbl=double,
            branch_pool=[(pooled, 1, 1)],
        )
    shapes |= _mixed("Mixed_6a", 288, branch3x3=[(384, 3, 3)], branch3x3dbl=double)
    for block, c in (("6b", 128), ("6c", 160), ("6d", 160), ("6e", 192)):
        shapes |= _mixed(
            f"Mixed_{block}",
            768,
            branch1x1=[(192, 1, 1)],
            branch7x7=[(c, 1, 1), (c, 1, 7), (192, 7, 1)],
            branch7x7dbl=[(c, 1, 1), (c, 7, 1), (c, 1, 7), (c, 7, 1), (192, 1, 7)],
            branch_pool=[(192, 1, 1)],
        )
    three, seven = [(320, 3, 3)], [(192, 1, 7), (192, 7, 1), (192, 3, 3)]
    first = [(192, 1, 1)]
    shapes |= _mixed("Mixed_7a", 768, branch3x3=first + three, branch7x7x3=first + seven)
    for block, width in (("7b", 1280), ("7c", 2048)):
        shapes |= _mixed(
            f"Mixed_{block}",
            width,
            branch1x1=[(320, 1, 1)],
            branch3x3=[(384, 1, 1), (384, 1, 3), (384, 3, 1)],
            branch3x3dbl=[(448, 1, 1), (384, 3, 3), (384, 1, 3), (384, 3, 1)],
            branch_pool=[(192, 1, 1)],
        )
    return shapes


CONVS = _convs()
