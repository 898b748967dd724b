"""A record that was changed is found out; one that was not holds, here to the bit and elsewhere within the bound."""

import dataclasses
import math
import shutil

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import StopAfter, compile_quickly, time_little
from sampling import sample
from tampering import TAMPERED, change, change_info, close, timing

import gradbench
from gradbench.archive import again, integrity
from gradbench.archive import verify as module
from gradbench.archive.again import Pair, longest_sum
from gradbench.archive.verify import Verification, drawn_trials
from gradbench.errors import GradbenchError, PlanError
from gradbench.machine.devices import find_devices
from gradbench.record import manifest

ALL = 1000  # a sample of every trial


def eighteen_trials(out):
    """2 optimizers, 3 learning rates (the last diverges with sgd), 3 seeds whose minibatches differ."""
    settings = {"seeds": 3, "steps": 60, "batch_size": 64, "out": out}
    return gradbench.sweep("linear_regression", ["sgd", "adam"], [0.01, 0.1, 30.0], **settings)


@pytest.fixture(scope="module")
def honest(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        time_little(patch)
        compile_quickly(patch)
        return eighteen_trials(tmp_path_factory.mktemp("results"))


@pytest.fixture
def copy(honest, tmp_path, compiled_quickly):
    shutil.copytree(honest.path, tmp_path / honest.id)
    return tmp_path / honest.id


def test_an_honest_record_holds_to_the_bit(monkeypatch, tmp_path):
    time_little(monkeypatch)
    honest = eighteen_trials(tmp_path)  # compiled as a user's
    found = gradbench.verify(honest, sample=ALL)
    assert found.holds
    assert found.faults == []
    assert [row["result"] for row in found.rows] == ["bit for bit"] * 18
    assert found.facts["record_sha256"] == manifest.record_digest(honest.path)


@pytest.mark.parametrize("tamper", sample(TAMPERED, 3), ids=lambda tamper: tamper.__name__)
def test_a_change_is_found_even_under_a_new_manifest(copy, tamper):
    tamper(copy)
    close(copy)
    found = gradbench.verify(copy, sample=ALL)
    assert not found.holds
    said = "; ".join([*found.faults, *(row["result"] for row in found.rows)])
    assert TAMPERED[tamper] in said


@pytest.mark.parametrize("model", [None, "another"])
def test_where_another_cpu_rounded_a_fact_it_is_no_accusation(copy, model):
    """As beside a GPU of the same kind: NumPy rounds as its CPU's instructions do."""

    def edit(info):
        info["environment"]["cpu_model"] = model or info["environment"]["cpu_model"]
        info["problems"]["linear_regression"]["curvature"][0] *= 1 + 2**-50

    change_info(copy, edit)
    close(copy)
    assert gradbench.verify(copy, sample=1).holds == bool(model)


def test_a_change_under_the_old_manifest_is_found_without_a_replay(copy):
    timing(copy)
    found = gradbench.verify(copy, sample=1)
    assert "timings.parquet is changed since the record was closed" in found.faults


def test_a_record_whose_manifest_was_deleted_does_not_hold(copy):
    (copy / manifest.NAME).unlink()
    found = gradbench.verify(copy, sample=1)
    assert not found.holds
    assert found.faults == ["its manifest (manifest.json) is gone"]


def test_an_older_record_without_a_manifest_says_so_and_holds(copy):
    change_info(copy, lambda info: info.pop("manifest"))
    (copy / manifest.NAME).unlink()
    found = gradbench.verify(copy, sample=1)
    assert found.holds
    assert any("no manifest" in note for note in found.notes)


def test_the_stated_probability_is_how_often_a_sample_has_a_changed_trial():
    trials, changed, sample, draws = 90, 8, 20, 4000
    rows = [{"result": "bit for bit"}] * sample
    found = Verification("a", rows, [], [], trials, trials, 0)
    hits = sum(bool((drawn_trials(np.arange(trials), sample, seed) < changed).any()) for seed in range(draws))
    stated = found.chance(changed)
    assert stated == pytest.approx(1 - math.comb(trials - changed, sample) / math.comb(trials, sample))
    assert abs(hits / draws - stated) < 4 * math.sqrt(stated * (1 - stated) / draws)


def test_the_fewest_changed_trials_that_are_found_for_sure_enough():
    found = Verification("a", [{"result": "bit for bit"}] * 20, [], [], 900, 900, 0)
    assert found.chance(found.least_found) >= 0.95 > found.chance(found.least_found - 1)
    assert dataclasses.replace(found, replayable=20).least_found == 1


@pytest.fixture
def elsewhere(monkeypatch, compiled_quickly):
    """Here is another place than the record's: its program has one trial at a time."""
    real, block = module.environment, again.recorded_block
    monkeypatch.setattr(module, "environment", lambda *given: real(*given) | {"device_kind": "another"})
    monkeypatch.setattr(again, "recorded_block", lambda *of: dataclasses.replace(block(*of), lanes=1, relayout=False))


@pytest.mark.thorough
@pytest.mark.parametrize("problem", ["logistic_regression", "mlp[hidden=8]"])
def test_elsewhere_a_record_holds_within_the_bound_and_a_thousandth_is_found(sweep, elsewhere, problem):
    run = sweep(problem, ["sgd"], [0.03, 0.3, 3.0], seeds=1, steps=40, timing="none")
    found = gradbench.verify(run, sample=ALL)
    results = [row["result"] for row in found.rows]
    assert found.holds
    assert "within the bound" in results  # the other program does round otherwise

    predictable = next(row["trial"] for row in found.rows if row["horizon"] is None)

    def edit(rows):
        next(row for row in rows if row["trial"] == predictable and row["step"] == 20)["loss"] *= 1.001

    change(run.path, "curves", edit)
    close(run.path)
    found = gradbench.verify(run.path, sample=ALL)
    assert [row["trial"] for row in found.rows if row["result"] == "differs"] == [predictable]


LOGISTIC_MAP = '''
import jax.numpy as jnp
from gradbench import Problem

def problem():
    """A gradient step at rate 1 takes x to 4 x (1 - x), the logistic map, whose Lyapunov exponent is log 2."""
    return Problem(
        init=lambda key: jnp.float32(0.3), loss=lambda x, data: x**2 / 2 - 2 * x**2 + 4 * x**3 / 3 + 1, data=()
    )
'''


@pytest.mark.thorough
def test_the_horizon_is_where_theory_has_it(tmp_path, sweep, elsewhere, monkeypatch):
    """Errors of 2^-23 double at every step: at step n they are 2^(n - 23), and as large as the loss after 20 to 30."""
    (tmp_path / "chaos.py").write_text(LOGISTIC_MAP)
    monkeypatch.chdir(tmp_path)
    run = sweep("./chaos.py", ["sgd"], [1.0], seeds=1, steps=100, timing="none")
    pair = Pair.of(run, 0, find_devices("cpu"))
    twins = pair.shaken([0])["curves"].to_pylist()
    here = {row["step"]: row["loss"] for row in pair.replay([0])["curves"].to_pylist()}
    assert len({row["loss"] for row in twins if row["step"] == 20}) == len(twins) / 101  # they share a slot
    apart = {step: np.std([row["loss"] - here[step] for row in twins if row["step"] == step]) for step in here}
    early, late = (np.mean([math.log2(apart[step]) for step in steps]) for steps in (range(4, 8), range(14, 18)))
    assert (late - early) / 10 == pytest.approx(1.0, abs=0.25)

    def edit(rows):
        for row in rows:
            row["loss"] += 1e-6 * (row["step"] == 40)

    change(run.path, "curves", edit)
    close(run.path)
    [row] = gradbench.verify(run.path, own_files=True).rows
    assert row["result"] in ("within the bound", "bit for bit")
    assert 12 <= row["horizon"] <= 30


@pytest.mark.usefixtures("compiled_quickly")
def test_files_that_a_record_names_are_not_run_unasked(tmp_path, sweep, monkeypatch):
    (tmp_path / "chaos.py").write_text(LOGISTIC_MAP)
    monkeypatch.chdir(tmp_path)
    run = sweep("./chaos.py", ["sgd"], [0.1], seeds=1, steps=5, timing="none")
    (tmp_path / "ran").unlink(missing_ok=True)
    with pytest.raises(GradbenchError, match=r"here: \./chaos.py: .* run with --own-files, own_files=True, only$"):
        gradbench.verify(run.path)
    assert gradbench.verify(run.path, own_files=True).holds
    (tmp_path / "chaos.py").write_text(LOGISTIC_MAP + "\nraise SystemError('run')\n")
    with pytest.raises(
        GradbenchError, match=r"replayed here: \./chaos.py here is not the file of this run, so it cannot"
    ):
        gradbench.verify(run.path, own_files=True)


@pytest.mark.usefixtures("compiled_quickly")
def test_an_optimizer_s_file_that_was_edited_is_no_accusation(tmp_path, sweep, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = "import optax\n\ndef make(learning_rate):\n    return optax.sgd(learning_rate)\n"
    (tmp_path / "mine.py").write_text(text)
    run = sweep("himmelblau", ["./mine.py:make", "sgd"], [1e-3], seeds=1, steps=5, timing="none")
    (tmp_path / "mine.py").write_text(text + "# edited\n")
    found = gradbench.verify(run.path, own_files=True)
    assert found.holds
    assert [row["result"] for row in found.rows] == ["not replayed", "bit for bit"]
    assert "./mine.py has changed since this run began, so it cannot be replayed here" in found.notes


@pytest.mark.thorough
def test_another_problem_file_is_found_whatever_is_drawn_and_left_out_trials_are_not_spoken_for(
    tmp_path, sweep, monkeypatch
):
    (tmp_path / "chaos.py").write_text(LOGISTIC_MAP)
    monkeypatch.chdir(tmp_path)
    run = sweep(["./chaos.py", "himmelblau"], ["sgd"], [1e-3], seeds=20, steps=5, timing="none")
    found = gradbench.verify(run, sample=30)
    assert found.holds
    assert (found.trials, found.replayable) == (40, 20)
    assert found.chance(1) == pytest.approx(found.replayed / 20)
    assert "nothing is known of the 20 trials left out" in str(found)
    (tmp_path / "chaos.py").write_text(LOGISTIC_MAP + "# another")
    himmelblau = next(seed for seed in range(99) if drawn_trials(np.arange(40), 1, seed)[0] >= 20)
    found = gradbench.verify(run, sample=1, seed=himmelblau)
    assert found.holds
    assert "./chaos.py here is not the file of this run, so it cannot be replayed here" in found.notes


@pytest.mark.usefixtures("compiled_quickly")
def test_a_problem_given_as_an_object_is_verified_by_its_own_process(sweep):
    run = sweep(gradbench.load_problem("himmelblau"), ["sgd"], [1e-3], seeds=2, steps=5, timing="none")
    assert gradbench.verify(run).holds
    with pytest.raises(GradbenchError, match="was given as an object"):
        gradbench.verify(run.path)


@pytest.mark.usefixtures("compiled_quickly")
def test_an_interrupted_run_holds_as_far_as_it_came(tmp_path, small_blocks):
    small_blocks(lanes=1, rows=8)
    plan = gradbench.SweepPlan(["himmelblau"], ["sgd"], [1e-4, 1e-3, 1e-2], seeds=2, steps=30, timing="none")
    run = gradbench.run_plan(plan, out=tmp_path, watcher=StopAfter(8))
    assert run.info["state"] == "interrupted"
    assert 0 < run.trials.num_rows < 6
    found = gradbench.verify(run)
    assert found.holds
    assert found.faults == []
    assert "the run is interrupted" in found.notes[0]


def test_bad_input_is_one_line(honest):
    with pytest.raises(PlanError, match="sample: need at least 1"):
        gradbench.verify(honest, sample=0)
    with pytest.raises(PlanError, match="seed: need a whole number of at least 0, got -1"):
        gradbench.verify(honest, seed=-1)


def test_the_longest_sum_is_that_of_the_products_and_the_mean():
    import jax

    def loss(w, x):
        return jnp.mean((x @ w) ** 2)

    traced = jax.make_jaxpr(loss)(jnp.ones(7), jnp.ones((11, 7)))
    assert longest_sum(traced) == 11


@pytest.mark.usefixtures("compiled_quickly")
@pytest.mark.parametrize(
    "settings",
    sample(
        [
            {"optimizers": ("sgd[momentum=0.5|0.9]", "adam")},
            {"search": "refine"},
            {"search": "halving", "seeds": 4},
            {"batch_size": (32, 64)},
            {"design": "random:5", "optimizers": ("sgd[momentum=0:0.9:3]",)},
            {"budget": "5trials"},
        ],
        2,
    ),
    ids=lambda settings: next(iter(settings)),
)
def test_records_of_axes_searches_designs_and_budgets_hold(sweep, small_blocks, settings):
    small_blocks(lanes=2, rows=3)
    plan = {"optimizers": ("sgd",), "learning_rates": "1e-2:1:5", "seeds": 2, "steps": 27, "timing": "none"}
    run = sweep("linear_regression", **plan | settings)
    found = module.verify_run(run, sample=200, seed=0)
    assert [row for row in found.rows if row["result"] != "bit for bit"] == []
    assert found.faults == []
    assert len(found.rows) == run.trials.num_rows


@pytest.mark.usefixtures("compiled_quickly")
@pytest.mark.parametrize(
    "settings",
    sample([{"search": "halving"}, {"budget": "5trials"}, {"search": "range-test"}, {"budget": "50steps"}], 2),
    ids=str,
)
def test_a_trial_that_a_plan_has_to_have_is_missed_under_searches_and_budgets_too(sweep, settings):
    plan = {"learning_rates": "1e-3:1:3", "seeds": 3, "steps": 9, "timing": "none"}
    run = sweep("linear_regression", ["sgd", "adam"], **plan | settings)
    assert integrity.faults(run) == []
    for name in ("trials", "curves"):
        change(run.path, name, lambda rows: [row for row in rows if row["trial"] != 1])
    close(run.path)
    assert integrity.faults(gradbench.load_run(run.path)) == ["trial 1: of the plan, and not in the record"]


@pytest.mark.usefixtures("compiled_quickly")
@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"search": "refine"}, "what refine asks for is not asked again: a trial of it that is gone is not missed"),
        ({"budget": "100s"}, "a trial that is gone is not missed: the budget, 100s, may have left it out"),
    ],
)
def test_what_is_not_missed_is_said(sweep, settings, said):
    run = sweep("himmelblau", ["sgd"], "1e-4:1e-2:3", seeds=1, steps=5, timing="none", **settings)
    assert said in module.verify_run(run, sample=1).notes


