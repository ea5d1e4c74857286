"""The page: what stands on it, and what happens when it is used.

Whatever a visitor wrote stays in the browser (page.js keeps it); the server holds a conversation
only while it answers.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import gradio as gr

from atoll.planning.svg import escape, tag
from atoll.web.client import Endpoint, Message, Refused
from atoll.web.look import icon
from atoll.web.run_tab import RunTab
from atoll.web.talk import Step, Talk, turns
from atoll.web.words import LANGUAGES, say, words

LOCALES = {"en": "en", "zh": "zh-CN"}
"""Our languages as Gradio calls them; it has words of its own in both."""

REFRESH_SECONDS = 3.0
TEMPERATURE, TOP_P = 0.3, 0.9
"""At first: what small models need in order to stay with the question."""

_QUIET: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
_AT_ONCE: dict[str, Any] = {**_QUIET, "queue": False}
Update = dict[Any, Any]


def build(endpoint: Endpoint, *, with_key: bool, run: RunTab | None) -> tuple[Any, Any]:
    """(the page as Gradio's Blocks, its words as Gradio's I18n)."""
    spoken = {
        LOCALES[language]: {key: texts[language] for key, texts in words().items()}
        for language in LANGUAGES
    }
    page = _Page(endpoint, gr.I18n(**spoken), with_key=with_key, run=run)
    return page.blocks, page.word


class _Page:
    """The components of the page and their events."""

    def __init__(
        self, endpoint: Endpoint, word: Any, *, with_key: bool, run: RunTab | None
    ) -> None:
        self.endpoint, self.word, self.with_key, self.run = endpoint, word, with_key, run
        self.talk = Talk(endpoint)
        with gr.Blocks(
            title="Atoll", analytics_enabled=False, fill_height=True, fill_width=True
        ) as self.blocks:
            # What the browser knows and the server has to be told with each event.
            self.language = gr.Textbox(visible=False)
            self.key = gr.Textbox(visible=False)
            self._header()
            self._gate()
            with gr.Column(visible=not with_key, elem_id="inside") as self.inside:
                if run is None:
                    self._chat()
                else:
                    with gr.Tabs(elem_id="tabs"):
                        with gr.Tab(word("chat"), id="chat") as chat_tab:
                            self._chat()
                        with gr.Tab(word("run"), id="run") as run_tab:
                            self._run(chat_tab, run_tab)
            self._keep()
            self.blocks.unload(self._left)

    # ------------------------------------------------------------------ what stands there

    def _header(self) -> None:
        with gr.Row(elem_id="header"):
            gr.HTML(f"<h1>{icon('currentColor')}<span>Atoll</span></h1>",
                    elem_id="brand")  # fmt: skip
            self.name = gr.HTML("", elem_id="model")
            panel = gr.Button(self.word("settings"), size="sm", elem_id="open-settings",
                              min_width=0)  # fmt: skip
            self.fresh = gr.Button(self.word("new_chat"), size="sm", elem_id="fresh", min_width=0)
            self.other = gr.Button(self.word("language"), size="sm", elem_id="language",
                                   min_width=0)  # fmt: skip
        self.other.click(None, js="() => atoll.speakOther()")
        panel.click(None, js="() => atoll.toggleSettings()")

    def _gate(self) -> None:
        word = self.word
        with gr.Column(visible=self.with_key, elem_id="gate") as self.gate:
            gr.HTML(word("key_title"), elem_id="key-title")
            self.typed = gr.Textbox(
                label=word("key"), info=word("key_hint"), type="password", elem_id="key",
            )  # fmt: skip
            self.wrong = gr.HTML("", elem_id="wrong", visible=False)
            self.enter = gr.Button(word("enter"), variant="primary", elem_id="enter")

    def _chat(self) -> None:
        word = self.word
        with gr.Row(elem_id="room"):
            with gr.Column(scale=4, min_width=280, elem_id="talk"):
                self.chat = gr.Chatbot(
                    label=word("conversation"), show_label=False, height="100%", elem_id="chat",
                    placeholder=word("welcome"), buttons=["copy"], editable="user",
                    layout="bubble", feedback_options=None, sanitize_html=True, allow_tags=False,
                    container=False, latex_delimiters=[],
                )  # fmt: skip
                with gr.Row(visible=False, elem_id="notice-row") as self.notice_row:
                    self.notice = gr.HTML("", elem_id="notice")
                    self.again = gr.Button(word("again"), size="sm", elem_id="again", min_width=0)
                with gr.Row(elem_id="write"):
                    self.message = gr.Textbox(
                        label=word("message"), placeholder=word("message_hint"), show_label=False,
                        lines=1, max_lines=8, autofocus=True, container=False, scale=1,
                        elem_id="message",
                    )  # fmt: skip
                    self.send = gr.Button(word("send"), variant="primary", elem_id="send",
                                          scale=0, min_width=88)  # fmt: skip
                    self.halt = gr.Button(word("stop"), variant="stop", elem_id="stop", scale=0,
                                          min_width=88, visible=False)  # fmt: skip
                gr.HTML(word("keys"), elem_id="keys")
            self._settings()
        self._answers()

    def _settings(self) -> None:
        word = self.word
        with gr.Column(scale=0, min_width=0, elem_id="side"):
            system = gr.Textbox(label=word("system"), info=word("system_hint"), lines=3,
                                max_lines=10, elem_id="system")  # fmt: skip
            temperature = gr.Slider(0.0, 2.0, TEMPERATURE, step=0.05, label=word("temperature"),
                                    info=word("temperature_hint"), elem_id="temperature",
                                    buttons=[])  # fmt: skip
            top_p = gr.Slider(0.05, 1.0, TOP_P, step=0.05, label=word("top_p"),
                              info=word("top_p_hint"), elem_id="top-p", buttons=[])  # fmt: skip
            max_tokens = gr.Textbox(label=word("max_tokens"), info=word("max_tokens_hint"),
                                    elem_id="max-tokens", max_lines=1)  # fmt: skip
            seed = gr.Textbox(label=word("seed"), info=word("seed_hint"), elem_id="seed",
                              max_lines=1)  # fmt: skip
        self.settings = [system, temperature, top_p, max_tokens, seed]

    def _run(self, chat_tab: Any, run_tab: Any) -> None:
        view = gr.HTML("", elem_id="run", padding=False, apply_default_css=False)
        seen = gr.State(0)
        timer = gr.Timer(REFRESH_SECONDS, active=False)
        look: dict[str, Any] = {
            "fn": self._look, "inputs": [self.key, self.language, seen],
            "outputs": [view, seen], **_AT_ONCE,
        }  # fmt: skip
        run_tab.select(None, js="() => atoll.turnTo('run')")
        chat_tab.select(None, js="() => atoll.turnTo('chat')")
        run_tab.select(**look).then(lambda: gr.Timer(active=True), None, timer, **_AT_ONCE)
        chat_tab.select(lambda: gr.Timer(active=False), None, timer, **_AT_ONCE)
        timer.tick(**look)

    # ------------------------------------------------------------------ what happens

    def _answers(self) -> None:
        """Send, try again, retry, edit: each ends in an answer; and stop."""
        given = [self.chat, self.key, self.language, *self.settings]
        shown = [self.chat, self.message, self.notice, self.notice_row, self.again, self.send,
                 self.halt, self.gate, self.inside]  # fmt: skip
        common: dict[str, Any] = {
            "outputs": shown, "concurrency_limit": None, "api_visibility": "private",
            "show_progress": "hidden",
        }  # fmt: skip
        gr.on([self.message.submit, self.send.click], self._send, [self.message, *given], **common)
        self.again.click(self._retry, given, **common)
        self.chat.retry(self._retry, given, **common)
        self.chat.edit(self._edit, given, **common)
        self.halt.click(self._stop, None, None, **_AT_ONCE)
        self.fresh.click(
            self._fresh,
            None,
            [self.chat, self.notice_row, self.send, self.halt],
            **_AT_ONCE,
        ).then(None, js="() => atoll.focus()")

    def _keep(self) -> None:
        """What the browser keeps, and gives back after a reload."""
        self.chat.change(None, self.chat, None, js="chat => atoll.keepChat(chat)")
        gr.on(
            [one.change for one in self.settings], None, self.settings, None,
            js="(...settings) => atoll.keepSettings(settings)",
        )  # fmt: skip
        enter: dict[str, Any] = {
            "fn": self._enter,
            "inputs": [self.typed, self.language],
            "outputs": [self.key, self.name, self.gate, self.inside, self.wrong, self.typed],
            **_AT_ONCE,
        }
        gr.on([self.enter.click, self.typed.submit], **enter).then(
            None, self.key, None, js="key => atoll.keepKey(key)"
        )
        kept = [self.language, self.typed, self.message, self.chat, *self.settings]
        self.blocks.load(None, kept, kept, js="(...now) => atoll.restore(now)").then(**enter).then(
            None, None, None, js="() => atoll.ready()"
        )

    async def _enter(self, key: str, language: str) -> Update:
        """Show the page if no key is needed or this is the one."""
        closed = {self.gate: gr.skip()}
        key = key.strip()  # what is pasted often brings a space
        if self.with_key:
            if not key:
                return closed
            try:
                known, wrong = await self.endpoint.accepts(key), "wrong_key"
            except Refused as refused:
                known, wrong = False, refused.key
            if not known:
                told = _notice(say(wrong, language), "error")
                return {self.wrong: gr.HTML(told, visible=True), self.key: "",
                        self.gate: gr.Column(visible=True), self.inside: gr.Column(visible=False),
                        self.typed: ""}  # fmt: skip
        return {
            self.key: key,
            self.name: tag("span", escape(self.endpoint.model)),
            self.gate: gr.Column(visible=False),
            self.inside: gr.Column(visible=True),
            self.wrong: gr.HTML("", visible=False),
            self.typed: "",
        }

    async def _send(
        self, request: gr.Request, message: str, history: list[Any], *given: Any
    ) -> AsyncIterator[Update]:
        if not message.strip():
            yield {self.message: gr.skip()}
            return
        yield {self.message: ""}  # it stands in the conversation; what is typed from now on stays
        history = [*_plain(history), {"role": "user", "content": message}]
        async for update in self._answer(history, *given, visitor=request.session_hash):
            yield update

    async def _retry(
        self, request: gr.Request, history: list[Any], *given: Any
    ) -> AsyncIterator[Update]:
        """Answer the last message of the visitor anew."""
        plain = _plain(history)
        while plain and plain[-1]["role"] != "user":
            plain.pop()
        if not plain:
            yield {self.message: gr.skip()}
            return
        async for update in self._answer(plain, *given, visitor=request.session_hash):
            yield update

    async def _edit(
        self, request: gr.Request, edit: gr.EditData, history: list[Any], *given: Any
    ) -> AsyncIterator[Update]:
        """The conversation goes on from the changed message; what came after it is dropped."""
        index = edit.index if isinstance(edit.index, int) else edit.index[0]
        plain, text = _plain(history), str(edit.value)
        if not text.strip():  # nothing to say: as it was
            plain[index] = {"role": "user", "content": str(edit.previous_value)}
            yield {self.chat: _shown(plain)}
            return
        plain = [*plain[:index], {"role": "user", "content": text}]
        async for update in self._answer(plain, *given, visitor=request.session_hash):
            yield update

    async def _answer(
        self,
        history: list[Message],
        key: str,
        language: str,
        system: str,
        temperature: float,
        top_p: float,
        max_tokens: str,
        seed: str,
        *,
        visitor: str,
    ) -> AsyncIterator[Update]:
        said = [{"role": "system", "content": system}] if system.strip() else []
        # Visitors share this server's address: the name keeps the engine's order among them fair.
        settings = {"temperature": temperature, "top_p": top_p, "user": visitor}
        for name, text, least in (("max_tokens", max_tokens, 1), ("seed", seed, 0)):
            if not _is_number(text, least=least):
                told = say("no_number", language, name=say(name, language), least=least)
                yield {self.chat: _shown(history), **self._told(told, "error", again=True)}
                return
            settings |= {name: int(text)} if text.strip() else {}
        yield {
            self.chat: _shown(history),
            **self._told(say("waiting", language), "info", again=False),
            self.send: gr.Button(visible=False),
            self.halt: gr.Button(visible=True),
        }
        waiting = True
        async for step in self.talk.answer(visitor, turns([*said, *history]), settings, key=key):
            text = step.text.lstrip()  # templates leave empty lines before it
            answer = [{"role": "assistant", "content": text}] if text else []
            update: Update = {self.chat: _shown([*history, *answer])}
            if step.end == "cleared":
                update = self._empty()
            elif step.end is not None:
                update |= self._end(step, language, max_tokens)
            elif waiting and text:
                update[self.notice_row], waiting = gr.Row(visible=False), False
            yield update

    def _end(self, step: Step, language: str, max_tokens: str) -> Update:
        update: Update = {
            self.notice_row: gr.Row(visible=False),
            self.send: gr.Button(visible=True),
            self.halt: gr.Button(visible=False),
        }
        if not step.end:
            return update
        if step.end == "wrong_key":  # the server was started anew, with another one
            update |= {self.gate: gr.Column(visible=True), self.inside: gr.Column(visible=False)}
        seconds, message = 0, ""
        if step.refused is not None:
            seconds, message = step.refused.seconds, step.refused.message
        key = "cut_short" if step.end == "cut" and max_tokens.strip() else step.end
        text = say(key, language, seconds=seconds, tokens=max_tokens.strip())
        text += " " + say("said", language, message=message) if message else ""
        kind = "error" if step.refused is not None else "info"
        return update | self._told(text, kind, again=step.refused is not None)

    def _told(self, text: str, kind: str, *, again: bool) -> Update:
        return {
            self.notice: _notice(text, kind),
            self.notice_row: gr.Row(visible=True),
            self.again: gr.Button(visible=again),
        }

    def _stop(self, request: gr.Request) -> None:
        self.talk.stop(str(request.session_hash), end="stopped")

    def _left(self, request: gr.Request) -> None:
        """The page was closed or loaded anew."""
        self.talk.stop(str(request.session_hash), end=None)

    def _fresh(self, request: gr.Request) -> Update:
        """Empty the page; an answer under way does it, after all that it has sent."""
        running = self.talk.stop(str(request.session_hash), end="cleared")
        return {self.chat: gr.skip()} if running else self._empty()

    def _empty(self) -> Update:
        return {
            self.chat: [],
            self.notice_row: gr.Row(visible=False),
            self.send: gr.Button(visible=True),
            self.halt: gr.Button(visible=False),
        }

    def _look(self, key: str, language: str, seen: int) -> Any:
        assert self.run is not None
        return self.run.look(key, language, seen) or (gr.skip(), gr.skip())


def _plain(history: Sequence[Mapping[str, Any]]) -> list[Message]:
    """Gradio's messages as the API takes them."""
    plain: list[Message] = []
    for message in history:
        content = message["content"]
        if not isinstance(content, str):
            content = "".join(str(part.get("text", "")) for part in content)
        plain.append({"role": message["role"], "content": content})
    return plain


def _shown(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages as Gradio keeps them letter by letter: of a bare string it takes the tabs and the
    indentation, which code and lists need."""
    return [
        {"role": one["role"], "content": [{"type": "text", "text": one["content"]}]}
        for one in messages
    ]


def _is_number(text: str, *, least: int) -> bool:
    """Whether a setting is empty or a whole number of at least so much."""
    bare = text.strip()
    return not bare or (bare.isdecimal() and len(bare) < 19 and int(bare) >= least)


def _notice(text: str, kind: str) -> str:
    role = "alert" if kind == "error" else "status"
    return tag("p", escape(text), class_=f"notice {kind}", role=role)
