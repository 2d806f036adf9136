"""The course's U-Net against one of torch.nn modules, and what it says of itself."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.nets import assert_near, jit, normal, random_variables, shapes
from helpers.tiny import cells

from bloodjax import methods
from bloodjax.bench.benchmark import BenchConfig, run_benchmark
from bloodjax.nets.course_unet import CourseUNet, time_embedding
from bloodjax.training.step import OptimizerConfig

OPTIONS = {
    "timesteps": 20,
    "beta_first": 1e-4,
    "beta_last": 0.02,
    "widths": (3, 5, 6),
    "blocks": 2,
    "patch": 1,
    "net": "course_unet",
}


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(("channels", "parameters"), [(3, 510_562), (1, 506_852)])
def test_it_has_as_many_parameters_as_the_course_s(channels, parameters):
    out, variables = shapes(CourseUNet(), np.zeros((2, 28, 28, channels)), np.ones(2))
    assert (out.shape, out.dtype) == ((2, 28, 28, channels), jnp.float32)
    assert set(variables) == {"params"} and count(variables) == parameters


def test_layers_keep_the_names_that_saved_models_have():
    params = shapes(CourseUNet(), np.zeros((2, 28, 28, 3)), np.ones(2))[1]["params"]
    assert params["Stage_3"]["Dense_0"]["kernel"].shape == (100, 40)
    assert params["Stage_3"]["Dense_1"]["kernel"].shape == (40, 40)


# ---- beside PyTorch --------------------------------------------------------------------------

A, B, C = WIDTHS = (10, 20, 40)


def reference(torch, side, channels):
    """The network of the course for images of one size, as a function and its modules.

    The modules are in the order in which `tensors` has theirs.
    """
    nn, parts = torch.nn, []

    def part(*layers):
        parts.append(nn.Sequential(*layers).double())
        return parts[-1]

    def block(size, width, into, norm=True):
        layers = nn.Conv2d(width, into, 3, 1, 1), nn.SiLU(), nn.Conv2d(into, into, 3, 1, 1)
        return ([nn.LayerNorm((width, size, size))] if norm else []) + [*layers, nn.SiLU()]

    def stage(size, *widths, last_norm=True):
        first = widths[0]
        time = part(nn.Linear(100, first), nn.SiLU(), nn.Linear(first, first))
        pairs = list(zip(widths, widths[1:], strict=False))
        norms = [True] * (len(pairs) - 1) + [last_norm]
        blocks = [block(size, *p, norm) for p, norm in zip(pairs, norms, strict=True)]
        body = part(*(layer for layers in blocks for layer in layers))
        return lambda x, t: body(x + time(t)[:, :, None, None])

    low, half = side // 4, side // 4 // 2
    b1, down1 = stage(side, channels, A, A, A), part(nn.Conv2d(A, A, 4, 2, 1))
    b2, down2 = stage(side // 2, A, B, B, B), part(nn.Conv2d(B, B, 4, 2, 1))
    b3 = stage(low, B, C, C, C)
    down3 = part(nn.Conv2d(C, C, 2), nn.SiLU(), nn.Conv2d(C, C, 4, 2, 1))
    middle = stage(half, C, B, B, C)
    up1 = part(nn.ConvTranspose2d(C, C, 4, 2, 1), nn.SiLU(), nn.ConvTranspose2d(C, C, 2))
    b4, up2 = stage(low, 2 * C, C, B, B), part(nn.ConvTranspose2d(B, B, 4, 2, 1))
    b5, up3 = stage(side // 2, 2 * B, B, A, A), part(nn.ConvTranspose2d(A, A, 4, 2, 1))
    b6 = stage(side, 2 * A, A, A, A, last_norm=False)
    last = part(nn.Conv2d(A, channels, 3, 1, 1))

    def forward(x, t):
        first = b1(x, t)
        second = b2(down1(first), t)
        third = b3(down2(second), t)
        x = up1(middle(down3(third), t))
        x = up2(b4(torch.cat([third, x], dim=1), t))
        x = up3(b5(torch.cat([second, x], dim=1), t))
        return last(b6(torch.cat([first, x], dim=1), t))

    return forward, nn.ModuleList(parts)


def tensors(params, blocks=3):
    """Leaves of the parameters in torch's layout, in the order of `reference`'s modules."""

    def conv(p):
        return [p["kernel"].transpose(3, 2, 0, 1), p["bias"]]

    def transposed(p):
        return [p["kernel"].transpose(2, 3, 0, 1), p["bias"]]

    def turned(p):  # of stride 1, written as a convolution
        return [p["kernel"][::-1, ::-1].transpose(2, 3, 0, 1), p["bias"]]

    def stage(number):
        p = params[f"Stage_{number}"]
        for name in ("Dense_0", "Dense_1"):
            yield from (p[name]["kernel"].T, p[name]["bias"])
        for i in range(blocks):
            own = p[f"Block_{i}"]
            norm = own["LayerNorm_0"]
            if (number, i) != (6, blocks - 1):  # the one that is not used
                yield from (norm["scale"].transpose(2, 0, 1), norm["bias"].transpose(2, 0, 1))
            yield from (*conv(own["Conv_0"]), *conv(own["Conv_1"]))

    order = (
        *(stage(0), conv(params["Conv_0"]), stage(1), conv(params["Conv_1"]), stage(2)),
        *(conv(params["Conv_2"]), conv(params["Conv_3"]), stage(3)),
        *(transposed(params["ConvTranspose_0"]), turned(params["Conv_4"]), stage(4)),
        *(transposed(params["ConvTranspose_1"]), stage(5), transposed(params["ConvTranspose_2"])),
        *(stage(6), conv(params["Conv_5"])),
    )
    return [np.asarray(array) for arrays in order for array in arrays]


def table(t):
    """Rows of the course's frozen embedding, the sines first: float64 [B, 100]."""
    angles = (np.asarray(t, float) - 1)[:, None] / 10_000 ** (2 * np.arange(0, 100, 2) / 100)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


