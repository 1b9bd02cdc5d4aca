"""What a dialect is to the rest: endpoints that generate, and the way it tells answers and errors.

It holds no HTTP and no wire format. `Answer` is the fold of a generation's events; law 1: every whole answer of every
dialect is made from it, so a stream and a whole answer cannot disagree.
"""

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime
from typing import Any, BinaryIO, Generic, NamedTuple, Protocol, TypeAlias, TypeVar

import msgspec

from serving.core import (
    Caller,
    Delta,
    Event,
    Finished,
    FinishReason,
    GenerationRequest,
    Price,
    Receipt,
    Started,
    TokenLogprob,
    Usage,
)
from serving.core_tasks import ModelKind, TaskKind, TaskRequest
from serving.errors import NotFound, ServingError, Unauthenticated, UnknownModel
from serving.ledger.base import Account, Books, DayUsage, Key, account_tag
from serving.prompting.roles import split_model


@dataclass(frozen=True, slots=True)
class Moderation:
    """How a classifier's scores are told: the category that each of its labels means (those that are not here are not
    told), and the score from which one applies."""

    categories: Mapping[str, str]
    threshold: float


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a dialect may know of a served model. `created` is a Unix time in seconds, `price` what its caller pays,
    `moderation` a classifier's."""

    id: str
    created: int
    price: Price
    kind: ModelKind = "generation"
    moderation: Moderation | None = None


@dataclass(frozen=True, slots=True)
class Catalog:
    """The models that one caller may use: those that generate, the default one first, and those that do tasks."""

    models: tuple[ModelInfo, ...]
    tasks: tuple[ModelInfo, ...] = ()

    @classmethod
    def of(cls, models: tuple[ModelInfo, ...], caller: Caller) -> "Catalog":
        percent = caller.plan.price_percent
        usable = [replace(model, price=model.price.at(percent)) for model in models if caller.may_use(model.id)]
        tasks = tuple(model for model in usable if model.kind != "generation")
        return cls(tuple(model for model in usable if model.kind == "generation"), tasks)

    def resolve(self, name: str | None, *, param: str = "model") -> tuple[ModelInfo, str | None]:
        """The model that `name` means, and the suffix behind its id. Missing or empty means the default model.

        Raises UnknownModel.
        """
        if not name and self.models:
            return self.models[0], None
        by_id = {model.id: model for model in self.models}
        try:
            model_id, suffix = split_model(name or "", by_id)
        except UnknownModel:
            raise _unknown(by_id, param) from None
        return by_id[model_id], suffix

    def resolve_task(self, kind: TaskKind, name: str | None) -> ModelInfo:
        """The model that `name` means at an address for `kind`. Missing or empty means the first one.

        Raises NotFound when there is none of that kind, UnknownModel.
        """
        by_id = {model.id: model for model in self.tasks if model.kind == kind}
        if not by_id:
            raise NotFound(f"There is no {kind} model here that this key may use.")
        model_id = name or next(iter(by_id))
        if model_id not in by_id:
            raise _unknown(by_id, "model")
        return by_id[model_id]


def _unknown(known: Iterable[str], param: str) -> UnknownModel:
    told = ", ".join(known) or "none"
    return UnknownModel(f"There is no such model for this key. Models it may use: {told}.", param=param)


@dataclass(frozen=True, slots=True)
class Context:
    """What a translation needs beside the wire request. `now` is a Unix time in seconds, `file` that of a form."""

    request_id: str
    now: int
    catalog: Catalog
    file: BinaryIO | None = None


