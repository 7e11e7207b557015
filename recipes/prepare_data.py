"""Write the data of the full-size recipes as JSONL files that `retain` reads: data/TASK/{train,test}.jsonl.

    python recipes/prepare_data.py paper3 paper11 ssr-qa     # from the Hugging Face Hub
    python recipes/prepare_data.py olora                     # from the authors' repository on GitHub
    python recipes/prepare_data.py trace --source FOLDER     # from the archive of the authors of TRACE, unpacked

The conversion of rows is tested on rows made up for it; the downloads were not run here, where there is no network.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
import urllib.request
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

Row = dict[str, Any]
Convert = Callable[[Row, list[str]], Row | None]
HELD_OUT = 1000  # test rows where a data set has none of its own
LISTED = 20
PARQUET = "refs/convert/parquet"  # the Hub's own copy of data sets that are a script


class Source(NamedTuple):
    """A data set of the Hub: its name, its configurations, its test split (None: held out) and what a row becomes."""

    name: str
    convert: Convert
    test: str | None = "test"
    configs: tuple[str | None, ...] = (None,)
    revision: str | None = None
    folder: str | None = None


def alpaca(instruction: str, text: str, answer: str, **more: Any) -> Row:
    """A row with an instruction."""
    return {"instruction": instruction, "input": text, "output": answer, **more}


def label(question: str, column: str = "text", answer: str = "label", **names: str) -> Convert:
    """Text with a label; `names` replaces labels, and the instruction lists them where they are not too many."""

    def convert(row: Row, labels: list[str]) -> Row:
        choices = [names.get(one, one.replace("_", " ")) for one in labels]
        right = names.get(row[answer], row[answer].replace("_", " "))
        asked = f"{question} Answer with one of: {', '.join(choices)}." if len(choices) <= LISTED else question
        return alpaca(asked, row[column], right, choices=choices)

    return convert


def options(question: str, texts: list[str], right: int) -> Row:
    """Multiple choice: the options stand below the question as `A. text`, and so does the answer."""
    choices = [f"{chr(ord('A') + place)}. {text}" for place, text in enumerate(texts)]
    text = "\n".join([question, *choices])
    return alpaca("Answer the question with the right option.", text, choices[right], choices=choices)


def sciq(row: Row, _: list[str]) -> Row:
    """The options in an order that depends on the question alone."""
    texts = [row["correct_answer"], row["distractor1"], row["distractor2"], row["distractor3"]]
    order = random.Random(row["question"]).sample(range(4), 4)
    return options(row["question"], [texts[place] for place in order], order.index(0))


def arc(row: Row, _: list[str]) -> Row:
    """Three to five options, their keys letters or numbers."""
    return options(row["question"], row["choices"]["text"], row["choices"]["label"].index(row["answerKey"]))


def mmlu(row: Row, _: list[str]) -> Row:
    """The answer is a class, A to D."""
    return options(row["question"], row["choices"], "ABCD".index(row["answer"]))


def boolq(row: Row, _: list[str]) -> Row:
    """Yes or no."""
    text = f"{row['passage']}\nQuestion: {row['question']}"
    return alpaca(
        "Answer the question about the passage.", text, "yes" if row["answer"] else "no", choices=["yes", "no"]
    )


def reading(row: Row, _: list[str]) -> Row | None:
    """A short answer out of a passage, which comes last, as long prompts lose their end; SQuAD nests its answers."""
    answers = row["answers"]["text"] if isinstance(row["answers"], dict) else row["answers"]
    answers = list(dict.fromkeys(answer for answer in answers if answer.strip()))
    if not answers:
        return None
    text = f"Question: {row['question']}\n{row['context']}"
    return alpaca("Answer the question with a few words of the passage.", text, answers[0], references=answers)


def gsm8k(row: Row, _: list[str]) -> Row:
    """The worked solution without the marks of a calculator; the final answer follows `####`."""
    return alpaca("Solve the problem step by step.", row["question"], re.sub(r"<<[^>]*>>", "", row["answer"]))


def math(level: int | None = None) -> Convert:
    """Competition problems of one level, or all; the final answer stands in a box."""

    def convert(row: Row, _: list[str]) -> Row | None:
        if level is not None and row["level"] != f"Level {level}":
            return None
        return alpaca("Solve the problem and put the final answer in \\boxed{}.", row["problem"], row["solution"])

    return convert


def summary(text: str, short: str) -> Convert:
    """A text and its summary; rows that lack one are left out."""

    def convert(row: Row, _: list[str]) -> Row | None:
        full = row[text] and row[short] and row[text].strip() and row[short].strip()
        return alpaca("Summarize the text.", row[text], row[short]) if full else None

    return convert


def as_it_is(row: Row, _: list[str]) -> Row | None:
    """A row that has an instruction already."""
    return alpaca(row["instruction"], row["input"], row["output"]) if row["output"].strip() else None


SUBJECTS = (
    "algebra", "counting_and_probability", "geometry", "intermediate_algebra", "number_theory", "prealgebra",
    "precalculus",
)  # fmt: skip
NEWS = label("What is the topic of the news article?", **{"Sci/Tech": "Science or Technology"})
HUB: dict[str, Source] = {
    "alpaca_gpt4": Source("vicgalle/alpaca-gpt4", as_it_is, None),
    "ag_news": Source("fancyzhx/ag_news", NEWS),
    "squad": Source("rajpurkar/squad", reading, "validation"),
    "sciq": Source("allenai/sciq", sciq),
    "boolq": Source("google/boolq", boolq, "validation"),
    "arc_challenge": Source("allenai/ai2_arc", arc, configs=("ARC-Challenge",)),
    "gsm8k": Source("openai/gsm8k", gsm8k, configs=("main",)),
    "math": Source("EleutherAI/hendrycks_math", math(), configs=SUBJECTS),
    **{f"math_l{k}": Source("EleutherAI/hendrycks_math", math(k), configs=SUBJECTS) for k in range(1, 6)},
    "mmlu": Source("cais/mmlu", mmlu, configs=("all",)),
    "sst2": Source("stanfordnlp/sst2", label("What is the sentiment of the sentence?", "sentence"), "validation"),
    "banking77": Source("mteb/banking77", label("What is the intent of the query?", answer="label_text")),
    "emotion": Source("dair-ai/emotion", label("What emotion does the text express?"), configs=("split",)),
    "sms_spam": Source("ucirvine/sms_spam", label("Is the message spam?", "sms"), None),
    "newsqa": Source("lucadiliello/newsqa", reading, "validation"),
    "natural_questions": Source("lucadiliello/naturalquestionsshortqa", reading, "validation"),
    "triviaqa": Source("lucadiliello/triviaqa", reading, "validation"),
    "hotpotqa": Source("lucadiliello/hotpotqa", reading, "validation"),
    "cnn_dailymail": Source("abisee/cnn_dailymail", summary("article", "highlights"), configs=("3.0.0",)),
    "xsum": Source("EdinburghNLP/xsum", summary("document", "summary")),
    "reddit_tifu": Source("ctr4si/reddit_tifu", summary("documents", "tldr"), None, revision=PARQUET, folder="long"),
    "arxiv": Source("ccdv/arxiv-summarization", summary("article", "abstract"), configs=("document",)),
    "pubmed": Source("ccdv/pubmed-summarization", summary("article", "abstract"), configs=("document",)),
}
SETS: dict[str, tuple[str, ...]] = {
    "paper3": ("alpaca_gpt4", "gsm8k", "math", "mmlu"),
    "paper11": (
        "ag_news", "squad", "sciq", "boolq", "arc_challenge", "gsm8k",
        "math_l1", "math_l2", "math_l3", "math_l4", "math_l5", "mmlu",
    ),
    "ssr-classification": ("sst2", "ag_news", "banking77", "emotion", "sms_spam"),
    "ssr-qa": ("squad", "newsqa", "natural_questions", "triviaqa", "hotpotqa"),
    "ssr-summarization": ("cnn_dailymail", "xsum", "reddit_tifu", "arxiv", "pubmed"),
}  # fmt: skip

OLORA_FILES = "https://raw.githubusercontent.com/cmnfriend/O-LoRA/main/CL_Benchmark"
SENTIMENT, TOPIC = "What is the sentiment of the text?", "What is the topic of the text?"
INFERENCE = "What is the logical relation between sentence 1 and sentence 2?"
OLORA = {
    "yelp": ("SC/yelp", SENTIMENT),
    "amazon": ("SC/amazon", SENTIMENT),
    "imdb": ("SC/IMDB", SENTIMENT),
    "sst2": ("SC/SST-2", SENTIMENT),
    "mnli": ("NLI/MNLI", INFERENCE),
    "cb": ("NLI/CB", INFERENCE),
    "rte": ("NLI/RTE", INFERENCE),
    "copa": ("COPA/COPA", "Which of A and B fits the premise?"),
    "qqp": ("QQP/QQP", "Do the two questions mean the same?"),
    "dbpedia": ("TC/dbpedia", TOPIC),
    "agnews": ("TC/agnews", TOPIC),
    "yahoo": ("TC/yahoo", TOPIC),
    "multirc": ("MultiRC/MultiRC", "Is the answer to the question right, given the paragraph?"),
    "boolqa": ("BoolQA/BoolQA", "Does the passage say that the statement is true?"),
    "wic": ("WiC/WiC", "Does the word mean the same in both sentences?"),
}
TRACE = {
    "c_stance": "C-STANCE", "fomc": "FOMC", "meetingbank": "MeetingBank", "py150": "Py150", "scienceqa": "ScienceQA",
    "numglue_cm": "NumGLUE-cm", "numglue_ds": "NumGLUE-ds", "20minuten": "20Minuten",
}  # fmt: skip


def from_hub(source: Source) -> dict[str, list[Row]]:
    """The rows of a data set of the Hub in both splits."""
    found = {"train": list(hub_rows(source, "train"))}
    if source.test:
        return {**found, "test": list(hub_rows(source, source.test))}
    return hold_out(found["train"])


def hub_rows(source: Source, split: str) -> Iterable[Row]:
    """One split, with the names of classes instead of their numbers."""
    import datasets

    for config in source.configs:
        table = datasets.load_dataset(
            source.name, config, split=split, revision=source.revision, data_dir=source.folder
        )
        names = {column: kind.names for column, kind in table.features.items() if hasattr(kind, "names")}
        yield from converted(table, source.convert, names)


def converted(rows: Iterable[Row], convert: Convert, names: dict[str, list[str]]) -> Iterable[Row]:
    """Rows as `retain` reads them. names: by column those of its classes, which stand as numbers in the rows."""
    rows = [{**row, **{column: known[row[column]] for column, known in names.items()}} for row in rows]
    column = next((name for name in ("label", "label_text") if name in names), "label_text")
    texts = [row[column] for row in rows if isinstance(row.get(column), str)]
    labels = names.get(column) or sorted(set(texts))
    yield from filter(None, (convert(row, labels) for row in rows))


def from_olora(folder: str, question: str) -> dict[str, list[Row]]:
    """A task of O-LoRA's benchmark, with the very samples of its authors."""
    found = {}
    for split in ("train", "test"):
        with urllib.request.urlopen(f"{OLORA_FILES}/{folder}/{split}.json") as answer:
            found[split] = json.load(answer)
    labels = sorted({row["label"] for rows in found.values() for row in rows})
    convert = label(question, "sentence")
    return {split: [convert(row, labels) for row in rows] for split, rows in found.items()}


