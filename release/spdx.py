"""Licences as expressions: what an installed distribution says it is under, and whether that is on the list.

Holds ``stated`` (metadata to an SPDX expression) and ``allowed`` (does an expression ask for nothing beyond ``ALLOWED``?). Which packages are looked
at, and the exceptions, are ``licences.py``.
"""

from __future__ import annotations

import re
from email.message import Message

# permissive, or, as MPL-2.0, copyleft for its own files only
ALLOWED = frozenset(
    {
        "0BSD",
        "Apache-2.0",
        "BSD",
        "BSD-2-Clause",
        "BSD-3-Clause",
        "BSL-1.0",
        "CC0-1.0",
        "CNRI-Python",
        "HPND",
        "ISC",
        "MIT",
        "MIT-0",
        "MIT-CMU",
        "MPL-2.0",
        "PSF-2.0",
        "Unlicense",
        "Zlib",
    }
)
GRANTS = frozenset({"LLVM-exception"})  # after WITH: they only take conditions away

_NAMES = {
    "3-clause bsd license": "BSD-3-Clause",
    "apache 2.0": "Apache-2.0",
    "apache 2.0 license": "Apache-2.0",
    "bsd": "BSD",
    "bsd 2-clause license": "BSD-2-Clause",
    "bsd 3-clause license": "BSD-3-Clause",
    "isc license": "ISC",
    "nvidia proprietary software": "LicenseRef-NVIDIA-Proprietary",
}
_CLASSIFIERS = {
    "Apache Software License": "Apache-2.0",
    "BSD License": "BSD",
    "GNU Lesser General Public License v2 or later (LGPLv2+)": "LGPL-2.0-or-later",
    "Historical Permission Notice and Disclaimer (HPND)": "HPND",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
    "The Unlicense (Unlicense)": "Unlicense",
    "zlib/libpng License": "Zlib",
}
_TOKEN = re.compile(r"\(|\)|[^\s()]+")


def stated(metadata: Message) -> str | None:
    """The licence as an SPDX expression: License-Expression, else a License field that names one, else the classifiers; None where nothing says it.

    "BSD" is our word for a BSD licence of unsaid clauses. Several classifiers all hold; one that we do not know makes the answer None.
    """
    if expression := metadata.get("License-Expression"):
        return str(expression)
    field = str(metadata.get("License") or "").strip()
    named = _NAMES.get(field.lower(), field)
    if _is_expression(named):
        return named
    classifiers = [c.split(" :: ") for c in metadata.get_all("Classifier") or [] if c.startswith("License :: ")]
    known = sorted({_CLASSIFIERS.get(parts[-1], "?") for parts in classifiers if len(parts) > 2})
    return None if not known or "?" in known else " AND ".join(known)


def allowed(expression: str) -> bool:
    """Can the expression be met with ``ALLOWED`` licences alone? All of AND, one of OR; what cannot be read is not allowed."""
    tokens = _TOKEN.findall(expression)
    try:
        found = _either(tokens)
    except IndexError:  # ends too early
        return False
    return found and not tokens


def _either(tokens: list[str]) -> bool:
    found = _both(tokens)
    while tokens[:1] == ["OR"]:
        del tokens[0]
        found |= _both(tokens)
    return found


def _both(tokens: list[str]) -> bool:
    found = _one(tokens)
    while tokens[:1] == ["AND"]:
        del tokens[0]
        found &= _one(tokens)
    return found


def _one(tokens: list[str]) -> bool:
    token = tokens.pop(0)
    if token == "(":
        found = _either(tokens)
        return tokens.pop(0) == ")" and found
    found = token in ALLOWED
    if tokens[:1] == ["WITH"]:
        del tokens[0]
        found &= tokens.pop(0) in GRANTS
    return found


def _is_expression(text: str) -> bool:
    """One line of identifiers joined by operators, the first of them a licence that we know, a GNU one, or one with a name of its own."""
    return bool(re.fullmatch(r"[\w.+-]+( (AND|OR|WITH) [\w.+-]+)*", text)) and (
        text.split()[0] in ALLOWED or "GPL" in text or text.startswith("LicenseRef-")
    )