@pytest.mark.thorough
@pytest.mark.usefixtures("compiled_quickly")
def test_the_first_of_trials_that_found_the_same_best_is_the_reference_whatever_its_dtype(sweep):
    """Down a slope to a floor of 0 that all reach but the first pair, in bfloat16: the next is of float32."""
    floor = gradbench.Problem(lambda key: jnp.ones(1), lambda x, data: jnp.maximum(x, 0.0).sum(), (), name="floor")
    optimizers = {
        "slow": lambda learning_rate: optax.sgd(0.3 * learning_rate),
        "fast": lambda learning_rate: optax.sgd(learning_rate),
    }
    run = sweep(floor, optimizers, [0.279], seeds=1, steps=12, dtype=("bfloat16", "float32"), timing="none")
    best = run.trials["best_loss"].to_pylist()
    assert best[0] > 0
    assert best[1:] == [0, 0, 0]
    assert run.info["references"]["floor"]["trial"] == 1
    assert integrity.faults(run) == []


@pytest.mark.usefixtures("compiled_quickly")
def test_a_record_whose_time_was_up_holds_with_the_curves_of_trials_that_it_gave_up(sweep, small_blocks, monkeypatch):
    small_blocks(lanes=1, rows=3)
    looks = iter([False] * 5)  # five chunks: the first trials have ended, the next are under way
    monkeypatch.setattr("gradbench.search.queue.Spending.over", lambda *_: next(looks, True))
    run = sweep("himmelblau", ["sgd"], "1e-4:1e-2:9", seeds=1, steps=10, budget="60s", timing="none")
    ended, begun = (set(table["trial"].to_pylist()) for table in (run.trials, run.curves))
    assert ended < begun
    assert integrity.faults(run) == []


@pytest.mark.thorough
@pytest.mark.usefixtures("compiled_quickly")
def test_a_halving_whose_last_epoch_is_not_whole_holds(sweep):
    """27 steps in epochs of 4: the end is observed 3 steps after the last whole epoch."""
    plan = {"search": "halving", "batch_size": 100, "seeds": 3, "steps": 27, "timing": "none"}
    run = sweep("linear_regression", ["sgd"], "1e-2:1:5", **plan)
    assert len({*run.trials["steps_run"].to_pylist(), 27}) == 2  # some stop at the rung, some go on to the end
    found = module.verify_run(run, sample=15)
    assert {row["result"] for row in found.rows} == {"bit for bit"}
    assert found.faults == []
