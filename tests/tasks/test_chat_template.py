"""Conversations as token ids: as transformers renders them, controls only from the template."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from ptft_lightning.data.conversations import Turn
from ptft_lightning.data.tokenizer import Tokenizer
from ptft_lightning.errors import UserError
from ptft_lightning.tasks.chat_template import PLAIN, ChatTemplate, read_template

CHATML = """{%- if messages[0].role != 'system' %}
{{- '<|im_start|>system\\nYou help.<|im_end|>\\n' }}
{%- endif %}
{%- for m in messages %}
{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- endif %}"""
TRIMMING = """{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}
[INST] {{ m['content'] | trim }} [/INST]{% elif m['role'] == 'assistant' %}
 {{ m['content'] | trim }} {{ eos_token }}{% else %}
{{ raise_exception('no system turns') }}{% endif %}{% endfor %}"""
TEMPLATES = {"plain": PLAIN, "chatml": CHATML, "trimming": TRIMMING}
TALK = [
    Turn("user", "  The river flows.\nWhere?  "),
    Turn("assistant", "To the sea"),
    Turn("user", "今天 <|im_end|> [INST] {{ eos_token }} 你好"),
]
ANSWER = "north and <|im_start|>south\n\nof the house"


@pytest.fixture(scope="module")
def chat(bpe: Tokenizer) -> Tokenizer:
    """A tokenizer with the control tokens of ChatML."""
    raw = copy.deepcopy(bpe.raw)
    raw.add_special_tokens([AddedToken(f"<|im_{n}|>", special=True) for n in ("start", "end")])
    return Tokenizer(raw.to_str())


@pytest.fixture(scope="module")
def reference(chat: Tokenizer) -> PreTrainedTokenizerFast:
    names = {part: chat.raw.id_to_token(getattr(chat, part)) for part in ("end", "pad")}
    begin = {} if chat.begin is None else {"bos_token": chat.raw.id_to_token(chat.begin)}
    raw = copy.deepcopy(chat.raw)
    raw.encode_special_tokens = False
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token=names["end"], pad_token=names["pad"], **begin
    )


def messages(turns: list[Turn]) -> list[dict[str, str]]:
    return [turn._asdict() for turn in turns]


@pytest.mark.parametrize("kind", TEMPLATES)
@pytest.mark.parametrize("prompted", [False, True])
def test_rendered_as_transformers_does(kind, prompted, chat, reference):
    turns = TALK if prompted else [*TALK, Turn("assistant", ANSWER)]
    theirs = reference.apply_chat_template(
        messages(turns),
        chat_template=TEMPLATES[kind],
        add_generation_prompt=prompted,
        tokenize=False,
    )
    assert ChatTemplate(TEMPLATES[kind], chat, True).render(turns, prompted) == theirs


@pytest.mark.parametrize("kind", TEMPLATES)
def test_ids_are_the_text_and_its_controls(kind, chat):
    """Written out, the ids are what the template renders, up to what ends the answer."""
    template = ChatTemplate(TEMPLATES[kind], chat, True)
    whole = template.render([*TALK, Turn("assistant", ANSWER)])
    written = template.write(TALK, ANSWER, "here")
    assert chat.decode(written.ids, specials=True) == whole.removesuffix("\n").rstrip("\n")
    asked = template.write(TALK, None, "here")
    assert written.ids[: written.prompt] == asked.ids
    assert chat.decode(asked.ids, specials=True) == template.render(TALK, answer=True)
    assert asked.counted == []


@pytest.mark.parametrize("kind", ["plain", "chatml"])
def test_ids_are_those_of_transformers_where_nobody_writes_a_token_s_name(kind, chat, reference):
    turns = [Turn("user", "The river flows.\nWhere?"), Turn("assistant", "To the sea"), TALK[1]]
    turns[2] = Turn("user", "今天 你好")
    theirs = reference.apply_chat_template(
        messages([*turns, Turn("assistant", "North")]), chat_template=TEMPLATES[kind]
    )["input_ids"]
    mine = ChatTemplate(TEMPLATES[kind], chat, True).write(turns, "North", "here").ids
    assert mine == theirs[: len(mine)]
    assert chat.decode(theirs[len(mine) :]).strip() == ""


def test_what_people_say_never_becomes_a_control_token(chat):
    written = ChatTemplate(CHATML, chat, True).write(TALK, ANSWER, "here")
    controls = [chat.raw.token_to_id(f"<|im_{n}|>") for n in ("start", "end")]
    found = [token for token in written.ids if token in chat.specials.tolist()]
    # A system turn, three turns and the answer.
    assert found == controls * 5
    plain = ChatTemplate(None, chat, True).write(TALK, ANSWER, "here")
    assert [token for token in plain.ids if token in chat.specials.tolist()] == [
        chat.begin,
        *[chat.end] * 2,
    ]


@pytest.mark.parametrize(
    ("kind", "every", "counted"),
    [
        ("plain", True, "To the sea[SEP]" + ANSWER + "[SEP]"),
        ("plain", False, ANSWER + "[SEP]"),
        ("chatml", True, "To the sea<|im_end|>" + ANSWER + "<|im_end|>"),
        ("chatml", False, ANSWER + "<|im_end|>"),
        ("trimming", False, " " + ANSWER + " [SEP]"),
    ],
)
def test_what_counts_is_what_assistants_wrote_and_its_end(kind, every, counted, chat):
    ids, places, prompt = ChatTemplate(TEMPLATES[kind], chat, every).write(TALK, ANSWER, "here")
    assert chat.decode([ids[at] for at in places], specials=True) == counted
    assert every or min(places) == prompt


def test_who_opens_a_conversation_answers_nobody(chat):
    turns = [Turn("assistant", "Hello"), Turn("user", "Hi")]
    ids, places, _ = ChatTemplate(None, chat, True).write(turns, "Bye", "here")
    assert chat.decode([ids[at] for at in places]) == "Bye"


def test_the_end_is_what_the_template_ends_an_answer_with(chat):
    assert ChatTemplate(CHATML, chat, True).end == chat.raw.token_to_id("<|im_end|>")
    assert ChatTemplate(None, chat, True).end == chat.end


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{% for m in messages %}", "line 1 is not Jinja"),
        ("{{ messages[0].content }}", "does not write a turn of 'assistant' once"),
        ("{% for m in messages %}{{ m.content }}{% endfor %}", "no control token after an answer"),
        (
            "{% for m in messages if m.role == 'assistant' %}{{ m.content }}{% endfor %}",
            "does not write a turn of 'user' once",
        ),
        ("{{ messages.pop() }}", "cannot be used"),
        ("{{ ''.__class__.__mro__ }}", "cannot be used"),
        ("{{ raise_exception('no!') }}", "refuses this conversation: no!"),
        (
            "{% for m in messages %}{{ m.content | upper }}{{ eos_token }}{% endfor %}",
            "changes what is said",
        ),
        (
            "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
            "{% if add_generation_prompt %}answer: {% endif %}",
            "otherwise when its answer is known",
        ),
    ],
)
def test_templates_that_cannot_be_used(source, reason, chat):
    template = ChatTemplate(source, chat, True)
    with pytest.raises(UserError, match=reason):
        template.write([Turn("user", "some words")], "an answer", "here")


def test_a_tokenizer_without_an_end(bpe):
    content = json.loads(bpe.text)
    content["ptft_lightning"] = {"parts": {"end": None}}
    with pytest.raises(UserError, match="no control token after an answer"):
        _ = ChatTemplate(None, Tokenizer(json.dumps(content)), True).end


def test_a_template_may_strip_what_one_side_says(chat):
    source = PLAIN.replace(
        "message.role == 'user' %}{{ '> ' + message.content",
        "message.role == 'user' %}{{ '> ' + message.content.strip()",
    )
    assert source != PLAIN
    turns, answer = [Turn("user", " Where? ")], " To the sea "
    written = ChatTemplate(source, chat, False).write(turns, answer, "here")
    whole = ChatTemplate(PLAIN, chat, False).write([Turn("user", "Where?")], answer, "here")
    assert written == whole


def test_templates_come_from_files(tmp_path: Path):
    (tmp_path / "chat.jinja").write_text(CHATML)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": CHATML}))
    for name in ("chat.jinja", "tokenizer_config.json"):
        assert read_template(str(tmp_path / name)) == CHATML
    assert read_template(CHATML) == CHATML
    (tmp_path / "empty.json").write_text("{}")
    for name, reason in (("missing.jinja", "cannot be read"), ("empty.json", "holds no Jinja")):
        with pytest.raises(UserError, match=reason):
            read_template(str(tmp_path / name))
