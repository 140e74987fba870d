"""The steps of each verb, in one module a verb, and what several verbs share."""
