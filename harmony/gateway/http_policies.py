"""The `policies` middleware in front of HTTP endpoints: rules asked about each request, and what refusals look like."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final

from harmony.gateway.address_range import address_of
from harmony.gateway.checks import EVERY_METHOD
from harmony.gateway.config import Middleware
from harmony.gateway.http_rules import HttpSubject, http_judge
from harmony.gateway.options import PoliciesOptions
from harmony.gateway.path_pattern import path_below
from harmony.gateway.policies import Evaluation, Refusal, evaluate
from harmony.gateway.rule_options import HTTP
from harmony.gateway.rules import Rule, Rulebook
from harmony.http import Handler, Request, Response, error_response

__all__ = ["HttpPolicies"]

logger = logging.getLogger("harmony.gateway")

_ANSWERS: Final = {
    "path": (404, "Not found"),
    "method": (405, "Method not allowed"),
    "content_type": (415, "Content type not allowed"),
    "rate_limit": (429, "Too many requests"),
}
"""By the type of the rules that refuse; 403 for all others."""


class HttpPolicies:
    """What one endpoint's requests are asked."""

    def __init__(
        self, rules: Sequence[Rule], *, name: str = "", prefix: str = "", evaluation: Evaluation = "per_type"
    ) -> None:
        """rules: by rank. prefix: of the endpoint; paths are those below it."""
        self._rules = tuple(rules)
        self._name = name
        self._prefix = prefix
        self._evaluation = evaluation

    @classmethod
    def of(cls, middleware: Middleware, rulebook: Rulebook, *, prefix: str) -> HttpPolicies:
        options = middleware.options
        assert isinstance(options, PoliciesOptions)
        rules = rulebook.compiled(middleware.rules, HTTP, http_judge)
        return cls(rules, name=middleware.name, prefix=prefix, evaluation=options.evaluation)

    async def handle(self, request: Request, proceed: Handler) -> Response:
        refusal = self.refusal(request)
        if refusal is None:
            return await proceed(request)
        logger.info("%s: a request of %s refused: %s", self._name, request.client[0] or "?", refusal)
        return self._answer(request, refusal)

    def refusal(self, request: Request) -> Refusal | None:
        subject = HttpSubject(address_of(request.client[0]), request, path_below(request, self._prefix))
        return evaluate(self._rules, subject, evaluation=self._evaluation)

    def _answer(self, request: Request, refusal: Refusal) -> Response:
        response = error_response(*_ANSWERS.get(refusal.type, (403, "Forbidden")))
        if response.status == 405:
            response.headers = response.headers.set("Allow", ", ".join(self._methods(request)))
        if refusal.retry_after_s:
            response.headers = response.headers.set("Retry-After", str(refusal.retry_after_s))
        return response

    def _methods(self, request: Request) -> list[str]:
        """What the rules about methods let pass (RFC 9110 §15.5.6)."""
        rules = [rule for rule in self._rules if rule.type == "method"]
        evaluation: Evaluation = "per_type" if any(rule.may_allow for rule in rules) else "any"
        found = []
        for method in sorted(EVERY_METHOD):
            subject = HttpSubject(None, Request(method, "/"), ())
            refusal = evaluate(rules, subject, evaluation=evaluation)
            if refusal is None or not refusal.type:
                found.append(method)
        return found
