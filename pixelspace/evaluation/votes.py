"""What judges answered on a preference page, and what follows from it.

A pair may have several judges. Raw votes and the majority of each pair are both counted: intervals and tests take what
they count as independent, which votes on the same pair are not, so that with several judges the majority is to be
cited. Everything is mirrored exactly when left and right are exchanged.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from pixelspace.config import from_data, read_json
from pixelspace.data.decode import shown
from pixelspace.errors import DataError, UserError
from pixelspace.evaluation.intervals import wilson
from pixelspace.evaluation.preference import Key, Pair
from pixelspace.evaluation.table import read_table

COLUMNS = ("pair", "choice", "milliseconds", "judge")

_SEEN = {"left": 1, "tie": 0, "right": -1}


@dataclass(frozen=True, slots=True)
class Vote:
    """`winner` of a pair is 1 for the left set, -1 for the right, 0 for neither; `seen` the same as on the screen."""

    pair: str
    judge: str
    winner: int
    seen: int
    milliseconds: int


@dataclass(frozen=True)
class Votes:
    """All votes on a page."""

    key: Key
    votes: tuple[Vote, ...]


@dataclass(frozen=True, slots=True)
class Tally:
    """How often left won against right, lost and tied."""

    wins: int
    losses: int
    ties: int

    @property
    def count(self) -> int:
        return self.wins + self.losses + self.ties

    @property
    def share(self) -> float:
        """Of wins, ties counted half."""
        return (self.wins + self.ties / 2) / self.count

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Of `share`, see `intervals.wilson`."""
        found = wilson(self.wins + self.ties / 2, self.count, confidence)
        return found.low, found.high

    @property
    def p_value(self) -> float:
        """Of the two-sided exact sign test, which leaves ties out."""
        return sign_test(self.wins, self.losses)


def sign_test(wins: int, losses: int) -> float:
    """Two-sided p-value of as uneven a split, or more, among fair coins; exact."""
    n, term, tail = wins + losses, 1, 0
    for k in range(min(wins, losses) + 1):
        tail += term
        term = term * (n - k) // (k + 1)
    return min(1.0, 2 * tail / 2**n)


def fleiss_kappa(counts: Sequence[Sequence[int]]) -> float | None:
    """Agreement beyond chance (Fleiss 1971) from the votes on each subject by category; 1 is perfect, 0 is chance.

    Subjects may differ in their number of votes, as when judges stop early; those with fewer than two say nothing and
    are left out. None where nothing can be said: no subject is left, or all votes are of one category.
    """
    rows = [row for row in counts if sum(row) >= 2]
    if not rows:
        return None
    totals = [sum(column) for column in zip(*rows, strict=True)]
    chance = sum((total / sum(totals)) ** 2 for total in totals)
    if max(totals) == sum(totals):
        return None
    agreed = [sum(n * (n - 1) for n in row) / (sum(row) * (sum(row) - 1)) for row in rows]
    return (sum(agreed) / len(agreed) - chance) / (1 - chance)


def _key(path: Path) -> Key:
    key = from_data(read_json(path), {"Key": Key, "Pair": Pair}, str(path))
    if not isinstance(key, Key):
        raise UserError(f"{path}: not the key of a preference page; give the key.json that was written with it")
    return key


def _vote(where: str, row: dict[str, str], key: Key, pairs: dict[str, Pair]) -> Vote:
    pair, choice, judge = row["pair"], row["choice"], row["judge"].strip()
    if pair not in pairs:
        page = pair.rpartition("-")[0]
        if page != key.page:
            raise DataError(f"{where}: pair {pair!r:.80} is of another page; the key is that of page {key.page}")
        raise DataError(f"{where}: no pair {pair!r:.80}; the page has {len(pairs)}")
    if choice not in _SEEN:
        raise DataError(f"{where}: choice {choice!r:.80}; expected {', '.join(_SEEN)}")
    milliseconds = row["milliseconds"]
    if not (milliseconds.isascii() and milliseconds.isdecimal() and len(milliseconds) < 16):
        raise DataError(f"{where}: milliseconds {milliseconds!r:.80}; expected a whole number from 0 on")
    if not judge:
        raise DataError(f"{where}: no judge; expected a name")
    seen = _SEEN[choice]
    return Vote(pairs[pair].name, judge, -seen if pairs[pair].swapped else seen, seen, int(milliseconds))


