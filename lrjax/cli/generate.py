"""`lrjax generate`: prompts in, text out."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from lrjax.cli import options
from lrjax.cli.output import emit


def generate(
    path: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Checkpoint folder or artefact of a decoder.")
    ],
    prompt: Annotated[
        list[str] | None, typer.Option("--prompt", help="Text to go on from; repeatable.")
    ] = None,
    ids: Annotated[
        list[str] | None,
        typer.Option("--ids", metavar="'1 2 3'", help="Token ids instead of a text; repeatable."),
    ] = None,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", help="The most tokens that a prompt gets.")
    ] = 64,
    temperature: Annotated[
        float, typer.Option("--temperature", help="0 takes the likeliest token; else one is drawn.")
    ] = 0.0,
    top_k: Annotated[
        int | None, typer.Option("--top-k", help="Draw from the k likeliest alone.")
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option("--top-p", help="Draw from the likeliest that have this share together."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Equal seeds draw equal texts.")] = 0,
    stop: Annotated[
        list[str] | None,
        typer.Option(
            "--stop",
            metavar="TOKEN",
            help="A token, or its id, that ends the text; repeatable. Default: the checkpoint's.",
        ),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Go on from prompts with the decoder in FOLDER; the text of one prompt is printed as it comes.

    Without a tokenizer.json in FOLDER, give --ids: token ids come back.
    """
    import jax

    from lrjax import zoo
    from lrjax.generate import Greedy, Pieces, Sample, Tokenizer, generate, pad

    _check(path, prompt, ids, temperature, top_k, top_p)
    model, params = zoo.load(path)
    tokenizer = Tokenizer(path) if prompt else _tokenizer(path)
    prompts = [tokenizer.encode(text) for text in prompt or ()] if tokenizer else []
    prompts += [_ids(text) for text in ids or ()]
    stops = _stops(path, model, stop, tokenizer)
    pieces = [Pieces(tokenizer, given) for given in prompts] if tokenizer else []
    streams = len(pieces) == 1 and not as_json

    def say(tokens: Any, goes_on: Any) -> None:
        if int(tokens[0]) not in stops:
            sys.stdout.write(pieces[0](int(tokens[0])))
            sys.stdout.flush()

    padded, mask = pad(prompts)
    out = generate(
        model,
        params,
        padded,
        attention_mask=mask,
        max_new_tokens=max_new_tokens,
        sampling=Sample(temperature, top_k, top_p) if temperature else Greedy(),
        stop=stops,
        key=jax.random.key(seed),
        on_token=say if streams else None,
    )
    if streams:
        sys.stdout.write("\n")
        return
    texts = [
        {"prompt_ids": given, "ids": new, "finish": finish.value}
        for given, new, finish in zip(prompts, out.rows, out.finish, strict=True)
    ]
    for text, piece in zip(texts, pieces, strict=False):
        text["text"] = piece.all([token for token in text["ids"] if token not in stops])
    lines = [text.get("text", " ".join(map(str, text["ids"]))) for text in texts]
    emit({"model": path, "seed": seed, "texts": texts}, "\n".join(lines), as_json=as_json)


def _check(
    path: Path,
    prompt: Sequence[str] | None,
    ids: Sequence[str] | None,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
) -> None:
    if not (prompt or ids):
        _refuse("no prompt", "--prompt TEXT, or --ids '1 2 3'", "Give one.", str(path))
    if not temperature and (top_k is not None or top_p is not None):
        got, todo = "--top-k or --top-p at temperature 0", "Add --temperature 1, or leave them out."
        _refuse(got, "a temperature above 0 to draw at", todo)


def _ids(text: str) -> list[int]:
    try:
        return [int(word) for word in text.replace(",", " ").split()]
    except ValueError:
        _refuse(f"{text!r}", "token ids such as '1 2 3'", "Give numbers.", "--ids")


def _tokenizer(path: Path) -> Any:
    """The tokenizer, if there is one that can be read: with token ids none is needed."""
    from lrjax.errors import CheckpointError
    from lrjax.generate import Tokenizer

    try:
        return Tokenizer(path)
    except CheckpointError:
        return None


def _stops(path: Path, model: Any, stop: Sequence[str] | None, tokenizer: Any) -> tuple[int, ...]:
    """The ids of the tokens that end a text: those given, or those that the checkpoint names."""
    from lrjax.generate import stop_tokens

    if stop is None:
        return stop_tokens(path, model.config.to_json() if hasattr(model, "config") else {})
    found = []
    for word in stop:
        token = tokenizer.id_of(word) if tokenizer else None
        if token is None and not word.isdecimal():
            _refuse(f"{word!r}", "a token of the vocabulary, or an id", "Correct it.", "--stop")
        found.append(int(word) if token is None else token)
    return tuple(found)


def _refuse(got: str, expected: str, todo: str, path: str | None = None) -> NoReturn:
    from lrjax.errors import GenerationError, message

    raise GenerationError(message(path=path, got=got, expected=expected, todo=todo))
