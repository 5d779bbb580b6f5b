"""Plans: budgets met to the parameter, reasons given, mistakes named, JSON round trip."""

import dataclasses
import functools
import json

import jax.numpy as jnp
import numpy as np
import pytest

from lrjax.calibrate import Probes, Stats, calibrate
from lrjax.compress import compress
from lrjax.decompose import (
    SVD,
    Banded,
    BlockSVD,
    Kronecker,
    Options,
    SharedBasis,
    Spec,
    TensorTrain,
    Tucker,
)
from lrjax.errors import ArtefactError, BudgetError, RankError, RuleError, ShapeError, StatsError
from lrjax.formats import LowRank
from lrjax.formats.layout import Layout
from lrjax.lift import Usage, Use, UseKind, WeightUse
from lrjax.metrics import Moments
from lrjax.ops import densify
from lrjax.plan import Budget, Global, Plan, Uniform, plan


def matrix(rng, m, n, decay, dtype=np.float32):
    u, _ = np.linalg.qr(rng.normal(size=(m, min(m, n))))
    v, _ = np.linalg.qr(rng.normal(size=(n, min(m, n))))
    return jnp.asarray((u * np.arange(1, min(m, n) + 1) ** -decay) @ v.T, dtype)


@pytest.fixture(scope="module")
def params():
    rng = np.random.default_rng(0)
    return {
        "a": {"kernel": matrix(rng, 40, 24, 0.2), "bias": jnp.zeros(24)},
        "b": {"kernel": matrix(rng, 24, 60, 1.0), "bias": jnp.zeros(60)},
        "c": {"kernel": matrix(rng, 60, 30, 2.0)},
        "stack": jnp.stack([matrix(rng, 20, 30, d) for d in (0.3, 0.8, 1.5)]),
        "ids": jnp.arange(12).reshape(3, 4),
    }


def use(path, layout, shape, kind=UseKind.DOT):
    one = Use(kind, layout.rows, layout.cols, (0,), "x", "", shape, "dot_general", "model.py:1 (f)")
    return WeightUse(path, shape, "float32", layout, (one,))


USAGE = {"stack": use("stack", Layout((1,), (2,)), (3, 20, 30))}
KERNELS = {"**/kernel": SVD(), "stack": SVD()}
SIZE = 40 * 24 + 24 * 60 + 60 * 30 + 3 * 20 * 30


def tails(w):
    s = np.linalg.svd(np.asarray(w, np.float64), compute_uv=False)
    return np.append(np.cumsum((s**2)[..., ::-1], -1)[..., ::-1], np.zeros((*s.shape[:-1], 1)), -1)