def from_trace(folder: Path, task: str) -> dict[str, list[Row]]:
    """A task of TRACE. ScienceQA's answer becomes its letter, which is all that the benchmark scores."""
    found = {split: json.loads((folder / f"{split}.json").read_text(encoding="utf-8")) for split in ("train", "test")}
    return {split: [prompted(row, task) for row in rows] for split, rows in found.items()}


def prompted(row: Row, task: str) -> Row:
    """A prompt and its answer."""
    letter = re.search(r"\b[A-E]\b", row["answer"]) if task == "scienceqa" else None
    return {"prompt": f"{row['prompt']}\n", "completion": letter[0] if letter else row["answer"]}


def hold_out(rows: list[Row]) -> dict[str, list[Row]]:
    """A thousand rows, at most a fifth, for the test."""
    rows = random.Random(42).sample(rows, len(rows))
    count = min(HELD_OUT, len(rows) // 5)
    return {"train": rows[count:], "test": rows[:count]}


def write(folder: Path, splits: dict[str, list[Row]]) -> None:
    """A file a split, one row a line."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in splits.items():
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{split}.jsonl").write_text(text, encoding="utf-8")
    print(f"{folder}: " + ", ".join(f"{len(rows):,} {split}" for split, rows in splits.items()))


def jobs(chosen: str, source: Path | None) -> dict[str, Callable[[], dict[str, list[Row]]]]:
    """What writes each task of a set, by the task's folder."""
    if chosen == "olora":
        return {f"olora/{name}": lambda at=at: from_olora(*at) for name, at in OLORA.items()}
    if chosen == "trace":
        if source is None:
            sys.exit(
                "trace: its data lie where its authors put them (github.com/BeyonderXX/TRACE); unpack, name --source"
            )
        return {f"trace/{name}": lambda at=source / at, name=name: from_trace(at, name) for name, at in TRACE.items()}
    return {name: lambda name=name: from_hub(HUB[name]) for name in SETS[chosen]}


def main() -> None:
    """Write what is not there yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="+", choices=[*SETS, "olora", "trace"], metavar="SET", help="%(choices)s")
    parser.add_argument("--source", type=Path, help="the unpacked archive of TRACE")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "data")
    given = parser.parse_args()
    for name, make in {name: make for one in given.sets for name, make in jobs(one, given.source).items()}.items():
        if (given.out / name / "test.jsonl").is_file():
            print(f"{given.out / name}: there already")
        else:
            write(given.out / name, make())


if __name__ == "__main__":
    main()
