"""The one endpoint body: every generating endpoint of every dialect is `Exchange`.

    headers -> caller; body -> wire -> core; events -> frames or one body; errors -> the dialect's shape

It is the only place that catches. The response starts with the first part of the answer, so an error before it has
its status, or with a keep-alive when that part is long in coming. A client that goes away, or stops reading, ends the
generation. It knows no dialect's wire format.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, BinaryIO
from uuid import uuid4

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from serving import telemetry
from serving.core import Caller, Receipt
from serving.core.tasks import Heard
from serving.dialects.base import (
    OPERATOR,
    Access,
    Backend,
    Call,
    Context,
    Dialect,
    Endpoint,
    Listing,
    Models,
    Posted,
    Standing,
    TaskEndpoint,
)
from serving.dialects.catalog import Catalog
from serving.dialects.library import Library
from serving.dialects.telling import Answer, Stream
from serving.edge.admin_key import is_admin
from serving.edge.body import ClientGone, decode, decode_query, read_body
from serving.edge.form import Form, read_form
from serving.edge.headers import IGNORED, REQUEST_ID, error_headers, granted_headers
from serving.edge.mistakes import our_mistake
from serving.edge.reply import LARGE_BYTES, Reply
from serving.errors import Forbidden, Overloaded, PlanChanged, ServingError
from serving.pipeline import Granted, Pipeline
from serving.tasks import Tasks

log = logging.getLogger(__name__)

_STREAM_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}
"""Neither caches nor a buffering reverse proxy may hold a stream back."""


@dataclass(frozen=True)
class Http:
    """What the endpoint body needs of the application. Times are in seconds. `backend` raises Overloaded until the
    books are open. `admin_key` None: nobody is an admin."""

    backend: Callable[[], Backend]
    models: Models
    admin_key: str | None
    max_body_bytes: int
    max_form_bytes: int
    keep_alive_s: float
    write_timeout_s: float
    library: Library = field(default=Library())
    grammars: bool = False

    async def authenticate(self, request: Request) -> tuple[Backend, Caller]:
        """What answers, and who asks. Raises Overloaded, and as `Keyring` does."""
        backend = self.backend()
        return backend, await backend.keys.authenticate(authorization(request))

    async def standing(self, request: Request, access: Access) -> Standing:
        """Who asks, with a key that has `access`. Raises Forbidden, and as `authenticate` does."""
        backend = self.backend()
        if access != "key" and is_admin(authorization(request), self.admin_key):
            return Standing.of(OPERATOR, backend, self.models, self.library)
        _, caller = await self.authenticate(request)
        if access == "admin":
            why = "the admin key alone may" if self.admin_key else "this server has no admin key, which it takes"
            raise Forbidden(f"This key may not do this: {why}.")
        return Standing.of(caller, backend, self.models, self.library)


def authorization(request: Request) -> str | None:
    """The header that says who asks; some clients send the key alone, as `x-api-key`."""
    key = request.headers.get("x-api-key")
    return request.headers.get("authorization") or (f"Bearer {key}" if key else None)


class Exchange(Response):
    """One request to an endpoint that generates or does a task, as an ASGI response."""

    def __init__(self, http: Http, dialect: Dialect, endpoint: Posted, request: Request) -> None:
        self.background = None
        self._http = http
        self._dialect = dialect
        self._endpoint = endpoint
        self._request = request
        self._id = uuid4().hex
        self._file: BinaryIO | None = None
        self._stream: Stream | None = None
        self._model = "unknown"
        self._code: str | None = None
        self._caller: Caller | None = None
        self._granted: Granted | None = None
        self._receipt: Receipt | None = None
        self._began_s = time.monotonic()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        reply = Reply(send, {REQUEST_ID: self._id})
        try:
            await self._exchange(reply, receive)
        finally:
            self._record(reply)

    def _record(self, reply: Reply) -> None:
        """One request in the metrics and the log."""
        labels = (self._dialect.name, self._endpoint.name, self._model)
        status = str(reply.status or self._code)
        telemetry.REQUESTS.labels(*labels, status).inc()
        fields: dict[str, object] = {"request_id": self._id, "status": status, "code": self._code}
        fields |= dict(zip(("dialect", "endpoint", "model"), labels, strict=True))
        fields["duration_ms"] = round((time.monotonic() - self._began_s) * 1000)
        if self._caller:
            fields |= {"account": self._caller.account, "key_id": self._caller.key_id}
        if self._receipt:
            fields |= asdict(self._receipt.usage) | {"cost_microcredits": self._receipt.cost}
        log.info("request", extra=fields)

    async def _exchange(self, reply: Reply, receive: Receive) -> None:
        try:
            await self._guarded(reply, receive)
        except ClientGone:
            self._code = "disconnect"
            telemetry.DISCONNECTS.labels(self._dialect.name).inc()

    async def _guarded(self, reply: Reply, receive: Receive) -> None:
        """Every error but ClientGone ends here, as the client is told it."""
        try:
            backend, caller = await self._http.authenticate(self._request)
            self._caller = caller
            with await self._read(receive) as body, backend.keys.watch(caller) as revoked:
                answer = asyncio.create_task(self._answer(backend, caller, body, reply, revoked))
                await self._watched(answer, revoked, reply, receive)
        except ClientGone:
            raise
        except ServingError as error:
            await self._fail(error, reply)
        except asyncio.CancelledError:
            # Nobody but the server's own end cancels a request, and the client is still there to be told.
            await self._fail(Overloaded("The server was stopped. Try again in a moment."), reply)
        except Exception as error:  # noqa: BLE001  # the last resort: whoever asked is told, and so is the log
            await self._fail(our_mistake(error, self._id), reply)

    async def _read(self, receive: Receive) -> contextlib.AbstractContextManager[bytes | Form]:
        """The body; a form's file lies open while it is used."""
        headers = self._request.headers
        if isinstance(self._endpoint, TaskEndpoint) and self._endpoint.form:
            return contextlib.closing(await read_form(headers, receive, self._http.max_form_bytes))
        return contextlib.nullcontext(await read_body(headers, receive, self._http.max_body_bytes))

    async def _watched(
        self, answer: asyncio.Task[None], revoked: asyncio.Future[ServingError], reply: Reply, receive: Receive
    ) -> None:
        """Wait for the answer beside the connection and the key, which both are watched, and keep a silent stream
        alive. Raises ClientGone, or what became of the key."""
        gone = asyncio.create_task(_until_disconnected(receive))
        awaited: set[asyncio.Future[Any]] = {answer, gone, revoked}
        try:
            while not answer.done():
                silence = self._http.keep_alive_s
                await asyncio.wait(awaited, timeout=silence, return_when=asyncio.FIRST_COMPLETED)
                if (gone.done() and not answer.done()) or reply.stalled_s() > self._http.write_timeout_s:
                    raise ClientGone
                if revoked.done() and not answer.done():
                    raise revoked.result()
                if not answer.done() and self._stream and reply.silent_s() >= silence:
                    await reply.write_unwatched(self._stream.keep_alive(), self._http.write_timeout_s, more=True)
            await answer
        finally:
            gone.cancel()
            if not answer.done():
                answer.cancel()
                # The generation aborts the engine and settles before this request is over.
                await asyncio.wait({answer})
                if not answer.cancelled():
                    answer.exception()

    async def _answer(
        self, backend: Backend, caller: Caller, body: bytes | Form, reply: Reply, revoked: asyncio.Future[ServingError]
    ) -> None:
        """Body to answer; again when the account's plan changed since its key was read."""
        wire = self._endpoint.wire
        if isinstance(body, Form):
            self._file = body.file
            request = decode_query(wire, body.values)
        else:
            request = decode(wire, body)
            if len(body) > LARGE_BYTES:
                await asyncio.sleep(0)  # translating it takes long, too: others come in between
        try:
            await self._work(backend, caller, request, reply, revoked)
        except PlanChanged:
            if self._granted is not None:
                raise
            caller = await backend.keys.fresh(caller)
            await self._work(backend, caller, request, reply, revoked)

    async def _work(
        self,
        backend: Backend,
        caller: Caller,
        request: Any,  # noqa: ANN401  # the endpoint's wire model
        reply: Reply,
        revoked: asyncio.Future[ServingError],
    ) -> None:
        if isinstance(self._endpoint, TaskEndpoint):
            await self._perform(self._endpoint, backend.tasks, caller, request, reply, revoked)
        else:
            await self._generate(self._endpoint, backend.pipeline, caller, request, reply, revoked)

    async def _perform(
        self,
        endpoint: TaskEndpoint[Any],
        tasks: Tasks,
        caller: Caller,
        request: Any,  # noqa: ANN401  # the endpoint's wire model
        reply: Reply,
        revoked: asyncio.Future[ServingError],
    ) -> None:
        """Wire model to answer, sent as it is heard or whole."""
        context = self._context(caller)
        task = endpoint.to_core(request, context)
        self._model = task.model
        (model,) = (model for model in context.catalog.tasks if model.id == task.model)
        perform = partial(tasks.perform, caller, task, on_hold=partial(self._on_hold, reply), revoked=revoked)
        if (stream := endpoint.stream(request)) is None:
            result, self._receipt = await perform()
            told = await asyncio.to_thread(endpoint.tell, request, result, model, self._receipt)
            reply.headers["content-type"] = told.media_type
            await reply.write(told.body, more=False)
            return
        self._begin(stream, reply)

        async def tell(heard: Heard) -> None:
            if part := stream.tell(heard):
                await reply.write(part)

        result, self._receipt = await perform(on_heard=tell)
        await reply.write(await asyncio.to_thread(stream.end, result, self._receipt), more=False)

    def _begin(self, stream: Stream, reply: Reply) -> None:
        self._stream = stream
        reply.headers |= {"content-type": stream.media_type} | _STREAM_HEADERS

    def _context(self, caller: Caller) -> Context:
        http = self._http
        return Context(
            self._id, int(time.time()), Catalog.of(http.models.infos, caller), http.library, http.grammars, self._file
        )

    def _on_hold(self, reply: Reply, granted: Granted) -> None:
        self._granted = granted
        reply.headers.update(granted_headers(granted))

    async def _generate(
        self,
        endpoint: Endpoint[Any],
        pipeline: Pipeline,
        caller: Caller,
        request: Any,  # noqa: ANN401  # the endpoint's wire model
        reply: Reply,
        revoked: asyncio.Future[ServingError],
    ) -> None:
        """Wire model to answer, sent as it comes or whole."""
        context = self._context(caller)
        if endpoint.look_up is not None:
            request = await endpoint.look_up(request, context)
        core_request = endpoint.to_core(request, context)
        self._model = core_request.model
        if ignored := endpoint.ignored(request):
            reply.headers[IGNORED] = ", ".join(ignored)
        teller = endpoint.teller(request, core_request, context)
        reply.headers["content-type"] = teller.media_type
        if teller.streamed:
            self._begin(teller, reply)
        answer, on_hold = Answer(), partial(self._on_hold, reply)
        async with aclosing(pipeline.generate(caller, core_request, on_hold=on_hold, revoked=revoked)) as events:
            if teller.streamed:
                async for event in events:
                    if part := teller.tell(event):
                        await reply.write(part)
            else:
                async for event in events:
                    answer.add(event)
            self._receipt = event if isinstance(event, Receipt) else None
        if teller.streamed:
            await reply.write(b"", more=False)
        else:
            # A body with many logprobs takes long to make; a thread lets others in between.
            await reply.write(await asyncio.to_thread(teller.whole, answer), more=False)

    async def _fail(self, error: ServingError, reply: Reply) -> None:
        """Tell an error: with its status while nothing was sent, else as the dialect's last words in the stream."""
        self._code = error.code
        timeout_s = self._http.write_timeout_s
        if reply.status is not None:
            await reply.write_unwatched(self._stream.fail(error) if self._stream else b"", timeout_s)
            return
        reply.headers |= error_headers(error)
        status, body = self._dialect.render_error(error)
        await reply.write_unwatched(body, timeout_s, status=status)


