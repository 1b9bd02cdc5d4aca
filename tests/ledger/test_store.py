"""The store on real servers: each caller gets its own answer or Overloaded, soon, whatever happens to the others."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from loadtests.fault_proxy import FaultProxy
from serving.errors import Overloaded
from serving.ledger.store import Store, StoreError
from tests.ledger.servers import RedisServer, binary, opened, recovered
from tests.service import until

TAG = "{s3a}"
TIMEOUT_S = 0.5
"""Of stores that are to run into it; the others have DEADLINE_S."""


@pytest.fixture
async def store(redis_server: RedisServer, scripts: Path) -> AsyncIterator[Store]:
    async with opened(redis_server.url, scripts) as store:
        yield store


@pytest.fixture
async def proxy(redis_server: RedisServer) -> AsyncIterator[FaultProxy]:
    async with FaultProxy(redis_server.url) as proxy:
        yield proxy


@pytest.fixture
async def impatient(proxy: FaultProxy, scripts: Path) -> AsyncIterator[Store]:
    """A store behind the proxy, connected, that waits for nothing longer than TIMEOUT_S."""
    async with opened(proxy.url, scripts, TIMEOUT_S) as store:
        await recovered(store)
        yield store


async def adds(store: Store, count: int) -> list[int | BaseException]:
    """The sums that so many concurrent callers, each of whom adds 1, are answered."""
    answers = await asyncio.gather(*(store.run("add", TAG, 1) for _ in range(count)), return_exceptions=True)
    return [answer if isinstance(answer, BaseException) else answer[0] for answer in answers]


def reads(server: RedisServer) -> int:
    """How often the server has read from a connection."""
    lines = str(server.command("INFO", "stats")).splitlines()
    return next(int(line.split(":")[1]) for line in lines if line.startswith("total_reads_processed:"))


# ---- answers ---------------------------------------------------------------------------------------------------------


async def test_each_of_many_callers_gets_its_own_answer(store: Store, redis_server: RedisServer) -> None:
    await store.run("echo", TAG, "")
    before = reads(redis_server)
    scripts = [store.run("echo", f"{{s{number % 256:02x}}}", f"ä{number}") for number in range(400)]
    commands = [store.command("ECHO", number) for number in range(400)]
    answers = await asyncio.gather(*scripts, *commands)
    assert answers[:400] == [[f"{{s{number % 256:02x}}}", f"ä{number}", 1, None, ["nested"]] for number in range(400)]
    assert answers[400:] == [str(number) for number in range(400)]
    assert reads(redis_server) - before < 80


async def test_answers_of_commands_are_as_they_came(store: Store) -> None:
    assert await store.command("HSET", f"{TAG}:h", "a", 1, "b", "") == 2
    assert await store.command("HGETALL", f"{TAG}:h") == ["a", "1", "b", ""]
    assert await store.command("GET", f"{TAG}:none") is None
    assert await store.command("SMEMBERS", f"{TAG}:none") == []


async def test_scripts_that_the_server_forgot_are_loaded_again(store: Store, redis_server: RedisServer) -> None:
    assert sorted(await adds(store, 20), key=str) == sorted(range(1, 21), key=str)
    redis_server.command("SCRIPT", "FLUSH")
    assert set(await adds(store, 100)) == set(range(21, 121))


async def test_what_is_wrong_with_one_call_is_its_callers_alone(store: Store) -> None:
    await store.run("add", TAG, 1)
    calls = [store.run("add", TAG, 1) for _ in range(10)]
    wrong = [store.run("fail", TAG), store.command("NONSENSE"), store.command("ECHO", "\ud800")]
    answers = await asyncio.gather(*calls[:5], *wrong, *calls[5:], return_exceptions=True)
    assert [type(answer) for answer in answers[5:8]] == [StoreError, StoreError, UnicodeEncodeError]
    assert "WRONGTYPE" in str(answers[5])
    assert list(answers[:5] + answers[8:]) == [[number] for number in range(2, 12)]


async def test_a_cancelled_caller_disturbs_nobody(store: Store, redis_server: RedisServer) -> None:
    await store.run("echo", TAG, "")
    redis_server.pause()
    tasks = [asyncio.create_task(store.run("echo", TAG, number)) for number in range(300)]
    for _ in range(2):  # some have been sent then, and some wait
        await asyncio.sleep(0)
        for task in tasks[::3]:
            task.cancel()
    redis_server.resume()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    for number, answer in enumerate(answers):
        if number % 3 == 0:
            assert isinstance(answer, asyncio.CancelledError)
        else:
            assert isinstance(answer, list)
            assert answer[1] == str(number)
    assert (await store.run("echo", TAG, "after"))[1] == "after"


async def test_calls_that_wait_when_it_is_closed_are_overloaded(redis_server: RedisServer, scripts: Path) -> None:
    async with opened(redis_server.url, scripts) as store:
        await store.run("echo", TAG, "")
        redis_server.pause()
        calls = [asyncio.create_task(store.run("echo", TAG, number)) for number in range(500)]
        await asyncio.sleep(0)
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert {type(answer) for answer in answers} == {Overloaded}
    with pytest.raises(Overloaded):
        await store.run("echo", TAG, "")


# ---- a store that is away --------------------------------------------------------------------------------------------


async def test_a_hanging_server_is_overloaded_in_time_then_at_once_and_comes_back(
    impatient: Store, redis_server: RedisServer
) -> None:
    redis_server.pause()
    started = time.monotonic()
    answers = await asyncio.gather(*(impatient.run("add", TAG, 1) for _ in range(400)), return_exceptions=True)
    assert {type(answer) for answer in answers} == {Overloaded}
    assert TIMEOUT_S <= time.monotonic() - started < 3 * TIMEOUT_S
    started = time.monotonic()
    with pytest.raises(Overloaded) as refused:
        await impatient.run("echo", TAG, "")
    assert refused.value.retry_after_s == 1
    assert time.monotonic() - started < TIMEOUT_S / 2
    redis_server.resume()
    await recovered(impatient)


async def test_a_network_that_swallows_everything_is_overloaded_and_comes_back(
    impatient: Store, proxy: FaultProxy
) -> None:
    proxy.hang()
    with pytest.raises(Overloaded):
        await impatient.run("echo", TAG, "")
    proxy.resume()
    await recovered(impatient)


async def test_a_loop_that_stood_still_is_no_silence_of_the_server(impatient: Store) -> None:
    """As when very many requests arrive at once: what was answered meanwhile is read before anybody gives up."""
    for turns in range(4):  # before it is sent, and after
        asking = asyncio.create_task(impatient.run("add", TAG, 1))
        for _ in range(turns):
            await asyncio.sleep(0)
        time.sleep(1.2 * TIMEOUT_S)  # noqa: ASYNC251  # that is the point
        assert await asking == [turns + 1]


async def test_a_slow_network_is_only_slow(impatient: Store, proxy: FaultProxy) -> None:
    proxy.delay_ms = 50
    started = time.monotonic()
    assert len(set(await adds(impatient, 200))) == 200
    assert time.monotonic() - started >= 0.1


async def test_a_lost_answer_is_overloaded_and_nothing_is_sent_again(impatient: Store, proxy: FaultProxy) -> None:
    await impatient.run("add", TAG, 0)
    proxy.cut_replies(0)
    with pytest.raises(Overloaded):
        await impatient.run("add", TAG, 1)
    await recovered(impatient)
    assert await impatient.command("GET", f"{TAG}:sum") == "1"


@pytest.mark.parametrize("after_bytes", [1, 100, 301])
async def test_answers_before_a_cut_are_told_and_the_others_lost(
    after_bytes: int, impatient: Store, proxy: FaultProxy
) -> None:
    await impatient.run("add", TAG, 0)
    proxy.cut_replies(after_bytes)
    answers = await adds(impatient, 60)
    told = [answer for answer in answers if isinstance(answer, int)]
    assert told == list(range(1, len(told) + 1))
    assert len(told) == after_bytes // len("*1\r\n:1\r\n") or after_bytes > 72  # the answers of one digit are 8 bytes
    assert {type(answer) for answer in answers[len(told) :]} == {Overloaded}
    await recovered(impatient)
    assert await impatient.command("GET", f"{TAG}:sum") == "60"


async def test_connections_that_died_while_nobody_called_are_replaced(impatient: Store, proxy: FaultProxy) -> None:
    proxy.cut()
    await until(lambda: proxy.connections == 0)
    assert await adds(impatient, 1) == [1]


async def test_nothing_is_decided_by_a_server_that_is_late(scripts: Path, tmp_path: Path) -> None:
    server = RedisServer(binary("6.2"), tmp_path / "redis")
    async with opened(server.url, scripts) as store:
        with pytest.raises(Overloaded):
            await store.run("echo", TAG, "")
        assert "does not answer" in (await store.problems())[0]
        try:
            server.start()
            await recovered(store)
            assert await store.problems() == []
        finally:
            server.kill()


async def test_a_server_that_cannot_write_is_overloaded_and_recovers(redis_server: RedisServer, scripts: Path) -> None:
    async with opened(redis_server.url, scripts) as store:
        await store.run("add", TAG, 1)
        redis_server.command("CONFIG", "SET", "maxmemory", 1)
        assert {type(answer) for answer in await adds(store, 3)} == {Overloaded}
        assert await store.command("GET", f"{TAG}:sum") == "1"
        redis_server.command("CONFIG", "SET", "maxmemory", 0)
        redis_server.command("REPLICAOF", "127.0.0.1", 1)
        assert {type(answer) for answer in await adds(store, 3)} == {Overloaded}
        redis_server.command("REPLICAOF", "NO", "ONE")
        await recovered(store)
        assert await adds(store, 1) == [2]


# ---- restarts and messages -------------------------------------------------------------------------------------------


async def test_a_restart_is_noticed_even_when_no_call_failed(store: Store, redis_server: RedisServer) -> None:
    restarts: list[str] = []
    store.on_restart(lambda: restarts.append("restart"))
    await adds(store, 300)
    assert restarts == []
    redis_server.restart()
    await recovered(store)
    assert restarts == ["restart"]
    assert await store.command("GET", f"{TAG}:sum") == "300"


async def test_a_cut_connection_is_no_restart(impatient: Store, proxy: FaultProxy) -> None:
    restarts: list[str] = []
    impatient.on_restart(lambda: restarts.append("restart"))
    await proxy.refuse()
    with pytest.raises(Overloaded):
        await impatient.run("echo", TAG, "")
    await proxy.accept()
    await recovered(impatient)
    assert restarts == []


async def test_a_primary_that_was_a_replica_meanwhile_is_another_one(store: Store, redis_server: RedisServer) -> None:
    """What it had acknowledged may have been thrown away for what another primary had."""
    restarts: list[str] = []
    store.on_restart(lambda: restarts.append("restart"))
    await store.run("echo", TAG, "")
    redis_server.command("REPLICAOF", "127.0.0.1", 1)
    redis_server.command("REPLICAOF", "NO", "ONE")
    redis_server.command("CLIENT", "KILL", "TYPE", "normal")  # as a Sentinel does
    await recovered(store)
    assert restarts == ["restart"]


async def test_without_info_any_recovery_may_be_a_restart(redis_server: RedisServer, scripts: Path) -> None:
    redis_server.command("ACL", "SETUSER", "default", "-info")
    restarts: list[str] = []
    async with opened(redis_server.url, scripts) as store:
        store.on_restart(lambda: restarts.append("restart"))
        await store.run("echo", TAG, "")
        redis_server.kill()
        with pytest.raises(Overloaded):
            await store.run("echo", TAG, "")
        redis_server.start()
        redis_server.command("ACL", "SETUSER", "default", "-info")
        await recovered(store)
        assert restarts == ["restart"]


async def test_a_listener_knows_when_it_may_have_missed_something(
    store: Store, impatient: Store, redis_server: RedisServer, proxy: FaultProxy
) -> None:
    heard: list[str] = []

    async def listen() -> None:
        async for message in impatient.listen("changes"):
            heard.append(message)  # noqa: PERF401  # one by one, as they come

    listening = asyncio.create_task(listen())
    await until(lambda: heard == [""])
    await store.publish("changes", "account:ä")
    await until(lambda: heard == ["", "account:ä"])
    proxy.cut()
    await until(lambda: heard[2:] == [""])
    proxy.hang()  # it asks whether anybody is there, and gets no answer
    accepted = proxy.accepted
    await until(lambda: proxy.accepted > accepted)
    proxy.resume()
    await until(lambda: heard[3:] == [""])
    redis_server.restart()
    await until(lambda: heard[4:] == [""])
    await recovered(store)
    await store.publish("changes", "key:1")
    await until(lambda: heard[5:] == ["key:1"])
    await impatient.aclose()
    await listening


# ---- settings --------------------------------------------------------------------------------------------------------


async def test_settings_that_lose_money_are_told(store: Store, redis_server: RedisServer) -> None:
    assert await store.problems() == []
    for name, value in {"appendonly": "no", "appendfsync": "everysec", "maxmemory-policy": "allkeys-lru"}.items():
        redis_server.command("CONFIG", "SET", name, value)
    told = await store.problems()
    assert [sentence.split(":")[0] for sentence in told] == [
        "Redis has appendonly no, not yes",
        "Redis has appendfsync everysec, not always",
        "Redis has maxmemory-policy allkeys-lru, not noeviction",
    ]


async def test_settings_that_we_may_not_read_are_told(store: Store, redis_server: RedisServer) -> None:
    redis_server.command("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    redis_server.command("ACL", "SETUSER", "default", "-config")
    told = await store.problems()
    assert [sentence.split(":")[0] for sentence in told] == [
        "Redis does not let us read the setting appendfsync",
        "Redis has maxmemory-policy allkeys-lru, not noeviction",
    ]
    redis_server.command("ACL", "SETUSER", "default", "-info")
    assert len(await store.problems()) == 4
