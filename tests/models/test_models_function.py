"""A model that is not a function of its input is told at once, with the module."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mpsearch.errors import ModelError
from mpsearch.models import require_function

IMAGE = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Forgetful(nn.Module):
    """Dropout without its flag."""

    def __init__(self, inplace=False):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.inplace = inplace

    def forward(self, x):
        return F.dropout(self.conv(x), 0.5, inplace=self.inplace)


class Noise(nn.Module):
    def forward(self, x):
        return x.add_(torch.randn_like(x))


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        self.seen += 1
        return x * self.seen


class Shared(nn.Module):
    """One module called twice, the second time after what is random."""

    def __init__(self):
        super().__init__()
        self.scale, self.noise = nn.Conv2d(3, 3, 1), Noise()

    def forward(self, x):
        return self.scale(self.noise(self.scale(x)))


def net(odd):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU()), odd, nn.Flatten(), nn.LazyLinear(4)
    ).eval()


@pytest.mark.parametrize(
    ("odd", "name"),
    [
        (Forgetful(), r"1 \(Forgetful\)"),
        (Forgetful(inplace=True), r"1 \(Forgetful\)"),
        (nn.Sequential(nn.ReLU(), nn.Sequential(Noise())), r"1\.1\.0 \(Noise\)"),
        (Counting(), r"1 \(Counting\)"),
        (Shared(), r"1\.noise \(Noise\)"),
    ],
)
def test_two_passes_that_differ_are_refused_with_the_module(odd, name):
    module = net(odd)
    module(IMAGE)
    with pytest.raises(ModelError, match=f"two outputs for one input: {name} is random or keeps a state"):
        require_function(module, IMAGE)


def test_what_is_random_in_the_root_is_named_by_its_class():
    with pytest.raises(ModelError, match="one input: Forgetful is random"):
        require_function(Forgetful(), IMAGE)


def test_a_batch_norm_without_statistics_is_refused():
    module = net(nn.BatchNorm2d(3, track_running_stats=False))
    module(IMAGE)
    with pytest.raises(ModelError, match=r"depends on the others of its batch: 1 \(BatchNorm2d\) mixes them"):
        require_function(module, IMAGE)


def test_a_function_is_left_as_found(left_as_found):
    module = net(nn.Dropout(0.5)).train()
    module(IMAGE)
    check = left_as_found(module)
    output = require_function(module, IMAGE)
    check()
    assert torch.equal(output, module.eval()(IMAGE[:1]))


def test_modules_that_give_no_tensor_are_no_trouble():
    class Pair(nn.Module):
        def forward(self, x):
            return x, None

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.pair, self.odd = Pair(), Forgetful()

        def forward(self, x):
            return self.odd(self.pair(x)[0])

    with pytest.raises(ModelError, match=r"odd \(Forgetful\)"):
        require_function(Net(), IMAGE)


def test_a_model_that_takes_one_image_alone_passes():
    class One(nn.Module):
        def forward(self, x):
            return x.reshape(1, -1)[:, : 3 * 64] if len(x) == 1 else x.reshape(1, 3 * 64)

    assert require_function(One(), IMAGE).shape == (1, 192)