def test_every_time_has_its_row_of_the_course_s_table():
    t = np.arange(1, 1001, dtype=np.float32)
    np.testing.assert_allclose(time_embedding(t), table(t), rtol=0, atol=1e-4)  # angles are float32
    np.testing.assert_allclose(time_embedding(t[:20]), table(t[:20]), rtol=0, atol=2e-6)


# Not of one channel: its first norm takes away all that the time has added.
@pytest.mark.parametrize(("side", "channels"), [(28, 3), (12, 2)])
def test_it_computes_what_torch_nn_does_and_so_do_its_gradients(side, channels):
    torch = pytest.importorskip("torch", reason="compares with torch.nn: PyTorch is not installed")
    x, g = (normal(2, side, side, channels, seed=seed) for seed in (1, 2))
    t = np.array([1, 14], np.float32)
    params = random_variables(CourseUNet(), x, t)["params"]

    @jit
    def run(params, x, g):
        y, pull = jax.vjp(lambda params, x: CourseUNet().apply({"params": params}, x, t), params, x)
        return y, *pull(g)

    y, gradients, dx = run(params, x, g)

    there, modules = reference(torch, side, channels)
    own = list(modules.parameters())
    with torch.no_grad():
        for parameter, array in zip(own, tensors(params), strict=True):
            parameter.copy_(torch.from_numpy(array.copy()))
    nchw = [torch.from_numpy(a.transpose(0, 3, 1, 2).copy()).double() for a in (x, g)]
    nchw[0].requires_grad_()
    out = there(nchw[0], torch.from_numpy(table(t)))
    out.backward(nchw[1])
    assert_near(y, out.detach().numpy().transpose(0, 2, 3, 1))
    assert_near(dx, nchw[0].grad.numpy().transpose(0, 2, 3, 1))
    for parameter, gradient in zip(own, tensors(gradients), strict=True):
        assert_near(gradient, parameter.grad.numpy())
    idle = gradients["Stage_6"]["Block_2"]["LayerNorm_0"]
    assert not any(map(np.any, jax.tree.leaves(idle)))
    assert count(params) == sum(p.numel() for p in own) + count(idle)


