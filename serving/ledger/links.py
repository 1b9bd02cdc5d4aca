"""Ways to Redis: to one server, to the one that Sentinels name, or to a cluster. With `line` the only importer of
redis-py, which finds servers, connects and logs in.

It sends what it is given, once: redis-py's own retries are off, since a command whose answer was lost may have been
carried out. It keeps no order between batches and decides nothing about a store that is away. It speaks RESP2, in which
an answer is a str, an int, None, or a list of these.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol, TypeAlias
from urllib.parse import SplitResult, parse_qsl, urlencode, urlsplit

from redis.asyncio import ConnectionPool, RedisCluster, Sentinel
from redis.asyncio.client import PubSub
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.connection import AbstractConnection, parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ResponseError

from serving.ledger.line import Command, Ended, Exchange, Line, NewLine, Refusal, Tell, refusal_of

Meet: TypeAlias = Callable[[set[str]], None]
"""Told which servers connections were made to, as `_lives` names them."""

_LOOSER = 4


class Subscription(Protocol):
    """What is used of redis-py's PubSub."""

    async def get_message(self, *, timeout: float) -> dict[str, Any] | None: ...

    def ping(self) -> Awaitable[bool]: ...

    async def aclose(self) -> None: ...


class Link(Protocol):
    """Where commands go. Every method raises, and `ended` is told, whatever redis-py and asyncio raise when a server is
    away. A connection that failed, or whose use was cancelled, is closed."""

    def exchange(self, commands: Sequence[Command], tell: Tell, ended: Ended) -> Exchange:
        """Send a batch. Answers are told as they come, and once, not before this returns, that it has ended: those not
        told then were lost."""
        ...

    async def probe(self) -> None:
        """Connect anew; returns when commands can be sent."""
        ...

    async def ask_all(self, *command: str) -> dict[str, Any]:
        """What each primary answers, by its name; a single server's name is empty."""
        ...

    async def subscribed(self, channel: str) -> Subscription: ...

    async def aclose(self) -> None: ...


def open_link(url: str, timeout_s: float, meet: Meet) -> Link:
    """Connects to nothing yet. Raises ValueError, without anything of the URL that is secret."""
    parts = urlsplit(url)
    scheme, _, kind = parts.scheme.partition("+")
    if kind not in ("", "cluster", "sentinel") or (scheme not in ("redis", "rediss") and parts.scheme != "unix"):
        raise ValueError("it must begin with redis://, rediss://, unix://, redis+sentinel:// or redis+cluster://")
    try:
        if kind == "cluster":
            return _Cluster(parts, scheme, timeout_s, meet)
        if kind == "sentinel":
            sentinel, service, settings = _sentinel_of(parts, scheme, timeout_s)
            return _Server(sentinel.master_for(service, **settings).connection_pool, meet, sentinel)
        return _Server(ConnectionPool.from_url(url, **_options(timeout_s)), meet)
    except (TypeError, AttributeError) as error:
        raise ValueError(str(error)) from None


def _options(timeout_s: float) -> dict[str, Any]:
    return {
        "protocol": 2,
        "decode_responses": True,
        "encoding_errors": "replace",
        # Who calls has a limit for the whole, which knows when it was our own event loop that was late.
        "socket_timeout": _LOOSER * timeout_s,
        "socket_connect_timeout": _LOOSER * timeout_s,
        "driver_info": None,
        "retry": Retry(NoBackoff(), 0),
    }


def _hosts(parts: SplitResult, scheme: str, query: str, port: int) -> tuple[list[tuple[str, int]], dict[str, Any]]:
    """The hosts of a URL that names several, and the settings of the connections to any of them."""
    login, at, hosts = parts.netloc.rpartition("@")
    parsed = [dict(parse_url(f"{scheme}://{login}{at}{host}?{query}")) for host in hosts.split(",")]
    settings = {name: value for name, value in parsed[0].items() if name not in ("host", "port", "connection_class")}
    return [(str(one.get("host", "localhost")), int(str(one.get("port", port)))) for one in parsed], settings


