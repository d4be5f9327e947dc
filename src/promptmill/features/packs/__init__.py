"""Packs of items: what features that answer several items by one request share."""

from promptmill.core.feature import Feature

FEATURE = Feature(words="several items in one request, for features that gather items")
