"""One answer from many rules.

Asked by type: whoever a rule denies is refused, whatever else allows them; then every type that has rules which allow
wants one of them to match, so that an address that is allowed opens no path and no method that is not; where no rule
allows anything, nobody is let in. `allow_all` stands for a match of every type. `evaluation = "any"` is the original's:
who is not denied needs one match of any type, and with it everything is open.

All rules are asked, always: a rate limit counts what another rule refuses. The weight only decides which refusal is
told, that of the heaviest rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from harmony.gateway.rules import Rule, Subject, Verdict

__all__ = ["Evaluation", "Refusal", "evaluate"]

Evaluation = Literal["per_type", "any"]


@dataclass(frozen=True, slots=True)
class Refusal:
    type: str
    """Of the rules that refuse; "" when there is none that could allow."""
    rule: str = ""
    """The one that denies; "" when none allows."""
    retry_after_s: int = 0

    def __str__(self) -> str:
        if self.rule:
            return f"rule {self.rule} ({self.type})"
        return f"no {self.type} rule allows it" if self.type else "no rule allows it"


def evaluate(rules: Sequence[Rule], subject: Subject, *, evaluation: Evaluation) -> Refusal | None:
    """None: let it pass. rules: in the order of their ranks."""
    judged = [(rule, rule.judge(subject)) for rule in rules]
    for rule, judgement in judged:
        if judgement.verdict is Verdict.DENY:
            return Refusal(rule.type, rule.name, judgement.retry_after_s)
    allowing = [(rule, judgement.verdict) for rule, judgement in judged if rule.may_allow]
    if evaluation == "any":
        passes = any(verdict in (Verdict.ALLOW, Verdict.LATER) for _, verdict in allowing)
        return None if passes else Refusal("")
    if any(rule.type == "allow_all" for rule, _ in allowing):
        return None
    satisfied: dict[str, bool] = {}
    for rule, verdict in allowing:
        satisfied[rule.type] = satisfied.get(rule.type, False) or verdict is not Verdict.NO_MATCH
    for type, one_matches in satisfied.items():
        if not one_matches:
            return Refusal(type)
    return None if satisfied else Refusal("")
