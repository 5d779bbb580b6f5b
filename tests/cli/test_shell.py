"""What a shell sees: exit codes, one-line reasons, light imports."""

import subprocess
import sys

import pytest

from lrjax.cli import rules
from lrjax.cli.app import verdict
from lrjax.errors import BudgetError, DensifyError, RankError, RuleError


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["frobnicate"], "No such command"),
        (["inspect"], "PATH"),
        (["plan", "BARE", "--keep", "much"], "'much'"),
        (["plan", "BARE", "--keep", "0"], "keep=0"),
        (["plan", "BARE", "--keep", "1.5"], "keep=1.5"),
        (["plan", "BARE", "--keep", "0.5", "--bytes", "3MB"], "two budgets"),
        (["plan", "BARE", "--keep", "0.5", "--keep", "head/**=0.2"], "beside one for a glob"),
        (["plan", "BARE", "--bytes", "10"], "least"),
        (["plan", "BARE", "--keep", "0.5", "--rule", "**/kernal=SVD"], "kernal"),
        (["plan", "BARE", "--keep", "0.5", "--rule", "**=Magic"], "Magic"),
        (["plan", "BARE", "--keep", "0.5", "--rule", "**=__import__('os')"], "__import__"),
        (["plan", "BARE", "--keep", "0.5", "--rule", "**=SVD", "--rule", "**=SVD"], "two rules"),
        (["plan", "BARE", "--rule", "**/weight=SVD(rank=0)"], "rank"),
        (["plan", "BARE", "--rule", "layers/**=SVD(rank=30)"], "break-even"),
        (["plan", "BARE", "--rule", "**/weight=SVD(rank=5, colour=3)"], "colour"),
        (["plan", "BARE"], "neither a budget nor a rank"),
        (["plan", "BARE", "--keep", "0.5", "--rules", "nowhere.json"], "nowhere.json"),
        (["plan", "BARE", "--keep", "0.5", "--texts", "nowhere.txt"], "nowhere.txt"),
        (["plan", "BARE", "--keep", "0.5", "--stats", "nowhere"], "no such folder"),
        (["plan", "BARE", "--keep", "0.5", "--metric", "Vibes"], "Vibes"),
        (["plan", "BARE", "--keep", "0.5", "--metric", "Input"], "statistics"),
        (["plan", "BARE", "--keep", "0.5", "--metric", "Input(shrink=LedoitWolf)"], "statistics"),
        (["plan", "BARE", "--keep", "0.5", "--metric", "LedoitWolf"], "no metric"),
        (["compress", "BARE", "OUT", "--plan", "BARE"], "plan"),
        (["compress", "BARE", "OUT", "--plan", "p.json", "--keep", "0.5"], "beside"),
        (["inspect", "BARE", "--match", "nothing/**"], "nothing"),
        (["diff", "BARE", "nowhere"], "nowhere"),
    ],
)
def test_bad_input_gives_one_line_and_code_2(run, bare, tmp_path, argv, said):
    words = {"BARE": bare, "OUT": tmp_path / "out"}
    outcome = run(*(words.get(word, word) for word in argv), "--json")
    assert outcome.code == 2, outcome
    assert outcome.out == ""
    assert said in outcome.reason, outcome.reason
    assert "Traceback" not in outcome.err
    assert not (tmp_path / "out").exists()


def test_texts_for_weights_without_a_model_are_refused(run, bare, texts):
    outcome = run("plan", bare, "--keep", "0.5", "--texts", texts)
    assert outcome.code == 2
    assert "without a model" in outcome.reason


def test_other_errors_are_failures_and_debug_shows_where(run, bare, monkeypatch):
    def fail(path):
        raise RuntimeError("the disk\nis on fire")

    monkeypatch.setattr("lrjax.cli.source.read", fail)
    outcome = run("inspect", bare)
    assert outcome.code == 1
    assert outcome.reason == "lrjax: RuntimeError: the disk is on fire (--debug shows where)"
    assert "Traceback" not in outcome.err
    assert "Traceback" in run("inspect", bare, "--debug").err


def test_verdicts():
    assert verdict(RankError("r")) == (2, "r")
    assert verdict(DensifyError("d")) == (1, "d")
    assert verdict(KeyboardInterrupt()) == (1, "interrupted")


@pytest.mark.parametrize("argv", [["--help"], [], ["inspect", "--help"], ["demo", "--help"]])
def test_help_is_no_error(run, argv):
    outcome = run(*argv)
    assert outcome.code == 0
    assert "Usage: lrjax" in outcome.out


def test_the_installed_command_runs_and_a_closed_pipe_is_no_error(bare):
    command = f"{sys.executable} -c 'from lrjax.cli import main; main()' inspect {bare} | head -1"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("path")
    assert "Traceback" not in done.stderr


def test_the_command_lines_own_modules_import_nothing_heavy():
    program = (
        "import sys; before = set(sys.modules)\n"
        "import lrjax; package = set(sys.modules)\n"
        "import lrjax.cli; mine = set(sys.modules) - package\n"
        "heavy = {'flax', 'optax', 'orbax', 'safetensors', 'matplotlib', 'tokenizers'}\n"
        "print(sorted(m for m in mine if m.split('.')[0] in heavy | {'jax'}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_specs_and_budgets_as_they_are_written():
    from lrjax.decompose import SVD
    from lrjax.plan import Budget

    assert rules.read_rules(None, None) == {"**": SVD()}
    assert rules.read_rules(
        ["a/**", "b = SVD(rank=3)", "c=dense", "d=SVD(rank=1)|SVD(rank=2)"], None
    ) == {
        "a/**": SVD(),
        "b": SVD(rank=3),
        "c": None,
        "d": [SVD(rank=1), SVD(rank=2)],
    }
    assert rules.read_budget(["0.5"], None, None) == Budget(keep=0.5)
    assert rules.read_budget(None, ["40MB"], None) == Budget(bytes=40 * 10**6)
    assert rules.read_budget(None, ["1.5MiB"], None) == Budget(bytes=3 * 2**19)
    assert rules.read_budget(None, None, ["2e9"]) == Budget(flops=2 * 10**9)
    assert rules.read_budget(["a=0.5"], ["b=9k"], None) == {
        "a": Budget(keep=0.5),
        "b": Budget(bytes=9000),
    }
    assert rules.read_budget(None, None, None) is None
    for text in ("x", "3 apples", "", "-5", "1.2.3"):
        with pytest.raises(BudgetError):
            rules.read_budget(None, [text], None)


@pytest.mark.parametrize("text", ["[1, 2]", "3", "{", ""])
def test_a_rules_file_that_is_none(tmp_path, text):
    (tmp_path / "rules.json").write_text(text)
    with pytest.raises(RuleError, match=r"rules\.json"):
        rules.read_rules(None, tmp_path / "rules.json")
