"""The main job on somebody's checkpoint: plan, compress, compare; nothing lost on the way."""

import json

import numpy as np
import pytest

from lrjax import io, trees
from lrjax.formats import is_factored
from lrjax.ops import densify
from lrjax.plan import Plan


def test_plan_meets_its_budget_and_writes_nothing(run, bare, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    outcome = run("plan", bare, "--keep", "0.5", "--json")
    assert outcome.code == 0
    entries = {e["path"]: e for e in outcome.json["entries"]}
    matrices = [e for e in entries.values() if e["spec"]]
    assert len(matrices) == 3
    assert sum(e["params"] for e in matrices) <= 0.5 * sum(e["dense_params"] for e in matrices)
    assert entries["layers/0/bias"]["spec"] is None
    assert sorted(tmp_path.rglob("*")) == before


def test_plain_svd_is_the_best_of_its_rank(run, bare, weights, tmp_path):
    out = tmp_path / "out"
    outcome = run("compress", bare, out, "--rule", "**/weight=SVD(rank=5)", "--json")
    assert outcome.code == 0
    assert outcome.json["artefact"] == str(out)
    params = trees.flatten(io.load(out).params)[0]
    for name, w in weights.items():
        leaf = params[name.replace(".", "/")]
        if w.ndim < 2:
            assert np.array_equal(leaf, w)
            continue
        assert leaf.rank == 5
        lost = np.linalg.norm(np.asarray(densify(leaf)) - w)
        tail = np.linalg.svd(w.astype(np.float64), compute_uv=False)[5:]
        assert lost <= 1.005 * np.linalg.norm(tail)


def test_a_saved_plan_gives_the_same_artefact_as_its_rules(run, bare, tmp_path):
    rules = ["--rule", "layers/**=SVD", "--rule", "**=dense", "--keep", "0.4"]
    assert run("plan", bare, *rules, "--out", tmp_path / "plan.json").code == 0
    assert run("compress", bare, tmp_path / "a", *rules).code == 0
    assert run("compress", bare, tmp_path / "b", "--plan", tmp_path / "plan.json").code == 0
    assert run("diff", tmp_path / "a", tmp_path / "b", "--json").json["equal"] is True
    saved = Plan.load(tmp_path / "plan.json")
    assert io.load(tmp_path / "a").plan == io.load(tmp_path / "b").plan == saved
    head = io.load(tmp_path / "a").params["head"]["weight"]
    assert not is_factored(head)


def test_rules_come_from_a_file_too_and_budgets_may_differ_by_glob(run, bare, tmp_path):
    (tmp_path / "rules.json").write_text(json.dumps({"head/**": None, "**/weight": "SVD"}))
    outcome = run(
        "plan", bare, "--rules", tmp_path / "rules.json", "--keep", "layers/0/**=0.8",
        "--keep", "layers/1/**=0.3", "--json",
    )  # fmt: skip
    assert outcome.code == 0, outcome
    kept = {e["path"]: e["params"] / e["dense_params"] for e in outcome.json["entries"]}
    assert kept["head/weight"] == 1
    assert 0.7 < kept["layers/0/weight"] <= 0.8
    assert 0.2 < kept["layers/1/weight"] <= 0.3


def test_bytes_are_those_of_the_whole_tree(run, bare, weights, tmp_path):
    limit = sum(w.nbytes for w in weights.values()) // 2
    assert run("compress", bare, tmp_path / "out", "--bytes", limit).code == 0
    stored = sum(
        np.prod(t["shape"], dtype=int) * 4
        for t in io.load(tmp_path / "out").manifest["tensors"].values()
    )
    assert stored <= limit


def test_diff_reports_errors_bytes_and_what_only_one_has(run, bare, orbax, tmp_path):
    run("compress", bare, tmp_path / "out", "--keep", "0.5")
    outcome = run("diff", bare, tmp_path / "out", "--json")
    assert outcome.code == 0
    rows = {row["path"]: row for row in outcome.json["weights"]}
    assert rows["layers/0/bias"]["error"] == 0
    assert 0 < rows["layers/0/weight"]["error"] < 0.5
    assert rows["layers/0/weight"]["b_bytes"] < rows["layers/0/weight"]["a_bytes"]
    assert outcome.json["equal"] is False
    io.hf.write_file(tmp_path / "other.safetensors", {"head.weight": np.ones((2, 3), np.float32)})
    outcome = run("diff", bare, tmp_path / "other.safetensors")
    assert "only in A: layers/0/weight" in outcome.out
    assert "2x3" in outcome.out


def test_nothing_is_overwritten_without_force(run, bare, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("ten years")
    for force in ([], ["--force"]):
        outcome = run("compress", bare, out, "--keep", "0.5", *force)
        assert outcome.code == 2
        assert (out / "thesis.tex").read_text() == "ten years"
    one = tmp_path / "one"
    assert run("compress", bare, one, "--keep", "0.5").code == 0
    digest = io.load(one).digest
    assert run("compress", bare, one, "--keep", "0.3").code == 2
    assert io.load(one).digest == digest
    assert run("compress", bare, one, "--keep", "0.3", "--force").code == 0
    assert io.load(one).digest != digest
    plan = tmp_path / "plan.json"
    plan.write_text("mine")
    assert run("plan", bare, "--keep", "0.5", "--out", plan).code == 2
    assert plan.read_text() == "mine"


def test_the_source_is_never_the_target(run, encoder):
    before = sorted((p, p.stat().st_mtime_ns) for p in encoder.rglob("*"))
    for out in (encoder, encoder / "inside", encoder.parent):
        outcome = run("compress", encoder, out, "--keep", "0.5", "--force")
        assert outcome.code == 2
        assert "apart from the source" in outcome.reason
    assert before == sorted((p, p.stat().st_mtime_ns) for p in encoder.rglob("*"))


def test_an_encoder_is_calibrated_compressed_and_evaluated(run, encoder, texts, tmp_path):
    rules = ["--rule", "encoder/**/kernel=SVD", "--keep", "0.5"]
    outcome = run(
        "compress", encoder, tmp_path / "seen", *rules, "--texts", texts,
        "--save-stats", tmp_path / "stats", "--json",
    )  # fmt: skip
    assert outcome.code == 0, outcome
    again = run("compress", encoder, tmp_path / "again", *rules, "--stats", tmp_path / "stats")
    assert again.code == 0
    assert run("diff", tmp_path / "seen", tmp_path / "again", "--json").json["equal"] is True
    artefact = io.load(tmp_path / "seen")
    assert artefact.manifest["statistics"] == io.load_stats(tmp_path / "stats").digest()
    assert (tmp_path / "seen" / "tokenizer.json").exists()
    outcome = run("eval", tmp_path / "seen", "--against", encoder, "--texts", texts, "--json")
    assert outcome.code == 0, outcome
    dense, small = outcome.json["rows"]
    assert dense["cosine"] == pytest.approx(1, abs=1e-5)
    assert 0.5 < small["cosine"] < 1
    assert small["bytes"] < dense["bytes"]
    assert small["sentences_per_s"] > 0


def test_weights_without_a_model_are_evaluated_against_the_dense_ones(run, bare, tmp_path):
    run("compress", bare, tmp_path / "out", "--keep", "0.5")
    outcome = run("eval", tmp_path / "out", "--against", bare, "--json")
    assert outcome.code == 0
    assert 0 < outcome.json["rows"][1]["error"] < 0.5
    assert run("eval", tmp_path / "out").code == 2


def test_sensitivities_are_measured_on_some_of_the_texts(run, encoder, texts, tmp_path):
    rules = ["--rule", "encoder/**/query/kernel=SVD", "--keep", "0.7"]
    refused = run("plan", encoder, *rules, "--sensitivity", 2)
    assert refused.code == 2
    assert "--sensitivity 2 without --texts" in refused.err
    outcome = run("plan", encoder, *rules, "--texts", texts, "--sensitivity", 2, "--json")
    assert outcome.code == 0, outcome
    felt = [e["sensitivity"] for e in outcome.json["entries"] if e["spec"]]
    assert felt
    assert min(felt) > 0


@pytest.mark.slow
def test_importance_is_calibrated_by_name(run, encoder, texts, tmp_path):
    """Fisher information of the texts' embeddings; what is not asked for is not there later."""
    rule = ("--rule", "**/query/kernel", "--keep", "0.5")
    outcome = run(
        "plan", encoder, *rule, "--metric", "TFWSVD", "--texts", texts,
        "--save-stats", tmp_path / "stats", "--json",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert "WeightedLowRank" in outcome.out
    assert "TFWSVD" in outcome.out
    outcome = run("plan", encoder, *rule, "--metric", "ASVD", "--stats", tmp_path / "stats")
    assert outcome.code == 2
    assert "magnitudes=True" in outcome.reason


@pytest.mark.slow
def test_a_plan_by_importance_is_compressed_with_its_own_statistics(run, encoder, texts, tmp_path):
    """A saved plan says which statistics to gather."""
    rule = ("--rule", "**/query/kernel=SVD(metric=FWSVD) | NMF(metric=FWSVD)", "--keep", "0.5")
    outcome = run(
        "compress", encoder, tmp_path / "one", *rule, "--texts", texts,
        "--save-stats", tmp_path / "stats", "--json",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    (row,) = [row for row in outcome.json["rows"] if row["format"] == "LowRank"]
    assert row["metric"] == "FWSVD"
    outcome = run("plan", encoder, *rule, "--stats", tmp_path / "stats", "--out", tmp_path / "p")
    assert outcome.code == 0, outcome.err
    outcome = run(
        "compress", encoder, tmp_path / "two", "--plan", tmp_path / "p", "--texts", texts, "--json"
    )
    assert outcome.code == 0, outcome.err
    assert [r for r in outcome.json["rows"] if r["format"] == "LowRank"] == [row]