async def _until_disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def listing_response(http: Http, dialect: Dialect, listing: Listing[Any], request: Request) -> Response:
    """Answer a listing: the same authentication and error shape as a generation."""

    async def told() -> bytes:
        standing = await http.standing(request, listing.access)
        query = decode_query(listing.query, {**request.query_params, **request.path_params})
        return await listing.tell(query, standing)

    return await _response(dialect, listing, told)


async def call_response(http: Http, dialect: Dialect, call: Call[Any], request: Request) -> Response:
    """Answer a call: the same authentication, bounds and error shape as a generation."""

    async def told() -> bytes:
        standing = await http.standing(request, call.access)
        body = await read_body(request.headers, request.receive, http.max_body_bytes)
        return await call.tell(decode(call.wire, body or b"{}"), standing)

    return await _response(dialect, call, told)


async def _response(
    dialect: Dialect, endpoint: Listing[Any] | Call[Any], told: Callable[[], Awaitable[bytes]]
) -> Response:
    """What `told` gives, or what went wrong."""
    try:
        return Response(await told(), media_type=endpoint.whole_media_types[0])
    except ClientGone:
        return Response(status_code=400)  # nobody reads it
    except Exception as error:  # noqa: BLE001  # as for a generation
        reason = error if isinstance(error, ServingError) else our_mistake(error, endpoint.name)
        status, body = dialect.render_error(reason)
        return Response(body, status, error_headers(reason))
