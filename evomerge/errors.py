"""The exceptions of evomerge, named by who has to act.

    EvomergeError
    +-- UserMistake            the user changes a file, a folder or a command; shown as one line, exit status 2
    |   +-- BadSource          a model folder cannot be used
    |   +-- BadRecipe          a recipe or mergekit config cannot be applied to these sources
    |   +-- NotEnoughRoom      memory or disk; the message says how much is needed
    |   +-- BadSearch          a search file, or a search that cannot be found or continued
    |   +-- SearchBusy         another driver has the search
    +-- CandidateFailed        one candidate cannot be merged or measured; the search records it and goes on

The leaves (search_spaces, evaluators, cluster) know nothing of this tree: mistakes in what they are given are
`ValueError`s of their own, and the command line treats those the same way.
"""

from __future__ import annotations


class EvomergeError(Exception):
    """Base of all errors that evomerge raises on purpose."""


class UserMistake(EvomergeError):
    """Something the user can put right. The text is one line: what, where, what would be right."""


class BadSource(UserMistake):
    """A model folder or Hub id cannot be used as a source."""


class BadRecipe(UserMistake):
    """A recipe or a mergekit config cannot be applied to these sources."""


class NotEnoughRoom(UserMistake):
    """Memory or disk does not suffice; the text says how much is needed and how much there is."""


class BadSearch(UserMistake):
    """A search file is wrong, or the search it names cannot be found or continued."""


class SearchBusy(UserMistake):
    """Another driver is running this search."""


class CandidateFailed(EvomergeError):
    """One candidate cannot be merged or measured; the search goes on without it."""
