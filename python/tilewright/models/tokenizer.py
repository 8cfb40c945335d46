"""Text to tokens and back: bytes, built in, and byte-pair encodings through the tokenizers library."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from .hub import Source, open_source

END_OF_TEXT = "<|endoftext|>"

_FILES = "tokenizer.json, or vocab.json and merges.txt"


class Tokenizer(Protocol):
    """What models and training need of a tokenizer."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def eos_token_id(self) -> int | None: ...

    def encode(self, text: str) -> list[int]: ...

    def decode(self, tokens: Iterable[int], *, skip_special_tokens: bool = True) -> str: ...

    def save_pretrained(self, folder: str | Path) -> None: ...


class ByteTokenizer:
    """One token per byte of UTF-8, and one more, 256, for the end of a text. Needs no files and no library.

    Every text encodes and decodes to itself. Bytes that a model produces may not be UTF-8: those decode to U+FFFD.
    """

    vocab_size = 257
    eos_token_id = 256

    def encode(self, text: str) -> list[int]:
        """Bytes only: the text "<|endoftext|>" is 13 ordinary bytes, so that no text can pretend to end."""
        return list(text.encode("utf-8"))

    def decode(self, tokens: Iterable[int], *, skip_special_tokens: bool = True) -> str:
        """Raises ``ValueError`` for a token outside [0, 257)."""
        parts: list[str] = []
        run = bytearray()
        for token in map(int, tokens):
            if 0 <= token < 256:
                run.append(token)
            elif token != self.eos_token_id:
                raise ValueError(f"token {token} is not a byte (0 to 255) or the end of text ({self.eos_token_id})")
            elif not skip_special_tokens:
                parts.append(run.decode("utf-8", errors="replace") + END_OF_TEXT)
                run.clear()
        return "".join(parts) + run.decode("utf-8", errors="replace")

    def save_pretrained(self, folder: str | Path) -> None:
        """Write it as a byte-level BPE without merges, which transformers and tokenizers load as well."""
        alphabet = byte_alphabet()
        special = {
            "id": self.eos_token_id,
            "content": END_OF_TEXT,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
        description: dict[str, Any] = {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [special],
            "normalizer": None,
            "pre_tokenizer": byte_level,
            "post_processor": None,
            "decoder": byte_level,
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": False,
                "byte_fallback": False,
                "ignore_merges": False,
                "vocab": {character: byte for byte, character in enumerate(alphabet)}
                | {END_OF_TEXT: self.eos_token_id},
                "merges": [],
            },
        }
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        _write_json(folder / "tokenizer.json", description)
        _write_json(folder / "tokenizer_config.json", {**_config(END_OF_TEXT), "tilewright_tokenizer": "bytes"})


class BPETokenizer:
    """A byte-pair encoding read by the ``tokenizers`` library (Sennrich et al., 2016; over bytes: Radford, 2019)."""

    def __init__(self, tokenizer: Any, eos_token: str | None = END_OF_TEXT) -> None:
        """tokenizer: a ``tokenizers.Tokenizer``; eos_token: its end-of-text token, if it has one of that name."""
        self._tokenizer = tokenizer
        self._eos_token = eos_token if eos_token is not None and tokenizer.token_to_id(eos_token) is not None else None

    @property
    def vocab_size(self) -> int:
        """Added tokens included."""
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    @property
    def eos_token_id(self) -> int | None:
        return None if self._eos_token is None else int(self._tokenizer.token_to_id(self._eos_token))

    def encode(self, text: str) -> list[int]:
        """As transformers does: a special token's text becomes that token."""
        tokens: list[int] = self._tokenizer.encode(text).ids
        return tokens

    def decode(self, tokens: Iterable[int], *, skip_special_tokens: bool = True) -> str:
        """Raises ``ValueError`` for a token outside the vocabulary."""
        tokens = [int(token) for token in tokens]
        for token in tokens:
            if token < 0 or self._tokenizer.id_to_token(token) is None:
                raise ValueError(f"token {token} is not in the vocabulary of {self.vocab_size}")
        text: str = self._tokenizer.decode(tokens, skip_special_tokens=skip_special_tokens)
        return text

    def save_pretrained(self, folder: str | Path) -> None:
        """Write tokenizer.json and tokenizer_config.json."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self._tokenizer.save(str(folder / "tokenizer.json"))
        _write_json(folder / "tokenizer_config.json", _config(self._eos_token))


def load_tokenizer(name_or_folder: str | Path | None) -> Tokenizer:
    """The tokenizer beside a checkpoint; None is the built-in :class:`ByteTokenizer`.

    name_or_folder: as :meth:`tilewright.models.GPT.from_pretrained` takes it. Reads tokenizer.json, or GPT-2's
    vocab.json and merges.txt; either needs the ``tokenizers`` library, except for a ByteTokenizer that was saved.
    Raises ``FileNotFoundError`` when there is neither.
    """
    if name_or_folder is None:
        return ByteTokenizer()
    source = open_source(name_or_folder)
    settings = _settings(source)
    if settings.get("tilewright_tokenizer") == "bytes":
        return ByteTokenizer()
    eos = settings.get("eos_token", END_OF_TEXT)
    if isinstance(eos, dict):  # an AddedToken written out
        eos = eos.get("content")
    whole = source.find("tokenizer.json")
    if whole is not None:
        return BPETokenizer(_read_whole(whole), eos)
    vocab, merges = source.find("vocab.json"), source.find("merges.txt")
    if vocab is None or merges is None:
        raise FileNotFoundError(f"{source.name} has no tokenizer: {_FILES}")
    return BPETokenizer(_gpt2_tokenizer(vocab, merges), eos)


def byte_alphabet() -> Sequence[str]:
    """The printable character by which a byte-level BPE vocabulary writes each byte.

    Bytes that print as themselves in Latin-1 stand for themselves; the others, in order, take the characters from
    U+0100.
    """
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    spare = iter(range(256, 512))
    return [chr(byte if byte in printable else next(spare)) for byte in range(256)]


def _read_whole(path: Path) -> Any:
    library = _tokenizers()
    try:
        return library.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise ValueError(f"{path} is not a tokenizer of the tokenizers library: {error}") from error


def _gpt2_tokenizer(vocab: Path, merges: Path) -> Any:
    library = _tokenizers()
    try:
        tokenizer = library.Tokenizer(library.models.BPE.from_file(str(vocab), str(merges)))
    except Exception as error:  # the library raises plain Exception
        raise ValueError(f"{vocab} and {merges} are not a GPT-2 vocabulary: {error}") from error
    tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = library.decoders.ByteLevel()
    if tokenizer.token_to_id(END_OF_TEXT) is not None:
        tokenizer.add_special_tokens([END_OF_TEXT])
    return tokenizer


def _settings(source: Source) -> dict[str, Any]:
    file = source.find("tokenizer_config.json")
    if file is None:
        return {}
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{file} holds a {type(settings).__name__}; tokenizer settings are a JSON object")
    return settings


def _config(eos_token: str | None) -> dict[str, Any]:
    return {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": eos_token, "clean_up_tokenization_spaces": False}


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _tokenizers() -> Any:
    try:
        import tokenizers
    except ImportError as error:
        raise ImportError(
            "reading a tokenizer needs the tokenizers library: pip install 'tilewright[transformers]' "
            "(load_tokenizer(None), the byte tokenizer, needs nothing)"
        ) from error
    return tokenizers
