"""Models of transformers from a folder of `save_pretrained`, with texts of a file; nothing is fetched."""

from __future__ import annotations

import json

import pytest
import torch
from tiny_bert import write_tiny_bert

from mpsearch.data import Texts, make_splits, read_texts
from mpsearch.errors import DataError, ModelError, UnknownNameError
from mpsearch.models import load_model, observe_form
from mpsearch.named import require_data_name, require_model_name
from mpsearch.pytrees import flatten

pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("default")  # transformers and what it imports warn of themselves
WORDS = ["good", "bad", "soup", "film", "was", "the"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny BERT of random weights for three classes, and its tokenizer."""
    return write_tiny_bert(tmp_path_factory.mktemp("bert"), WORDS, classes=3)


def file_of(place, name="texts.csv", rows=40):
    texts = [" ".join(WORDS[(i * k) % 6] for k in range(1, 2 + i % 5)) for i in range(rows)]
    if name.endswith("jsonl"):
        lines = [
            json.dumps({"text": text, "label": "yes" if i % 2 else "no"}) for i, text in enumerate(texts)
        ]
    else:
        lines = ["text,label", *(f"{text} {i},{i % 3}" for i, text in enumerate(texts))]
    (place / name).write_text("\n".join(lines))
    return str(place / name)


def test_the_class_of_the_checkpoint_reads_texts_padded_or_not(folder, tmp_path):
    loaded = load_model(f"hf:{folder}")
    assert type(loaded.module).__name__ == "BertForSequenceClassification" and loaded.source.kind == "hf"
    texts = read_texts(file_of(tmp_path), str(folder))
    assert "6 tokens each" in texts.name and texts[3]["labels"] == 0
    arguments = {
        key: torch.stack([texts[i][key] for i in range(40)]) for key in ("input_ids", "attention_mask")
    }
    assert arguments["attention_mask"].sum(1).unique().tolist() == [2, 3, 4, 5, 6]
    form = observe_form(loaded.module, *_batch(arguments))
    assert [(leaf.name, leaf.shape) for leaf in form.counted] == [("logits", (3,))]
    with torch.no_grad():
        whole = loaded.module(**arguments).logits
        full = [i for i in range(40) if arguments["attention_mask"][i].all()]
        alone = loaded.module(
            **{key: value[full] for key, value in arguments.items()}
        ).logits  # no padding at all
    torch.testing.assert_close(whole[full], alone)
    made = make_splits(texts, calibration_images=8, search_images=8)
    assert (
        len(made.evaluation) == 24 - made.duplicates_removed and made.evaluation.labels.dtype == torch.int64
    )
    other = load_model(f"hf:{folder}", kwargs={"auto_class": "AutoModel"})
    assert type(other.module).__name__ == "BertModel"


def _batch(arguments):
    leaves, call = flatten(((), arguments))
    from mpsearch.models import as_batch

    return as_batch(leaves, call), call


def test_what_is_wrong_with_texts_is_told(folder, tmp_path):
    with pytest.raises(DataError, match="with --tokenizer"):
        read_texts(file_of(tmp_path), None)
    jsonl = file_of(tmp_path, "texts.jsonl")
    with pytest.raises(DataError, match=r"row 1 has the label 'no'.*--class-map"):
        read_texts(jsonl, str(folder))
    named = read_texts(jsonl, f"hf:{folder}", classes={"no": 0, "yes": 1})
    assert [named[i]["labels"] for i in range(3)] == [0, 1, 0] and isinstance(named, Texts)
    assert "3 tokens each, 24 of 40 texts cut" in read_texts(file_of(tmp_path), str(folder), 3).name
    (tmp_path / "odd.csv").write_text("sentence\nx\n")
    with pytest.raises(DataError, match="row 1 has no text"):
        read_texts(str(tmp_path / "odd.csv"), str(folder))
    require_data_name(jsonl)
    with pytest.raises(DataError, match="There is no"):
        require_data_name("gone.csv")


def test_names_that_are_no_models(folder, tmp_path):
    require_model_name(f"hf:{folder}")
    require_model_name("hf:google/vit-base-patch16-224")
    with pytest.raises(ModelError, match=r"no config\.json"):
        require_model_name(f"hf:{tmp_path}")
    with pytest.raises(ModelError, match="no folder"):
        require_model_name("hf:/nowhere/at/all")
    with pytest.raises(UnknownNameError, match="hf:google/vit-base-patch16-224"):
        require_model_name("google/vit-base-patch16-224")
    with pytest.raises(ModelError, match="no class 'AutoModelForNothing'"):
        load_model(f"hf:{folder}", kwargs={"auto_class": "AutoModelForNothing"})


def test_images_of_a_preprocessor(folder):
    about = {"do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.25] * 3, "resample": 3}
    file = folder / "preprocessor_config.json"
    try:
        file.write_text(json.dumps({**about, "size": {"height": 8, "width": 12}}))
        config = load_model(f"hf:{folder}").data_config
        assert config["input_size"] == (3, 8, 12) and config["mean"] == (0.5,) * 3
        assert (config["interpolation"], config["crop_pct"], config["crop_mode"]) == (
            "bicubic",
            1.0,
            "squash",
        )
        cropped = {
            "size": {"shortest_edge": 256},
            "crop_size": {"height": 224, "width": 224},
            "do_center_crop": True,
        }
        file.write_text(json.dumps({**about, **cropped}))
        config = load_model(f"hf:{folder}").data_config
        assert config["input_size"] == (3, 224, 224) and config["crop_pct"] == 0.875
    finally:
        file.unlink()
