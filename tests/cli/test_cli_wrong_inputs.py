"""What cannot be used is one message that says what to do, with the right exit code, no traceback, and no torch.

All rows run in one new process, one after the other; it is asked after each whether torch was imported.
"""

import json
import subprocess
import sys

import pytest

DRIVER = """
import contextlib, io, json, shlex, sys
from mpsearch.cli import _show, main
found = []
for row in json.loads(sys.argv[1]):
    out, said = io.StringIO(), io.StringIO()
    _show.talk.file, sys.argv, code = said, ["mpsearch", *shlex.split(row)], 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(said):
        try:
            main()
        except SystemExit as stop:
            code = stop.code or 0
    found.append([code, out.getvalue(), said.getvalue(), "torch" in sys.modules])
print(json.dumps(found))
"""

NET = "--model net.py:net --data images.npz"
RUN = f"run --budget 5bits {NET}"
WRONG = [
    # names, each with the nearest
    ("rnu --budget 15MB", "No such command 'rnu'. Did you mean 'run'"),
    ("run --bugdet 15MB", "--budget"),
    ("run --budget 15MB --model resnet34x --data images.npz", "Did you mean 'resnet34'?"),
    (f"{RUN} --objective hesian", "No objective is called 'hesian'. Did you mean 'hessian_trace'?"),
    (f"{RUN} --method qdorp", "No reconstruction method is called 'qdorp'. Did you mean 'qdrop'?"),
    (f"{RUN} --target openvinno", "No deployment target is called 'openvinno'. Did you mean 'openvino'?"),
    (f"{RUN} --sampler tpee", "No sampler is called 'tpee'. Did you mean 'tpe'?"),
    (f"{RUN} --preset qdop", "No preset is called 'qdop'. Did you mean 'qdrop'?"),
    (f"{RUN} --effort quik", "No effort is called 'quik'. Did you mean 'quick'?"),
    (f"{RUN} --task spann", "No task is called 'spann'. Did you mean 'span'?"),
    (f"{RUN} --quantize fll", "is called 'fll'. Did you mean 'full'?"),
    (f"{RUN} --smooth smoothqant", "Did you mean 'smoothquant'?"),
    (f"{RUN} --softmax log3", "Did you mean 'log2'?"),
    (f"{RUN} --input-observer mes", "No observer is called 'mes'. Did you mean 'mse'?"),
    (f"{RUN} --search-states gptk", "No kind of search states is called 'gptk'. Did you mean 'gptq'?"),
    (f"score {NET} --objective fishr", "No objective is called 'fishr'. Did you mean 'fisher'?"),
    ("export study --target onxx", "No deployment target is called 'onxx'. Did you mean 'onnx'?"),
    ("import net.py --from hawk", "No importer is called 'hawk'. Did you mean 'hawq'?"),
    ("list objectivs", "There is no list of 'objectivs'. Did you mean 'objectives'?"),
    ("list models 'zzz*'", "No timm model is called 'zzz*'"),
    ("solve study --budget 9B --fix conv9=W8A8", "No layer is called 'conv9'. Did you mean 'conv1'?"),
    ("solve study --budget 9B --objective skech", "No score table is called 'skech'. Did you mean 'sketch'?"),
    ("report studdy", "There is no study in studdy. Did you mean study?"),
    ("run --resume studies/none", "There is no study in studies/none"),
    ("dashboard nothere", "There is no study in nothere"),
    ("completion bsh", "bsh"),
    # numbers, units and forms
    (f"run --budget 15 {NET}", "'15' has no unit. Write 15MB"),
    (f"run --budget 15XB {NET}", "unknown unit 'XB'"),
    (f"run --budget small {NET}", "'small' is not a quantity"),
    (f"run {NET}", "There is no budget. Give at least one, such as --budget 15MB"),
    (f"{RUN} --bits 2-9", "must be 2 to 8"),
    (f"{RUN} --bits 8-2", "the lower comes first. Write 2-8"),
    (f"{RUN} --fix 7=W9A8", "--fix '7=W9A8' cannot be read"),
    (f"{RUN} --bits 7=2..9", "bits are 2 to 8"),
    (f"{RUN} --trials -3", "--trials is -3; it must be 0 or more"),
    (f"{RUN} --trials many", "Invalid value for '--trials': Input should be a valid integer"),
    (f"{RUN} --seed 99999999999", "--seed is 99999999999; it must be at most"),
    (f"{RUN} --time-limit soon", "'soon' is not a time. Write a number and a unit"),
    (f"{RUN} --reconstruction-memory 3ms", "--reconstruction-memory is '3ms'"),
    (f"{RUN} --first-last-bits 1", "--first-last-bits is 1; it must be 2 to 8"),
    (f"{RUN} --input-size big", "Cannot read --input-size 'big'"),
    (f"{RUN} --model-arg classes", "Write KEY=VALUE"),
    (f"{RUN} --device gpu", "There is no device 'gpu'"),
    (f"{RUN} --name ../x", "--name '../x' leads out of studies/"),
    (f"{RUN} --quiet --verbose", "--quiet and --verbose were given at once"),
    ("worker --study x --wait nan", "--wait is nan"),
    ("bench x --seconds inf", "--seconds is inf"),
    ("bench x --batch 0", "'0' are no batch sizes. Write 1,8"),
    ("solve study --front --points 0", "--points is 0; it must be 1 or more"),
    ("dashboard study --port 99999", "should be less than or equal to 65535"),
    # what does not go together, or is not there
    ("run --budget 15MB --model net.py:net", "--model is given without --data"),
    ("run --budget 15MB --weights w.safetensors", "--weights is given without --model"),
    (f"{RUN} --data nothere", "There is no nothere"),
    ("run --budget 15MB --model net.pt --data images.npz", "net.pt is a file of weights"),
    ("run --budget 15MB --model net.onnx --data images.npz", "net.onnx is no readable ONNX model"),
    ("run --budget 15MB --model none.py:net --data images.npz", "There is no file none.py"),
    (f"run --assign coding_length {NET} --trials 4", "--assign makes no search, and --trials is given"),
    ("run --resume study --trials 9", "--trials would change"),
    ("solve study --budget 9B --points 4", "--points goes with --prices or --front"),
    ("solve study --budget 9B --distance 2", "--distance goes with --k-best"),
    ("solve study", "There is no budget"),
    ("solve net.py --budget 5kB", "There is no net.py/problem.json"),
    ("solve study --ranges --prices", "--ranges and --prices were asked for at once"),
    (f"profile {NET} --models -1", "--models is -1"),
    (f"profile {NET} --target packed", "The target 'packed' has no runtime to measure"),
    ("profile", "profile needs --model and --data"),
    ("materialize none.json --study study", "There is no file none.json"),
    ("materialize net.py --study study --label ../x", "--label '../x' is no name"),
    # a file of settings
    ("run none.toml", "There is no file none.toml. Give a TOML file of settings"),
    ("run broken.toml", "broken.toml cannot be read as TOML"),
    ("run unknown.toml", "No setting of unknown.toml is called 'bugdet'. Did you mean 'budget'?"),
    ("run kind.toml", "kind.toml: allow-estimate is 'yes'; it must be true or false"),
]
INFEASIBLE = [("solve study --budget 1B", "below the least reachable")]
PROBLEM = {
    "schema": 1,
    "layers": [
        {"name": "conv1", "op": "conv2d", "weight_shape": [1, 1, 1, 1], "input_shapes": [[1, 1, 1, 1]]}
        | {"output_shape": [1, 1, 1, 1], "macs": 1, "block": "conv1"}
    ],
    "candidates": [["W4A8", "W8A8"]],
    "scores": {"sketch": [[1.0, 0.0]]},
    "costs": {"size_bytes": [[4.0, 8.0]]},
    "constants": {"size_bytes": 2.0},
    "estimated": [],
}


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """Exit code, stdout, stderr and whether torch was imported, for each row."""
    place = tmp_path_factory.mktemp("wrong")
    for name in ("net.py", "images.npz", "w.safetensors", "net.pt", "net.onnx"):
        (place / name).touch()
    (place / "study").mkdir()
    (place / "study" / "study.json").write_text("{}")
    (place / "study" / "problem.json").write_text(json.dumps(PROBLEM))
    (place / "broken.toml").write_text("budget = 15MB\n")
    (place / "unknown.toml").write_text('bugdet = "15MB"\n')
    (place / "kind.toml").write_text('budget = "15MB"\nallow-estimate = "yes"\n')
    rows = [row for row, _ in (*WRONG, *INFEASIBLE)]
    ran = subprocess.run(
        [sys.executable, "-c", DRIVER, json.dumps(rows)],
        capture_output=True,
        text=True,
        check=False,
        cwd=place,
    )
    assert ran.returncode == 0, ran.stderr
    return dict(zip(rows, json.loads(ran.stdout), strict=True))


@pytest.mark.parametrize(
    ("row", "text", "code"), [(*row, 2) for row in WRONG] + [(*row, 3) for row in INFEASIBLE]
)
def test_what_cannot_be_used_is_one_message_that_says_what_to_do(answers, row, text, code):
    got, printed, said, torch = answers[row]
    words = " ".join(said.replace("│", " ").split())
    assert (got, printed) == (code, ""), said
    assert text in words and "Traceback" not in said
    assert not torch, "torch was imported, which takes seconds"


def test_the_table_is_long_enough():
    assert len({row for row, _ in (*WRONG, *INFEASIBLE)}) >= 40
