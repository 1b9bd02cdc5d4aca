"""What a key may ask of its account: credits, and what was used, as the books have it."""

from datetime import UTC, date, datetime, timedelta
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.core import Plan, Usage
from serving.dialects.dreamgen.key import key_info
from serving.dialects.dreamgen.wire import UsedCredits
from serving.dialects.openai import wire
from serving.dialects.openai.billing import by_unit, days, in_cents
from serving.errors import InvalidRequest
from serving.ledger.base import Account, DayUsage, Grant, Key, month_of
from tests.dialects.adapters import ADAPTERS
from tests.service import PRICE, SM, XL, Running, bearer

KEY_INFO, USAGE = "/api/v1/key", "/v1/billing/usage"
DASHBOARD, SUBSCRIPTION = "/v1/dashboard/billing/usage", "/v1/dashboard/billing/subscription"
NOW = datetime(2026, 3, 1, 10, tzinfo=UTC)
"""A Sunday: its week began in February."""


async def get(run: Running, path: str, key: str, **query: str) -> Any:  # noqa: ANN401  # JSON
    response = await run.client.get(path, params=query, headers=bearer(key))
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/json"
    return response.json()


async def generate(run: Running, key: str, model: str = SM) -> Usage:
    """One chat of 3 tokens."""
    run.play(model, script=lambda request: [("a", (10, 11)), "b"], cached_tokens=1)
    adapter = ADAPTERS["openai chat.completions"]
    body = adapter.body(stream=False, model=model)
    usage = (await run.client.post(adapter.path, json=body, headers=bearer(key))).json()["usage"]
    return Usage(usage["prompt_tokens"], 1, usage["completion_tokens"])


# ---- the native page of a key ----------------------------------------------------------------------------------------


async def test_a_key_of_a_metered_plan(run: Running) -> None:
    key, _ = await run.key_of("metered", cap=500_000)
    told = await get(run, KEY_INFO, key)
    _, _, resets_ms = month_of(round(datetime.now(UTC).timestamp() * 1000))
    assert told == {
        "success": True,
        "label": "a key of the tests",
        "plan": "metered",
        "limit": 1.0,
        "remaining": 1.0,
        "resetsAt": datetime.fromtimestamp(resets_ms / 1000, UTC).isoformat().replace("+00:00", "Z"),
        "usage": {"today": 0.0, "thisWeek": 0.0, "thisMonth": 0.0},
        "key": {"limit": 0.5, "remaining": 0.5, "used": 0.0},
    }
    cost = PRICE.cost(await generate(run, key)) / 1_000_000
    told = await get(run, KEY_INFO, key)
    assert told["usage"] == {"today": cost, "thisWeek": cost, "thisMonth": cost}
    assert (told["remaining"], told["key"]["remaining"], told["key"]["used"]) == (1 - cost, 0.5 - cost, cost)


async def test_a_key_of_an_unlimited_plan(run: Running) -> None:
    key, _ = await run.key_of("unlimited")
    cost = PRICE.cost(await generate(run, key)) / 1_000_000
    told = await get(run, KEY_INFO, key)
    assert (told["limit"], told["remaining"], told["resetsAt"]) == (None, None, None)
    assert told["usage"]["thisMonth"] == cost
    assert told["key"] == {"limit": None, "remaining": None, "used": cost}


async def test_what_another_key_of_the_account_used_counts(run: Running) -> None:
    first, record = await run.key_of("metered")
    second, _ = await run.keys.create("another", record.account)
    await generate(run, first)
    told = await get(run, KEY_INFO, second)
    assert told["remaining"] < 1
    assert told["usage"]["today"] > 0
    assert told["key"]["used"] == 0


async def test_bought_credits_are_among_what_remains(run: Running) -> None:
    key, record = await run.key_of("metered")
    await run.ledger.grant(record.account, Grant("bought", 2_500_000))
    told = await get(run, KEY_INFO, key)
    assert (told["limit"], told["remaining"]) == (1.0, 3.5)


