"""The verb: rules over modules, and what it refuses."""

import dataclasses
import pathlib

import pytest

from lrjax import Budget, zoo
from lrjax.errors import BudgetError, RuleError, ShapeError
from lrjax.formats import LowRank
from lrjax.restructure import Module, Structure, restructure

GOLDENS = pathlib.Path(__file__).parents[1] / "zoo" / "goldens"


@dataclasses.dataclass(frozen=True)
class Keep(Structure):
    """Changes nothing, and says what it saw."""

    seen: list = dataclasses.field(default_factory=list, compare=False)
    part: str = "down"

    def fits(self, module: Module) -> bool:
        return self.part in module.parts

    def rebuild(self, config, modules, budget):
        self.seen.append([m.path for m in modules])
        return config, modules


class Drop(Keep):
    """Takes a leaf away and does not tell the config."""

    def rebuild(self, config, modules, budget):
        gone = [{p: w for p, w in m.weights.items() if p != "up/kernel"} for m in modules]
        return config, [Module(m.path, w) for m, w in zip(modules, gone, strict=True)]


@pytest.fixture(scope="module")
def llama():
    return zoo.load(GOLDENS / "llama")


def test_a_structure_sees_all_its_modules_at_once(llama):
    structure = Keep([])
    model, params = restructure(*llama, {"**": structure})
    assert structure.seen == [["layer_0/mlp", "layer_1/mlp"]]
    assert model == llama[0]
    assert params["norm"]["scale"] is llama[1]["norm"]["scale"]


def test_rules_take_turns_and_a_tuple_applies_several(llama):
    first, second, other = Keep([]), Keep([]), Keep([], part="query")
    restructure(*llama, {"layer_0/**": first, "layer_*/mlp": (second, second), "**": other})
    assert first.seen == [["layer_0/mlp"]]
    assert second.seen == 2 * [["layer_1/mlp"]]
    assert other.seen == [["layer_0/attention", "layer_1/attention"]]


def test_a_rule_without_a_module_is_refused(llama):
    with pytest.raises(RuleError, match=r"layer_9/mlp: got no such module.*layer_0/mlp, layer_1"):
        restructure(*llama, {"layer_9/mlp": Keep([])})
    with pytest.raises(RuleError, match="taken by 'layer_"):
        restructure(*llama, {"layer_*/mlp": Keep([]), "**": Keep([])})
    with pytest.raises(RuleError, match="none in this model"):
        restructure(*llama, {"**": Keep([], part="experts")})


def test_factored_weights_scanned_layers_and_idle_budgets_are_refused(llama):
    model, params = llama
    with pytest.raises(BudgetError, match="a budget of keep"):
        restructure(model, params, {"**": Keep([])}, budget=Budget(keep=0.5))
    with pytest.raises(ShapeError, match="unroll_layers"):
        restructure(*zoo.scan_layers(model, params), {"**": Keep([])})
    mlp = params["layer_1"]["mlp"]
    low = LowRank(mlp["up"]["kernel"][:, :1], mlp["up"]["kernel"][:1])
    factored = params | {"layer_1": params["layer_1"] | {"mlp": mlp | {"up": {"kernel": low}}}}
    with pytest.raises(ShapeError, match="layer_1/mlp/up/kernel: got a factored weight"):
        restructure(model, factored, {"**": Keep([])})


def test_a_config_that_misses_a_change_is_caught(llama):
    with pytest.raises(ShapeError, match="layer_0/mlp/up/kernel: got shape None"):
        restructure(*llama, {"**": Drop([])})
