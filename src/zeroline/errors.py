"""Every error and warning that zeroline raises on purpose.

::

    ZerolineError
    ├── UsageError              what was asked is not possible here (command line: exit status 2)
    │   ├── NotFoundError       a name that does not exist; carries the nearest that do
    │   ├── InputError          the model's inputs, or an image, cannot be used as given
    │   ├── SiteError           the site is ambiguous, not reached, or has no gradient
    │   ├── TargetError         the target is not one number per sample
    │   ├── BaselineError       the baseline does not fit the site or the model
    │   ├── TraceError          an attention, or the way to it, cannot be followed: which operation
    │   └── ModelStateError     the model would change or answer at random while it is explained
    └── RunError                something went wrong on the way (exit status 1)
        ├── NonFiniteError      NaN or infinity: which sample, which point of the path
        ├── GradientError       the target has no gradient with respect to the site
        ├── NotNeutralError     no neutral baseline was found: the KL reached
        └── LoadError           a file or a model cannot be read

    ZerolineWarning
    └── NotConvergedWarning     the attribution error is above the tolerance; the figures are in the record

A message says what was asked, what was found and what is possible. This module imports nothing of the
project and everything else may import it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches


class ZerolineError(Exception):
    """Base of every error that zeroline raises on purpose."""


class UsageError(ZerolineError):
    """What was asked is not possible here."""


class NotFoundError(UsageError):
    """A name that does not exist."""

    @classmethod
    def among(cls, kind: str, asked: str, possible: Iterable[str], hint: str = "") -> NotFoundError:
        """The error for ``asked``, with the nearest of ``possible`` (or all of them if few).

        >>> str(NotFoundError.among("module", "encoder.9", ["encoder.7", "encoder.8"], "see `zeroline sites`"))
        "no module 'encoder.9'; nearest: encoder.8, encoder.7; see `zeroline sites`"
        """
        names = [str(name) for name in possible]
        close = get_close_matches(asked, names, n=3, cutoff=0.5)
        lower = {name.lower(): name for name in names}
        if not close and asked.lower() in lower:
            close = [lower[asked.lower()]]
        if close:
            found = f"nearest: {', '.join(close)}"
        elif len(names) <= 12:
            found = f"possible: {', '.join(names) or 'none'}"
        else:
            found = f"possible: {', '.join(names[:8])}, ... ({len(names)} in all)"
        return cls("; ".join(part for part in (f"no {kind} {asked!r}", found, hint) if part))


class InputError(UsageError):
    """The model's inputs, or an image, cannot be used as given."""


class SiteError(UsageError):
    """The site is ambiguous, not reached by the forward pass, or has no gradient."""


class TargetError(UsageError):
    """The target is not one number per sample."""


class BaselineError(UsageError):
    """The baseline does not fit the site or the model."""


class TraceError(UsageError):
    """The model's attention, or the way of its tokens, cannot be followed."""


class ModelStateError(UsageError):
    """The model would change, or answer at random, while it is explained."""


class RunError(ZerolineError):
    """Something went wrong on the way."""


class NonFiniteError(RunError):
    """NaN or infinity where a number was expected."""


class GradientError(RunError):
    """The target has no gradient with respect to the site."""


class NotNeutralError(RunError):
    """The model still has an opinion where a neutral baseline was looked for; ``kl`` is what was reached, per sample."""

    def __init__(self, message: str, kl: Sequence[float] = ()) -> None:
        super().__init__(message)
        self.kl = tuple(kl)


class LoadError(RunError):
    """A file or a model cannot be read."""


class ZerolineWarning(UserWarning):
    """Base of zeroline's warnings."""


class NotConvergedWarning(ZerolineWarning):
    """The attribution error is above the tolerance; the figures are in the record."""
