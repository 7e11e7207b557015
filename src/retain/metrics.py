"""How well a written answer agrees with the accepted ones: one function a metric, each in [0, 1].

A metric takes the model's text and the references and returns the best score over the references.
"""

from __future__ import annotations

import functools
import math
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from decimal import Decimal, localcontext
from fractions import Fraction
from numbers import Real

from retain.extending import given, is_import_path, named
from retain.types import InputError

ROUGE_BETA = 1.2
NUMBER = r"[0-9]+(?:,[0-9]{3}(?![0-9]))*(?:\.[0-9]+)?(?:[eE][+-]?[0-9]{1,6})?"
DECIMAL = re.compile(r"([+-]?)((?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+)(e[+-]?[0-9]{1,6})?")
LATEX_FRACTION = re.compile(r"\\[dt]?frac *(?:\{ *(-?[0-9]+) *\}|([0-9])) *(?:\{ *(-?[0-9]+) *\}|([0-9]))")
# Longer terms are left as text: they are not answers, and exact arithmetic on them is slow.
FRACTION = re.compile(r"([+-]?) *([+-]?[0-9]{1,30}) */ *([+-]?[0-9]{1,30})")
LAST_NUMBER = re.compile(rf"(?<![\w.)])-?\$?{NUMBER}(?:/[0-9]+)?|{NUMBER}|\.[0-9]+")
ANSWER_IS = re.compile(r"\banswer is\b[ \t:]*", re.IGNORECASE)
WORKED = re.compile(r"####|\\boxed\{|\banswer is\b", re.IGNORECASE)
NUMBER_WITH_UNIT = re.compile(rf"(-?\$?{NUMBER})(?: +[^\W\d_]+)+")
# These carry meaning at the end of an answer: 50%, C#, \pi, x/, {1, 2}.
KEPT_AT_ENDS = "%‰#&@\\/{}"


def _boxed(text: str) -> tuple[int, int, int] | None:
    r"""(start, first, end) of the last `\boxed{...}`, braces nested: its content is text[first:end]."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    first, depth = start + len("\\boxed{"), 1
    for index in range(first, len(text)):
        depth += {"{": 1, "}": -1}.get(text[index], 0)
        if depth == 0:
            return start, first, index
    return None


def _canonical_decimal(text: str) -> str | None:
    """1,000 and 1000.0 and 1e3 -> 1000; exact at any size, without a power of ten written out."""
    found = DECIMAL.fullmatch(text)
    if not found:
        return None
    sign, digits, exponent = Decimal(text.replace(",", "")).as_tuple()
    written = "".join(map(str, digits)).lstrip("0")
    shorter = written.rstrip("0")
    if not shorter:
        return "0"
    power = exponent + len(written) - len(shorter)
    if abs(power) > 100:
        return f"{'-' * sign}{shorter}e{power}"
    if power >= 0:
        return "-" * sign + shorter + "0" * power
    padded = shorter.rjust(1 - power, "0")
    return f"{'-' * sign}{padded[:power]}.{padded[power:]}"


def _canonical_fraction(text: str) -> str | None:
    """1/2 -> 0.5 and 2/6 -> 1/3 (what has no finite decimal stays a reduced fraction)."""
    found = FRACTION.fullmatch(text)
    if not found or not int(found[3]):
        return None
    value = Fraction(int(found[2]), int(found[3])) * (-1 if found[1] == "-" else 1)
    rest = value.denominator
    for prime in (2, 5):
        while rest % prime == 0:
            rest //= prime
    if rest != 1:
        return str(value)
    with localcontext() as context:
        context.prec = 200
        return _canonical_decimal(format(Decimal(value.numerator) / Decimal(value.denominator), "f"))


def _number(text: str) -> str | None:
    text = LATEX_FRACTION.sub(lambda m: f"{m[1] or m[2]}/{m[3] or m[4]}", text)
    return _canonical_decimal(text) or _canonical_fraction(text)


def _strip_ends(text: str) -> str:
    """Drop punctuation at the ends; a minus, a decimal point and the brackets of a tuple stay."""
    kept = KEPT_AT_ENDS + ("()[]" if "," in text.strip(",") else "")

    def drops(character: str) -> bool:
        return character.isspace() or (unicodedata.category(character)[0] == "P" and character not in kept)

    start, end = 0, len(text)
    while end > start and drops(text[end - 1]):
        end -= 1
    while start < end and drops(text[start]) and not re.match(r"-[^\s-]|\.[0-9]", text[start : start + 2]):
        start += 1
    return text[start:end]


def normalize(text: str) -> str:
    r"""One spelling for answers that say the same (MSSR App. D, Norm of Eq. 35).

    Unicode NFKC, case, whitespace, punctuation at the ends, "$" and `\boxed{}` unwrapped, numbers
    canonical: 1,000 = 1000.0 = 1e3 and 1/2 = 0.5 = `\frac{1}{2}`. A percent sign is left alone.
    A text of nothing but punctuation stays as it is.
    """
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    text = "".join(" " if unicodedata.category(c) == "Cc" else c for c in text)
    text = text.replace("\N{MINUS SIGN}", "-").replace("\N{FRACTION SLASH}", "/")
    while box := _boxed(text):
        text = text[: box[0]] + text[box[1] : box[2]] + text[box[2] + 1 :]
    text = " ".join(re.sub(r"\s*\\!\s*", "", text).replace("\\%", "%").split())
    bare = " ".join(text.replace("\\$", "").replace("$", "").split())
    stripped = _strip_ends(bare)
    return _number(bare) or _number(stripped) or stripped or text


def extract_answer(text: str) -> str:
    r"""The final answer in a worked solution.

    After the last "####", else in the last `\boxed{}`, else after the last "answer is", else the
    last number, else the whole text.
    """
    _, marker, tail = text.rpartition("####")
    if marker and tail.strip():
        return tail.strip().splitlines()[0]
    if box := _boxed(text):
        return text[box[1] : box[2]]
    said = ANSWER_IS.split(text)[-1].strip() if ANSWER_IS.search(text) else ""
    if said:
        sentence = re.split(r"[.!?]\s|\n", said, maxsplit=1)[0].rstrip(".")
        counted = NUMBER_WITH_UNIT.fullmatch(sentence)
        return counted[1] if counted else sentence
    fractions = LATEX_FRACTION.sub(lambda m: f"{m[1] or m[2]}/{m[3] or m[4]}", text)
    numbers = LAST_NUMBER.findall(unicodedata.normalize("NFKC", fractions))
    return numbers[-1] if numbers else text


def exact_match(prediction: str, references: Sequence[str]) -> float:
    """EM = 1[Norm(ŷ) = Norm(y)] (MSSR Eq. 35), best over the references."""
    written = normalize(prediction)
    return float(any(written == normalize(reference) for reference in references))


def final_answer(prediction: str, references: Sequence[str]) -> float:
    """Exact match of the final answers; a worked reference (with a marker) is extracted as well."""
    written = normalize(extract_answer(prediction))
    targets = (extract_answer(r) if WORKED.search(r) else r for r in references)
    return float(any(written == normalize(target) for target in targets))


def _squad_normalize(text: str) -> str:
    """SQuAD's official normalization: lower case, no punctuation, no articles, single spaces."""
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def squad_em(prediction: str, references: Sequence[str]) -> float:
    """SQuAD exact match, best over the references."""
    written = _squad_normalize(prediction)
    return float(any(written == _squad_normalize(reference) for reference in references))


