r"""Read an answer: its variable, value and unit, freed from the ways of writing that do not change its meaning.

Math delimiters, ``\text{}``, ``\left``, bold, thousands separators and a full stop at the end go away; the sign of a
currency is a unit; ``-`` is one character. ``announcements`` finds the answer in a text.

Left out: numbers as words ("forty-two", "5 million"), decimal commas, units behind a formula with letters, words of
three small letters (``cat`` is a product, and so is ``act``), ``0.333...``, an equation against a number
(math-verify takes its right side, as questions ask for ``x + y`` too).
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any, NamedTuple

__all__ = ["Answer", "decimals_agree", "differ", "is_formula", "read_answer", "reference_text", "same_answer"]

LONGEST = 2000  # characters of an answer; a longer one is left as it is


class Answer(NamedTuple):
    """The parts of an answer: ``x = 5 cm`` has variable "x", value "5" and unit "cm"; absent parts are "".

    Of a choice with its text, ``(B) Paris``, the variable is "(B)".
    """

    variable: str
    value: str
    unit: str

    @property
    def text(self) -> str:
        """Variable and value, without the unit."""
        joint = " " if self.variable.startswith("(") else " = "
        return f"{self.variable}{joint}{self.value}" if self.variable else self.value

    @property
    def key(self) -> str:
        """The value as it is compared: ``+042.50`` is ``42.5``; white space counts between words and between digits."""
        if _DECIMAL.fullmatch(self.value):
            return _plain_decimal(self.value)
        if self.is_words:
            return self.value
        value = self.value if re.search(r"[<>]|\\[lg]e", self.value) else _LISTED.sub(",", self.value)
        return _LOOSE_SPACE.sub("", re.sub(UNIT_TEXT, r"\1", value))

    @property
    def is_words(self) -> bool:
        """Whether the value is prose, ``no solution``, or a name, ``AB``, rather than a formula such as ``2xy``."""
        return bool(_PROSE.fullmatch(self.value)) and (
            bool(re.search(r"[A-Za-z]{4}|^[A-Z]{2,}$", self.value)) or self.value.casefold() in ("yes", "no")
        )


def reference_text(reference: Any) -> str | None:
    """Return a reference answer as text, a number in the shortest way to write it; None where there is no answer.

    None, NaN, infinity and empty text are no answer. A list of one is its element; any other list or object is none.

    Examples:
        >>> [reference_text(one) for one in (" 42 ", 42, 42.0, 1e-7, True, None, float("nan"))]
        ['42', '42', '42', '0.0000001', 'True', None, None]
    """
    if hasattr(reference, "tolist"):  # a numpy number; its own text keeps a float32 short
        reference = Decimal(str(reference)) if _is_number(reference.tolist()) else reference.tolist()
    if isinstance(reference, list | tuple):
        return reference_text(reference[0]) if len(reference) == 1 else None
    if isinstance(reference, str):
        return reference.strip() or None
    if isinstance(reference, bool):
        return str(reference)
    if not _is_number(reference):
        return None
    number = Decimal(str(reference))
    return _plain_decimal(format(number, "f")) if number.is_finite() else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | Decimal) and not isinstance(value, bool)


# ------------------------------------------------------------------------------------------------------------ in parts
_CHARACTERS = str.maketrans(
    {
        **dict.fromkeys("\u2212\u2010\u2011\ufe63\uff0d", "-"),
        **dict.fromkeys("\u00a0\u2002\u2003\u2007\u2009\u202f", " "),
        **{chr(0xFF10 + digit): str(digit) for digit in range(10)},
        "×": r"\times ", "÷": r"\div ", "·": r"\cdot ", "⋅": r"\cdot ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ",
        "π": r"\pi ", "±": r"\pm ", "∞": r"\infty ", "∪": r"\cup ", "∩": r"\cap ", "∅": r"\emptyset ", "°": r"^\circ ",
        "≡": r"\equiv ", "⟨": r"\langle ", "⟩": r"\rangle ",
        "²": "^2", "³": "^3", "½": r"\frac{1}{2}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}", "％": "%",
    }
)  # fmt: skip
_SIGNED = (
    r"^((?:\$(?!\d)|[^\w,;<>$€£¥₹]|\\(?:text|math)\w*\{|\([A-H]\)|[A-Za-z]\s*=)*)"  # what may stand before one price
)
_PRICE = r"\s*([+-]?(?:\d[\d,]*(?:\.\d+)?|\.\d+))(?=[\s.*_)}\]\\$]*$)"
_SPELLINGS: list[tuple[re.Pattern[str], str]] = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\(?:pounds|textsterling)(?![A-Za-z])\s*", "£"),
        (r"\\(?:text)?euro(?![A-Za-z])\s*", "€"),
        (r"\\(?:text)?yen(?![A-Za-z])\s*", "¥"),
        (r"\\textdollar(?![A-Za-z])\s*|\bUS\\?\$", r"\\$"),
        (r"\\(?:text|mathrm|mbox)\s*\{\s*([€£¥₹]|\\\$)\s*\}\s*", r"\1"),
        (rf"{_SIGNED}\\\${_PRICE}", r"\1\2 dollars"),  # the sign of a currency is a unit
        (rf"{_SIGNED}(?<!\\)\${_PRICE}(?![^$]*\$)", r"\1\2 dollars"),
        (rf"{_SIGNED}([€£¥₹]){_PRICE}", r"\1\3 \2"),
        (r"(?<!\\)\\[()\[\]]|\\?\$|\*\*|__|`", ""),  # math delimiters, other dollars, bold
        (r"^[*_=`\"“”]+|[*_=`\"“”]+$|</?(?:b|strong|i|em)>", ""),
        (
            r"\\(?:left|right|displaystyle|textstyle|tiny|small|normalsize|[lL]arge|LARGE|[hH]uge|bf(?:series)?|rm|it|sf|tt)(?![A-Za-z])",
            "",
        ),
        (r"(?<!\\)\\!|\\therefore(?![A-Za-z])|∴", ""),
        (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
        (r"\\frac\s*(\d)", r"\\frac{\1}"),
        (r"(\\frac\s*\{[^{}]*\})\s*(\d)", r"\1{\2}"),
        (r"([\^_])\{(\w)\}(?!\w)", r"\1\2"),
        (r"^\(\\(?:text|math)(?:bf|rm)?\s*\{([A-H])\}\)", r"(\1)"),
        (r"\{,\}", ","),
        (r"(?<!\\)\\(?:[,;: ]|q?quad(?![A-Za-z]))|~", " "),
        (r"\\varnothing(?![A-Za-z])", r"\\emptyset"),
        (r"\\colon(?![A-Za-z])", ":"),
        (r"\^\{?\\circ\s*\}?\s*\\(?:text|textrm|mathrm)\s*\{\s*([CF])\s*\}", r"^\\circ \1"),
        (r"\\([lg])eq(?![A-Za-z])", r"\\\1e"),
        (r"(?:√|\\sqrt(?![A-Za-z]))\s*(?:(\d+|[A-Za-z])|\(([^()]*)\))", r"\\sqrt{\1\2}"),
        (r"^[–—](?=[\d.])", "-"),
        (r"^(?:\\approx|\\simeq|\\sim|≈|≃)\s*", ""),
        (r"\\(?:text)?color\s*\{\w+\}", ""),
        (r"^([+-]?)\s*(?:[€£¥₹]|USD|EUR|GBP|Rs\.?)\s*(?=[\d.])", r"\1"),
        (r"(?:\\langle(?![A-Za-z])|^<)([^<>]*,[^<>]*)(?:\\rangle(?![A-Za-z])|>$)", r"(\1)"),
        (r"(?<![\d:])(\d{1,2}):00(?![\d:])", r"\1"),  # 3:00 PM is 3 PM
        (r"(?<=\d)\s*(\\text\s*\{\s*)?(?:a\.?\s?m|A\.?\s?M)\b\.?", r" \1am"),
        (r"(?<=\d)\s*(\\text\s*\{\s*)?(?:p\.?\s?m|P\.?\s?M)\b\.?", r" \1pm"),
        (r"\s+", " "),
    )
]
_WRAPPER = re.compile(
    r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|mathsf|bm|boldsymbol|mbox|underline|boxed|fbox)\s*\{"
)
_WORD = re.compile(r"[A-Za-z]{3,}|\b(?:it|in|an|as|to|we|is|on|so|at|be|do|my|he|us)\b")
_PROSE = re.compile(r"[A-Za-z][A-Za-z' .,-]*")
_FUNCTIONS = {"and", "sqrt", "sin", "cos", "tan", "cot", "sec", "csc", "log", "exp", "inf", "infinity", "mod", "pmod"}
_DECIMAL = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)")
_GROUPED = re.compile(r"([+-]?)(\d{1,3}(?:([, _'])\d{3})(?:\3\d{3})*)(\.\d+)?")
_LEFT = r"(?:[^A-Za-z\\=<>!]|\\(?:times|cdot|div|frac|sqrt|pi)(?![A-Za-z]))+"
_NAMED = r"\s*(?![A-Hei]$)[A-Za-z](?:_\{?\w+\}?)?$"  # what 42 is in "42 = x"; "42 = B" is a choice
_SUM = re.compile(rf"(?:(?:[^A-Za-z\\=<>!]|\\(?:times|cdot|div|frac)(?![A-Za-z]))*=\s*)+(?=[^=])(?!{_NAMED})")
_ASSIGNS = re.compile(rf"({_LEFT})=({_NAMED})")
_CHOICE = re.compile(
    r"(?:\\(?:text|math)(?:bf|rm)?\{\s*\(?([A-H])[).:]*\s*\}|\(?([A-H])(?:\)|[.:](?=\s)))\s*(?=[\w\\$.-])(.+)"
)
VARIABLE = r"(?:[A-Za-z]|\\[A-Za-z]+)(?:_\{?\w+\}?)?(?:\(\w{1,9}\))?'*"
_ASSIGNED = re.compile(rf"({VARIABLE})\s*(?:=|\\approx(?![A-Za-z]))\s*([^=]+)")
_UNSIGNED = r"(\d+\.?\d*|\.\d+)"
_SCIENTIFIC = (  # 3e5, 3 \times 10^5, 10^{-7}
    rf"([+-]?)(?:{_UNSIGNED}[eE]|(?:{_UNSIGNED}\s*(?:\\times|\\cdot|[x*])\s*)?10\s*\^\s*\{{?)([+-]?\d{{1,3}})\}}?"
)
_GROUP = r"\{(?:[^{}]|\{[^{}]*\})*\}"
_NUMBER = (
    _SCIENTIFIC
    + r"|(?=[^A-Za-z{}]*\\(?:pi|sqrt|frac)(?![A-Za-z]))"  # 4\pi, 5\sqrt{2}
    + rf"(?:[\d\s.,+/()-]|\\(?:pi|cdot|times)(?![A-Za-z])|(?:\\sqrt|\\frac\s*{_GROUP})\s*{_GROUP})+"
    + r"|\d{1,2}:[0-5]\d"
    + r"|[+-]?\s*(?:\d[\d,]*(?:[ ]\d{3})*(?:\.\d+)?|\.\d+)(?:[ ]?\d+/\d+|/\d+)?|[+-]?\d*\s*\\frac\{[^{}]*\}\{[^{}]*\}"
)
_POWER = r"\s*\^\s*\{?-?[123]\}?"
UNIT_TEXT = r"\\(?:text|textrm|mathrm|mbox|operatorname)\s*\{([^{}]*)\}"
_QUANTITY = re.compile(
    rf"""(?P<number>{_NUMBER}) (?P<unit>
        \s* (?: \\?% | \^\s*\{{?\s*\\circ\s*\}}?\s*(?:[CF]\b)? | \\degree | [€£¥₹¢] )
      | (?: \s* {UNIT_TEXT.replace("(", "(?:").replace("(?:?:", "(?:")} (?:{_POWER})? \s* [/·]? )+
      | \s+ (?:(?:[A-Za-z]{{3,}}|cm|mm|dm|km|kg|mg|ml|mL|ft|in|mi|hr|lb|oz|am|pm|of|[mghsLl])\b)
            (?:[\s/.'-]+ [A-Za-z]+ | {_POWER})*
      | (?:cm|mm|km|kg|mg|ml|mL|ft|lbs?|oz|mph|km/h|m/s|hrs?|mins?|secs?|years?|days?|hours?) (?:{_POWER})?
    )""",
    re.VERBOSE,
)
_PERCENT_MORE = (
    r"(?:%|per ?cent)[\s}]*(?:\\text\s*\{\s*)?(?:more|less|fewer|(?:high|low|great|small|larg|bigg|long|short)er)"
)
NO_UNIT = re.compile(  # words that make another number of it, or no number
    r"(?:and|or|to|through|plus|minus|times [a-z]|over|divided|mod|base|sqrt|sin|cos|tan|log|exp|pi|if|is|was|out|with|"
    r"remainder|less|fewer|more than|than|squared|cubed|doubled|halved|factorial|inf|infinity|half|halves|score|"
    r"(?:hundred|thousand|[a-z]*illion|dozen|third|quarter|fourth|fifth|sixth|seventh|eighth|ninth|tenth|hundredth|"
    r"thousandth|[a-z]*illionth)s?|[bmt]n|ml[nd]|tr[nl]|lakhs?|crores?|gross|"
    rf"{_PERCENT_MORE}|(?-i:[eikMBnxyz]))\b|[!+]",
    re.IGNORECASE,
)
_SILENT = re.compile(
    rf"{_PERCENT_MORE}\b|" + r"\\[lc]?dots|\.\.\.|…|\d\s*\\text\s*\{(?!\s*(?:and|or|,)\s*\})[^{}]*\}\s*\d"
)
_LOOSE_SPACE = re.compile(r"(?<!\d) | (?!\d)|(?<!\d{4}) (?=\d{3}(?![\d/]))")  # but of "1 2"; that of "1 000" is loose
_APART = re.compile(r"(?<![_^])\d (?!\d+/\d|\d{3}(?!\d))\d")  # "1 2", neither a mixed number nor thousands
_CLOCK = re.compile(r"\d{1,2}:[0-5]\d")  # 12:30 is no fraction; a ratio, 3:4, is one
RATIO = re.compile(r"[^\s:=|]+(?:\s?:\s?[^\s:=|]+){2,}")  # 1:2:3
DATE = re.compile(r"([12]\d{3})-(0\d|1[0-2])-([0-3]\d)")
PLAIN = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+|\d+/0*[1-9]\d*|\\frac\{\d+\}\{0*[1-9]\d*\})|[A-Za-z]+")
_BASED = re.compile(  # 1011_2, a numeral with its base
    r"\(?(?:\\text\s*\{)?(\d[\dA-F]*)\}?\)?\s*"
    r"(?:_\s*\{?\s*(?:\\text\s*\{\s*base\s*\})?|(?:\\text\s*\{|\()?\s*base\s*\}?)\s*(\d+)[})]*"
)
_MODULO = re.compile(  # n \equiv 3 \pmod 7
    rf"(?:({VARIABLE})\s*(?:\\equiv|=)\s*)?([^=(]+?)[\s(]*(?:\\(?:text|mathrm|operatorname)\s*\{{[\s(]*)?"
    r"\\?[bp]?mod(?![A-Za-z])[\s{}]*(\w+)[\s{})]*"
)
_LETTER = r"(?:\\text\s*\{\s*)?\(?[A-H]\)?\}?"
_AND = r"(?:[,;&]|\\text\s*\{\s*(?:and|or)\s*\}|\b(?:and|or)\b)"
_LISTED = re.compile(  # "6, 7, and 8" is 6,7,8
    r"(?<=[\d)}\]])[\s,]{0,4}(?:\\text\s*\{\s*(?:and|or)\s*\}|\b(?:and|or)\b)\s*(?=[\d(\\{\[.+-])"
)
_LETTERS = re.compile(rf"{_LETTER}(?:(?:\s*{_AND})+\s*{_LETTER})+")  # A, C
_UNIT_NAMES = {
    name: unit
    for unit, names in {
        "%": "percent percentage pct",
        "°": "degree degrees",
        "mm": "mm millimeter millimetre",
        "cm": "cm centimeter centimetre", "dm": "dm decimeter decimetre",
        "m": "m meter metre", "km": "km kilometer kilometre", "in": "in inch inches",
        "ft": "ft foot feet",
        "yd": "yd yard", "mi": "mi mile", "mg": "mg milligram", "g": "g gram", "kg": "kg kilogram",
        "pound": "lb lbs pound £ gbp",
        "ml": "ml milliliter millilitre", "l": "l liter litre", "s": "s sec second", "min": "min minute",
        "h": "h hr hour", "day": "day", "week": "week", "month": "month", "year": "yr year",
        "cent": "¢ cent", "dollar": "$ usd dollar", "euro": "€ eur euro", "yen": "¥ jpy yen", "rupee": "₹ inr rupee",
        "°c": "°c °celsius celsius", "°f": "°f °fahrenheit fahrenheit",
        "newton": "n newton", "joule": "j joule", "kj": "kj kilojoule", "watt": "w watt", "kw": "kw kilowatt",
        "volt": "v volt", "hz": "hz hertz", "pa": "pa pascal", "kpa": "kpa kilopascal", "ton": "t ton tonne",
        "oz": "oz ounce", "am": "am", "pm": "pm",
        "january": "january jan", "february": "february feb", "march": "march", "april": "april apr", "may": "may",
        "june": "june jun", "july": "july jul", "august": "august aug", "september": "september sept",
        "october": "october oct", "november": "november nov", "december": "december dec",
    }.items()
    for one in names.split()
    for name in (one, f"{one}s")
}  # fmt: skip


def read_answer(raw: str) -> Answer:
    r"""Split an answer into variable, value and unit, freed from the ways of writing that do not change it.

    Examples:
        >>> read_answer(r"$x = \dfrac12$"), read_answer("1,000 apples.").value, read_answer(r"\text{(C)}").value
        (Answer(variable='x', value='\\frac{1}{2}', unit=''), '1000', 'C')
    """
    text = _cleaned(raw)
    return _in_parts(text[sums.end() :] if (sums := _SUM.match(text)) else text)  # "6*7 = 42" is 42


def read_whole(raw: str) -> Answer:
    """Split a text that is all answer; unlike ``read_answer`` it takes ``6*7 = 42`` for an equation, not for 42."""
    return _in_parts(_cleaned(raw))


def _in_parts(text: str) -> Answer:
    if len(text) > LONGEST:
        return Answer("", text, "")
    if _LETTERS.fullmatch(text):  # of a choice: AC
        return Answer("", "".join(sorted(re.findall("[A-H]", text))), "")
    if "mod" in text and (modulo := _MODULO.fullmatch(text)):
        variable, value, modulus = modulo.groups("")
        whole = re.fullmatch(r"-?\d+", value) and re.fullmatch("[1-9][0-9]*", modulus)
        return Answer(variable, str(int(value) % int(modulus)) if whole else value, f"mod {modulus}")
    variable, value = "", text
    if choice := _CHOICE.fullmatch(text):
        variable, value = f"({choice[1] or choice[2]})", choice[3]
    elif assigns := _ASSIGNS.fullmatch(text):
        variable, value = assigns[2].strip(), assigns[1].strip()
    elif assigned := _ASSIGNED.fullmatch(text):
        variable, value = assigned[1], assigned[2].strip()
    value = re.split(r"\s*(?:\\approx|\\simeq|≈|≃)(?![A-Za-z])", value, maxsplit=1)[0] or value
    quantity = _QUANTITY.fullmatch(value)
    unit = ""
    if based := _BASED.fullmatch(value):
        value, unit = based[1], f"base {based[2]}"
    elif quantity and not NO_UNIT.match(re.sub(UNIT_TEXT, r"\1", quantity["unit"]).strip()):
        value, unit = quantity["number"].strip(), _unit_name(quantity["unit"])
    if scientific := re.fullmatch(_SCIENTIFIC, value):
        sign, short, long, exponent = scientific.groups()
        value = _plain_decimal(format(Decimal(f"{sign}{short or long or 1}e{exponent}"), "f"))
    if grouped := _GROUPED.fullmatch(value):
        value = grouped[1] + re.sub(r"[, _']", "", grouped[2]) + (grouped[4] or "")
    return Answer(variable, value, unit)


def differ(one: Answer, other: Answer) -> bool:
    """Tell whether an answer differs from another, the reference, in what math-verify does not look at.

    These are different units that are known, cm and m (squared or not is no matter), or different bases or moduli; a
    pair, (3,4), for a list or set of numbers, 3,4 (but not a list for a pair: 3,4 is read as one); decimals that
    do not agree to six places, or to six digits below 1; three dots, words between numbers (5 feet 3) or "percent more"
    in only one; digits with a space between them (1 2); a time, a date or a ratio of three parts and something else; a
    list that names a value twice, but for sets in braces.
    """
    units = {one.unit.partition("^")[0], other.unit.partition("^")[0]}
    known = set(_UNIT_NAMES.values()) - {"%", "°"}
    if len(units) == 2 and all(unit in known or unit.startswith(("base ", "mod ")) for unit in units):
        return True
    if (alike := decimals_agree(one, other)) is not None:
        return not alike
    if bool(_SILENT.search(one.value)) != bool(_SILENT.search(other.value)):
        return True
    if _APART.search(one.value) or _APART.search(other.value):  # math-verify adds them up
        return True
    if (":" in one.value) != (":" in other.value) and any(_CLOCK.fullmatch(each.value) for each in (one, other)):
        return True
    if any(bool(form.fullmatch(one.value)) != bool(form.fullmatch(other.value)) for form in (RATIO, DATE)):
        return True
    several = len(_elements(re.sub(r"\\[{}]", "", other.value))) > 1 and "=" not in other.value
    if several and len(_elements(one.value)) == 1 and re.fullmatch(r"[(\[].*[)\]]", one.value):
        return True
    if r"\{" in one.value + other.value:
        return False
    lists = [_elements(one.value), _elements(other.value)]
    return any(len(set(each)) < len(each) for each in lists) and lists[0] != lists[1]


def decimals_agree(one: Answer, other: Answer) -> bool | None:
    """Tell whether two decimals agree to six places, or to six digits below 1; None for others, and for per cents."""
    if not (_DECIMAL.fullmatch(one.key) and _DECIMAL.fullmatch(other.key)):
        return None
    if one.unit != other.unit and "%" in (one.unit, other.unit):
        return None
    a, b = Decimal(one.key), Decimal(other.key)
    return abs(a - b) * 10**6 <= min(1, max(abs(a), abs(b)))


def _elements(value: str) -> list[str]:
    """The parts of a bare list, ``1, 1, 2`` or ``(1,2), (3,4)``, as they are compared, sorted."""
    flat = re.sub(r"[(\[{][^()\[\]{}]*[)\]}]", lambda group: group[0].replace(",", ";"), value[:LONGEST])
    parts = re.split(r",|\\text\s*\{\s*(?:and|or)\s*\}|\b(?:and|or)\b", flat)
    return sorted(_in_parts(part.strip()).key for part in parts if part.strip())


def is_formula(raw: str) -> bool:
    """Whether an announcement gives a number, a formula or a choice, not words."""
    answer = read_answer(raw)
    bare = re.sub(r"\\text\s*\{[^{}]*\}|\\[A-Za-z]+", " ", answer.value)
    return bool(answer.value) and not any(word.lower() not in _FUNCTIONS for word in _WORD.findall(bare))


def plain_characters(text: str) -> str:
    """Replace look-alikes of digits, minus and space, and Unicode's mathematical signs by their LaTeX."""
    return text.translate(_CHARACTERS)


def same_answer(one: Answer, other: Answer) -> bool:
    """Tell whether two answers are the same text; a variable or a unit that only one of them names does not matter.

    ``(B) Paris`` is the same as ``B`` and as ``Paris``.
    """
    if one.variable == f"({other.value})" or other.variable == f"({one.value})":
        return True
    return (
        one.key == other.key
        and (one.unit == other.unit or not one.unit or not other.unit)
        and (one.variable == other.variable or not one.variable or not other.variable)
    )


def _cleaned(raw: str) -> str:
    if len(raw) > LONGEST:
        return raw.strip()
    text = plain_characters(raw)
    for pattern, replacement in _SPELLINGS:
        text = pattern.sub(replacement, text)
    while True:
        inner = _unwrapped(text.strip())
        if inner == text:
            return text
        text = inner


def _unwrapped(text: str) -> str:
    """The text without its outermost wrapper: a full stop, a ``\\text{}`` around it all, the brackets of ``(18)``."""
    text = re.sub(r"(?<![.])(?:[.,;:]|\\\\)+$", "", text)
    wrapper = _WRAPPER.match(text)
    if wrapper and closes(text, wrapper.end()) == len(text):
        return text[wrapper.end() : -1].strip()
    if text.startswith("{") and "," not in text and closes(text, 1) == len(text):
        return text[1:-1]
    bracketed = re.fullmatch(r"\(\s*([^\s(),;\[\]|]+)\s*\)", text)  # (C), (18)
    return bracketed[1] if bracketed else text


def closes(text: str, start: int) -> int:
    """Where the brace that opens before ``start`` has been closed; 0 if nowhere."""
    depth = 1
    for brace in re.compile(r"\\.|[{}]", re.DOTALL).finditer(text, start):
        depth += {"{": 1, "}": -1}.get(brace.group(), 0)
        if depth == 0:
            return brace.end()
    return 0


def _unit_name(unit: str) -> str:
    """A unit in lower case, without LaTeX."""
    name = re.sub(r"[{}\\\s]+", " ", re.sub(UNIT_TEXT, r"\1", unit)).strip(" .").lower()
    name = re.sub(r"\^ ?circ ?|^degrees? (?=c\b|f\b|celsius|fahrenheit)", "°", name)
    base, power, rest = name.partition("^")
    return _UNIT_NAMES.get(base.strip(), base) + power + rest


def _plain_decimal(text: str) -> str:
    """A decimal number without plus sign, leading or trailing zeros."""
    whole, _, part = text.lstrip("+-").partition(".")
    whole, part = whole.lstrip("0") or "0", part.rstrip("0")
    plain = f"{whole}.{part}" if part else whole
    return f"-{plain}" if text.startswith("-") and plain != "0" else plain
