"""What a dialect is to the rest: endpoints that generate, tell or do, and the way it tells errors.

It holds no HTTP and no wire format. How answers are told is `telling`'s.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any, BinaryIO, Generic, Literal, Protocol, TypeAlias, TypeVar

import msgspec

from serving.accounts.keys import Keyring
from serving.core import Caller, GenerationRequest, Receipt
from serving.core.tasks import TaskRequest
from serving.dialects.catalog import Catalog, ModelInfo
from serving.dialects.library import Library
from serving.dialects.telling import TaskStream, Teller, Told
from serving.errors import ServingError, Unauthenticated
from serving.ledger.base import STOP, Account, Books, DayUsage, Key, account_tag
from serving.pipeline import Pipeline
from serving.prompting.prepare import Prompting
from serving.tasks import Tasks


@dataclass(frozen=True, slots=True)
class Context:
    """What a translation needs beside the wire request. `now` is a Unix time in seconds, `file` that of a form.
    `grammars`: the operator allows them."""

    request_id: str
    now: int
    catalog: Catalog
    library: Library
    grammars: bool = False
    file: BinaryIO | None = None


@dataclass(frozen=True)
class Backend:
    """What requests need of the books, while they are open."""

    keys: Keyring
    books: Books
    pipeline: Pipeline
    tasks: Tasks


class Models(Protocol):
    """Which models are served, and changes of that for who has the admin key."""

    @property
    def infos(self) -> tuple[ModelInfo, ...]:
        """Those that are served, the default one first."""
        ...

    @property
    def loadable(self) -> tuple[str, ...]:
        """What `load` takes."""
        ...

    async def load(
        self, name: str, arguments: Mapping[str, Any], *, template: str | None = None, replaces: str | None = None
    ) -> None:
        """Serve a model in the place of another. Raises ServingError; then all is as before."""
        ...

    async def unload(self, name: str | None) -> None:
        """Serve a model no longer. Raises ServingError."""
        ...

    async def adapters(self, model: str) -> tuple[str, ...]:
        """Those of a model, as they lie there now."""
        ...

    async def adapt(self, adapters: Sequence[str]) -> None:
        """Answer with an adapter where the default model is asked for, or with none. Raises ServingError."""
        ...


OPERATOR = Caller("", "the admin key")
"""Who has the admin key: may use every model, and has no account."""


@dataclass(frozen=True, slots=True)
class Standing:
    """Who asks, and what may be told (read from the books when a listing asks for it) or done. All days are UTC."""

    caller: Caller
    catalog: Catalog
    backend: Backend
    models: Models
    library: Library
    now: datetime

    @classmethod
    def of(cls, caller: Caller, backend: Backend, models: Models, library: Library) -> "Standing":
        return cls(caller, Catalog.of(models.infos, caller), backend, models, library, datetime.now(UTC))

    def prompting(self, model: str | None) -> Prompting:
        """How the model that `model` means (see `Catalog.resolve`) reads and writes texts. Raises UnknownModel."""
        info, _ = self.catalog.resolve(model)
        return self.backend.pipeline.model(self.caller, info.id).prompting

    async def stop(self) -> None:
        """End the running generations of this key, in every process."""
        self.backend.pipeline.stop(self.caller.key_id)
        await self.backend.keys.tell(STOP + self.caller.key_id)

    async def account(self) -> Account:
        """The account as it stands, this month's grant made. Raises Unauthenticated when it is gone."""
        account = await self.backend.books.account(self.caller.account, self.caller.plan)
        if account is None:
            raise Unauthenticated("The account of this API key does not exist.")
        return account

    async def key(self) -> Key:
        """The key that asks. Raises Unauthenticated when it is gone."""
        key = await self.backend.books.key(account_tag(self.caller.account), self.caller.key_id)
        if key is None:
            raise Unauthenticated("This API key does not exist any more.")
        return key

    async def usage(self, start: date, end: date) -> list[DayUsage]:
        """What the account used from `start` until before `end`, by day, key and model."""
        return await self.backend.books.usage(self.caller.account, start.isoformat(), end.isoformat())


