"""What happens on the wire itself: clients that go away, read slowly, wait long, and come in crowds."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from serving.core import PreparedRequest, Usage
from serving.engine.scripted import Chunk, ScriptedEngine
from serving.errors import EngineFailed
from tests.dialects.adapters import ADAPTERS, Adapter
from tests.service import KEY, PRICE, SM, Door, Running, bearer, listening, running, until

Address = tuple[str, int]


def endless(request: PreparedRequest) -> Iterator[Chunk]:
    while True:
        yield "word "


class Gate:
    """Stops every choice before its n-th delta."""

    def __init__(self, stop_at: int) -> None:
        self.stop_at = stop_at
        self.door = Door()

    async def __call__(self, request: PreparedRequest, number: int) -> None:
        if number >= self.stop_at:
            await self.door.wait()


def request_bytes(adapter: Adapter, body: object, *, cut: int = 0) -> bytes:
    """A request as it goes over the wire, without its last `cut` bytes."""
    content = json.dumps(body).encode()
    head = f"POST {adapter.path} HTTP/1.1\r\nHost: here\r\nAuthorization: Bearer {KEY}\r\n"
    whole = f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content
    return whole[: len(whole) - cut]


@asynccontextmanager
async def connection(address: Address, sent: bytes) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection(*address)
    writer.write(sent)
    await writer.drain()
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


def is_at_rest(run: Running) -> bool:
    return run.service.admission.running_choices == 0 and run.open_holds == 0


# ---- clients that go away --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("tokens", [0, 1, 7])
async def test_a_disconnect_aborts_and_charges_what_was_made(
    run: Running, session_address: Address, adapter: Adapter, tokens: int, stream: bool
) -> None:
    gate = Gate(tokens)
    engine = run.play(script=endless, gate=gate)
    body = adapter.body(stream=stream)
    async with connection(session_address, request_bytes(adapter, body)), asyncio.timeout(10):
        await gate.door.knocked.wait()
        assert run.service.admission.running_choices == 1
    await until(lambda: engine.endings == ["aborted"] and is_at_rest(run), seconds=1)
    assert run.used == PRICE.cost(Usage(len(engine.asked[0].token_ids), 0, tokens))


async def test_a_disconnect_before_the_engine_took_it_is_free(
    run: Running, session_address: Address, adapter: Adapter
) -> None:
    engine = run.play(script=endless)
    door = run.stages[SM].door = Door()
    async with connection(session_address, request_bytes(adapter, adapter.body(stream=True))), asyncio.timeout(10):
        await door.knocked.wait()
        assert run.open_holds == 1
    await until(lambda: is_at_rest(run), seconds=1)
    assert engine.asked == []
    assert run.used == 0


async def test_a_disconnect_in_the_body_reaches_no_engine(
    run: Running, session_address: Address, adapter: Adapter, web: httpx.AsyncClient
) -> None:
    engine = run.play()
    gone = f'serving_client_disconnects_total{{dialect="{adapter.dialect.name}"}}'
    before = await metric(web, gone)
    async with connection(session_address, request_bytes(adapter, adapter.body(stream=True), cut=5)):
        pass
    async with asyncio.timeout(10):
        while await metric(web, gone) != before + 1:
            pass
    assert engine.asked == []
    assert is_at_rest(run)


async def test_a_half_closed_connection_is_a_disconnect(
    run: Running, session_address: Address, adapter: Adapter
) -> None:
    gate = Gate(1)
    engine = run.play(script=endless, gate=gate)
    sent = request_bytes(adapter, adapter.body(stream=True))
    async with connection(session_address, sent) as (_, writer), asyncio.timeout(10):
        await gate.door.knocked.wait()
        writer.write_eof()
        await until(lambda: engine.endings == ["aborted"] and is_at_rest(run), seconds=1)


@pytest.mark.parametrize("name", [name for name in ADAPTERS if name.startswith("openai")])
async def test_a_disconnect_aborts_every_choice(run: Running, session_address: Address, name: str) -> None:
    adapter = ADAPTERS[name]
    gate = Gate(2)
    engine = run.play(script=endless, gate=gate)
    body = {**adapter.body(stream=True), "n": 3}
    async with connection(session_address, request_bytes(adapter, body)):
        await until(lambda: engine.unfinished == 3 and gate.door.knocked.is_set())
        await until(lambda: run.service.admission.running_choices == 3)
    await until(lambda: engine.endings == ["aborted"] * 3 and is_at_rest(run), seconds=1)
    prompt_tokens = len(engine.asked[0].token_ids)
    assert PRICE.cost(Usage(prompt_tokens, 0, 2)) <= run.used <= PRICE.cost(Usage(prompt_tokens, 0, 6))


async def metric(web: httpx.AsyncClient, name: str) -> float:
    lines = (await web.get("/metrics")).text.splitlines()
    return next((float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name)), 0.0)


# ---- clients that wait -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
async def patient(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[Running, Address]]:
    """A service that keeps silent streams alive often, and cuts slow readers soon."""
    data_dir = tmp_path_factory.mktemp("data")
    async with running(data_dir, keep_alive_s=0.05, write_timeout_s=0.4) as run, listening(run.service) as address:
        yield run, address


@pytest.fixture
async def patient_web(patient: tuple[Running, Address]) -> AsyncIterator[httpx.AsyncClient]:
    host, port = patient[1]
    async with httpx.AsyncClient(base_url=f"http://{host}:{port}", headers=bearer(KEY), timeout=20) as client:
        yield client


@pytest.mark.parametrize("inside", [True, False], ids=["while the prompt is computed", "before the engine takes it"])
async def test_a_silent_stream_is_kept_alive(
    patient: tuple[Running, Address], patient_web: httpx.AsyncClient, adapter: Adapter, inside: bool
) -> None:
    run, _ = patient
    door = Door()
    run.play(
        script=lambda request: ["Hi", " there"], gate=lambda request, number: door.wait() if inside else _no_wait()
    )
    if not inside:
        run.stages[SM].door = door
    quiet = ""
    async with patient_web.stream("POST", adapter.path, json=adapter.body(stream=True)) as response:
        assert response.status_code == 200
        texts = response.aiter_text()
        while adapter.read(quiet).parts.count("") < 3:
            quiet += await anext(texts)
        assert adapter.read(quiet).text == ""
        door.opened.set()
        told = quiet + "".join([text async for text in texts])
    answer = adapter.read(told)
    assert (answer.text, answer.reason, answer.done, answer.completion_tokens) == ("Hi there", "stop", True, 2)


async def _no_wait() -> None:
    pass


async def test_what_is_not_streamed_is_not_kept_alive(
    patient: tuple[Running, Address], patient_web: httpx.AsyncClient, adapter: Adapter
) -> None:
    run, _ = patient
    gate = Gate(0)
    run.play(script=lambda request: ["Hi"], gate=gate)
    asked = asyncio.create_task(patient_web.post(adapter.path, json=adapter.body(stream=False)))
    await gate.door.knocked.wait()
    asyncio.get_running_loop().call_later(0.3, gate.door.opened.set)
    assert adapter.read((await asked).text).parts == ["Hi"]


async def test_an_error_behind_a_keep_alive_is_a_frame(
    patient: tuple[Running, Address], patient_web: httpx.AsyncClient, adapter: Adapter
) -> None:
    run, _ = patient
    door = Door()
    error = EngineFailed("It broke.")
    run.play(refuse=lambda request: error)
    run.stages[SM].door = door
    async with patient_web.stream("POST", adapter.path, json=adapter.body(stream=True)) as response:
        texts = response.aiter_text()
        told = await anext(texts)
        door.opened.set()
        told += "".join([text async for text in texts])
    answer = adapter.read(told)
    assert (response.status_code, answer.error, answer.done) == (200, adapter.errors.frame(error), False)
    assert run.used == 0


# ---- clients that do not read ----------------------------------------------------------------------------------------


@pytest.fixture
def deaf(patient: tuple[Running, Address]) -> Callable[[bytes], socket.socket]:
    """Sends a request and reads nothing."""

    def connect(sent: bytes) -> socket.socket:
        client = socket.socket()
        client.settimeout(10)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(patient[1])
        client.sendall(sent)
        return client

    return connect


def flood(request: PreparedRequest) -> Iterator[Chunk]:
    while True:
        yield "x" * 100_000


def one_wave(request: PreparedRequest) -> Iterator[Chunk]:
    yield "x" * 8_000_000
    yield "never"


@pytest.mark.parametrize("held", [False, True], ids=["the engine goes on", "the engine falls silent"])
async def test_a_client_that_does_not_read_is_cut(
    patient: tuple[Running, Address],
    patient_web: httpx.AsyncClient,
    deaf: Callable[[bytes], socket.socket],
    adapter: Adapter,
    held: bool,
) -> None:
    run, _ = patient
    gate = Gate(1)
    engine = run.play(script=one_wave, gate=gate) if held else run.play(script=flood)
    with deaf(request_bytes(adapter, adapter.body(stream=True))) as client:
        await until(lambda: run.service.admission.running_choices == 1)
        run.stages[SM].engine = ScriptedEngine(lambda request: ["Hi"], vocab_size=3000)
        other = await patient_web.post(adapter.path, json=adapter.body(stream=False))
        assert adapter.read(other.text).text == "Hi"
        await until(lambda: engine.endings == ["aborted"] and is_at_rest(run))
        told = await asyncio.to_thread(lambda: b"".join(iter(lambda: client.recv(1 << 20), b"")))
    assert b"[DONE]" not in told
    assert b"finishReason" not in told


# ---- crowds ----------------------------------------------------------------------------------------------------------


async def test_many_at_once_do_not_mix(run: Running, web: httpx.AsyncClient) -> None:
    tokens = run.prompting[SM].format.tokens

    def script(request: PreparedRequest) -> Iterator[Chunk]:
        text = tokens.decode(request.token_ids)
        marker = text[text.index("no. ") : text.index(" end")]
        yield from ((f"{marker}:{number} ", (100,)) for number in range(20))

    engine = run.play(script=script)

    async def ask(number: int) -> None:
        adapter = list(ADAPTERS.values())[number % len(ADAPTERS)]
        body = adapter.body(f"no. {number} end", stream=number % 2 == 0)
        answer = adapter.read((await web.post(adapter.path, json=body)).text)
        assert answer.text == "".join(f"no. {number}:{part} " for part in range(20))
        assert answer.completion_tokens == 20

    await asyncio.gather(*(ask(number) for number in range(64)))
    assert engine.endings == ["finished"] * 64
    prompts = sum(len(choice.token_ids) for choice in engine.asked)
    assert run.used == PRICE.cost(Usage(prompts, 0, 64 * 20))


async def test_one_connection_serves_many_requests(run: Running, session_address: Address, adapter: Adapter) -> None:
    run.play(script=lambda request: ["Hi"])
    sent = request_bytes(adapter, adapter.body(stream=False))
    async with connection(session_address, sent * 3) as (reader, _), asyncio.timeout(10):
        for _ in range(3):
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200")
            told = b""
            while size := int(await reader.readline(), 16):
                told += (await reader.readexactly(size + 2))[:-2]
            await reader.readline()
            assert adapter.read(told.decode()).text == "Hi"


def test_the_wire_has_room_for_more_than_one_wave(tmp_path: Path) -> None:
    """What `one_wave` rests on: the kernel's buffers for a deaf client are smaller than it."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(server.getsockname())
        peer, _ = server.accept()
        with peer:
            peer.setblocking(False)
            assert peer.send(b"x" * 8_000_000) < 8_000_000
