"""Parses the URIs by which people name sources: kind, path or address, and options."""

import glob
import os
import re
import stat
from collections.abc import Collection
from dataclasses import dataclass

from cache_schema.errors import UsageError, unknown_name
from stages.files.remote import SCHEMES, check_address, listed

_PREFIX = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*):")
_OPTIONS = re.compile(r"\?([A-Za-z_]\w*=[^?]*)$")
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"^(\d+)\.\.(\d+)$")
_MAX_PATHS = 1_000_000


@dataclass(frozen=True)
class ParsedUri:
    """`kind` is empty where the URI names none; `pattern` may still hold braces and glob characters."""

    kind: str
    pattern: str
    options: dict[str, str]


def parse_uri(uri: str, kinds: Collection[str]) -> ParsedUri:
    """Returns the parts of `[kind:]path[?option=value[&option=value…]]`.

    A path that exists exactly as typed is taken literally, whatever characters it has.

    Raises:
        UsageError: the URI is empty, its kind is unknown, or it is an address that is never read.
    """
    if not uri or "\x00" in uri:
        raise UsageError(f"source {uri!r} names nothing: give a path")
    if os.path.lexists(uri):
        return ParsedUri("", uri, {})
    kind, rest = "", uri
    prefix = _PREFIX.match(uri)
    if prefix is not None and not _is_address(uri):
        if prefix.group(1) not in kinds:
            raise unknown_name("kind of source", prefix.group(1), kinds)
        kind, rest = prefix.group(1), uri[prefix.end() :]
    options: dict[str, str] = {}
    found = _OPTIONS.search(rest)
    if found is not None and not os.path.lexists(rest):
        rest = rest[: found.start()]
        _checked_address(rest)
        for pair in found.group(1).split("&"):
            name, equals, value = pair.partition("=")
            if not equals or not value or name in options:
                raise UsageError(f"option {name!r} of source {rest!r} is not NAME=VALUE, given once: write it so")
            options[name] = value
    _checked_address(rest)
    if not rest:
        raise UsageError(f"source {uri!r} has no path: write it after the kind, as in {kind or 'tar'}:PATH")
    return ParsedUri(kind, rest, options)


def paths_of(pattern: str, uri: str) -> list[str]:
    """Returns the absolute paths or addresses behind a pattern; every path is there, addresses are not asked for.

    Globs are sorted by name; braces keep their order. `uri` is what was typed, for messages.

    Raises:
        UsageError: a path is missing, is neither file nor folder, comes twice, or nothing matches.
        EnvironmentProblem, RefusedError: an object store cannot be listed.
    """
    if os.path.lexists(pattern):
        return [_checked(os.path.abspath(pattern))]
    paths: list[str] = []
    expanded = _expand_braces(pattern, uri)
    for one in expanded:
        if _checked_address(one):
            paths += listed(one) if glob.has_magic(one) else [one]
        elif glob.has_magic(one) and not os.path.lexists(one):
            matches = sorted(glob.glob(one, recursive=True))
            if not matches:
                raise UsageError(f"no file matches {one} in source {uri!r}: check the pattern")
            paths += [_checked(os.path.abspath(match)) for match in matches]
        else:
            path = os.path.abspath(one)
            if not os.path.lexists(path):
                num_missing = sum(not os.path.lexists(other) for other in expanded)
                among = f" (and {num_missing - 1} more of {len(expanded)})" if num_missing > 1 else ""
                raise UsageError(f"{path} does not exist{among}: check the path of source {uri!r}")
            paths.append(_checked(path))
    if len(set(paths)) < len(paths):
        twice = next(path for at, path in enumerate(paths) if path in paths[:at])
        raise UsageError(f"source {uri!r} names {twice} twice: name every file once")
    return paths


def _is_address(uri: str) -> bool:
    """Returns whether `uri` begins with a scheme that is read over the network.

    Raises:
        UsageError: it begins with one that is not; the message shows the scheme only, since what follows may carry a
            password or a token.
    """
    scheme, colon, rest = uri.partition(":")
    if not colon or not _PREFIX.match(uri):
        return False
    if scheme in SCHEMES and rest.startswith("//"):
        return True
    if rest.startswith("//") or scheme.lower() in ("pipe", "file", "data", "ftp", *SCHEMES):
        raise UsageError(f"a source at {scheme}: is not read: name a path, or an address of {', '.join(SCHEMES)}")
    return False


def _checked_address(pattern: str) -> bool:
    if os.path.lexists(pattern) or not _is_address(pattern):
        return False
    check_address(pattern)
    return True


def _expand_braces(pattern: str, uri: str) -> list[str]:
    done: list[str] = []
    waiting = [pattern]
    while waiting:
        one = waiting.pop()
        braces = _BRACES.search(one)
        if braces is None:
            done.append(one)
            if len(done) + len(waiting) > _MAX_PATHS:
                raise UsageError(f"source {uri!r} names more than {_MAX_PATHS:,} files: split it")
            continue
        choices = _choices(braces.group(1), uri)
        # Reversed, because the last one waiting is taken first.
        waiting += [one[: braces.start()] + choice + one[braces.end() :] for choice in reversed(choices)]
    return done


def _choices(inside: str, uri: str) -> list[str]:
    numbers = _RANGE.match(inside)
    if numbers is None:
        return inside.split(",")
    first, last = numbers.groups()
    if int(first) > int(last):
        raise UsageError(f"braces {{{inside}}} in source {uri!r} count down: write the smaller number first")
    if int(last) - int(first) >= _MAX_PATHS:
        raise UsageError(f"source {uri!r} names more than {_MAX_PATHS:,} files: split it")
    width = max(len(first), len(last)) if (first.startswith("0") and len(first) > 1) or last.startswith("0") else 0
    return [str(number).zfill(width) for number in range(int(first), int(last) + 1)]


def _checked(path: str) -> str:
    try:
        path.encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"{path!r} is not UTF-8, or the locale says that file names are not: rename it, or set LC_ALL=C.UTF-8"
        ) from error
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}): check the link or the permissions") from error
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise UsageError(f"{path} is neither a file nor a folder: a pipe, device or socket is never opened")
    return path
