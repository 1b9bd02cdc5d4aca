"""The store on a cluster, behind Sentinel, over TLS, and what URLs it takes."""

import asyncio
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from serving.errors import Overloaded
from serving.ledger.store import Store
from tests.ledger.servers import (
    DEADLINE_S,
    VERSIONS,
    RedisServer,
    binary,
    cluster_url,
    free_ports,
    opened,
    recovered,
    running,
    running_cluster,
    running_sentinel,
)
from tests.service import until

TAGS = [f"{{s{number:02x}}}" for number in range(256)]


@pytest.fixture(scope="module", params=VERSIONS)
def cluster(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[RedisServer]]:
    with running_cluster(binary(request.param), tmp_path_factory.mktemp("cluster")) as nodes:
        yield nodes


async def on_all_tags(store: Store, script: str, *arguments: str | int) -> list[Any]:
    return list(await asyncio.gather(*(store.run(script, tag, *arguments) for tag in TAGS), return_exceptions=True))


async def all_recovered(store: Store) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while any(isinstance(answer, Overloaded) for answer in await on_all_tags(store, "echo", "")):
            await recovered(store)


# ---- a cluster -------------------------------------------------------------------------------------------------------


async def test_scripts_and_commands_reach_all_slots_of_a_cluster(cluster: list[RedisServer], scripts: Path) -> None:
    async with opened(cluster_url(cluster[:1]), scripts) as store:
        answers = await on_all_tags(store, "echo", "x")
        assert [answer[0] for answer in answers] == TAGS
        assert await asyncio.gather(*(store.command("HSET", f"{tag}:h", "a", 1) for tag in TAGS)) == [1] * 256
        assert await store.command("HGETALL", f"{TAGS[7]}:h") == ["a", "1"]
        assert await store.command("SMEMBERS", f"{TAGS[7]}:none") == []
        assert await store.problems() == []
        cluster[2].command("CONFIG", "SET", "appendfsync", "everysec")
        assert [sentence.split(" has ")[0] for sentence in await store.problems()] == [
            f"Redis 127.0.0.1:{cluster[2].port}"
        ]
        cluster[2].command("CONFIG", "SET", "appendfsync", "always")
        for node in cluster:
            node.command("SCRIPT", "FLUSH")
        assert await on_all_tags(store, "add", 0) == [[0]] * 256
        assert all(node.command("DBSIZE") for node in cluster)


async def test_a_slot_that_moved_is_followed(cluster: list[RedisServer], scripts: Path) -> None:
    async with opened(cluster_url(cluster), scripts) as store:
        await on_all_tags(store, "add", 1)
        before = await store.run("add", TAGS[0], 0)
        slot = cluster[0].command("CLUSTER", "KEYSLOT", TAGS[0])
        homes = [node for node in cluster if node.command("CLUSTER", "COUNTKEYSINSLOT", slot)]
        target = next(node for node in cluster if node not in homes)
        move_slot(cluster, homes[0], target, slot)
        assert await store.run("add", TAGS[0], 1) == [before[0] + 1]
        assert target.command("CLUSTER", "COUNTKEYSINSLOT", slot) > 0


