"""In Triton's interpreter, unwanted gradients are not computed, and the others keep their bits."""

import pytest

from liif_fast import functional
from liif_fast.backends import triton as backend
from liif_fast.kernels import backward, host, scatter

from ..ops.support import Problem
from ..ops.test_wanted import attend_call, check, fourier_call, grads_of, mlp_call, pairwise, render_call


def decode_call():
    made = Problem(batch=1, channels=2, shape=(3, 4), queries=9, hidden=(9, 8, 7))
    leaves = [made.coord, made.cell, *made.leaves]
    return lambda **options: functional.liif_decode(*made.arguments, **options), leaves


CALLS = {
    "decode": decode_call, "render": lambda: render_call((2, 3)), "fused_mlp": mlp_call,
    "fourier_decode": lambda: fourier_call(7), "attend_corners": lambda: attend_call(16, 5),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_wanted_gradients_have_the_bits_of_all(name):
    run, leaves = CALLS[name]()
    check(run, leaves, pairwise(len(leaves)), backend=backend.NAME, recompute=name != "decode")


class Counter:
    """Count what the backward pass launches: products, additions per latent, and what the chain computes and writes."""

    def __init__(self, monkeypatch):
        self.counts, self.chain = {"products": 0, "added": 0}, None
        monkeypatch.setattr(host, "product", self.counted("products", host.product))
        monkeypatch.setattr(scatter, "add", self.counted("added", scatter.add))
        chain = backward.chain_kernel

        class Chain:
            def __getitem__(_, grid):
                def run(*args, **named):
                    self.chain = named["LOWEST"], named["KEEP"]
                    return chain[grid](*args, **named)

                return run

        monkeypatch.setattr(backward, "chain_kernel", Chain())

    def counted(self, name, function):
        def run(*args):
            self.counts[name] += 1
            return function(*args)

        return run


# Leaves of `decode_call` by number: coord, cell, feat, four weights, four biases. The first weight's gradient takes
# nine products over the map's neighbours, and one for its columns of rel and the cell.
WANTED = [
    (range(11), 9 + 1 + 3 + 2, 1, (0, True)),
    ([2], 0, 1, (0, False)),  # a frozen decoder
    (range(3, 11), 9 + 1 + 3, 1, (0, True)),  # a frozen encoder
    ([0], 2, 0, (0, False)),  # only places
    ([5], 1, 0, (2, False)),  # only a later layer
    ([4, 5], 2, 0, (1, True)),
    ([6, 10], 1, 0, (3, False)),  # only the last layer
    ([7], 0, 1, (0, False)),  # the first bias, from the latents' gradient
]


@pytest.mark.parametrize(("leaves", "products", "added", "chain"), WANTED, ids=str)
def test_what_is_computed(monkeypatch, leaves, products, added, chain):
    run, inputs = decode_call()
    counter = Counter(monkeypatch)
    grads_of(run, inputs, [place in leaves for place in range(len(inputs))], backend=backend.NAME, recompute=False)
    assert (counter.counts, counter.chain) == ({"products": products, "added": added}, chain)