def test_it_begins_as_torch_nn_s_layers_do():
    torch = pytest.importorskip("torch", reason="compares with torch.nn: PyTorch is not installed")
    init = jit(CourseUNet().init)
    params = init(jax.random.key(0), np.zeros((1, 28, 28, 3)), np.ones(1))["params"]
    torch.manual_seed(0)
    _, modules = reference(torch, 28, 3)
    found, there = tensors(params), [p.detach().numpy() for p in modules.parameters()]
    for number in range(0, len(there), 2):  # a weight, its bias
        weight, bias = there[number : number + 2]
        if not bias.any():  # of a norm
            np.testing.assert_array_equal(found[number], weight)
            np.testing.assert_array_equal(found[number + 1], bias)
            continue
        fan_in = weight[0].size
        bound = fan_in**-0.5
        for own in (*found[number : number + 2], weight, bias):
            assert 0 < np.abs(own).max() <= bound
            assert own.size < 100 or own.std() == pytest.approx(bound / 3**0.5, rel=0.2)
            assert own.size < 100 or abs(own.mean()) < 0.1 * bound


# ---- as the network of a method --------------------------------------------------------------


def make(shape=(12, 12, 3), **changes):
    return methods.make("ddpm", shape=shape, **OPTIONS | changes)


@pytest.mark.slow
def test_it_trains_and_samples():
    method = make()
    params, stats = jit(method.init)(jax.random.key(0))
    batch = jnp.asarray(normal(4, 12, 12, 3)), None
    loss = jit(jax.grad(lambda p: method.loss(p, stats, batch, jax.random.key(1))[0]))
    assert any(map(np.any, jax.tree.leaves(loss(params))))
    options = {"steps": 3, "eta": 1.0, "clip": True, "variance": "beta"}
    draw = jit(functools.partial(method.sample, **options))
    image = draw(params, stats, jax.random.key(2))
    assert image.shape == (12, 12, 3) and np.abs(image).max() <= 1


@pytest.mark.slow
def test_in_bfloat16_it_is_nearly_the_same():
    x, t = normal(2, 12, 12, 3), np.array([3.0, 9.0], np.float32)
    params = random_variables(CourseUNet(), x, t)
    exact = jit(CourseUNet().apply)(params, x, t)
    rounded = jit(CourseUNet(dtype=jnp.bfloat16).apply)(params, x, t)
    assert rounded.dtype == jnp.float32
    assert 0 < np.abs(rounded - exact).max() < 0.05 * np.abs(exact).max()


@pytest.mark.parametrize("side", [12, 20, 28, 36])
def test_it_takes_four_times_an_odd_side(side):
    method = make((side, 28, 1))
    assert jax.eval_shape(method.init, jax.random.key(0))
    image = np.zeros((1, side, 28, 1)), np.ones(1)
    assert shapes(method.network, *image)[0].shape == (1, side, 28, 1)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"net": "residual"}, "method.net='residual': expected course_unet or unet"),
        ({"net": "layers"}, "method.net='layers': expected course_unet or unet"),
        ({"patch": 2}, "method.patch=2: expected 1"),
        ({"blocks": 0}, "method.blocks=0: expected an integer, at least 1"),
        ({"widths": ()}, r"method.widths=\(\)"),
        ({"widths": (3, 0, 6)}, r"method.widths=\(3, 0, 6\)"),
        *(({"shape": s}, "images of .*sides of 4 × 3, 5") for s in [(8, 28, 3), (28, 32, 3)]),
        *(({"shape": s}, "images of .*net='unet' takes any") for s in [(14, 28, 3), (4, 4, 3)]),
        ({"net": "unet"}, r"method.widths=\(3, 5, 6\): expected multiples of 8"),
    ],
)
def test_what_it_cannot_do_is_refused_at_once(changes, words):
    with pytest.raises(ValueError, match=words):
        make(**changes)


def test_the_benchmark_refuses_it_before_any_work(tmp_path):
    with pytest.raises(ValueError, match="net='course_unet': the PyTorch twin has 'unet'"):
        run_benchmark(
            tmp_path / "new",
            cells(),
            BenchConfig(quick=True),
            method={"name": "ddpm", **OPTIONS},
            optimizer=OptimizerConfig(),
            ema_decay=0.0,
            sampler={},
            job=[],
        )
    assert not (tmp_path / "new").exists()