def squad_f1(prediction: str, references: Sequence[str]) -> float:
    """SQuAD token F1 = 2PR/(P + R), best over the references; two empty texts agree."""

    def score(written: list[str], target: list[str]) -> float:
        if not written or not target:
            return float(written == target)
        common = sum((Counter(written) & Counter(target)).values())
        return 2 * common / (len(written) + len(target))

    written = _squad_normalize(prediction).split()
    return max((score(written, _squad_normalize(r).split()) for r in references), default=0.0)


def longest_common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence (bit-parallel: Hyyrö 2004), in O(n·m/64) steps."""
    places: dict[str, int] = {}
    for index, token in enumerate(first):
        places[token] = places.get(token, 0) | 1 << index
    row = 0
    for token in second:
        union = row | places.get(token, 0)
        row = union & ~(union - (row << 1 | 1))
    return row.bit_count()


def rouge_l(prediction: str, references: Sequence[str]) -> float:
    """ROUGE-L = (1 + β²)PR / (R + β²P), P = LCS/|G|, R = LCS/|R|, β 1.2 (MSSR Eq. 33, 34)."""

    def score(written: list[str], target: list[str]) -> float:
        common = longest_common_subsequence(written, target)
        if not common:
            return float(written == target)
        precision, recall = common / len(written), common / len(target)
        return (1 + ROUGE_BETA**2) * precision * recall / (recall + ROUGE_BETA**2 * precision)

    written = re.findall(r"\w+", prediction.lower())
    return max((score(written, re.findall(r"\w+", r.lower())) for r in references), default=0.0)


def bleu(prediction: str, references: Sequence[str]) -> float:
    """Sentence BLEU-4 of sacreBLEU with exponential smoothing (MSSR Eq. 32), over 100."""
    import sacrebleu

    if not references:
        return 0.0
    return min(1.0, sacrebleu.sentence_bleu(prediction, list(references), smooth_method="exp").score / 100)


Metric = Callable[[str, Sequence[str]], float]
METRICS: dict[str, Metric] = {
    "exact_match": exact_match,
    "final_answer": final_answer,
    "squad_f1": squad_f1,
    "squad_em": squad_em,
    "rouge_l": rouge_l,
    "bleu": bleu,
}


def metric(function: Metric) -> Metric:
    """Decorator: a function of your own of (prediction, references) to [0, 1], which `metric` of a task may name by its
    import path, my_package.module:my_metric."""
    METRICS[given(function)] = _checked(function)
    return function


def given_metric(function: Metric) -> str:
    """The import path of a function that a program hands over as a metric."""
    metric(function)
    return given(function)


def metric_name(name: str) -> str:
    """A metric's name, once it is sure that `METRICS` has it. Raises InputError for an import path that leads to no
    function with the decorator `metric`; another name is for the caller to look up."""
    if is_import_path(name) and name not in METRICS:
        named(name)
        if name not in METRICS:
            raise InputError(
                f"{name!r} does not have the decorator retain.metrics.metric; only such a function is allowed"
            )
    return name


def _checked(function: Metric) -> Metric:
    """The function, whose errors and scores outside [0, 1] are InputErrors."""
    where = f"metric {function.__module__}:{function.__qualname__}"

    @functools.wraps(function)
    def scored(prediction: str, references: Sequence[str]) -> float:
        try:
            score = function(prediction, references)
        except Exception as error:  # whatever the user's function raises
            raise InputError(f"{where}: {type(error).__name__} ({error}) for the answer {prediction[:80]!r}") from error
        if not isinstance(score, Real) or not math.isfinite(score) or not 0 <= score <= 1:
            raise InputError(f"{where}: {score!r} for the answer {prediction[:80]!r}; a score is a number from 0 to 1")
        return float(score)

    return scored
