"""Nets of odd forms, as jobs for deployment targets: norms that are not folded, computed biases, heads that
are called several times.
"""

import torch
from torch import nn

from mpsearch.deploy import PackedLayout
from mpsearch.deploy.targets import Job
from mpsearch.models import ModelSource, analyze, find_foldable, fold_batch_norm, trace_model
from mpsearch.problem import Assignment, Candidate
from mpsearch.reconstruct import calibrate


class TwoConvolutions(nn.Module):
    """One norm behind two convolutions, which cannot be folded into either."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.norm = (
            nn.Conv2d(3, 8, 3, padding=1),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.BatchNorm2d(8),
        )
        self.head = nn.Linear(8, 10)

    def forward(self, x):
        x = torch.relu(self.norm(self.a(x)))
        return self.head(torch.relu(self.norm(self.b(x))).mean((2, 3)))


class Shifted(nn.BatchNorm2d):
    """A norm with a forward of its own."""

    def forward(self, x):
        return super().forward(x) + 0.25


class OwnNorm(nn.Module):
    """A subclass of a norm, which is not folded."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = (
            nn.Conv2d(3, 8, 3, padding=1, bias=False),
            Shifted(8),
            nn.Linear(8, 10),
        )

    def forward(self, x):
        return self.head(torch.relu(self.norm(self.conv(x))).mean((2, 3)))


class NormTwice(nn.Module):
    """One norm behind two linear layers."""

    def __init__(self):
        super().__init__()
        self.conv, self.a, self.b = (
            nn.Conv2d(3, 8, 3, padding=1),
            nn.Linear(8, 8),
            nn.Linear(8, 8, bias=False),
        )
        self.norm, self.head = nn.BatchNorm1d(8), nn.Linear(8, 10)

    def forward(self, x):
        x = torch.relu(self.norm(self.a(torch.relu(self.conv(x)).mean((2, 3)))))
        return self.head(torch.relu(self.norm(self.b(x))))


class Functional(nn.Conv2d):
    """A convolution whose own forward normalises what it gives."""

    def __init__(self, channels):
        super().__init__(channels, 8, 3, padding=1)
        self.register_buffer("running_mean", torch.zeros(8))
        self.register_buffer("running_var", torch.ones(8))

    def forward(self, x):
        return nn.functional.batch_norm(super().forward(x), self.running_mean, self.running_var)


class NormInside(nn.Module):
    """Norms inside the modules of two units, and a transposed convolution with a norm that belongs to no
    unit.
    """

    def __init__(self):
        super().__init__()
        self.a, self.b, self.up, self.norm = (
            Functional(3),
            Functional(8),
            nn.ConvTranspose2d(8, 8, 2, 2),
            nn.BatchNorm2d(8),
        )
        self.head = nn.Linear(8, 10)

    def forward(self, x):
        return self.head(torch.relu(self.norm(self.up(self.b(torch.relu(self.a(x)))))).mean((2, 3)))


class ComputedBias(nn.Conv2d):
    """A bias that is computed: from the bias alone, or from what the convolution reads too."""

    live = False

    def forward(self, x):
        return self._conv_forward(x, self.weight, self.bias * (x.mean() + 1.5 if self.live else 2.0))


class ComputedLinear(nn.Linear):
    """The same of a linear layer, with more outputs than the exporter folds."""

    live = False

    def forward(self, x):
        return nn.functional.linear(x, self.weight, self.bias * (x.mean() + 1.5 if self.live else 2.0))


class Biases(nn.Module):
    """Biases that are no initialisers of the graph."""

    def __init__(self, live):
        super().__init__()
        self.conv, self.fc, self.head = (
            ComputedBias(3, 8, 3, padding=1),
            ComputedLinear(8, 9000),
            nn.Linear(9000, 10),
        )
        self.conv.live = self.fc.live = live

    def forward(self, x):
        return self.head(torch.relu(self.fc(torch.relu(self.conv(x)).mean((2, 3)))))


class Pyramid(nn.Module):
    """A head of two convolutions on three levels whose ranges are up to 50-fold apart."""

    def __init__(self):
        super().__init__()
        self.stem, self.down = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, 2, padding=1)
        self.tower, self.head = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 6, 1)

    def forward(self, x):
        levels = [torch.relu(self.stem(x))]
        levels += [torch.relu(self.down(levels[0]))]
        given = [
            self.head(torch.relu(self.tower(level * scale))) / scale
            for level, scale in zip((*levels, levels[1]), (1.0, 7.0, 50.0), strict=True)
        ]
        return torch.cat([y.mean((2, 3)) for y in given], 1)


MAKERS = {
    "one norm behind two convolutions": TwoConvolutions,
    "a subclass of a norm": OwnNorm,
    "a norm behind two linear layers": NormTwice,
    "norms inside units": NormInside,
    "biases computed from constants": lambda: Biases(False),
    "biases computed from inputs": lambda: Biases(True),
    "a head on three levels": Pyramid,
}
_held = {}


class TwoPlaces(nn.Module):
    """A layer that has two places in the tree of modules, as the position encodings of CoaT have."""

    def __init__(self):
        super().__init__()
        self.common = nn.Sequential(nn.Linear(12, 12))
        self.blocks = nn.ModuleList(
            nn.Sequential(self.common, nn.ReLU(), nn.Linear(12, 12)) for _ in range(2)
        )

    def forward(self, x):
        for block in self.blocks:
            x = x + block(x)
        return x.mean((1, 2))


def job_of(name, maker, text="W8A8", images=None):
    """A job of a net, and its images; made once. Without images the weights are seeded, and so are the
    images.
    """
    if name not in _held:
        generator = torch.Generator().manual_seed(5)
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(0)
            module = maker().eval()
            for key, value in module.state_dict().items() if images is None else ():
                if key.endswith("running_var"):
                    value.uniform_(0.3, 3, generator=generator)
                elif key.endswith("running_mean"):
                    value.normal_(0, 0.3, generator=generator)
                elif value.ndim >= 2:
                    value.normal_(0, (2 / value[0].numel()) ** 0.5, generator=generator)
                elif key.endswith("bias"):
                    value.normal_(0, 0.1, generator=generator)
        images = torch.randn(32, 3, 12, 12, generator=generator) if images is None else images
        pairs = find_foldable(trace_model(module, images[:1]), module)
        folded = fold_batch_norm(module, pairs)
        units = [layer.name for layer in analyze(folded, images[:1]).layers]
        _held[name] = (
            folded,
            units,
            images,
            PackedLayout.of(folded, units, ModelSource("module", name), pairs, {}),
            calibrate(folded, units, [images]),
            {},
        )
    module, units, images, layout, calibration, graphs = _held[name]
    states = calibration.states(Assignment(tuple((unit, Candidate.parse(text)) for unit in units)))
    return Job(module, layout, states, calibration, images[:1], {}, graphs), images


def relative(target, job, images, folder):
    """RMS of (artifact - what it stands for) over the spread of the float outputs."""
    target.write(job, folder)
    with torch.no_grad():
        want, got, floats = (
            target.reference(job)(images),
            target.load(folder, 1, job.module)(images),
            job.module(images),
        )
    return float((got - want).square().mean().sqrt() / floats.std())
