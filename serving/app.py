"""The composition root: Settings -> services -> one ASGI app. It wires, and decides nothing.

Also here: the routes that belong to no dialect (health and metrics), and the OpenAPI description, which is made from
the same wire models that decode and encode.
"""

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from starlette.convertors import PathConvertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Route

from serving import __version__, telemetry
from serving.accounts.admin import Admin
from serving.accounts.keys import DEMO_ACCOUNT, demo_key, load_pepper
from serving.accounts.plans import PlanError, load_plans, plan_of
from serving.admin.mount import mount_admin
from serving.admission import Admission
from serving.backing import Backing, ConfiguredKey
from serving.core import Plan
from serving.dialects.base import Call, Dialect, Listing, Posted, posted
from serving.dialects.catalog import ModelInfo, Moderation
from serving.dialects.dreamgen.translate import DreamGen
from serving.dialects.http import Exchange, Http, call_response, listing_response
from serving.dialects.library import Library
from serving.dialects.livepeer.translate import Livepeer
from serving.dialects.openai.dialect import OpenAI
from serving.dialects.openai.textgen import TextGen
from serving.edge.headers import EXPOSED, error_headers
from serving.engine.adapters import adapters_in
from serving.engine.base import Engine, TaskEngine
from serving.engine.registry import EngineRegistry, Loader, State, image_server, local, local_task
from serving.errors import MethodNotAllowed, NotFound
from serving.ledger.base import Ledger
from serving.ledger.open import Opened, open_ledger
from serving.openapi import Description
from serving.pipeline import Pipeline, ServedModel
from serving.prompting import audio
from serving.prompting.prepare import Prompting
from serving.prompting.texts import Texts, labels_of
from serving.settings import ModelSettings, Settings, SettingsError
from serving.stock import Stock, Ways
from serving.tasks import Sizes, TaskModel, Tasks


def dialects_of(settings: Settings) -> tuple[Dialect, ...]:
    """What the service speaks. Addresses and schemas are the same with all settings."""
    livepeer = Livepeer(done=settings.livepeer_done, length=settings.livepeer_length)
    return (DreamGen(), OpenAI(), TextGen(), livepeer)


DIALECTS = dialects_of(Settings())


@dataclass(frozen=True)
class Service:
    """The running parts that others than requests must reach: the process that drains, the tests that look."""

    app: FastAPI
    engines: EngineRegistry
    admission: Admission
    backing: Backing
    demo_key: str | None


def configured_books(settings: Settings) -> AbstractAsyncContextManager[Opened]:
    """The ledger and the books that the settings name."""
    times = {"lease_s": settings.lease_s, "extend_s": settings.extend_s}
    return open_ledger(settings.redis_url, settings.data_dir, **times, away_requests=settings.away_requests)


def build(
    settings: Settings,
    loaders: Mapping[str, Loader] | None = None,
    *,
    open_books: Callable[[Settings], AbstractAsyncContextManager[Opened]] = configured_books,
) -> Service:
    """The service; `loaders` by model id replace the local engines, `open_books` the store that the settings name."""
    pepper = load_pepper(settings.data_dir, settings.key_pepper)
    plans = _plans(settings)
    key = _configured_key(settings, pepper)
    models = {model.id: _served(model) for model in settings.models if model.kind == "generation" and not model.standby}
    task_models = {model.id: _task_model(model) for model in settings.models if model.kind != "generation"}
    admission = Admission(settings.max_running_choices)
    telemetry.RUNNING.set_function(lambda: admission.running_choices)

    def pipeline(ledger: Ledger) -> Pipeline:
        return Pipeline(models, engines, ledger, admission)

    def tasks(ledger: Ledger) -> Tasks:
        return Tasks(task_models, engines, ledger, admission)

    backing = Backing(partial(open_books, settings), pipeline, tasks, plans, pepper, key, away_s=_away_s(settings))
    telemetry.SETTLES_WAITING.set_function(lambda: backing.settles_waiting)

    def loader(model: ModelSettings) -> Loader:
        return _after(backing, (loaders or {}).get(model.id) or local_loader(model))

    loaders_of = {model.id: loader(model) for model in settings.models if model.id in models or model.id in task_models}
    engines = EngineRegistry(loaders_of, _tell_engine_up)
    stock = _stock(settings, models, engines, loader)
    http = Http(
        backend=backing.backend,
        models=stock,
        admin_key=settings.admin_key,
        max_body_bytes=settings.max_body_bytes,
        max_form_bytes=settings.max_form_bytes,
        keep_alive_s=settings.keep_alive_s,
        write_timeout_s=settings.write_timeout_s,
        library=Library(settings.library_dir),
        grammars=settings.grammars,
    )
    app = FastAPI(title="story-serving", version=__version__, lifespan=lifespan_of(engines, backing))
    dialects = dialects_of(settings)
    mount(app, http, dialects)
    mount_errors(app, dialects)
    mount_operations(app, engines, admission, backing)
    if settings.admin_key:
        mount_admin(app, settings.admin_key, partial(_admin, backing, plans), stock.known, settings.write_timeout_s)
    _allow_origins(app, settings.cors_origins)
    return Service(app, engines, admission, backing, key.text if key else None)


