"""A step reads tensors alone: replayed by a recorder that repeats its operations on the same memory, it
learns what it learns as it stands.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from mpsearch.errors import ModelError, OptionError
from mpsearch.quant.rounding import AdaRound
from mpsearch.reconstruct import ReconstructionConfig, learn, reconstruct
from mpsearch.reconstruct.capture import WARM, Repeated, recorder
from mpsearch.reconstruct.step import Step


def storage(tensor):
    return tensor.untyped_storage().data_ptr()


class Tape(TorchDispatchMode):
    """Writes down every operation with the very tensors it was given and gave."""

    def __init__(self):
        super().__init__()
        self.lines = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("operation not permitted when stream is capturing")
        found = function(*args, **(kwargs or {}))
        self.lines.append((function, args, kwargs or {}, found))
        return found


def repeat(line):
    """One operation again: into the memory where its result lay."""
    function, args, kwargs, found = line
    given = {storage(t) for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
    results = [t for t in pytree.tree_leaves(found) if isinstance(t, torch.Tensor)]
    mutates = any(a.alias_info is not None and a.alias_info.is_write for a in function._schema.arguments)
    if mutates:
        function(*args, **kwargs)
    elif "empty" not in str(function) and not any(storage(t) in given for t in results):
        for into, value in zip(
            results,
            (t for t in pytree.tree_leaves(function(*args, **kwargs)) if isinstance(t, torch.Tensor)),
            strict=True,
        ):
            into.copy_(value)


class TapeRecorder:
    """What a CUDA graph does, on any device: recording runs the function once, which is its first replay."""

    def __init__(self):
        self.recorded, self.replayed = 0, 0

    def warm(self, function):
        function()

    def record(self, function):
        tape, pending = Tape(), [True]
        with tape:
            function()
        self.recorded += 1

        def replay():
            self.replayed += 1
            if pending:
                pending.clear()
                return
            with torch.no_grad():
                for line in tape.lines:
                    repeat(line)

        return replay


def learned(net, config, tape=None, monkeypatch=None):
    results = []
    if tape is not None:
        monkeypatch.setattr(learn, "recorder", lambda *_: tape)
    states = net.calibration.states(net.uniform("W3A4"))
    found = reconstruct(
        net.module,
        net.blocks,
        states,
        net.images.inputs(),
        config,
        on_block=lambda _n, _s, result: results.append(result),
    )
    return found, results


CASES = [
    ("conv", {}),
    ("vit", {}),
    ("conv", {"bfloat16": True}),
    ("conv", {"crops": True, "iterations": 90}),
    ("vit", {"method": "attention_round"}),
    ("conv", {"method": "brecq"}),
    ("conv", {"method": "qdrop:loss=fisher"}),
]


@pytest.mark.parametrize(("name", "more"), CASES, ids=str)
def test_a_recorded_step_learns_what_the_step_learns_as_it_stands(tiny, monkeypatch, name, more):
    net, tape = tiny(name), TapeRecorder()
    config = ReconstructionConfig(
        **{"iterations": 30, "batch_size": 8, "step_learning_rate": 1e-2, "tolerance": 0, **more}
    )
    plain, before = learned(net, config)
    again, after = learned(net, config, tape, monkeypatch)
    assert tape.recorded >= len(net.blocks) and tape.replayed >= (config.iterations - 8 * WARM) * len(
        net.blocks
    )
    assert before == after
    for unit, state in plain.items():
        assert torch.equal(state.weight.codes, again[unit].weight.codes)
        assert torch.equal(state.activation.scale, again[unit].activation.scale)


@pytest.mark.parametrize("frozen", ["progress", "rate"])
def test_the_recorder_would_see_a_number_that_python_reads(tiny, monkeypatch, frozen):
    """The test above can fail: a number that is written into the step when it is recorded stays as it was."""
    net = tiny("conv")
    config = ReconstructionConfig(iterations=30, batch_size=8, step_learning_rate=1e-2, tolerance=0)
    plain, _ = learned(net, config)
    if frozen == "progress":
        soft = AdaRound.start
        last = {}

        def start(policy, weight, params, codes):
            rounding = soft(policy, weight, params, codes)
            real = rounding.soft
            rounding.soft = lambda progress: real(
                max(last["share"], 0.2) if isinstance(progress, torch.Tensor) else progress
            )
            return rounding

        def prepare(self, number, real=Step.prepare):
            last["share"] = number / 30
            return real(self, number)

        monkeypatch.setattr(AdaRound, "start", start)
        monkeypatch.setattr(Step, "prepare", prepare)
    else:

        def init(self, *args, real=Step.__init__):
            real(self, *args)
            step = self._optimizer.step

            def frozen_step():
                self._optimizer.param_groups[-1]["lr"] = self._rate.clone()  # as a float would be
                self._optimizer.param_groups[-1]["lr"].fill_(self.now)
                step()

            self._optimizer.step = frozen_step

        def prepare(self, number, real=Step.prepare):
            form = real(self, number)
            self.now = float(self._rate)
            return form

        monkeypatch.setattr(Step, "__init__", init)
        monkeypatch.setattr(Step, "prepare", prepare)
    again, _ = learned(net, config, TapeRecorder(), monkeypatch)
    assert any(
        not torch.equal(s.weight.codes, again[u].weight.codes)
        or not torch.equal(s.activation.scale, again[u].activation.scale)
        for u, s in plain.items()
    )


def test_a_step_that_cannot_be_recorded_says_so():
    numbers = torch.zeros(())
    take = Repeated(lambda _form: numbers.add_(float(numbers)), TapeRecorder(), "The step of units a, b")
    for _ in range(WARM):
        take(None)
    with pytest.raises(
        ModelError, match=r"The step of units a, b cannot be captured.*not permitted.*capture=False"
    ):
        take(None)


def test_each_form_is_recorded_once_behind_its_first_steps():
    tape, calls = TapeRecorder(), []
    take = Repeated(calls.append, tape, "A step")
    for number in range(20):
        take(number % 2)
    assert calls == [0, 1] * (WARM + 1) and tape.recorded == 2 and tape.replayed == 20 - 2 * WARM


def test_graphs_are_for_cuda_alone(tiny):
    device, generator = torch.device("cpu"), torch.Generator()
    assert recorder(device, generator, None) is None and recorder(device, generator, False) is None
    with pytest.raises(OptionError, match="only CUDA has graphs"):
        learned(tiny("conv"), ReconstructionConfig(iterations=2, capture=True))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["conv", "vit"])
@pytest.mark.parametrize("more", [{}, {"bfloat16": True}, {"crops": True}, {"method": "brecq"}], ids=str)
def test_on_a_gpu_captured_steps_learn_what_eager_ones_do(tiny, name, more):
    net = tiny(name)
    module = net.module.to("cuda")
    try:
        calibration = learn_on(module, net)
        config = ReconstructionConfig(
            **{"iterations": 80, "batch_size": 8, "step_learning_rate": 1e-2, "tolerance": 0, **more}
        )
        errors = []
        for capture in (False, True):
            found = []
            reconstruct(
                module,
                net.blocks,
                calibration.states(net.uniform("W3A4")),
                net.images.inputs().cuda(),
                replace(config, capture=capture),
                on_block=lambda _n, _s, result, found=found: found.append(result.learned_mse),
            )
            errors.append(found)
    finally:
        net.module.to("cpu")
    torch.testing.assert_close(
        *(torch.tensor(e) for e in errors), rtol=0.02, atol=0
    )  # kernels of a GPU need not sum in one order


def learn_on(module, net):
    from mpsearch.reconstruct import calibrate

    return calibrate(module, net.units, [net.images.inputs().cuda()])