@pytest.mark.parametrize("keep", [0.2, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("allocation", [Global(), Uniform()])
def test_parameters_stay_within_the_budget(params, keep, allocation):
    p = plan(params, KERNELS, budget=Budget(keep=keep), allocation=allocation)
    assert sum(e.params for e in p.entries) <= keep * SIZE
    if isinstance(allocation, Global):
        assert sum(e.params for e in p.entries) > 0.98 * keep * SIZE
    for e in p.factored:
        assert e.params < e.dense_params


def test_predicted_losses_are_the_tails_of_the_spectrum(params):
    p = plan(params, KERNELS, budget=Budget(keep=0.4), usage=USAGE)
    for e in p.factored:
        w = params[e.path.split("/")[0]]
        w = w["kernel"] if isinstance(w, dict) else w
        want = np.atleast_2d(tails(w))[:, e.spec.rank].sum()
        np.testing.assert_allclose(e.loss, want, rtol=1e-3)
        np.testing.assert_allclose(e.total, np.sum(np.asarray(w) ** 2), rtol=1e-4)


def test_uniform_gives_every_weight_the_rank_that_papers_count(params):
    p = plan(params, {"**/kernel": SVD()}, budget=Budget(keep=0.5), allocation=Uniform())
    for path, (m, n) in {"a/kernel": (40, 24), "b/kernel": (24, 60), "c/kernel": (60, 30)}.items():
        assert p[path].spec.rank == int(0.5 * m * n / (m + n))


def test_global_beats_uniform_and_spends_where_spectra_are_flat(params):
    budget = Budget(keep=0.5)
    best = plan(params, KERNELS, budget=budget, allocation=Global())
    even = plan(params, KERNELS, budget=budget, allocation=Uniform())
    relative = lambda p: sum(e.relative_loss for e in p.entries)
    assert relative(best) < 0.8 * relative(even)
    assert best["a/kernel"].keep > best["b/kernel"].keep > best["c/kernel"].keep


def test_global_equals_brute_force_over_ranks(params):
    """Relative losses of two weights, every pair of ranks and staying dense."""
    two = {"a": params["a"]["kernel"], "b": params["b"]["kernel"]}
    options = []
    for w in two.values():
        m, n = w.shape
        t = tails(w) / np.sum(np.asarray(w, np.float64) ** 2)
        ranks = [r for r in range(1, min(m, n) + 1) if r * (m + n) < m * n]
        options.append([(r * (m + n), t[r]) for r in ranks] + [(m * n, 0.0)])
    money = int(0.55 * (40 * 24 + 24 * 60))
    want = min(ea + eb for ca, ea in options[0] for cb, eb in options[1] if ca + cb <= money)
    p = plan(two, {"*": SVD()}, budget=Budget(keep=0.55), allocation=Global())
    np.testing.assert_allclose(sum(e.relative_loss for e in p.entries), want, rtol=1e-3)


def test_ranks_are_multiples_of_the_tile(params):
    p = plan(params, KERNELS, budget=Budget(keep=0.6), tile=4)
    assert p.factored
    assert all(e.spec.rank % 4 == 0 for e in p.factored)


def test_bytes_of_the_whole_tree(params):
    whole = sum(x.nbytes for x in [*params["a"].values(), *params["b"].values()])
    whole += params["c"]["kernel"].nbytes + params["stack"].nbytes + params["ids"].nbytes
    limit = int(0.6 * whole)
    p = plan(params, KERNELS, budget=Budget(bytes=limit), allocation=Global())
    spent = whole - sum(e.dense_bytes - e.bytes for e in p.entries)
    assert 0.97 * limit < spent <= limit


def test_usage_says_which_dims_are_stacked_and_what_cannot_be_factored(params):
    assert plan(params, {"stack": SVD(rank=2)})["stack"].params == 2 * (60 + 30)
    p = plan(params, {"stack": SVD(rank=2)}, usage=USAGE)
    assert p["stack"].params == 3 * 2 * (20 + 30)
    odd = {"c/kernel": use("c/kernel", Layout((0,), (1,)), (60, 30), UseKind.ELEMENTWISE)}
    p = plan(params, {"**/kernel": SVD()}, budget=Budget(keep=0.5), usage=odd)
    assert "model.py:1" in p["c/kernel"].reason


def test_a_looked_up_table_has_no_flops_to_save(params):
    table = {"c/kernel": use("c/kernel", Layout((0,), (1,)), (60, 30), UseKind.LOOKUP)}
    rules, budget = {"**/kernel": SVD()}, Budget(flops=3000)
    p = plan(params, rules, budget=budget, usage=table, allocation=Global())
    assert p["c/kernel"].spec is None
    assert p["c/kernel"].flops == 0
    p = plan(params, {"c/kernel": SVD(rank=3)}, usage=table)
    assert p["c/kernel"].flops == 2 * 3 * 30


def test_flops_budget_and_groups(params):
    groups = {"stack": Budget(flops=2400), "**": Budget(keep=0.5)}
    p = plan(params, KERNELS, budget=groups, usage=USAGE)
    assert p["stack"].flops <= 2400
    rest = [e for e in p.entries if e.path != "stack"]
    assert sum(e.params for e in rest) <= 0.5 * sum(e.dense_params for e in rest)
    assert len(p.budgets) == 2


def test_fixed_ranks_need_no_budget_and_count_within_one(params):
    p = plan(params, {"a/kernel": SVD(rank=3), "b/kernel": SVD(keep=0.5)})
    assert p["a/kernel"].spec.rank == 3
    assert p["b/kernel"].spec.rank == int(0.5 * 24 * 60 / 84)
    p = plan(params, {"a/kernel": SVD(rank=3), "**/kernel": SVD()}, budget=Budget(keep=0.4))
    assert p["a/kernel"].spec.rank == 3
    assert p.keep <= 0.4


def test_broad_glob_leaves_vectors_and_integers_dense_with_reasons(params):
    p = plan(params, {"**": SVD()}, budget=Budget(keep=0.5))
    assert p["a/bias"].spec is None
    assert "1-D" in p["a/bias"].reason
    assert "int" in p["ids"].reason
    assert sum(e.params for e in p.entries if e.dense_params > 60) <= 0.5 * SIZE + 12


def test_none_keeps_dense(params):
    p = plan(params, {"c/kernel": None, "**/kernel": SVD()}, budget=Budget(keep=0.5))
    assert p["c/kernel"].spec is None
    assert p["c/kernel"].reason == "dense by rule"
    assert p["a/kernel"].params + p["b/kernel"].params <= 0.5 * (960 + 1440)


def test_staying_dense_is_an_option():
    rng = np.random.default_rng(3)
    flat, steep = matrix(rng, 20, 30, 0.0), matrix(rng, 20, 30, 3.0)
    p = plan(
        {"flat": flat, "steep": steep}, {"*": SVD()}, budget=Budget(keep=0.7), allocation=Global()
    )
    assert p["flat"].spec is None
    assert "worth" in p["flat"].reason
    assert p["steep"].spec is not None


def test_shared_leaves_are_planned_and_counted_once():
    w = matrix(np.random.default_rng(1), 20, 30, 1.0)
    p = plan({"embed": w, "head": w}, {"*": SVD()}, budget=Budget(keep=0.5))
    assert p["head"].shared == "embed"
    assert p["head"].params == p["head"].dense_params == 0
    assert p["embed"].params <= 300
    p = plan({"embed": w, "head": w}, {"head": SVD()}, budget=Budget(bytes=1200))
    assert p["head"].bytes <= 1200


def test_plans_are_deterministic_hashable_and_round_trip_json(params, tmp_path):
    p = plan(params, KERNELS, budget=Budget(keep=0.5))
    assert p == plan(params, KERNELS, budget=Budget(keep=0.5))
    again = Plan.from_json(json.loads(json.dumps(p.to_json())))
    assert again == p
    assert hash(again) == hash(p)
    p.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == p
    with pytest.raises(FileExistsError):
        p.save(tmp_path / "plan.json")


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"version": 99}', '{"version": 1}'])
def test_files_that_are_no_plans_are_named(tmp_path, text):
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(ArtefactError):
        Plan.load(tmp_path / "plan.json")


def test_the_table_is_aligned_and_says_all(params):
    lines = str(plan(params, {"**": SVD()}, budget=Budget(keep=0.5))).splitlines()
    assert lines[0].split() == [
        "path",
        "shape",
        "format",
        "rank",
        "keep",
        "bytes",
        "loss",
        "reason",
    ]
    assert any("a/kernel" in line and "40x24" in line and "SVD" in line for line in lines)
    assert "total" in lines[-1]


@dataclasses.dataclass(frozen=True, repr=False)
class Blocky(Spec):
    """A stand-in format of one size: a tenth of the parameters at a fixed share of the loss."""

    share: float = 0.0

    def options(self, shape, dtype, layout, spectrum):
        size, loss = np.prod(shape) // 10, self.share * np.sum(np.asarray(spectrum) ** 2)
        return Options(np.array([1]), np.array([size]), np.array([2 * size]), np.array([loss]))

    def with_rank(self, rank):
        return self


@pytest.mark.parametrize(("share", "winner"), [(0.01, "Blocky"), (0.9, "SVD")])
def test_of_several_candidates_the_least_loss_for_the_cost_wins(params, share, winner):
    rules = {"a/kernel": [SVD(), Blocky(share=share)]}
    for allocation in (Global(), Uniform()):
        p = plan(params, rules, budget=Budget(keep=0.3), allocation=allocation)
        assert type(p["a/kernel"].spec).__name__ == winner


def test_formats_that_cannot_have_the_dims_are_refused_before_they_are_chosen():
    rng = np.random.default_rng(0)
    w = jnp.asarray(rng.normal(size=(30, 3, 14)), jnp.float32)
    usage = {"heads": use("heads", Layout((0,), (1, 2)), w.shape, UseKind.DOT)}
    make = functools.partial(plan, {"heads": w}, usage=usage, trials=False)
    for misfit in (BlockSVD(2, (3, 2)), Kronecker(2, (3, 2)), Banded((1, 1), count=2)):
        with pytest.raises(ShapeError, match=r"heads: .*matrix alone"):
            make({"heads": misfit})
    rules = {"heads": [BlockSVD(grid=(3, 2)), TensorTrain(sweeps=0)]}
    p = make(rules, budget=Budget(keep=0.7))
    assert "BlockSVD: got" in p["heads"].reason
    found = compress({"heads": w}, p)["heads"]
    assert found.shape == w.shape
    lost = np.sum((np.asarray(w, np.float64) - np.asarray(densify(found))) ** 2)
    assert lost == pytest.approx(p["heads"].loss, rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_global_allocation_beats_uniform_on_the_measured_output(seed):
    """A small residual network under probes: same parameters, less change of its outputs."""
    rng = np.random.default_rng(seed)
    p = {f"l{i}": matrix(rng, 24, 24, 0.3 * i) * 8 for i in range(4)}
    apply = lambda p, x: functools.reduce(lambda h, w: h + jnp.tanh(h @ w), p.values(), x)
    x, other = (jnp.asarray(rng.normal(size=(400, 24)), jnp.float32) for _ in range(2))
    stats = calibrate(apply, p, [x], probes=Probes(count=2))
    lost = {}
    for allocation in (Global(), Uniform()):
        chosen = plan(p, {"*": SVD()}, budget=Budget(keep=0.5), stats=stats, allocation=allocation)
        small = densify(compress(p, chosen, stats))
        lost[type(allocation)] = float(jnp.sum((apply(small, other) - apply(p, other)) ** 2))
    assert lost[Global] < 0.9 * lost[Uniform]


class TestMistakes:
    def test_rule_that_matches_nothing(self, params):
        with pytest.raises(RuleError, match=r"a/kernal.*a/kernel"):
            plan(params, {"a/kernal": SVD()}, budget=Budget(keep=0.5))

    def test_rule_that_matches_only_vectors_or_integers(self, params):
        with pytest.raises(RuleError, match=r"\*\*/bias.*1-D"):
            plan(params, {"**/bias": SVD()}, budget=Budget(keep=0.5))
        with pytest.raises(RuleError, match=r"ids.*int"):
            plan(params, {"ids": SVD()}, budget=Budget(keep=0.5))

    def test_no_rules_and_no_specs(self, params):
        with pytest.raises(RuleError):
            plan(params, {}, budget=Budget(keep=0.5))
        with pytest.raises(RuleError, match="a/kernel"):
            plan(params, {"a/kernel": []}, budget=Budget(keep=0.5))

    def test_budget_below_the_least_reachable(self, params):
        least = (64 + 84 + 90 + 150) / SIZE
        with pytest.raises(BudgetError, match=f"at least {least:.4f}"):
            plan(params, KERNELS, budget=Budget(keep=0.01), usage=USAGE)
        with pytest.raises(BudgetError, match="least"):
            plan(params, KERNELS, budget=Budget(bytes=10))

    def test_neither_budget_nor_rank(self, params):
        with pytest.raises(BudgetError, match=r"a/kernel.*rank"):
            plan(params, KERNELS)

    def test_a_group_without_budget(self, params):
        with pytest.raises(BudgetError, match="stack"):
            plan(params, KERNELS, budget={"**/kernel": Budget(keep=0.5)})

    @pytest.mark.parametrize("rank", [0, -1])
    def test_ranks_below_one(self, rank):
        with pytest.raises(RankError, match=f"rank={rank}"):
            SVD(rank=rank)

    @pytest.mark.parametrize("rank", [16, 25, 1000])
    def test_impossible_ranks_and_ranks_above_break_even(self, params, rank):
        """40 x 24: break-even is at 15; rank 15 costs as much as the dense weight."""
        with pytest.raises(RankError, match="a/kernel"):
            plan(params, {"a/kernel": SVD(rank=rank)})

    def test_nan_weights(self, params):
        bad = {"w": params["a"]["kernel"].at[3, 4].set(jnp.nan)}
        with pytest.raises(StatsError, match=r"w: .*NaN"):
            plan(bad, {"w": SVD()}, budget=Budget(keep=0.5))

    def test_weights_that_are_factored_already(self):
        w = LowRank(jnp.ones((4, 2)), jnp.ones((2, 5)))
        with pytest.raises(ShapeError, match=r"w: .*factored already"):
            plan({"w": w}, {"w": SVD()}, budget=Budget(keep=0.5))

    @pytest.mark.parametrize("tile", [0, -8, True])
    def test_tiles(self, params, tile):
        with pytest.raises(BudgetError, match="tile"):
            plan(params, KERNELS, budget=Budget(keep=0.5), tile=tile)

    @pytest.mark.parametrize(
        "limits",
        [{}, {"keep": 0.5, "bytes": 3}, {"keep": 0}, {"keep": 1.5}, {"keep": float("nan")},
         {"keep": True}, {"bytes": -1}, {"flops": 0}],
    )  # fmt: skip
    def test_malformed_budgets(self, limits):
        with pytest.raises(BudgetError):
            Budget(**limits)


class TestCandidates:
    """Several formats for one weight: compared by what they lose, at one cost, in words."""

    def test_the_format_of_the_planted_structure_wins_and_the_reason_says_over_what(self):
        rng = np.random.default_rng(0)
        terms = [(rng.normal(size=(4, 6)), rng.normal(size=(6, 5))) for _ in range(2)]
        noise = 0.05 * rng.normal(size=(24, 30))
        params = {
            "kron": jnp.asarray(sum(np.kron(a, b) for a, b in terms) + noise, jnp.float32),
            "low": matrix(rng, 24, 30, 2.0),
            "flat": matrix(rng, 24, 30, 0.0),
        }
        rules = {"*": [SVD(), Kronecker(), SharedBasis()]}
        p = plan(params, rules, budget=Budget(keep=0.6), allocation=Global())
        assert type(p["kron"].spec) is Kronecker
        assert "least loss: loss of SVD" in p["kron"].reason
        assert type(p["low"].spec) is SVD
        assert "none helps, stays SVD" in p["low"].reason
        assert "Kronecker" in p["low"].reason
        assert "SharedBasis: got shape" in p["low"].reason
        assert p["flat"].spec is None
        assert "none of the candidates helps: SVD loses" in p["flat"].reason
        assert [type(r.spec) for r in p["kron"].rivals] == [SVD, SharedBasis]
        low, basis = p["kron"].rivals
        assert low.params <= p["kron"].params < low.params + 24 + 30
        tail = np.linalg.svd(np.asarray(params["kron"]), compute_uv=False)[low.spec.rank :]
        np.testing.assert_allclose(low.loss, np.sum(tail**2), rtol=1e-3)
        assert basis.loss is None
        assert "got shape" in basis.why
        small = compress(params, p)
        for e in p.factored:
            w, found = np.asarray(params[e.path]), np.asarray(densify(small[e.path]))
            np.testing.assert_allclose(np.sum((w - found) ** 2), e.loss, rtol=0.05, atol=1e-4)
        assert Plan.from_json(json.loads(json.dumps(p.to_json()))) == p

    @pytest.mark.slow
    def test_trials_correct_what_bounds_overrate(self):
        """The sum of a Tucker form's tails is up to twice what it loses."""
        rng = np.random.default_rng(1)
        params = {"w": matrix(rng, 40, 24, 0.3)}
        rules, spec = {"w": [Tucker(smallest=1), Kronecker(1, (8, 4))]}, Tucker(smallest=1)
        budget = Budget(keep=0.4)
        bound, tried = plan(params, {"w": spec}, budget=budget), plan(params, rules, budget=budget)
        assert type(tried["w"].spec) is Tucker
        lost = {}
        for name, p in (("bound", bound), ("tried", tried)):
            found = np.asarray(densify(compress(params, p)["w"]))
            lost[name] = np.sum((np.asarray(params["w"]) - found) ** 2)
        assert bound["w"].loss > 1.2 * lost["bound"]
        np.testing.assert_allclose(tried["w"].loss, lost["tried"], rtol=0.15)

    def test_a_train_is_measured_at_the_tiles_that_it_offers(self):
        w = matrix(np.random.default_rng(2), 32, 24, 0.5)
        p = plan({"w": w}, {"w": TensorTrain(count=2)}, budget=Budget(keep=0.7), tile=4)
        assert all(r % 4 == 0 for r in p["w"].spec.rank)
        rebuilt = densify(compress({"w": w}, p)["w"])
        np.testing.assert_allclose(p["w"].loss, jnp.sum((w - rebuilt) ** 2), rtol=0.1)

    @pytest.mark.slow
    def test_tiles_round_what_is_a_rank_in_each_format(self):
        rng = np.random.default_rng(2)
        w = matrix(rng, 64, 48, 0.5)
        for spec in (Kronecker(), Tucker(), TensorTrain(count=2), SVD()):
            p = plan({"w": w}, {"w": spec}, budget=Budget(keep=0.7), tile=4)
            ranks = np.atleast_1d(p["w"].spec.rank)
            full = (64, 48)
            assert all(r % 4 == 0 or r in full for r in ranks), spec
        stack = jnp.stack([w] * 3)
        u = {"w": use("w", Layout((1,), (2,)), (3, 64, 48))}
        p = plan({"w": stack}, {"w": SharedBasis()}, budget=Budget(keep=0.5), tile=8, usage=u)
        assert all(r % 8 == 0 or r in (64, 48) for r in p["w"].spec.rank)

    def test_a_fixed_rank_above_break_even_is_taken_where_the_spec_allows_it(self, params):
        spec = SVD(rank=20, allow_above_break_even=True)
        p = plan(params, {"a/kernel": spec})
        assert p["a/kernel"].spec.rank == 20
        p = plan(
            params,
            {"a/kernel": spec, "**/kernel": SVD()},
            budget=Budget(keep=0.8),
            allocation=Global(),
        )
        assert p["a/kernel"].spec.rank == 20
        small = compress(params, p)
        assert small["a"]["kernel"].rank == 20
        p = plan(params, {"a/kernel": [spec, Kronecker()]}, budget=Budget(keep=1.0))
        assert p["a/kernel"].params <= 40 * 24

    def test_entries_that_see_few_tokens_count_little_in_every_format(self):
        """Two equal weights, one used by a tenth of the tokens: its loss is a tenth."""
        rng = np.random.default_rng(3)
        w = matrix(rng, 24, 30, 0.5)
        params = {"often": w, "seldom": w + 0}
        moments = lambda n: Moments(jnp.float32(n), None, jnp.eye(24))
        args = (UseKind.DOT, (0,), (1,), ())
        one = lambda k: Use(*args, f"x:{k}", f"g:{k}", (24, 30), "dot_general", "model.py:1 (f)")
        uses = {k: WeightUse(k, (24, 30), "float32", Layout((0,), (1,)), (one(k),)) for k in params}
        inputs = {"x:often": moments(100), "x:seldom": moments(10)}
        stats = Stats(inputs, {}, jnp.float32(1), Usage(uses))
        for spec in (SVD(rank=4), Kronecker(2, (6, 5))):
            p = plan(params, {"*": spec}, stats=stats)
            np.testing.assert_allclose(0.1 * p["often"].loss, p["seldom"].loss, rtol=1e-3)
            np.testing.assert_allclose(0.1 * p["often"].total, p["seldom"].total, rtol=1e-3)
