"""The fake device is as strict as a GPU: it refuses what CUDA refuses, allows what CUDA allows, and computes
what the CPU does.
"""

import copy

import pytest
import torch
from torch import nn

from mpsearch.accelerator import describe_device, find_device, free_bytes, within_free
from mpsearch.testing import fake_device
from mpsearch.testing.fake_device import MEMORY


@pytest.fixture
def device():
    with fake_device():
        yield torch.device("cuda", 0)


@pytest.fixture
def x(device):
    return torch.arange(12.0, device=device).view(3, 4)


@pytest.mark.parametrize(
    "mixed",
    [
        lambda x: x + torch.ones(4),
        lambda x: torch.ones(3, 4).add_(x),
        lambda x: nn.Linear(4, 2)(x),
        lambda x: torch.cat([x, torch.ones(1, 4)]),
        lambda x: torch.stack([x[0, 0], torch.tensor(1.0)]),
        lambda x: x.index_select(0, torch.tensor([1])),
        lambda x: torch.searchsorted(x[0], torch.ones(2)),
        lambda x: torch.where(torch.ones(3, 4) > 0, x, 0.0),
        lambda x: torch.ones(3)[torch.zeros(1, dtype=torch.int64, device=x.device)],
        lambda x: torch.rand(2, device=x.device, generator=torch.Generator()),
        lambda x: torch.rand(2, generator=torch.Generator(x.device)),
        lambda x: setattr(nn.Linear(4, 2).weight, "data", x),
        lambda x: setattr(nn.Linear(4, 3).to(x.device).weight, "data", torch.ones(3, 4)),
    ],
)
def test_devices_do_not_mix(x, mixed):
    with pytest.raises(RuntimeError, match=r"same device|type|cpu"):
        mixed(x)


def test_its_numbers_are_not_numpys(x):
    with pytest.raises(TypeError, match="host memory"):
        x.numpy()


def test_numbers_and_indices_of_the_cpu_may_be_there(x):
    assert (x * torch.tensor(2.0)).sum().item() == 132
    assert x[torch.tensor([0, 2])].sum().item() == 44
    assert x.clone().index_put_((torch.tensor([0]),), torch.tensor(0.0)).sum().item() == 60
    assert torch.zeros(3, 4).copy_(x).sum() == 66 and x.cpu().device.type == "cpu"


def test_a_model_learns_there_as_on_the_cpu(device):
    torch.manual_seed(0)
    here = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))
    there, x = copy.deepcopy(here).to(device), torch.randn(5, 2, 4, 4)
    for module, inputs in ((here, x), (there, x.to(device))):
        optimizer = torch.optim.Adam(module.parameters(), fused=True)
        for _ in range(2):
            optimizer.zero_grad()
            nn.functional.cross_entropy(module(inputs), torch.arange(5, device=inputs.device) % 3).backward()
            optimizer.step()
    assert all(p.device == device for p in there.parameters())
    for ours, theirs in zip(here.parameters(), there.parameters(), strict=True):
        torch.testing.assert_close(theirs.cpu(), ours)


def test_what_the_cpu_waits_for_is_written_down():
    with fake_device() as waited:
        x = torch.ones(3, device="cuda")
        assert not waited
        assert x.sum() == 3 and x.tolist() == [1, 1, 1] and float(x[0].cpu()) == 1
        assert len(waited) == 3


def test_apples_has_no_float64():
    with fake_device("mps"), pytest.raises(TypeError, match="float64"):
        torch.ones(2, device="mps").double()


def test_it_is_there_and_has_memory(device):
    assert find_device("auto") == find_device("cuda") == find_device("cuda:0") == device
    assert describe_device(device) == {"type": "cuda", "name": "a fake device"}
    assert free_bytes(device) == MEMORY and within_free(2 * MEMORY, device) == MEMORY // 2
    assert within_free(100, device) == 100 and within_free(2 * MEMORY, torch.device("cpu")) == 2 * MEMORY
