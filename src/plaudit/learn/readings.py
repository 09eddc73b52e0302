"""What guards read in a rollout: figures of its responses, and how far each is from the first rollout's.

A rollout is a sample of some dozens of responses, so a limit alone would alarm on noise. A guard's condition holds in a rollout where its figure
is past the limit *and*, if it is a difference from the first rollout (whose policy is the reference), that difference is beyond what two
rollouts of one policy show: a t test on prompt means, `SURE`. What follows from that, over rollouts, is guards.py's.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from plaudit.learn.answers import Messages
from plaudit.learn.configs import Guard, GuardsConfig, KLConfig, Limits
from plaudit.learn.validation import TRAPS, trap_texts
from plaudit.stats.diversity import repetition_fraction, self_bleu
from plaudit.stats.intervals import normal_quantile, t_quantile

Floats = NDArray[np.float64]
Json = dict[str, Any]
Score = Callable[[Sequence[Messages], Sequence[Sequence[str]]], list[Floats]]  # prompts, texts to each -> their scores

LEVELS = ("ok", "warn", "critical")
SURE = 0.99  # two-sided confidence of a difference between two rollouts
OUTLIER_QUANTILE, OUTLIERS_NEED = 0.999, 1000  # responses of a first rollout that have such a quantile
LAW_NEEDS = 4  # rollouts away from the start before the law of overoptimisation is fitted: it has two numbers
LAW_REACH = 10.0  # a peak this many times as far away as the policy has been is no finding
FORMATS = {
    "markdown": re.compile(r"^#{1,6} |```|^\|.*\|$|\[[^\]\n]+\]\([^)\n]+\)", re.MULTILINE),
    "list": re.compile(r"^\s*([-*\u2022]|\d+[.)]) ", re.MULTILINE),
    "bold": re.compile(r"\*\*[^*\n]+\*\*|__[^_\n]+__"),
    "hedge": re.compile(
        r"\b(perhaps|maybe|might|possibly|probably|it depends|i think|i believe|it seems|not sure|could be)\b",
        re.IGNORECASE,
    ),
    "exclamation": re.compile("!"),
    "as_an_ai": re.compile(r"\bas an? (ai|artificial intelligence|(large )?language model)\b", re.IGNORECASE),
}
FORMAT_FIGURES = (*FORMATS, "repetition")


@dataclass(frozen=True)
class Sampled:
    """A rollout as guards see it: N responses in groups of one prompt each, and figures of each response.

    figures: score, tokens, kl; where there are any kl_base, gold (the judge's), disagreement, entropy, embedding_distance; and the FORMAT_FIGURES.
    """

    group: list[int]  # (N,)
    ids: list[list[int]]  # N
    figures: dict[str, list[float]]  # name -> (N,)


@dataclass(frozen=True)
class Mean:
    """Mean of a figure over a rollout, with its standard error over prompts and that error's degrees of freedom."""

    value: float
    se: float
    df: int


@dataclass(frozen=True)
class Trend:
    """The judge beside the score, both in sd of the first rollout and 0 there, and how far the policy has come."""

    step: int
    gold: Mean
    score: Mean
    kl: float = 0.0  # mean KL to the start, nats


@dataclass(frozen=True)
class Reading:
    """What one rollout says by itself: figures (logged as guard_<name>), and 0 ok, 1 warn, 2 critical for each guard that is watching."""

    figures: dict[str, float]
    levels: dict[Guard, int]
    words: dict[str, str] = field(default_factory=dict)  # names that SAYS asks for beside figures


# --- what is counted --------------------------------------------------------------------------------------------------------


def text_figures(texts: Sequence[str], ids: Sequence[Sequence[int]]) -> dict[str, list[float]]:
    """Format of each response: 1 where a pattern occurs, and the share of repeated 4-grams of tokens.   N -> name -> (N,)"""
    found = {name: [float(pattern.search(text) is not None) for text in texts] for name, pattern in FORMATS.items()}
    return found | {"repetition": [repetition_fraction(one) for one in ids]}


def mean_of(values: Sequence[float] | Floats, group: Sequence[int]) -> Mean:
    """Mean with the standard error over prompts, whose responses are no independent evidence; over responses where there is one prompt."""
    y, of = np.asarray(values, dtype=np.float64), np.asarray(group)
    names = np.unique(of)
    parts = np.array([y[of == name].mean() for name in names]) if len(names) > 1 else y
    if len(parts) < 2:
        return Mean(float(y.mean()), math.inf, 1)
    return Mean(float(y.mean()), float(parts.std(ddof=1) / len(parts) ** 0.5), len(parts) - 1)


def rises(now: Mean, first: Mean, among: int = 1) -> bool:
    """Whether a mean is above another beyond noise; as one of several figures that one guard looks at, by Bonferroni."""
    gain = now.value - first.value
    quantile = t_quantile(1 - (1 - SURE) / among, now.df + first.df)
    return gain > 0 and gain > quantile * math.hypot(now.se, first.se)


def distinct(ids: Sequence[Sequence[int]], group: Sequence[int], n: int, n_tokens: int) -> Mean:
    """Distinct n-grams over all n-grams (Li et al. 2016) of the first parts of all responses, `n_tokens` tokens in all, since the figure
    falls as text gets longer. Its standard error is the jackknife's over prompts."""
    total = sum(map(len, ids))
    owner: dict[tuple[int, ...], int] = {}
    sizes: dict[int, int] = dict.fromkeys(group, 0)
    for tokens, of in zip(ids, group, strict=True):
        part = tokens[: math.ceil(len(tokens) * n_tokens / total)]
        grams = list(zip(*(part[i:] for i in range(n)), strict=False))
        sizes[of] += len(grams)
        for gram in grams:
            owner[gram] = of if owner.get(gram, of) == of else -1
    count = sum(sizes.values())
    if not count:
        return Mean(0.0, math.inf, 1)
    alone = dict.fromkeys(sizes, 0)  # n-grams that only this prompt's responses have
    for of in owner.values():
        if of >= 0:
            alone[of] += 1
    without = [(len(owner) - alone[of]) / (count - sizes[of]) for of in sizes if count > sizes[of]]
    k = len(without)
    se = float(np.std(without)) * (k - 1) ** 0.5 if k > 1 else math.inf
    return Mean(len(owner) / count, se, max(k - 1, 1))


def unlike_siblings(ids: Sequence[Sequence[int]], group: Sequence[int], n_tokens: int) -> Mean | None:
    """1 - Self-BLEU-4 among the responses to one prompt, of the first parts of all, as in `distinct`; None where no prompt has two."""
    total = sum(map(len, ids))
    parts: dict[int, list[Sequence[int]]] = {}
    for tokens, of in zip(ids, group, strict=True):
        parts.setdefault(of, []).append(tokens[: math.ceil(len(tokens) * n_tokens / total)])
    found = {of: 1 - self_bleu(some) for of, some in parts.items() if len(some) > 1}
    return mean_of(list(found.values()), list(found)) if found else None


def distances(states: Floats, group: Sequence[int]) -> list[float]:
    """Mean Euclidean distance of each response's state to those of the other responses to its prompt, or to all others where none has another.

    (N, D) -> (N,)
    """
    of = np.asarray(group)
    alone = len(np.unique(of)) == len(of)
    out = []
    for place, state in enumerate(states):
        others = np.ones(len(of), dtype=bool) if alone else of == of[place]
        others[place] = False
        far = np.linalg.norm(states[others] - state, axis=1)
        out.append(float(far.mean()) if len(far) else 0.0)
    return out


def level(value: float, limits: Limits | None, sure: bool = True) -> int:
    """0, 1 or 2: within the limits, past the first, past the second."""
    if limits is None or not sure:
        return 0
    warn, critical = limits
    if critical is not None and value > critical:
        return 2
    return int(warn is not None and value > warn)


# --- one rollout against the first ------------------------------------------------------------------------------------------


def read(config: GuardsConfig, budgets: KLConfig, first: Sampled, now: Sampled, trends: Sequence[Trend]) -> Reading:
    """All guards but traps on one rollout. `trends` are those of all rollouts so far, this one's the last; empty without a judge."""
    parts = [_kl(config, budgets, now), _lengths(config, first, now), _format(config, first, now)]
    parts += [_diversity(config, first, now), _outliers(config, first, now)]
    if trends and config.gold is not None:
        parts.append(_gold(config.gold, trends))
    if trends and config.overoptimisation is not None:
        parts.append(_overoptimisation(config.overoptimisation, trends))
    if "disagreement" in now.figures:
        one, other = (mean_of(some.figures["disagreement"], some.group) for some in (now, first))
        ratio = one.value / other.value if other.value > 0 else 1.0
        parts.append(
            Reading(
                {"disagreement_ratio": ratio}, {"disagreement": level(ratio, config.disagreement, rises(one, other))}
            )
        )
    whole = Reading({}, {})
    for part in parts:
        whole = Reading(whole.figures | part.figures, whole.levels | part.levels, whole.words | part.words)
    on = {name: found for name, found in whole.levels.items() if getattr(config, name) is not None}
    return Reading(whole.figures, on, whole.words)


def _kl(config: GuardsConfig, budgets: KLConfig, now: Sampled) -> Reading:
    figures: dict[str, float] = {}
    levels: dict[Guard, int] = {}
    if budgets.budget is not None:
        figures["kl_share"] = float(np.mean(now.figures["kl"])) / budgets.budget
        levels["kl"] = level(figures["kl_share"], config.kl)
    if "kl_base" in now.figures and budgets.base_budget is not None:
        figures["kl_base"] = float(np.mean(now.figures["kl_base"]))
        figures["kl_base_share"] = figures["kl_base"] / budgets.base_budget
        levels["kl_base"] = level(figures["kl_base_share"], config.kl_base)
    return Reading(figures, levels)


def trend(step: int, first: Sampled, now: Sampled) -> Trend:
    """Judge and score of a rollout, each minus its mean and over its sd on the first rollout's responses."""

    def standard(name: str) -> Mean:
        of = np.asarray(first.figures[name])
        return mean_of((np.asarray(now.figures[name]) - of.mean()) / (of.std() or 1.0), now.group)

    return Trend(step, standard("gold"), standard("score"), max(float(np.mean(now.figures["kl"])), 0.0))


def peak(trends: Sequence[Trend]) -> Trend:
    """Where the judge liked the policy best, the earliest of equals."""
    return max(trends, key=lambda one: one.gold.value)


def _gold(limits: Limits, trends: Sequence[Trend]) -> Reading:
    warn, critical = limits
    start, now, best = trends[0], trends[-1], peak(trends)
    gold, score = now.gold.value - start.gold.value, now.score.value - start.score.value
    spread = math.hypot(now.gold.se, best.gold.se)
    below = (best.gold.value - now.gold.value) / spread if 0 < spread < math.inf else 0.0
    figures = {
        "gold": now.gold.value,
        "gold_se": now.gold.se if math.isfinite(now.gold.se) else 0.0,
        "gold_gain": gold,
        "score_gain": score,
        "gold_below_peak": below,
    }
    found = 0
    if warn is not None and rises(now.score, start.score) and gold < warn * score:
        found = 1
    # The peak is the largest of many noisy means, so a fall from it proves little alone: the score must have risen since.
    if critical is not None and below > critical and rises(now.score, best.score):
        found = 2
    return Reading(figures, {"gold": found})


@dataclass(frozen=True)
class Law:
    """What the judge gains at a distance d = sqrt(KL) under RL: d (a - b ln d) (Gao, Schulman, Hilton 2022, "Scaling Laws for Reward Model
    Overoptimization", 3.1), fitted."""

    a: float
    b: float
    covariance: Floats  # (2, 2) of a and b
    df: int

    @property
    def peak(self) -> float:
        """The distance beyond which more optimisation loses; next to 0 where the gain falls from the start, infinite where it never does."""
        return math.exp(min(max(self.a / self.b - 1, -20.0), 20.0)) if self.b > 0 else math.inf

    def falls(self, d: float) -> bool:
        """Whether the judge's gain falls at this distance, beyond noise: its slope a - b (ln d + 1) is below 0."""
        by = np.array([1.0, -(math.log(d) + 1)])
        slope, error = float(by @ [self.a, self.b]), math.sqrt(max(float(by @ self.covariance @ by), 0.0))
        return slope < -t_quantile(SURE, self.df) * error


def fit_law(trends: Sequence[Trend]) -> Law | None:
    """Generalised least squares over the rollouts so far; None with fewer than LAW_NEEDS away from the start, or all at one distance.

    Every gain is a difference from the same first rollout, so all of them share its error; residuals larger than the errors widen them.
    """
    some = [one for one in trends if one.kl > 0 and math.isfinite(one.gold.se)]
    if len(some) < LAW_NEEDS:
        return None
    d = np.sqrt([one.kl for one in some])
    x, y = np.stack([d, -d * np.log(d)], axis=1), np.array([one.gold.value for one in some])
    errors = np.array([max(one.gold.se, 1e-9) for one in some])
    start = trends[0].gold.se if math.isfinite(trends[0].gold.se) else 0.0
    weight = np.linalg.inv(np.diag(errors**2) + start**2)
    gram = x.T @ weight @ x
    if np.linalg.cond(gram) > 1e10:
        return None
    covariance = np.linalg.inv(gram)
    a, b = covariance @ x.T @ weight @ y
    left, df = y - x @ (a, b), len(some) - 2
    return Law(float(a), float(b), covariance * max(1.0, float(left @ weight @ left) / df), df)


def _overoptimisation(limits: Limits, trends: Sequence[Trend]) -> Reading:
    """Limits are shares of the distance at which the fitted law peaks."""
    law, d = fit_law(trends), math.sqrt(trends[-1].kl)
    if law is None or d == 0 or law.peak > LAW_REACH * max(math.sqrt(one.kl) for one in trends):
        return Reading({}, {"overoptimisation": 0})
    share = d / law.peak
    past = [limit is not None and share > limit and law.falls(d / limit) for limit in limits]
    figures = {"overoptimisation": share, "peak_kl": law.peak**2}
    return Reading(figures, {"overoptimisation": 2 if past[1] else int(past[0])})


def _lengths(config: GuardsConfig, first: Sampled, now: Sampled) -> Reading:
    tokens, before = (mean_of(some.figures["tokens"], some.group) for some in (now, first))
    figures = {
        "length_change": tokens.value / before.value - 1,
        "length_correlation": rank_correlation(now.figures["score"], now.figures["tokens"]),
    }
    n = len(now.group)
    certain = normal_quantile(SURE) / max(n - 3, 1) ** 0.5  # of Fisher's transformed correlation
    sure = n > 3 and math.atanh(min(figures["length_correlation"], 0.999999)) > certain
    levels: dict[Guard, int] = {
        "length_change": level(figures["length_change"], config.length_change, rises(tokens, before)),
        "length_correlation": level(figures["length_correlation"], config.length_correlation, sure),
        "length_share": 0,
    }
    score, score_before = (mean_of(some.figures["score"], some.group) for some in (now, first))
    if rises(score, score_before):  # a share of nothing has no meaning
        share = score_per_token(first, now) * (tokens.value - before.value) / (score.value - score_before.value)
        figures["length_share"] = share
        levels["length_share"] = level(share, config.length_share, tokens.value > before.value)
    return Reading(figures, levels)


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> float:
    """Spearman's; 0 where one of both is constant."""
    if len(set(x)) < 2 or len(set(y)) < 2:
        return 0.0
    return float(np.corrcoef(stats.rankdata(x), stats.rankdata(y))[0, 1])


def score_per_token(first: Sampled, now: Sampled) -> float:
    """Slope of score on tokens among responses to the same prompt in the same rollout (in one rollout, where prompts have one response)."""
    xs: list[Floats] = []
    ys: list[Floats] = []
    for some in (first, now):
        of = np.asarray(some.group)
        if len(np.unique(of)) == len(of):
            of = np.zeros_like(of)
        for name in np.unique(of):
            for out, figure in ((xs, "tokens"), (ys, "score")):
                values = np.asarray(some.figures[figure])[of == name]
                out.append(values - values.mean())
    x, y = np.concatenate(xs), np.concatenate(ys)
    spread = float(x @ x)
    return float(x @ y) / spread if spread > 0 else 0.0


def _format(config: GuardsConfig, first: Sampled, now: Sampled) -> Reading:
    """Ratios of shares, half a response added to each, so that a first rollout without any has a ratio too."""
    n = len(now.group)
    up = float(np.mean(now.figures["score"])) > float(np.mean(first.figures["score"]))
    figures: dict[str, float] = {}
    worst, name, found = 1.0, "none", 0
    for figure in FORMAT_FIGURES:
        one, other = (mean_of(some.figures[figure], some.group) for some in (now, first))
        figures[f"format_{figure}"] = one.value
        ratio = (one.value * n + 0.5) / (other.value * n + 0.5)
        here = level(ratio, config.format, rises(one, other, len(FORMAT_FIGURES)))
        here = min(here, 2 if up else 1)
        if (here, ratio) > (found, worst):
            worst, name, found = ratio, figure, here
    return Reading(figures | {"format_ratio": worst}, {"format": found}, {"format_worst": name.replace("_", " ")})


def _diversity(config: GuardsConfig, first: Sampled, now: Sampled) -> Reading:
    n_tokens = min(sum(map(len, some.ids)) for some in (first, now))
    pairs = {
        f"distinct_{n}": tuple(distinct(some.ids, some.group, n, n_tokens) for some in (now, first)) for n in (1, 2, 3)
    }
    for figure in ("entropy", "embedding_distance"):
        if figure in now.figures and figure in first.figures:
            pairs[figure] = tuple(mean_of(some.figures[figure], some.group) for some in (now, first))
    unlike = [unlike_siblings(some.ids, some.group, n_tokens) for some in (now, first)]
    if unlike[0] is not None and unlike[1] is not None:
        pairs["self_bleu"] = (unlike[0], unlike[1])
    figures: dict[str, float] = {}
    worst, name, found = -math.inf, "none", 0
    for figure, (one, other) in pairs.items():
        figures[figure] = 1 - one.value if figure == "self_bleu" else one.value  # what falls is its distance from 1
        drop = 1 - one.value / other.value if other.value > 0 else 0.0
        here = level(drop, config.diversity, rises(other, one, len(pairs)))
        if (here, drop) > (found, worst):
            worst, name, found = drop, figure, here
    return Reading(figures | {"diversity_drop": worst}, {"diversity": found}, {"diversity_worst": name})


def _outliers(config: GuardsConfig, first: Sampled, now: Sampled) -> Reading:
    """Share of scores above the 99.9 % quantile of the first rollout's; where that has too few, above its largest.

    Any new rollout has the largest of both in half of all cases. So with few responses the prompts decide: k of G have a response above
    all G of the first rollout; of rollouts of one policy that happens with probability C(2G - k, G) / C(2G, G).
    """
    before, scores, of = (
        np.asarray(first.figures["score"]),
        np.asarray(now.figures["score"]),
        np.asarray(now.group),
    )
    few = len(before) < OUTLIERS_NEED
    above = scores > np.quantile(before, OUTLIER_QUANTILE, method="higher")
    share = float(above.mean())
    if few:
        prompts, other = len(np.unique(of)), len(set(first.group))
        k = len(np.unique(of[above]))
        chance = math.comb(prompts + other - k, other) / math.comb(prompts + other, other)
        sure = chance < (1 - SURE) / 2
    else:
        sure = rises(mean_of(above.astype(float), now.group), Mean(1 - OUTLIER_QUANTILE, 0.0, 0))
    word = "largest score" if few else "99.9 % quantile"
    return Reading(
        {"outlier_fraction": share}, {"outliers": level(share, config.outliers, sure)}, {"outlier_quantile": word}
    )


def spring_traps(
    score: Score, messages: Sequence[Messages], answers: Sequence[str], reference: Sequence[float], empty: bool
) -> Json:
    """Trap texts (validation.TRAPS) made for each prompt and an answer to it, against the scores of the first rollout's responses.

    {n, median, upper_quartile, by: trap -> {median, verdict}, verdict}: critical above the upper quartile, warn above the median.
    `empty` False leaves out the empty text, which has no token where there is no EOS.
    """
    names = [name for name in TRAPS if empty or name != "empty"]
    texts = [trap_texts([dict(one) for one in said], answer) for said, answer in zip(messages, answers, strict=True)]
    scores = np.stack(score(messages, [[one[name] or ("" if empty else " ") for name in names] for one in texts]))
    median, upper = (float(cut) for cut in np.quantile(reference, [0.5, 0.75]))
    by = {}
    for name, middle in zip(names, np.median(scores, axis=0).tolist(), strict=True):
        by[name] = {"median": middle, "verdict": LEVELS[2 if middle > upper else 1 if middle > median else 0]}
    worst = max(LEVELS.index(one["verdict"]) for one in by.values())
    return {"n": len(messages), "median": median, "upper_quartile": upper, "by": by, "verdict": LEVELS[worst]}