def _sentinel_of(parts: SplitResult, scheme: str, timeout_s: float) -> tuple[Sentinel, str, dict[str, Any]]:
    """The Sentinels, the name of the service, and the settings of the connections to its primary."""
    query = dict(parse_qsl(parts.query))
    login = {name: query.pop(f"sentinel_{name}", None) for name in ("username", "password")}
    hosts, settings = _hosts(parts, scheme, urlencode(query), 26379)
    service, _, database = parts.path.strip("/").partition("/")
    if not service:
        raise ValueError("the name of the service must follow the hosts: redis+sentinel://HOST:PORT,HOST:PORT/SERVICE")
    settings = _options(timeout_s) | settings | {"ssl": scheme == "rediss", "db": int(database or 0)}
    tls = {name: value for name, value in settings.items() if name.startswith("ssl")}
    sentinel_settings = _options(timeout_s) | tls | login
    return Sentinel(hosts, sentinel_kwargs=sentinel_settings), service, settings  # type: ignore[no-untyped-call]


class _Server:
    """One server, or the one that Sentinels name: lines to it, each of which learns which server it met."""

    def __init__(self, pool: ConnectionPool, meet: Meet, sentinel: Sentinel | None = None) -> None:
        self._pool = pool
        self._meet = meet
        self._sentinel = sentinel
        self._idle: list[Line] = []
        self._making: set[asyncio.Task[Line]] = set()
        pool.update_connection_kwargs(redis_connect_func=self._greet)
        # It says now what is wrong with the settings.
        pool.make_connection()  # type: ignore[no-untyped-call]

    async def _greet(self, connection: AbstractConnection) -> None:
        await connection.on_connect()
        await connection.send_command("INFO")
        try:
            self._meet(_lives(await connection.read_response()))
        except ResponseError:
            return  # forbidden to our user: restarts go unnoticed, and `problems` says so

    def exchange(self, commands: Sequence[Command], tell: Tell, ended: Ended) -> Exchange:
        idle = self._idle

        def begin(line: Line) -> None:
            def free(error: Exception | None) -> None:
                if error is not None or idle is not self._idle:
                    line.cancel()  # it failed, or `probe` was here meanwhile
                else:
                    idle.append(line)
                ended(error)

            line.begin(commands, tell, free)

        while idle:
            line = idle.pop()
            if line.is_open:
                begin(line)
                return line
        new = NewLine(self._connect(), begin, ended)
        self._making.add(new.making)
        new.making.add_done_callback(self._making.discard)
        return new

    async def _connect(self) -> Line:
        connection: AbstractConnection = self._pool.make_connection()  # type: ignore[no-untyped-call]
        try:
            await connection.connect()  # type: ignore[no-untyped-call]
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        return Line(connection)

    async def probe(self) -> None:
        self._close_idle()
        await self._pool.disconnect(inuse_connections=False)
        answers = await self.ask_all("PING")
        if isinstance(answers[""], Refusal):
            raise ConnectionError(str(answers[""]))

    async def ask_all(self, *command: str) -> dict[str, Any]:
        answers: dict[str, Any] = {}
        ended = asyncio.get_running_loop().create_future()
        exchange = self.exchange(
            [Command.of(*command)], lambda _, answer: answers.setdefault("", answer), ended.set_result
        )
        try:
            error = await ended
        except asyncio.CancelledError:
            exchange.cancel()
            raise
        if error is not None:
            raise error
        return answers

    async def subscribed(self, channel: str) -> Subscription:
        pubsub = PubSub(self._pool)
        await pubsub.subscribe(channel)
        return pubsub

    async def aclose(self) -> None:
        for making in [*self._making]:
            making.cancel()
        await asyncio.gather(*self._making, return_exceptions=True)
        self._close_idle()
        await self._pool.aclose()
        for client in self._sentinel.sentinels if self._sentinel else ():
            await client.aclose()

    def _close_idle(self) -> None:
        former, self._idle = self._idle, []
        for line in former:
            line.cancel()