def test_weeks_begin_on_monday_and_months_on_their_first() -> None:
    lines = [DayUsage(day, "k", SM, 1, Usage(), cost) for day, cost in USED.items()]
    told = key_info(Key("k", "a", "label", "", ""), Account("a", "p"), Plan("p", monthly_credits=1), lines, NOW)
    assert told.usage == UsedCredits(today=4.0, this_week=7.0, this_month=4.0)
    assert told.resets_at == datetime(2026, 4, 1, tzinfo=UTC)


USED = {"2026-02-22": 1_000_000, "2026-02-23": 1_000_000, "2026-02-28": 2_000_000, "2026-03-01": 4_000_000}


# ---- OpenAI's billing pages ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["/v1", "/api/openai/v1"])
async def test_usage_in_tokens_by_day(run: Running, prefix: str) -> None:
    key, _ = await run.key_of("metered")
    path = f"{prefix}/billing/usage"
    assert await get(run, path, key) == {"total_usage": 0, "daily": [], "object": "list"}
    used = await generate(run, key) + await generate(run, key, XL)
    today = datetime.now(UTC).date()
    told = await get(run, path, key)
    assert told["total_usage"] == used.total_tokens
    assert told["daily"] == [
        {
            "date": str(today),
            "requests": 2,
            "prompt_tokens": used.prompt_tokens,
            "cached_tokens": 2,
            "completion_tokens": 6,
            "total_tokens": used.total_tokens,
            "audio_seconds": 0,
            "images": 0,
        }
    ]
    tomorrow = today + timedelta(1)
    assert (await get(run, path, key, start_date=str(today), end_date=str(tomorrow))) == told
    for start, end in ((today, today), (tomorrow, tomorrow), (today - timedelta(9), today)):
        assert (await get(run, path, key, start_date=str(start), end_date=str(end)))["total_usage"] == 0


@pytest.mark.parametrize("prefix", ["/v1", "/api/openai/v1"])
async def test_the_dashboard_tells_what_is_left(run: Running, prefix: str) -> None:
    """As clients compute it: the hard limit, less a hundredth of this month's usage."""
    key, record = await run.key_of("metered")
    cost = PRICE.cost(await generate(run, key)) + PRICE.cost(await generate(run, key, XL))
    told = await get(run, f"{prefix}/dashboard/billing/usage", key)
    assert told["total_usage"] == cost / 10_000
    (day,) = told["daily_costs"]
    assert day["timestamp"] == datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0).timestamp()
    assert [item["name"] for item in day["line_items"]] == sorted([SM, XL])
    assert sum(item["cost"] for item in day["line_items"]) == pytest.approx(cost / 10_000)
    subscription = await get(run, f"{prefix}/dashboard/billing/subscription", key)
    limit = subscription.pop("hard_limit_usd")
    account = await run.ledger.account(record.account)
    assert account is not None
    assert limit - told["total_usage"] / 100 == pytest.approx(account.free / 1_000_000)
    assert subscription == {
        "object": "billing_subscription",
        "has_payment_method": True,
        "access_until": 0,
        "soft_limit_usd": limit,
        "system_hard_limit_usd": limit,
        "plan": {"id": "metered", "title": "metered"},
    }


async def test_no_limit_is_a_limit_that_nobody_reaches(run: Running) -> None:
    key, record = await run.key_of("unlimited", expires_ms=4_000_000_000_500)
    told = await get(run, SUBSCRIPTION, key)
    assert (told["hard_limit_usd"], told["access_until"]) == (100_000_000, 4_000_000_000)
    assert record.expires_ms == 4_000_000_000_500