def _away_s(settings: Settings) -> float:
    """How long callers may be let in whom the books told of. While these are away nobody hears of a revoked key."""
    return 300.0 if settings.away_requests else 0.0


def _allow_origins(app: FastAPI, origins: tuple[str, ...]) -> None:
    if origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=origins, allow_methods=["*"], allow_headers=["*"], expose_headers=EXPOSED
        )


def _stock(
    settings: Settings,
    models: dict[str, ServedModel],
    engines: EngineRegistry,
    loader: Callable[[ModelSettings], Loader],
) -> Stock:
    known = {model.id: model for model in settings.models}
    ways, beside = Ways(_served, loader), settings.replace_beside
    return Stock(models, model_infos(settings), engines, known, ways, folder=settings.models_dir, beside=beside)


def _configured_key(settings: Settings, pepper: bytes) -> ConfiguredKey | None:
    if not settings.demo_account:
        return None
    return ConfiguredKey(settings.api_key or demo_key(pepper), DEMO_ACCOUNT, settings.demo_plan)


def _admin(backing: Backing, plans: Mapping[str, Plan]) -> Admin:
    backend = backing.backend()
    return Admin(backend.books, backend.keys, plans)


def _plans(settings: Settings) -> Mapping[str, Plan]:
    try:
        plans = load_plans(settings.plans)
        if settings.demo_account:
            plan_of(plans, settings.demo_plan)
    except PlanError as error:
        raise SettingsError(str(error)) from error
    return plans


def _after(backing: Backing, load: Loader) -> Loader:
    """Engines fork processes: not while the books may start one."""

    async def loaded() -> Engine | TaskEngine:
        await backing.wait_tried()
        return await load()

    return loaded


def _served(model: ModelSettings) -> ServedModel:
    try:
        prompting = Prompting.load(model.path, model.revision, model.template)
    except (OSError, ValueError) as error:
        raise SettingsError(f"The model {model.id} cannot be used: {error}.") from error
    return ServedModel(model.id, prompting, model.price)


def _task_model(model: ModelSettings) -> TaskModel:
    if model.kind == "image":
        return TaskModel(model.id, model.price, Sizes(model.sizes).prepare)
    if model.kind == "transcription":
        return TaskModel(model.id, model.price, audio.prepare)
    try:
        texts = Texts.load(model.path, model.revision)
        labels = labels_of(model.path, model.revision) if model.categories else ()
    except (OSError, ValueError) as error:
        raise SettingsError(f"The model {model.id} cannot be used: {error}.") from error
    if unknown := sorted(set(model.categories) - set(labels)):
        raise SettingsError(f"{model.id}: categories: the model has no label {unknown[0]!r}: {', '.join(labels)}.")
    return TaskModel(model.id, model.price, texts.prepare)


def _tell_engine_up(model: str, state: State) -> None:
    if state == "unloaded":  # nobody misses it
        telemetry.ENGINE_UP.remove(model)
        return
    telemetry.ENGINE_UP.labels(model).set(state == "ready")
    if state == "ready":
        telemetry.keep_engine_series()


def local_loader(model: ModelSettings) -> Loader:
    """A configured model as a vLLM engine in this process."""
    if model.kind == "generation":
        return local(model.path, revision=model.revision, engine=model.engine, loras=model.loras)
    if model.kind == "image":
        return image_server(model.path, model.server_model or model.id, model.server_key)
    return local_task(model.path, model.kind, revision=model.revision, engine=model.engine)


def model_infos(settings: Settings) -> tuple[ModelInfo, ...]:
    """The models as dialects list them: the default one first."""
    now = int(time.time())
    infos = [_model_info(model, now) for model in settings.models if not model.standby]
    return tuple(sorted(infos, key=lambda info: info.id != settings.default_model))


def _model_info(model: ModelSettings, now: int) -> ModelInfo:
    moderation = Moderation(model.categories, model.threshold) if model.kind == "classification" else None
    return ModelInfo(model.id, now, model.price, model.kind, moderation, adapters_in(model.loras))


