"""The tokenizer of a checkpoint: text to ids and back, also piece by piece."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lrjax.errors import CheckpointError, message


class Tokenizer:
    """The ``tokenizer.json`` of a checkpoint folder.

    Raises:
        CheckpointError: the folder has none that can be read, or ``tokenizers`` is not installed.
    """

    def __init__(self, folder: str | Path) -> None:
        path = Path(folder) / "tokenizer.json"
        try:
            import tokenizers
        except ImportError as reason:
            todo = "Install lrjax[generate], which has it, or give token ids."
            raise _no_tokenizer(path, "no package tokenizers", todo) from reason
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as reason:  # the library raises bare Exception
            got = str(reason) if path.is_file() else "no such file"
            todo = "Copy the checkpoint's tokenizer beside the weights, or give token ids."
            raise _no_tokenizer(path, got, todo) from reason
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()

    def encode(self, text: str) -> list[int]:
        """Token ids, with the special tokens that the tokenizer adds."""
        return self._tokenizer.encode(text).ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text, without special tokens."""
        return self._tokenizer.decode(list(ids))

    def id_of(self, token: str) -> int | None:
        """The id of a token, if there is such a one."""
        return self._tokenizer.token_to_id(token)


class Pieces:
    """Text as it comes, token by token: what is handed out sums to the text of all tokens.

    A token may hold half a letter, which waits for the other half.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._ids = list(prompt)
        self._said = tokenizer.decode(self._ids)

    def __call__(self, token: int) -> str:
        """The text that the token adds."""
        self._ids.append(token)
        text = self._tokenizer.decode(self._ids)
        if text.endswith("\N{REPLACEMENT CHARACTER}"):
            return ""
        new, self._said = text[len(self._said) :], text
        return new

    def all(self, tokens: Sequence[int]) -> str:
        """The text that several tokens add."""
        return "".join(map(self, tokens))


def stop_tokens(folder: str | Path, config: Mapping[str, Any]) -> tuple[int, ...]:
    """What ends a text by ``generation_config.json``, or else by the model's own config."""
    file = Path(folder) / "generation_config.json"
    own = json.loads(file.read_text()) if file.is_file() else {}
    found = own.get("eos_token_id", config.get("eos_token_id"))
    return tuple(found) if isinstance(found, list) else () if found is None else (found,)


def _no_tokenizer(path: Path, got: Any, todo: str) -> CheckpointError:
    return CheckpointError(message(path=str(path), got=got, expected="a tokenizer.json", todo=todo))
