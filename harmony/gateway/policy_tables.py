"""`[policies]` and `[rules]`: read once, checked, and put together for the middleware that names them.

Policies are named, or written where they are used (`[[middleware.<name>.options.policies]]`), and so are the rules of
one. What is not enabled is read and checked as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from harmony.gateway import sections
from harmony.gateway.config import Rule, Table
from harmony.gateway.options import PoliciesOptions
from harmony.gateway.rule_options import RULES, DenyAllOptions, RuleOptions
from harmony.gateway.sources import Merged, Place, Report, show, unknown
from harmony.gateway.tables import keys_of, read_table

__all__ = ["PolicyTables"]


class PolicyTables:
    def __init__(self, merged: Merged, report: Report) -> None:
        self._merged = merged
        self._report = report
        self._rules = {
            name: self._rule(name, entry.value, entry.place) for name, entry in merged.named["rules"].items()
        }
        self._policies = {
            name: self._policy(entry.value, entry.place) for name, entry in merged.named["policies"].items()
        }

    def rules_of(self, options: PoliciesOptions, place: Place) -> tuple[Rule, ...]:
        """Every enabled rule of the enabled policies that a middleware names, once."""
        found: list[Rule] = []
        for number, policy in enumerate(options.policies, start=1):
            if isinstance(policy, str):
                name = self._named("policies", policy, place, "policies")
                found += self._policies[name] if name is not None else ()
            else:
                found += self._policy(policy, place.child("policies", str(number)))
        rules = tuple(dict.fromkeys(found))
        if not any(_decides(rule.options) for rule in rules):
            message = "have no rule that allows anything: everything is refused; deny_all would say so"
            self._report.warning(place, "policies", message)
        return rules

    def _policy(self, value: object, place: Place) -> tuple[Rule, ...]:
        table = read_table(sections.PolicyTable, value, place, self._report)
        if table is None:
            return ()
        rules = self._rules_in(table.rules, place)
        return rules if table.enabled else ()

    def _rules_in(self, rules: Sequence[str | dict[str, Any]], place: Place) -> tuple[Rule, ...]:
        found: list[Rule | None] = []
        for number, rule in enumerate(rules, start=1):
            if isinstance(rule, str):
                name = self._named("rules", rule, place, "rules")
                found.append(self._rules[name] if name is not None else None)
            else:
                inner = place.child("rules", str(number))
                found.append(self._rule(inner.table, rule, inner))
        return tuple(rule for rule in found if rule is not None)

    def _named(self, section: str, wanted: str, place: Place, key: str) -> str | None:
        """The name of the table that has this name, or this id."""
        tables = self._merged.named[section]
        if wanted in tables:
            return wanted
        for name, entry in tables.items():
            if isinstance(entry.value, dict) and entry.value.get("id") == wanted:
                return name
        self._report.error(place, key, unknown(wanted, section, self._merged))
        return None

    def _rule(self, name: str, value: object, place: Place) -> Rule | None:
        """None: it is not enabled, or its errors have been reported."""
        type = value.get("type") if isinstance(value, dict) else None
        kind = RULES.get(str(type).lower())
        wanted = keys_of(kind.options) if kind is not None else ()
        table = read_table(sections.RuleTable, value, place, self._report, options=wanted)
        if table is None or kind is None:
            return None
        assert isinstance(value, dict)
        inner = place.child("options")
        # As written: values from the environment are still marked, which a struct would lose.
        options = read_table(kind.options, value.get("options", {}), inner, self._report)
        if options is None:
            return None
        for key, message in options.problems():
            self._report.error(inner, key, message)
        if not table.enabled:
            return None
        if kind.unavailable:
            self._report.error(place, "type", f"is {show(table.type)}, which {kind.unavailable}")
        return Rule(name, table.type, table.weight, options=options, origin=place.origin())


def _decides(options: Table) -> bool:
    """Whether a rule allows something, or says that nothing is to be allowed."""
    return isinstance(options, DenyAllOptions) or (isinstance(options, RuleOptions) and options.may_allow)