class _Cluster:
    """A cluster. Its pipelines are sent to the primaries of their slots, and what has moved is sent after it."""

    def __init__(self, parts: SplitResult, scheme: str, timeout_s: float, meet: Meet) -> None:
        self._hosts, settings = _hosts(parts, scheme, parts.query, 6379)
        self._settings = _options(timeout_s) | settings | {"ssl": scheme == "rediss"}
        self._meet = meet
        self._met = False
        self._first = asyncio.Lock()
        self._running: set[asyncio.Task[None]] = set()
        self._client = self._make()

    def _make(self) -> RedisCluster:
        client = RedisCluster(startup_nodes=[ClusterNode(*host) for host in self._hosts], **self._settings)
        for name in set(client.response_callbacks) - {"COMMAND"}:
            del client.response_callbacks[name]  # answers as they came, but for what redis-py asks for itself
        return client

    def exchange(self, commands: Sequence[Command], tell: Tell, ended: Ended) -> Exchange:
        def done(task: asyncio.Task[None]) -> None:
            self._running.discard(task)
            if not task.cancelled():
                error = task.exception()
                ended(error if isinstance(error, Exception) else None)

        task = asyncio.create_task(self._exchange(commands, tell))
        self._running.add(task)
        task.add_done_callback(done)
        return task

    async def _exchange(self, commands: Sequence[Command], tell: Tell) -> None:
        await self._meet_first()
        pipeline = self._client.pipeline()
        for command in commands:
            where = {"target_nodes": self._client.get_random_primary_node()} if command.words[0] == "PUBLISH" else {}
            pipeline.execute_command(*command.words, **where)
        lost: Exception | None = None
        for position, answer in enumerate(await pipeline.execute(raise_on_error=False)):
            if isinstance(answer, ResponseError):
                tell(position, refusal_of(answer))
            elif isinstance(answer, Exception):
                lost = answer
            else:
                tell(position, answer)
        if lost is not None:
            raise lost

    async def _meet_first(self) -> None:
        if not self._met:
            async with self._first:
                if not self._met:
                    await self.probe()

    async def probe(self) -> None:
        client = self._client
        try:
            await client.aclose()
            if any("cluster_state:ok" not in str(info) for info in (await self.ask_all("CLUSTER", "INFO")).values()):
                raise ConnectionError("the cluster is down")
            infos = await self.ask_all("INFO")
        except BaseException:
            # The nodes known last may all be gone: the next probe begins at the hosts of the URL again.
            self._client = self._make()
            await client.aclose()
            raise
        self._meet(set().union(*map(_lives, infos.values())))
        self._met = True

    async def ask_all(self, *command: str) -> dict[str, Any]:
        await self._client.initialize()
        answers: dict[str, Any] = {}
        for node in self._client.get_primaries():
            try:
                answers[node.name] = await node.execute_command(*command)
            except ResponseError as error:
                answers[node.name] = refusal_of(error)
        return answers

    async def subscribed(self, channel: str) -> Subscription:
        await self._meet_first()
        pubsub = self._client.pubsub()
        await pubsub.subscribe(channel)
        return pubsub

    async def aclose(self) -> None:
        for task in [*self._running]:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        await self._client.aclose()


def _lives(info: object) -> set[str]:
    """What the text of INFO tells of a server's life as a primary, when it is there: the run id, which is another after
    every start, and the replication id, which is another after every promotion. A primary that was demoted, lost what
    its successor never heard, and was promoted again is so known for another one."""
    told = dict(line.split(":", 1) for line in str(info).splitlines() if ":" in line)
    return {f"{told['run_id']} {told.get('master_replid', '')}"} if "run_id" in told else set()
