"""What goes over the wire: the requests and answers of the OpenAI API, and its errors.

What it is: shapes and bounds, strict, so that the OpenAPI page made from them is true. A field
that is not here is refused by its name. What it is not: the meaning of the fields (api.py).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    StringConstraints,
    model_serializer,
    model_validator,
)

MOST_CHOICES = 64
"""Prompts of a request times its ``n``."""

LONGEST_TEMPERATURE = 2.0

# Fields of the API that mean something this server does not do, and the values that ask for
# nothing: with these the field is passed over, with others refused by its name.
_NOT_DONE: dict[str, tuple[Any, ...]] = {
    "audio": (None,),
    "best_of": (None, 1),
    "echo": (None, False),
    "function_call": (None, "none"),
    "functions": (None, []),
    "logit_bias": (None, {}),
    "modalities": (None, ["text"]),
    "parallel_tool_calls": (None, True, False),
    "prediction": (None,),
    "reasoning_effort": (None,),
    "service_tier": (None, "auto", "default"),
    "suffix": (None, ""),
    "tool_choice": (None, "none", "auto"),
    "tools": (None, []),
    "verbosity": (None,),
    "web_search_options": (None,),
}

# The same of a message. Answers have some of them, and clients send an answer back as it came.
_NOT_SAID: dict[str, tuple[Any, ...]] = {
    "annotations": (None, []),
    "audio": (None,),
    "function_call": (None,),
    "refusal": (None,),
    "tool_calls": (None, []),
}

TokenId = Annotated[int, Field(ge=0, le=2**31 - 1)]
TokenIds = Annotated[list[TokenId], Field(min_length=1, fail_fast=True)]
StopText = Annotated[str, StringConstraints(min_length=1, max_length=1000)]


class ApiError(Exception):
    """A refusal or a failure, as the API tells it: a status, a message, a code, a field.

    ``retry_after`` is in seconds. The type follows from the status.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.retry_after = retry_after

    def answer(self) -> ErrorAnswer:
        """What goes into the body of the answer, or into an event of a stream."""
        kinds = {401: "authentication_error", 429: "rate_limit_error"}
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return ErrorAnswer(
            error=ErrorDetail(
                message=self.message,
                type=kinds.get(self.status, kind),
                param=self.param,
                code=self.code,
            )
        )


class NotDone(ValueError):
    """A field that asks for something that this server does not do."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


def _without_neutral(data: Any, not_done: dict[str, tuple[Any, ...]]) -> Any:
    """A table without fields that ask for nothing; NotDone for one that asks for something."""
    if not isinstance(data, dict):
        return data
    for name, neutral in not_done.items():
        if name in data and not any(data[name] is v or data[name] == v for v in neutral):
            raise NotDone(name)
    return {name: value for name, value in data.items() if name not in not_done}


class Wire(BaseModel):
    """A shape that comes in: no unknown keys, no conversions, no numbers that JSON lacks.

    Lists in it end at their first error (fail_fast): a body may hold millions.
    """

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


class TextPart(Wire):
    """A part of a message. Only text is understood."""

    type: Literal["text"]
    text: str


class Message(Wire):
    """One turn of a chat. ``developer`` is read as ``system``."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], Field(fail_fast=True)]
    name: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse_what_is_not_said(cls, data: Any) -> Any:
        return _without_neutral(data, _NOT_SAID)

    @property
    def text(self) -> str:
        """All text of the message."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content)


class AsText(Wire):
    """Any text; the default."""

    type: Literal["text"]


class AsJson(Wire):
    """Some JSON object."""

    type: Literal["json_object"]


class JsonSchema(Wire):
    """A JSON Schema that the answer is to follow; always exactly, whatever ``strict`` says."""

    name: str
    schema_: dict[str, Any] = Field(alias="schema")
    description: str | None = None
    strict: bool | None = None


class AsJsonSchema(Wire):
    """JSON that follows a schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


class StreamOptions(Wire):
    """Settings of a stream."""

    include_usage: bool | None = None


