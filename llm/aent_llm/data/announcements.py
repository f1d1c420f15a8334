r"""Find the final answer of a completion: one reading for all rewards, for votes and for references.

``announced_answer`` finds what a text gives as its answer. These are announcements:

- ``\boxed{...}``, ``\fbox{...}``, ``\boxed 7``. Boxes with nothing but "and", "or", a comma, white space or ``x =``
  between them are one answer with several parts; else, and behind a blank line, the last box counts. A box without an
  end or content is none.
- ``#### ...``, to the end of its line (GSM8K), and ``<answer>...</answer>``.
- "The answer is ...", "Answer: ...", "Answer - ...", a heading "Answer" with the answer below it; plain, bold or as
  a formula. "The correct option", "the final result" and the like are the same as "the answer"; so is
  "option C is correct", where no other option is called so.
- Where there is none of these, the sentence that ends the text, if it is "therefore" (thus, hence, so), then a variable
  alone or "the ...", then "is" or "=", then a number or formula: "Therefore, x = 5."

The last announcement wins, but words ("the answer is clear") give way to any announcement of a number or formula.
A correction right behind it ("No, 5.", "Sorry, I mean 5.") is one more announcement. Reasoning in
``<think>...</think>`` announces nothing. An answer that the text then calls wrong or takes back is no answer, nor is
one behind "is not", ``\ne``, "I doubt that" or "a wrong answer"; special tokens such as ``<|im_end|>`` end a line. A
number that nobody announces is not an answer either.

Left out: announcements in other languages than English; "5 is the answer"; a conclusion of another form ("so she has 5
apples"); denials and corrections with other words in between ("I doubt, as I said, that the answer is 5").

Every pattern takes time linear in the text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from aent_llm.data.answers import VARIABLE, Answer, closes, is_formula, plain_characters, read_answer, read_whole

__all__ = [
    "announced_answer",
    "boxed_answer",
    "completion_text",
    "final_answer",
    "hash_answer",
    "read_final",
    "voted_answer",
]

WINDOW = 1000  # characters after "the answer is" in which its formula or sentence must end
PHRASES = 50  # at most so many "the answer is" are read, from the last one back


def completion_text(completion: Any) -> str:
    """Return what the model says in a completion: the string itself, or the content of the assistant's last message.

    The text parts of a multi-part message are joined. It is "" where the model says nothing: no message, a tool call
    without content, or a conversation that ends with the result of a tool.
    """
    if isinstance(completion, str):
        return completion
    messages = [completion] if isinstance(completion, Mapping) else completion
    last = messages[-1] if isinstance(messages, Sequence) and messages else None
    if not isinstance(last, Mapping) or last.get("role", "assistant") != "assistant":
        return ""
    content = last.get("content")
    parts = content if isinstance(content, list) else [content]
    return "".join(filter(None, map(_part_text, parts)))


def _part_text(part: Any) -> str | None:
    if isinstance(part, Mapping):
        part = part.get("text") if part.get("type", "text") in ("text", "output_text") else None
    return part if isinstance(part, str) else None


# ------------------------------------------------------------------------------------------------------- announcements
class _Found(NamedTuple):
    """An announcement: where it starts and ends in the text, and what it says."""

    start: int
    end: int
    raw: str


_OPENING = re.compile(r"\\(?:boxed|fbox)\s*\{")
_BRACES = re.compile(rf"(?P<box>{_OPENING.pattern})|\\.|[{{}}]", re.DOTALL)  # an escaped brace, \{, nests nothing
_BARE_BOX = re.compile(r"\\(?:boxed|fbox)(?:\s+|(?=[\d\\+-]))(\\[dt]?frac\s*(?:\d\d|\{[^{}]*\}\{[^{}]*\})|[^\s\\{}$]+)")
_JOINER = re.compile(rf"(?:\\text\{{\s*(?:,|and|or)\s*\}}|\\q?quad|\\[()\[\],;: ]|[,;&$\s]|and\b|or\b|{VARIABLE}\s*=)*")
_BLANK_LINE = re.compile(r"(?:[\s$]|\\[()\[\]])*\n[ \t]*\n(?:[\s$]|\\[()\[\]])*")
_THOUGHT = r"think|thinking|thought|thoughts|reasoning"
_END_TOKEN = re.compile(r"<[|｜][\w▁-]{2,40}[|｜]>|</s>|<(?:eos|pad|end_of_turn)>|\[(?:EOS|PAD)\]", re.IGNORECASE)
_CLOSED_THOUGHT = re.compile(rf"</(?:{_THOUGHT})>", re.IGNORECASE)
_OPEN_THOUGHT = re.compile(rf"<(?:{_THOUGHT})>", re.IGNORECASE)
_TAG = re.compile(r"<answer>((?:[^<]|<(?!/?answer>))*)</answer>", re.IGNORECASE)
_NOUN = r"\b(?:ans(?:wers?)?|(?:correct|right|final|best)\ (?:option|choice|result)s?)\b"
_PHRASE = re.compile(
    rf"""
      {_NOUN} [^.\n:=?!]{{0,80}}? \b(?:is|are|was|were|be|becomes|equals|comes\ (?:out\ )?(?:to|as))\b \s* [:=]?
    | {_NOUN} [*_`)\]\s]{{0,4}} (?:\([^()\n]{{0,40}}\))? [*_`]{{0,3}} \s* [:=]
    | ^[ \t*#]* (?:the[ ])? (?:final[ ])? answer [ \t*]+ [-–—] (?=[ \t*]) (?![ \t*]+ [A-Za-z]+ [ ] [a-z])
    | ^[ \t]* (?:[#]+|[*]{{2}}) [ \t]* (?:final[ ]|the[ ])* answer [ \t*:]* $
    """,
    re.IGNORECASE | re.MULTILINE | re.VERBOSE,
)
_CONDITION = re.compile(r"\b(?:if|whether|unless|suppose|supposing|assume|assuming)\b[^.,;\n]*$", re.IGNORECASE)
_DENIAL = re.compile(r"\b(?:not|cannot|never|neither|no longer|(?:might|may|could) be)\b|n['’]t\b", re.IGNORECASE)
_FILLER = re.compile(
    r"(?:(?:approximately|about|roughly|around|exactly|simply|just|only|indeed|therefore|thus|hence|clearly|actually|"
    r"then|still|equal to|given by|option|choice|\\approx|≈|~|not\b[^.;\n]{1,60}?\bbut(?:\s+rather)?\b)[\s,:]*)*",
    re.IGNORECASE,
)
_FORMULA = re.compile(
    r"\$\$(.+?)\$\$|\$(?!\s)((?:\\.|[^$\n\\])+?)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]|\*\*(.+?)\*\*|__(.+?)__", re.DOTALL
)
_PRICE = re.compile(r"\d[\d,.]*[\s.,]+[A-Za-z].*|\d[\d,.]*[\s.,]*", re.DOTALL)  # "$18 a day, so $" is no formula
_AND = re.compile(r"\s*(?:[,(]\s*(?:and|or)\b|,|;|and\b|or\b)\s*")
_SENTENCE_END = re.compile(r"""[.!?]+(?=[\s*"'”’)]|$)|\n""")
_ASIDE = re.compile(
    r"\s*(?:;|—|:\s|\s[–-]\s+(?=[A-Za-z]{2})|,?\s+\((?!or\b|and\b)(?=[A-Za-z])|,\s+no\b|,?\s+(?:because|"
    r"wait|actually|sorry|oops|correction|I\s+(?:mean|think|believe)|or\s+rather|make\s+that|scratch\s+that|"
    r"since|as|which|so|where|when|but|if|for|by|from|(?:and\s+)?not|including|making|meaning|giving|i\.e|e\.g|thus|hence|therefore)\b)"
)
_WRONG_ANSWER = (  # "the number of wrong answers is" announces one
    r"(?<!of )\b(?:wrong|incorrect|false|mistaken|erroneous|invalid|naive|tempting|previous|earlier|old)"
    r"(?=\s+(?:final\s+)?(?:answers?|ans|option|choice|result)\b)"
)
_DENIED = re.compile(  # what stands before an answer that is denied: "is not equal to", "I doubt that the answer is"
    rf"(?:{_WRONG_ANSWER}|(?<!or )\b(?:not|cannot|never|neither|nor|rather than|instead of|no (?:way|chance)"
    r"|nobody|no one|(?:I|we)\s+(?:(?:\w+ly|still|do|would)\s+)?(?:doubt|deny|dispute|reject|disagree|refuse|thought)"
    r"|(?:wrong|incorrect|false|untrue|impossible|unlikely|doubtful|mistake|misconception)(?=\s+(?:that|to)\b)"
    r"|might(?=\s+think)|wrongly|mistakenly|incorrectly|falsely)\b|n['’]t\b|\\neq?(?![A-Za-z])|≠)"
    r"(?:\s+(?:be|equals?|to|is|are|was|exactly|simply|just|actually|an?|the|my|our|final|best|correct|right|answers?:?|"
    r"ans|option|choice|result|value|that|it|it['’]s|true|the\ case|clear|certain|sure|likely|possible|think\w*|"
    r"thought|believe\w*|say\w*|claim\w*|conclude\w*|assume\w*|mean|agree|accept))*[\s$*=\\(\[{}]*$",
    re.IGNORECASE,
)
_CHOSEN = re.compile(  # "option C is correct", "C is the correct answer"
    r"(\b(?:option|choice)\s+)?(?<![\w-])[*(]{0,3}(?-i:([A-J]))[*)]{0,3}\s+is\s+(?:the\s+)?(?:correct|right|best)\b"
    r"(?(1)|\s+(?:answer|option|choice)\b)(?!-|\s*(?:only|if|\?))",
    re.IGNORECASE,
)
_CONCLUSION = re.compile(
    rf"""\b(?:therefore|thus|hence|so|consequently)\b [,:*]* \s+ (?:we\ (?:have|get|find|conclude)\ )? (?:that\ )?
      [\s$\\(\[*]* (?: (?P<named>{VARIABLE}) [\s$\\)*]* (?:=|(?<![A-Za-z])(?:is|equals)\s)
        | (?:the|there|his|her|their|its|\w+['’]s)\b (?:[^.!?;:=<>\n]{{0,80}}?\s)?? (?:is|are|was|were|equals)\s )
      \s* (?P<value>(?:[^.!?;<>\n]|\.(?=\d))+) \s* (?:\.|\$|\\[)\]]|\*\*) [\s.$*\\)\]]*$""",
    re.IGNORECASE | re.VERBOSE,
)
_WRONG = (
    r"(?:['’]s|\s*\bis|\s*\bwas)\s+(?:wrong|incorrect|not\s+(?:right|correct|the\s+answer)|a\s+mistake)"
    r"|\s+(?:isn['’]t|can(?:not|['’]t)\s+be)\s+(?:right|correct)"
)
_TAKEN_BACK = (
    r"(?:scratch|strike|forget|ignore|disregard)\s+that|I\s+take\s+(?:that|it)\s+back|"
    r"I\s+(?:was\s+(?:wrong|mistaken)|made\s+an?\s+(?:mistake|error)|misspoke)"
    r"(?!\s+(?:before|earlier|above|about|at|in|when|first|there|to)\b)"
)
_GAP = r"[\s$.,;:!*()\]}\\…—–-]*(?:(?:but|oh|hm+|er|uh|um)\b[\s,.…—–-]*)*"
_WITHDRAWAL = re.compile(
    rf"(?:\b(?:that|this|it|which|answer)|^[\s$*)\]\\]*)(?:{_WRONG})\b|\b(?:{_TAKEN_BACK})\b"
    rf"|^{_GAP}(?:wait\b[\s,.…—–-]*)?no\b(?=\s*[,.!…—–])",
    re.IGNORECASE,
)
_CORRECTION = re.compile(  # "No, 18", "- wait, 18", "Sorry, I mean 18": what comes before the number
    rf"{_GAP}(?:(?:no|wait|actually|sorry|oops|correction|edit|I\s+mean|I\s+meant|(?:or\s+)?rather|make\s+(?:that|it)|"
    r"let\s+me\s+correct\s+(?:that|this|it|myself)|on\s+second\s+thought|my\s+(?:mistake|bad)|"
    rf"(?:it|that|this)(?:\s+should\s+(?:be|have\s+been)|{_WRONG})|{_TAKEN_BACK})\b[\s,.:;!…—–-]*)+"
    r"(?:(?:it|that|this)(?:['’]s|\s+(?:is|was|must\s+be|should\s+(?:be|have\s+been)))|(?:I|we)\s+get)?",
    re.IGNORECASE,
)


def announced_answer(text: str) -> str | None:
    r"""Return what the text gives as its final answer, as it is written there; None where it gives none.

    Examples:
        >>> [announced_answer(t) for t in (r"So \boxed{3}. No: \boxed{4}.", "The answer is **73**.", "6*7=42\n#### 42")]
        ['4', '73', '42']
        >>> announced_answer(r"$x=\boxed{1}$ or $x=\boxed{2}$"), announced_answer("we have 42 apples")
        ('1, 2', None)
    """
    text = _said(text)
    found = [one for find in (_last_box, _last_hash, _last_tag, _last_phrase, _chosen) if (one := find(text))]
    if not found:
        return _conclusion(text)
    last = max(found, key=lambda one: (is_formula(one.raw), one.start))
    while correction := _correction(text, last.end):
        last = correction
    return None if _WITHDRAWAL.search(text[last.end : last.end + 200]) else last.raw


def final_answer(text: str) -> str:
    r"""Return the announced answer, or the whole text where nothing is announced; cleaned as ``read_answer`` does.

    Dollars and euros are left out.

    Examples:
        >>> [final_answer(t) for t in ("Paris.", r"it is $\boxed{1,000}$", "we pay\n#### $1,000")]
        ['Paris', '1000', '1000']
    """
    answer = read_final(text)
    return f"{answer.text} {answer.unit}" if answer.unit not in ("", "dollar", "euro") else answer.text


def read_final(text: str) -> Answer:
    """Return the announced answer, or the whole text where nothing is announced, in its parts."""
    announced = announced_answer(text)
    return read_whole(_said(text)) if announced is None else read_answer(announced)


def voted_answer(text: str) -> str | None:
    r"""Return what a text votes for: its announced answer without a unit, else its last number; None without either.

    Votes are compared as text: 0.5 and \frac{1}{2} are two candidates, 0.5 and .50 are one.

    Examples:
        >>> voted_answer(r"so \boxed{\dfrac{1}{2}}."), voted_answer("3*4+1*5=17"), voted_answer("no idea")
        ('\\frac{1}{2}', '17', None)
    """
    announced = announced_answer(text)
    if announced is None:
        numbers = re.findall(r"-?\d+(?:,\d{3})*(?:\.\d+)?", plain_characters(_said(text)))
        announced = numbers[-1] if numbers else ""
    return read_answer(announced).key or None


def boxed_answer(text: str) -> str | None:
    r"""Return what the last ``\boxed{...}`` or ``\fbox{...}`` holds, or None: the answers of MATH.

    Boxes that only "and", "or", a comma, white space or ``x =`` separate are one answer, joined by commas.

    Examples:
        >>> boxed_answer(r"so \boxed{1}, no: $\boxed{\frac{1}{2}}$."), boxed_answer(r"\boxed{1} or \boxed{2}")
        ('\\frac{1}{2}', '1, 2')
    """
    found = _last_box(text)
    return found.raw if found else None


def hash_answer(text: str) -> str | None:
    """Return what follows the last ``####`` on its line, or None: the answers of GSM8K.

    Examples:
        >>> hash_answer("6 * 7 = 42\\n#### 42")
        '42'
    """
    found = _last_hash(text)
    return found.raw if found else None


def _said(text: str) -> str:
    """The text without special tokens and the model's reasoning, of which it may have written the start only."""
    text = _END_TOKEN.sub("\n", text)
    ends = [closed.end() for closed in _CLOSED_THOUGHT.finditer(text)]
    text = text[ends[-1] :] if ends else text
    opened = _OPEN_THOUGHT.search(text)
    return text[: opened.start()] if opened else text


def _boxes(text: str) -> list[_Found]:
    """All boxes that end, in the order of their ends; one pass, as a text may open thousands and close none."""
    found: list[_Found] = []
    stack: list[re.Match[str] | None] = []  # None is a brace that opens no box
    first = _OPENING.search(text)
    for brace in _BRACES.finditer(text, first.start()) if first else ():
        if brace.lastgroup or brace[0] == "{":
            stack.append(brace if brace.lastgroup else None)
        elif brace[0] == "}" and stack and (opening := stack.pop()):
            found.append(_Found(opening.start(), brace.end(), text[opening.end() : brace.start()].strip()))
    return found + [_Found(bare.start(), bare.end(), bare[1]) for bare in _BARE_BOX.finditer(text)]


def _last_box(text: str) -> _Found | None:
    """The last box that is not denied, with the boxes that belong to the same answer."""
    boxes = sorted(box for box in _boxes(text) if box.raw)
    denied: set[str] = set()
    while boxes:
        first = last = boxes.pop()
        parts = [last.raw]
        while boxes and boxes[-1].end <= first.start <= boxes[-1].end + 80:
            between = boxes[-1].end, first.start
            if not _JOINER.fullmatch(text, *between) or _BLANK_LINE.fullmatch(text, *between):
                break
            first = boxes.pop()
            parts.append(first.raw)
        answer = ", ".join(dict.fromkeys(reversed(parts)))
        if _is_denied(text, first.start):
            denied.add(answer)
        elif answer not in denied:
            return _Found(first.start, last.end, answer)
    return None


def _last_hash(text: str) -> _Found | None:
    start = text.rfind("####")
    if start < 0:
        return None
    line = text[start + 4 :].lstrip().partition("\n")[0]
    return _Found(start, text.find(line, start + 4) + len(line), line.strip())


def _last_tag(text: str) -> _Found | None:
    tags = [*_TAG.finditer(text)]
    if not tags or not (inside := tags[-1][1].strip()):
        return None
    boxed = _last_box(inside) or _last_phrase(inside)
    return _Found(tags[-1].start(), tags[-1].end(), boxed.raw if boxed else inside)


def _last_phrase(text: str) -> _Found | None:
    """The last "the answer is ..." with a number or formula; where there is none, the last with words."""
    words = None
    denied: set[str] = set()
    for phrase in reversed(list(_PHRASE.finditer(text))[-PHRASES:]):
        noun = [*re.finditer(_NOUN, phrase[0], re.IGNORECASE)][-1]
        denies = bool(_DENIAL.search(phrase[0])) or _is_denied(text, phrase.start() + noun.end())
        found = _phrase_value(text, phrase.end())
        if not found and (denial := re.compile(r"\s*not\s").match(text, phrase.end())):
            denies, found = True, _phrase_value(text, denial.end())
        if not found or _CONDITION.search(text, max(0, phrase.start() - 40), phrase.start()):
            continue
        if denies:
            denied.add(found.raw)
        if not found.raw or found.raw in denied:
            continue
        if is_formula(found.raw):
            return found
        words = words or found
    return words


def _chosen(text: str) -> _Found | None:
    """Find the letter of "option C is correct", where no other letter is called so."""
    chosen = _CHOSEN.finditer(text)
    found = [
        one
        for one in chosen
        if not (_CONDITION.search(text, max(0, one.start() - 40), one.start()) or _is_denied(text, one.start()))
    ]
    letters = {one[2] for one in found}
    return _Found(found[-1].start(), found[-1].end(), letters.pop()) if len(letters) == 1 else None


def _conclusion(text: str) -> str | None:
    """Find what the last sentence draws with "therefore": the value of a variable alone, or of "the ..."."""
    found = _CONCLUSION.search(text.rstrip()[-300:])
    if not found or _DENIAL.search(found[0]) or re.search(_WRONG_ANSWER, found[0]) or not is_formula(found["value"]):
        return None
    return f"{found['named']} = {found['value']}" if found["named"] else found["value"]


def _correction(text: str, at: int) -> _Found | None:
    """What stands behind "no", "wait" or "I mean" instead of the answer that ends at ``at``: a number, no sentence."""
    marker = _CORRECTION.match(text, at)
    found = _phrase_value(text, marker.end()) if marker else None
    if not found or not re.search(r"[\\\dA-H]", found.raw) or not is_formula(found.raw):
        return None
    answer = read_answer(found.raw)
    step = "=" in found.raw and not answer.variable  # "Wait, 8 + 8 = 16, and one more."
    return None if step or " " in answer.unit else found


def _is_denied(text: str, at: int) -> bool:
    return bool(_DENIED.search(text[max(0, at - 80) : at]))


def _phrase_value(text: str, at: int) -> _Found | None:
    """What stands behind "the answer is": formulas or bold text, else the start of the sentence."""
    window, place = text[at : at + WINDOW], 0
    line = text[max(0, at - 200) : at].rpartition("\n")[2]
    if line.count("**") % 2:  # "**Answer:** 42": these stars close
        stars = re.match(r"\s*\*\*[\s:]*", window)
        place = stars.end() if stars else 0
    place = re.compile(r"[\s`>\"“}_=:]*").match(window, place).end()  # type: ignore[union-attr]
    place = _FILLER.match(window, place).end()  # type: ignore[union-attr]
    if _DENIAL.match(window, place):
        return None
    formulas, end = _formulas(window, place)
    if formulas:
        return _Found(at, at + end, ", ".join(formulas))
    stop = _SENTENCE_END.search(window, place)
    if stop is None and len(window) == WINDOW:
        return None
    end = stop.start() if stop else len(window)
    if stop and "?" in stop.group():
        return None
    aside = _ASIDE.search(window, place, end)
    end = aside.start() if aside else end
    closing = _unopened(window, place, end)  # "\\textbf{Answer: 42}"
    return _Found(at, at + end, window[place:closing].strip())


def _formulas(window: str, place: int) -> tuple[list[str], int]:
    """Formulas in math delimiters or bold from ``place`` on, joined by commas, "and" or "or"; and where they end."""
    found: list[str] = []
    end = place
    while formula := _FORMULA.match(window, place):
        content = next(filter(None, formula.groups()))
        if re.compile(r"\s*=").match(window, formula.end()):  # "$x$ = 5" is one formula
            break
        if formula[2] and _PRICE.fullmatch(content) and re.match(r"\s*\d", window[formula.end() :]):
            break
        found.append(content.strip())
        end = formula.end()
        joiner = _AND.match(window, end)
        if joiner is None:
            break
        place = joiner.end()
    return found, end


def _unopened(text: str, start: int, end: int) -> int:
    """Where the first brace closes that was not opened from ``start`` on; ``end`` if none does."""
    place = closes(text[:end], start)
    return place - 1 if place else end