W = TypeVar("W", bound=msgspec.Struct)

Access: TypeAlias = Literal["key", "admin", "either"]
"""Whose key is needed: that of an account, or the admin key."""


@dataclass(frozen=True)
class Endpoint(Generic[W]):
    """One generating endpoint: what is sent, what it means, how its answer is told. `name` labels it in metrics.

    `answer` is the schema of a whole answer, whose media types are listed, and those of streams, if it has any.
    `ignored` names the fields of a request that ask for something and change nothing: the caller is told in a header.
    `look_up` gives the request with what the files say that it names.
    """

    name: str
    path: str
    summary: str
    wire: type[W]
    answer: type[Any]
    whole_media_types: tuple[str, ...]
    stream_media_types: tuple[str, ...]
    to_core: Callable[[W, Context], GenerationRequest]
    teller: Callable[[W, GenerationRequest, Context], Teller]
    ignored: Callable[[W], Sequence[str]] = lambda request: ()
    look_up: Callable[[W, Context], Awaitable[W]] | None = None


@dataclass(frozen=True)
class TaskEndpoint(Generic[W]):
    """One endpoint that does a task. The rest is as for `Endpoint`.

    `tell` gets the result that the model's engine has for what `to_core` asks, and the units that were charged.
    `stream` gives what tells it as it is heard, for a request that wants that. With `form` it is asked by a form, which
    may hold a file.
    """

    name: str
    path: str
    summary: str
    wire: type[W]
    answer: type[msgspec.Struct]
    to_core: Callable[[W, Context], TaskRequest[Any]]
    tell: Callable[[W, Any, ModelInfo, Receipt], Told]
    stream: Callable[[W], TaskStream | None] = lambda request: None
    whole_media_types: tuple[str, ...] = ("application/json",)
    stream_media_types: tuple[str, ...] = ()
    form: bool = False


@dataclass(frozen=True)
class Listing(Generic[W]):
    """One endpoint that reads: no body, no generation. `query`: the values in its address; `answer`: its schema."""

    name: str
    path: str
    summary: str
    methods: tuple[str, ...]
    query: type[W]
    answer: type[msgspec.Struct]
    tell: Callable[[W, Standing], Awaitable[bytes]]
    whole_media_types: tuple[str, ...] = ("application/json",)
    access: Access = "key"


@dataclass(frozen=True)
class Call(Generic[W]):
    """One endpoint that answers a body without a generation. An absent body is an empty object.

    `prefixes`: where it is mounted instead of under those of its dialect.
    """

    name: str
    path: str
    summary: str
    wire: type[W]
    answer: type[Any]
    tell: Callable[[W, Standing], Awaitable[bytes]]
    prefixes: tuple[str, ...] | None = None
    methods: tuple[str, ...] = ("POST",)
    access: Access = "key"
    whole_media_types: tuple[str, ...] = ("application/json",)


Posted: TypeAlias = Endpoint[Any] | TaskEndpoint[Any]
"""What is asked with a body."""


class Dialect(Protocol):
    """One wire protocol. `prefixes`: where its paths are mounted."""

    @property
    def name(self) -> str: ...

    @property
    def prefixes(self) -> tuple[str, ...]: ...

    @property
    def endpoints(self) -> tuple[Endpoint[Any], ...]: ...

    @property
    def tasks(self) -> tuple[TaskEndpoint[Any], ...]: ...

    @property
    def listings(self) -> tuple[Listing[Any], ...]: ...

    @property
    def calls(self) -> tuple[Call[Any], ...]: ...

    @property
    def error_schema(self) -> type[msgspec.Struct]: ...

    def render_error(self, error: ServingError) -> tuple[int, bytes]:
        """HTTP status and body of an error before the first byte."""
        ...


def posted(dialect: Dialect) -> tuple[Posted, ...]:
    """Its endpoints that are asked with a body."""
    return (*dialect.endpoints, *dialect.tasks)