def read_votes(csvs: Sequence[Path], key: Path) -> Votes:
    """The votes in the files that judges sent back, with the sides set right by the page's key.json.

    Raises:
        DataError: by file and line: a pair that the page does not have or of another page, a choice, time or judge that
            cannot be, or a judge's second vote on a pair; or there is no vote at all.
        UserError: `key` is no key.
    """
    what = _key(Path(key))
    pairs = dict(zip(what.ids(), what.pairs, strict=True))
    votes: dict[tuple[str, str], Vote] = {}
    places: dict[tuple[str, str], str] = {}
    for path in map(Path, csvs):
        for where, row in read_table(path, COLUMNS):
            vote = _vote(where, row, what, pairs)
            who = row["pair"], vote.judge
            if who in votes:
                raise DataError(
                    f"{where}: {shown(vote.judge)} judged {row['pair']} already, at {places[who]}; "
                    "keep one file a judge, and one name for each"
                )
            votes[who], places[who] = vote, where
    if not votes:
        raise DataError(f"{', '.join(map(str, csvs)) or 'no files'}: no votes; give the CSV files of judges")
    return Votes(what, tuple(votes.values()))


def majority(winners: Sequence[int]) -> int:
    """What more than half of the votes on a pair say; 0, a tie, if nothing does."""
    [(winner, votes)] = Counter(winners).most_common(1)
    return winner if 2 * votes > len(winners) else 0


def _tally(winners: Sequence[int]) -> Tally:
    return Tally(winners.count(1), winners.count(-1), winners.count(0))


@dataclass(frozen=True)
class Preference:
    """The outcome of a study: left against right, by votes and by the majority on each pair that has votes.

    `kappa` is Fleiss' over left, right and tie, None where it says nothing; `screen` counts votes for the left and
    right of the screen, which a fair judge prefers alike; `seconds` is the median time of a vote.
    """

    left: str
    right: str
    question: str
    page: str
    pairs: int
    judges: tuple[str, ...]
    votes: Tally
    majority: Tally
    kappa: float | None
    screen: Tally
    seconds: float

    def markdown(self, confidence: float = 0.95) -> str:
        """A table and what is to be known to read it."""

        def row(what: str, tally: Tally) -> str:
            low, high = tally.interval(confidence)
            shares = [f"{n} ({n / tally.count:.1%})" for n in (tally.wins, tally.ties, tally.losses)]
            share = f"{tally.share:.1%} [{low:.1%}, {high:.1%}]"
            return f"| {what} | {' | '.join(shares)} | {share} | {tally.p_value:.3g} |"

        left, right, question = (text.replace("|", "\\|") for text in (self.left, self.right, self.question))
        agreement = "not defined" if self.kappa is None else f"{self.kappa:.3f}"
        return "\n".join(
            [
                f"**{left}** (left) against **{right}** (right): {question}",
                "",
                f"| counted | left wins | ties | right wins | left's share, ties half "
                f"({100 * confidence:g} % Wilson) | sign test p |",
                "|---|---|---|---|---|---|",
                row(f"majority on each of {self.majority.count} pairs", self.majority),
                row(f"votes of {len(self.judges)} judge{'s' if len(self.judges) > 1 else ''}", self.votes),
                row("votes by side of the screen", self.screen),
                "",
                f"{self.majority.count} of {self.pairs} pairs judged; Fleiss' kappa {agreement}; "
                f"median {self.seconds:.1f} s a vote; page {self.page}.",
            ]
        )


def summarise(votes: Votes) -> Preference:
    """What the votes say."""
    by_pair = defaultdict(list)
    for vote in votes.votes:
        by_pair[vote.pair].append(vote.winner)
    return Preference(
        left=votes.key.left,
        right=votes.key.right,
        question=votes.key.question,
        page=votes.key.page,
        pairs=len(votes.key.pairs),
        judges=tuple(sorted({vote.judge for vote in votes.votes})),
        votes=_tally([vote.winner for vote in votes.votes]),
        majority=_tally([majority(winners) for winners in by_pair.values()]),
        kappa=fleiss_kappa([[winners.count(side) for side in (1, 0, -1)] for winners in by_pair.values()]),
        screen=_tally([vote.seen for vote in votes.votes]),
        seconds=median(vote.milliseconds for vote in votes.votes) / 1000,
    )
