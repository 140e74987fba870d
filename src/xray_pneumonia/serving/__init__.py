"""Answers over HTTP: the page of `xray serve`, its interface, and what protects both."""