@dataclass(frozen=True, slots=True)
class Standing:
    """Who asks a listing, and what may be told: read from the books when a listing asks for it. All days are UTC."""

    caller: Caller
    catalog: Catalog
    books: Books
    now: datetime

    @classmethod
    def of(cls, caller: Caller, models: tuple[ModelInfo, ...], books: Books) -> "Standing":
        return cls(caller, Catalog.of(models, caller), books, datetime.now(UTC))

    async def account(self) -> Account:
        """The account as it stands, this month's grant made. Raises Unauthenticated when it is gone."""
        account = await self.books.account(self.caller.account, self.caller.plan)
        if account is None:
            raise Unauthenticated("The account of this API key does not exist.")
        return account

    async def key(self) -> Key:
        """The key that asks. Raises Unauthenticated when it is gone."""
        key = await self.books.key(account_tag(self.caller.account), self.caller.key_id)
        if key is None:
            raise Unauthenticated("This API key does not exist any more.")
        return key

    async def usage(self, start: date, end: date) -> list[DayUsage]:
        """What the account used from `start` until before `end`, by day, key and model."""
        return await self.books.usage(self.caller.account, start.isoformat(), end.isoformat())


@dataclass(slots=True)
class ChoiceAnswer:
    """One choice, folded from its events."""

    text: str = ""
    names: tuple[str, ...] | None = None
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: FinishReason | None = None


@dataclass(slots=True)
class Answer:
    """A generation, folded from its events. `usage` and `cost` (microcredits) are those of the receipt."""

    choices: dict[int, ChoiceAnswer] = field(default_factory=dict)
    usage: Usage = field(default=Usage())
    cost: int = 0

    def add(self, event: Event | Receipt) -> None:
        if isinstance(event, Delta):
            choice = self.choices[event.index]
            choice.text += event.text
            choice.logprobs.extend(event.logprobs)
            if event.names is not None:
                choice.names = event.names
        elif isinstance(event, Started):
            self.choices[event.index] = ChoiceAnswer()
        elif isinstance(event, Finished):
            self.choices[event.index].finish_reason = event.reason
        else:
            self.usage, self.cost = event.usage, event.cost

    def in_order(self) -> list[tuple[int, ChoiceAnswer]]:
        return sorted(self.choices.items())


class Teller(Protocol):
    """How one answer is told. Every method returns bytes for the wire; empty bytes say nothing."""

    @property
    def streamed(self) -> bool:
        """Whether events are told as they come, or folded into one body."""
        ...

    @property
    def media_type(self) -> str: ...

    def tell(self, event: Event | Receipt) -> bytes:
        """A part of the stream. The Receipt is the last event, and its part ends the stream."""
        ...

    def keep_alive(self) -> bytes:
        """Something that changes nothing, for a stream that was silent for long."""
        ...

    def fail(self, error: ServingError) -> bytes:
        """The end of a stream that had begun and failed."""
        ...

    def whole(self, answer: Answer) -> bytes:
        """The body of an answer that is not streamed."""
        ...


W = TypeVar("W", bound=msgspec.Struct)


@dataclass(frozen=True)
class Endpoint(Generic[W]):
    """One generating endpoint: what is sent, what it means, how its answer is told. `name` labels it in metrics.

    `answer` is the schema of a whole answer, whose media types are listed, and those of streams.
    """

    name: str
    path: str
    summary: str
    wire: type[W]
    answer: type[msgspec.Struct]
    whole_media_types: tuple[str, ...]
    stream_media_types: tuple[str, ...]
    to_core: Callable[[W, Context], GenerationRequest]
    teller: Callable[[W, GenerationRequest, Context], Teller]


class Told(NamedTuple):
    """A whole body."""

    body: bytes
    media_type: str = "application/json"


@dataclass(frozen=True)
class TaskEndpoint(Generic[W]):
    """One endpoint for work without a token stream. The rest is as for `Endpoint`.

    `tell` gets the result that the model's engine has for what `to_core` asks, and the units that were charged. With
    `form` it is asked by a form, which may hold a file.
    """

    name: str
    path: str
    summary: str
    wire: type[W]
    answer: type[msgspec.Struct]
    to_core: Callable[[W, Context], TaskRequest[Any]]
    tell: Callable[[W, Any, ModelInfo, Receipt], Told]
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
    def error_schema(self) -> type[msgspec.Struct]: ...

    def render_error(self, error: ServingError) -> tuple[int, bytes]:
        """HTTP status and body of an error before the first byte."""
        ...


def posted(dialect: Dialect) -> tuple[Posted, ...]:
    """Its endpoints that are asked with a body."""
    return (*dialect.endpoints, *dialect.tasks)
