"""Options of `mpsearch run` alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mpsearch.cli._config_file import read_config
from mpsearch.cli._options import FINISH, MEASURING_AND_DEVICE, SEARCH

ConfigFile = Annotated[
    Path | None,
    typer.Argument(
        metavar="CONFIG.toml",
        callback=read_config,
        is_eager=True,
        help="TOML file of these options, such as budget = '15MB'; what is typed counts above it.",
    ),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print what would be done, and how long it takes here; do nothing.")
]
Budgets = Annotated[
    list[str] | None,
    typer.Option(
        help=(
            "Hard limit: 15MB, 15MiB, 40%, 5bits (a weight, on average), 2.5ms, 3mJ, '512MiB peak', "
            "20GBOPs. May be repeated."
        )
    ),
]
RunObjectives = Annotated[
    list[str] | None,
    typer.Option(
        help=(
            "NAME[:option=value,...]; the first is solved exactly. May be repeated. sketch and "
            "weight_mse without it."
        ),
        rich_help_panel=SEARCH,
    ),
]
Assign = Annotated[
    str | None,
    typer.Option(
        help=(
            "Give bits without a budget or a search: coding_length[:reading=own_grid|rate] clusters the "
            "layers' coding lengths into the widths of --bits (3-6 without it), after Attention Round."
        ),
        rich_help_panel=SEARCH,
    ),
]
MaxDrop = Annotated[
    str | None,
    typer.Option(
        help=(
            "How far --metric, or the task's own score, may fall below the float model's on the search "
            "images: 1% of it, or 0.5 points. Without --budget the smallest that keeps it is searched for."
        )
    ),
]
Trials = Annotated[
    int | None,
    typer.Option(
        help="Assignments whose loss is measured. Without it as many as --effort says.",
        rich_help_panel=SEARCH,
    ),
]
PresetName = Annotated[
    str | None,
    typer.Option(
        "--preset",
        help=(
            "A recipe of a paper in one word: qdrop, brecq, attention-round or mptq-vit. Other options count "
            "above it; docs/presets.md has what each stands for."
        ),
    ),
]
EffortName = Annotated[
    str,
    typer.Option(
        "--effort",
        help=(
            "How much is done: quick (closed form alone, no trials), balanced, or thorough (more images, "
            "trials and finalists)."
        ),
    ),
]
TimeLimit = Annotated[
    str | None,
    typer.Option(
        help=(
            "Time that the run may take: 90s, 10min, 1h. Images, trials and finalists are as many as fit; "
            "the best artifact so far is always on disk."
        )
    ),
]
Sampler = Annotated[
    str,
    typer.Option(
        help=(
            "Search method: mpsearch; tpe, nsga2 and random are baselines for comparison; greedy_mp walks "
            "down from the widest bits beside it."
        ),
        rich_help_panel=SEARCH,
    ),
]
Polish = Annotated[
    int | None,
    typer.Option(
        help=(
            "Extra measurements that refine the best assignments after the search. Without it as many as "
            "--effort says."
        ),
        rich_help_panel=SEARCH,
    ),
]
Method = Annotated[
    str,
    typer.Option(
        help=(
            "How the chosen assignments are finished: gptq (closed form), qdrop, brecq, adaround, "
            "attention_round or nearest, with :option=value."
        ),
        rich_help_panel=FINISH,
    ),
]
ReconstructionMemory = Annotated[
    str,
    typer.Option(
        help="Limit on the memory of the reconstruction, which uses fewer images to keep it.",
        rich_help_panel=FINISH,
    ),
]
Iterations = Annotated[
    int | None,
    typer.Option(
        help="Gradient steps for each block, of methods that learn. 200 without it.", rich_help_panel=FINISH
    ),
]
SearchStates = Annotated[
    str,
    typer.Option(
        help=(
            "What the search measures: weights rounded in closed form (gptq), to nearest, or "
            "reconstructed:steps=20."
        ),
        rich_help_panel=SEARCH,
    ),
]
BiasCorrection = Annotated[
    bool,
    typer.Option(
        "--bias-correction/--no-bias-correction",
        help="Let biases make up for the mean error of quantised weights.",
        rich_help_panel=FINISH,
    ),
]
Target = Annotated[
    str,
    typer.Option(
        help=(
            "Runtime to search for: onnx or ort-cpu (latency), openvino-cpu[-bf16] (latency), "
            "triton-cuda (latency, energy) or packed (size)."
        )
    ),
]
Table = Annotated[
    str | None,
    typer.Option(help="Read this latency table instead of measuring.", rich_help_panel=MEASURING_AND_DEVICE),
]
AllowEstimate = Annotated[
    bool,
    typer.Option(
        "--allow-estimate",
        help="Continue with a table of another device or version, and with a latency model of a large error.",
        rich_help_panel=MEASURING_AND_DEVICE,
    ),
]
Workers = Annotated[
    int,
    typer.Option(
        help=(
            "Processes of this machine that measure: 1 is this one, more are started, 0 leaves all to "
            "`mpsearch worker`."
        ),
        rich_help_panel=SEARCH,
    ),
]
Resume = Annotated[
    Path | None,
    typer.Option(
        help=(
            "Finish the study in this folder with its own settings; only --budget, --max-drop, --metric, "
            "--allow-estimate and --device may change."
        )
    ),
]
