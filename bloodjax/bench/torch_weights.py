"""JAX's names and layouts for the arrays of the twin, so that weights go in and out.

A name is the path of an array in bloodjax's State, e.g. "params/generator/ConvTranspose_0/kernel".
"""

from collections import Counter
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from bloodjax.bench.torch_nets import Attention, ResBlock

Arrays = Mapping[str, np.ndarray]
Views = dict[str, Tensor]
KINDS = {
    nn.Linear: "Dense",
    nn.Conv2d: "Conv",
    nn.ConvTranspose2d: "ConvTranspose",
    nn.BatchNorm2d: "BatchNorm",
    nn.GroupNorm: "GroupNorm",
    ResBlock: "ResBlock",
    Attention: "Attention",
}


def submodules(net: nn.Module) -> Iterator[nn.Module]:
    """Yield the layers that flax numbers as well; look through containers."""
    for child in net.children():
        yield from [child] if type(child) in KINDS else submodules(child)


def layers(net: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yield ("/" and JAX's name, layer) of every layer that has weights."""
    if isinstance(net, nn.ModuleDict):
        for name, part in net.items():
            yield from layers(part, f"{path}/{name}")
        return
    numbers: Counter[str] = Counter()  # flax numbers each kind by itself, in order of use
    for child in submodules(net):
        pointwise = isinstance(child, nn.Conv2d) and child.kernel_size == (1, 1)
        kind = "Dense" if pointwise else KINDS[type(child)]
        name = f"{path}/{kind}_{numbers[kind]}"
        numbers[kind] += 1
        if isinstance(child, ResBlock | Attention):
            yield from layers(child, name)
        else:
            yield name, child


def as_jax(layer: nn.Module, tensor: Tensor) -> Tensor:
    """Return a view of a layer's tensor in JAX's order; flattened, it equals JAX's array."""
    inputs, outputs = getattr(layer, "folds", (1, 1))
    if tensor.ndim == 1:
        return tensor.unflatten(0, (-1, outputs)).T
    if isinstance(layer, nn.ConvTranspose2d):
        tensor = tensor.transpose(0, 1)
    tensor = tensor.unflatten(1, (-1, inputs)).unflatten(0, (-1, outputs))
    return tensor.permute(*range(4, tensor.ndim), 3, 2, 1, 0)


def parameters(net: nn.Module) -> Iterator[tuple[str, nn.Module, Tensor]]:
    """Yield ("/" and JAX's name, layer, tensor) of every parameter."""
    for name, layer in layers(net):
        normed = isinstance(layer, nn.BatchNorm2d | nn.GroupNorm)
        yield f"{name}/{'scale' if normed else 'kernel'}", layer, layer.weight
        if layer.bias is not None:
            yield f"{name}/bias", layer, layer.bias


def statistics(net: nn.Module) -> Iterator[tuple[str, nn.BatchNorm2d]]:
    """Yield ("/" and JAX's name, layer) of every BatchNorm."""
    return ((n, x) for n, x in layers(net) if isinstance(x, nn.BatchNorm2d))


@torch.no_grad()
def views(player: str, net: nn.Module, average: nn.Module, adam: torch.optim.Adam) -> Views:
    """Return views of parameters, their average, Adam's moments and BatchNorm's statistics."""
    arrays = {}
    # The average comes first: without averaging it is the parameters, whose values must win.
    for name, layer, tensor in parameters(average):
        arrays[f"ema/{player}{name}"] = as_jax(layer, tensor)
    for name, layer, tensor in parameters(net):
        arrays[f"params/{player}{name}"] = as_jax(layer, tensor)
        arrays[f"opt/{player}/0/mu{name}"] = as_jax(layer, adam.state[tensor]["exp_avg"])
        arrays[f"opt/{player}/0/nu{name}"] = as_jax(layer, adam.state[tensor]["exp_avg_sq"])
    for name, layer in statistics(net):
        arrays[f"stats/{player}{name}/mean"] = as_jax(layer, layer.running_mean)
        arrays[f"stats/{player}{name}/var"] = as_jax(layer, layer.running_var)
    return arrays


def load(views: Views, arrays: Arrays) -> None:
    """Copy every array into the view of the same name.

    Raises:
        ValueError: an array is missing, left over, or has another number of elements.
    """
    for name in sorted(views.keys() ^ arrays.keys()):
        problem = "not among the weights" if name in views else "no part of the twin"
        raise ValueError(f"{name} is {problem}: the networks differ")
    with torch.no_grad():
        for name, view in views.items():
            array = np.asarray(arrays[name])
            if array.size != view.numel():
                raise ValueError(
                    f"{name} has {list(array.shape)}, {array.size} numbers: the twin has "
                    f"{view.numel()}"
                )
            view.copy_(torch.tensor(array).reshape(view.shape))
