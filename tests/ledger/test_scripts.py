"""The scripts as they are put together, and what Redis makes of their numbers and records."""

import asyncio
import hashlib
import re
from pathlib import Path

from serving.core import Price, Usage
from serving.ledger.base import Grant, Key
from serving.ledger.reconcile import reconcile
from serving.ledger.scripts import read_layout, read_scripts
from tests.ledger.servers import DEADLINE_S, RedisServer
from tests.ledger.test_redis import GRANTED, PRICE, furnish, opened

WHOLE_NUMBERS = (0, -1, 127, -128, 2**31, -(2**31) - 1, 10**15, 1_769_817_540_000_001, 2**53, -(2**53))
COMMANDS = re.compile(r"cmdstat_(\w+):calls=(\d+)")


def test_whole_numbers_stay_exact(redis_server: RedisServer) -> None:
    """In records, among the arguments of commands, and in what a script answers."""
    text = """
        local number = cmsgpack.unpack(cmsgpack.pack(tonumber(ARGV[1])))
        redis.call('SET', KEYS[1], number)
        return {string.format('%d', number), redis.call('GET', KEYS[1]), number}
    """
    for number in WHOLE_NUMBERS:
        assert redis_server.command("EVAL", text, 1, "a", number) == [str(number), str(number), number]


def test_every_script_compiles(redis_server: RedisServer) -> None:
    for script in read_scripts().values():
        assert redis_server.command("SCRIPT", "LOAD", script.text) == script.sha


def test_no_two_fields_of_a_script_have_the_same_name() -> None:
    """A script has the fields of several records as its local variables."""
    layout = read_layout()
    read = [name for record in ("account", "grant", "key", "label", "tab", "hold") for name in layout[record]]
    assert len(read) == len(set(read))


def test_a_script_is_its_parts_and_the_names_of_fields(tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    files = {
        "layout.toml": "[cat]\nname = 'how it is called'\nage = 'in years'\n",
        "parts/start.lua": "local unpack = cmsgpack.unpack\n",
        "parts/born.lua": "local function born(age) return -age end\n",
        "parts/unused.lua": "local unused = 1\n",
        "whole.lua": "-- Of a cat.\n-- Parts: born\nlocal $cat = unpack(ARGV[1])\nreturn born(age)\n",
        "small.lua": "return 1\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    scripts = read_scripts(tmp_path)
    assert scripts["small"].text == "local unpack = cmsgpack.unpack\nreturn 1\n"
    assert scripts["whole"].text == (
        "local unpack = cmsgpack.unpack\nlocal function born(age) return -age end\n"
        "-- Of a cat.\n-- Parts: born\nlocal name, age = unpack(ARGV[1])\nreturn born(age)\n"
    )
    assert scripts["whole"].sha == hashlib.sha1(scripts["whole"].text.encode()).hexdigest()


async def test_a_hold_and_a_settle_are_few_commands_whatever_the_account_has(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    async with opened(redis_server, tmp_path / "outbox") as (ledger, books):
        await furnish(books)
        for number in range(40):
            await books.grant("alice", Grant(f"g{number}", 1_000))
            await books.add_key(Key(f"more_{number}", "alice", "test", "sk-...", f"digest {number}"))
        await ledger.settle(await ledger.hold(GRANTED, "r0", "m", PRICE, Usage(10, 0, 10)), Usage(10, 0, 5), "finish")
        redis_server.command("CONFIG", "RESETSTAT")
        hold = await ledger.hold(GRANTED, "r1", "m", PRICE, Usage(10, 0, 10))
        assert commands(redis_server) == {"time": 1, "mget": 1, "mset": 1, "zadd": 1}
        redis_server.command("CONFIG", "RESETSTAT")
        await ledger.settle(hold, Usage(10, 0, 5), "finish")
        assert commands(redis_server) == {"time": 1, "mget": 1, "mset": 1, "set": 1, "zrem": 1, "xadd": 1}


async def test_an_account_may_have_very_many_grants(redis_server: RedisServer, tmp_path: Path) -> None:
    """More than a Lua function may return values for."""
    async with opened(redis_server, tmp_path / "outbox", timeout_s=DEADLINE_S) as (ledger, books):
        await furnish(books, 1)
        await asyncio.gather(*(books.grant("alice", Grant(f"g{number:04}", 1)) for number in range(900)))
        hold = await ledger.hold(GRANTED, "r", "m", Price(1_000, 1_000, 1_000), Usage(500, 0, 401))
        assert (hold.amount, hold.usage.completion_tokens) == (901, 401)
        assert (await ledger.settle(hold, Usage(500, 0, 300), "finish")).cost == 800
        account = await books.account("alice")
        assert account is not None
        assert [grant.id for grant in account.grants] == [f"g{number:04}" for number in range(799, 900)]
        assert (await reconcile(books, "alice")).adds_up


def commands(server: RedisServer) -> dict[str, int]:
    """How often which command was called in scripts."""
    told = COMMANDS.findall(str(server.command("INFO", "commandstats")))
    return {name: int(count) for name, count in told if not name.startswith(("eval", "info", "config", "client"))}
