"""plans.toml: what it says is what a plan is, and a mistake in it is told with its place."""

from pathlib import Path

import pytest

from serving.accounts.plans import BUNDLED, PlanError, load_plans, plan_of
from serving.core import Plan
from serving.settings import DEMO_MODEL


def written(folder: Path, text: str) -> Path:
    path = folder / "plans.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_bundled_plans() -> None:
    plans = load_plans()
    assert list(plans) == ["free", "paid", "unlimited"]
    free, paid, unlimited = plans.values()
    assert free.monthly_credits is not None
    assert paid.monthly_credits is not None
    assert 0 < free.monthly_credits < paid.monthly_credits
    assert (free.metered, paid.metered, unlimited.metered) == (True, True, False)
    assert all(plan.api and plan.models is None for plan in plans.values())
    for name in ("max_concurrent", "requests_per_minute", "tokens_per_minute"):
        limits = [getattr(plan, name) for plan in plans.values()]
        assert limits == sorted(limits)
    # What the comments of the file say in tokens.
    assert free.monthly_credits * 1000 == 500_000 * DEMO_MODEL.price.output_per_1k
    assert paid.monthly_credits * 1000 == 25_000_000 * DEMO_MODEL.price.output_per_1k


def test_the_file_explains_every_key() -> None:
    comments = [line for line in BUNDLED.read_text(encoding="utf-8").splitlines() if line.startswith("# ")]
    explained = {line.split()[1] for line in comments}
    assert set(Plan.__dataclass_fields__) - {"id"} <= explained


def test_every_key(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        """
        [story-club]
        monthly_credits = "12.5"
        price_percent = 80
        models = ["opus-v1-sm", "dream/opus-v1-xl"]
        max_context_tokens = 4096
        max_output_tokens = 512
        max_concurrent = 1
        requests_per_minute = 6
        tokens_per_minute = 5000
        api = false
        """,
    )
    models = frozenset({"opus-v1-sm", "dream/opus-v1-xl"})
    assert load_plans(path) == {"story-club": Plan("story-club", models, 12_500_000, 80, 4096, 512, 1, 6, 5000, False)}


@pytest.mark.parametrize(("text", "amount"), [("0", 0), ("7", 7_000_000), ('"0.000001"', 1), ('"unlimited"', None)])
def test_monthly_credits_are_exact(tmp_path: Path, text: str, amount: int | None) -> None:
    plans = load_plans(written(tmp_path, f"[a]\nmonthly_credits = {text}\n"))
    assert plans["a"] == Plan("a", monthly_credits=amount)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("monthly_credit = 1", "unknown key 'monthly_credit'"),
        ("id = 'b'", "unknown key 'id'"),
        ("monthly_credits = -1", "monthly_credits must be 0 or more"),
        ("monthly_credits = 1.5", "monthly_credits must be a whole number, a string"),
        ("monthly_credits = true", "monthly_credits must be"),
        ("monthly_credits = '1e3'", "monthly_credits: '1e3' is no amount"),
        ("monthly_credits = 10_000_001", "monthly_credits: 10000001 credits are too many"),
        ("price_percent = -1", "price_percent must be a whole number from 0"),
        ("price_percent = 100.0", "price_percent must be a whole number"),
        ("max_concurrent = 0", "max_concurrent must be a whole number from 1"),
        ("max_context_tokens = -5", "max_context_tokens must be"),
        ("max_output_tokens = '9'", "max_output_tokens must be"),
        ("requests_per_minute = true", "requests_per_minute must be"),
        ("tokens_per_minute = 1_000_000_001", "tokens_per_minute must be"),
        ("api = 1", "api must be true or false"),
        ("models = []", "models must be a list of model ids"),
        ("models = 'opus-v1-sm'", "models must be a list of model ids"),
        ("models = ['']", "models must be a list of model ids"),
    ],
)
def test_a_mistake_is_told_with_its_place(tmp_path: Path, line: str, said: str) -> None:
    credit = "" if line.startswith("monthly_credits ") else 'monthly_credits = "unlimited"\n'
    path = written(tmp_path, f"[a]\n{credit}{line}\n")
    with pytest.raises(PlanError) as error:
        load_plans(path)
    told = str(error.value)
    assert told.startswith(f"{path}: a")
    assert said in told
    assert told.endswith(".")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "has no plan"),
        ("[a\n", "not valid TOML"),
        ("a = 1\n", "a must be a table"),
        ("[a]\nprice_percent = 50\n", "a lacks monthly_credits"),
        ("[A]\nmonthly_credits = 1\n", "lower case letters"),
        ('["a:b"]\nmonthly_credits = 1\n', "lower case letters"),
    ],
)
def test_a_file_that_holds_no_plans(tmp_path: Path, text: str, said: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(PlanError, match=said) as error:
        load_plans(path)
    assert str(path) in str(error.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"plans\.toml cannot be read"):
        load_plans(tmp_path / "plans.toml")
    (tmp_path / "bytes.toml").write_bytes(b"\xff")
    with pytest.raises(PlanError, match="not valid TOML"):
        load_plans(tmp_path / "bytes.toml")


def test_a_plan_that_is_none() -> None:
    plans = load_plans()
    assert plan_of(plans, "free") is plans["free"]
    with pytest.raises(PlanError, match=r"There is no plan 'fre'\. Known are: free, paid, unlimited\."):
        plan_of(plans, "fre")
