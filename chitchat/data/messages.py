"""A conversation from a decoded JSON value: a list of turns, or messages in one of the common forms.

These are OpenAI's fine-tuning form (`messages` of `role` and `content`, with content parts, null content and `weight`;
platform guide "Fine-tuning"), ShareGPT's (`conversations` of `from` and `value`), lists under other names, and pairs
(`prompt` and `response`, Alpaca's `instruction`, `input`, `output`, `history`). A message whose `weight`, `train`,
`training` or `loss` is 0 or false is context only and does not count in the loss.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from chitchat.data.conversation import Conversation, Message, ReadStats, alternating, merged
from chitchat.errors import BadInput

_USER_ROLES = frozenset({"user", "human", "prompter"})
_BOT_ROLES = frozenset({"assistant", "bot", "gpt", "chatgpt", "bing", "bard", "model", "ai", "chatbot"})
_OTHER_ROLES = frozenset(
    {"system", "developer", "tool", "function", "observation", "function_call", "function_response", "tool_call",
     "tool_calls", "tool_response", "ipython"}
)  # fmt: skip
_SIDES = _USER_ROLES | _BOT_ROLES
_KNOWN_ROLES = _SIDES | _OTHER_ROLES
_PLAIN_ROLES: dict[Any, bool | None] = {role: role in _BOT_ROLES for role in _SIDES} | dict.fromkeys(_OTHER_ROLES)
_LISTS = (
    *("messages", "conversations", "conversation", "dialog", "dialogue", "dialogues", "turns", "utterances", "items"),
)
_PAIRS = (
    *(("prompt", "response"), ("prompt", "completion"), ("instruction", "output"), ("instruction", "response")),
    *(("question", "answer"), ("query", "response"), ("user", "assistant"), ("input", "output")),
    *(("context", "response"), ("source", "target")),
)
_ROLE_KEYS, _SPEAKER_KEYS = ("role", "from"), ("speaker", "author", "sender", "user")
_TEXT_KEYS = ("content", "value", "text", "utterance", "message")
_WEIGHT_KEYS = ("weight", "train", "training", "loss")
_TEXT_PARTS = frozenset({"text", "input_text", "output_text"})
_REMEDY = 'write a list of turns or {"messages": [{"role", "content"}]}'


def conversation_of(value: Any, where: str, stats: ReadStats, remedy: str = _REMEDY) -> Conversation:
    """The conversation in a decoded JSON value or a row of a data set.

    Raises `BadInput` for a value that is not one; the message begins with `where` and ends with `remedy`.
    """
    messages = _messages_of(value, where, stats) if isinstance(value, dict) else value
    if isinstance(messages, dict):
        messages = _rows_of(messages)
    if not isinstance(messages, list | tuple):
        raise BadInput(f"{where}: is not a conversation{_fields(value)}; {remedy}")
    if all(isinstance(message, str) for message in messages):
        return alternating(messages, stats)
    plain = _plain_messages(messages, stats)
    if plain is not None:
        return merged(plain, stats)
    split = [part for message in messages for part in _split_by_role(message)]
    senders = [_sender(message) for message in split]
    if not any(kind for kind, _ in senders):
        return _alternating_messages(split, where, stats)
    first = next((name for kind, name in senders if kind == "speaker" and not is_role(name)), None)
    found = [_message(message, first, where, stats) for message in split]
    return merged([message for message in found if message is not None], stats)


def is_role(speaker: str) -> bool:
    """Whether a speaker's name is a role (user, assistant, system, …)."""
    return speaker.strip().casefold() in _KNOWN_ROLES


def is_bot(speaker: str, first: str | None) -> bool | None:
    """Whether a speaker is the bot: by role where the name is one, else everybody but the `first` speaker is.

    None for a speaker who is neither user nor bot (system, tool).
    """
    role = speaker.strip().casefold()
    if role in _OTHER_ROLES:
        return None
    if role in _SIDES:
        return role in _BOT_ROLES
    return speaker != first


def counts_of(weight: Any, where: str) -> bool:
    """Whether a turn of this weight counts in the loss. Raises `BadInput` for anything but 0 and 1."""
    if weight is None or weight == "":
        return True
    try:
        number = float(weight)
    except (TypeError, ValueError, OverflowError):
        number = {"true": 1.0, "false": 0.0}.get(str(weight).strip().lower(), -1.0)
    if number not in (0.0, 1.0):
        raise BadInput(f"{where}: weight {str(weight)[:40]!r} is neither 0 (not in the loss) nor 1; give one of them")
    return number == 1.0


def _plain_messages(messages: Sequence[Any], stats: ReadStats) -> list[Message] | None:
    """The messages of a list of `role` and `content`, or `from` and `value`, and nothing else; a fast path.

    None, and nothing counted, for any other list.
    """
    found: list[Message] = []
    system_messages = 0
    for message in messages:
        if type(message) is not dict or len(message) != 2:
            return None
        role, text = ("role", "content") if "role" in message else ("from", "value")
        who, content = message.get(role), message.get(text)
        if type(who) is not str or type(content) is not str or who not in _PLAIN_ROLES:
            return None
        reply = _PLAIN_ROLES[who]
        if reply is None:
            system_messages += 1
        else:
            found.append(Message("bot" if reply else "user", reply, content))
    stats.system_messages += system_messages
    return found


