"""Models that are asked by text and answer by text: in this process, or on a server."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol
from urllib.parse import urlsplit

from instil.errors import ConfigError, ServerError
from instil.models.generate import Decoding, generate
from instil.models.load import load
from instil.prompts.format import prompt_format
from instil.recipe.sections import Prompt

AT_ONCE = 8  # requests to a server at the same time
RETRIES = 5
SECONDS = 120  # most seconds that a server may take for an answer
KEY_ENV = "OPENAI_API_KEY"
RENAMED = {"max_tokens": "max_completion_tokens", "temperature": None, "extra_body": None}
"""What some models refuse: the name of a parameter -> what is sent in its place; None: nothing."""
LOCAL = ("127.0.0.1", "localhost", "::1")


class Chat(Protocol):
    """Something that answers messages of a user."""

    name: str

    def ask(
        self, prompts: Sequence[str], advance: Callable[[int], None], *, max_tokens: int
    ) -> list[str]:
        """Answers each prompt, greedily.

        Args:
            prompts: The prompts.
            advance: Called with the number of prompts that were answered.
            max_tokens: Most tokens of an answer.
        """


class LocalChat:
    """A model in this process.

    Args:
        name: Hub id, local folder, or `bundled:NAME`.

    Raises:
        UnknownModelError: there is no such model.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.model = load(name)

    def ask(
        self, prompts: Sequence[str], advance: Callable[[int], None], *, max_tokens: int
    ) -> list[str]:
        """See `Chat.ask`."""
        form = prompt_format(self.model.tokenizer, Prompt(), ends=self.model.end_ids)
        made = generate(
            self.model,
            [form.prompt_ids(text) for text in prompts],
            form.ending,
            Decoding(max_tokens),
            advance=lambda rows, tokens: advance(rows),
        )
        return [form.decode(one.ids) for one in made]


class Completions:
    """Asks a server for completions of chats, without the parameters that its model refuses.

    Args:
        server: The official client.
    """

    def __init__(self, server: Any) -> None:
        self._server = server
        self.refused: set[str] = set()
        """The parameters that were refused."""

    def create(self, **body: Any) -> Any:
        """The reply to a request; see the client's `chat.completions.create`."""
        from openai import BadRequestError, UnprocessableEntityError

        while True:
            refused, sent = {*self.refused}, dict[str, Any]()
            for name, value in body.items():
                called = RENAMED[name] if name in refused else name
                if called is not None:
                    sent[called] = value
            try:
                return self._server.chat.completions.create(**sent)
            except (BadRequestError, UnprocessableEntityError) as error:
                told, extra = f"{error.param} {error}", body.get("extra_body", {})
                more = {name for name in RENAMED if name in body and name in told} - refused
                if any(name in told for name in extra) and "extra_body" not in refused:
                    more.add("extra_body")
                if not more:
                    raise
                self.refused |= more


class ServerChat:
    """A model behind an OpenAI-compatible server, by the official client.

    Args:
        url: Address of the server, with `/v1` where it has it.
        model: Name of the model there.
        key_env: Environment variable with the key; the key is written nowhere.

    Raises:
        ConfigError: the client is not installed.
    """

    def __init__(self, url: str, model: str, *, key_env: str = KEY_ENV) -> None:
        client(url, key_env).close()  # refused before anything is asked
        self.name = f"{model} at {url}"
        self.model, self.url, self.key_env = model, url, key_env

    def ask(
        self, prompts: Sequence[str], advance: Callable[[int], None], *, max_tokens: int
    ) -> list[str]:
        """See `Chat.ask`.

        Raises:
            ServerError: the server does not answer, after some tries.
        """
        from openai import OpenAIError

        server = client(self.url, self.key_env)
        completions = Completions(server)

        def one(prompt: str) -> str:
            made = completions.create(
                model=self.model,
                messages=[{"role": "user", "content": prompt}],
                temperature=0,
                max_tokens=max_tokens,
            )
            advance(1)
            if not getattr(made, "choices", None):
                raise ServerError(
                    f"the reply is no completion of a chat: {self.name}",
                    got=repr(made)[:200],
                    mend="check the address: it often ends in /v1",
                )
            return made.choices[0].message.content or ""

        try:
            with server, ThreadPoolExecutor(AT_ONCE) as pool:
                return list(pool.map(one, prompts))
        except OpenAIError as error:
            raise unanswered(self.name, error) from error


def chat_of(name: str, model: str | None, key_env: str, *, option: str) -> Callable[[], Chat]:
    """What makes the model that an option names, when it is needed.

    Args:
        name: A local model, or the address of a server.
        model: Name of the model on the server.
        key_env: Environment variable with the server's key.
        option: The option, for error messages.

    Raises:
        ConfigError: a server has no model.
    """
    if not name.startswith(("http://", "https://")):
        return lambda: LocalChat(name)
    if model is None:
        raise ConfigError(
            f"{option} {name}: which model of the server?", mend=f"add {option}-model NAME"
        )
    return lambda: ServerChat(name, model, key_env=key_env)


def client(
    url: str, key_env: str = KEY_ENV, *, seconds: float = SECONDS, retries: int | None = None
) -> Any:
    """The official client of an OpenAI-compatible server.

    Args:
        url: Address of the server, with `/v1` where it has it.
        key_env: Environment variable with the key. Without one, a word takes its place: a server of
            one's own often needs none.
        seconds: Most seconds for an answer.
        retries: How often a request is repeated that was refused for a while; None: `RETRIES`.

    Raises:
        ConfigError: the client is not installed, or this is no address.
    """
    if not url.startswith(("http://", "https://")):
        raise ConfigError(
            f"{url} is no address of a server", mend=f"write http://{url} or https://{url}"
        )
    try:
        from openai import DefaultHttpxClient, OpenAI
    except ImportError as error:
        raise ConfigError(
            "a model on a server needs the library openai", mend="pip install 'instil[server]'"
        ) from error
    return OpenAI(
        base_url=url,
        api_key=os.environ.get(key_env) or "none",
        max_retries=RETRIES if retries is None else retries,
        timeout=seconds,
        # A proxy leads away from this machine.
        http_client=DefaultHttpxClient(trust_env=urlsplit(url).hostname not in LOCAL),
    )


def unanswered(name: str, error: Exception) -> ServerError:
    """The error for a server that does not answer."""
    return ServerError(
        f"the server does not answer: {name}",
        got=f"{type(error).__name__}: {error}",
        mend="check the address, the model's name and the key, then repeat the command",
    )
