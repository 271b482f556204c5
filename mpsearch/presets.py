"""Presets: a whole recipe in one word, as options of `mpsearch run` or `mpsearch finetune` that count where
the command line says nothing.

They are after the papers, and reproduce none of their tables: what a paper leaves open is chosen here, and
steps are fewer (a paper's own number is in the description).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from mpsearch.errors import OptionError, UnknownNameError


@dataclass(frozen=True)
class Preset:
    """A recipe.

    Args:
        about: What it is, for people.
        options: Option of the command, as a parameter is called -> what would be typed.
        without_budget: Options that a budget takes the place of.
        command: Which command's options they are.
    """

    about: str
    options: Mapping[str, object]
    without_budget: Mapping[str, object] = field(default_factory=dict)
    command: str = "run"

    def typed(self, with_budget: bool = False) -> str:
        """The options as they would be typed, with a budget beside them or without."""
        words = []
        for name, value in {**self.options, **({} if with_budget else self.without_budget)}.items():
            for each in value if isinstance(value, tuple) else (value,):
                words.append(f"--{name.replace('_', '-')} {each}")
        return " ".join(words)


PRESETS: Mapping[str, Preset] = {
    "qdrop": Preset(
        "Blocks learn codes and input steps while half of the inputs are left float at random. Wei et "
        "al., ICLR 2022, "
        "arXiv:2203.05740, with 20,000 steps.",
        {"method": "qdrop", "iterations": 1000, "first_last_bits": 8, "a_bits": "4"},
    ),
    "brecq": Preset(
        "Blocks learn codes against a loss weighted by squared gradients; bits by the damage of pairs of "
        "layers in a "
        "block. Li et al., ICLR 2021, arXiv:2102.05426, with 20,000 steps.",
        {
            "method": "brecq:loss=fisher",
            "iterations": 1000,
            "first_last_bits": 8,
            "bits": ("2,3,4,8",),
            "objective": ("pairwise",),
        },
    ),
    "attention-round": Preset(
        "Weights may go to all levels, with a probability that decays as a Gaussian; bits by coding "
        "length, without a "
        "budget. After Diao et al., arXiv:2207.03088.",
        {"method": "attention_round:init=gaussian,tau=0.25", "iterations": 1000, "first_last_bits": 8},
        {"assign": "coding_length", "bits": ("3-6",)},
    ),
    "mptq-vit": Preset(
        "A fully quantised transformer: outlier channels are centred and moved into weights (SQ-b), "
        "inputs have two "
        "steps where that does less damage (OPT-m), probabilities logarithmic levels, and bits of "
        "weights and inputs "
        "are lowered greedily beside the search. After Tai and Wu, arXiv:2401.14895.",
        {
            "quantize": "full",
            "smooth": "sqb",
            "input_observer": "opt_m",
            "softmax": "log2",
            "sampler": "greedy_mp",
            "bits": ("4-8",),
            "a_bits": "4..8",
            "target": "packed",
        },
    ),
    "q-mlp": Preset(
        "Fine-tuning of a `qmlp_*` model, or another, with learned steps, from its own float outputs and "
        "the labels: percentile ranges, asymmetric grids for the inputs that a symmetric one hurts, the "
        "first and the last unit at 8 bits. After Zhao, Dong and Keutzer, arXiv:2209.06383.",
        {
            "epochs": 1,
            "batch_size": 64,
            "learning_rate": 5e-4,
            "step_learning_rate": 5e-3,
            "label_weight": 0.3,
            "augment": "flip,shift",
            "input_observer": "percentile:99.99",
            "input_grids": "sensitive",
            "first_last_bits": 8,
        },
        command="finetune",
    ),
}


def preset_of(name: str, command: str = "run") -> Preset:
    """A preset by its name.

    Args:
        name: Its name.
        command: The command whose options it is to set.

    Raises:
        UnknownNameError: There is none of that name.
        OptionError: It is of another command.
    """
    if name not in PRESETS:
        raise UnknownNameError("preset", name, PRESETS)
    found = PRESETS[name]
    if found.command != command:
        those = ", ".join(known for known, preset in PRESETS.items() if preset.command == command)
        raise OptionError(
            f"--preset {name} is a recipe of `mpsearch {found.command}`, not of `mpsearch {command}`. "
            f"Those of this command: {those}."
        )
    return found
