"""What is checked once more when another server has written what was missing."""

import asyncio

import pytest

from serve_app.config import IngressConfig
from serve_app.errors import InvalidRequest
from serve_app.http.catalog import Catalog
from serve_app.http.speech.accept import Speech

MISSING = InvalidRequest("There is none.", "voice", "voice_not_found")


class Renewed:
    """A library that has what is missing as soon as it is looked for again."""

    async def ready(self):
        return 0.0

    async def found_since(self, asked_s, errors):
        return MISSING in list(errors)


def asked(found, **options):
    """How often `found` was asked for, and what came of it."""

    async def main():
        count = 0

        async def check():
            nonlocal count
            count += 1
            if found is MISSING and count == 1:
                raise MISSING
            return found

        speech = Speech(Catalog(), IngressConfig(), Renewed())
        answer = await speech.with_library(check, **options)
        return count, answer

    return asyncio.run(main())


def test_an_error_that_is_raised_or_among_those_it_gives_is_looked_for_again():
    assert asked(MISSING)[0] == 2
    items = ("job", MISSING)
    assert asked(items, errors_in=lambda found: found[1:]) == (2, items)


@pytest.mark.parametrize("answer", ["job", ["job"], [MISSING]])
def test_an_answer_is_an_answer_whatever_it_looks_like(answer):
    assert asked(answer) == (1, answer)
