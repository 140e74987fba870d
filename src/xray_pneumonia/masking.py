"""Mask passwords and tokens in URLs; every text that is stored or shown passes through it."""

import logging
import re

# The grammars differ in what a password may hold, so everything up to the last `@` of a word counts as the login.
LOGIN = re.compile(r"\b([a-zA-Z][a-zA-Z0-9+.-]*)://(?!/)(\S*)@")
DATABASE = re.compile("postgres|mysql|mariadb|mssql|oracle")  # a user alone is none of their secrets; elsewhere a token
PARAMETER = re.compile(r"([?&])([^\s=&?/'\"]+)=([^\s&]*)")
HARMLESS = {  # parameters that are shown
    *("user", "host", "hostaddr", "port", "dbname", "sslmode", "sslrootcert", "connect_timeout", "application_name"),
    *("charset", "driver", "mode", "cache", "timeout", "experiment_name", "run_id", "path", "max_results"),
    "workflowType",  # of MLflow's pages
}
HIDDEN = "***"
_references: dict[str, str] = {}  # address -> how the config looks it up


def remember(address: str, reference: str) -> None:
    """Have an address that was looked up in the environment stored and shown as its reference."""
    _references[address] = reference


def masked(text: str) -> str:
    """Hide logins and parameters of the addresses in a text; what came from the environment becomes its reference."""
    for address, reference in _references.items():
        text = text.replace(address, reference)
    return PARAMETER.sub(_parameter, LOGIN.sub(_login, text))


def _login(match: re.Match[str]) -> str:
    scheme, (user, colon, _) = match.group(1), match.group(2).partition(":")
    shown = (f"{user}:{HIDDEN}" if colon else user) if DATABASE.match(scheme) else HIDDEN
    return f"{scheme}://{shown}@"


def _parameter(match: re.Match[str]) -> str:
    sign, name, _ = match.groups()
    return match.group() if name in HARMLESS else f"{sign}{name}={HIDDEN}"


class MaskingFormatter(logging.Formatter):
    """Masks messages and tracebacks."""

    def format(self, record: logging.LogRecord) -> str:
        """Format and mask."""
        return masked(super().format(record))
