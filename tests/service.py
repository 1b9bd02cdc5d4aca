"""The service on scripted engines, in process or behind a loopback socket: what the tests of the edge are made of."""

import asyncio
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import uvicorn

from serving.accounts.keys import Keyring
from serving.app import Service, build
from serving.core import Event, PreparedRequest, Price
from serving.engine.base import Engine, TaskEngine
from serving.engine.registry import Loader
from serving.engine.scripted import ScriptedEngine
from serving.engine.scripted_tasks import ScriptedTaskEngine
from serving.ledger.base import Key
from serving.ledger.memory import MemoryLedger
from serving.ledger.open import Opened
from serving.prompting.prepare import Prompting
from serving.settings import DEMO_MODEL_DIR, ModelSettings, Settings

LLAMA3 = Path(__file__).parent / "fixtures/llama3-tiny"
LIBRARY = Path(__file__).parent / "fixtures/library"
PLANS = Path(__file__).parent / "fixtures/plans.toml"
KEY = "sk-story-of-the-tests"
PRICE = Price(input_per_1k=1000, cached_per_1k=500, output_per_1k=2000)
SM, XL = "opus-v1-sm", "dream/opus-v1-xl"
"""The default model writes ChatML, the other one Llama 3; a slash stands in its id."""
DEADLINE_S = 10.0
"""How long a test waits for what must happen: far longer than it takes."""


class Door:
    """Where work waits until it is let in; `knocked` is set when the first one stands before it."""

    def __init__(self) -> None:
        self.knocked = asyncio.Event()
        self.opened = asyncio.Event()

    async def wait(self) -> None:
        self.knocked.set()
        await self.opened.wait()


class Stage:
    """An engine that hands on to another one, which each test chooses. `door`: where a choice waits before it;
    `opening` and `failing`: where loading waits, and what becomes of it."""

    def __init__(self) -> None:
        self.engine = ScriptedEngine()
        self.door: Door | None = None
        self.opening: Door | None = None
        self.failing: Exception | None = None

    async def load(self) -> Engine:
        if self.opening is not None:
            await self.opening.wait()
        if self.failing is not None:
            raise self.failing
        return self

    @property
    def context_tokens(self) -> int:
        return self.engine.context_tokens

    async def generate(self, request: PreparedRequest) -> AsyncGenerator[Event, None]:
        if self.door is not None:
            await self.door.wait()
        events = self.engine.generate(request)
        try:
            async for event in events:
                yield event
        finally:
            await events.aclose()

    async def load_adapter(self, name: str) -> None:
        await self.engine.load_adapter(name)

    async def check_health(self) -> None:
        await self.engine.check_health()

    async def wait_dead(self) -> None:
        await asyncio.Event().wait()

    async def shutdown(self) -> None:
        await self.engine.shutdown()


class Running:
    """A service that runs. `client` calls it in process, with a key that may do everything. `ledger` has its books,
    `tasks` the engines of models that do not generate."""

    def __init__(
        self,
        service: Service,
        client: httpx.AsyncClient,
        stages: dict[str, Stage],
        ledger: MemoryLedger,
        tasks: dict[str, ScriptedTaskEngine],
    ) -> None:
        self.service = service
        self.client = client
        self.stages = stages
        self.ledger = ledger
        self.tasks = tasks
        self._used_before = 0
        self.prompting: dict[str, Prompting] = {}

    def play(self, model: str = SM, **kwargs: Any) -> ScriptedEngine:  # noqa: ANN401  # those of the engine
        """Put a new engine behind a model; also forgets what was charged."""
        form = self.prompting[model].format
        known = {"vocab_size": form.tokens.vocabulary_size, "eos_token_ids": tuple(form.eos_ids)}
        engine = ScriptedEngine(**{**known, **kwargs})
        self.stages[model].engine = engine
        self.stages[model].door = None
        self._used_before += self.used
        return engine

    @property
    def used(self) -> int:
        """Microcredits charged since `play`, to all accounts."""
        return sum(account.row.used for account in self.ledger._accounts.values()) - self._used_before

    @property
    def open_holds(self) -> int:
        """Holds neither settled nor released."""
        return len(self.ledger._open)

    @property
    def keys(self) -> Keyring:
        return self.service.backing.backend().keys

    async def key_of(self, plan: str, **limits: Any) -> tuple[str, Key]:  # noqa: ANN401  # those of a key
        """A key of a new account with a plan of `fixtures/plans.toml`: its text, and its record."""
        account = f"{plan}-{uuid4().hex[:8]}"
        await self.ledger.open_account(account, plan)
        return await self.keys.create("a key of the tests", account, **limits)


def settings(data_dir: Path, **values: Any) -> Settings:  # noqa: ANN401  # its own
    models = (
        ModelSettings(SM, str(DEMO_MODEL_DIR), "chatml-text", price=PRICE),
        ModelSettings(XL, str(LLAMA3), "llama3-writer", price=PRICE),
    )
    return Settings(
        **{"data_dir": data_dir, "api_key": KEY, "models": models, "plans": PLANS, "library_dir": LIBRARY, **values}
    )


def client_of(service: Service) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app=service.app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://here", headers=bearer(KEY))


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


@asynccontextmanager
async def running(data_dir: Path, **values: Any) -> AsyncIterator[Running]:  # noqa: ANN401  # those of Settings
    """The service with these settings, loaded."""
    configured = settings(data_dir, **values)
    generating = [model for model in configured.models if model.kind == "generation"]
    stages = {model.id: Stage() for model in generating}
    if configured.models_dir is not None:
        stages |= {folder.name: Stage() for folder in configured.models_dir.iterdir()}
    tasks = {model.id: ScriptedTaskEngine() for model in configured.models if model.kind != "generation"}

    def loader(engine: TaskEngine) -> Loader:
        async def load() -> TaskEngine:
            return engine

        return load

    ledger = MemoryLedger()

    @asynccontextmanager
    async def open_books(_: Settings) -> AsyncIterator[Opened]:
        yield Opened(ledger, ledger, None)

    loaders: dict[str, Loader] = {model: stage.load for model, stage in stages.items()}
    loaders |= {model: loader(engine) for model, engine in tasks.items()}
    service = build(configured, loaders, open_books=open_books)
    async with service.app.router.lifespan_context(service.app), client_of(service) as client:
        await service.engines.wait_loaded()
        await service.backing.wait_open()
        run = Running(service, client, stages, ledger, tasks)
        for model in generating:
            run.prompting[model.id] = Prompting.load(model.path, None, model.template)
            run.play(model.id)
        yield run


@asynccontextmanager
async def listening(service: Service) -> AsyncIterator[tuple[str, int]]:
    """The service behind a real socket, on the server that production uses. Gives its host and port."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(service.app, log_config=None, access_log=False, http="httptools", lifespan="off")
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server._serve(sockets=[listener]))
    try:
        host, port = listener.getsockname()
        yield host, port
    finally:
        server.should_exit = True
        server.force_exit = True
        await serving
        listener.close()


async def until(condition: Callable[[], bool], *, seconds: float = DEADLINE_S) -> None:
    """Wait until a condition holds that a real socket brings about; fails after `seconds`."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110  # what a socket brings about sets no event of ours
            await asyncio.sleep(0.005)