class Asked(Wire):
    """What both endpoints take. null is the same as leaving a field out."""

    model: str
    max_tokens: int | None = Field(None, ge=1, le=2**31 - 1)
    temperature: float | None = Field(None, ge=0.0, le=LONGEST_TEMPERATURE)
    top_p: float | None = Field(None, gt=0.0, le=1.0)
    top_k: int | None = Field(None, ge=0, le=2**31 - 1)
    min_p: float | None = Field(None, ge=0.0, le=1.0)
    seed: int | None = Field(None, ge=-(2**63), le=2**63 - 1)
    n: int | None = Field(None, ge=1, le=16)
    stop: StopText | Annotated[list[StopText], Field(max_length=4, fail_fast=True)] | None = None
    presence_penalty: float | None = Field(None, ge=-2.0, le=2.0)
    frequency_penalty: float | None = Field(None, ge=-2.0, le=2.0)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: (
        Annotated[AsText | AsJson | AsJsonSchema, Field(discriminator="type")] | None
    ) = None
    user: str | None = None
    store: bool | None = None
    metadata: dict[str, str] | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse_what_is_not_done(cls, data: Any) -> Any:
        return _without_neutral(data, _NOT_DONE)

    @property
    def stops(self) -> tuple[str, ...]:
        """The texts that end an answer."""
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


class ChatRequest(Asked):
    """The body of POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1, fail_fast=True)]
    max_completion_tokens: int | None = Field(None, ge=1, le=2**31 - 1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)


class CompletionRequest(Asked):
    """The body of POST /v1/completions; a prompt is text or token ids, one or a list of them."""

    prompt: (
        str
        | Annotated[list[str], Field(min_length=1, max_length=MOST_CHOICES, fail_fast=True)]
        | TokenIds
        | Annotated[list[TokenIds], Field(min_length=1, max_length=MOST_CHOICES, fail_fast=True)]
    )
    logprobs: int | None = Field(None, ge=0, le=20)


# ---------------------------------------------------------------------- answers


class ErrorDetail(BaseModel):
    """What went wrong; ``param`` is the field, ``code`` a word for scripts."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(BaseModel):
    """The body of every answer that is no success."""

    error: ErrorDetail


class CachedTokens(BaseModel):
    """Tokens of the prompt that had been computed for earlier requests."""

    cached_tokens: int


class Usage(BaseModel):
    """Tokens read and written by a request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens


class TopLogprob(BaseModel):
    """A token that could have stood there."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TopLogprob):
    """A token of the answer, with the likeliest alternatives."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    """Logprobs of an answer of a chat, token by token."""

    content: list[TokenLogprob]
    refusal: None = None


class Logprobs(BaseModel):
    """Logprobs of a completion: four lists of the same length."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


Reason = Literal["stop", "length"]


class AnswerMessage(BaseModel):
    """What the model says."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(BaseModel):
    """One of the ``n`` answers."""

    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: Reason


class ChatCompletion(BaseModel):
    """The answer of /v1/chat/completions; ``created`` is in seconds since 1970."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class Delta(BaseModel):
    """What a stream adds to a message; fields that say nothing new are left out."""

    role: Literal["assistant"] | None = None
    content: str | None = None

    @model_serializer(mode="wrap")
    def _without_nulls(self, whole: SerializerFunctionWrapHandler) -> dict[str, str]:
        return {name: value for name, value in whole(self).items() if value is not None}


class ChatChunkChoice(BaseModel):
    """A piece of one of the ``n`` answers."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None
    finish_reason: Reason | None


class ChatChunk(BaseModel):
    """An event of a stream of /v1/chat/completions."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | None = None


class CompletionChoice(BaseModel):
    """A continuation, or in a stream a piece of it."""

    index: int
    text: str
    logprobs: Logprobs | None
    finish_reason: Reason | None


class Completion(BaseModel):
    """The answer of /v1/completions, and an event of its stream."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = None


class ModelCard(BaseModel):
    """A model that is served; ``max_model_len`` counts prompt and answer together, in tokens."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "atoll"
    max_model_len: int


class ModelList(BaseModel):
    """The answer of /v1/models."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class Health(BaseModel):
    """The answer of /health; all but ``ok`` come with status 503."""

    status: Literal["ok", "stopping", "failed"]
    running: int
    queued: int