def lifespan_of(engines: EngineRegistry, backing: Backing) -> Callable[[FastAPI], Any]:
    """Engines load and books open in the background, so that health is answered meanwhile, and are always closed: the
    books last, since what an engine's end cuts short is settled."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        backing.start()
        engines.start()
        try:
            yield
        finally:
            try:
                await engines.shutdown()
            finally:
                await backing.close()

    return lifespan


def mount(app: FastAPI, http: Http, dialects: Sequence[Dialect]) -> None:
    """The routes of all dialects, with their description."""
    description = Description(dialects)
    for dialect in dialects:
        for prefix in dialect.prefixes:
            for endpoint in posted(dialect):
                _add(app, prefix, dialect, endpoint, ("POST",), description, partial(_post, http, dialect, endpoint))
            for listing in dialect.listings:
                _add(
                    app, prefix, dialect, listing, listing.methods, description, partial(_list, http, dialect, listing)
                )
        for call in dialect.calls:
            for prefix in dialect.prefixes if call.prefixes is None else call.prefixes:
                _add(app, prefix, dialect, call, call.methods, description, partial(_call, http, dialect, call))
    app.openapi = partial(description.complete, app)  # type: ignore[method-assign]  # FastAPI's documented hook


class _Rest(PathConvertor):
    """In place of Starlette's own, which stops before a line break at the end: `/models/%0A` was the list."""

    regex = r"[\s\S]*"


register_url_convertor("path", _Rest())


def _add(
    app: FastAPI,
    prefix: str,
    dialect: Dialect,
    endpoint: Posted | Listing[Any] | Call[Any],
    methods: tuple[str, ...],
    description: Description,
    handle: Callable[[Request], Awaitable[Response]],
) -> None:
    async def route(request: Request) -> Response:
        return await handle(request)

    for method in methods:
        app.add_api_route(
            prefix + endpoint.path,
            route,
            methods=[method],
            name=f"{method.lower()} {prefix}{endpoint.path}",
            summary=endpoint.summary,
            tags=[dialect.name],
            response_class=Response,
            openapi_extra=description.operation(dialect, endpoint),
        )


async def _post(http: Http, dialect: Dialect, endpoint: Posted, request: Request) -> Response:
    return Exchange(http, dialect, endpoint, request)


async def _list(http: Http, dialect: Dialect, listing: Listing[Any], request: Request) -> Response:
    return await listing_response(http, dialect, listing, request)


async def _call(http: Http, dialect: Dialect, call: Call[Any], request: Request) -> Response:
    return await call_response(http, dialect, call, request)


def mount_errors(app: FastAPI, dialects: Sequence[Dialect]) -> None:
    """An address that does not exist is answered in the shape of the dialect it lies under."""

    async def handle(request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 500
        path = request.url.path
        known = MethodNotAllowed if status == 405 else NotFound
        told = known(f"There is no {request.method} {path} here." if status == 405 else f"There is no {path} here.")
        headers = error_headers(told) | ({"allow": _methods(app, path)} if status == 405 else {})
        if dialect := _dialect_of(path, dialects):
            code, body = dialect.render_error(told)
            return Response(body, code, headers)
        return JSONResponse({"detail": told.message}, told.status, headers)

    app.add_exception_handler(HTTPException, handle)


def _dialect_of(path: str, dialects: Sequence[Dialect]) -> Dialect | None:
    """The dialect whose prefix an address lies under. One without a prefix has no addresses but its own."""
    for dialect in dialects:
        own = {endpoint.path for endpoint in posted(dialect) if "" in dialect.prefixes}
        own |= {prefix + call.path for call in dialect.calls for prefix in call.prefixes or ()}
        if path in own or any(path.startswith(prefix + "/") for prefix in dialect.prefixes if prefix):
            return dialect
    return None


def _methods(app: FastAPI, path: str) -> str:
    """What may be asked of an address: each method is a route of its own."""
    routes = (route for route in app.routes if isinstance(route, Route) and route.path_regex.match(path))
    return ", ".join(sorted({method for route in routes for method in route.methods or ()}))


def mount_operations(app: FastAPI, engines: EngineRegistry, admission: Admission, backing: Backing) -> None:
    """Health and metrics: for supervisors and Prometheus, without a key."""

    @app.get("/health/live", tags=["operations"])
    async def live() -> dict[str, str]:
        """The process answers. It depends on no engine and no store."""
        return {"status": "live"}

    @app.get("/health/ready", tags=["operations"], responses={503: {"description": "Loading, draining or dead"}})
    async def ready() -> Response:
        """All models are loaded, no engine is dead, the books are open, and the process is not draining."""
        states = {model: engines.state(model) for model in engines.models}
        able = engines.ready and backing.state == "open"
        status = "draining" if admission.draining else "ready" if able else "not ready"
        told = {"status": status, "models": states, "books": backing.state}
        return JSONResponse(told, 200 if status == "ready" else 503)

    @app.get("/metrics", tags=["operations"], response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Prometheus series: the engine's own and ours."""
        return Response(telemetry.exposition(), media_type=telemetry.MEDIA_TYPE)
