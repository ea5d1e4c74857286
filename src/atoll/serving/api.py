"""The OpenAI API over HTTP: one model, chats and completions, streamed or whole.

What it is: routes, and the meaning of the fields of protocol.py. What it is not: the server's life
(server.py) or computation (the engine). A request goes: gate.py, http.read, text to ids, submit,
replies.py, answers.py.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse, Response
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException

import atoll
from atoll.errors import InputError
from atoll.serving import protocol as p
from atoll.serving.answers import ChatForm, CompletionForm, Form
from atoll.serving.gate import GUARDED, Gate, error_response
from atoll.serving.grammar import Grammars, Matching
from atoll.serving.http import ClientLeft, EventStream, event_of, read, unless_left
from atoll.serving.metrics import Metrics
from atoll.serving.replies import End, ReplyCancelled, ReplyFailed, reply, together
from atoll.serving.request import Busy, Closed, Sampling, TooLong
from atoll.serving.request import Request as Generation
from atoll.serving.template import TemplateFailed

if TYPE_CHECKING:
    from atoll.serving.request import Engine, Stream
    from atoll.serving.stops import Piece
    from atoll.serving.text import Language

CHAT_TOKENS = 1024
"""How long an answer of a chat may get if the request does not say."""

COMPLETION_TOKENS = 16
"""How long a completion gets if the request does not say, as in the API's own documentation."""

_Found = TypeVar("_Found")


def create_app(
    engine: Engine, language: Language, *, model_name: str, api_key: str | None = None
) -> FastAPI:
    """The application. ``app.state.service`` is its Service, ``app.state.metrics`` its numbers."""
    app = FastAPI(title="Atoll", version=atoll.__version__, docs_url=None, redoc_url=None)
    metrics = Metrics(engine)
    service = Service(engine, language, model_name=model_name, metrics=metrics)
    app.state.service, app.state.metrics = service, metrics
    _add_routes(app, service)
    app.add_middleware(Gate, key=api_key, metrics=metrics)
    app.add_exception_handler(p.ApiError, _tell)
    app.add_exception_handler(HTTPException, _tell_http)
    app.add_exception_handler(ClientLeft, _tell_nobody)
    page = functools.lru_cache(maxsize=1)(
        lambda: _openapi(app, service, guarded=api_key is not None)
    )
    app.openapi = page  # type: ignore[method-assign]  # how FastAPI has it extended
    return app


@dataclass(frozen=True, slots=True, kw_only=True)
class _Task:
    """A request of a client, ready for the engine: each choice as the engine takes it."""

    form: Form
    prompts: Sequence[list[int]]
    choices: Sequence[Generation]  # of each prompt in turn
    stops: tuple[str, ...]
    began: float  # by time.perf_counter
    param: str  # the field that the prompt came from


