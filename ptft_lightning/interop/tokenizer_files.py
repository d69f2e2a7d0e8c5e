"""The tokenizer files of a Hugging Face folder: so that their tokenizer gives our ids."""

from __future__ import annotations

import json
from typing import Any

from tokenizers import Tokenizer as RawTokenizer
from tokenizers import processors

from ptft_lightning.data.examples import Example
from ptft_lightning.data.framing import frame_example
from ptft_lightning.data.tokenizer import OWN, Tokenizer
from ptft_lightning.errors import UserError

PROBE = "Two  words, été 模型"
UNKNOWN = ("[UNK]", "<unk>")
LONG = 4096  # more than any probe


def special_ids(tokenizer: Tokenizer, causal: bool) -> dict[str, int]:
    """Ids of special tokens, by the part they play in their library."""
    parts = {"bos": tokenizer.begin, "eos": tokenizer.end, "mask": tokenizer.mask}
    if not causal:
        parts |= {"cls": tokenizer.begin, "sep": tokenizer.end}
    if tokenizer.pad in tokenizer.specials:
        parts["pad"] = tokenizer.pad
    names = (getattr(tokenizer.raw.model, "unk_token", None), *UNKNOWN)
    unknown = (tokenizer.raw.token_to_id(name) for name in names if name)
    parts["unk"] = next((i for i in unknown if i is not None), None)
    return {part: i for part, i in parts.items() if i is not None}


def tokenizer_files(
    tokenizer: Tokenizer, causal: bool, tuned: bool, theirs: bool, max_length: int, types: bool
) -> dict[str, str]:
    """File name -> text.

    Args:
        tokenizer: the bundle's.
        causal: whether the model reads from left to right.
        tuned: whether it was tuned for a task, on examples framed as ours are.
        theirs: whether it is as others made it: so is the frame it was tuned on.
        max_length: tokens the model reads.
        types: whether it tells the texts of a pair apart.

    Raises:
        UserError: the tokenizer does what theirs cannot.
    """
    ids = special_ids(tokenizer, causal)
    if tokenizer.first:
        raise UserError(
            f"the tokenizer converts text by {', '.join(tokenizer.first)} before it encodes, which "
            "the files of other programs cannot say: export a model of a tokenizer without"
        )
    tokens = {f"{part}_token": _name(tokenizer, i) for part, i in ids.items()}
    inputs = ["input_ids", *(["token_type_ids"] if types else []), "attention_mask"]
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **tokens,
        "model_max_length": max_length,
        "model_input_names": inputs,
        "padding_side": "right",
        "clean_up_tokenization_spaces": False,
    }
    return {
        "tokenizer.json": _framed(tokenizer, causal, tuned, theirs),
        "tokenizer_config.json": _json(config),
        "special_tokens_map.json": _json(tokens),
    }


def framed_otherwise(tokenizer: Tokenizer) -> list[str]:
    """Examples, as words, around which the tokenizer does not put what we do."""
    raw, kinds = RawTokenizer.from_str(_plain(tokenizer)), {"texts": None, "pairs of texts": PROBE}
    return [
        kind
        for kind, pair in kinds.items()
        if raw.encode(PROBE, pair).ids != _wanted(tokenizer, pair, generates=False)
    ]


def _framed(tokenizer: Tokenizer, causal: bool, tuned: bool, theirs: bool) -> str:
    """tokenizer.json that frames a text as the model's were.

    A generating model is given the begin token alone. What the tokenizer of a pretrained model, or
    of one that others tuned, adds is left as it is: its makers decided so.
    """
    text = _plain(tokenizer)
    raw = RawTokenizer.from_str(text)
    generates = causal and not tuned
    wanted = [_wanted(tokenizer, pair, generates) for pair in (None, PROBE)]
    adds = [raw.encode(PROBE, pair).ids for pair in (None, PROBE)]
    plain = raw.encode(PROBE, add_special_tokens=False).ids
    if adds == wanted or (raw.post_processor is not None and (theirs or not tuned)):
        return text
    frame = _template(tokenizer, generates)
    before = raw.post_processor
    alone = before is None or adds[0] != plain  # another frame is replaced
    raw.post_processor = frame if alone else processors.Sequence([before, frame])
    return str(raw.to_str())


def _plain(tokenizer: Tokenizer) -> str:
    """tokenizer.json without what only we read in it: other names of special tokens, which
    tokenizer_config.json tells, too."""
    content = json.loads(tokenizer.text)
    if OWN not in content:
        return tokenizer.text
    del content[OWN]
    return json.dumps(content, ensure_ascii=False)


def _wanted(tokenizer: Tokenizer, pair: str | None, generates: bool) -> list[int]:
    if not generates:
        (framed,) = frame_example([Example(PROBE, pair, None, "")], tokenizer, LONG)
        return [int(i) for i in framed.tokens]
    begin = [] if tokenizer.begin is None else [tokenizer.begin]
    return begin + tokenizer.encode([PROBE])[0] * (1 if pair is None else 2)


def _template(tokenizer: Tokenizer, generates: bool) -> processors.PostProcessor:
    begin, end = (
        [] if i is None else [_name(tokenizer, i)]
        for i in (tokenizer.begin, None if generates else tokenizer.end)
    )
    first, second = [*begin, "$A", *end], ["$B:1", *(f"{token}:1" for token in end)]
    special = [(token, int(tokenizer.raw.token_to_id(token) or 0)) for token in {*begin, *end}]
    return processors.TemplateProcessing(
        single=first, pair=[*first, *second], special_tokens=special
    )


def _name(tokenizer: Tokenizer, token: int) -> str:
    name = tokenizer.raw.id_to_token(token)
    assert name is not None, f"id {token} was found by its name"
    return name


def _json(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"