@pytest.mark.parametrize("path", [USAGE, DASHBOARD])
@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"start_date": "yesterday"}, "start_date"),
        ({"start_date": ""}, "start_date"),
        ({"end_date": "2026-02-30"}, "end_date"),
        ({"end_date": "2026-1-1"}, "end_date"),
        ({"end_date": "20260101"}, "end_date"),
        ({"start_date": "2026-01-02", "end_date": "2026-01-01"}, "start_date"),
        ({"start_date": "2024-01-01", "end_date": "2025-01-02"}, "start_date"),
        ({"start_date": "0001-01-01", "end_date": "9999-12-31"}, "start_date"),
    ],
)
async def test_days_that_cannot_be(run: Running, path: str, query: dict[str, str], field: str) -> None:
    response = await run.client.get(path, params=query)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert (error["param"], error["type"]) == (field, "invalid_request_error")
    assert field in error["message"]
    assert "yesterday" not in error["message"]


async def test_a_leap_year_is_not_too_long(run: Running) -> None:
    for path in (USAGE, DASHBOARD):
        response = await run.client.get(path, params={"start_date": "2024-01-01", "end_date": "2025-01-01"})
        assert (response.status_code, response.json()["total_usage"]) == (200, 0)


DATES = st.dates(date(2026, 1, 1), date(2026, 1, 12))
LINES = st.lists(
    st.builds(
        DayUsage,
        DATES.map(str),
        st.sampled_from(["k1", "k2"]),
        st.sampled_from([SM, XL]),
        st.integers(1, 5),
        st.builds(Usage, st.integers(0, 9), st.just(0), st.integers(0, 9)),
        st.integers(0, 10**6),
    ),
    max_size=12,
)


@given(LINES, DATES)
def test_two_parts_of_a_period_are_the_period(lines: list[DayUsage], middle: date) -> None:
    parts = [line for line in lines if line.day < str(middle)], [line for line in lines if line.day >= str(middle)]
    whole, halves = by_unit(lines, {}), [by_unit(part, {}) for part in parts]
    assert whole.total_usage == sum(half.total_usage for half in halves)
    assert whole.daily == [line for half in halves for line in half.daily]
    assert [line.date for line in whole.daily] == sorted({date.fromisoformat(line.day) for line in lines})
    costs, half_costs = in_cents(lines), [in_cents(part) for part in parts]
    assert costs.total_usage == pytest.approx(sum(half.total_usage for half in half_costs))
    assert costs.daily_costs == [day for half in half_costs for day in half.daily_costs]
    items = [item.cost for day in costs.daily_costs for item in day.line_items]
    assert sum(items) == pytest.approx(costs.total_usage)


@given(LINES, st.sampled_from(["transcription", "image"]))
def test_what_is_no_tokens_is_not_counted_as_such(
    lines: list[DayUsage], kind: Literal["transcription", "image"]
) -> None:
    told = by_unit(lines, {XL: kind})
    tokens = sum(line.usage.total_tokens for line in lines if line.model == SM)
    others = sum(line.usage.total_tokens for line in lines if line.model == XL)
    assert told.total_usage == sum(day.total_tokens for day in told.daily) == tokens
    seconds, images = sum(day.audio_seconds for day in told.daily), sum(day.images for day in told.daily)
    assert (seconds, images) == ((others, 0) if kind == "transcription" else (0, others))
    assert sum(day.requests for day in told.daily) == sum(line.requests for line in lines)


def test_this_month_is_the_default() -> None:
    assert days(wire.UsageQuery(), NOW) == (date(2026, 3, 1), date(2026, 4, 1))
    assert days(wire.UsageQuery(), datetime(2026, 12, 31, 23, 59, tzinfo=UTC)) == (date(2026, 12, 1), date(2027, 1, 1))
    assert days(wire.UsageQuery(start_date=date(2026, 2, 7)), NOW) == (date(2026, 2, 7), date(2026, 4, 1))
    with pytest.raises(InvalidRequest):
        days(wire.UsageQuery(end_date=date(2026, 2, 7)), NOW)


@pytest.mark.parametrize("path", [KEY_INFO, USAGE, DASHBOARD, SUBSCRIPTION])
async def test_without_a_key_nothing_is_told(run: Running, path: str) -> None:
    response = await run.client.get(path, headers={"authorization": "Bearer none"})
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    response = await run.client.post(path)
    assert (response.status_code, response.headers["allow"]) == (405, "GET")