def move_slot(nodes: Sequence[RedisServer], source: RedisServer, target: RedisServer, slot: int) -> None:
    """Move a slot with all its keys, as a resharding does."""
    target.command("CLUSTER", "SETSLOT", slot, "IMPORTING", source.command("CLUSTER", "MYID"))
    source.command("CLUSTER", "SETSLOT", slot, "MIGRATING", target.command("CLUSTER", "MYID"))
    keys = source.command("CLUSTER", "GETKEYSINSLOT", slot, 100)
    source.command("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *keys)
    for node in (target, source, *nodes):
        node.command("CLUSTER", "SETSLOT", slot, "NODE", target.command("CLUSTER", "MYID"))


async def test_a_node_that_dies_makes_the_cluster_overloaded_until_it_is_back(
    cluster: list[RedisServer], scripts: Path
) -> None:
    restarts: list[str] = []
    async with opened(cluster_url(cluster), scripts, timeout_s=1.0) as store:
        store.on_restart(lambda: restarts.append("restart"))
        await on_all_tags(store, "echo", "")
        assert restarts == []
        cluster[1].kill()
        assert any(isinstance(answer, Overloaded) for answer in await on_all_tags(store, "echo", ""))
        with pytest.raises(Overloaded):
            await store.run("echo", TAGS[0], "")
        cluster[1].start()
        await all_recovered(store)
        assert restarts == ["restart"]


async def test_messages_pass_through_a_cluster(cluster: list[RedisServer], scripts: Path) -> None:
    async with opened(cluster_url(cluster), scripts) as store, opened(cluster_url(cluster), scripts) as other:
        messages = other.listen("changes")
        assert await anext(messages) == ""
        await all_recovered(store)
        for number in range(5):  # whichever node each is told to
            await store.publish("changes", f"key:{number}")
            assert await anext(messages) == f"key:{number}"
        await messages.aclose()


# ---- Sentinel --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
async def test_the_store_follows_a_failover(version: str, tmp_path: Path, scripts: Path) -> None:
    restarts: list[str] = []
    with running_sentinel(binary(version), tmp_path) as servers:
        async with opened(servers.url, scripts) as store:
            store.on_restart(lambda: restarts.append("restart"))
            assert await store.run("add", "{s00}", 1) == [1]
            assert await store.problems() == []
            await until(lambda: servers.replica.command("GET", "{s00}:sum") == "1")
            servers.primary.kill()
            await recovered(store)
            assert restarts == ["restart"]
            assert await store.run("add", "{s00}", 1) == [2]
            assert servers.replica.command("GET", "{s00}:sum") == "2"


# ---- TLS, users and URLs ---------------------------------------------------------------------------------------------


def certify(folder: Path) -> tuple[Path, Path]:
    """A certificate of 127.0.0.1, signed by itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "tests")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    certificate, key_file = folder / "tls.crt", folder / "tls.key"
    certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return certificate, key_file


async def test_tls_and_a_user_of_our_own(tmp_path: Path, scripts: Path) -> None:
    certificate, key = certify(tmp_path)
    port = free_ports(1)[0]
    settings = ["--tls-port", str(port), "--tls-auth-clients", "no"]
    settings += ["--tls-cert-file", str(certificate), "--tls-key-file", str(key)]
    with running(binary("7"), tmp_path / "redis", settings=settings) as server:
        server.command("ACL", "SETUSER", "story", "on", ">p@ss word", "~{s*", "&story:*", "+@all", "-@admin", "-config")
        url = f"rediss://story:p%40ss%20word@127.0.0.1:{port}"
        async with opened(f"{url}?ssl_ca_certs={certificate}", scripts) as store:
            assert await store.run("add", "{s00}", 1) == [1]
            assert len(await store.problems()) == 1
        async with opened(url, scripts) as store:
            assert "certificate" in (await store.problems())[0]
            with pytest.raises(Overloaded):
                await store.run("add", "{s00}", 1)
        async with opened(f"{url.replace('word', 'wrong')}?ssl_ca_certs={certificate}", scripts) as store:
            told = await store.problems()
            assert "password" in told[0]
            assert "wrong" not in told[0]


@pytest.mark.parametrize(
    "url",
    [
        "http://:secret@localhost",
        "localhost:6379",
        "redis+nothing://:secret@localhost",
        "unix+cluster:///secret",
        "redis+sentinel://:secret@one:26379,two:26379",
        "redis+sentinel://:secret@one:26379/service/one",
        "redis+cluster://:secret@one:port",
        "redis://:secret@localhost?socket_timeout=long",
        "redis://:secret@localhost?colour=red",
        "redis+cluster://:secret@one?colour=red",
    ],
)
async def test_a_url_that_cannot_be_used_says_why_at_once(url: str, scripts: Path) -> None:
    with pytest.raises(ValueError) as told:
        await Store.open(url, scripts=scripts)
    assert "secret" not in str(told.value)
