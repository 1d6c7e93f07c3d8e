"""Writes tokenizer.json and tokenizer_config.json into a model folder, and says what MLC wants to know of them."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, processors

from relax_models.gguf_file import GGUFFile
from relax_models.gguf_tokenizer import ModelTokenizer, gguf_tokenizer
from relax_models.sentencepiece_bpe import build_sentencepiece_bpe, read_sentencepiece_model
from runtime.errors import UserError

FILES = ("tokenizer.json", "tokenizer_config.json")
_SPACE = "\u2581"


@dataclass(frozen=True)
class TokenizerFacts:
    """What the chat configuration needs to know of a tokenizer.

    info : MLC's "tokenizer_info"; vocab_size : ids, without the padding of the embedding table; special_tokens :
    "bos_token", "eos_token", ... -> text; special_ids : text of every added token -> id; add_bos_token : whether a text
    is encoded with the BOS token before it; chat_template : Jinja source or None.
    """

    info: dict[str, Any]
    vocab_size: int
    special_tokens: dict[str, str]
    special_ids: dict[str, int]
    add_bos_token: bool
    chat_template: str | None

    def token_id(self, role: str) -> int | None:
        """Id of the token of a role, such as "eos", if there is one."""
        return self.special_ids.get(self.special_tokens.get(f"{role}_token", ""))


def write_tokenizer(source: GGUFFile | Path, folder: Path) -> TokenizerFacts:
    """Writes the tokenizer of a GGUF file, or of a folder with tokenizer.json or tokenizer.model, into `folder`.

    tokenizer.json is copied as it is; tokenizer_config.json too, unless its chat template lies in chat_template.jinja,
    which is then put in. UserError when the source has no tokenizer that can be used.
    """
    if isinstance(source, GGUFFile):
        _write(gguf_tokenizer(source), folder)
    elif (source / FILES[0]).is_file():
        shutil.copyfile(source / FILES[0], folder / FILES[0])
        _copy_config(source, folder)
    elif (source / "tokenizer.model").is_file():
        _write(_sentencepiece_tokenizer(source), folder)
    else:
        raise UserError(
            f"{source} has no tokenizer.json; save one there with transformers "
            "(AutoTokenizer.from_pretrained(folder).save_pretrained(folder))."
        )
    return tokenizer_facts(folder)


def tokenizer_facts(folder: Path) -> TokenizerFacts:
    """The facts of a folder with tokenizer.json and tokenizer_config.json. UserError if either is corrupt."""
    path = folder / FILES[0]
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises plain Exception for a file that it cannot read
        raise UserError(f"{path} is not a tokenizer.json ({error}); get it again.") from None
    config = _read_config(folder)
    special_tokens = {
        name: token["content"] if isinstance(token, dict) else token
        for name, token in config.items()
        if name.endswith("_token") and isinstance(token, (dict, str))
    }
    special_ids = {token.content: index for index, token in tokenizer.get_added_tokens_decoder().items()}
    for token in special_tokens.values():
        if (index := tokenizer.token_to_id(token)) is not None:
            special_ids.setdefault(token, index)
    bos = special_ids.get(special_tokens.get("bos_token", ""))
    return TokenizerFacts(
        info=_mlc_info(description),
        vocab_size=_num_ids(tokenizer),
        special_tokens=special_tokens,
        special_ids=special_ids,
        add_bos_token=bos is not None and tokenizer.encode("a").ids[:1] == [bos],
        chat_template=_default_template(config.get("chat_template")),
    )


def active_vocab_size(source: Path) -> int | None:
    """How many ids the tokenizer of a GGUF file or a model folder has; None if it has none that can be read."""
    try:
        if source.is_file():
            return _num_ids(gguf_tokenizer(GGUFFile(source)).tokenizer)
        if (source / FILES[0]).is_file():
            return tokenizer_facts(source).vocab_size
        if (source / "tokenizer.model").is_file():
            return _num_ids(_sentencepiece_tokenizer(source).tokenizer)
    except UserError:  # told where the tokenizer is needed, with the weights
        pass
    return None


def _num_ids(tokenizer: Tokenizer) -> int:
    """Up to the largest id: an unused one in between is no reason to leave out the last."""
    return max(tokenizer.get_vocab().values(), default=-1) + 1


def _write(model: ModelTokenizer, folder: Path) -> None:
    model.tokenizer.save(str(folder / FILES[0]), pretty=False)
    _write_config(model.config, folder)


def _write_config(config: dict[str, Any], folder: Path) -> None:
    text = json.dumps(config, indent=2, ensure_ascii=False)
    (folder / FILES[1]).write_text(text + "\n", encoding="utf-8")


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / FILES[1]
    if not path.is_file():
        return {}
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}); get it again.") from None
    if not isinstance(config, dict):
        raise UserError(f"{path} does not hold a JSON object; get it again.")
    return config


def _copy_config(source: Path, folder: Path) -> None:
    template = source / "chat_template.jinja"
    if template.is_file():
        _write_config(_read_config(source) | {"chat_template": template.read_text(encoding="utf-8")}, folder)
    elif (source / FILES[1]).is_file():
        shutil.copyfile(source / FILES[1], folder / FILES[1])


def _default_template(template: Any) -> str | None:
    """The template of conversations, where a file names several."""
    if isinstance(template, list):
        template = next((entry.get("template") for entry in template if entry.get("name") == "default"), None)
    return template if isinstance(template, str) else None


def _sentencepiece_tokenizer(source: Path) -> ModelTokenizer:
    """The tokenizer of a folder with tokenizer.model and no tokenizer.json, as openPangu's.

    The special tokens stand in tokenizer_config.json; like transformers' tokenizers of this kind, the text between
    them is encoded piece by piece, each with its own prefix space.
    """
    config = _read_config(source)
    tokenizer = build_sentencepiece_bpe(read_sentencepiece_model(source / "tokenizer.model"))
    for index, entry in sorted(config.get("added_tokens_decoder", {}).items(), key=lambda item: int(item[0])):
        tokenizer.add_tokens([AddedToken(**{**entry, "normalized": False})])
        if tokenizer.token_to_id(entry["content"]) != int(index):
            raise UserError(
                f"{source / FILES[1]} gives the token {entry['content']!r} the id {index}, but tokenizer.model gives "
                f"it {tokenizer.token_to_id(entry['content'])}; get both files again."
            )
    bos = config.get("bos_token")
    bos = bos["content"] if isinstance(bos, dict) else bos
    if bos is not None and config.get("add_bos_token", True):
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    # The file's own class is Python code beside it; tokenizer.json stands for itself.
    config = {name: value for name, value in config.items() if name != "auto_map"}
    template = source / "chat_template.jinja"
    if template.is_file():
        config["chat_template"] = template.read_text(encoding="utf-8")
    return ModelTokenizer(tokenizer, config | {"tokenizer_class": "PreTrainedTokenizerFast"})


def _mlc_info(description: dict[str, Any]) -> dict[str, Any]:
    """MLC's "tokenizer_info", by the rules of Tokenizer::DetectTokenizerInfo in mlc-llm's tokenizers.cc."""
    normalizers = _steps(description.get("normalizer"), "normalizers")
    decoders = _steps(description.get("decoder"), "decoders")
    methods = {"ByteLevel": "byte_level", "ByteFallback": "byte_fallback"}
    found = [methods[step["type"]] for step in decoders if step["type"] in methods]
    return {
        "token_postproc_method": found[-1] if found else "byte_fallback",
        "prepend_space_in_encode": {"type": "Prepend", "prepend": _SPACE} in normalizers,
        "strip_space_in_decode": {"type": "Strip", "content": " ", "start": 1, "stop": 0} in decoders,
    }


def _steps(component: dict[str, Any] | None, plural: str) -> list[dict[str, Any]]:
    """The steps of a normalizer or decoder, whether it is a sequence or a single one."""
    if component is None:
        return []
    return component[plural] if component["type"] == "Sequence" else [component]