def _messages_of(value: Mapping[str, Any], where: str, stats: ReadStats) -> Any:
    """The list of messages in an object, or its question and answer as messages; else None."""
    system = value.get("system")
    stats.system_messages += isinstance(system, str) and bool(system.strip())
    for name in _LISTS:
        if isinstance(value.get(name), list | tuple | dict):
            return value[name]
    for asked, answered in _PAIRS:
        if asked in value and answered in value:
            extra = value.get("input") if "input" not in (asked, answered) else None  # Alpaca's, part of the question
            question = _side(value[asked], "user", extra.strip() if isinstance(extra, str) else "")
            return [*_history(value, where), *question, *_side(value[answered], "assistant")]
    return None


def _side(text: Any, role: str, more: str = "") -> list[Any]:
    """Question or answer of a pair as messages: from a text, or from a list of messages."""
    if isinstance(text, list):
        return text
    if isinstance(text, str) and more:
        text = f"{text}\n{more}"
    return [{"role": role, "content": text}]


def _history(value: Mapping[str, Any], where: str) -> list[Any]:
    history = value.get("history")
    if not history:
        return []
    if not isinstance(history, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in history):
        raise BadInput(f"{where}: history is not a list of [question, answer]; write it so, or as messages")
    sides = ("user", "assistant")
    return [{"role": role, "content": text} for pair in history for role, text in zip(sides, pair, strict=True)]


def _rows_of(columns: Mapping[str, Any]) -> Any:
    """Messages from columns (`{"role": [...], "content": [...]}`); None for anything else."""
    lists = {name: values for name, values in columns.items() if isinstance(values, list)}
    if not lists or len({len(values) for values in lists.values()}) != 1:
        return None
    return [dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)]


def _split_by_role(message: Any) -> list[Any]:
    """A message whose keys are roles (`{"human": …, "assistant": …}`) as one message for each role."""
    if not isinstance(message, dict) or any(isinstance(message.get(key), str) for key in _ROLE_KEYS):
        return [message]
    roles = [key for key in message if is_role(key)]
    if any(key in message for key in _TEXT_KEYS) or not roles:
        return [message]
    weights = {key: message[key] for key in _WEIGHT_KEYS if key in message}
    return [{"role": key, "content": message[key], **weights} for key in roles]


def _alternating_messages(messages: Sequence[Any], where: str, stats: ReadStats) -> Conversation:
    """Messages without senders: user and bot alternate."""
    found = []
    for number, message in enumerate(messages):
        text = message if isinstance(message, str) else _text(message, where, stats)
        found.append(Message(str(number), number % 2 == 1, text, _counts(message, where)))
    return merged(found, stats)


def _sender(message: Any) -> tuple[str, str]:
    """`(kind, name)` of the sender, kind "role" or "speaker"; both empty where none is named."""
    if isinstance(message, dict):
        for kind, keys in (("role", _ROLE_KEYS), ("speaker", _SPEAKER_KEYS)):
            for key in keys:
                if message.get(key) is not None:
                    return kind, str(message[key])
    return "", ""


def _message(message: Any, first: str | None, where: str, stats: ReadStats) -> Message | None:
    """One message; None for one of neither user nor bot, which is counted."""
    if not isinstance(message, dict):
        raise BadInput(f"{where}: message {str(message)[:60]!r} has no sender; {_REMEDY}")
    kind, name = _sender(message)
    role = name.strip().casefold()
    calls_tool = role in _BOT_ROLES and (message.get("tool_calls") or message.get("function_call"))
    if role in _OTHER_ROLES or (calls_tool and message.get("content", "") is None):
        stats.system_messages += 1
        return None
    if kind != "speaker" and role not in _SIDES:
        raise BadInput(f"{where}: role {name[:40]!r} is unknown; use user, assistant or system")
    reply = bool(is_bot(name, first))
    label = name if kind == "speaker" else "bot" if reply else "user"
    own = message.get("name")  # two senders may share a role
    sender = f"{label}\0{own}" if isinstance(own, str) else label
    return Message(sender, reply, _text(message, where, stats), _counts(message, where))


def _counts(message: Any, where: str) -> bool:
    if not isinstance(message, dict):
        return True
    return all(counts_of(message[key], where) for key in _WEIGHT_KEYS if key in message)


def _text(message: Any, where: str, stats: ReadStats) -> str:
    """The text of a message: a string, the text parts of a list, or "" for null."""
    key = next((key for key in _TEXT_KEYS if key in message), None) if isinstance(message, dict) else None
    content = message[key] if key else 0
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list) and all(isinstance(part, str | dict) for part in content):
        texts = [part if isinstance(part, str) else _part(part) for part in content]
        stats.other_parts += texts.count(None)
        return "\n".join(text for text in texts if text is not None)
    raise BadInput(f'{where}: message {str(message)[:60]!r} has no text; write {{"role": "user", "content": "…"}}')


def _part(part: Mapping[str, Any]) -> str | None:
    text = part.get("text")
    return text if isinstance(text, str) and part.get("type", "text") in _TEXT_PARTS else None


def _fields(value: Any) -> str:
    """The fields of an object, for an error."""
    if not isinstance(value, dict) or not value:
        return ""
    return " (its fields are {})".format(" ".join(", ".join(map(str, value)).split())[:100])
