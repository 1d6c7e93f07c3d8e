"""``python -m runtime.chat DIR``: a conversation in the terminal, with the commands of ``mlc_llm chat``."""

from __future__ import annotations

import re
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from runtime.command_answer import stream_answer
from runtime.console import print_error, speeds, user_errors
from runtime.engine import Engine
from runtime.errors import UserError
from runtime.policy import RUNTIME_FIELDS
from runtime.prompt_cache import CACHE_HELP, PromptCache
from runtime.prompt_source import prompt_text
from runtime.settings import apply_settings, split_settings
from runtime.stop_signals import stop_requests
from runtime.stream_output import Usage

_HELP = """\
Commands:
  /help             show this
  /stats            speed of the last answer, and what the cache holds
  /reset            begin a new conversation
  /set k=v;k=v      change settings of sampling, e.g. /set temperature=0.5;top_p=0.8;max_tokens=100;stop=str1,str2
                    and of the policy, e.g. /set base_budget=4096;capacity=2048 (alone: show them)
  /exit             leave
A line that ends in \\ goes on in the next one. Ctrl-C stops an answer."""

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


class Chat:
    """A conversation with an engine: its messages, its settings, and the commands on them.

    ``document`` is a text that every conversation begins with, before the first message; ``cache`` keeps it.
    """

    def __init__(self, engine: Engine, document: str = "", cache: PromptCache | None = None) -> None:
        self._engine = engine
        self._document = document
        self._cache_file = cache
        self._sampling = engine.default_sampling
        self._messages: list[dict[str, str]] = []
        self._last_usage: Usage | None = None

    def handle(self, line: str) -> bool:
        """Obey a command or answer a message; False after /exit. UserError leaves the conversation as it was."""
        command, _, argument = line.strip().partition(" ")
        match command:
            case "":
                pass
            case "/exit":
                return False
            case "/help":
                print(_HELP)
            case "/stats":
                print("N/A" if self._last_usage is None else f"{speeds(self._last_usage)}, {self._cache()}")
            case "/reset":
                self._messages = []
            case "/set":
                self._set(argument)
            case _ if re.fullmatch("/[a-z]+", command):
                raise UserError(f"there is no command {command}: /help lists them")
            case _:
                self._answer(line)
        return True

    def _set(self, text: str) -> None:
        if not text.strip():
            policy = [] if self._engine.policy is None else self._engine.policy.to_dict().items()
            shown = [*self._sampling, *((key, value) for key, value in policy if key in RUNTIME_FIELDS)]
            print(";".join(f"{key}={value}" for key, value in shown))
            return
        sampling, policy = split_settings(text)
        changed = apply_settings(self._sampling, sampling)
        self._engine.set_policy(policy)
        self._sampling = changed

    def _cache(self) -> str:
        num_tokens, num_entries = self._engine.cache_lengths
        return f"cache: {num_entries} entries for {num_tokens} tokens"

    def _answer(self, text: str) -> None:
        if not self._messages and self._document:
            text = f"{self._document.rstrip()}\n\n{text}"
        messages = self._fit([*self._messages, {"role": "user", "content": text}])
        answer, finish_reason = "", None
        with stop_requests() as stop:
            try:
                for output in stream_answer(self._engine, messages, self._sampling, stop, self._cache_file):
                    print(output.text, end="", flush=True)
                    answer += output.text
                    finish_reason = output.finish_reason
                    self._last_usage = output.usage or self._last_usage
            except KeyboardInterrupt:
                stop.signal = stop.signal or signal.SIGINT
        print(" [stopped]" if stop.wanted else " [cut at the length limit]" if finish_reason == "length" else "")
        if answer or not stop.wanted:  # a message stopped before its answer began was not sent
            self._messages = [*messages, {"role": "assistant", "content": answer}]
        if stop.signal == signal.SIGTERM:
            raise SystemExit(128 + signal.SIGTERM)

    def _fit(self, messages: list[dict[str, str]]) -> list[dict[str, str]]:
        """Drop the oldest turns of a conversation that has outgrown the context."""
        length = len(self._engine.encode(messages))
        while length >= self._engine.context_window_size and len(messages) > 2:
            messages = messages[2:]
            length = len(self._engine.encode(messages))
        return messages


def _read_message() -> str:
    """One message from stdin, several lines if they end in a backslash; EOFError at its end."""
    terminal = sys.stdin.isatty()
    lines = [input(">>> " if terminal else "")]
    while lines[-1].endswith("\\"):
        lines[-1] = lines[-1][:-1]
        lines.append(input("... " if terminal else ""))
    return "\n".join(lines)


@app.command()
def main(
    model_dir: Annotated[Path, typer.Argument(help="MLC model folder", metavar="DIR")],
    model_lib: Annotated[Path | None, typer.Option(help="Library; default: the one beside DIR in libs/.")] = None,
    policy: Annotated[str, typer.Option(help='Policy settings: "base_budget=4096;capacity=2048".')] = "",
    prompt_file: Annotated[Path | None, typer.Option(help="A text that the conversation is about.")] = None,
    cache: Annotated[Path | None, typer.Option(help=CACHE_HELP)] = None,
    max_total_seq_length: Annotated[
        int | None, typer.Option(help="Tokens that the KV cache may hold; default: the whole context.")
    ] = None,
) -> None:
    """Chat with a model."""
    with user_errors():
        document = "" if prompt_file is None else prompt_text(None, prompt_file, None)
        engine = Engine(model_dir, model_lib, policy, max_total_seq_length)
        chat = Chat(engine, document, None if cache is None else PromptCache(engine, cache))
    print(_HELP)
    # Bytes that are no UTF-8 reach the engine, which refuses the message; in strict mode they would end the chat.
    sys.stdin.reconfigure(errors="surrogateescape")
    if sys.stdin.isatty():
        import readline  # noqa: F401  (gives input() line editing and history)
    while True:
        try:
            if not chat.handle(_read_message()):
                break
        except UserError as err:
            print_error(err)
        except KeyboardInterrupt:  # perhaps meant for an answer that had just ended
            print("\n(/exit or Ctrl-D leaves)")
        except EOFError:
            print()
            break


if __name__ == "__main__":
    app()