class Service:
    """Answers requests by an engine. ``stopping`` refuses every new one."""

    def __init__(
        self, engine: Engine, language: Language, *, model_name: str, metrics: Metrics
    ) -> None:
        self.engine, self.language, self.metrics = engine, language, metrics
        self.stopping = False
        self.model_name = model_name
        self._grammars = Grammars(language)
        self.created = int(time.time())

    def card(self) -> p.ModelCard:
        """The model that is served."""
        return p.ModelCard(
            id=self.model_name, created=self.created, max_model_len=self.engine.limit
        )

    def health(self) -> p.Health:
        """Whether requests are answered."""
        load = self.engine.load()
        status = "failed" if load.failure else "stopping" if self.stopping else "ok"
        return p.Health(status=status, running=load.running, queued=load.queued)

    async def chat(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        began = time.perf_counter()
        body = await read(request, p.ChatRequest)
        self._check(body)
        if body.top_logprobs is not None and not body.logprobs:
            message = "top_logprobs needs logprobs to be true"
            raise p.ApiError(400, message, code="invalid_value", param="top_logprobs")
        roles = {"developer": "system"}
        messages = [{"role": roles.get(m.role, m.role), "content": m.text} for m in body.messages]
        prompt = await _apart(lambda: self.language.chat(messages), 422, param="messages")
        top = (body.top_logprobs or 0) if body.logprobs else None
        asked = body.max_completion_tokens or body.max_tokens
        return await self._answer(
            request,
            body,
            _Task(
                form=self._form(ChatForm, body, 1, logprobs=top is not None),
                prompts=[prompt],
                choices=await self._choices(request, body, [prompt], asked, CHAT_TOKENS, top),
                stops=body.stops + self.language.chat_stops,
                began=began,
                param="messages",
            ),
        )

    async def complete(self, request: Request) -> Response:
        """POST /v1/completions."""
        began = time.perf_counter()
        body = await read(request, p.CompletionRequest)
        self._check(body)
        prompts = await _apart(lambda: self._prompts(body.prompt), 400, param="prompt")
        if len(prompts) * (body.n or 1) > p.MOST_CHOICES:
            message = f"prompts times n is more than {p.MOST_CHOICES}"
            raise p.ApiError(400, message, code="invalid_value", param="n")
        asked = body.max_tokens
        default = COMPLETION_TOKENS
        return await self._answer(
            request,
            body,
            _Task(
                form=self._form(
                    CompletionForm, body, len(prompts), logprobs=body.logprobs is not None
                ),
                prompts=prompts,
                choices=await self._choices(request, body, prompts, asked, default, body.logprobs),
                stops=body.stops,
                began=began,
                param="prompt",
            ),
        )

    def _check(self, body: p.Asked) -> None:
        if self.stopping:
            raise p.ApiError(503, "the server is stopping", code="stopping", retry_after=5)
        if body.model != self.model_name:
            raise p.ApiError(
                404,
                f"there is no model {body.model[:200]!r} here; this server has {self.model_name!r}",
                code="model_not_found",
                param="model",
            )
        if body.stream_options is not None and not body.stream:
            message = "stream_options is only for stream = true"
            raise p.ApiError(400, message, code="invalid_value", param="stream_options")

    def _prompts(self, prompt: str | list[str] | list[int] | list[list[int]]) -> list[list[int]]:
        several: list[Any] = [prompt] if isinstance(prompt, str) else list(prompt)
        if isinstance(several[0], int):
            several = [several]
        ids = [self.language.prompt(x) if isinstance(x, str) else x for x in several]
        for each in ids:
            self.language.check_ids(each)
        return ids

    def _form(self, form: type[Form], body: p.Asked, num_prompts: int, *, logprobs: bool) -> Form:
        return form(
            self.language,
            model=self.model_name,
            created=int(time.time()),
            num_choices=num_prompts * (body.n or 1),
            logprobs=logprobs,
        )

    async def _choices(
        self,
        request: Request,
        body: p.Asked,
        prompts: Sequence[list[int]],
        asked: int | None,
        default: int,
        top_logprobs: int | None,
    ) -> list[Generation]:
        """What the engine is to compute: ``n`` choices for each prompt, seeds counted on."""
        host = request.client.host if request.client else ""
        choices: list[Generation] = []
        for prompt in prompts:
            room = self.engine.limit - len(prompt)
            for _ in range(body.n or 1):
                sampling = Sampling(
                    max_tokens=asked or max(1, min(default, room)),
                    temperature=1.0 if body.temperature is None else body.temperature,
                    top_k=body.top_k or 0,
                    top_p=1.0 if body.top_p is None else body.top_p,
                    min_p=body.min_p or 0.0,
                    seed=None if body.seed is None else body.seed + len(choices),
                    presence_penalty=body.presence_penalty or 0.0,
                    frequency_penalty=body.frequency_penalty or 0.0,
                    stop_ids=self.language.stop_ids,
                    top_logprobs=top_logprobs,
                )
                choices.append(
                    Generation(
                        prompt=prompt,
                        sampling=sampling,
                        constraint=await self._constraint(body.response_format),
                        client=f"{host} {body.user or ''}",
                    )
                )
        return choices

    async def _constraint(
        self, form: p.AsText | p.AsJson | p.AsJsonSchema | None
    ) -> Matching | None:
        if form is None or isinstance(form, p.AsText):
            return None
        whole = isinstance(form, p.AsJsonSchema)
        schema = form.json_schema.schema_ if isinstance(form, p.AsJsonSchema) else None
        param = "response_format.json_schema.schema" if whole else "response_format"
        return await _apart(
            lambda: self._grammars.json({"type": "object"} if schema is None else schema),
            422,
            param=param,
        )

    async def _answer(self, request: Request, body: p.Asked, task: _Task) -> Response:
        """Submits all choices, or none; whatever happens, none is left behind."""
        streams: list[Stream] = []

        def cancel_all() -> None:
            for stream in streams:
                stream.cancel()

        try:
            for choice in task.choices:
                streams.append(self.engine.submit(choice))
        except BaseException as error:
            cancel_all()
            raise _refusal(error, task) from error
        stop_ids = self.language.stop_ids
        replies = [reply(s, self.language.writer(task.stops), stop_ids) for s in streams]
        items = self._observed(together(replies), task)
        if body.stream:
            usage = body.stream_options is not None and bool(body.stream_options.include_usage)
            return EventStream(self._events(items, task, with_usage=usage), at_end=cancel_all)
        try:
            return await unless_left(request, self._whole(items, task))
        finally:
            cancel_all()

    async def _observed(
        self, items: AsyncIterator[tuple[int, Piece | End]], task: _Task
    ) -> AsyncIterator[tuple[int, Piece | End]]:
        """The same items, with the times noted."""
        first = True
        try:
            async for item in items:
                if first:
                    self.metrics.first_token.observe(time.perf_counter() - task.began)
                first = False
                yield item
            self.metrics.whole.observe(time.perf_counter() - task.began)
        finally:
            await items.aclose()  # type: ignore[attr-defined]  # an async generator

    async def _whole(self, items: AsyncIterator[tuple[int, Piece | End]], task: _Task) -> Response:
        pieces: list[list[Piece]] = [[] for _ in task.choices]
        ends: dict[int, End] = {}
        try:
            async for index, item in items:
                if isinstance(item, End):
                    ends[index] = item
                else:
                    pieces[index].append(item)
        except (ReplyFailed, ReplyCancelled) as error:
            raise _failure(error) from error
        finally:
            await items.aclose()  # type: ignore[attr-defined]  # an async generator
        replies = [(pieces[index], ends[index]) for index in range(len(pieces))]
        content = task.form.whole(replies, _usage(task, ends))
        return Response(content.model_dump_json(), media_type="application/json")

    async def _events(
        self, items: AsyncIterator[tuple[int, Piece | End]], task: _Task, *, with_usage: bool
    ) -> AsyncIterator[bytes]:
        ends: dict[int, End] = {}
        try:
            for event in task.form.first():
                yield event_of(event)
            async for index, item in items:
                if isinstance(item, End):
                    ends[index] = item
                yield event_of(task.form.event(index, item))
            if with_usage:
                yield event_of(task.form.usage_event(_usage(task, ends)))
            yield event_of("[DONE]")
        except (ReplyFailed, ReplyCancelled) as error:
            yield event_of(_failure(error).answer())
        finally:
            await items.aclose()  # type: ignore[attr-defined]  # an async generator


async def _apart(work: Callable[[], _Found], status: int, *, param: str) -> _Found:
    """What ``work`` gives, computed beside the loop. ApiError for what is wrong with a field.

    ``status`` is 422 where a field is well formed and this model cannot do what it says.
    """
    try:
        return await asyncio.to_thread(work)
    except InputError as error:
        code = "invalid_value" if status == 400 else "unprocessable"
        raise p.ApiError(status, str(error), code=code, param=param) from error
    except TemplateFailed as error:
        message = f"{error}; /v1/completions needs no template"
        raise p.ApiError(500, message, code="template_failed") from error


def _refusal(error: BaseException, task: _Task) -> BaseException:
    """What a client is told if the engine does not take its request."""
    if isinstance(error, TooLong):
        code = "context_length_exceeded"
        return p.ApiError(400, str(error), code=code, param=task.param)
    if isinstance(error, Busy):
        return p.ApiError(429, str(error), code="queue_full", retry_after=error.retry_after)
    if isinstance(error, Closed):
        return p.ApiError(503, str(error), code="stopping", retry_after=5)
    if isinstance(error, InputError):
        return p.ApiError(400, str(error), code="invalid_value", param=task.param)
    return error


def _failure(error: ReplyFailed | ReplyCancelled) -> p.ApiError:
    if isinstance(error, ReplyCancelled):
        return p.ApiError(503, str(error), code="stopping", retry_after=5)
    return p.ApiError(500, str(error), code="generation_failed")


def _usage(task: _Task, ends: dict[int, End]) -> p.Usage:
    """A prompt counts once, however many choices it has."""
    read_tokens = sum(map(len, task.prompts))
    written = sum(end.num_tokens for end in ends.values())
    each = len(task.choices) // len(task.prompts)
    cached = sum(ends[number * each].cached_tokens for number in range(len(task.prompts)))
    return p.Usage(
        prompt_tokens=read_tokens,
        completion_tokens=written,
        total_tokens=read_tokens + written,
        prompt_tokens_details=p.CachedTokens(cached_tokens=cached),
    )


# ---------------------------------------------------------------------- routes


def _may_fail(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": p.ErrorAnswer} for status in statuses}


def _body_of(name: str) -> dict[str, Any]:
    schema = {"$ref": f"#/components/schemas/{name}"}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


_EVENT = {"type": "object", "properties": {"data": {"type": "string"}}, "required": ["data"]}
_EVENTS = {"text/event-stream": {"schema": _EVENT}}  # of each event, as OpenAPI 3.2 reads it
_FAILURES = (400, 401, 403, 404, 408, 413, 415, 422, 429, 500, 503)


def _add_routes(app: FastAPI, service: Service) -> None:
    async def health() -> Response:
        status = service.health()
        return JSONResponse(status.model_dump(), status_code=200 if status.status == "ok" else 503)

    async def metrics() -> Response:
        # As the library names its format; without the version some scrapers guess.
        return Response(service.metrics.page(), media_type="text/plain; version=0.0.4")

    async def models() -> Response:
        return JSONResponse(p.ModelList(data=[service.card()]).model_dump())

    async def model(model_id: str) -> Response:
        if model_id != service.model_name:
            message = f"there is no model {model_id[:200]!r} here; GET /v1/models lists them"
            raise p.ApiError(404, message, code="model_not_found", param="model")
        return JSONResponse(service.card().model_dump())

    refused = _may_fail(401, 403)
    stopping: dict[int | str, dict[str, Any]] = {503: {"model": p.Health}}
    as_text: dict[int | str, dict[str, Any]] = {
        200: {"content": {"text/plain": {"schema": {"type": "string"}}}}
    }
    app.get("/health", response_model=p.Health, responses=_may_fail(403) | stopping)(health)
    app.get("/metrics", response_class=Response, responses=refused | as_text)(metrics)
    app.get("/v1/models", response_model=p.ModelList, responses=refused)(models)
    app.get(
        "/v1/models/{model_id:path}",
        response_model=p.ModelCard,
        responses=_may_fail(401, 403, 404),
    )(model)
    for path, handler, asks, gives in (
        ("/v1/chat/completions", service.chat, "ChatRequest", p.ChatCompletion),
        ("/v1/completions", service.complete, "CompletionRequest", p.Completion),
    ):
        app.post(
            path,
            response_model=gives,
            responses=_may_fail(*_FAILURES) | {200: {"content": _EVENTS}},
            openapi_extra=_body_of(asks),
        )(handler)


def _openapi(app: FastAPI, service: Service, *, guarded: bool) -> dict[str, Any]:
    """The page at /openapi.json: FastAPI's, with the bodies that http.read checks, and what this
    server's model bounds."""
    page = get_openapi(title=app.title, version=app.version, routes=app.routes)
    _, bodies = models_json_schema(
        [(p.ChatRequest, "validation"), (p.CompletionRequest, "validation")],
        ref_template="#/components/schemas/{model}",
    )
    for name in ("ChatRequest", "CompletionRequest"):
        bodies["$defs"][name]["properties"]["model"]["enum"] = [service.model_name]
    page["components"]["schemas"].update(bodies["$defs"])
    for path, operations in page["paths"].items():
        for method, operation in operations.items():
            if method == "get":
                operation["responses"].pop("422", None)  # FastAPI's own, which never comes
            if guarded and GUARDED.match(path):
                operation["security"] = [{"key": []}]
    if guarded:
        page["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    return page


# ---------------------------------------------------------------------- errors


async def _tell(_: Request, error: Exception) -> Response:
    assert isinstance(error, p.ApiError)
    return error_response(error)


async def _tell_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = str(error.detail)
    if error.status_code == 404:
        message = f"there is nothing at {request.method} {request.url.path[:200]}"
    response = error_response(p.ApiError(error.status_code, message))
    response.headers.update(error.headers or {})
    return response


async def _tell_nobody(_: Request, __: Exception) -> Response:
    return Response(status_code=499)
