from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path

from trarctl.data.metrics import commonest_answer, question_prior
from trarctl.data.prepared import open_prepared


def test_guesses_equal_a_plain_count(golden_data: dict[str, Path]) -> None:
    data = open_prepared(golden_data["clevr"])
    train, val = data.split("train"), data.split("val")
    truth = train.truth()
    answers = [truth.strings[code] for code in truth.codes[:, 0]]
    commonest, times = Counter(answers).most_common(1)[0]
    guess = commonest_answer(data, val)
    assert len(guess) == len(val)
    assert Counter(answers)[guess[0]] == times
    by_question: dict[bytes, Counter[str]] = defaultdict(Counter)
    for tokens, answer in zip(train.question_tokens, answers, strict=True):
        by_question[tokens.tobytes()][answer] += 1
    for tokens, answer in zip(val.question_tokens, question_prior(data, val), strict=True):
        known = by_question.get(tokens.tobytes())
        if known is None:
            assert answer == guess[0]
        else:
            assert known[answer] == max(known.values())
    assert commonest in data.answers
    prior = question_prior(data, train)
    assert sum(map(str.__eq__, prior, answers)) >= times
